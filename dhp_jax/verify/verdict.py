"""What a proof can conclude, and the one exception by which any part of it says that it cannot."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Verdict(enum.Enum):
    """The answer for one kernel or for all that was looked at. The value is the exit status."""

    SAFE = 0
    LEAK = 1
    UNKNOWN = 2

    @staticmethod
    def of_all(verdicts: Iterable[Verdict]) -> Verdict:
        """LEAK where one leaks, else UNKNOWN where one is unknown or there is nothing, else SAFE."""
        seen = set(verdicts)
        if Verdict.LEAK in seen:
            return Verdict.LEAK
        return Verdict.SAFE if seen == {Verdict.SAFE} else Verdict.UNKNOWN


class UnverifiableError(Exception):
    """Something that the model does not cover, or that a check needs and lacks; so nothing may be claimed.

    Attributes:
        problem: what came, and where.
        remedy: the way out; empty where the problem says it.
    """

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(f"{problem}. {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy
