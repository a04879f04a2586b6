"""Losses of policy gradients over per-token log-probabilities: GRPO and its kin.

Shapes: B rows (completions), T time, P prompts, G samples of one prompt.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    check_device,
    check_float,
    check_not_negative,
    check_optional_float,
    check_tensors,
    compute_dtype,
    is_finite,
    is_integer,
)

Reduction: TypeAlias = Literal["sequence", "token", "constant", "none"]
# The largest whole numbers whose exponentials are finite.
_MAX_EXPONENT = {torch.float32: 88.0, torch.float64: 709.0}
AdvantageKind: TypeAlias = Literal["standardised", "centred"]


def group_advantages(
    rewards: Tensor, *, kind: AdvantageKind = "standardised", epsilon: float = 1e-4
) -> Tensor:
    """Compare every sample's reward with those of the other samples of its prompt.

    standardised: (r - mean) / (std + epsilon), std with G - 1 in its denominator
    centred:       r - mean

    Args:
        rewards: (P, G), one row a prompt.
        kind: which of the two.
        epsilon: keeps a group of nearly equal rewards finite; at least 0.

    Returns:
        Advantages (P, G), of the dtype of `rewards`; exactly 0 where all rewards of a prompt are equal.

    Raises:
        InputError: `rewards` has not two dimensions or is not floating, or `kind` is neither.

    Source:
        Shao et al., "DeepSeekMath", 2024, section 4.1.2; Liu et al., "Understanding R1-Zero-Like Training",
        2025 (Dr. GRPO) drop the division, since it favours prompts that are nearly always, or nearly never,
        solved.
    """
    check_float("group_advantages", rewards=rewards)
    if rewards.dim() != 2:
        raise InputError(f"group_advantages: rewards must be (P, G), got {tuple(rewards.shape)}")
    if kind not in ("standardised", "centred"):
        raise InputError(f'group_advantages: kind must be "standardised" or "centred", got {kind!r}')
    check_not_negative("group_advantages", epsilon=epsilon)
    centred = rewards - rewards.mean(1, keepdim=True)
    is_equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    if kind == "standardised" and rewards.shape[1] > 1 and rewards.shape[0]:
        centred = centred / (rewards.std(1, keepdim=True) + epsilon)
    return centred.masked_fill(is_equal, 0.0)


class PolicyLoss(NamedTuple):
    """What `grpo_loss` returns."""

    loss: Tensor
    """A scalar; for the reduction "none" (B, T), 0 outside the mask."""
    clipped: Tensor
    """(B, T), true at tokens whose gradient the clip cut off."""
    kl: Tensor
    """(B, T), the estimate of the divergence from the reference, without gradient; 0 without a reference."""


def grpo_loss(
    logprob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    old_logprob: Tensor | None = None,
    reference_logprob: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.0,
    reduction: Reduction = "sequence",
    row_weight: Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
    max_tokens: int | None = None,
) -> PolicyLoss:
    """Compute GRPO's clipped objective from the log-probabilities of sampled tokens.

    With ratio = exp(logprob - old), A the advantage and x = reference - logprob, a token's loss is

        -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + kl_coefficient (exp(x) - x - 1)

    and the loss is the sum over tokens, each times the weight of its row and

        sequence:  1 / (num_sequences * tokens of its row)   the mean of per-sequence means (GRPO)
        token:     1 / num_tokens                            the mean over all tokens (DAPO)
        constant:  1 / (num_sequences * max_tokens)          no length bias (Dr. GRPO)

    Denominators that count a whole step, all micro-batches and ranks, make the losses of the parts add up to
    the loss of the step, however it was cut. A denominator of 0 is taken for 1. Nothing outside the mask is
    looked at. Where logprob - old is above 88 (709 in float64) the ratio is exp(88), without a gradient.

    Args:
        logprob: (B, T) under the policy that is trained.
        advantages: (B,), or (B, T) where every token has its own; no gradient.
        mask: (B, T) bool or 0/1, true at sampled tokens.
        old_logprob: (B, T) under the policy that sampled; None where that is the one that is trained, so
            that the ratio is 1. No gradient.
        reference_logprob: (B, T) under the reference; needed where kl_coefficient is not 0. No gradient.
        clip_low: how far below 1 the ratio still counts.
        clip_high: how far above 1 the ratio still counts; DAPO takes 0.28.
        kl_coefficient: weight of the divergence from the reference; at least 0.
        reduction: which of the three, or "none" for the tokens' losses times their row's weight.
        row_weight: (B,), how often each row counts, of at least 0, also fractions; None means once.
        num_sequences: None counts the rows given, by their weight.
        num_tokens: None counts the mask, by the weight of its rows.
        max_tokens: the longest completion that sampling allows; for "constant".

    Returns:
        Loss in float32 (float64 for float64 input), clipped tokens, divergence.

    Raises:
        InputError: a shape, dtype, device or option does not fit, or a reference is missing.

    Source:
        Schulman et al., "Proximal Policy Optimization", 2017, equation 7; Shao et al., "DeepSeekMath", 2024,
        equations 3 and 4; Schulman, "Approximating KL Divergence", 2020 (k3); Yu et al., "DAPO", 2025,
        equation 12; Liu et al., "Understanding R1-Zero-Like Training", 2025, section 3.2 (Dr. GRPO).

    Example:
        >>> loss = grpo_loss(logprob, group_advantages(rewards).flatten(), mask, reduction="token").loss
    """
    _check_inputs(logprob, advantages, mask, old_logprob, reference_logprob, row_weight)
    if not all(is_finite(clip) and clip >= 0.0 for clip in (clip_low, clip_high)):
        raise InputError(
            f"grpo_loss: clip_low and clip_high must not be negative, got {clip_low!r} and {clip_high!r}; "
            f"a finite number that is large clips nothing"
        )
    check_not_negative("grpo_loss", kl_coefficient=kl_coefficient)
    for name, count in (("num_sequences", num_sequences), ("num_tokens", num_tokens)):
        _check_count(name, count)
    if reference_logprob is None and kl_coefficient != 0.0:
        raise InputError(
            f"grpo_loss: kl_coefficient={kl_coefficient} needs reference_logprob, got None; pass it or 0"
        )
    wide, is_sampled = compute_dtype(logprob), mask.bool()
    logprob = logprob.to(wide)
    advantages = advantages.detach().to(wide)
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    old = logprob.detach() if old_logprob is None else old_logprob.detach().to(wide)
    # Where nothing was sampled there may be anything, even infinities: 0 is put there before it is used.
    log_ratio = (logprob - old).where(is_sampled, 0.0)
    # An infinite ratio would give 0 * inf: as the gradient where the clip applies, as the loss where A is 0.
    ratio = torch.exp(log_ratio.clamp(max=_MAX_EXPONENT[wide]))
    unclipped = ratio * advantages
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    token_loss = -torch.minimum(unclipped, bounded)
    is_clipped = (bounded < unclipped) & is_sampled
    kl = torch.zeros_like(ratio)
    if reference_logprob is not None:
        excess = (reference_logprob.detach().to(wide) - logprob).where(is_sampled, 0.0)
        kl = torch.expm1(excess) - excess
        if kl_coefficient != 0.0:
            token_loss = token_loss + kl_coefficient * kl
    weight = is_sampled.to(wide)
    if row_weight is not None:
        weight = weight * row_weight.detach().to(wide).unsqueeze(1)
    loss = token_loss.where(is_sampled, 0.0) * weight
    if reduction == "sequence":
        loss = loss / is_sampled.sum(1, keepdim=True).clamp(min=1)
    if reduction in ("sequence", "constant") and num_sequences is None:
        num_sequences = logprob.shape[0] if row_weight is None else row_weight.sum()
    if reduction == "token" and num_tokens is None:
        num_tokens = weight.sum()
    loss = _reduce(loss, reduction, num_sequences, num_tokens, max_tokens)
    return PolicyLoss(loss, is_clipped, kl.detach())


def _reduce(
    loss: Tensor,
    reduction: Reduction,
    num_sequences: float | Tensor | None,
    num_tokens: float | Tensor | None,
    max_tokens: int | None,
) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "token" and num_tokens is not None:
        return loss.sum() / _unless_zero(num_tokens)
    if reduction == "sequence" and num_sequences is not None:
        return loss.sum() / _unless_zero(num_sequences)
    if reduction == "constant" and num_sequences is not None:
        if not is_integer(max_tokens) or max_tokens < 1:
            raise InputError(
                f'grpo_loss: reduction "constant" needs max_tokens of at least 1, got {max_tokens}'
            )
        return loss.sum() / (_unless_zero(num_sequences) * max_tokens)
    raise InputError(
        f'grpo_loss: reduction must be "sequence", "token", "constant" or "none", got {reduction!r}'
    )


def _check_count(name: str, count: object) -> None:
    if isinstance(count, Tensor) and count.numel() == 1:
        return
    if count is not None and (isinstance(count, Tensor) or not is_finite(count) or count < 0):
        got = f"a tensor {tuple(count.shape)}" if isinstance(count, Tensor) else repr(count)
        raise InputError(f"grpo_loss: {name} must be one number of at least 0, or None, got {got}")


def _unless_zero(count: float | Tensor) -> float | Tensor:
    """Return a denominator: 1 in place of 0, where there is nothing to divide either."""
    if isinstance(count, Tensor):
        return count.masked_fill(count == 0, 1)
    return 1 if count == 0 else count


def _check_inputs(
    logprob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old_logprob: Tensor | None,
    reference_logprob: Tensor | None,
    row_weight: Tensor | None,
) -> None:
    others = {"old_logprob": old_logprob, "reference_logprob": reference_logprob}
    check_float("grpo_loss", logprob=logprob, advantages=advantages)
    check_optional_float("grpo_loss", **others)
    check_tensors("grpo_loss", mask=mask)
    check_device("grpo_loss", logprob, advantages=advantages, mask=mask, row_weight=row_weight, **others)
    if logprob.dim() != 2:
        raise InputError(f"grpo_loss: logprob must be (B, T), got {tuple(logprob.shape)}")
    rows, shape = logprob.shape[:1], logprob.shape
    for name, tensor, allowed in (
        ("advantages", advantages, (rows, shape)),
        ("mask", mask, (shape,)),
        ("old_logprob", old_logprob, (shape,)),
        ("reference_logprob", reference_logprob, (shape,)),
        ("row_weight", row_weight, (rows,)),
    ):
        if tensor is not None and tensor.shape not in allowed:
            expected = " or ".join(str(tuple(s)) for s in allowed)
            raise InputError(f"grpo_loss: {name} must have the shape {expected}, got {tuple(tensor.shape)}")
