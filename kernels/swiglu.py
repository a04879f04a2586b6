"""Gated activations: y = a(gate) (up + offset), with a = SiLU or GELU in its tanh form or exactly.

    SiLU:       a(g) = g s,     a'(g) = s (1 + alpha g (1 - s)),  s = sigmoid(alpha g)
    GELU, tanh: a(g) = g s,     a'(g) = s (1 + 2 g u' (1 - s)),   s = sigmoid(2 u) = (1 + tanh u) / 2,
                                                                  u = sqrt(2 / pi) (g + 0.044715 g^3)
    GELU:       a(g) = g P(g),  a'(g) = P(g) + g p(g),            P, p: normal distribution and density

Where there is a limit, the gate is first cut from above and up on both sides; what is cut off has no
gradient. Shazeer, "GLU Variants Improve Transformer", 2020; alpha, offset and limit are gpt-oss's.

Shapes: N rows, F hidden dimension. Gate and up are two tensors, two halves of a row, or lie in turn
(interleaved). Where all tensors are contiguous they are one run of elements, and rows do not matter. Nothing
is kept for the backward pass but the inputs.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from typing import NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import (
    FUSED_MULTIPLY_ADD,
    Grid,
    Start,
    cdiv,
    next_power_of_2,
    remembered,
    rows_of,
    wide_dtype,
)
from pylm.kernels._math import exp, sigmoid, sigmoid_and_rest


class _Tile(NamedTuple):
    """What a program takes: columns at most, elements of the result in all; and how many warps share it."""

    columns: int
    elements: int
    num_warps: int


class _Run(NamedTuple):
    """What a program takes of a run of elements, and how many warps share it."""

    elements: int
    num_warps: int


# No element depends on another, so the result does not on these.
_TILE = _Tile(1024, 4096, 4)
_OTHER_TILES = _Tile(1024, 2048, 4), _Tile(512, 4096, 4), _Tile(1024, 4096, 8), _Tile(2048, 8192, 8)
# A run of few elements is cut into more programs, so that all multiprocessors have some.
_RUN, _SHORT_RUN, _SHORT = _Run(4096, 4), _Run(1024, 4), 1 << 20
_OTHER_RUNS = _Run(1024, 4), _Run(2048, 4), _Run(4096, 8), _Run(8192, 8)


@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr):
    """Return a(gate) and a'(gate)."""
    if ACTIVATION == "gelu":
        # 1 / sqrt(2) and 1 / sqrt(2 pi)
        share = 0.5 + 0.5 * tl.erf(0.7071067811865476 * gate)
        derivative = share + gate * 0.3989422804014327 * exp(-0.5 * gate * gate)
    elif ACTIVATION == "gelu_tanh":
        # 1.5957691216057308 = 2 sqrt(2 / pi)
        square = gate * gate
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
        share, rest = sigmoid_and_rest(1.5957691216057308 * gate * (1.0 + 0.044715 * square))
        # In this order nothing is infinite that is then multiplied by 0.
        derivative = share + gate * share * rest * slope
    else:
        scaled = gate if ALPHA == 1.0 else ALPHA * gate
        share = sigmoid(scaled)
        derivative = share * (1.0 + scaled * (1.0 - share))
    return gate * share, derivative


