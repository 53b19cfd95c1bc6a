"""One timer for all: what one more call costs in a chain of calls that the device runs without the host.

A program of n calls and one of 3 n are started, each at once, and waited for; a call costs (t(3 n) - t(n)) / 2 n. What
starting and waiting cost cancels out. A JAX program records its calls into CUDA graphs by itself, a PyTorch one is
captured (peers/chain.py), so this is the time of replayed graphs, whoever made them. CUDA events would serve PyTorch
alone.

Implementations take turns in each round, in another order each time, so that all meet the same clocks and temperatures:
after one that waits for memory the clock is high, and whoever always came next would have it. What a turn begins with,
in the clocks and the process that the last one left, is not timed. A call finds the L2 cache as its predecessor left it
(WARM). COLD programs also write FLUSH_BYTES before each call; FLUSH programs do only that,
and their time is taken off.

A GPU that has rested is cool and runs at its highest clock; under load, power brings the clock down within a second. So
besides the median there are a figure of the first rounds, of a burst, and one of the last, sustained.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Run = Callable[[], object]  # runs all calls of a program and waits for them
Build = Callable[[int, str], Run]  # the program of so many calls, in one of the modes below

WARM, COLD, FLUSH = "warm", "cold", "flush"
RESTLESS = "its longer chain took no longer: the machine is too restless to time it"

FLUSH_BYTES = 128 << 20  # more than twice the L2 cache of an H200
_CHAIN_SECONDS = 2e-3  # that the shorter chain should take
_MOST_CALLS = 16  # a chain three times as long must compile in seconds, whoever's calls they are
_ROUND_SECONDS = 4e-3  # that all programs of an implementation should take: what is shorter has more rounds
_RATE = 250e12  # operations a second, and _LAUNCH seconds a call: a guess, for the length of chains and the rounds
_LAUNCH = 5e-6
_BURST = 10  # the first of so many equal parts of the rounds
_SUSTAINED = 3  # the last of so many


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one call.

    Attributes:
        seconds: median of the rounds.
        spread_percent: half the distance between the quartiles.
        burst_seconds: median of the first tenth of the rounds, at least one.
        sustained_seconds: median of the last third.
        megahertz: likewise the SM clock after the rounds: "burst", "median", "sustained"; empty where nothing reads it.
    """

    seconds: float
    spread_percent: float
    burst_seconds: float
    sustained_seconds: float
    megahertz: Mapping[str, float]

    @staticmethod
    def of(values: Sequence[float], clocks: Sequence[float] = ()) -> Timing:
        """From one value for each round, and the clock after it."""
        lower, median, upper = statistics.quantiles(values, n=4)
        burst, _, sustained = _phases(values)
        megahertz = dict(zip(("burst", "median", "sustained"), _phases(clocks), strict=True)) if clocks else {}
        return Timing(median, 50 * (upper - lower) / median, burst, sustained, megahertz)


def _phases(values: Sequence[float]) -> tuple[float, float, float]:
    """Medians of the first rounds, of all, and of the last."""
    few, many = -(-len(values) // _BURST), -(-len(values) // _SUSTAINED)
    return statistics.median(values[:few]), statistics.median(values), statistics.median(values[-many:])


def chain_length(operations: float) -> int:
    """How many calls the shorter program makes."""
    return max(2, min(_MOST_CALLS, round(_CHAIN_SECONDS / _guess(operations))))


def count_rounds(fewest: int, operations: float) -> int:
    """How many rounds: more of calls so short that starting a program takes as long as its calls."""
    seconds = 4 * chain_length(operations) * _guess(operations)
    return max(fewest, round(fewest * _ROUND_SECONDS / seconds))


def _guess(operations: float) -> float:
    """Seconds of a call."""
    return operations / _RATE + _LAUNCH


def seconds_of(run: Run) -> float:
    """Wall-clock time of a program."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    programs: Mapping[str, Build],
    calls: int,
    rounds: int,
    *,
    runs: int = 1,
    rest: float = 0.0,
    cold: bool = False,
    clock: Callable[[], float] | None = None,
) -> tuple[list[dict[str, Timing]], dict[str, str]]:
    """Times of one call, by name, of each run; and why an implementation has none.

    Args:
        programs: what makes the program of so many calls, by name.
        calls: of the shorter program.
        rounds: of a run; in each every implementation runs its first program, then all of them, timed. At least 3.
        runs: how many, with the same programs.
        rest: seconds for which the device idles before each run.
        cold: whether each call finds nothing of its arrays in the L2 cache.
        clock: reads the SM clock, in MHz.
    """
    chains: dict[str, list[tuple[float, Run]]] = {}
    refusals: dict[str, str] = {}
    for name, build in programs.items():
        try:
            chains[name] = _chains(build, calls, cold)
        except Exception as refusal:  # a peer says in any way that it will not
            refusals[name] = f"{type(refusal).__name__}: {str(refusal).partition(chr(10))[0][:200]}"
    found = []
    for _ in range(runs):
        time.sleep(rest)
        found.append(_run(chains, rounds, clock))
    for name in chains:
        if any(statistics.quantiles(values[name], n=4)[0] <= 0 for values, _ in found):
            refusals[name] = RESTLESS
    timed = [name for name in chains if name not in refusals]
    return [{name: Timing.of(values[name], clocks[name]) for name in timed} for values, clocks in found], refusals


def _run(
    chains: Mapping[str, list[tuple[float, Run]]], rounds: int, clock: Callable[[], float] | None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of one call and the SM clock in each round, by name."""
    values: dict[str, list[float]] = {name: [] for name in chains}
    clocks: dict[str, list[float]] = {name: [] for name in chains}
    orders = random.Random(0)
    for _ in range(rounds):
        for name, weighted in orders.sample(list(chains.items()), len(chains)):
            _, shorter = weighted[0]
            shorter()
            values[name].append(sum(weight * seconds_of(run) for weight, run in weighted))
            if clock:
                clocks[name].append(clock())
    return values, clocks


def _chains(build: Build, calls: int, cold: bool) -> list[tuple[float, Run]]:
    """Programs, each run once, and the weight of each one's time in that of one call."""
    weight = 1 / (2 * calls)
    chains = [
        (sign * length_sign * weight, build(length, mode))
        for mode, sign in (((COLD, 1), (FLUSH, -1)) if cold else ((WARM, 1),))
        for length, length_sign in ((calls, -1), (3 * calls, 1))
    ]
    for _, run in chains:
        run()
    return chains
