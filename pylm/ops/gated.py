"""Gated activations: swiglu (SiLU gate) and geglu (GELU gate).

    swiglu = g sigmoid(alpha g) (u + up_offset)        geglu = gelu(gate) * up        (Shazeer, 2020)

with g and u the gate and the up projection, cut to the limit where there is one.

Shapes: N rows (all leading dimensions), F hidden dimension.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    as_rows,
    check_device,
    check_flag,
    check_float,
    compute_dtype,
    define_op,
    is_finite,
    refuse_second_derivative,
    register_autograd,
    unit_rows,
)

# On the CPU the passes over a chunk of this many elements stay in the second-level cache.
_CHUNK_ELEMENTS = 1 << 17


class _Form(NamedTuple):
    """What is computed; the last arguments of every op here but `keep`, in this order."""

    activation: str  # "silu", "gelu_tanh" or "gelu"
    alpha: float
    limit: float | None
    up_offset: float


_FORM = "str activation, float alpha, float? limit, float up_offset"


def _chunk_rows(num_columns: int) -> int:
    return max(1, _CHUNK_ELEMENTS // max(1, num_columns))


def _cut(gate: Tensor, up: Tensor, form: _Form) -> tuple[Tensor, Tensor]:
    """Return the gate within the limit and the factor beside it."""
    if form.limit is not None:
        gate, up = gate.clamp(max=form.limit), up.clamp(-form.limit, form.limit)
    return gate, up + form.up_offset if form.up_offset else up


def _gelu_form(form: _Form) -> str:
    return "tanh" if form.activation == "gelu_tanh" else "none"


def _activate_into(out: Tensor, kept: Tensor | None, gate: Tensor, up: Tensor, form: _Form) -> None:
    """Write the result into `out`; for SiLU the sigmoid into `kept`, where there is one."""
    gate, factor = _cut(gate, up, form)
    if form.activation != "silu":
        out.copy_(F.gelu(gate, approximate=_gelu_form(form)))
    else:
        # aten.silu, one pass less, rounds otherwise: a model would answer differently without gradients.
        argument = gate if form.alpha == 1.0 else gate * form.alpha
        sigmoid = torch.sigmoid(argument, out=out if kept is None else kept)
        torch.mul(gate, sigmoid, out=out)
    out.mul_(factor)


def _forward_cpu(gate: Tensor, up: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    form, keep, wide = _Form(*options[:-1]), options[-1], compute_dtype(gate)
    gate_rows, up_rows = unit_rows(gate).to(wide), unit_rows(up).to(wide)
    y = torch.empty(gate_rows.shape, dtype=wide)
    kept = torch.empty(gate_rows.shape if keep else (0, 0), dtype=wide)
    step = _chunk_rows(gate_rows.shape[1])
    for start in range(0, gate_rows.shape[0], step):
        rows = slice(start, start + step)
        _activate_into(y[rows], kept[rows] if keep else None, gate_rows[rows], up_rows[rows], form)
    return y.to(gate.dtype).view(gate.shape), kept


def _forward_fake(gate: Tensor, up: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    kept_shape = (math.prod(gate.shape[:-1]), gate.shape[-1]) if options[-1] else (0, 0)
    return gate.new_empty(gate.shape), gate.new_empty(kept_shape, dtype=compute_dtype(gate))


def _differentiate_into(
    grad_gate: Tensor,
    grad_up: Tensor,
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    kept: Tensor | None,
    form: _Form,
) -> None:
    """Write the gradients for one chunk; the gate and up within the limit, up with its offset."""
    if form.activation != "silu":
        torch.mul(F.gelu(gate, approximate=_gelu_form(form)), grad, out=grad_up)
        gelu_backward = torch.ops.aten.gelu_backward.default
        grad_gate.copy_(gelu_backward(grad * up, gate, approximate=_gelu_form(form)))
        return
    sigmoid = torch.sigmoid(form.alpha * gate) if kept is None else kept
    silu = gate * sigmoid
    torch.mul(silu, grad, out=grad_up)
    # a' = s + alpha a (1 - s) = alpha a + s (1 - alpha a): the point s of the way from alpha a to 1.
    if form.alpha != 1.0:
        silu *= form.alpha
    silu.lerp_(silu.new_ones(()), sigmoid)
    torch.mul(grad, up, out=grad_gate).mul_(silu)


def _fill_gradients(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, form: _Form
) -> None:
    """Write both gradients, all tensors being (N, F)."""
    step = _chunk_rows(gate.shape[1])
    for start in range(0, gate.shape[0], step):
        rows = slice(start, start + step)
        cut = _cut(gate[rows], up[rows], form)
        kept_rows = kept[rows] if kept.numel() else None
        _differentiate_into(grad_gate[rows], grad_up[rows], grad[rows], *cut, kept_rows, form)
        if form.limit is not None:
            grad_gate[rows].masked_fill_(gate[rows] > form.limit, 0.0)
            grad_up[rows].masked_fill_(up[rows].abs() > form.limit, 0.0)


def _backward_cpu(grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, *form: Any) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(gate)
    grad_rows, gate_rows, up_rows = (unit_rows(tensor).to(wide) for tensor in (grad, gate, up))
    grad_gate, grad_up = (torch.empty(gate_rows.shape, dtype=wide) for _ in range(2))
    _fill_gradients(grad_gate, grad_up, grad_rows, gate_rows, up_rows, kept, _Form(*form))
    return grad_gate.to(gate.dtype).view(gate.shape), grad_up.to(up.dtype).view(up.shape)


def _backward_fake(grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, *form: Any) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _parts(gate_up: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return the gate and the up projection of (..., 2 F), views."""
    if interleaved:
        return gate_up[..., ::2], gate_up[..., 1::2]
    gate, up = gate_up.chunk(2, -1)
    return gate, up


