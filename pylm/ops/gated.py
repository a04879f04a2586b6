"""Gated activations: swiglu (SiLU gate) and geglu (tanh-approximated GELU gate).

    swiglu = silu(gate) * up        geglu = gelu_tanh(gate) * up        (Shazeer, 2020)

Shapes: N rows (all leading dimensions), F hidden dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_device, check_float, compute_dtype, define_op

_ACTIVATIONS = ("silu", "gelu_tanh")


def _activate(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def _activate_backward(grad: Tensor, gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        silu_grad: Tensor = torch.ops.aten.silu_backward.default(grad, gate)
        return silu_grad
    gelu_grad: Tensor = torch.ops.aten.gelu_backward.default(grad, gate, approximate="tanh")
    return gelu_grad


def _forward_cpu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    wide = compute_dtype(gate)
    return _activate(gate.to(wide), activation).mul_(up).to(gate.dtype).contiguous()


def _forward_fake(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return gate.new_empty(gate.shape)


def _backward_cpu(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(gate)
    wide_grad, wide_gate = grad.to(wide), gate.to(wide)
    grad_gate = _activate_backward(wide_grad * up, wide_gate, activation)
    grad_up = _activate(wide_gate, activation).mul_(wide_grad)
    return grad_gate.to(gate.dtype).contiguous(), grad_up.to(up.dtype).contiguous()


def _backward_fake(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _packed_forward_cpu(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return _forward_cpu(gate, up, activation)


def _packed_forward_fake(gate_up: Tensor, activation: str) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _packed_backward_cpu(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return torch.cat(_backward_cpu(grad, gate, up, activation), -1)


def _packed_backward_fake(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


_FORWARD = define_op(
    "gated(Tensor gate, Tensor up, str activation) -> Tensor",
    cpu=_forward_cpu,
    kernel="swiglu.forward",
    fake=_forward_fake,
)
_BACKWARD = define_op(
    "gated_backward(Tensor grad, Tensor gate, Tensor up, str activation)"
    " -> (Tensor grad_gate, Tensor grad_up)",
    cpu=_backward_cpu,
    kernel="swiglu.backward",
    fake=_backward_fake,
)
_PACKED_FORWARD = define_op(
    "gated_packed(Tensor gate_up, str activation) -> Tensor",
    cpu=_packed_forward_cpu,
    kernel="swiglu.packed_forward",
    fake=_packed_forward_fake,
)
_PACKED_BACKWARD = define_op(
    "gated_packed_backward(Tensor grad, Tensor gate_up, str activation) -> Tensor",
    cpu=_packed_backward_cpu,
    kernel="swiglu.packed_backward",
    fake=_packed_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_gate, grad_up = _BACKWARD(grad, *ctx.saved_tensors, ctx.activation)
    return grad_gate, grad_up, None


def _packed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _PACKED_BACKWARD(grad, *ctx.saved_tensors, ctx.activation), None


torch.library.register_autograd("pylm::gated", _backward, setup_context=_save)
torch.library.register_autograd("pylm::gated_packed", _packed_backward, setup_context=_save)


def _gated(op: str, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    check_float(op, gate=gate, up=up)
    check_device(op, gate, up=up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise InputError(
            f"{op}: up must be {gate.dtype} {tuple(gate.shape)} like gate, "
            f"got {up.dtype} {tuple(up.shape)}; expand or convert it first"
        )
    y: Tensor = _FORWARD(gate, up, activation)
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
    y: Tensor = _PACKED_FORWARD(gate_up, "silu")
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
