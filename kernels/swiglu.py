"""Gated activations: y = a(gate) up, with a = SiLU or the tanh form of GELU.

    SiLU:  a(g) = g s(g),    a'(g) = s(g) (1 + g (1 - s(g)))                          s: logistic function
    GELU:  a(g) = g s(2 u),  a'(g) = s(2 u) (1 + 2 g u' (1 - s(2 u))),  u = sqrt(2 / pi) (g + 0.044715 g^3)

since (1 + tanh u) / 2 = s(2 u). Shazeer, "GLU Variants Improve Transformer", 2020. Shapes: N rows, F hidden
dimension. Nothing is kept for the backward pass but the inputs.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import FUSED_MULTIPLY_ADD, current_device, rows_of

_TILE_ELEMENTS = 4096
_MAX_BLOCK_F = 1024


@triton.jit
def _activate(gate, USES_GELU: tl.constexpr):
    """Return a(gate) and a'(gate)."""
    slope = 1.0
    share = tl.sigmoid(gate)
    if USES_GELU:
        # 1.5957691216057308 = 2 sqrt(2 / pi)
        square = gate * gate
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
        share = tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * square))
    return gate * share, share * (1.0 + gate * slope * (1.0 - share))


@triton.jit
def _tile(num_rows, dim, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr):
    """Return the rows (BLOCK_N, 1), the columns (1, BLOCK_F) and the mask of this program."""
    program = tl.program_id(0)
    num_column_tiles = tl.cdiv(dim, BLOCK_F)
    rows = (program // num_column_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (program % num_column_tiles) * BLOCK_F + tl.arange(0, BLOCK_F)
    return rows[:, None], columns[None, :], (rows < num_rows)[:, None] & (columns < dim)[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    stride_gn,
    stride_un,
    num_rows,
    dim,
    WIDE: tl.constexpr,
    USES_GELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    rows, columns, mask = _tile(num_rows, dim, BLOCK_N, BLOCK_F)
    gate = tl.load(gate_ptr + rows * stride_gn + columns, mask=mask, other=0.0).to(WIDE)
    up = tl.load(up_ptr + rows * stride_un + columns, mask=mask, other=0.0).to(WIDE)
    value, _ = _activate(gate, USES_GELU)
    tl.store(y_ptr + rows * dim + columns, (value * up).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    stride_yn,
    stride_gn,
    stride_un,
    stride_on,
    num_rows,
    dim,
    WIDE: tl.constexpr,
    USES_GELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    rows, columns, mask = _tile(num_rows, dim, BLOCK_N, BLOCK_F)
    grad = tl.load(grad_ptr + rows * stride_yn + columns, mask=mask, other=0.0).to(WIDE)
    gate = tl.load(gate_ptr + rows * stride_gn + columns, mask=mask, other=0.0).to(WIDE)
    up = tl.load(up_ptr + rows * stride_un + columns, mask=mask, other=0.0).to(WIDE)
    value, slope = _activate(gate, USES_GELU)
    offsets = rows * stride_on + columns
    tl.store(grad_gate_ptr + offsets, (grad * up * slope).to(grad_gate_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_up_ptr + offsets, (grad * value).to(grad_up_ptr.dtype.element_ty), mask=mask)


def _options(gate: Tensor, activation: str) -> dict[str, Any]:
    block_f = min(_MAX_BLOCK_F, triton.next_power_of_2(max(1, gate.shape[-1])))
    return {
        "WIDE": tl.float64 if gate.dtype == torch.float64 else tl.float32,
        "USES_GELU": activation == "gelu_tanh",
        "BLOCK_N": _TILE_ELEMENTS // block_f if block_f > 64 else 64,
        "BLOCK_F": block_f,
        **FUSED_MULTIPLY_ADD,
    }


def _launch_backward(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate: Tensor, up: Tensor, activation: str
) -> None:
    """Write both gradients; they share their row stride."""
    grad_rows, gate_rows, up_rows = rows_of(grad), rows_of(gate), rows_of(up)
    num_rows, dim = gate_rows.shape
    options = _options(gate, activation)
    if gate.numel():
        with current_device(gate):
            _backward_kernel[_grid(num_rows, dim, options)](
                grad_rows,
                gate_rows,
                up_rows,
                grad_gate,
                grad_up,
                grad_rows.stride(0),
                gate_rows.stride(0),
                up_rows.stride(0),
                grad_gate.stride(0),
                num_rows,
                dim,
                **options,
            )


def _grid(num_rows: int, dim: int, options: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(num_rows, options["BLOCK_N"]) * triton.cdiv(dim, options["BLOCK_F"]),)


def _refuse_keep(keep: bool) -> None:
    if keep:
        raise ValueError("swiglu: the kernel keeps nothing for the backward pass; pass keep=False on a GPU")


def forward(gate: Tensor, up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y like gate (..., F) and an empty tensor."""
    _refuse_keep(keep)
    gate_rows, up_rows = rows_of(gate), rows_of(up)
    num_rows, dim = gate_rows.shape
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    options = _options(gate, activation)
    if gate.numel():
        with current_device(gate):
            _forward_kernel[_grid(num_rows, dim, options)](
                gate_rows, up_rows, y, gate_rows.stride(0), up_rows.stride(0), num_rows, dim, **options
            )
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return y, torch.empty((0, 0), dtype=wide, device=gate.device)


def backward(grad: Tensor, gate: Tensor, up: Tensor, kept: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up, like them, (..., F)."""
    grad_gate, grad_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    _launch_backward(rows_of(grad_gate), rows_of(grad_up), grad, gate, up, activation)
    return grad_gate, grad_up


def packed_forward(gate_up: Tensor, activation: str, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y (..., F) of gate_up (..., 2 F) and an empty tensor."""
    gate, up = gate_up.chunk(2, -1)
    return forward(gate, up, activation, keep)


def packed_backward(grad: Tensor, gate_up: Tensor, kept: Tensor, activation: str) -> Tensor:
    """Return the gradient of gate_up, like it, (..., 2 F)."""
    gate, up = gate_up.chunk(2, -1)
    grad_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    grad_gate, grad_up = rows_of(grad_gate_up).chunk(2, -1)
    _launch_backward(grad_gate, grad_up, grad, gate, up, activation)
    return grad_gate_up
