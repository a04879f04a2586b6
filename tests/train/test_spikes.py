"""Spike statistics against NumPy."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from pylm.train.spikes import RollingStatistics, SpikeConfig, SpikeDetector


def test_deviations_equal_numpy() -> None:
    values = np.random.default_rng(0).normal(3.0, 0.2, size=50)
    statistics = RollingStatistics(20)
    for index, value in enumerate(values):
        window = values[max(0, index - 20) : index]
        expected = (value - window.mean()) / window.std() if len(window) > 1 else 0.0
        assert statistics.deviations(value) == pytest.approx(expected, rel=1e-9)
        statistics.values.append(value)


def test_a_planted_spike_is_found_and_skipped() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, size=200)
    detector = SpikeDetector(SpikeConfig(skip_updates=True, min_history=50))
    results = [
        detector.observe(loss=2.0 + x + (5.0 if i == 150 else 0), grad_norm=1.0) for i, x in enumerate(noise)
    ]
    assert [i for i, (spike, _) in enumerate(results) if spike] == [150]
    assert [i for i, (_, skip) in enumerate(results) if skip] == [150]
    assert detector.spike_score == pytest.approx(1 / 200)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_skipped_and_forgotten(value: float) -> None:
    detector = SpikeDetector(SpikeConfig())
    assert detector.observe(loss=value, grad_norm=1.0) == (True, True)
    assert detector.observe(loss=1.0, grad_norm=value) == (True, True)
    assert detector.num_not_finite == 2
    assert detector.observe(loss=1.0, grad_norm=1.0) == (False, False)
    assert detector.num_not_finite == 0
    assert (detector.num_spikes, detector.spike_score) == (2, 2 / 3)


def test_nothing_is_a_spike_before_enough_was_seen() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, size=40)
    for history, expected in ((20, [20, 39]), (21, [39]), (39, [39]), (40, [])):
        detector = SpikeDetector(SpikeConfig(min_history=history, window=40))
        found = [
            i for i, x in enumerate(noise)
            if detector.observe(loss=1.0, grad_norm=1.0 + x + {20: 9.0, 39: 200.0}.get(i, 0.0))[0]
        ]  # fmt: skip
        assert found == expected
        assert detector.num_spikes == len(expected)


def test_the_skip_rule_has_its_own_window_and_threshold() -> None:
    # A level that rises: high against the short window only after the long one has seen it all.
    rng = np.random.default_rng(4)
    values = [*rng.normal(1.0, 0.5, 100), *rng.normal(1.0, 0.01, 10), 1.5]
    options = {"window": 200, "min_history": 10, "skip_updates": True, "skip_window": 10, "skip_sigma": 6.0}
    results = [
        detector.observe(loss=x, grad_norm=1.0)
        for detector in [SpikeDetector(SpikeConfig.model_validate(options))]
        for x in values
    ]
    assert results[-1] == (False, True)
    options["skip_updates"] = False
    detector = SpikeDetector(SpikeConfig.model_validate(options))
    assert [detector.observe(loss=x, grad_norm=1.0) for x in values][-1] == (False, False)


def test_equal_values_are_never_a_spike() -> None:
    detector = SpikeDetector(SpikeConfig(min_history=2, skip_updates=True))
    assert [detector.observe(loss=1.0, grad_norm=2.0) for _ in range(5)] == [(False, False)] * 5
    assert SpikeDetector(SpikeConfig()).spike_score == 0.0


def test_a_history_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_history must be at most window, got 64 and 30"):
        SpikeConfig(window=30)


def test_history_survives_saving() -> None:
    rng = np.random.default_rng(2)
    config = SpikeConfig(window=30, min_history=5, sigma=2.0)
    whole, first = SpikeDetector(config), SpikeDetector(config)
    values = rng.normal(size=(60, 2))
    values[32] = math.nan
    expected = [whole.observe(loss=a, grad_norm=b) for a, b in values]
    got = [first.observe(loss=a, grad_norm=b) for a, b in values[:33]]
    second = SpikeDetector(config)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.num_not_finite == 1
    got += [second.observe(loss=a, grad_norm=b) for a, b in values[33:]]
    assert got == expected
    assert second.state_dict() == whole.state_dict()
