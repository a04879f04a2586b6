"""Wilson's interval against the root of the equation that defines it."""

import math

import pytest

from pylm.post.accuracy import Accuracy, accuracy_by_kind, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize(("num_correct", "num_total"), [(0, 5), (5, 5), (1, 3), (50, 100), (873, 1000)])
def test_bounds_are_z_standard_errors_from_the_share(num_correct: int, num_total: int) -> None:
    share = num_correct / num_total
    for bound in wilson_interval(num_correct, num_total):
        standard_error = math.sqrt(bound * (1.0 - bound) / num_total)
        assert abs(share - bound) == pytest.approx(Z * standard_error, abs=1e-9)


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert Accuracy(0, 0).value == 0.0


def test_outcomes_are_counted_by_kind() -> None:
    outcomes = [("b", True), ("a", False), ("b", False)]
    assert accuracy_by_kind(outcomes) == {"a": Accuracy(0, 1), "b": Accuracy(1, 2)}
    assert Accuracy(1, 2).to_json()["accuracy"] == 0.5
