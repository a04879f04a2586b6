"""The cross entropy of an output layer, which knows the gradient dz of its logits while they are there.

Summed over rows, and up to the factor that comes from upstream, which is applied afterwards. So there are
three matrix products. Where dz of all rows fits into the budget of `logprob`, it is kept, in the dtype of the
hidden states, and the backward pass makes the gradients of it; else they are made at once, chunk by chunk,
and kept themselves. The loss of a row and its parts are those of `losses.linear_cross_entropy`.

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
from pylm.ops.logprob import (
    LOWEST,
    backward_cpu,
    blocks,
    chunk_rows,
    chunks,
    forward_cpu,
    may_keep,
    rows_to_keep,
    selected_rows,
    weight_parts,
    write_logits,
)


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


def _keep_cpu(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    wide, num_classes = compute_dtype(hidden), weight.shape[0]
    rows = selected_rows(targets, ignore_index, num_classes)
    loss, kept = torch.zeros((), dtype=wide), torch.empty(hidden.shape[0], num_classes, dtype=hidden.dtype)
    if rows is not None:
        kept[rows.numel() :] = 0.0  # dz of the others comes first, without gaps
        hidden, targets = hidden[rows], targets[rows]
    weight, is_wide = weight.to(hidden.dtype), hidden.dtype == wide
    hidden = hidden.to(wide)
    step = min(chunk_rows(num_classes, wide.itemsize), max(1, targets.numel()))
    scratch = torch.empty(0 if is_wide else step, num_classes, dtype=wide)
    for chunk in chunks(targets.numel(), step):
        chunk_logits = kept[chunk] if is_wide else scratch[: chunk.stop - chunk.start]
        write_logits(chunk_logits, hidden[chunk], weight, None, 1.0, softcap)
        for block, z in blocks(chunk, chunk_logits):
            slope = None if softcap is None else 1.0 - (z / softcap).square_()
            target = targets[block].unsqueeze(1)
            target_logit = z.gather(1, target)
            peak = z.amax(1, keepdim=True)
            if label_smoothing > 0.0:
                loss -= label_smoothing * (z.mean(1) - target_logit.squeeze(1)).sum()
            total = z.sub_(peak).clamp_(min=LOWEST).exp_().sum(1, keepdim=True)
            log_total = total.log()
            lse = log_total + peak
            loss += (log_total - (target_logit - peak)).sum() + z_loss * lse.square().sum()
            z.mul_((1.0 + 2.0 * z_loss * lse) / total)
            if label_smoothing > 0.0:
                z -= label_smoothing / num_classes
            z.scatter_add_(1, target, torch.full_like(target_logit, label_smoothing - 1.0))
            if slope is not None:
                z *= slope
            if not is_wide:
                kept[block] = z
    return loss, kept


def _keep_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    num_columns = weight.shape[0]
    if hidden.device.type == "cuda":
        num_columns = (num_columns + 7) // 8 * 8
    loss = hidden.new_empty((), dtype=compute_dtype(hidden))
    return loss, hidden.new_empty((hidden.shape[0], num_columns))


def _backward_of_kept_cpu(
    grad_loss: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    wide = grad_loss.dtype
    is_kept = targets != ignore_index
    rows = None if bool(is_kept.all()) else is_kept.nonzero().squeeze(1)
    num_rows = targets.numel() if rows is None else rows.numel()
    needs_hidden, needs_weight = needs
    grad_rows = torch.zeros((num_rows, hidden.shape[1]) if needs_hidden else (0, 0), dtype=wide)
    grad_weight = torch.zeros(weight.shape if needs_weight else (0,), dtype=wide)
    scaled = ((hidden if rows is None else hidden[rows]) * grad_loss).to(wide) if needs_weight else grad_rows
    narrow = weight.to(hidden.dtype)
    for chunk in chunks(num_rows, chunk_rows(weight.shape[0], wide.itemsize)):
        dz = kept[chunk].to(wide)
        if needs_hidden:
            for classes, part in weight_parts(narrow, wide):
                grad_rows[chunk].addmm_(dz[:, classes], part)
        if needs_weight:
            grad_weight.addmm_(dz.t(), scaled[chunk])
    grad_hidden = grad_rows.mul_(grad_loss).to(hidden.dtype)
    if rows is not None and needs_hidden:
        grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype).index_copy_(0, rows, grad_hidden)
    return grad_hidden, grad_weight.to(weight.dtype)


def _backward_of_kept_fake(
    grad_loss: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if needs[0] else (0, 0)),
        weight.new_empty(weight.shape if needs[1] else (0,)),
    )


_KEEP = define_op(
    "linear_cross_entropy_kept(Tensor hidden, Tensor weight, Tensor targets, float? softcap,"
    " int ignore_index, float label_smoothing, float z_loss) -> (Tensor loss, Tensor kept)",
    cpu=_keep_cpu,
    kernel="linear_cross_entropy.keep",
    fake=_keep_fake,
)
_BACKWARD_OF_KEPT = define_op(
    "linear_cross_entropy_kept_backward(Tensor grad_loss, Tensor kept, Tensor hidden, Tensor weight,"
    " Tensor targets, int ignore_index, bool[2] needs) -> (Tensor grad_hidden, Tensor grad_weight)",
    cpu=_backward_of_kept_cpu,
    kernel="linear_cross_entropy.backward_of_kept",
    fake=_backward_of_kept_fake,
)


def _save_kept(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, _, ctx.ignore_index, *_ = inputs
    ctx.save_for_backward(output[1], hidden, weight, targets)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_kept(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 7
    needs = list(ctx.needs_input_grad[:2])
    grads = _BACKWARD_OF_KEPT(grad_loss, *ctx.saved_tensors, ctx.ignore_index, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 5


register_autograd("linear_cross_entropy_kept", _backward_kept, setup_context=_save_kept)
refuse_second_derivative("linear_cross_entropy_kept_backward")


def summed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor | None:
    """Call the op that has the gradients in hand, on checked arguments, and return the sum.

    None where no gradients are wanted; and where all is float16, whose range dz needs to be scaled into,
    while the probabilities may be kept. The ops take a weight of another dtype than the hidden states'; its
    gradient has that dtype, made in float32.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or weight.requires_grad):
        return None
    rows = as_rows(autocast_like_linear(hidden))
    options = softcap, ignore_index, label_smoothing, z_loss
    loss: Tensor
    is_float16 = rows.dtype == torch.float16
    # The gradient of a wider weight is made in float32 at once, which the range of float16 would not hold.
    if not may_keep(rows, weight) or (is_float16 and weight.dtype != rows.dtype):
        needs = [rows.requires_grad, weight.requires_grad]
        loss = _FORWARD(rows, weight, targets.reshape(-1), *options, needs)[0]
        return loss
    if is_float16:
        return None
    loss = _KEEP(rows, weight, targets.reshape(-1), *options)[0]
    return loss
