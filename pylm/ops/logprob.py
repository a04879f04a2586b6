"""Log-probabilities of target tokens from hidden states, without holding all logits.

With logits z = softcap(h W^T + bias) / temperature, softcap(a) = c tanh(a / c), p = softmax(z):

    lse = log sum_v exp(z_v)     logprob = z_target - lse     entropy = lse - sum_v p_v z_v

and for upstream gradients g of the three, with o the one-hot target,

    dz = g_logprob (o - p) + g_lse p - g_entropy p (log p + entropy).

Shapes: N rows (all leading dimensions), D model dimension, V vocabulary.

On the CPU rows are taken in chunks whose logits stay near the cache, and the weight in parts, so that a
narrow one is never whole in float32. The exponentials of the logits (on a GPU the probabilities) are kept for
the backward pass while they fit into `_KEEP_BYTES`, for inputs of 16 bits in bfloat16, which saves one of
four matrix products and one of two exponentials; past it they are computed again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    as_rows,
    autocast_like_linear,
    check_device,
    check_float,
    check_ignore_index,
    check_optional_float,
    check_positive,
    check_tensors,
    compute_dtype,
    define_op,
    is_integral,
    refuse_second_derivative,
    register_autograd,
)

_CHUNK_BYTES = 8 << 20
_MIN_CHUNK_ROWS = 256  # fewer make the matrix products slower
_BLOCK_BYTES = 1 << 20
_WEIGHT_BYTES = 2 << 20
_MIN_WEIGHT_ROWS = 256
_KEEP_BYTES = {"cpu": 512 << 20, "cuda": 3 << 30}
# Logits further below the largest count as this far. e^-60 is lost in a sum of at least 1 even in float64,
# while a subnormal result makes exp 20 times slower (MKL on AVX2), and the -inf of a masked class would
# give 0 * inf in the entropy.
LOWEST = -60.0


class LogProb(NamedTuple):
    """What `linear_logprob` returns: three float32 tensors of the shape of the targets."""

    logprob: Tensor
    """Log-probability of the target; 0 where the target is ignored."""
    lse: Tensor
    """Log of the sum of exponentials of the logits; 0 where the target is ignored."""
    entropy: Tensor
    """Entropy of the predicted distribution in nats; 0 where the target is ignored."""


def chunk_rows(num_classes: int, size_bytes: int) -> int:
    """Return of how many rows products are made at a time on the CPU."""
    return max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // max(1, num_classes * size_bytes))


def chunks(num_rows: int, step: int) -> Iterator[slice]:
    """Cut rows into parts of `step`."""
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def blocks(rows: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut the logits of a chunk of rows into parts that stay in the cache from pass to pass."""
    step = max(1, _BLOCK_BYTES // max(1, logits.shape[1] * logits.element_size()))
    for part in chunks(logits.shape[0], step):
        yield slice(rows.start + part.start, rows.start + part.stop), logits[part]


def _kept_dtype(hidden: Tensor) -> torch.dtype:
    return torch.bfloat16 if hidden.dtype == torch.float16 else hidden.dtype


def may_keep(hidden: Tensor, weight: Tensor) -> bool:
    """Return whether what the backward pass needs of all logits of hidden (N, D) fits the budget."""
    size = hidden.shape[0] * weight.shape[0] * hidden.element_size()
    return size <= _KEEP_BYTES.get(hidden.device.type, 0)


def rows_to_keep(num_classes: int, dtype: torch.dtype) -> int:
    """Return for how many rows of hidden states the budget of the CPU suffices."""
    return _KEEP_BYTES.get("cpu", 0) // max(1, num_classes * dtype.itemsize)


def weight_parts(weight: Tensor, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Cut (V, D) by classes into parts in the dtype `wide` that stay in the cache; one is valid at a time."""
    num_classes, dim = weight.shape
    step = max(_MIN_WEIGHT_ROWS, _WEIGHT_BYTES // max(1, dim * wide.itemsize))
    is_wide = weight.dtype == wide
    buffer = torch.empty(0 if is_wide else min(step, num_classes), dim, dtype=wide)
    for classes in chunks(num_classes, step):
        part = weight[classes]
        yield classes, part if is_wide else buffer[: part.shape[0]].copy_(part)


def write_logits(
    out: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    """Write the logits of a chunk into `out`, given inputs from `_divide_by_temperature`."""
    for classes, part in weight_parts(weight, out.dtype):
        torch.mm(hidden, part.t(), out=out[:, classes])
    if bias is not None:
        out += bias
    if softcap is not None:
        out.div_(softcap).tanh_().mul_(softcap / temperature)


def _divide_by_temperature(
    hidden: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Apply the temperature to (N, D) and not to (N, V), where no softcap comes between."""
    if temperature == 1.0 or softcap is not None:
        return hidden, bias
    return hidden / temperature, None if bias is None else bias / temperature


def selected_rows(targets: Tensor, ignore_index: int, num_classes: int) -> Tensor | None:
    """Return the rows that have a target, None when all have; raise on a target outside the vocabulary."""
    is_kept = targets != ignore_index
    kept = targets if bool(is_kept.all()) else targets[is_kept]
    if kept.numel():
        low, high = torch.aminmax(kept)
        if int(low) < 0 or int(high) >= num_classes:
            raise InputError(
                f"targets must be in [0, {num_classes}) or ignore_index={ignore_index}, "
                f"got {int(low)} to {int(high)}"
            )
    return None if kept is targets else is_kept.nonzero().squeeze(1)


def forward_cpu(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
    with_mean: bool,
    keep: bool,
    kept_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return logprob, lse, entropy, mean logit and sum of exponentials (N,), and what is kept."""
    wide = compute_dtype(hidden)
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    logprob, lse, entropy, mean, total = (torch.zeros(num_rows, dtype=wide) for _ in range(5))
    kept = torch.empty((num_rows, num_classes) if keep else (0, 0), dtype=kept_dtype or _kept_dtype(hidden))
    rows = selected_rows(targets, ignore_index, num_classes)
    outputs = [logprob, lse, entropy, mean, total]
    if rows is not None:
        hidden, targets = hidden[rows], targets[rows]
        kept[rows.numel() :] = 0.0
        outputs = [torch.zeros(rows.numel(), dtype=wide) for _ in range(5)]
    hidden, bias = _divide_by_temperature(
        hidden.to(wide), None if bias is None else bias.to(wide), temperature, softcap
    )
    step = min(chunk_rows(num_classes, wide.itemsize), max(1, targets.numel()))
    is_in_place = keep and not with_entropy and kept.dtype == wide
    scratch = torch.empty(0 if is_in_place else step, num_classes, dtype=wide)
    for chunk in chunks(targets.numel(), step):
        size = chunk.stop - chunk.start
        chunk_logits = kept[chunk] if is_in_place else scratch[:size]
        write_logits(chunk_logits, hidden[chunk], weight, bias, temperature, softcap)
        for block, logits in blocks(chunk, chunk_logits):
            target_logit = logits.gather(1, targets[block].unsqueeze(1))
            if with_mean:
                torch.mean(logits, 1, out=outputs[3][block])
            peak = logits.amax(1, keepdim=True)
            logits.sub_(peak).clamp_(min=LOWEST)
            if not with_entropy:
                exponentials = logits.exp_()
            elif keep and kept.dtype == wide:
                exponentials = torch.exp(logits, out=kept[block])
            else:
                exponentials = logits.exp()
            if keep and kept.dtype != wide:
                kept[block] = exponentials
            total_row = exponentials.sum(1)
            log_total = total_row.log()
            outputs[0][block] = target_logit.sub_(peak).squeeze(1) - log_total
            outputs[1][block] = log_total + peak.squeeze(1)
            if with_entropy:
                outputs[2][block] = log_total - torch.linalg.vecdot(exponentials, logits) / total_row
            outputs[4][block] = total_row
    if rows is not None:
        for output, values in zip((logprob, lse, entropy, mean, total), outputs, strict=True):
            output[rows] = values
    return logprob, lse, entropy, mean, total, kept


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
    with_mean: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(hidden)
    logprob, lse, entropy, mean, total = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(5))
    num_columns = weight.shape[0]
    if hidden.device.type == "cuda":
        num_columns = (num_columns + 7) // 8 * 8
    kept = hidden.new_empty((hidden.shape[0], num_columns) if keep else (0, 0), dtype=_kept_dtype(hidden))
    return logprob, lse, entropy, mean, total, kept


def backward_cpu(
    grad_logprob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_mean: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    entropy: Tensor,
    total: Tensor,
    kept: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
    grad_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden (N, D), weight (V, D) and bias (V,), empty where not needed.

    That of the weight is added to `grad_weight` where one is given, which has the dtype of `lse`.
    """
    wide = lse.dtype
    num_classes, (needs_hidden, needs_weight, needs_bias) = weight.shape[0], needs
    is_kept = targets != ignore_index
    rows = None if bool(is_kept.all()) else is_kept.nonzero().squeeze(1)

    def select(tensor: Tensor) -> Tensor:
        return tensor if rows is None else tensor[rows]

    targets, lse, entropy, total = (select(t).unsqueeze(1) for t in (targets, lse, entropy, total))
    g_logprob, g_lse, g_entropy, g_mean = (
        None if g is None else select(g).unsqueeze(1) / temperature
        for g in (grad_logprob, grad_lse, grad_entropy, grad_mean)
    )
    # dz = p factor + o g_logprob - g_entropy p (log p + entropy) + g_mean / V, as at the file's head.
    factor = torch.zeros_like(lse)
    if g_logprob is not None:
        factor -= g_logprob
    if g_lse is not None:
        factor += g_lse
    wide_hidden = select(hidden).to(wide)
    wide_bias = None if bias is None else bias.to(wide)
    divided_hidden, divided_bias = _divide_by_temperature(wide_hidden, wide_bias, temperature, softcap)
    grad_rows = torch.empty(wide_hidden.shape if needs_hidden else (0, 0), dtype=wide)
    if grad_weight is None:
        grad_weight = torch.zeros(weight.shape if needs_weight else (0,), dtype=wide)
        weight_dtype = weight.dtype
    else:
        weight_dtype = wide
    grad_bias = torch.zeros(num_classes if needs_bias else 0, dtype=wide)
    reads_kept = kept.shape[0] == hidden.shape[0] and g_entropy is None
    if reads_kept:
        factor /= total
    step = min(chunk_rows(num_classes, wide.itemsize), max(1, targets.shape[0]))
    scratch = torch.empty(step, num_classes, dtype=wide)
    for chunk in chunks(targets.shape[0], step):
        chunk_grad = scratch[: chunk.stop - chunk.start]
        if not reads_kept:
            write_logits(chunk_grad, divided_hidden[chunk], weight, divided_bias, temperature, softcap)
        for block, grad in blocks(chunk, chunk_grad):
            slope = None
            if reads_kept:
                torch.mul(kept[block], factor[block], out=grad)
            else:
                if softcap is not None:
                    slope = 1.0 - (grad * (temperature / softcap)).square_()
                grad.sub_(lse[block]).clamp_(min=LOWEST)
                if g_entropy is None:
                    grad.exp_().mul_(factor[block])
                else:
                    bracket = (grad + entropy[block]).mul_(-g_entropy[block]).add_(factor[block])
                    grad.exp_().mul_(bracket)
            if g_logprob is not None:
                grad.scatter_add_(1, targets[block], g_logprob[block])
            if g_mean is not None:
                grad += g_mean[block] / num_classes
            if slope is not None:
                grad *= slope
        if needs_hidden:
            grad_rows[chunk] = 0.0
            for classes, part in weight_parts(weight, wide):
                grad_rows[chunk].addmm_(chunk_grad[:, classes], part)
        if needs_weight:
            grad_weight.addmm_(chunk_grad.t(), wide_hidden[chunk])
        if needs_bias:
            grad_bias += chunk_grad.sum(0)
    grad_hidden = grad_rows.to(hidden.dtype)
    if rows is not None and needs_hidden:
        grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype).index_copy_(0, rows, grad_hidden)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return grad_hidden, grad_weight.to(weight_dtype), grad_bias.to(bias_dtype)


def _backward_fake(
    grad_logprob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_mean: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    entropy: Tensor,
    total: Tensor,
    kept: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        hidden.new_empty(hidden.shape if needs[0] else (0, 0)),
        weight.new_empty(weight.shape if needs[1] else (0,)),
        weight.new_empty(weight.shape[0] if needs[2] else 0, dtype=bias_dtype),
    )


_FORWARD = define_op(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature,"
    " float? softcap, int ignore_index, bool with_entropy, bool with_mean, bool keep)"
    " -> (Tensor logprob, Tensor lse, Tensor entropy, Tensor mean_logit,"
    " Tensor total, Tensor kept)",
    cpu=forward_cpu,
    kernel="linear_logprob.forward",
    fake=_forward_fake,
)
_BACKWARD = define_op(
    "linear_logprob_backward(Tensor? grad_logprob, Tensor? grad_lse, Tensor? grad_entropy,"
    " Tensor? grad_mean, Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor lse,"
    " Tensor entropy, Tensor total, Tensor kept, float temperature, float? softcap,"
    " int ignore_index, bool[3] needs) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    cpu=backward_cpu,
    kernel="linear_logprob.backward",
    fake=_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, bias, ctx.temperature, ctx.softcap, ctx.ignore_index, *_ = inputs
    _, lse, entropy, _, total, kept = output
    ctx.save_for_backward(hidden, weight, targets, bias, lse, entropy, total, kept)
    ctx.mark_non_differentiable(total, kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grad_logprob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_mean: Tensor | None,
    *_: None,
) -> tuple[Tensor | None, ...]:
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    upstream = grad_logprob, grad_lse, grad_entropy, grad_mean
    options = ctx.temperature, ctx.softcap, ctx.ignore_index
    grads = _BACKWARD(*upstream, *ctx.saved_tensors, *options, needs)
    grad_hidden, grad_weight, grad_bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    return grad_hidden, grad_weight, None, grad_bias, *[None] * 6


register_autograd("linear_logprob", _backward, setup_context=_save)
refuse_second_derivative("linear_logprob_backward")


def check_linear(op: str, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    """Return the targets as int64; raise InputError unless the arguments of a linear_* op fit each other."""
    check_float(op, hidden=hidden, weight=weight)
    check_optional_float(op, bias=bias)
    check_tensors(op, targets=targets)
    check_device(op, hidden, weight=weight, targets=targets, bias=bias)
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise InputError(
            f"{op}: expected hidden (..., D) and weight (V, D), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not is_integral(targets) or targets.shape != hidden.shape[:-1]:
        raise InputError(
            f"{op}: targets must be integers of shape {tuple(hidden.shape[:-1])}, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return targets.long()


def target_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
    with_mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the op on checked arguments.

    Returns:
        logprob, lse, entropy and mean logit, each of the shape of `targets`; zeros where not asked for.
    """
    rows = as_rows(autocast_like_linear(hidden))
    weight = weight.to(rows.dtype)
    needs_grad = torch.is_grad_enabled() and (
        hidden.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    keep = needs_grad and softcap is None and may_keep(rows, weight)
    outputs = _FORWARD(
        rows,
        weight,
        targets.reshape(-1),
        bias,
        temperature,
        softcap,
        ignore_index,
        with_entropy,
        with_mean,
        keep,
    )
    if targets.dim() == 1:
        logprob, lse, entropy, mean = outputs[:4]
    else:
        logprob, lse, entropy, mean = [output.view(targets.shape) for output in outputs[:4]]
    return logprob, lse, entropy, mean


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> LogProb:
    """Compute log-probabilities of targets, log-sum-exp and entropy of a linear output layer.

    The logits are `softcap(hidden @ weight.T + bias) / temperature`, in float32 (float64 for float64
    input). They are never held for all rows at once beyond a fixed budget. All three results accept any
    upstream gradient, so every loss over tokens is a few lines on top.

    Args:
        hidden: (..., D) final hidden states; under `torch.autocast` on a GPU converted to its dtype.
        weight: (V, D) output matrix; converted to the dtype of `hidden`.
        targets: (...) integers in [0, V), or `ignore_index`. Anything else is an error on the CPU and
            gives NaN on a GPU, which cannot be asked without waiting for it.
        bias: (V,) or None.
        temperature: divides the logits, after the soft cap; > 0.
        softcap: c of c tanh(logit / c), or None.
        ignore_index: rows with this target give 0 in all three results and no gradient. They cost nothing on
            the CPU; on a GPU the products are made for them as well, since it is not asked which they are.

    Returns:
        LogProb(logprob, lse, entropy), each float32 (...).

    Raises:
        InputError: a shape, dtype, device, target, temperature or softcap does not fit.

    Example:
        >>> logprob, lse, entropy = linear_logprob(hidden_BTD, head_VD, targets_BT)
        >>> loss = -logprob.sum() / (targets_BT != -100).sum()
    """
    targets = check_linear("linear_logprob", hidden, weight, targets, bias)
    check_positive("linear_logprob", temperature=temperature)
    check_positive("linear_logprob", or_none=True, softcap=softcap)
    check_ignore_index("linear_logprob", ignore_index)
    logprob, lse, entropy, _ = target_logprob(
        hidden,
        weight,
        targets,
        bias,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
        with_entropy=True,
        with_mean=False,
    )
    return LogProb(logprob, lse, entropy)
