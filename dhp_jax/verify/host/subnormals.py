"""Whether subnormal numbers cost extra: instruction counts cannot show that, so this check takes the time.

On many processors arithmetic on subnormals is slower; the kernels flush them to zero. The controls are the same
machine code with the flush taken back, which must give other results, and tasks that wait for an eighth of their time,
which the timer must see. On a processor where subnormals cost nothing even so, the result says that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dhp_jax.verify.host.controls import missed
from dhp_jax.verify.host.driver import KERNELS, Driver
from dhp_jax.verify.host.verdict import Finding, Result
from dhp_jax.verify.verdict import Verdict

EVIDENCE = "subnormals"
LARGEST_RATIO = 1.02  # of the times of subnormal and ordinary secrets
SMALLEST_SEEN = 1.05  # what a delay of an eighth must at least show
_ROUNDS = 25
_ATTEMPTS = 4  # more rounds are added, up to this often, while the times do not look like those of a flushed kernel

_Way = tuple[str, str]  # sort of secret, how it ran
_Times = dict[_Way, list[float]]  # nanoseconds, round by round


def check(driver: Driver, kernels: str, time_call: str, flush_calls: Sequence[str]) -> list[Result]:
    """The verdicts on the kernels of one instruction set.

    Args:
      driver: the driver.
      kernels: the instruction set.
      time_call: the call to time.
      flush_calls: calls whose results are compared with those of zeros.

    Raises:
      UnverifiableError: the check could not be made.
    """
    nonzero = _run_flushed(driver, kernels, flush_calls)
    times = _measure(driver, kernels, time_call)
    return [_judge(kernels, kernel, nonzero.get(kernel, {}), times.get(kernel, {})) for kernel in KERNELS]


def _run_flushed(driver: Driver, kernels: str, calls: Sequence[str]) -> dict[str, dict[str, int]]:
    """Bytes that are not those of zero, for each kernel, flushed and unflushed."""
    rows = driver.run("flush", f"--kernels={kernels}", *(f"--call={call}" for call in calls))
    nonzero: dict[str, dict[str, int]] = {}
    for _, kernel, _, how, number in rows:
        by_how = nonzero.setdefault(kernel, {})
        by_how[how] = by_how.get(how, 0) + int(number)
    return nonzero


def _measure(driver: Driver, kernels: str, call: str) -> dict[str, _Times]:
    """The times of each kernel."""
    times: dict[str, _Times] = {}
    for _ in range(_ATTEMPTS):
        for row in driver.run("time", f"--kernels={kernels}", f"--call={call}", f"--rounds={_ROUNDS}"):
            _, kernel, _, secret, how, nanoseconds = row
            times.setdefault(kernel, {}).setdefault((secret, how), []).append(float(nanoseconds))
        if all(_ratio(t, "flushed") <= LARGEST_RATIO and _resolution(t) >= SMALLEST_SEEN for t in times.values()):
            break
    return times


def _relative(times: _Times, way: _Way, to: _Way) -> float:
    """The time of a way relative to that of another in the same round; the median over all rounds.

    A shared machine is faster in some seconds than in others, so only runs of one round are compared. And only runs
    that were called alike: where the stack of a call lies can make a tenth of its time.
    """
    return statistics.median(a / b for a, b in zip(times[way], times[to], strict=True))


def _ratio(times: _Times, how: str) -> float:
    """How much longer the slower sort of subnormals takes than ordinary secrets."""
    sorts = ("subnormal", "subnormal_keys")
    return max(_relative(times, (sort, how), ("ordinary", how)) for sort in sorts)


def _resolution(times: _Times) -> float:
    return _relative(times, ("ordinary", "delayed"), ("ordinary", "unflushed"))


def _judge(kernels: str, kernel: str, nonzero: dict[str, int], times: _Times) -> Result:
    findings = []
    if nonzero.get("flushed", 1):
        message = "sums of products of subnormals are not 0, so subnormals are not flushed"
        findings.append(Finding(Verdict.LEAK, "not-flushed", kernel, message))
    if not nonzero.get("unflushed", 0):
        findings.append(missed("without_flush", "its sums of products of subnormals are 0 as well"))
    detail = "flushed to zero"
    if not times:
        findings.append(Finding(Verdict.UNKNOWN, "no-times", kernel, "the driver took no times of this kernel"))
    else:
        ratio, without, seen = _ratio(times, "flushed"), _ratio(times, "unflushed"), _resolution(times)
        detail += f"; time on subnormals x {ratio:.3f}, without the flush x {without:.3f}, with a delay x {seen:.2f}"
        if without <= LARGEST_RATIO:
            detail += "; this processor has no penalty here, so the time says nothing of the flush"
        if seen < SMALLEST_SEEN:
            findings.append(missed("delayed", f"a delay of an eighth shows as x {seen:.3f}: the timer is too coarse"))
        if ratio > LARGEST_RATIO:
            message = f"subnormals take x {ratio:.3f} the time; at most x {LARGEST_RATIO} may be noise"
            findings.append(Finding(Verdict.LEAK, "slow-subnormals", kernel, message))
    verdict = Verdict.of_all([Verdict.SAFE, *(finding.verdict for finding in findings)])
    return Result(kernels, kernel, EVIDENCE, verdict, detail, tuple(findings))
