"""Losses that are a few lines over `linear_logprob` or over its sums.

Shapes: N rows (all leading dimensions), D model dimension, V vocabulary, P preference pairs.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._direct import is_transformed
from pylm.ops._library import (
    check_device,
    check_float,
    check_ignore_index,
    check_not_negative,
    check_optional_float,
    check_positive,
    check_tensors,
    compute_dtype,
    is_finite,
)
from pylm.ops.cross_entropy import summed_cross_entropy
from pylm.ops.logprob import check_linear, target_logprob


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Compute the cross entropy of a linear output layer without holding all logits.

    With s = label_smoothing and logits z = softcap(hidden @ weight.T), a row's loss is

        lse(z) - (1 - s) z_target - s mean(z) + z_loss * lse(z)^2.

    Args:
        hidden: (..., D) final hidden states; under `torch.autocast` on a GPU converted to its dtype.
        weight: (V, D) output matrix; converted to the dtype of `hidden`.
        targets: (...) integers in [0, V), or `ignore_index`.
        ignore_index: rows with this target give 0 and no gradient.
        label_smoothing: s in [0, 1].
        z_loss: weight of the squared log-sum-exp, at least 0, which keeps the logits from drifting; 1e-4 is
            usual.
        softcap: c of c tanh(logit / c), or None.
        reduction: "mean" over the rows that are not ignored (0 when all are), "sum", or "none".

    Returns:
        A float32 scalar; for "none" a float32 tensor (...).

    Raises:
        InputError: a shape, dtype, device, target or option does not fit.

    Source:
        Szegedy et al., 2016 (label smoothing); Chowdhery et al., "PaLM", 2022 (z-loss).
    """
    targets = check_linear("linear_cross_entropy", hidden, weight, targets, None)
    check_loss_options(
        "linear_cross_entropy",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        reduction=reduction,
    )
    # A batch of torch.vmap does not say whether its elements want gradients.
    if reduction != "none" and not is_transformed():
        total = summed_cross_entropy(
            hidden,
            weight,
            targets,
            softcap=softcap,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        if total is not None:
            return total if reduction == "sum" else _mean(total, targets, ignore_index)
    logprob, lse, _, mean_logit = target_logprob(
        hidden,
        weight,
        targets,
        None,
        temperature=1.0,
        softcap=softcap,
        ignore_index=ignore_index,
        with_entropy=False,
        with_mean=label_smoothing > 0.0,
    )
    loss = -logprob
    if label_smoothing > 0.0:
        loss = loss * (1.0 - label_smoothing) + (lse - mean_logit) * label_smoothing
    if z_loss != 0.0:
        loss = loss + z_loss * lse.square()
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else _mean(total, targets, ignore_index)


def check_loss_options(
    op: str,
    *,
    ignore_index: object,
    label_smoothing: object,
    z_loss: object,
    softcap: object,
    reduction: object,
) -> None:
    """Raise InputError unless the options of `linear_cross_entropy` are in range."""
    if not (is_finite(label_smoothing) and 0.0 <= label_smoothing <= 1.0):
        raise InputError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing!r}")
    check_not_negative(op, z_loss=z_loss)
    check_positive(op, or_none=True, softcap=softcap)
    check_ignore_index(op, ignore_index)
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f'{op}: reduction must be "mean", "sum" or "none", got {reduction!r}')


