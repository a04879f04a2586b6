"""Losses of post-training: sums of log-probabilities over trained tokens, and their denominators.

Every denominator is an argument: the caller counts it over the whole step, all micro-batches and all
ranks, so that the losses of the parts add up to the loss of the step, however it was cut.

Shapes: B rows, T time, D model, V vocabulary, P preference pairs, G samples of one prompt.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pylm import ops
from pylm.data.pack import IGNORE
from pylm.errors import InputError

PreferenceKind = Literal["sigmoid", "length-normalised", "ipo", "simpo"]
AdvantageKind = Literal["standardised", "centred"]
Reduction = Literal["sequence", "token", "constant"]


def sft_loss(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, *, num_tokens: int) -> Tensor:
    """Compute this part's share of the mean cross entropy over a step's trained tokens.

    loss = sum over the part's trained tokens of -log p / num_tokens

    Args:
        hidden_BTD: final hidden states.
        weight_VD: output matrix.
        targets_BT: next tokens, `IGNORE` where not trained.
        num_tokens: trained tokens of the whole step, all micro-batches and ranks.

    Returns:
        A float32 scalar; its sum over the parts is the step's loss.
    """
    return ops.linear_cross_entropy(
        hidden_BTD, weight_VD, targets_BT, ignore_index=IGNORE, reduction="sum"
    ) / max(1, num_tokens)


class PreferenceLoss(NamedTuple):
    """What `preference_loss` returns; all (P,) float32, rewards without gradient."""

    loss_P: Tensor
    """Loss of every pair; its mean over the step is the step's loss."""
    chosen_P: Tensor
    """Implicit reward of the chosen answers."""
    rejected_P: Tensor
    """Implicit reward of the rejected answers."""


