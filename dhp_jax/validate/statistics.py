"""Do two samples of times differ? Welch's t over crops, as dudect does it, and equivalence within a bound.

Sources: O. Reparaz, J. Balasch, I. Verbauwhede, "Dude, is my code constant time?", 2017, for the crops; D. Schuirmann,
"two one-sided tests", 1987, for equivalence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sample = NDArray[np.float64]

CROPS = 100
SUSPICIOUS = 4.5  # |t|: by chance once in 150,000 tests; over all crops about once in 1500
CERTAIN = 10.0  # |t| that a control must reach
_FEWEST = 50  # values of a crop that a t is computed from
_KEPT = 0.9  # of the values, for a mean
_Z = 1.959964  # of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of the second sample to the first.

    Attributes:
        t: the t of greatest size over all crops and the second-order test.
        mean: difference of the means of the lower 90 % of each.
        low, high: its 95 % interval.
        median: difference of the medians.
    """

    t: float
    mean: float
    low: float
    high: float
    median: float

    def within(self, delta: float) -> bool:
        """Whether the interval lies inside +-delta: equivalence at the 2.5 % level on either side."""
        return -delta < self.low and self.high < delta

    def outside(self, delta: float) -> bool:
        """Whether it lies outside."""
        return self.low > delta or self.high < -delta


def welch(a: Sample, b: Sample) -> float:
    """Welch's t; 0 for equal constants, infinite for different ones."""
    difference = float(b.mean() - a.mean())
    error = float(np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size))
    if error == 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
    return difference / error


def largest_t(a: Sample, b: Sample) -> float:
    """The t of greatest size over the whole samples, CROPS crops of both from above, and centred squares."""
    together = np.concatenate([a, b])
    statistics = [welch(a, b), welch((a - a.mean()) ** 2, (b - b.mean()) ** 2)]
    for point in np.unique(np.quantile(together, 1 - 0.5 ** (10 * (np.arange(CROPS) + 1) / CROPS))):
        left, right = a[a <= point], b[b <= point]
        if min(left.size, right.size) >= _FEWEST:
            statistics.append(welch(left, right))
    return max(statistics, key=abs)


def difference(a: Sample, b: Sample) -> Difference:
    """How `b` differs from `a`, [samples] each."""
    (left, left_error), (right, right_error) = _trimmed(a), _trimmed(b)
    mean, error = right - left, float(np.hypot(left_error, right_error))
    return Difference(largest_t(a, b), mean, mean - _Z * error, mean + _Z * error, float(np.median(b) - np.median(a)))


def _trimmed(a: Sample) -> tuple[float, float]:
    """Mean of the lower _KEPT of the values, and its standard error (Tukey and McLaughlin, 1963).

    Times have a long tail upward, of what has nothing to do with the work.
    """
    limit = np.quantile(a, _KEPT)
    mean = float(np.sort(a)[: max(1, int(_KEPT * a.size))].mean())
    return mean, float(np.minimum(a, limit).std(ddof=1) / (_KEPT * np.sqrt(a.size)))


def shuffled(a: Sample, b: Sample, times: int, seed: int = 0) -> list[float]:
    """largest_t of the same values under random labels: what chance gives."""
    rng = np.random.default_rng(seed)
    together = np.concatenate([a, b])
    found = []
    for _ in range(times):
        mixed: Any = rng.permutation(together)
        found.append(largest_t(mixed[: a.size], mixed[a.size :]))
    return found