def _mean(total: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    return total / (targets != ignore_index).sum().clamp(min=1)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: Literal["sigmoid", "robust", "ipo", "simpo"] = "sigmoid",
    margin: float = 0.0,
) -> Tensor:
    """Compute the preference loss of every pair from the log-probabilities of its two answers.

    With d = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected), s =
    label_smoothing and g = margin:

        sigmoid:  -(1 - s) log sigmoid(beta d - g) - s log sigmoid(-(beta d - g))
        robust:   (-(1 - s) log sigmoid(beta d - g) + s log sigmoid(-(beta d - g))) / (1 - 2 s), whose
                  expectation over labels that are wrong with probability s is that of sigmoid over right ones
        ipo:      (d - 1 / (2 beta))^2
        simpo:    sigmoid, with d = policy_chosen - policy_rejected and no reference

    Args:
        policy_chosen: (P,) log-probability of the preferred answer: the sum over its tokens, or the mean
            for the length-normalised variant, for ipo and for simpo.
        policy_rejected: (P,) the same of the other answer.
        reference_chosen: (P,) the same under the reference model; None for simpo.
        reference_rejected: (P,); None for simpo.
        beta: strength of the pull to the reference; > 0. Usually 0.1 with sums, 5 with means.
        label_smoothing: probability in [0, 0.5) that a label is wrong; not for ipo.
        kind: which loss.
        margin: what the reward of the chosen answer must exceed that of the other by; not for ipo.

    Returns:
        The loss of every pair, (P,), float32 (float64 for float64 input); take the mean of it. Implicit
        rewards are `beta * (policy - reference)`.

    Raises:
        InputError: shapes differ, an option is out of range, or the reference is missing.

    Source:
        Rafailov et al., "Direct Preference Optimization", 2023; Mitchell, "A note on DPO with noisy
        preferences", 2023 (label smoothing); Chowdhury et al., "Provably Robust DPO", 2024 (robust); Azar
        et al., 2023 (IPO); Lambert et al., "Tulu 3", 2024 (length-normalised); Meng et al., "SimPO", 2024.
    """
    check_float("dpo_loss", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    others = {"reference_chosen": reference_chosen, "reference_rejected": reference_rejected}
    check_optional_float("dpo_loss", **others)
    check_device("dpo_loss", policy_chosen, policy_rejected=policy_rejected, **others)
    if kind not in ("sigmoid", "robust", "ipo", "simpo"):
        raise InputError(f'dpo_loss: kind must be "sigmoid", "robust", "ipo" or "simpo", got {kind!r}')
    check_positive("dpo_loss", beta=beta)
    if not (is_finite(label_smoothing) and 0.0 <= label_smoothing < 0.5):
        raise InputError(f"dpo_loss: label_smoothing must be in [0, 0.5), got {label_smoothing!r}")
    if not is_finite(margin):
        raise InputError(f"dpo_loss: margin must be a finite number, got {margin!r}; 0 is none")
    if kind == "ipo" and (label_smoothing != 0.0 or margin != 0.0):
        raise InputError("dpo_loss: ipo takes neither label_smoothing nor margin; leave both at 0")
    references = (reference_chosen, reference_rejected)
    for name, tensor in (
        ("policy_rejected", policy_rejected),
        ("reference_chosen", reference_chosen),
        ("reference_rejected", reference_rejected),
    ):
        if tensor is not None and tensor.shape != policy_chosen.shape:
            raise InputError(
                f"dpo_loss: {name} must have the shape of policy_chosen {tuple(policy_chosen.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    wide = compute_dtype(policy_chosen)
    difference = policy_chosen.to(wide) - policy_rejected.to(wide)
    if kind == "simpo":
        if references != (None, None):
            raise InputError("dpo_loss: simpo has no reference; pass None for both reference arguments")
    elif reference_chosen is None or reference_rejected is None:
        raise InputError(f"dpo_loss: {kind} needs reference_chosen and reference_rejected, got None")
    else:
        difference = difference - (reference_chosen.to(wide) - reference_rejected.to(wide))
    if kind == "ipo":
        return (difference - 1.0 / (2.0 * beta)).square()
    scaled = beta * difference - margin
    loss = -F.logsigmoid(scaled)
    if label_smoothing == 0.0:
        return loss
    flipped = -F.logsigmoid(-scaled)
    if kind == "robust":
        return ((1.0 - label_smoothing) * loss - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)
    return (1.0 - label_smoothing) * loss + label_smoothing * flipped


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    is_desirable: Tensor,
    kl: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Compute the KTO loss of answers that are each marked as good or bad, in no pairs.

    With r = policy - reference and z = max(kl, 0):

        desirable:    desirable_weight   (1 - sigmoid(beta (r - z)))
        undesirable:  undesirable_weight (1 - sigmoid(beta (z - r)))

    Args:
        policy: (N,) log-probability of the answer, summed over its tokens.
        reference: (N,) the same under the reference model.
        is_desirable: (N,) bool.
        kl: scalar, the mean of policy - reference over answers that belong to other prompts (each prompt of
            the batch with the next one's answer), over all ranks. It receives no gradient.
        beta: strength of the pull to the reference; > 0.
        desirable_weight: weight of good answers. The paper advises to choose the two so that good answers
            weigh 1 to 4/3 times what bad ones do, all together.
        undesirable_weight: weight of bad answers.

    Returns:
        The loss of every answer, (N,), float32 (float64 for float64 input); take the mean of it. Implicit
        rewards are `beta * (policy - reference)`.

    Raises:
        InputError: a shape, dtype or device does not fit, or an option is out of range.

    Source:
        Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024, section 4.
    """
    check_float("kto_loss", policy=policy, reference=reference)
    check_tensors("kto_loss", is_desirable=is_desirable)
    mean = kl if isinstance(kl, Tensor) else None
    check_optional_float("kto_loss", kl=mean)
    if mean is None and not is_finite(kl):
        raise InputError(f"kto_loss: kl must be one finite number, got {kl!r}")
    check_device("kto_loss", policy, reference=reference, is_desirable=is_desirable, kl=mean)
    check_positive("kto_loss", beta=beta)
    weights = desirable_weight, undesirable_weight
    if not all(is_finite(weight) and weight >= 0.0 for weight in weights):
        raise InputError(
            f"kto_loss: weights must not be negative, got {desirable_weight!r} and {undesirable_weight!r}; "
            f"desirable_weight and undesirable_weight are finite numbers"
        )
    for name, tensor in (("reference", reference), ("is_desirable", is_desirable)):
        if tensor.shape != policy.shape:
            raise InputError(
                f"kto_loss: {name} must have the shape of policy {tuple(policy.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    if is_desirable.dtype != torch.bool:
        raise InputError(f"kto_loss: is_desirable must be bool, got {is_desirable.dtype}; compare it first")
    if mean is not None and mean.numel() != 1:
        raise InputError(f"kto_loss: kl must be one number, got {tuple(mean.shape)}; take its mean")
    wide = compute_dtype(policy)
    z = max(kl, 0.0) if not isinstance(kl, Tensor) else kl.detach().to(wide).reshape(()).clamp(min=0.0)
    excess = beta * (policy.to(wide) - reference.to(wide) - z)
    # 1 - sigmoid(x) = sigmoid(-x), which loses no digits where the sigmoid is near 1.
    return torch.where(
        is_desirable,
        desirable_weight * torch.sigmoid(-excess),
        undesirable_weight * torch.sigmoid(excess),
    )
