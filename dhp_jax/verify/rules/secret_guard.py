"""Rule CT03."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class SecretGuard(Rule):
    """A secret decides whether work is issued that is not fixed-latency arithmetic.

    Catches: a secret predicate before a load, a store, a copy, a shuffle, an approximate function, a conversion or a
    tensor instruction; the accumulate predicate of wgmma; the fill predicate of an asynchronous copy.
    Why: no branch remains, and still the secret decides how much work memory, or a shared queue, gets. This is what
    ptxas makes of `claim ? loaded : other`, and of a rescale that is skipped while the maximum stands.
    Misses: a guard on fixed-latency arithmetic is allowed; whether the arithmetic unit saves power is out of contract.
    Fix: keep a claim as a mask word, not as a bool (CtMask in cuda/device/ct.cuh): ptxas then has no predicate to use.
    Control: tests/leaky, cases L3, L25 to L28.
    """

    id = "CT03"
    name = "secret-guard"
    remedy = "Keep the claim as a mask word (CtMask) and do the work always; only the value may depend on it."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret guard or gate of an instruction that no other rule looks after."""
        if site.opcode.family in (Family.QUEUE, Family.MEMORY):
            if secret := site.guard_secret():
                yield "its guard is secret", secret
            for read, secret in site.secrets(Role.GATE):
                yield f"{read.register}, which decides whether work is done, is secret", secret
