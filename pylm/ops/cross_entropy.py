"""The cross entropy of an output layer, which knows its gradient while the logits are there.

Summed over rows, and up to the factor that comes from upstream, which is applied afterwards. So there are
three matrix products, and nothing is kept but the gradients themselves. The loss of a row and its parts are
those of `losses.linear_cross_entropy`.

Shapes: N rows, D model dimension, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from pylm.ops._library import (
    as_rows,
    autocast_like_linear,
    compute_dtype,
    define_op,
    refuse_second_derivative,
    register_autograd,
)
from pylm.ops.logprob import backward_cpu, chunk_rows, chunks, forward_cpu, may_keep, rows_to_keep


def _forward_cpu(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    wide, (num_rows, num_classes) = compute_dtype(hidden), (hidden.shape[0], weight.shape[0])
    needs_hidden, needs_weight = needs
    weight = weight.to(hidden.dtype)
    loss = torch.zeros((), dtype=wide)
    grad_hidden = torch.zeros(hidden.shape if needs_hidden else (0, 0), dtype=hidden.dtype)
    grad_weight = torch.zeros(weight.shape if needs_weight else (0,), dtype=wide)
    options = 1.0, softcap, ignore_index
    step = max(rows_to_keep(num_classes, wide), chunk_rows(num_classes, wide.itemsize))
    for chunk in chunks(num_rows, step):
        rows = hidden[chunk], weight, targets[chunk], None
        logprob, lse, entropy, mean, total, kept = forward_cpu(
            *rows, *options, False, label_smoothing > 0.0, softcap is None, wide
        )
        loss += (label_smoothing * (lse - mean) - (1.0 - label_smoothing) * logprob).sum()
        loss += z_loss * lse.square().sum()
        upstream = (
            torch.full_like(lse, label_smoothing - 1.0),
            label_smoothing + 2.0 * z_loss * lse,
            None,
            torch.full_like(lse, -label_smoothing) if label_smoothing > 0.0 else None,
        )
        sums = lse, entropy, total, kept
        needs_of_chunk = [needs_hidden, needs_weight, False]
        grads = backward_cpu(*upstream, *rows, *sums, *options, needs_of_chunk, grad_weight)
        if needs_hidden:
            grad_hidden[chunk] = grads[0]
    return loss, grad_hidden, grad_weight


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    wide = compute_dtype(hidden)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(hidden.shape if needs[0] else (0, 0)),
        weight.new_empty(weight.shape if needs[1] else (0,), dtype=wide),
    )


def _scale(
    grad_loss: Tensor, grad_hidden: Tensor, grad_weight: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return grad_hidden * grad_loss, torch.mul(grad_weight, grad_loss, out=weight.new_empty(grad_weight.shape))


def _scale_fake(
    grad_loss: Tensor, grad_hidden: Tensor, grad_weight: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(grad_hidden.shape), weight.new_empty(grad_weight.shape)


_FORWARD = define_op(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, float? softcap, int ignore_index,"
    " float label_smoothing, float z_loss, bool[2] needs)"
    " -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight)",
    cpu=_forward_cpu,
    kernel="linear_cross_entropy.forward",
    fake=_forward_fake,
)
_SCALE = define_op(
    "linear_cross_entropy_backward(Tensor grad_loss, Tensor grad_hidden, Tensor grad_weight, Tensor hidden,"
    " Tensor weight) -> (Tensor scaled_hidden, Tensor scaled_weight)",
    cpu=_scale,
    kernel="linear_cross_entropy.backward",
    fake=_scale_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, *_ = inputs
    _, grad_hidden, grad_weight = output
    # The inputs are saved for their dtypes, and so that a second derivative comes to an op that refuses it.
    ctx.save_for_backward(grad_hidden, grad_weight, hidden, weight)
    ctx.mark_non_differentiable(grad_hidden, grad_weight)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 8
    scaled = _SCALE(grad_loss, *ctx.saved_tensors)
    return *(g if need else None for g, need in zip(scaled, ctx.needs_input_grad, strict=False)), *[None] * 6


register_autograd("linear_cross_entropy", _backward, setup_context=_save)
refuse_second_derivative("linear_cross_entropy_backward")


def makes_gradients_early(hidden: Tensor, weight: Tensor, softcap: float | None) -> bool:
    """Return whether `summed_cross_entropy` is the better way to a loss with gradients.

    Not where what the backward pass needs of all logits may be kept: then the weight's gradient is one
    product that is rounded once, neither added up chunk by chunk in float32 nor scaled afterwards. On a GPU
    that needs a weight of the hidden states' dtype and no soft cap.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or weight.requires_grad):
        return False
    if hidden.device.type == "cpu":
        return not may_keep(as_rows(hidden), weight)
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    if softcap is not None or hidden.dtype != weight.dtype or hidden.dtype != dtype:
        return True
    return not may_keep(as_rows(hidden), weight)


def summed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """Call the op that makes the gradients along with the loss, on checked arguments; return the sum.

    The op takes a weight of another dtype than the hidden states', since its gradient is there in float32.
    """
    rows = as_rows(autocast_like_linear(hidden))
    needs = [rows.requires_grad, weight.requires_grad]
    loss: Tensor = _FORWARD(
        rows, weight, targets.reshape(-1), softcap, ignore_index, label_smoothing, z_loss, needs
    )[0]
    return loss
