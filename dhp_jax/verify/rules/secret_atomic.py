"""Rule CT05."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site
from dhp_jax.verify.value import Step

_COPIED_FROM_SHARED = ("UTMAREDG", "UBLKRED")


class SecretAtomic(Rule):
    """An atomic or a reduction in memory works on secrets.

    Catches: atomics with a secret operand, address or guard, and reducing copies, whose source is shared memory.
    Why: contention costs time, a compare-and-swap loop repeats by data, and the order of sums changes the bits.
    Misses: nothing in this model; atomics on public counters pass.
    Fix: one owner for each output, one fixed order for each sum.
    Control: tests/leaky, cases L16, L19.
    """

    id = "CT05"
    name = "secret-atomic"
    remedy = "Give each output one owner that adds in a fixed order."

    def offences(self, site: Site) -> Iterator[Offence]:
        """Anything secret about an atomic."""
        if site.opcode.family is not Family.ATOMIC:
            return
        if secret := site.guard_secret():
            yield "its guard is secret", secret
        for read, secret in site.secrets(*Role):
            yield f"{read.register} is secret", secret
        if site.instruction.opcode in _COPIED_FROM_SHARED:
            yield "it adds what lies in shared memory", Step(site.instruction, "", "shared memory")
