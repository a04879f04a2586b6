import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pylm.data.mixture import BLOCK, Mixture, MixtureConfig, MixtureStage, apportion, spread
from pylm.errors import InputError


def config(*stages: tuple[float, dict[str, float]]) -> MixtureConfig:
    return MixtureConfig(stages=tuple(MixtureStage(until=u, weights=w) for u, w in stages))


def draw_all(mixture: Mixture) -> tuple[list[str], list[int]]:
    source_N, index_N = mixture.draw(np.arange(mixture.num_samples))
    return [mixture.sources[s] for s in source_N], index_N.tolist()


SIZES = {"web": 1000, "code": 500, "math": 20}


def test_shares_are_exact_in_each_block() -> None:
    mixture = Mixture(config((1, {"web": 0.7, "code": 0.25, "math": 0.05})), num_samples=400, sizes=SIZES)
    sources, _ = draw_all(mixture)
    for start in range(0, 400, 20):
        block = sources[start : start + 20]
        assert [block.count(name) for name in ("web", "code", "math")] == [14, 5, 1]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any))
@settings(max_examples=60, deadline=None)
def test_spread_stays_near_every_share(counts: list[int]) -> None:
    """The bound of Tijdeman's theorem, 1 - 1/(2k - 2), at every prefix, in integers."""
    pattern = spread(np.array(counts))
    total, k = sum(counts), sum(count > 0 for count in counts)
    had = [0] * len(counts)
    for n, source in enumerate(pattern.tolist(), start=1):
        had[source] += 1
        if k > 1:
            error = max(abs(n * count - total * h) for count, h in zip(counts, had, strict=True))
            assert error * (2 * k - 2) <= total * (2 * k - 3)
    assert had == counts


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-3))
@settings(max_examples=100, deadline=None)
def test_apportion(weights: list[float]) -> None:
    counts = apportion(weights, BLOCK)
    total = int(counts.sum())
    for weight, count in zip(weights, counts.tolist(), strict=True):
        assert (count > 0) == (weight > 0)
        if weight / sum(weights) > 1 / BLOCK:
            assert abs(count / total - weight / sum(weights)) < (len(weights) + 1) / BLOCK
    assert np.gcd.reduce(counts) == 1


def test_apportion_is_exact_where_it_can_be() -> None:
    assert apportion([0.7, 0.2, 0.1], BLOCK).tolist() == [7, 2, 1]
    assert apportion([3, 0, 1], BLOCK).tolist() == [3, 0, 1]
    assert apportion([1, 1, 1], BLOCK).tolist() == [3334, 3333, 3333]
    assert apportion([1e9, 1e-9], BLOCK).tolist() == [10_000, 1]


@pytest.mark.parametrize("num_samples", [1, 7, 999, 5000])
def test_index_counts_earlier_samples(num_samples: int) -> None:
    stages = config((0.3, {"web": 3, "code": 1}), (0.35, {"math": 1}), (1, {"web": 0.111, "math": 0.4}))
    mixture = Mixture(stages, num_samples=num_samples, sizes=SIZES)
    sources, indices = draw_all(mixture)
    seen = dict.fromkeys(mixture.sources, 0)
    for number, (source, index) in enumerate(zip(sources, indices, strict=True)):
        assert index == seen[source]
        seen[source] += 1
        stage = mixture.stage(number)
        assert source in stages.stages[stage].weights
        bounds = [round(s.until * num_samples) for s in stages.stages]
        assert stage == sum(bound <= number for bound in bounds)
    assert seen == mixture.num_draws


def test_any_subset_can_be_drawn_alone() -> None:
    mixture = Mixture(config((0.5, {"web": 1, "code": 2}), (1, {"web": 1})), num_samples=100, sizes=SIZES)
    source_N, index_N = mixture.draw(np.arange(100))
    some = np.array([99, 3, 50, 49, 3])
    again = mixture.draw(some)
    assert again[0].tolist() == source_N[some].tolist()
    assert again[1].tolist() == index_N[some].tolist()


def test_no_stages_weigh_sources_by_size() -> None:
    mixture = Mixture(MixtureConfig(), num_samples=1520, sizes=SIZES)
    assert mixture.num_draws == {"code": 500, "math": 20, "web": 1000}
    assert MixtureConfig().sources == ()


def test_sources_are_those_with_weight() -> None:
    assert config((0.5, {"b": 1, "c": 0}), (1, {"a": 1})).sources == ("a", "b")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([(0.5, {"a": 1})], "end at 1"),
        ([(0.5, {"a": 1}), (0.5, {"a": 1}), (1, {"a": 1})], "rise"),
        ([(1, {"a": -1})], "0 or more"),
        ([(1, {"a": 0})], "more than 0"),
        ([(1, {"a": float("inf")})], "0 or more"),
        ([(1, {})], "at least 1"),
    ],
)
def test_bad_configs(stages: list[tuple[float, dict[str, float]]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(*stages)


def test_missing_source() -> None:
    with pytest.raises(InputError, match=r"draws from books, .* there are: code, math, web"):
        Mixture(config((1, {"books": 1, "web": 1})), num_samples=1, sizes=SIZES)
    with pytest.raises(InputError, match="no source with tokens"):
        Mixture(MixtureConfig(), num_samples=1, sizes={"web": 0})
