"""Gated activations: swiglu (SiLU gate) and geglu (tanh-approximated GELU gate).

    swiglu = silu(gate) * up        geglu = gelu_tanh(gate) * up        (Shazeer, 2020)

Shapes: N rows (all leading dimensions), F hidden dimension.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    LIBRARY,
    as_rows,
    check_device,
    check_float,
    compute_dtype,
    define_op,
    refuse_second_derivative,
    unit_rows,
)

# On the CPU the passes over a chunk of this many elements stay in the second-level cache.
_CHUNK_ELEMENTS = 1 << 17


def _chunk_rows(num_columns: int) -> int:
    return max(1, _CHUNK_ELEMENTS // max(1, num_columns))


def _activate_into(out: Tensor, kept: Tensor | None, gate: Tensor, up: Tensor, activation: str) -> None:
    """Write activation(gate) * up into `out`; for SiLU the sigmoid into `kept`, where there is one."""
    if activation != "silu":
        out.copy_(F.gelu(gate, approximate="tanh"))
    else:
        # aten.silu, one pass less, rounds otherwise: a model would answer differently without gradients.
        sigmoid = torch.sigmoid(gate, out=out if kept is None else kept)
        torch.mul(gate, sigmoid, out=out)
    out.mul_(up)


def _forward_cpu(gate: Tensor, up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(gate)
    gate_rows, up_rows = unit_rows(gate).to(wide), unit_rows(up).to(wide)
    y = torch.empty(gate_rows.shape, dtype=wide)
    kept = torch.empty(gate_rows.shape if keep else (0, 0), dtype=wide)
    step = _chunk_rows(gate_rows.shape[1])
    for start in range(0, gate_rows.shape[0], step):
        rows = slice(start, start + step)
        _activate_into(y[rows], kept[rows] if keep else None, gate_rows[rows], up_rows[rows], activation)
    return y.to(gate.dtype).view(gate.shape), kept


def _forward_fake(gate: Tensor, up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    kept_shape = (math.prod(gate.shape[:-1]), gate.shape[-1]) if keep else (0, 0)
    return gate.new_empty(gate.shape), gate.new_empty(kept_shape, dtype=compute_dtype(gate))


def _differentiate_into(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor | None
) -> None:
    """Write the gradients of silu(gate) * up for one chunk."""
    sigmoid = torch.sigmoid(gate) if kept is None else kept
    silu = gate * sigmoid
    torch.mul(silu, grad, out=grad_up)
    # silu' = s + silu (1 - s) = silu + s (1 - silu): the point s of the way from silu to 1.
    silu.lerp_(silu.new_ones(()), sigmoid)
    torch.mul(grad, up, out=grad_gate).mul_(silu)


def _differentiate_gelu_into(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate: Tensor, up: Tensor
) -> None:
    torch.mul(F.gelu(gate, approximate="tanh"), grad, out=grad_up)
    grad_gate.copy_(torch.ops.aten.gelu_backward.default(grad * up, gate, approximate="tanh"))


def _fill_gradients(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, activation: str
) -> None:
    """Write both gradients, all tensors being (N, F)."""
    step = _chunk_rows(gate.shape[1])
    for start in range(0, gate.shape[0], step):
        rows = slice(start, start + step)
        tensors = grad_gate[rows], grad_up[rows], grad[rows], gate[rows], up[rows]
        if activation == "silu":
            _differentiate_into(*tensors, kept[rows] if kept.numel() else None)
        else:
            _differentiate_gelu_into(*tensors)


def _backward_cpu(
    grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(gate)
    grad_rows, gate_rows, up_rows = (unit_rows(tensor).to(wide) for tensor in (grad, gate, up))
    grad_gate, grad_up = (torch.empty(gate_rows.shape, dtype=wide) for _ in range(2))
    _fill_gradients(grad_gate, grad_up, grad_rows, gate_rows, up_rows, kept, activation)
    return grad_gate.to(gate.dtype).view(gate.shape), grad_up.to(up.dtype).view(up.shape)


def _backward_fake(
    grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _packed_forward_cpu(gate_up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, -1)
    return _forward_cpu(gate, up, activation, keep)


def _packed_forward_fake(gate_up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, -1)
    return _forward_fake(gate, up, activation, keep)


def _packed_backward_cpu(grad: Tensor, gate_up: Tensor, kept: Tensor, activation: str) -> Tensor:
    wide = compute_dtype(gate_up)
    gate, up = unit_rows(gate_up).to(wide).chunk(2, -1)
    grad_gate_up = torch.empty(gate_up.shape, dtype=wide)
    grad_gate, grad_up = as_rows(grad_gate_up).chunk(2, -1)
    _fill_gradients(grad_gate, grad_up, unit_rows(grad).to(wide), gate, up, kept, activation)
    return grad_gate_up.to(gate_up.dtype)


def _packed_backward_fake(grad: Tensor, gate_up: Tensor, kept: Tensor, activation: str) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


_FORWARD = define_op(
    "gated(Tensor gate, Tensor up, str activation, bool keep) -> (Tensor y, Tensor kept)",
    cpu=_forward_cpu,
    kernel="swiglu.forward",
    fake=_forward_fake,
)
_BACKWARD = define_op(
    "gated_backward(Tensor grad, Tensor gate, Tensor up, Tensor kept, str activation)"
    " -> (Tensor grad_gate, Tensor grad_up)",
    cpu=_backward_cpu,
    kernel="swiglu.backward",
    fake=_backward_fake,
)
_PACKED_FORWARD = define_op(
    "gated_packed(Tensor gate_up, str activation, bool keep) -> (Tensor y, Tensor kept)",
    cpu=_packed_forward_cpu,
    kernel="swiglu.packed_forward",
    fake=_packed_forward_fake,
)
_PACKED_BACKWARD = define_op(
    "gated_packed_backward(Tensor grad, Tensor gate_up, Tensor kept, str activation) -> Tensor",
    cpu=_packed_backward_cpu,
    kernel="swiglu.packed_backward",
    fake=_packed_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    grad_gate, grad_up = _BACKWARD(grad, *ctx.saved_tensors, ctx.activation)
    return grad_gate, grad_up, None, None


def _packed_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    return _PACKED_BACKWARD(grad, *ctx.saved_tensors, ctx.activation), None, None


torch.library.register_autograd("pylm::gated", _backward, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("pylm::gated_packed", _packed_backward, setup_context=_save, lib=LIBRARY)
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


def _gated(op: str, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    check_float(op, gate=gate, up=up)
    check_device(op, gate, up=up)
    if gate.dim() == 0:
        raise InputError(f"{op}: gate must have at least one dimension, got a scalar; pass (..., F)")
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise InputError(
            f"{op}: up must be {gate.dtype} {tuple(gate.shape)} like gate, "
            f"got {up.dtype} {tuple(up.shape)}; expand or convert it first"
        )
    y: Tensor = _FORWARD(gate, up, activation, _keeps_sigmoid(activation, gate, up))[0]
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply `up` by the SiLU of `gate`.

    Args:
        gate: (..., F), any strides.
        up: (..., F), shape and dtype of `gate`.

    Returns:
        silu(gate) * up, (..., F), contiguous, computed in float32 and rounded once.

    Raises:
        InputError: shapes, dtypes or devices differ.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    return _gated("swiglu", gate, up, "silu")


def swiglu_packed(gate_up: Tensor) -> Tensor:
    """Compute swiglu of a tensor that holds the gate in its first half and the up projection after it.

    Args:
        gate_up: (..., 2 * F): what one matrix product with both weights gives.

    Returns:
        silu(gate_up[..., :F]) * gate_up[..., F:], (..., F), contiguous.

    Raises:
        InputError: the last dimension is odd, or the dtype is not floating.
    """
    check_float("swiglu_packed", gate_up=gate_up)
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise InputError(
            f"swiglu_packed: the last dimension of gate_up must be even (gate, then up), "
            f"got shape {tuple(gate_up.shape)}"
        )
    y: Tensor = _PACKED_FORWARD(gate_up, "silu", _keeps_sigmoid("silu", gate_up))[0]
    return y


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply `up` by the GELU of `gate` in its tanh form.

    Args:
        gate: (..., F), any strides.
        up: (..., F), shape and dtype of `gate`.

    Returns:
        0.5 gate (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) * up, (..., F), contiguous.

    Raises:
        InputError: shapes, dtypes or devices differ.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020; Hendrycks and Gimpel, "Gaussian Error
        Linear Units", 2016.
    """
    return _gated("geglu", gate, up, "gelu_tanh")