@triton.jit
def _tile(num_rows, dim, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr):
    """Return the rows (BLOCK_N, 1) of this program, those that are there, and its first column."""
    program = tl.program_id(0)
    num_column_tiles = tl.cdiv(dim, BLOCK_F)
    rows = (program // num_column_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows[:, None], (rows < num_rows)[:, None], (program % num_column_tiles) * BLOCK_F


@triton.jit
def _load_gate_up(
    gate_ptr,
    up_ptr,
    stride_gn,
    stride_un,
    rows,
    row_mask,
    first,
    dim,
    WIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Return gate and up (BLOCK_N, BLOCK_F)."""
    if INTERLEAVED:
        # Read as they lie and parted in registers: a load of every second element moves 2 bytes at a time.
        columns = 2 * first + tl.arange(0, 2 * BLOCK_F)[None, :]
        pairs = tl.load(gate_ptr + rows * stride_gn + columns, mask=row_mask & (columns < 2 * dim), other=0.0)
        gate, up = tl.split(tl.reshape(pairs, (BLOCK_N, BLOCK_F, 2)))
    else:
        columns = first + tl.arange(0, BLOCK_F)[None, :]
        mask = row_mask & (columns < dim)
        gate = tl.load(gate_ptr + rows * stride_gn + columns, mask=mask, other=0.0)
        up = tl.load(up_ptr + rows * stride_un + columns, mask=mask, other=0.0)
    return gate.to(WIDE), up.to(WIDE)


@triton.jit
def _cut(gate, up, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr):
    """Return the gate within the limit and the factor beside it."""
    if LIMIT is not None:
        limit = tl.full((1,), LIMIT, gate.dtype)
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return gate, up + UP_OFFSET if UP_OFFSET != 0.0 else up


@triton.jit
def _gated(
    gate, up, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr
):
    """Return y."""
    gate, factor = _cut(gate, up, LIMIT, UP_OFFSET)
    value, _ = _activate(gate, ACTIVATION, ALPHA)
    return value * factor


@triton.jit
def _gated_back(
    grad, gate, up,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr,
):  # fmt: skip
    """Return the gradients of gate and up."""
    cut_gate, factor = _cut(gate, up, LIMIT, UP_OFFSET)
    value, slope = _activate(cut_gate, ACTIVATION, ALPHA)
    grad_gate, grad_up = grad * factor * slope, grad * value
    if LIMIT is not None:
        grad_gate = tl.where(gate > LIMIT, 0.0, grad_gate)
        grad_up = tl.where(tl.abs(up) > LIMIT, 0.0, grad_up)
    return grad_gate, grad_up


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    num_rows,
    stride_gn,
    stride_un,
    dim,
    WIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    rows, row_mask, first = _tile(num_rows, dim, BLOCK_N, BLOCK_F)
    gate, up = _load_gate_up(
        gate_ptr,
        up_ptr,
        stride_gn,
        stride_un,
        rows,
        row_mask,
        first,
        dim,
        WIDE,
        INTERLEAVED,
        BLOCK_N,
        BLOCK_F,
    )
    y = _gated(gate, up, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)
    columns = first + tl.arange(0, BLOCK_F)[None, :]
    mask = row_mask & (columns < dim)
    tl.store(y_ptr + rows * dim + columns, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    num_rows,
    stride_yn,
    stride_gn,
    stride_un,
    stride_on,
    dim,
    WIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    rows, row_mask, first = _tile(num_rows, dim, BLOCK_N, BLOCK_F)
    columns = first + tl.arange(0, BLOCK_F)[None, :]
    mask = row_mask & (columns < dim)
    grad = tl.load(grad_ptr + rows * stride_yn + columns, mask=mask, other=0.0).to(WIDE)
    gate, up = _load_gate_up(
        gate_ptr,
        up_ptr,
        stride_gn,
        stride_un,
        rows,
        row_mask,
        first,
        dim,
        WIDE,
        INTERLEAVED,
        BLOCK_N,
        BLOCK_F,
    )
    grad_gate, grad_up = _gated_back(grad, gate, up, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)
    if INTERLEAVED:
        pair_columns = 2 * first + tl.arange(0, 2 * BLOCK_F)[None, :]
        pairs = tl.reshape(tl.join(grad_gate, grad_up), (BLOCK_N, 2 * BLOCK_F)).to(
            grad_gate_ptr.dtype.element_ty
        )
        pair_mask = row_mask & (pair_columns < 2 * dim)
        tl.store(grad_gate_ptr + rows * stride_on + pair_columns, pairs, mask=pair_mask)
    else:
        offsets = rows * stride_on + columns
        tl.store(grad_gate_ptr + offsets, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_up_ptr + offsets, grad_up.to(grad_up_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _run_forward(
    gate_ptr, up_ptr, y_ptr, offsets, mask,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr,
):  # fmt: skip
    gate, up = tl.load(gate_ptr + offsets, mask=mask).to(WIDE), tl.load(up_ptr + offsets, mask=mask).to(WIDE)
    y = _gated(gate, up, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def _run_forward_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    size,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    # Only the last program needs a mask, which would have all others load element by element. It takes a
    # little at a time, so that these loads do not take registers, which others would lack.
    if first + BLOCK <= size:
        offsets = first + tl.arange(0, BLOCK)
        _run_forward(gate_ptr, up_ptr, y_ptr, offsets, None, WIDE, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)
    else:
        for part in range(0, BLOCK, LAST):
            offsets = first + part + tl.arange(0, LAST)
            mask = offsets < size
            _run_forward(gate_ptr, up_ptr, y_ptr, offsets, mask, WIDE, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)


@triton.jit
def _run_backward(
    grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, offsets, mask,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr,
):  # fmt: skip
    grad = tl.load(grad_ptr + offsets, mask=mask).to(WIDE)
    gate, up = tl.load(gate_ptr + offsets, mask=mask).to(WIDE), tl.load(up_ptr + offsets, mask=mask).to(WIDE)
    grad_gate, grad_up = _gated_back(grad, gate, up, ACTIVATION, ALPHA, LIMIT, UP_OFFSET)
    tl.store(grad_gate_ptr + offsets, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_up_ptr + offsets, grad_up.to(grad_up_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def _run_backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    size,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first + BLOCK <= size:
        offsets = first + tl.arange(0, BLOCK)
        _run_backward(
            grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, offsets, None,
            WIDE, ACTIVATION, ALPHA, LIMIT, UP_OFFSET,
        )  # fmt: skip
    else:
        for part in range(0, BLOCK, LAST):
            offsets = first + part + tl.arange(0, LAST)
            _run_backward(
                grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, offsets, offsets < size,
                WIDE, ACTIVATION, ALPHA, LIMIT, UP_OFFSET,
            )  # fmt: skip


_Form: TypeAlias = tuple[
    bool, str, float, float | None, float
]  # interleaved, activation, alpha, limit, up offset


@remembered
def _start(
    backward: bool,
    dim: int,
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    form: _Form,
    tile: _Tile = _TILE,
) -> Start:
    """Return the start of one of both kernels, for tensors with these strides of rows and dtypes."""
    block_f = min(tile.columns, next_power_of_2(max(1, dim)))
    block_n = tile.elements // block_f if block_f > 64 else 64

    def others() -> dict[str, Start]:
        return {str(tuple(t)): _start(backward, dim, strides, dtypes, form, t) for t in _OTHER_TILES}

    return Start(
        _backward_kernel if backward else _forward_kernel,
        Grid(block_n, cdiv(dim, block_f)),
        (*strides, dim),
        (tl.float64 if dtypes[-2] == torch.float64 else tl.float32, *form, block_n, block_f),
        others=others if tile is _TILE else None,
        num_warps=tile.num_warps,
        **FUSED_MULTIPLY_ADD,
    )


@remembered
def _run_start(
    backward: bool, is_short: bool, dtypes: tuple[torch.dtype, ...], form: _Form, run: _Run | None = None
) -> Start:
    """Return the start of one of both kernels, for contiguous tensors of these dtypes."""
    chosen = (_SHORT_RUN if is_short else _RUN) if run is None else run

    def others() -> dict[str, Start]:
        return {
            f"{r.elements} elements, {r.num_warps} warps": _run_start(backward, is_short, dtypes, form, r)
            for r in _OTHER_RUNS
            if r != chosen
        }

    return Start(
        _run_backward_kernel if backward else _run_forward_kernel,
        Grid(chosen.elements),
        (),
        (
            tl.float64 if dtypes[-2] == torch.float64 else tl.float32,
            *form[1:],
            chosen.elements,
            32 * chosen.num_warps,
        ),
        others=others if run is None else None,
        num_warps=chosen.num_warps,
        **FUSED_MULTIPLY_ADD,
    )


def _refuse_keep(keep: bool) -> None:
    if keep:
        raise ValueError("swiglu: the kernel keeps nothing for the backward pass; pass keep=False on a GPU")


def _launch_forward(gate_rows: Tensor, up_rows: Tensor, y: Tensor, form: _Form) -> Tensor:
    """Write y (..., F); return the empty tensor that is kept for the backward pass."""
    if y.numel():
        strides = gate_rows.stride(0), up_rows.stride(0)
        dtypes = gate_rows.dtype, up_rows.dtype
        start = _start(False, y.shape[-1], strides, dtypes, form)
        num_rows = gate_rows.shape[0]
        start(num_rows, (gate_rows, up_rows, y), num_rows)
    return torch.empty((0, 0), dtype=wide_dtype(y), device=y.device)


def _launch_backward(
    grad_gate: Tensor, grad_up: Tensor, grad: Tensor, gate_rows: Tensor, up_rows: Tensor, form: _Form
) -> None:
    """Write both gradients; they share their row stride."""
    if grad.numel():
        grad_rows = rows_of(grad)
        num_rows, dim = grad_rows.shape
        strides = grad_rows.stride(0), gate_rows.stride(0), up_rows.stride(0), grad_gate.stride(0)
        dtypes = grad_rows.dtype, gate_rows.dtype, up_rows.dtype
        start = _start(True, dim, strides, dtypes, form)
        start(num_rows, (grad_rows, gate_rows, up_rows, grad_gate, grad_up), num_rows)


def forward(
    gate: Tensor, up: Tensor, activation: str, alpha: float, limit: float | None, up_offset: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return y like gate (..., F) and an empty tensor."""
    _refuse_keep(keep)
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    form = False, activation, alpha, limit, up_offset
    if not (gate.is_contiguous() and up.is_contiguous()):
        return y, _launch_forward(rows_of(gate), rows_of(up), y, form)
    size = y.numel()
    if size:
        _run_start(False, size <= _SHORT, (gate.dtype, up.dtype), form)(size, (gate, up, y), size)
    return y, torch.empty((0, 0), dtype=wide_dtype(y), device=y.device)


def backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    kept: Tensor,
    activation: str,
    alpha: float,
    limit: float | None,
    up_offset: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up, like them, (..., F)."""
    grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    grad_up = torch.empty_like(grad_gate)
    form = False, activation, alpha, limit, up_offset
    if not (grad.is_contiguous() and gate.is_contiguous() and up.is_contiguous()):
        _launch_backward(rows_of(grad_gate), rows_of(grad_up), grad, rows_of(gate), rows_of(up), form)
        return grad_gate, grad_up
    size = grad.numel()
    if size:
        start = _run_start(True, size <= _SHORT, (grad.dtype, gate.dtype, up.dtype), form)
        start(size, (grad, gate, up, grad_gate, grad_up), size)
    return grad_gate, grad_up


def _parts(gate_up_rows: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return gate and up of (N, 2 F); where they lie in turn, twice the whole, which the kernel parts."""
    if interleaved:
        return gate_up_rows, gate_up_rows
    gate, up = gate_up_rows.chunk(2, -1)
    return gate, up


def packed_forward(
    gate_up: Tensor,
    interleaved: bool,
    activation: str,
    alpha: float,
    limit: float | None,
    up_offset: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (..., F) of gate_up (..., 2 F) and an empty tensor."""
    _refuse_keep(keep)
    dim = gate_up.shape[-1] // 2
    y = torch.empty((*gate_up.shape[:-1], dim), dtype=gate_up.dtype, device=gate_up.device)
    form = interleaved, activation, alpha, limit, up_offset
    return y, _launch_forward(*_parts(rows_of(gate_up), interleaved), y, form)


def packed_backward(
    grad: Tensor,
    gate_up: Tensor,
    kept: Tensor,
    interleaved: bool,
    activation: str,
    alpha: float,
    limit: float | None,
    up_offset: float,
) -> Tensor:
    """Return the gradient of gate_up, like it, (..., 2 F)."""
    grad_gate_up = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    form = interleaved, activation, alpha, limit, up_offset
    outputs = _parts(rows_of(grad_gate_up), interleaved)
    _launch_backward(*outputs, grad, *_parts(rows_of(gate_up), interleaved), form)
    return grad_gate_up
