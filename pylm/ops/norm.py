"""Root mean square normalisation, with the residual addition before it fused in.

    y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset)        (Zhang and Sennrich, 2019)

Shapes: N rows (all leading dimensions), D model dimension.
"""

from typing import Any, overload

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    as_rows,
    check_device,
    check_float,
    check_optional_float,
    compute_dtype,
    define_op,
    is_finite,
    refuse_second_derivative,
    register_autograd,
)

_WEIGHT_NORM_BACKWARD = torch.ops.aten._weight_norm_interface_backward.default
_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default
# On the CPU the backward pass takes so many rows at once, since torch adds up one by one what the weight gets
# from them; of 16-bit tensors so many elements, in float32.
_CHUNK_ROWS, _CHUNK_ELEMENTS = 8192, 1 << 18


def _forward_cpu(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    # Views are read where they lie, heads of a fused projection too; torch's loops over a strided last
    # dimension round differently.
    wide = (x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()).to(compute_dtype(x))
    rstd = torch.empty((*x.shape[:-1], 1), dtype=wide.dtype)
    # Two passes over x and one over y; x.square().mean() would write and read a third tensor.
    torch.linalg.vector_norm(wide, 2, -1, keepdim=True, out=rstd)
    rstd.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = torch.mul(wide, rstd, out=torch.empty(x.shape, dtype=wide.dtype))
    if weight is not None:
        y *= _scale(weight, wide.dtype, weight_offset)
    return y.to(x.dtype), rstd.squeeze(-1)


def _scale(weight: Tensor, dtype: torch.dtype, weight_offset: float) -> Tensor:
    scale = weight.to(dtype).contiguous()
    return scale + weight_offset if weight_offset else scale


def _forward_fake(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=compute_dtype(x))


def _add_forward_cpu(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    added = (x + residual).contiguous()
    y, rstd = _forward_cpu(added, weight, eps, weight_offset)
    return y, added, rstd


def _add_forward_fake(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = _forward_fake(x, weight, eps, weight_offset)
    return y, x.new_empty(x.shape), rstd


def _backward_cpu(
    grad_y: Tensor,
    grad_added: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    needs_weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    wide, dim = rstd.dtype, x.shape[-1]
    like = x if weight is None else weight
    needs_weight_grad = needs_weight_grad and weight is not None
    if x.numel() == 0:
        return x.new_empty(x.shape), like.new_zeros(dim if needs_weight_grad else 0)
    rows, grad, rstd = as_rows(x), as_rows(grad_y), rstd.reshape(-1, 1)
    added = None if grad_added is None else as_rows(grad_added)
    scale = None if weight is None else _scale(weight, wide, weight_offset)
    num_rows = step = rows.shape[0]
    if x.dtype != wide and x.numel() > _CHUNK_ELEMENTS:
        step = max(1, _CHUNK_ELEMENTS // dim)
    if needs_weight_grad:
        step = min(step, _CHUNK_ROWS)
    if num_rows <= step:
        grad_x, grad_weight = _chunk_gradients(grad, rows, rstd, scale, needs_weight_grad, None)
        if added is not None:
            grad_x += added
        return grad_x.to(x.dtype).view(x.shape), grad_weight.to(like.dtype)
    grad_x, sums = x.new_empty(rows.shape), []
    for start in range(0, num_rows, step):
        chunk = slice(start, start + step)
        out = grad_x[chunk] if x.dtype == wide and scale is not None else None
        inputs = grad[chunk], rows[chunk], rstd[chunk], scale, needs_weight_grad
        result, part = _chunk_gradients(*inputs, out)
        if added is not None:
            result += added[chunk]
        if out is None:
            grad_x[chunk] = result
        sums.append(part)
    return grad_x.view(x.shape), torch.stack(sums).sum(0).to(like.dtype)


def _chunk_gradients(
    grad: Tensor,
    x: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    needs_weight_grad: bool,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (N, D) and of the weight, (D,) or empty, in the dtype of `rstd`.

    With a weight the first is written to `out` where that is given.
    """
    # With s = weight + offset, n = x rstd and means over D:
    #     grad_x = rstd (grad_y s - n mean(grad_y s n)),   grad_weight = sum over rows of grad_y n.
    dim, grad, x = x.shape[1], grad.to(rstd.dtype), x.to(rstd.dtype)
    if scale is None:
        # The backward of weight norm with gains sqrt(D), had the rows the norms sqrt(D) / rstd: one pass.
        gains = torch.full_like(rstd, dim**0.5)
        inputs = grad.contiguous(), x.contiguous(), gains, gains / rstd, 0
        return _WEIGHT_NORM_BACKWARD(*inputs)[0], rstd.new_empty(0)
    # The backward of layer norm, told that all means of x are 0, is this less rstd mean(grad_y s), in one
    # pass for both gradients. To add that back takes 0.6 of the time of composing the formula, and 0.75 of
    # scaling first and going on as above (AMD EPYC, one thread, 2026); each element has an error of up to a
    # rounding of the mean.
    needs = [True, needs_weight_grad, False]
    grad_x, grad_weight, _ = _LAYER_NORM_BACKWARD(
        grad, x, (dim,), torch.zeros_like(rstd), rstd, scale, None, needs
    )
    means = torch.mv(grad, scale).div_(dim).unsqueeze(1)
    grad_x = torch.add(grad_x, means.mul_(rstd), out=grad_x if out is None else out)
    return grad_x, grad_weight if needs_weight_grad else rstd.new_empty(0)


def _backward_fake(
    grad_y: Tensor,
    grad_added: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    needs_weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    grad_weight = torch.empty_like(weight) if weight is not None and needs_weight_grad else x.new_empty(0)
    return x.new_empty(x.shape), grad_weight


_FORWARD = define_op(
    "rms_norm(Tensor x, Tensor? weight, float eps, float weight_offset) -> (Tensor y, Tensor rstd)",
    cpu=_forward_cpu,
    kernel="rms_norm.forward",
    fake=_forward_fake,
)
_ADD_FORWARD = define_op(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps, float weight_offset)"
    " -> (Tensor y, Tensor added, Tensor rstd)",
    cpu=_add_forward_cpu,
    kernel="rms_norm.add_forward",
    fake=_add_forward_fake,
)
_BACKWARD = define_op(
    "rms_norm_backward(Tensor grad_y, Tensor? grad_added, Tensor x, Tensor? weight, Tensor rstd,"
    " float weight_offset, bool needs_weight_grad) -> (Tensor grad_x, Tensor grad_weight)",
    cpu=_backward_cpu,
    kernel="rms_norm.backward",
    fake=_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.weight_offset = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return None, None, None, None
    x, weight, rstd = ctx.saved_tensors
    needs_weight_grad = ctx.needs_input_grad[1]
    grad_x, grad_weight = _BACKWARD(grad_y, None, x, weight, rstd, ctx.weight_offset, needs_weight_grad)
    return grad_x, grad_weight if needs_weight_grad else None, None, None


def _add_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, ctx.weight_offset = inputs
    _, added, rstd = output
    ctx.save_for_backward(added, weight, rstd)
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)


def _add_backward(
    ctx: Any, grad_y: Tensor | None, grad_added: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return grad_added, grad_added, None, None, None
    added, weight, rstd = ctx.saved_tensors
    needs_weight_grad = ctx.needs_input_grad[2]
    grad_x, grad_weight = _BACKWARD(
        grad_y, grad_added, added, weight, rstd, ctx.weight_offset, needs_weight_grad
    )
    return grad_x, grad_x, grad_weight if needs_weight_grad else None, None, None


register_autograd("rms_norm", _backward, setup_context=_save)
register_autograd("add_rms_norm", _add_backward, setup_context=_add_save)
refuse_second_derivative("rms_norm_backward")


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    residual: None = None,
    weight_offset: float = 0.0,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    residual: Tensor,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last dimension by its root mean square.

    Computes `x / sqrt(mean(x^2) + eps) * (weight + weight_offset)` in float32 (float64 for float64
    input) and rounds once, to the dtype of `x`.

    Args:
        x: (..., D), any strides.
        weight: (D,) gain, or None for no gain.
        eps: added to the mean square; at least 0.
        residual: (..., D) like `x`; when given, `x + residual` is normalised and returned as well.
        weight_offset: added to the weight; 1.0 for models that store the gain as its distance from one.

    Returns:
        y (..., D); with `residual`, the pair (y, x + residual).

    Raises:
        InputError: a shape, dtype, device or option does not fit.

    Source:
        Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check_float("rms_norm", x=x)
    check_optional_float("rms_norm", weight=weight, residual=residual)
    check_device("rms_norm", x, weight=weight, residual=residual)
    if x.dim() == 0:
        raise InputError("rms_norm: x must have at least one dimension, got a scalar; pass (..., D)")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise InputError(
            f"rms_norm: weight must have shape ({x.shape[-1]},) like the last dimension of x, "
            f"got {tuple(weight.shape)}; pass one gain per feature"
        )
    if not (is_finite(eps) and eps >= 0.0):
        raise InputError(f"rms_norm: eps must not be negative, got {eps!r}; 1e-6 is usual")
    if not is_finite(weight_offset):
        raise InputError(f"rms_norm: weight_offset must be a finite number, got {weight_offset!r}; 0 is none")
    if residual is None:
        y: Tensor = _FORWARD(x, weight, eps, weight_offset)[0]
        return y
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise InputError(
            f"rms_norm: residual must be {x.dtype} {tuple(x.shape)} like x, "
            f"got {residual.dtype} {tuple(residual.shape)}; expand or convert it first"
        )
    y, added, _ = _ADD_FORWARD(x, residual, weight, eps, weight_offset)
    return y, added
