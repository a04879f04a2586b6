"""Which source a sample comes from: shares that change in stages, as functions of the sample's number.

Within a stage, sources follow a fixed pattern that repeats after `BLOCK` samples at most. In a block each
source has its share exactly (shares are rounded to 1 / BLOCK), and at any point of the pattern its count
is less than 1 away from its share of the samples so far. So source and place within the source are found
from the number alone, with one table a stage, and a batch is as mixed as a batch can be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pylm.config import Config
from pylm.errors import InputError

BLOCK = 10_000
"""Samples after which a pattern repeats, at most."""


class MixtureStage(Config):
    """Shares of the sources over a part of the run."""

    until: float = Field(1.0, gt=0, le=1)
    """Where the stage ends, as a share of all samples; the last stage ends at 1."""
    weights: dict[str, float] = Field(min_length=1)
    """Weight of each source, in samples drawn; any positive scale. Sources that are not named have none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weight of {name} must be 0 or more, got {weight}")
        if not any(self.weights.values()):
            raise ValueError("at least one weight must be more than 0")
        return self


class MixtureConfig(Config):
    """The curriculum: stages one after the other."""

    stages: tuple[MixtureStage, ...] = ()
    """In order of `until`. None means one stage in which every source weighs as many tokens as it has."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ends = [stage.until for stage in self.stages]
        if ends and (ends[-1] != 1 or any(a >= b for a, b in pairwise(ends))):
            raise ValueError(f"until of the stages must rise and end at 1, got {ends}")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources that any stage draws from, sorted; none where no stages are given, which means all."""
        return tuple(sorted({n for stage in self.stages for n, w in stage.weights.items() if w > 0}))


@dataclass(frozen=True, eq=False)
class _Stage:
    """A stage, laid out.

    Attributes:
        start: first sample.
        pattern: source of each slot of a block.
        rank: how many earlier slots of the block have the same source.
        counts: slots of each source in a block.
        base: samples of each source before the stage.
    """

    start: int
    pattern: NDArray[np.int64]
    rank: NDArray[np.int64]
    counts: NDArray[np.int64]
    base: NDArray[np.int64]

    def count(self, num_samples: int) -> NDArray[np.int64]:
        """Count the first samples of the stage by source."""
        num_blocks, num_slots = divmod(num_samples, len(self.pattern))
        slots = np.bincount(self.pattern[:num_slots], minlength=len(self.counts))
        return num_blocks * self.counts + slots


class Mixture:
    """A mixture laid out over a run.

    Attributes:
        sources: names; a source's number is its place here.
        num_samples: samples of the whole run.
        num_draws: for each source, its samples in the whole run.
    """

    def __init__(self, config: MixtureConfig, *, num_samples: int, sizes: Mapping[str, int]) -> None:
        """Lay a mixture out.

        Args:
            config: the stages.
            num_samples: samples of the whole run.
            sizes: size of each source there is; the weights where `config` has no stages.

        Raises:
            InputError: a stage draws from a source that there is not, or all are empty.
        """
        if missing := sorted(set(config.sources) - sizes.keys()):
            raise InputError(
                f"mixture draws from {', '.join(missing)}, for which there are no tokens; "
                f"there are: {', '.join(sorted(sizes)) or 'none'}"
            )
        stages = config.stages
        if not stages:
            if not any(sizes.values()):
                raise InputError("mixture has no source with tokens; tokenize documents first")
            stages = (MixtureStage(until=1, weights={name: float(size) for name, size in sizes.items()}),)
        self.num_samples = num_samples
        self.sources = tuple(sorted({n for stage in stages for n, w in stage.weights.items() if w > 0}))
        self._stages: list[_Stage] = []
        start, base = 0, np.zeros(len(self.sources), dtype=np.int64)
        for stage in stages:
            counts = apportion([stage.weights.get(name, 0.0) for name in self.sources], BLOCK)
            pattern = spread(counts)
            laid_out = _Stage(start, pattern, _rank(pattern), counts, base)
            self._stages.append(laid_out)
            stop = round(stage.until * num_samples)
            base = base + laid_out.count(stop - start)
            start = stop
        self.num_draws = dict(zip(self.sources, base.tolist(), strict=True))
        self._starts = np.array([stage.start for stage in self._stages])

    def stage(self, sample: int) -> int:
        """Name the stage that a sample belongs to, from 0."""
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def draw(self, sample_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find where samples come from.

        Args:
            sample_N: numbers of samples.

        Returns:
            For each, the number of its source, and how many earlier samples come from that source.
        """
        source_N, index_N = np.empty_like(sample_N), np.empty_like(sample_N)
        stage_N = np.searchsorted(self._starts, sample_N, side="right") - 1
        for number in np.unique(stage_N):
            here = stage_N == number
            stage = self._stages[number]
            block, slot = np.divmod(sample_N[here] - stage.start, len(stage.pattern))
            source = stage.pattern[slot]
            source_N[here] = source
            index_N[here] = stage.base[source] + block * stage.counts[source] + stage.rank[slot]
        return source_N, index_N


def apportion(weights: list[float], num_slots: int) -> NDArray[np.int64]:
    """Share slots out by weight: largest remainders, but at least one for a weight above 0.

    Returns:
        int64 (S,) counts without a common divisor, whose sum divides `num_slots` (as far as no weight had
        to be raised to one slot, and `num_slots` is enough for all).
    """
    total = math.fsum(weights)
    exact = [weight / total * num_slots for weight in weights]
    counts = np.array(
        [max(int(x), int(weight > 0)) for x, weight in zip(exact, weights, strict=True)], dtype=np.int64
    )
    by_remainder = sorted(range(len(weights)), key=lambda s: (int(exact[s]) - exact[s], s))
    for s in by_remainder[: max(0, num_slots - int(counts.sum()))]:
        counts[s] += int(weights[s] > 0)
    return counts // math.gcd(*counts.tolist())


def spread(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order slots so that every source is near its share at every point.

    After n slots, source s has had n counts[s] / sum(counts) of them, give or take less than 1. Slot by
    slot the source is taken that would first fall too far behind, among those that would not run ahead.
    Source: Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980.

    Args:
        counts: int64 (S,) slots of each source.

    Returns:
        int64 (sum(counts),) numbers of sources.
    """
    num_slots = int(counts.sum())
    active = np.flatnonzero(counts)
    if len(active) == 1:
        return np.full(num_slots, active[0], dtype=np.int64)
    share = counts[active]
    slack = 2 * len(active) - 2
    behind = np.zeros_like(share)  # share of the slots so far less slots had, times num_slots
    pattern = np.empty(num_slots, dtype=np.int64)
    for n in range(num_slots):
        behind += share
        # Divisions of integers below 2^53: correctly rounded, the same on every machine.
        deadline = (num_slots * (slack - 1) - slack * behind) / share
        deadline[slack * behind < num_slots] = np.inf
        chosen = int(np.argmin(deadline))
        behind[chosen] -= num_slots
        pattern[n] = active[chosen]
    return pattern


def _rank(pattern: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count, for each slot, the earlier slots with the same source."""
    order = np.argsort(pattern, kind="stable")
    counts = np.bincount(pattern)
    starts = np.cumsum(counts) - counts
    rank = np.empty_like(pattern)
    rank[order] = np.arange(len(pattern)) - starts[pattern[order]]
    return rank
