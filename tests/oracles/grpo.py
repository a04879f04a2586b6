"""GRPO token by token in Python floats, straight from the papers' formulas."""

import math
from collections.abc import Sequence

Tokens = Sequence[Sequence[float]]  # one list of per-token values a completion


def advantages(rewards: Sequence[float], *, standardised: bool, epsilon: float) -> list[float]:
    """Advantages of one group of rewards."""
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not standardised:
        return centred
    std = math.sqrt(sum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + epsilon) for c in centred]


def loss(
    logprobs: Tokens,
    old_logprobs: Tokens,
    reference_logprobs: Tokens | None,
    advantage: Sequence[float],
    *,
    clip_low: float,
    clip_high: float,
    kl_coefficient: float,
    reduction: str,
    max_tokens: int,
) -> float:
    """Loss of one step over all its completions."""
    per_completion = []
    for i, row in enumerate(logprobs):
        terms = []
        for t, logprob in enumerate(row):
            ratio = math.exp(logprob - old_logprobs[i][t])
            clipped = min(max(ratio, 1.0 - clip_low), 1.0 + clip_high)
            term = -min(ratio * advantage[i], clipped * advantage[i])
            if reference_logprobs is not None:
                excess = reference_logprobs[i][t] - logprob
                term += kl_coefficient * (math.exp(excess) - excess - 1.0)
            terms.append(term)
        per_completion.append(terms)
    if reduction == "sequence":
        return sum(sum(terms) / len(terms) for terms in per_completion) / len(per_completion)
    total = sum(sum(terms) for terms in per_completion)
    if reduction == "token":
        return total / sum(len(terms) for terms in per_completion)
    return total / (len(per_completion) * max_tokens)


def figures(
    logprobs: Tokens,
    old_logprobs: Tokens,
    sampler_logprobs: Tokens,
    advantage: Sequence[float],
    *,
    clip_low: float,
    clip_high: float,
) -> dict[str, float]:
    """Means over all tokens of all completions; the old policy is the reference."""
    clipped, mismatch, divergence = [], [], []
    for i, row in enumerate(logprobs):
        for t, logprob in enumerate(row):
            ratio = math.exp(logprob - old_logprobs[i][t])
            bound = 1.0 + clip_high if advantage[i] > 0 else 1.0 - clip_low
            clipped.append(advantage[i] * ratio > advantage[i] * bound)
            mismatch.append(abs(logprob - sampler_logprobs[i][t]))
            divergence.append(1.0 / ratio + math.log(ratio) - 1.0)
    tokens = len(clipped)
    return {
        "clip_ratio": sum(clipped) / tokens,
        "logps/mismatch": sum(mismatch) / tokens,
        "kl": sum(divergence) / tokens,
    }
