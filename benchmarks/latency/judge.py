"""Decides from the cycles of all trials whether an instruction's time depends on its operands.

Two ways to judge. Where one warp or warpgroup waits for each result inside the SM, nothing else happens and the clock
counts whole cycles: the mean of all classes, and the minimum too unless the reference class itself varies (a load from
the first cache does), must agree to a thousandth of a cycle an instruction. Where
many warps compete, or the answer comes from beyond the SM, turns are taken differently from trial to trial: the means
must agree to one cycle in a thousand. A mean leaves out the lowest and the highest tenth of the rounds. Noise is what
the two means of the reference class, timed twice under two names, differ by, or the standard error of a mean where that
is more: the extremes of two dozen equal classes may lie several times as far apart, so a spread of no more than that is
neither passed nor called a difference.
"""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Collection, Mapping, Sequence

RESOLUTION = 0.001
NOISE = 6  # the extremes of two dozen equal classes lie about four deviations apart, in one case of 500 six
FEWEST_ROUNDS = 200
AGAIN = " again"


class Verdict(enum.Enum):
    """What the figures of one case say."""

    EQUAL = "equal"
    WITHIN = "within"
    DIFFERS = "differs"
    UNRESOLVED = "unresolved"


@dataclasses.dataclass(frozen=True)
class Figures:
    """One class of operands in one case, in cycles of the whole timed region."""

    minimum: int
    mean: float
    error: float  # standard error of the mean

    @classmethod
    def of(cls, cycles: Sequence[int]) -> Figures:
        """The figures of all rounds."""
        ordered = sorted(cycles)
        tenth = len(ordered) // 10
        middle = ordered[tenth : len(ordered) - tenth]
        return cls(ordered[0], statistics.mean(middle), statistics.stdev(middle) / len(middle) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A case with its verdict.

    Attributes:
        case: as the program lists it.
        classes: the figures of each class.
        verdict: what they say.
        spread: the largest disagreement among classes, in cycles of the whole region.
        allowed: the largest that passes.
    """

    case: Mapping[str, object]
    classes: Mapping[str, Figures]
    verdict: Verdict
    spread: float
    allowed: float

    @property
    def instructions(self) -> int:
        """How often one warp issues the instruction in the timed region."""
        return instructions(self.case)

    def per_instruction(self) -> tuple[float, float]:
        """The least and the greatest mean of a class, in cycles for each instruction of one warp."""
        means = [figures.mean for figures in self.classes.values()]
        return min(means) / self.instructions, max(means) / self.instructions


def instructions(case: Mapping[str, object]) -> int:
    """How often one warp issues the instruction in the timed region."""
    return int(str(case["in_code"])) * int(str(case["trips"]))


def exact(case: Mapping[str, object]) -> bool:
    """Whether one warp, or one warpgroup, is timed alone and inside the SM."""
    return str(case["form"]).startswith("chain") and not case["beyond_sm"]


def judge(case: Mapping[str, object], cycles: Mapping[str, Sequence[int]]) -> Judged:
    """The verdict on one case.

    Args:
        case: as the program lists it.
        cycles: class -> cycles of the region in each round.

    Raises:
        ValueError: too few rounds, or no class is timed twice.
    """
    name = case["kernel"]
    fewest = min(map(len, cycles.values()), default=0)
    if fewest < FEWEST_ROUNDS:
        raise ValueError(f"{name}: {fewest} rounds of a class; a mean needs {FEWEST_ROUNDS}, give --rounds more")
    again = [known for known in cycles if known.endswith(AGAIN)]
    if len(again) != 1 or again[0].removesuffix(AGAIN) not in cycles:
        raise ValueError(f"{name}: of {list(cycles)} one must come twice, as '...{AGAIN}' too, to show the noise")
    figures = {known: Figures.of(values) for known, values in cycles.items()}
    reference = figures[again[0].removesuffix(AGAIN)]
    steady = exact(case) and reference.error == 0
    spread = _spread(figures.values(), steady)
    allowed = RESOLUTION * (instructions(case) if exact(case) else reference.mean)
    error = statistics.mean(each.error for each in figures.values())
    noise = max(_spread([reference, figures[again[0]]], steady), error)
    if spread <= allowed:
        verdict = Verdict.WITHIN if spread else Verdict.EQUAL
    else:
        verdict = Verdict.UNRESOLVED if spread < NOISE * noise else Verdict.DIFFERS
    return Judged(case, figures, verdict, spread, allowed)


def unseen_controls(judged: Collection[Judged]) -> list[str]:
    """The probes known to depend on their operands in which nothing was seen: none, if the run is worth anything."""
    return [str(each.case["kernel"]) for each in judged if each.case["control"] and each.verdict is not Verdict.DIFFERS]


def _spread(figures: Collection[Figures], with_minima: bool) -> float:
    means = [each.mean for each in figures]
    minima = [each.minimum for each in figures] if with_minima else [0]
    return max(max(means) - min(means), max(minima) - min(minima))
