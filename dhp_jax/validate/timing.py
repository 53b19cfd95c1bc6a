"""Loop 6, timing: do the shipped kernels take the same SM cycles whatever the secrets?

Cycles are read before and after the kernels, in a captured graph (_controls.py). Classes of secrets come in random
order, at the same addresses, behind caches that were flushed. The verdict needs all of this:

* chance: of 20 random labellings of equal inputs at most one has |t| > 4.5, and equal inputs at two places do not
  differ;
* the control: 64 cycles more in one class give |t| > 10;
* each class beside random: the 95 % interval of the difference within delta = max(0.05 % of the time, 64 cycles), and
  nowhere in the distribution a difference as certain as the control's. What a first measurement says against it, a
  second must say too.

Operands that switch fewer bits than random ones, such as zeros, draw less power, and the clocks of a GPU's parts, not
only its SMs', follow: on an H200 zeros and ones alike take up to 0.5 % fewer cycles. That is outside the contract. Such
classes are reported; they fail beyond 1 %, which no power effect was seen to reach.

It is a test with a stated resolution, and proves nothing. Wall-clock time is reported, and bears no verdict.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dhp_jax.validate import _controls, statistics
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context
from dhp_jax.validate.sorts import LESS_ACTIVE
from dhp_jax.validate.statistics import CERTAIN, SUSPICIOUS, Difference, Sample

DELAY = 64  # cycles that the control waits for
_LABELLINGS = 20
_RUNS, _QUICK_RUNS = 2500, 1500  # of each class
_POWER = 0.01  # of the time: more than power was seen to make of it
_READ = 0.5  # of the SMs: a run with fewer is left out
_BASE, _AGAIN = "random", "random again"  # equal inputs

Samples = Mapping[str, Sample]
Measure = Callable[[int], Samples]  # seed -> cycles of each class


def _call(dtype: str, channels: int, **options: Any) -> Call:
    return Call(dtype, channels, **{"B": 2, "T": 512, "S": 512, "N": 8, "K": 4, **options})


CALLS = (
    _call("bfloat16", 64, lengths=True),
    _call("bfloat16", 128, operands=True),
    _call("float32", 64, operands=True, T=256, S=256),
    _call("float16", 256, is_causal=True, T=256, S=256),
)
# Work, and how many calls a run times: what differs from run to run is when kernels start, not how long they take.
_WORKS = {"forward": (_controls.FORWARD, 8), "backward": (_controls.BACKWARD, 2)}


@dataclasses.dataclass(frozen=True)
class Pace:
    """How a call is timed.

    Attributes:
        runs: of each class.
        repeats: calls in a run, one after the other.
        rest: nanoseconds without work after each run. Long calls without one bring a GPU to its limit of power, where a
            run takes the longer the more power those before it drew.
    """

    runs: int
    repeats: int
    rest: int = 0


def run(context: Context) -> list[Check]:
    """Forward and backward of some calls, each with all sorts of secrets."""
    if reason := _controls.objection():
        return [Check("timing", Status.SKIPPED, reason)]
    runs = _QUICK_RUNS if context.quick else _RUNS
    found = {}
    for call in CALLS[1:2] if context.quick else CALLS:
        for name, (work, repeats) in _WORKS.items():
            found[f"{call.name} {name}"] = examine(functools.partial(measured, call, work, Pace(runs, repeats)))
    return [judge("timing", found, runs)]


def measured(call: Call, work: int, pace: Pace, seed: int, secrets: Sequence[str] | None = None) -> Samples:
    """Cycles of a call with each of `secrets`, or all sorts, in random order; random ones are there twice besides."""
    names = [_BASE, _AGAIN, *(call.secrets()[1:] if secrets is None else secrets)]
    classes = [call.arrays(_BASE if name == _AGAIN else name) for name in names]
    return _sorted(names, pace.runs, seed, lambda order: _cycles(call, work, classes, order, pace))


def _cycles(call: Call, work: int, classes: list[Any], order: Any, pace: Pace, waits: list[int] | None = None) -> Any:
    """SM cycles of one call, [samples, SMs]; 0 where they were not read."""
    return _controls.time_call(call, work, classes, order, waits, pace.repeats, pace.rest)[0] / pace.repeats


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
        if seen := [name for name in self.differences if self._differs(name)]:
            told = ", ".join(
                f"{name} {self.differences[name].mean:+.1f} cycles (t {self.differences[name].t:.1f})" for name in seen
            )
            return Status.FAIL, f"time depends on secrets: {told}"
        coarse = [name for name in self.as_active() if not self.differences[name].within(self.delta)]
        return (Status.UNKNOWN, f"not shown to agree within {self.delta:.0f} cycles: {coarse}") if coarse else None

    def _differs(self, name: str) -> bool:
        found = self.differences[name]
        if name in LESS_ACTIVE:
            return abs(found.mean) > _POWER * self.cycles
        return abs(found.t) > CERTAIN or found.outside(self.delta)

    def as_active(self) -> list[str]:
        """The classes that switch as many bits as the random one."""
        return [name for name in self.differences if name not in LESS_ACTIVE]

    def power(self) -> float:
        """Largest difference of the others, as a share of the time."""
        return (
            max((abs(d.mean) for name, d in self.differences.items() if name in LESS_ACTIVE), default=0) / self.cycles
        )


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
    cycles = float(np.median(base))
    delta = max(0.0005 * cycles, DELAY)
    against = [name for name, found in differences.items() if _is_against(name, found, cycles, delta)]
    if against or abs(restless.t) > SUSPICIOUS or not restless.within(delta):
        second = measure(1)
        differences |= {name: statistics.difference(second[_BASE], second[name]) for name in against}
        if abs(restless.t) > SUSPICIOUS or not restless.within(delta):
            restless = statistics.difference(second[_BASE], second[_AGAIN])
    lower, upper = np.quantile(base, [0.25, 0.75])
    most = max(values.size for values in (base, again, *samples.values()))
    return Examined(
        cycles=cycles,
        delta=delta,
        chance=tuple(chance),
        again=restless,
        differences=differences,
        spread=float(upper - lower) / 2,
        lost=1 - min(values.size for values in (base, again, *samples.values())) / most,
    )


def _is_against(name: str, found: Difference, cycles: float, delta: float) -> bool:
    """Whether a look speaks against equal times, so that a second must bear it out: there are hundreds of looks."""
    if name in LESS_ACTIVE:
        return abs(found.mean) > _POWER * cycles
    return abs(found.t) > CERTAIN or not found.within(delta)


def judge(name: str, found: Mapping[str, Examined], runs: int) -> Check:
    """One check over all calls; the worst answer counts."""
    figures = {"runs of each class": runs, "calls": {call: dataclasses.asdict(seen) for call, seen in found.items()}}
    problems = {call: problem for call, seen in found.items() if (problem := seen.problem())}
    told = "; ".join(f"{call}: {why}" for call, (_, why) in problems.items())
    if any(status is Status.FAIL for status, _ in problems.values()):
        return Check(name, Status.FAIL, told, figures)
    if problems or not found:
        return Check(name, Status.UNKNOWN, told or "nothing was timed", figures)
    matched = [seen.differences[name] for seen in found.values() for name in seen.as_active()]
    largest = max(max(-each.low, each.high) for each in matched)
    suspicious = sum(abs(each.t) > SUSPICIOUS for each in matched)
    power = max(seen.power() for seen in found.values())
    told = (
        f"{len(matched)} classes in {len(found)} calls, {runs} runs each, agree within {largest:.0f} cycles "
        f"({suspicious} with |t| > {SUSPICIOUS}), which is no proof; "
        f"zeros and their like differ by up to {100 * power:.2f} %: power, outside the contract"
    )
    return Check(name, Status.PASS, told, figures)


def controls(context: Context) -> list[Check]:
    """64 cycles more, and a kernel that stops at a length, must be seen."""
    name = "timing control"
    if reason := _controls.objection():
        return [Check(name, Status.SKIPPED, reason, is_control=True)]
    leaking = _sorted(["long", "short"], _RUNS, 3, lambda order: _controls.time_leak([1024, 128], order)[0])
    return [
        judge_controls(
            {
                "64 cycles": delayed(CALLS[0], Pace(_RUNS, _WORKS["forward"][1])),
                "stop at a length": statistics.difference(leaking["long"], leaking["short"]),
            }
        )
    ]


def delayed(call: Call, pace: Pace) -> Difference:
    """The forward pass with DELAY cycles more beside the one without."""
    classes = [call.arrays(_BASE)] * 2
    found = _sorted(
        ["none", "delay"],
        pace.runs,
        2,
        lambda order: _cycles(call, _controls.DELAYED, classes, order, pace, [0, DELAY]),
    )
    return statistics.difference(found["none"], found["delay"])


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