def preference_loss(
    policy_2P: Tensor,
    reference_2P: Tensor | None,
    length_2P: Tensor,
    *,
    kind: PreferenceKind = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> PreferenceLoss:
    """Compute the preference loss of pairs from the summed log-probabilities of their answers.

    With pi and ref the sums over an answer's tokens, n its length, d = (pi_c - pi_r) - (ref_c - ref_r),
    and d' the same of the means pi/n and ref/n:

        sigmoid:            -(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d)
        length-normalised:  sigmoid of d'
        ipo:                (d - 1 / (2 beta))^2
        simpo:              -log sigmoid(beta (pi_c/n_c - pi_r/n_r) - gamma)

    Args:
        policy_2P: log-probabilities under the policy; first row chosen answers, second row rejected ones.
        reference_2P: the same under the reference; not used by simpo.
        length_2P: number of tokens of every answer.
        kind: which loss.
        beta: strength of the pull to the reference.
        label_smoothing: s, the probability that a label is wrong.
        gamma: simpo's target margin.

    Returns:
        Losses and implicit rewards beta * (pi - ref), of means where the loss takes means.

    Raises:
        InputError: an option is out of range, or the reference is missing.

    Source:
        Rafailov et al. 2023 (DPO, equation 7); Lambert et al. 2024 (Tulu 3, equation 6: length-normalised);
        Azar et al. 2023 (IPO, equation 17); Meng et al. 2024 (SimPO, equation 6).
    """
    if kind in ("length-normalised", "simpo"):
        policy_2P = policy_2P / length_2P
        reference_2P = None if reference_2P is None else reference_2P / length_2P
    reference = (None, None) if kind == "simpo" or reference_2P is None else reference_2P.unbind(0)
    loss_P = ops.dpo_loss(
        policy_2P[0],
        policy_2P[1],
        reference[0],
        reference[1],
        beta=beta,
        label_smoothing=label_smoothing,
        kind="sigmoid" if kind == "length-normalised" else kind,
        margin=gamma if kind == "simpo" else 0.0,
    )
    reward_2P = beta * policy_2P.detach()
    if kind != "simpo" and reference_2P is not None:
        reward_2P = reward_2P - beta * reference_2P
    return PreferenceLoss(loss_P, reward_2P[0], reward_2P[1])


def group_advantages(
    reward_PG: Tensor, *, kind: AdvantageKind = "standardised", epsilon: float = 1e-4
) -> Tensor:
    """Compare every sample's reward with those of the other samples of its prompt.

    standardised: (r - mean) / (std + epsilon), std with G - 1 in its denominator
    centred:       r - mean

    Args:
        reward_PG: rewards, one row a prompt.
        kind: which of the two.
        epsilon: keeps a group of nearly equal rewards finite.

    Returns:
        Advantages (P, G); exactly 0 where all rewards of a prompt are equal.

    Source:
        Shao et al. 2024 (DeepSeekMath, section 4.1.2); Liu et al. 2025 (Dr. GRPO) drop the division,
        since it favours prompts that are nearly always, or nearly never, solved.
    """
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    is_equal_P1 = (reward_PG == reward_PG[:, :1]).all(1, keepdim=True)
    if kind == "standardised" and reward_PG.shape[1] > 1:
        centred_PG = centred_PG / (reward_PG.std(1, keepdim=True) + epsilon)
    return centred_PG.masked_fill(is_equal_P1, 0.0)


def token_weights(
    mask_BT: Tensor, *, reduction: Reduction, num_sequences: int, num_tokens: int, max_tokens: int
) -> Tensor:
    """Say how much every sampled token weighs in the step's loss.

    sequence:  1 / (num_sequences * tokens of its row)   the mean of per-sequence means (GRPO)
    token:     1 / num_tokens                            the mean over all tokens (DAPO)
    constant:  1 / (num_sequences * max_tokens)          no length bias (Dr. GRPO)

    Args:
        mask_BT: true at sampled tokens.
        reduction: which of the three.
        num_sequences: sequences of the whole step, all micro-batches and ranks.
        num_tokens: sampled tokens of the whole step.
        max_tokens: the longest completion that sampling allows.

    Returns:
        float32 (B, T), 0 outside the mask.

    Source:
        Shao et al. 2024 (DeepSeekMath, equation 3); Yu et al. 2025 (DAPO, equation 12);
        Liu et al. 2025 (Dr. GRPO, section 3.2).
    """
    if reduction == "sequence":
        length_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
        return mask_BT.float() / (max(1, num_sequences) * length_B1)
    denominator = num_tokens if reduction == "token" else num_sequences * max_tokens
    return mask_BT.float() / max(1, denominator)


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns."""

    loss: Tensor
    """Scalar; its sum over the parts is the step's loss."""
    clipped_BT: Tensor
    """True at tokens whose gradient the clip cut off."""
    kl_BT: Tensor
    """The k3 estimate of the divergence from the reference, without gradient; 0 without a reference."""


def policy_loss(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_B: Tensor,
    weight_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.0,
    reference_logprob_BT: Tensor | None = None,
) -> PolicyLoss:
    """Compute this part's share of GRPO's clipped objective.

    With ratio = exp(logprob - old), A the row's advantage and x = reference - logprob:

        loss = sum of weight * (-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)
                                + kl_coefficient * (exp(x) - x - 1))

    Args:
        logprob_BT: log-probabilities under the policy that is trained; 0 outside the completions.
        old_logprob_BT: under the policy that sampled, without gradient.
        advantage_B: advantage of every row.
        weight_BT: from `token_weights`; 0 outside the completions.
        clip_low: how far below 1 the ratio still counts.
        clip_high: how far above 1 the ratio still counts; DAPO takes 0.28.
        kl_coefficient: weight of the divergence from the reference.
        reference_logprob_BT: under the reference, without gradient; needed where kl_coefficient is not 0.

    Returns:
        Loss, clipped tokens, divergence.

    Raises:
        InputError: `kl_coefficient` is not 0 and there is no reference.

    Source:
        Schulman et al. 2017 (PPO, equation 7); Shao et al. 2024 (DeepSeekMath, equations 3 and 4);
        Schulman 2020, "Approximating KL Divergence" (k3); Yu et al. 2025 (DAPO: two clip bounds).
    """
    advantage_B1 = advantage_B.unsqueeze(1)
    ratio_BT = torch.exp(logprob_BT - old_logprob_BT)
    clipped_ratio_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    unclipped_BT, bounded_BT = ratio_BT * advantage_B1, clipped_ratio_BT * advantage_B1
    token_loss_BT = -torch.minimum(unclipped_BT, bounded_BT)
    is_clipped_BT = (bounded_BT < unclipped_BT) & (weight_BT > 0)
    kl_BT = torch.zeros_like(ratio_BT)
    if reference_logprob_BT is not None:
        excess_BT = reference_logprob_BT - logprob_BT
        kl_BT = torch.expm1(excess_BT) - excess_BT
    elif kl_coefficient != 0.0:
        raise InputError(
            f"policy_loss: kl_coefficient={kl_coefficient} needs reference_logprob_BT, got None; pass it or 0"
        )
    if kl_coefficient != 0.0:
        token_loss_BT = token_loss_BT + kl_coefficient * kl_BT
    loss = (token_loss_BT * weight_BT).sum()
    return PolicyLoss(loss, is_clipped_BT.detach(), kl_BT.detach())
