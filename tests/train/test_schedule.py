"""The learning rate against closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pylm.train.schedule import ScheduleConfig, learning_rate_factor


def test_warmup_cosine_anneal_at_known_points() -> None:
    config = ScheduleConfig(warmup_fraction=0.1, kind="cosine", final_fraction=0.1, anneal_fraction=0.2)
    factors = [learning_rate_factor(config, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[45] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factors[80:] == pytest.approx([0.1 * (20 - i) / 20 for i in range(20)])
    assert factors[99] > 0


def test_linear_and_constant_main_phase() -> None:
    linear = ScheduleConfig(warmup_fraction=0, kind="linear", final_fraction=0.0, anneal_fraction=0)
    assert [learning_rate_factor(linear, step, 4) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    constant = ScheduleConfig(warmup_fraction=0, kind="constant", anneal_fraction=0.5)
    assert [learning_rate_factor(constant, step, 4) for step in range(4)] == pytest.approx([1, 1, 1, 0.5])


@pytest.mark.parametrize(
    ("warmup", "anneal", "num_steps", "expected"),
    [
        (1.0, 0.0, 4, [0.25, 0.5, 0.75, 1.0]),
        (0.0, 1.0, 4, [1.0, 0.75, 0.5, 0.25]),
        (0.5, 0.5, 4, [0.5, 1.0, 1.0, 0.5]),
        (0.5, 0.5, 1, [1.0]),  # 0.5 steps round to none
        (0.0, 0.0, 3, [1.0, 1.0, 1.0]),
    ],
)
def test_runs_without_a_main_phase_or_without_the_rest(
    warmup: float, anneal: float, num_steps: int, expected: list[float]
) -> None:
    config = ScheduleConfig(warmup_fraction=warmup, kind="constant", anneal_fraction=anneal)
    factors = [learning_rate_factor(config, step, num_steps) for step in range(num_steps)]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_fraction": 0.6, "anneal_fraction": 0.5}, "at most 1 together, got 0.6 and 0.5"),
        ({"final_fraction": 0.0, "anneal_fraction": 0.1}, "final_fraction must be more than 0 before"),
        ({"kind": "linear", "final_fraction": 0.0, "anneal_fraction": 0.1}, "a linear schedule"),
    ],
)
def test_schedules_that_contradict_themselves(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig.model_validate(values)
    ScheduleConfig.model_validate(values | {"warmup_fraction": 0.1, "kind": "constant"})


@given(
    warmup=st.floats(0, 0.5),
    anneal=st.floats(0, 0.5),
    kind=st.sampled_from(["cosine", "linear", "constant"]),
    final=st.floats(0.01, 1),
    num_steps=st.integers(1, 500),
)
def test_factor_is_positive_and_at_most_one(
    warmup: float, anneal: float, kind: str, final: float, num_steps: int
) -> None:
    config = ScheduleConfig.model_validate(
        {"warmup_fraction": warmup, "anneal_fraction": anneal, "kind": kind, "final_fraction": final}
    )
    factors = [learning_rate_factor(config, step, num_steps) for step in range(num_steps)]
    assert all(0 < x <= 1 + 1e-12 for x in factors)
