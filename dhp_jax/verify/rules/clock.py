"""Rule CT07."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.instruction import Kind
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site
from dhp_jax.verify.special import CLOCKS


class Clock(Rule):
    """A kernel reads a clock or a performance counter.

    Catches: any read of a cycle counter, the global timer or a performance monitor, whatever is done with it.
    Why: a kernel that knows the time can make its results, or its course, depend on what others do.
    Misses: nothing in this model.
    Fix: measure from outside, or in a twin of the kernel that is not shipped.
    Control: tests/verify/probes/control.cu, kernel `clocks`.
    """

    id = "CT07"
    name = "clock"
    remedy = "Measure from outside the kernel, or in a twin that is not shipped."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A special register that tells time."""
        for operand in site.instruction.operands:
            if operand.kind is Kind.SPECIAL and operand.name in CLOCKS:
                yield f"{operand.name} tells the time", None