def _packed_forward_cpu(gate_up: Tensor, interleaved: bool, *options: Any) -> tuple[Tensor, Tensor]:
    return _forward_cpu(*_parts(gate_up, interleaved), *options)


def _packed_forward_fake(gate_up: Tensor, interleaved: bool, *options: Any) -> tuple[Tensor, Tensor]:
    return _forward_fake(*_parts(gate_up, interleaved), *options)


def _packed_backward_cpu(
    grad: Tensor, gate_up: Tensor, kept: Tensor, interleaved: bool, *form: Any
) -> Tensor:
    wide = compute_dtype(gate_up)
    gate, up = _parts(unit_rows(gate_up).to(wide), interleaved)
    grad_gate_up = torch.empty(gate_up.shape, dtype=wide)
    grad_gate, grad_up = _parts(as_rows(grad_gate_up), interleaved)
    _fill_gradients(grad_gate, grad_up, unit_rows(grad).to(wide), gate, up, kept, _Form(*form))
    return grad_gate_up.to(gate_up.dtype)


def _packed_backward_fake(
    grad: Tensor, gate_up: Tensor, kept: Tensor, interleaved: bool, *form: Any
) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


_FORWARD = define_op(
    f"gated(Tensor gate, Tensor up, {_FORM}, bool keep) -> (Tensor y, Tensor kept)",
    cpu=_forward_cpu,
    kernel="swiglu.forward",
    fake=_forward_fake,
)
_BACKWARD = define_op(
    f"gated_backward(Tensor grad, Tensor gate, Tensor up, Tensor kept, {_FORM})"
    " -> (Tensor grad_gate, Tensor grad_up)",
    cpu=_backward_cpu,
    kernel="swiglu.backward",
    fake=_backward_fake,
)
_PACKED_FORWARD = define_op(
    f"gated_packed(Tensor gate_up, bool interleaved, {_FORM}, bool keep) -> (Tensor y, Tensor kept)",
    cpu=_packed_forward_cpu,
    kernel="swiglu.packed_forward",
    fake=_packed_forward_fake,
)
_PACKED_BACKWARD = define_op(
    f"gated_packed_backward(Tensor grad, Tensor gate_up, Tensor kept, bool interleaved, {_FORM}) -> Tensor",
    cpu=_packed_backward_cpu,
    kernel="swiglu.packed_backward",
    fake=_packed_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gate, up, *ctx.options, _ = inputs
    ctx.save_for_backward(gate, up, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (len(ctx.options) + 1)
    if grad is None:
        return None, None, *rest
    return *_BACKWARD(grad, *ctx.saved_tensors, *ctx.options), *rest


def _packed_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gate_up, *ctx.options, _ = inputs
    ctx.save_for_backward(gate_up, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _packed_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (len(ctx.options) + 1)
    if grad is None:
        return None, *rest
    return _PACKED_BACKWARD(grad, *ctx.saved_tensors, *ctx.options), *rest


register_autograd("gated", _backward, setup_context=_save)
register_autograd("gated_packed", _packed_backward, setup_context=_packed_save)
refuse_second_derivative("gated_backward")
refuse_second_derivative("gated_packed_backward")


def _keeps_sigmoid(activation: str, *inputs: Tensor) -> bool:
    # Reading the sigmoid back costs a CPU less than its exponential; a GPU has those for free.
    return (
        activation == "silu"
        and inputs[0].device.type == "cpu"
        and torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in inputs)
    )


def _gated(op: str, gate: Tensor, up: Tensor, form: _Form) -> Tensor:
    check_float(op, gate=gate, up=up)
    check_device(op, gate, up=up)
    if gate.dim() == 0:
        raise InputError(f"{op}: gate must have at least one dimension, got a scalar; pass (..., F)")
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise InputError(
            f"{op}: up must be {gate.dtype} {tuple(gate.shape)} like gate, "
            f"got {up.dtype} {tuple(up.shape)}; expand or convert it first"
        )
    y: Tensor = _FORWARD(gate, up, *form, _keeps_sigmoid(form.activation, gate, up))[0]
    return y


def _gated_packed(op: str, gate_up: Tensor, interleaved: bool, form: _Form) -> Tensor:
    check_float(op, gate_up=gate_up)
    check_flag(op, interleaved=interleaved)
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        order = "gate and up in turn" if interleaved else "gate, then up"
        raise InputError(
            f"{op}: the last dimension of gate_up must be even ({order}), got shape {tuple(gate_up.shape)}"
        )
    y: Tensor = _PACKED_FORWARD(gate_up, interleaved, *form, _keeps_sigmoid(form.activation, gate_up))[0]
    return y


def _silu_form(op: str, alpha: float, limit: float | None, up_offset: float) -> _Form:
    if limit is not None and not (is_finite(limit) and limit > 0.0):
        raise InputError(f"{op}: limit must be positive or None, got {limit!r}; pass a finite number")
    if not (is_finite(alpha) and is_finite(up_offset)):
        raise InputError(f"{op}: alpha and up_offset must be finite, got {alpha!r} and {up_offset!r}")
    return _Form("silu", float(alpha), None if limit is None else float(limit), float(up_offset))


def _gelu(op: str, approximate: str) -> _Form:
    if approximate not in ("tanh", "none"):
        raise InputError(f'{op}: approximate must be "tanh" or "none", got {approximate!r}')
    return _Form("gelu_tanh" if approximate == "tanh" else "gelu", 1.0, None, 0.0)


def swiglu(
    gate: Tensor, up: Tensor, *, alpha: float = 1.0, limit: float | None = None, up_offset: float = 0.0
) -> Tensor:
    """Multiply `up` by the SiLU of `gate`.

    Args:
        gate: (..., F), any strides.
        up: (..., F), shape and dtype of `gate`.
        alpha: factor of the gate inside the sigmoid.
        limit: cut the gate to at most this and `up` to at most this on both sides, first; what is cut off
            has no gradient. None for no limit.
        up_offset: added to `up`, behind the limit.

    Returns:
        gate * sigmoid(alpha * gate) * (up + up_offset), (..., F), contiguous, computed in float32 and
        rounded once.

    Raises:
        InputError: shapes, dtypes or devices differ, or an option is out of range.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020; gpt-oss, 2025, takes alpha 1.702, limit 7 and
        up_offset 1.
    """
    return _gated("swiglu", gate, up, _silu_form("swiglu", alpha, limit, up_offset))


def swiglu_packed(
    gate_up: Tensor,
    *,
    interleaved: bool = False,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> Tensor:
    """Compute swiglu of a tensor that holds both the gate and the up projection.

    Args:
        gate_up: (..., 2 * F): what one matrix product with both weights gives.
        interleaved: gate and up in turn, as gpt-oss has them, and not the gate in the first half.
        alpha: see `swiglu`.
        limit: see `swiglu`.
        up_offset: see `swiglu`.

    Returns:
        swiglu of gate_up[..., :F] and gate_up[..., F:], or of gate_up[..., ::2] and gate_up[..., 1::2];
        (..., F), contiguous.

    Raises:
        InputError: the last dimension is odd, the dtype is not floating, or an option is out of range.

    Example:
        >>> y = swiglu_packed(x, interleaved=True, alpha=1.702, limit=7.0, up_offset=1.0)  # gpt-oss
    """
    form = _silu_form("swiglu_packed", alpha, limit, up_offset)
    return _gated_packed("swiglu_packed", gate_up, interleaved, form)


def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["tanh", "none"] = "tanh") -> Tensor:
    """Multiply `up` by the GELU of `gate`.

    Args:
        gate: (..., F), any strides.
        up: (..., F), shape and dtype of `gate`.
        approximate: as in `torch.nn.functional.gelu`: "tanh" for
            0.5 gate (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))), which Gemma takes, "none" for
            0.5 gate (1 + erf(gate / sqrt(2))).

    Returns:
        gelu(gate) * up, (..., F), contiguous.

    Raises:
        InputError: shapes, dtypes or devices differ, or `approximate` is neither.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020; Hendrycks and Gimpel, "Gaussian Error
        Linear Units", 2016.
    """
    return _gated("geglu", gate, up, _gelu("geglu", approximate))


def geglu_packed(
    gate_up: Tensor, *, interleaved: bool = False, approximate: Literal["tanh", "none"] = "tanh"
) -> Tensor:
    """Compute geglu of a tensor that holds both the gate and the up projection.

    Args:
        gate_up: (..., 2 * F): what one matrix product with both weights gives.
        interleaved: gate and up in turn, and not the gate in the first half.
        approximate: see `geglu`.

    Returns:
        geglu of both parts, (..., F), contiguous.

    Raises:
        InputError: the last dimension is odd, the dtype is not floating, or `approximate` is neither.
    """
    return _gated_packed("geglu_packed", gate_up, interleaved, _gelu("geglu_packed", approximate))
