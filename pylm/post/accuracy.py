"""Shares of right answers, with the interval that their number of trials allows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """A share of successes with its Wilson interval.

    Attributes:
        num_correct: successes.
        num_total: trials.
    """

    num_correct: int
    num_total: int

    @property
    def value(self) -> float:
        """Share of successes; 0 without trials."""
        return self.num_correct / self.num_total if self.num_total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound, 95 % confidence."""
        return wilson_interval(self.num_correct, self.num_total)

    def to_json(self) -> dict[str, float | int]:
        """Return plain values under the names of the report."""
        low, high = self.interval
        return {
            "accuracy": self.value,
            "low": low,
            "high": high,
            "num_correct": self.num_correct,
            "num_total": self.num_total,
        }


def wilson_interval(num_correct: int, num_total: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Bound the probability behind a count of successes.

    Args:
        num_correct: successes.
        num_total: trials.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper bound; (0, 1) without trials.

    Source:
        Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    if num_total == 0:
        return 0.0, 1.0
    share = num_correct / num_total
    denominator = 1.0 + z * z / num_total
    centre = (share + z * z / (2 * num_total)) / denominator
    spread = z * math.sqrt(share * (1.0 - share) / num_total + z * z / (4 * num_total**2)) / denominator
    return max(0.0, centre - spread), min(1.0, centre + spread)


def accuracy_by_kind(outcomes: Iterable[tuple[str, bool]]) -> dict[str, Accuracy]:
    """Count successes by family.

    Args:
        outcomes: family and success of every trial.

    Returns:
        Accuracy by family, sorted by name.
    """
    counts: dict[str, tuple[int, int]] = {}
    for kind, correct in outcomes:
        num_correct, num_total = counts.get(kind, (0, 0))
        counts[kind] = (num_correct + correct, num_total + 1)
    return {kind: Accuracy(*counts[kind]) for kind in sorted(counts)}
