"""Rule CT04."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Admits, Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class SecretLatency(Rule):
    """A secret is an operand of an instruction whose latency is not known to be independent of operands.

    Catches: any opcode that the table does not allow on secrets: double precision, conversions, population counts,
    match, warp reductions, sine, the check before a division, a reduction at a barrier.
    Why: an instruction that takes longer for some operands tells about them, without branch or address.
    Misses: an opcode that the table allows wrongly. Fixed latency is checked against the schedule in every kernel; all
    that the table allows was timed on 22 sorts of operands on an H200 (benchmarks/results). On architectures that
    nobody timed, the report says what is assumed.
    Fix: another instruction: ex2.approx, rcp.approx, arithmetic on integers.
    Control: tests/leaky, cases L11, L12.
    """

    id = "CT04"
    name = "secret-latency"
    remedy = "Use an instruction of the allow-list (verify/opcodes.py): fixed-latency arithmetic, ex2, lg2, rcp, rsq."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret operand where the table admits none."""
        if site.opcode.admits is Admits.NOTHING and site.opcode.family is not Family.ATOMIC:
            for read, secret in site.secrets(Role.DATA):
                yield f"{read.register} is secret, and the latency may depend on it", secret
