"""Intervals of measured figures, and of the difference between two runs on the same items."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.post.accuracy import Accuracy, wilson_interval

__all__ = [
    "Accuracy",
    "Estimate",
    "bootstrap_ratio",
    "bootstrap_ratio_difference",
    "mcnemar_p",
    "paired_difference",
    "wilson_interval",
]


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its 95 % interval (or of the confidence that was asked for)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain values under the names of the fields."""
        return asdict(self)


def paired_difference(before: Sequence[bool], after: Sequence[bool], *, confidence: float = 0.95) -> Estimate:
    """Bound the difference of two accuracies measured on the same items.

    Combines the Wilson intervals of both accuracies, less the correlation of the outcomes; holds its
    level with few items and near 0 and 1, where the normal approximation does not.

    Args:
        before: outcomes of the first run, one an item.
        after: outcomes of the second run, in the same order.
        confidence: of the interval, in (0, 1).

    Returns:
        Accuracy after less accuracy before; (0, -1, 1) without items.

    Raises:
        InputError: the runs have different numbers of items.

    Source:
        Newcombe 1998, Improved confidence intervals for the difference between binomial proportions
        based on paired data, method 10.
    """
    _check_pairs(len(before), len(after))
    n = len(before)
    if n == 0:
        return Estimate(0.0, -1.0, 1.0)
    both = sum(1 for b, a in zip(before, after, strict=True) if b and a)
    only_after = sum(map(bool, after)) - both
    only_before = sum(map(bool, before)) - both
    neither = n - both - only_after - only_before
    right_after, right_before = both + only_after, both + only_before
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    p_after, p_before = right_after / n, right_before / n
    low_after, high_after = wilson_interval(right_after, n, z=z)
    low_before, high_before = wilson_interval(right_before, n, z=z)
    product = right_after * right_before * (n - right_after) * (n - right_before)
    covariance = float(both * neither - only_after * only_before)
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)  # continuity correction
    phi = covariance / math.sqrt(product) if product else 0.0
    difference = p_after - p_before
    down = _square_and_add(p_after - low_after, high_before - p_before, phi)
    up = _square_and_add(high_after - p_after, p_before - low_before, phi)
    return Estimate(difference, difference - down, difference + up)


def _square_and_add(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2.0 * phi * a * b + b * b))


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the exact two-sided p-value of McNemar's test that both runs are equally often right.

    Args:
        before: outcomes of the first run, one an item.
        after: outcomes of the second run, in the same order.

    Returns:
        The p-value; 1 where the runs agree on every item.

    Raises:
        InputError: the runs have different numbers of items.
    """
    _check_pairs(len(before), len(after))
    better = sum(1 for b, a in zip(before, after, strict=True) if a and not b)
    worse = sum(1 for b, a in zip(before, after, strict=True) if b and not a)
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**n) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2)))


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Bound a ratio of sums (bits per byte of a set of documents) by resampling its items.

    Args:
        numerators: one value an item (the bits of a document).
        denominators: one value an item (its bytes).
        confidence: of the interval, in (0, 1).
        num_resamples: resamples with replacement.
        seed: of the resampling.

    Returns:
        Ratio of the sums with the percentile interval. With a handful of items such an interval is too
        narrow; say how many there are beside it.

    Raises:
        InputError: different numbers of numerators and denominators, or no positive denominator.
    """
    _check_pairs(len(numerators), len(denominators))
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if below.sum() <= 0:
        raise InputError(
            f"denominators must have a positive sum, got {below.sum():g} over {len(below)} items"
        )
    ratios = _resampled_ratios(above, below, num_resamples, seed)
    return _percentile(float(above.sum() / below.sum()), ratios, confidence)


def bootstrap_ratio_difference(
    before: Sequence[float],
    after: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Bound the change of a ratio of sums between two runs over the same items.

    Args:
        before: numerators of the first run (the bits of each document).
        after: numerators of the second run, in the same order.
        denominators: common to both (the bytes of each document).
        confidence: of the interval, in (0, 1).
        num_resamples: resamples with replacement; each takes the same items from both runs.
        seed: of the resampling.

    Returns:
        Ratio after less ratio before, with the percentile interval.

    Raises:
        InputError: the lengths differ, or no denominator is positive.
    """
    _check_pairs(len(before), len(after))
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_ratio(
        change.tolist(), denominators, confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def _resampled_ratios(
    above: NDArray[np.float64], below: NDArray[np.float64], num_resamples: int, seed: int
) -> NDArray[np.float64]:
    rng = np.random.Generator(np.random.PCG64(seed))
    picks = rng.integers(0, len(above), size=(num_resamples, len(above)))
    sums = below[picks].sum(axis=1)
    is_positive = sums > 0
    ratios: NDArray[np.float64] = above[picks].sum(axis=1)[is_positive] / sums[is_positive]
    return ratios


def _percentile(value: float, resampled: NDArray[np.float64], confidence: float) -> Estimate:
    low, high = np.quantile(resampled, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Estimate(value, float(low), float(high))


def _check_pairs(num_first: int, num_second: int) -> None:
    if num_first != num_second:
        raise InputError(
            f"paired values must be of the same items, got {num_first} and {num_second}; "
            f"evaluate both runs on the same rows"
        )
