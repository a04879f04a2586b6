"""Log-probabilities of target tokens from hidden states, without holding all logits.

With logits z = softcap(h W^T + bias) / temperature, softcap(a) = c tanh(a / c), p = softmax(z):

    lse = log sum_v exp(z_v)     logprob = z_target - lse     entropy = lse - sum_v p_v z_v

and for upstream gradients g of the three, with o the one-hot target,

    dz = g_logprob (o - p) + g_lse p - g_entropy p (log p + entropy).

Shapes: N rows (all leading dimensions), D model dimension, V vocabulary.

On the CPU rows are taken in chunks whose logits stay near the cache. The log-probabilities of all rows
are kept for the backward pass while they fit into `_KEEP_BYTES`, since that saves one of four matrix
products; past it they are computed again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_device, check_float, compute_dtype, define_op

_CHUNK_BYTES = 8 << 20
_KEEP_BYTES = 256 << 20


class LogProb(NamedTuple):
    """What `linear_logprob` returns: three float32 tensors of the shape of the targets."""

    logprob: Tensor
    """Log-probability of the target; 0 where the target is ignored."""
    lse: Tensor
    """Log of the sum of exponentials of the logits; 0 where the target is ignored."""
    entropy: Tensor
    """Entropy of the predicted distribution in nats; 0 where the target is ignored."""


def _chunks(num_rows: int, num_classes: int, size_bytes: int) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // max(1, num_classes * size_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of a chunk and, with a softcap, d logit / d product."""
    logits = hidden @ weight.t()
    if bias is not None:
        logits += bias
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = 1.0 - logits.square()
        logits *= softcap
    if temperature != 1.0:
        logits /= temperature
    return logits, slope


def _selected_rows(targets: Tensor, ignore_index: int, num_classes: int) -> Tensor | None:
    """Return the rows that have a target, None when all have; raise on a target outside the vocabulary."""
    is_kept = targets != ignore_index
    kept = targets if bool(is_kept.all()) else targets[is_kept]
    if kept.numel():
        low, high = torch.aminmax(kept)
        if int(low) < 0 or int(high) >= num_classes:
            raise InputError(
                f"linear_logprob: targets must be in [0, {num_classes}) or ignore_index={ignore_index}, "
                f"got {int(low)} to {int(high)}"
            )
    return None if kept is targets else is_kept.nonzero().squeeze(1)


def _forward_cpu(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(hidden)
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    outputs = torch.zeros(4, num_rows, dtype=wide)
    kept = torch.empty((num_rows, num_classes) if keep else (0, 0), dtype=wide)
    rows = _selected_rows(targets, ignore_index, num_classes)
    if rows is not None:
        hidden, targets = hidden[rows], targets[rows]
    hidden, weight = hidden.to(wide), weight.to(wide)
    results = outputs if rows is None else torch.empty(4, rows.numel(), dtype=wide)
    for chunk in _chunks(targets.numel(), num_classes, wide.itemsize):
        logits, _ = _logits(hidden[chunk], weight, bias, temperature, softcap)
        column = targets[chunk].unsqueeze(1)
        target_logit = logits.gather(1, column).squeeze(1)
        if with_mean:
            results[3, chunk] = logits.mean(1)
        logprobs = torch.log_softmax(logits, 1)
        if keep:
            kept[chunk] = logprobs
        logprob = logprobs.gather(1, column).squeeze(1)
        results[0, chunk] = logprob
        results[1, chunk] = target_logit - logprob
        if with_entropy:
            results[2, chunk] = -torch.linalg.vecdot(logprobs.exp(), logprobs)
    if rows is not None:
        outputs[:, rows] = results
        kept[rows.numel() :] = 0.0
    logprob, lse, entropy, mean = (output.clone() for output in outputs)
    return logprob, lse, entropy, mean, kept


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(hidden)
    logprob, lse, entropy, mean = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(4))
    kept = hidden.new_empty((hidden.shape[0], weight.shape[0]) if keep else (0, 0), dtype=wide)
    return logprob, lse, entropy, mean, kept


