"""Loss spikes: detect them, count them, and skip the updates that would follow them."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from pylm.config import Config


class SpikeConfig(Config):
    """What counts as a spike, and whether its update is skipped."""

    window: int = Field(default=1000, ge=2)
    """Number of the latest values that a new one is compared with (OLMo 2: 1,000)."""
    sigma: float = Field(default=7.0, gt=0)
    """A value this many standard deviations above the window's mean is a spike (OLMo 2: 7)."""
    min_history: int = Field(default=64, ge=2)
    """Values seen before anything is called a spike."""
    skip_updates: bool = False
    """Leave out updates of steps whose loss or gradient norm is over `skip_sigma` (SkipStep)."""
    skip_window: int = Field(default=128, ge=2)
    """Window of the skip rule."""
    skip_sigma: float = Field(default=6.0, gt=0)
    """Threshold of the skip rule."""
    max_not_finite: int = Field(default=100, ge=1)
    """Steps in a row without a finite loss and gradient after which a run is given up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_history > self.window:
            raise ValueError(
                f"min_history must be at most window, got {self.min_history} and {self.window}; "
                "nothing would ever be a spike"
            )
        return self


class RollingStatistics:
    """Mean and standard deviation of the latest values, with a history that can be saved.

    Sums are recomputed from the window at each call (at most 1,000 additions), so that a resumed run
    gives the same bits as an unbroken one; running sums would drift.
    """

    def __init__(self, window: int, values: Iterable[float] = ()) -> None:
        self.values: deque[float] = deque(values, maxlen=window)

    def deviations(self, value: float) -> float:
        """Give how many standard deviations `value` lies above the mean of the window (0 without spread)."""
        count = len(self.values)
        if count < 2:
            return 0.0
        mean = math.fsum(self.values) / count
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.values) / count)
        return (value - mean) / deviation if deviation > 0 else 0.0


class SpikeDetector:
    """Watch loss and gradient norm; the history belongs to the checkpoint.

    Source: OLMo 2 (arXiv 2501.00656), section 3: spike score, and the SkipStep optimizer.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.num_spikes = 0
        self.num_values = 0
        self.num_not_finite = 0
        self._history = {name: RollingStatistics(config.window) for name in ("loss", "grad_norm")}
        self._recent = {name: RollingStatistics(config.skip_window) for name in ("loss", "grad_norm")}

    def observe(self, *, loss: float, grad_norm: float) -> tuple[bool, bool]:
        """Judge one step and remember it.

        Args:
            loss: of the step, in nats a token.
            grad_norm: before clipping.

        Returns:
            `(spike, skip)`: whether the step is a spike, and whether its update must be left out. A
            value that is not finite is both, and is not remembered; `num_not_finite` counts how many
            came in a row.
        """
        values = {"loss": loss, "grad_norm": grad_norm}
        self.num_values += 1
        if not all(math.isfinite(x) for x in values.values()):
            self.num_spikes += 1
            self.num_not_finite += 1
            return True, True
        self.num_not_finite = 0
        config = self.config
        ready = len(self._history["loss"].values) >= config.min_history
        spike = ready and any(self._history[k].deviations(x) >= config.sigma for k, x in values.items())
        skip = (
            ready
            and config.skip_updates
            and any(self._recent[k].deviations(x) > config.skip_sigma for k, x in values.items())
        )
        for name, value in values.items():
            self._history[name].values.append(value)
            self._recent[name].values.append(value)
        self.num_spikes += spike
        return spike, skip

    @property
    def spike_score(self) -> float:
        """Share of observed steps that were spikes."""
        return self.num_spikes / self.num_values if self.num_values else 0.0

    def state_dict(self) -> dict[str, object]:
        """Give the history as plain lists and numbers."""
        return {
            "num_spikes": self.num_spikes,
            "num_values": self.num_values,
            "num_not_finite": self.num_not_finite,
            "history": {k: list(x.values) for k, x in self._history.items()},
            "recent": {k: list(x.values) for k, x in self._recent.items()},
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up a saved history."""
        assert isinstance(state["history"], dict)
        assert isinstance(state["recent"], dict)
        self.num_spikes = int(str(state["num_spikes"]))
        self.num_values = int(str(state["num_values"]))
        self.num_not_finite = int(str(state["num_not_finite"]))
        for name in self._history:
            self._history[name] = RollingStatistics(self.config.window, state["history"][name])
            self._recent[name] = RollingStatistics(self.config.skip_window, state["recent"][name])
