"""Loop 6, timing: do the shipped kernels take the same SM cycles whatever the secrets?

Cycles are read before and after the kernels, in a captured graph (_controls.py). Classes of secrets come in random
order, at the same addresses. The verdict needs all of this:

* chance: of 20 random labellings of equal inputs at most one has |t| > 4.5, and equal inputs at two places do not
  differ;
* the control: 64 cycles more in one class give |t| > 10 with as many runs;
* each class beside random: |t| < 4.5, or, where it is not, a second measurement that says otherwise; and the 95 %
  interval of the difference within delta = max(0.05 % of the time, 64 cycles).

It is a test with a stated resolution, and proves nothing. Wall-clock time is reported, and bears no verdict: the
clock of a GPU falls with the power that operands draw, which is outside the contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dhp_jax.validate import _controls, statistics
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context
from dhp_jax.validate.statistics import CERTAIN, SUSPICIOUS, Difference, Sample

DELAY = 64  # cycles that the control waits for
_LABELLINGS = 20
_RUNS, _QUICK_RUNS = 5000, 1500  # of each class
_READ = 0.5  # of the SMs: a run with fewer is left out
_BASE, _AGAIN = "random", "random again"  # equal inputs

Samples = Mapping[str, Sample]
Measure = Callable[[int], Samples]  # seed -> cycles of each class


def _call(dtype: str, channels: int, **options: Any) -> Call:
    return Call(dtype, channels, **{"B": 2, "T": 512, "S": 512, "N": 8, "K": 4, **options})


CALLS = (
    _call("bfloat16", 64),
    _call("bfloat16", 128, operands=True),
    _call("float32", 64, operands=True),
    _call("float16", 256, is_causal=True),
)
_WORKS = {"forward": _controls.FORWARD, "backward": _controls.BACKWARD}


def run(context: Context) -> list[Check]:
    """Forward and backward of some calls, each with all sorts of secrets."""
    if reason := _controls.objection():
        return [Check("timing", Status.SKIPPED, reason)]
    runs = _QUICK_RUNS if context.quick else _RUNS
    found = {}
    for call in CALLS[1:2] if context.quick else CALLS:
        for name, work in _WORKS.items():
            found[f"{call.name} {name}"] = examine(lambda seed, c=call, w=work: measured(c, w, runs, seed))  # type: ignore[misc]
    return [judge("timing", found, runs)]


def measured(call: Call, work: int, runs: int, seed: int) -> Samples:
    """Cycles of a call with each sort of secrets, `runs` of each in random order."""
    names = [_BASE, _AGAIN, *call.secrets()[1:]]
    classes = [call.arrays(_BASE if name == _AGAIN else name) for name in names]
    return _sorted(names, runs, seed, lambda order: _controls.time_call(call, work, classes, order)[0])


def _sorted(names: Sequence[str], runs: int, seed: int, measure: Callable[[Any], Any]) -> Samples:
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(names), dtype=np.int32), runs))
    cycles, whole = of_sms(measure(order))
    return {name: cycles[whole & (order == index)] for index, name in enumerate(names)}


def of_sms(cycles: Any) -> tuple[Sample, Any]:
    """The median over the SMs of each run, from [runs, SMs] with 0 where one was not read; and which runs count."""
    read = cycles > 0
    whole = read.mean(axis=1) >= _READ
    with np.errstate(invalid="ignore"):
        values = np.where(read, cycles.astype(np.float64), np.nan)
    medians = np.zeros(len(cycles))
    medians[whole] = np.nanmedian(values[whole], axis=1) if whole.any() else 0.0
    return medians, whole


@dataclasses.dataclass(frozen=True)
class Examined:
    """What was seen of one call.

    Attributes:
        cycles: median of the random class.
        delta: the bound on a difference.
        chance: largest |t| of each random labelling.
        again: equal inputs at another place.
        differences: each class beside the random one; where a first look was suspicious, the second.
        spread: half the distance of the quartiles of the random class.
        lost: share of runs in which too few SMs were read.
    """

    cycles: float
    delta: float
    chance: tuple[float, ...]
    again: Difference
    differences: dict[str, Difference]
    spread: float
    lost: float

    def problem(self) -> tuple[Status, str] | None:
        """Why it is no pass; None where it is one."""
        if sum(abs(t) > SUSPICIOUS for t in self.chance) > 1 or abs(self.again.t) > SUSPICIOUS:
            return (
                Status.UNKNOWN,
                f"equal inputs differ (t = {self.again.t:.1f}): the machine is too restless for a verdict",
            )
        if not self.again.within(self.delta) or self.lost > 0.1:
            return (
                Status.UNKNOWN,
                f"too coarse: equal inputs are only known to agree within {self.again.high:.0f} cycles",
            )
        seen = [name for name, found in self.differences.items() if abs(found.t) > SUSPICIOUS]
        if seen:
            told = ", ".join(
                f"{name} {self.differences[name].mean:+.1f} cycles (t {self.differences[name].t:.1f})" for name in seen
            )
            return Status.FAIL, f"time depends on secrets: {told}"
        coarse = [name for name, found in self.differences.items() if not found.within(self.delta)]
        return (Status.UNKNOWN, f"not shown to agree within {self.delta:.0f} cycles: {coarse}") if coarse else None


def examine(measure: Measure) -> Examined:
    """Measures, and measures again what was suspicious."""
    samples = dict(measure(0))
    base, again = samples.pop(_BASE), samples.pop(_AGAIN)
    if min(values.size for values in (base, again, *samples.values())) < 2 * statistics.CROPS:
        raise RuntimeError(
            "dhp_jax.validate: the cycle counters of too few SMs were read; is another process on the GPU?"
        )
    chance = statistics.shuffled(base, again, _LABELLINGS)
    differences = {name: statistics.difference(base, values) for name, values in samples.items()}
    restless = statistics.difference(base, again)
    if any(abs(found.t) > SUSPICIOUS for found in (*differences.values(), restless)):
        second = measure(1)
        restless = _calmer(restless, statistics.difference(second[_BASE], second[_AGAIN]))
        differences = {
            name: _calmer(found, statistics.difference(second[_BASE], second[name]))
            for name, found in differences.items()
        }
    cycles = float(np.median(base))
    lower, upper = np.quantile(base, [0.25, 0.75])
    most = max(values.size for values in (base, again, *samples.values()))
    return Examined(
        cycles=cycles,
        delta=max(0.0005 * cycles, DELAY),
        chance=tuple(chance),
        again=restless,
        differences=differences,
        spread=float(upper - lower) / 2,
        lost=1 - min(values.size for values in (base, again, *samples.values())) / most,
    )


def _calmer(first: Difference, second: Difference) -> Difference:
    """A suspicious first look counts only where the second one says the same: there are hundreds of looks."""
    return second if abs(first.t) > SUSPICIOUS else first


def judge(name: str, found: Mapping[str, Examined], runs: int) -> Check:
    """One check over all calls; the worst answer counts."""
    figures = {"runs of each class": runs, "calls": {call: dataclasses.asdict(seen) for call, seen in found.items()}}
    problems = {call: problem for call, seen in found.items() if (problem := seen.problem())}
    told = "; ".join(f"{call}: {why}" for call, (_, why) in problems.items())
    if any(status is Status.FAIL for status, _ in problems.values()):
        return Check(name, Status.FAIL, told, figures)
    if problems or not found:
        return Check(name, Status.UNKNOWN, told or "nothing was timed", figures)
    worst = max(abs(difference.t) for seen in found.values() for difference in seen.differences.values())
    delta = max(seen.delta for seen in found.values())
    classes = sum(len(seen.differences) for seen in found.values())
    told = (
        f"{classes} classes in {len(found)} calls, {runs} runs each: largest |t| {worst:.1f}, all within {delta:.0f} "
    )
    return Check(name, Status.PASS, told + "cycles; no difference seen, which is no proof", figures)


def controls(context: Context) -> list[Check]:
    """64 cycles more, and a kernel that stops at a length, must be seen."""
    name = "timing control"
    if reason := _controls.objection():
        return [Check(name, Status.SKIPPED, reason, is_control=True)]
    runs = _QUICK_RUNS if context.quick else _RUNS
    call = CALLS[0]
    classes = [call.arrays(_BASE)] * 2
    waits = [0, DELAY]
    delayed = _sorted(
        ["none", "delay"], runs, 2, lambda order: _controls.time_call(call, _controls.DELAYED, classes, order, waits)[0]
    )
    leaking = _sorted(["long", "short"], runs, 3, lambda order: _controls.time_leak([1024, 128], order)[0])
    return [
        judge_controls(
            {
                "64 cycles": statistics.difference(delayed["none"], delayed["delay"]),
                "stop at a length": statistics.difference(leaking["long"], leaking["short"]),
            }
        )
    ]


def judge_controls(found: Mapping[str, Difference]) -> Check:
    """Each must be certain."""
    missed = [name for name, seen in found.items() if not abs(seen.t) > CERTAIN]
    told = ", ".join(f"{name}: {seen.mean:+.1f} cycles, t {seen.t:.1f}" for name, seen in found.items())
    figures = {name: dataclasses.asdict(seen) for name, seen in found.items()}
    return control("timing control", not missed, f"{'missed' if missed else 'seen'}: {told}", figures=figures)


def wall_clock(context: Context) -> list[Check]:
    """What zeros do to time and to cycles, for the report."""
    if reason := _controls.objection():
        return [Check("wall clock", Status.SKIPPED, reason)]
    call = Call("bfloat16", 128, B=4, T=2048, S=2048, N=16, K=16)
    turns, length = (3, 100) if context.quick else (6, 200)
    order = np.tile(np.repeat(np.arange(2, dtype=np.int32), length), turns)
    cycles, nanoseconds = _controls.time_call(
        call, _controls.FORWARD, [call.arrays(_BASE), call.arrays("zeros")], order
    )
    medians, whole = of_sms(cycles)
    settled = whole & (np.arange(order.size) % length >= length // 2)
    figures = {}
    for index, secret in enumerate((_BASE, "zeros")):
        chosen = settled & (order == index)
        figures[secret] = {
            "cycles": float(np.median(medians[chosen])),
            "us": float(np.median(nanoseconds[chosen])) / 1e3,
        }
    ratio = {unit: figures["zeros"][unit] / figures[_BASE][unit] for unit in ("cycles", "us")}
    percent = {unit: f"{100 * (value - 1):+.2f} %" for unit, value in ratio.items()}
    told = f"zeros beside random data: {percent['us']} of time, {percent['cycles']} of cycles; the clock" + (
        " follows the power that operands draw, which is outside the contract"
    )
    return [Check("wall clock", Status.PASS, told, figures)]
