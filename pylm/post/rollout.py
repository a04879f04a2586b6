"""Rollouts: groups of completions sampled from the policy, a pure function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from pylm.config import Config
from pylm.model.generate import SamplingProgress, generate
from pylm.model.transformer import Transformer


class SamplingConfig(Config):
    """How completions are sampled."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest completion, its end included; a longer one is cut off."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits, in sampling and in training alike, so that both see one policy."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many most likely tokens; 0 takes all. Training does not know of the cut: leave 0
    unless the mismatch is wanted."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the most likely tokens of this total probability; 1 takes all. As for `top_k`."""
    max_sequences: int = Field(default=1024, ge=1)
    """Most completions that are sampled at once; bounds memory. Part of the random stream: another value
    gives other samples."""


@dataclass(frozen=True)
class Rollouts:
    """Completions of one step on one rank, sample by sample, those of one prompt together.

    Attributes:
        prompts: token ids of every prompt.
        completions: token ids of every completion, with the token that ended it; sample g of prompt p is
            at p * group_size + g.
        logprobs: log-probability of every token of `completions` as the sampler saw it.
        finished: whether the model ended the completion itself.
        group_size: samples of one prompt.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    logprobs: list[list[float]]
    finished: list[bool]
    group_size: int

    def __post_init__(self) -> None:
        num_samples = len(self.prompts) * self.group_size
        assert len(self.completions) == len(self.logprobs) == len(self.finished) == num_samples

    @property
    def num_tokens(self) -> int:
        """Sampled tokens in all."""
        return sum(len(completion) for completion in self.completions)


def roll_out(
    model: Transformer,
    prompts: Sequence[list[int]],
    config: SamplingConfig,
    *,
    group_size: int,
    stop_ids: Sequence[int],
    seed: int,
    step: int,
    rank: int = 0,
    progress: SamplingProgress | None = None,
) -> Rollouts:
    """Sample `group_size` completions of every prompt.

    Args:
        model: the policy.
        prompts: token ids of every prompt.
        config: how to sample.
        group_size: completions of each prompt.
        stop_ids: tokens that end a completion.
        seed: of the run.
        step: of the run; with `seed` and `rank` it fixes the random stream, so that a resumed run samples
            what the unbroken one would have.
        rank: of this process.
        progress: called after each token.

    Returns:
        The completions.
    """
    prompts_at_once = max(1, config.max_sequences // group_size)
    completions: list[list[int]] = []
    logprobs: list[list[float]] = []
    finished: list[bool] = []
    for start in range(0, len(prompts), prompts_at_once):
        stream = np.random.SeedSequence([seed, step, rank, start]).generate_state(1, np.uint64)
        samples = generate(
            model,
            list(prompts[start : start + prompts_at_once]),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            stop_ids=stop_ids,
            seed=int(stream[0]) >> 1,
            num_samples=group_size,
            progress=_shifted(progress, len(completions), len(prompts) * group_size),
        )
        completions += samples.ids
        logprobs += samples.logprobs
        finished += samples.finished
    return Rollouts(list(prompts), completions, logprobs, finished, group_size)


def complete_greedily(
    model: Transformer,
    prompts: Sequence[list[int]],
    config: SamplingConfig,
    *,
    stop_ids: Sequence[int],
    progress: SamplingProgress | None = None,
) -> Rollouts:
    """Take the most likely token at every place: one completion of every prompt, without chance.

    Args:
        model: the policy.
        prompts: token ids of every prompt.
        config: bounds on length and memory.
        stop_ids: tokens that end a completion.
        progress: called after each token.

    Returns:
        The completions, in groups of one.
    """
    completions: list[list[int]] = []
    logprobs: list[list[float]] = []
    finished: list[bool] = []
    for start in range(0, len(prompts), config.max_sequences):
        samples = generate(
            model,
            list(prompts[start : start + config.max_sequences]),
            max_new_tokens=config.max_new_tokens,
            temperature=0.0,
            stop_ids=stop_ids,
            seed=0,
            progress=_shifted(progress, len(completions), len(prompts)),
        )
        completions += samples.ids
        logprobs += samples.logprobs
        finished += samples.finished
    return Rollouts(list(prompts), completions, logprobs, finished, 1)


def _shifted(progress: SamplingProgress | None, num_before: int, num_all: int) -> SamplingProgress | None:
    """Count samples that are drawn together among all."""
    if progress is None:
        return None
    return lambda done, _, num_tokens: progress(num_before + done, num_all, num_tokens)
