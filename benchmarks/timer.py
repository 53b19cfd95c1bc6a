"""One timer for all: what one more call costs in a chain of calls that the device runs without the host.

A program of n calls and one of 3 n are started, each at once, and waited for; a call costs (t(3 n) - t(n)) / 2 n. What
starting and waiting cost cancels out. A JAX program records its calls into CUDA graphs by itself, a PyTorch one is
captured (peers/chain.py), so this is the time of replayed graphs, whoever made them. CUDA events would serve PyTorch
alone.

Implementations take turns in each round, so that all meet the same clocks and temperatures. A call finds the L2 cache
as its predecessor left it (WARM). COLD programs also write FLUSH_BYTES before each call; FLUSH programs do only that,
and their time is taken off.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

Run = Callable[[], object]  # runs all calls of a program and waits for them
Build = Callable[[int, str], Run]  # the program of so many calls, in one of the modes below

WARM, COLD, FLUSH = "warm", "cold", "flush"

FLUSH_BYTES = 128 << 20  # more than twice the L2 cache of an H200
_CHAIN_SECONDS = 2e-3  # that the shorter chain should take
_MOST_CALLS = 16  # a chain three times as long must compile in seconds, whoever's calls they are
_RATE = 250e12  # operations a second, and _LAUNCH seconds a call: a guess that only sets the length of chains
_LAUNCH = 5e-6


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one call.

    Attributes:
        seconds: median of the rounds.
        spread_percent: half the distance between the quartiles.
    """

    seconds: float
    spread_percent: float

    @staticmethod
    def of(values: list[float]) -> Timing:
        """From one value for each round."""
        lower, median, upper = statistics.quantiles(values, n=4)
        return Timing(median, 50 * (upper - lower) / median)


def chain_length(operations: float) -> int:
    """How many calls the shorter program makes."""
    return max(2, min(_MOST_CALLS, round(_CHAIN_SECONDS / (operations / _RATE + _LAUNCH))))


def seconds_of(run: Run) -> float:
    """Wall-clock time of a program."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    programs: Mapping[str, Build], calls: int, rounds: int, *, cold: bool = False
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of one call, by name; and why an implementation has none.

    Args:
        programs: what makes the program of so many calls, by name.
        calls: of the shorter program.
        rounds: in each of which every implementation runs all its programs once; at least 3.
        cold: whether each call finds nothing of its arrays in the L2 cache.
    """
    chains: dict[str, list[tuple[float, Run]]] = {}
    refusals: dict[str, str] = {}
    for name, build in programs.items():
        try:
            chains[name] = _chains(build, calls, cold)
        except Exception as refusal:  # a peer says in any way that it will not
            refusals[name] = f"{type(refusal).__name__}: {str(refusal).partition(chr(10))[0][:200]}"
    values: dict[str, list[float]] = {name: [] for name in chains}
    for _ in range(rounds):
        for name, weighted in chains.items():
            values[name].append(sum(weight * seconds_of(run) for weight, run in weighted))
    timings = {}
    for name, found in values.items():
        if statistics.quantiles(found, n=4)[0] <= 0:
            refusals[name] = "its longer chain took no longer: the machine is too restless to time it"
        else:
            timings[name] = Timing.of(found)
    return timings, refusals


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
