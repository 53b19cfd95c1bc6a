"""Rule CT08."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class ControlInMemory(Rule):
    """A secret is stored to local memory, among spilled addresses and counters.

    Catches: every STL of a secret to a thread's local memory, be it a spill or an array that the compiler could not
    keep in registers.
    Why: local memory leaves the chip, and outlives the kernel. And the analysis holds it for one region: once a secret
    lies there, an address, a predicate or a loop counter that was spilled there comes back secret, and CT01 to CT03
    report where it is used.
    Misses: shared memory, which holds secrets by its purpose; what is loaded from it is secret always. A store through
    a generic pointer (ST) may reach local memory too: what comes back is secret, the store itself is not reported.
    Fix: fewer live values; arrays indexed by constants only.
    Control: tests/leaky, case L29b, and tests/leaky/spill.cu.
    """

    id = "CT08"
    name = "control-in-memory"
    remedy = "Keep secrets in registers: fewer live values, unrolled loops, arrays indexed by constants."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A store to local memory with secret data."""
        if site.instruction.opcode == "STL":
            for read, secret in site.secrets(Role.DATA):
                yield f"{read.register} is secret", secret
