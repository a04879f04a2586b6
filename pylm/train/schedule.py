"""Learning rate as a pure function of the step: warm-up, a main phase, a linear anneal to zero."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from pylm.config import Config


class ScheduleConfig(Config):
    """Shape of the learning rate over a run; the peak belongs to the optimizer."""

    warmup_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of all steps over which the rate rises linearly from zero to its peak."""
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the main phase, between warm-up and anneal: down to `final_fraction`, or flat."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Rate at the end of the main phase, as a share of the peak (OLMo 2: 0.1)."""
    anneal_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of all steps, at the end, over which the rate falls linearly from where it is to zero."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_fraction + self.anneal_fraction > 1:
            raise ValueError(
                "warmup_fraction and anneal_fraction must be at most 1 together, "
                f"got {self.warmup_fraction} and {self.anneal_fraction}"
            )
        if self.anneal_fraction and self.kind != "constant" and not self.final_fraction:
            raise ValueError(
                f"final_fraction must be more than 0 before an anneal, got 0: a {self.kind} schedule that "
                "has reached zero leaves nothing to anneal; set anneal_fraction=0 or another final_fraction"
            )
        return self


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Give the learning rate of one step as a share of the peak.

    Args:
        config: the shape.
        step: zero-based; the rate is that of the update that this step ends with.
        num_steps: length of the run.

    Returns:
        A factor in [0, 1]. Positive at every step of the run: warm-up starts at 1 / warm-up steps
        and the anneal would reach zero one step after the last.

    Source: OLMo 2 (arXiv 2501.00656), section 4.1: cosine to 10 %, then linear to zero.
    """
    warmup_steps = round(config.warmup_fraction * num_steps)
    anneal_steps = round(config.anneal_fraction * num_steps)
    main_steps = max(0, num_steps - warmup_steps - anneal_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step < warmup_steps + main_steps:
        return _main(config, (step - warmup_steps) / main_steps)
    start = _main(config, 1.0) if main_steps else 1.0
    return start * max(0, num_steps - step) / anneal_steps if anneal_steps else start


def _main(config: ScheduleConfig, progress: float) -> float:
    match config.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 + (config.final_fraction - 1.0) * progress
        case "cosine":
            return config.final_fraction + (1 - config.final_fraction) * 0.5 * (
                1 + math.cos(math.pi * progress)
            )