def _backward_cpu(
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
    kept: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    num_classes = weight.shape[0]
    is_kept = targets != ignore_index
    rows = None if bool(is_kept.all()) else is_kept.nonzero().squeeze(1)
    chosen_hidden = hidden if rows is None else hidden[rows]
    if rows is not None:
        targets, lse, entropy = targets[rows], lse[rows], entropy[rows]
    upstream = [
        None if g is None else (g if rows is None else g[rows]).unsqueeze(1) / temperature
        for g in (grad_logprob, grad_lse, grad_entropy, grad_mean)
    ]
    wide_hidden, wide_weight = chosen_hidden.to(wide), weight.to(wide)
    grad_rows = torch.empty(chosen_hidden.shape if needs[0] else (0,), dtype=wide)
    grad_weight = torch.zeros(weight.shape if needs[1] else (0,), dtype=wide)
    grad_bias = torch.zeros(num_classes if needs[2] else 0, dtype=wide)
    for chunk in _chunks(targets.numel(), num_classes, wide.itemsize):
        slope = None
        if kept.numel() and softcap is None:
            logprobs = kept[chunk]
        else:
            logits, slope = _logits(wide_hidden[chunk], wide_weight, bias, temperature, softcap)
            logprobs = logits.sub_(lse[chunk].unsqueeze(1))
        g_logprob, g_lse, g_entropy, g_mean = (None if g is None else g[chunk] for g in upstream)
        grad = logprobs.exp()
        factor = torch.zeros_like(lse[chunk]).unsqueeze(1)
        if g_logprob is not None:
            factor = factor - g_logprob
        if g_lse is not None:
            factor = factor + g_lse
        if g_entropy is not None:
            grad *= factor - g_entropy * (logprobs + entropy[chunk].unsqueeze(1))
        else:
            grad *= factor
        if g_logprob is not None:
            grad.scatter_add_(1, targets[chunk].unsqueeze(1), g_logprob)
        if g_mean is not None:
            grad += g_mean / num_classes
        if slope is not None:
            grad *= slope
        if needs[0]:
            torch.mm(grad, wide_weight, out=grad_rows[chunk])
        if needs[1]:
            grad_weight.addmm_(grad.t(), wide_hidden[chunk])
        if needs[2]:
            grad_bias += grad.sum(0)
    grad_hidden = grad_rows.to(hidden.dtype)
    if rows is not None and needs[0]:
        grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype).index_copy_(0, rows, grad_hidden)
    return (
        grad_hidden,
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
    )


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
    kept: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        hidden.new_empty(hidden.shape if needs[0] else (0,)),
        weight.new_empty(weight.shape if needs[1] else (0,)),
        weight.new_empty(weight.shape[0] if needs[2] else 0, dtype=bias_dtype),
    )


_FORWARD = define_op(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature,"
    " float? softcap, int ignore_index, bool with_entropy, bool with_mean, bool keep)"
    " -> (Tensor logprob, Tensor lse, Tensor entropy, Tensor mean_logit, Tensor kept)",
    cpu=_forward_cpu,
    kernel="linear_logprob.forward",
    fake=_forward_fake,
)
_BACKWARD = define_op(
    "linear_logprob_backward(Tensor? grad_logprob, Tensor? grad_lse, Tensor? grad_entropy,"
    " Tensor? grad_mean, Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor lse,"
    " Tensor entropy, Tensor kept, float temperature, float? softcap, int ignore_index, bool[3] needs)"
    " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    cpu=_backward_cpu,
    kernel="linear_logprob.backward",
    fake=_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, bias, ctx.temperature, ctx.softcap, ctx.ignore_index, *_ = inputs
    _, lse, entropy, _, kept = output
    ctx.save_for_backward(hidden, weight, targets, bias, lse, entropy, kept)
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grad_logprob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_mean: Tensor | None,
    _: None,
) -> tuple[Tensor | None, ...]:
    hidden, weight, targets, bias, lse, entropy, kept = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    grads = _BACKWARD(
        grad_logprob,
        grad_lse,
        grad_entropy,
        grad_mean,
        hidden,
        weight,
        targets,
        bias,
        lse,
        entropy,
        kept,
        ctx.temperature,
        ctx.softcap,
        ctx.ignore_index,
        needs,
    )
    grad_hidden, grad_weight, grad_bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    return grad_hidden, grad_weight, None, grad_bias, *[None] * 6


torch.library.register_autograd("pylm::linear_logprob", _backward, setup_context=_save)


def check_linear(op: str, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    """Raise InputError unless the arguments of a linear_* op fit each other."""
    check_float(op, hidden=hidden, weight=weight, bias=bias)
    check_device(op, hidden, weight=weight, targets=targets, bias=bias)
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise InputError(
            f"{op}: expected hidden (..., D) and weight (V, D), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.is_floating_point() or targets.shape != hidden.shape[:-1]:
        raise InputError(
            f"{op}: targets must be integers of shape {tuple(hidden.shape[:-1])}, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


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
    rows = hidden.reshape(-1, hidden.shape[-1])
    weight = weight.to(hidden.dtype)
    needs_grad = torch.is_grad_enabled() and (
        hidden.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    size_bytes = rows.shape[0] * weight.shape[0] * compute_dtype(hidden).itemsize
    keep = needs_grad and hidden.device.type == "cpu" and softcap is None and size_bytes <= _KEEP_BYTES
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
    logprob, lse, entropy, mean = (output.view(targets.shape) for output in outputs[:4])
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
        hidden: (..., D) final hidden states.
        weight: (V, D) output matrix; converted to the dtype of `hidden`.
        targets: (...) integers in [0, V), or `ignore_index`. Anything else is an error on the CPU and
            gives NaN on a GPU, which cannot be asked without waiting for it.
        bias: (V,) or None.
        temperature: divides the logits, after the soft cap; > 0.
        softcap: c of c tanh(logit / c), or None.
        ignore_index: rows with this target give 0 in all three results, no gradient, and cost nothing.

    Returns:
        LogProb(logprob, lse, entropy), each float32 (...).

    Raises:
        InputError: a shape, dtype, device, target, temperature or softcap does not fit.

    Example:
        >>> logprob, lse, entropy = linear_logprob(hidden_BTD, head_VD, targets_BT)
        >>> loss = -logprob.sum() / (targets_BT != -100).sum()
    """
    check_linear("linear_logprob", hidden, weight, targets, bias)
    if temperature <= 0.0:
        raise InputError(f"linear_logprob: temperature must be positive, got {temperature}")
    if softcap is not None and softcap <= 0.0:
        raise InputError(f"linear_logprob: softcap must be positive or None, got {softcap}")
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
