"""Rule CT03."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class SecretGuard(Rule):
    """A secret decides whether work is issued.

    Catches: a secret predicate before a load, a store, a copy, a shuffle, an approximate function, a conversion, a
    tensor instruction, or arithmetic that is faster where no lane needs it; the accumulate predicate of wgmma; the fill
    predicate of an asynchronous copy.
    Why: no branch remains, and still the secret decides how much work memory, or a shared queue, gets. This is what
    ptxas makes of `claim ? loaded : other`, and of a rescale that is skipped while the maximum stands. Arithmetic, too:
    a stream of FFMA on an H200 takes 13.8 cycles under a guard that holds, 9.0 under one that holds in no lane.
    Misses: a guard on arithmetic that was timed under guards and took the same time under all of them is allowed
    (Admits.EVERYTHING in opcodes.py), and on all arithmetic where the policy says so, which the report repeats; whether
    the arithmetic unit saves power is out of contract.
    Fix: keep a claim as a mask word, not as a bool (CtMask in cuda/device/ct.cuh): ptxas then has no predicate to use.
    Control: tests/leaky, cases L03, L25 to L28; B01, B05 and B15 without the policy that they name.
    """

    id = "CT03"
    name = "secret-guard"
    remedy = "Keep the claim as a mask word (CtMask) and do the work always; only the value may depend on it."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret guard or gate of an instruction that no other rule looks after."""
        if site.opcode.family in (Family.ALU, Family.QUEUE, Family.MEMORY) and not site.admits_guard:
            if secret := site.guard_secret():
                yield "its guard is secret", secret
            for read, secret in site.secrets(Role.GATE):
                yield f"{read.register}, which decides whether work is done, is secret", secret
