"""Intervals against published examples, closed forms and simulated coverage."""

import math
import random
from itertools import product

import pytest

from pylm.errors import InputError
from pylm.eval.compare import (
    bootstrap_ratio,
    bootstrap_ratio_difference,
    mcnemar_p,
    paired_difference,
    wilson_interval,
)


def outcomes(both: int, only_before: int, only_after: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * both + [True] * only_before + [False] * only_after + [False] * neither
    after = [True] * both + [False] * only_before + [True] * only_after + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Fagerland, Lydersen, Laake 2017, Statistical Analysis of Contingency Tables, tables 8.1 and 8.2:
        # counts (both, first only, second only, neither), difference first - second.
        ((1, 1, 7, 12), -0.507, -0.026),
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_paired_difference_equals_published_examples(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    first, second = outcomes(*table)
    estimate = paired_difference(second, first)
    tolerance = 5e-4 if abs(low) > 0.2 else 5e-5
    assert estimate.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert estimate.low == pytest.approx(low, abs=tolerance)
    assert estimate.high == pytest.approx(high, abs=tolerance)


def test_paired_difference_turns_its_sign_with_the_order() -> None:
    for table in product(range(4), repeat=4):
        if sum(table) == 0:
            continue
        before, after = outcomes(*table)
        forth, back = paired_difference(before, after), paired_difference(after, before)
        assert forth.value == -back.value
        assert forth.low == pytest.approx(-back.high)
        assert forth.high == pytest.approx(-back.low)
        assert -1.0 - 1e-12 <= forth.low <= forth.value <= forth.high <= 1.0 + 1e-12


def test_paired_difference_covers_the_truth() -> None:
    """95 % intervals hold the true difference in at least 93 % of 2,000 simulated evaluations."""
    rng = random.Random(1)
    covered = 0
    for _ in range(2000):
        before, after = [], []
        for _ in range(60):
            luck = rng.random()
            before.append(luck < 0.3)
            after.append(luck < 0.2 or rng.random() < 0.4)
        truth = 0.2 + 0.8 * 0.4 - 0.3
        estimate = paired_difference(before, after)
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / 2000 <= 0.985


def test_paired_difference_without_items_and_with_unequal_runs() -> None:
    estimate = paired_difference([], [])
    assert (estimate.value, estimate.low, estimate.high) == (0.0, -1.0, 1.0)
    with pytest.raises(InputError, match="got 1 and 2"):
        paired_difference([True], [True, False])


def test_wilson_interval_solves_its_equation() -> None:
    """Its bounds are the p at which the observed share is z standard errors away."""
    z = 1.959963984540054
    for num_correct, num_total in ((1, 7), (50, 100), (990, 1000)):
        for bound in wilson_interval(num_correct, num_total):
            distance = abs(num_correct / num_total - bound)
            assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / num_total))


def test_mcnemar_sums_the_binomial() -> None:
    for better, worse in ((0, 0), (5, 1), (3, 3), (0, 10), (40, 20)):
        before, after = outcomes(2, worse, better, 3)
        n = better + worse
        probabilities = [math.comb(n, k) / 2**n for k in range(n + 1)]
        at_least_as_rare = sum(p for p in probabilities if p <= probabilities[better] * (1 + 1e-12))
        assert mcnemar_p(before, after) == pytest.approx(at_least_as_rare)


def test_mcnemar_with_thousands_of_changes_does_not_overflow() -> None:
    before, after = outcomes(0, 900, 1100, 0)
    normal = math.erfc((abs(1100 - 900) - 1) / math.sqrt(2000) / math.sqrt(2))
    assert mcnemar_p(before, after) == pytest.approx(normal, rel=0.02)


def test_bootstrap_ratio_agrees_with_the_normal_approximation() -> None:
    rng = random.Random(2)
    below = [rng.uniform(500, 1500) for _ in range(400)]
    above = [b * rng.gauss(2.0, 0.3) for b in below]
    estimate = bootstrap_ratio(above, below, num_resamples=4000)
    ratio = sum(above) / sum(below)
    residuals = [a - ratio * b for a, b in zip(above, below, strict=True)]
    error = math.sqrt(sum(r * r for r in residuals)) / sum(below)  # delta method
    assert estimate.value == pytest.approx(ratio)
    assert estimate.low == pytest.approx(ratio - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(ratio + 1.96 * error, abs=0.1 * error)
    assert bootstrap_ratio(above, below, num_resamples=4000) == estimate


def test_bootstrap_of_equal_items_has_no_width() -> None:
    estimate = bootstrap_ratio([2.0] * 5, [4.0] * 5)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_bootstrap_difference_takes_the_same_items_from_both() -> None:
    """A constant gain has no uncertainty, however much the documents differ."""
    before = [100.0, 900.0, 20.0, 5000.0]
    num_bytes = [50, 400, 10, 2000]
    after = [bits - 0.25 * size for bits, size in zip(before, num_bytes, strict=True)]
    estimate = bootstrap_ratio_difference(before, after, num_bytes)
    assert estimate.value == pytest.approx(-0.25)
    assert estimate.low == pytest.approx(-0.25)
    assert estimate.high == pytest.approx(-0.25)


def test_bootstrap_refuses_what_has_no_ratio() -> None:
    with pytest.raises(InputError, match="positive sum"):
        bootstrap_ratio([0.0], [0.0])
    with pytest.raises(InputError, match="got 2 and 1"):
        bootstrap_ratio([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="got 1 and 2"):
        bootstrap_ratio_difference([1.0], [1.0, 2.0], [1.0])


def test_an_empty_document_changes_nothing() -> None:
    assert bootstrap_ratio([3.0, 0.0], [2.0, 0.0]).value == 1.5
