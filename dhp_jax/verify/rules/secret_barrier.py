"""Rule CT06."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class SecretBarrier(Rule):
    """A secret decides who waits for whom.

    Catches: barriers, arrivals, expected bytes, elections, register requests, fences and waits for copies under a
    secret guard; a secret number, count, parity or mask of a barrier.
    Why: others wait, and see when. It is also the ground on which results of barriers count as public (transfer.py).
    Misses: nothing in this model.
    Fix: meet unconditionally.
    Control: tests/leaky, case L15.
    """

    id = "CT06"
    name = "secret-barrier"
    remedy = "Let all threads meet at every barrier, with counts and parities made from public loop counters."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret guard or operand of an instruction of synchronisation."""
        if site.opcode.family is Family.BARRIER:
            if secret := site.guard_secret():
                yield "its guard is secret", secret
            for read, secret in site.secrets(Role.MEETING):
                yield f"{read.register}, which decides who meets, is secret", secret
