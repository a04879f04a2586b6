"""Losses of fine-tuning and of preferences, over `pylm.ops`: what the ops leave to their caller.

A denominator is an argument: the caller counts it over the whole step, all micro-batches and all ranks, so
that the losses of the parts add up to the loss of the step, however it was cut.

Shapes: B rows, T time, D model, V vocabulary, P preference pairs.
"""

from typing import Literal, NamedTuple

from torch import Tensor

from pylm import ops
from pylm.data.pack import IGNORE

PreferenceKind = Literal["sigmoid", "length-normalised", "robust", "ipo", "simpo"]


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
        robust:             (-(1 - s) log sigmoid(beta d) + s log sigmoid(-beta d)) / (1 - 2 s)
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
        Chowdhury et al. 2024 (robust); Azar et al. 2023 (IPO, equation 17); Meng et al. 2024 (SimPO,
        equation 6).
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
