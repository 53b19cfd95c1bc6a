"""What the analysis knows of the content of one register: whether it is secret, and what helps to tell."""

from __future__ import annotations

import dataclasses
import functools

from dhp_jax.verify.instruction import Instruction

_MOST_CONSTANTS = 64
MIXED = frozenset({"mixed"})  # a pointer of unknown origin, or of several


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step back on the way that a secret took: where it was written, and from what.

    Attributes:
        instruction: that wrote it; None for what was there before the kernel began.
        place: the register it was written to.
        reason: why it is secret, at the first step; how it came, later.
        previous: the step before; None at the source.
    """

    instruction: Instruction | None
    place: str
    reason: str
    previous: Step | None = None

    def path(self) -> list[Step]:
        """All steps, the source first."""
        steps: list[Step] = []
        step: Step | None = self
        while step is not None:
            steps.append(step)
            step = step.previous
        return steps[::-1]


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a register.

    Attributes:
        secret: the last step of the way that a secret took to it; None where it is public.
        origins: the public things it was computed from, to tell what sort a branch is: "thread", "wait" ...
        pointer: what it points into: None for no pointer, names of public regions, or MIXED.
        constants: all numbers it can be; None where they are not known.
    """

    secret: Step | None = None
    origins: frozenset[str] = frozenset()
    pointer: frozenset[str] | None = None
    constants: frozenset[int] | None = None

    def join(self, other: Value) -> Value:
        """Either of two values: secret where one is. This one where the other adds nothing."""
        if self is other or (
            (self.secret is not None or other.secret is None)
            and other.origins <= self.origins
            and other.pointer == self.pointer
            and other.constants == self.constants
        ):
            return self
        return Value(
            self.secret or other.secret,
            self.origins | other.origins,
            either_pointer(self.pointer, other.pointer),
            _union(self.constants, other.constants),
        )

    def same(self, other: Value) -> bool:
        """Whether the analysis needs not look again: paths may differ."""
        return self is other or (
            (self.secret is None) == (other.secret is None)
            and self.origins == other.origins
            and self.pointer == other.pointer
            and self.constants == other.constants
        )


PUBLIC = Value()


def either_pointer(a: frozenset[str] | None, b: frozenset[str] | None) -> frozenset[str] | None:
    """What one of two values points into. A pointer or else something unknown is MIXED."""
    if a == b:
        return a
    return MIXED if a is None or b is None or MIXED in (a, b) else a | b


def _union(a: frozenset[int] | None, b: frozenset[int] | None) -> frozenset[int] | None:
    if a is None or b is None or len(both := a | b) > _MOST_CONSTANTS:
        return None
    return both


@functools.cache
def originating(*origins: str) -> Value:
    """A public value with these origins."""
    return Value(origins=frozenset(origins))
