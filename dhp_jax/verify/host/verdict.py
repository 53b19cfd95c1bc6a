"""What a check of the CPU kernels found, and its verdict."""

from __future__ import annotations

import dataclasses

from dhp_jax.verify.verdict import Verdict


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
