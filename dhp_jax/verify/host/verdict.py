"""What a check says of one kernel: SAFE, LEAK, or UNKNOWN where it cannot say."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable


class Verdict(enum.Enum):
    """In order of how bad it is for a promise: a leak found outweighs a question left open."""

    SAFE = 0
    UNKNOWN = 2
    LEAK = 1

    @property
    def exit_status(self) -> int:
        """0 for SAFE, 1 for LEAK, 2 for UNKNOWN."""
        return self.value


_SEVERITY = (Verdict.SAFE, Verdict.UNKNOWN, Verdict.LEAK)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; UNKNOWN where there is none, since nothing was checked."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One reason why a verdict is not SAFE.

    Attributes:
      verdict: LEAK, or UNKNOWN where the check met something that it cannot judge.
      rule: what was broken, such as "secret-branch".
      place: where: an address in a file, or a call.
      detail: what was seen there, such as the instruction.
    """

    verdict: Verdict
    rule: str
    place: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What one sort of evidence says of one kernel for one instruction set.

    Attributes:
      kernels: the instruction set, such as "avx2".
      kernel: "fwd", "bwd" or "bwd_bias".
      evidence: "undefined", "counts", "machine-code" or "subnormals".
      verdict: the verdict.
      detail: what was done, in figures.
      findings: why the verdict is not SAFE.
    """

    kernels: str
    kernel: str
    evidence: str
    verdict: Verdict
    detail: str
    findings: tuple[Finding, ...] = ()


class UnverifiableError(Exception):
    """Something that a check needs is not there or not what it must be; the verdict is UNKNOWN."""
