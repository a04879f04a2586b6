"""Spike statistics against NumPy."""

import math

import numpy as np
import pytest

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
    assert detector.observe(loss=1.0, grad_norm=1.0) == (False, False)


def test_history_survives_saving() -> None:
    rng = np.random.default_rng(2)
    config = SpikeConfig(window=30, min_history=5, sigma=2.0)
    whole, first = SpikeDetector(config), SpikeDetector(config)
    values = rng.normal(size=(60, 2))
    expected = [whole.observe(loss=a, grad_norm=b) for a, b in values]
    got = [first.observe(loss=a, grad_norm=b) for a, b in values[:33]]
    second = SpikeDetector(config)
    second.load_state_dict(first.state_dict())
    got += [second.observe(loss=a, grad_norm=b) for a, b in values[33:]]
    assert got == expected
    assert second.spike_score == whole.spike_score
