"""RMSNorm, with an optional residual addition before it.

    a = x + residual,   rstd = 1 / sqrt(mean(a^2) + eps),   n = a rstd,   s = weight + offset,   y = n s
    grad_a = rstd (grad_y s - n mean(grad_y s n)) + grad_added,   grad_weight = sum over rows of grad_y n

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. Shapes: N rows, D model dimension. A
program holds whole rows in registers; the backward kernel walks over a run of rows and leaves its part of
the weight gradient in float32, and the parts are added in a fixed order: no atomics, the same bits each time.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import (
    FUSED_MULTIPLY_ADD,
    Grid,
    RowStrides,
    Start,
    cdiv,
    next_power_of_2,
    num_programs,
    remembered,
    rows_in_place,
    wide_dtype,
)

_MAX_DIM = 65536
# Rows of the backward kernel that are on their way while one is worked on, and what they may take of a
# multiprocessor's shared memory; with less of it nothing is loaded ahead.
_STAGES = 3
# How far ahead is loaded changes no sum. Rows of a program and warps would, so they are not tuned, and of
# the forward kernel nothing is.
_OTHER_STAGES = 1, 2, 4
_STAGED_BYTES = 108 << 10


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    added_ptr,
    rstd_ptr,
    num_rows,
    stride_xo,
    stride_xi,
    stride_ro,
    stride_ri,
    inner,
    dim,
    eps: tl.float64,
    weight_offset: tl.float64,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    wide = rstd_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    row_mask = rows < num_rows
    mask = row_mask[:, None] & (columns < dim)[None, :]
    out_offsets = rows[:, None] * dim + columns[None, :]
    x_rows = (rows // inner) * stride_xo + (rows % inner) * stride_xi
    x = tl.load(x_ptr + x_rows[:, None] + columns[None, :], mask=mask, other=0.0).to(wide)
    if HAS_RESIDUAL:
        residual_rows = (rows // inner) * stride_ro + (rows % inner) * stride_ri
        residual_offsets = residual_rows[:, None] + columns[None, :]
        x += tl.load(residual_ptr + residual_offsets, mask=mask, other=0.0).to(wide)
        # What is normalised is the sum as it is handed on, rounded.
        added = x.to(added_ptr.dtype.element_ty)
        tl.store(added_ptr + out_offsets, added, mask=mask)
        x = added.to(wide)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / dim + tl.full((1,), eps, wide))
    tl.store(rstd_ptr + rows, rstd, mask=row_mask)
    y = x * rstd[:, None]
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=columns < dim, other=0.0).to(wide)
        y *= (weight + tl.full((1,), weight_offset, wide))[None, :]
    tl.store(y_ptr + out_offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def _backward_kernel(
    grad_y_ptr,
    grad_added_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    num_rows,
    rows_per_program,
    stride_go,
    stride_gi,
    stride_ao,
    stride_ai,
    stride_xo,
    stride_xi,
    inner,
    dim,
    weight_offset: tl.float64,
    HAS_GRAD_ADDED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    NEEDS_WEIGHT_GRAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    wide = rstd_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    column_mask = columns < dim
    scale = tl.full((BLOCK_D,), 1.0, wide)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(wide)
        scale = weight + tl.full((1,), weight_offset, wide)
    grad_weight = tl.zeros((BLOCK_N, BLOCK_D), wide)
    for start in tl.range(0, rows_per_program, BLOCK_N, num_stages=STAGES):
        rows = program * rows_per_program + start + tl.arange(0, BLOCK_N)
        row_mask = (rows < num_rows) & (start + tl.arange(0, BLOCK_N) < rows_per_program)
        mask = row_mask[:, None] & column_mask[None, :]
        outer_rows, inner_rows = rows // inner, rows % inner
        x_rows = outer_rows * stride_xo + inner_rows * stride_xi
        x = tl.load(x_ptr + x_rows[:, None] + columns[None, :], mask=mask, other=0.0).to(wide)
        grad_y_rows = outer_rows * stride_go + inner_rows * stride_gi
        grad_y = tl.load(grad_y_ptr + grad_y_rows[:, None] + columns[None, :], mask=mask, other=0.0).to(wide)
        rstd = tl.load(rstd_ptr + rows, mask=row_mask, other=0.0)[:, None]
        normed = x * rstd
        scaled = grad_y * scale[None, :]
        mean = tl.sum(scaled * normed, axis=1)[:, None] / dim
        grad_x = (scaled - normed * mean) * rstd
        if HAS_GRAD_ADDED:
            added_rows = outer_rows * stride_ao + inner_rows * stride_ai
            added_offsets = added_rows[:, None] + columns[None, :]
            grad_x += tl.load(grad_added_ptr + added_offsets, mask=mask, other=0.0).to(wide)
        out_offsets = rows[:, None] * dim + columns[None, :]
        tl.store(grad_x_ptr + out_offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        if NEEDS_WEIGHT_GRAD:
            grad_weight += grad_y * normed
    if NEEDS_WEIGHT_GRAD:
        tl.store(grad_weight_ptr + program * dim + columns, tl.sum(grad_weight, axis=0), mask=column_mask)


@triton.jit(do_not_specialize=["num_rows"])
def _sum_kernel(partial_ptr, sum_ptr, num_rows, dim, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_mask = columns < dim
    total = tl.zeros((BLOCK_N, BLOCK_D), partial_ptr.dtype.element_ty)
    for start in range(0, num_rows, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        mask = (rows < num_rows)[:, None] & column_mask[None, :]
        total += tl.load(partial_ptr + rows[:, None] * dim + columns[None, :], mask=mask, other=0.0)
    total_D = tl.sum(total, axis=0)
    tl.store(sum_ptr + columns, total_D.to(sum_ptr.dtype.element_ty), mask=column_mask)


@remembered
def _sum_start(dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> Start:
    return Start(_sum_kernel, Grid(columns=cdiv(dim, 32)), (dim,), (256, 32), num_warps=8)


def _sum_rows(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up (N, D) in a fixed order and round once."""
    num_rows, dim = partial.shape
    total = torch.empty(dim, dtype=dtype, device=partial.device)
    _sum_start(dim, (partial.dtype, dtype))(1, (partial, total), num_rows)
    return total


def _blocks(dim: int, tile: int, elements_a_warp: int) -> tuple[int, int, int]:
    """Return BLOCK_N, BLOCK_D and the number of warps for tiles of `tile` elements or one row."""
    if dim > _MAX_DIM:
        raise ValueError(f"rms_norm: the kernel takes up to {_MAX_DIM} features in a row, got {dim}")
    block_d = next_power_of_2(max(1, dim))
    block_n = max(1, min(64, tile // block_d))
    return block_n, block_d, min(16, max(4, block_n * block_d // elements_a_warp))


@remembered
def _forward_start(
    dim: int,
    inner: int,
    rows: tuple[RowStrides, ...],
    dtypes: tuple[torch.dtype | None, ...],
    eps: float,
    weight_offset: float,
) -> Start:
    """Return the start for x, residual, weight, y, added and rstd; `rows` are those of x and residual."""
    has_residual, has_weight = dtypes[1] is not None, dtypes[2] is not None
    block_n, block_d, num_warps = _blocks(dim, 8192, 512)
    places = [place for row in (rows[0], rows[-1]) for place in row[1:]]
    return Start(
        _forward_kernel,
        Grid(block_n),
        (*places, inner, dim, eps, weight_offset),
        (has_residual, has_weight, block_n, block_d),
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, dim = x.dtype, x.shape[-1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rstd = torch.empty(x.shape[:-1], dtype=wide_dtype(x), device=x.device)
    added = y if residual is None else torch.empty_like(y)
    num_rows = rstd.numel()
    if num_rows and dim:
        if weight is not None and not weight.is_contiguous():
            weight = weight.contiguous()
        inputs = (x,) if residual is None else (x, residual)
        dtypes = (
            dtype,
            None if residual is None else residual.dtype,
            None if weight is None else weight.dtype,
        )
        inner, rows, inputs = rows_in_place(inputs)
        start = _forward_start(dim, inner, rows, dtypes, eps, weight_offset)
        given_weight = inputs[0] if weight is None else weight
        start(num_rows, (inputs[0], inputs[-1], given_weight, y, added, rstd), num_rows)
    return y, added, rstd


def forward(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    """Return y like x (..., D) and rstd (...)."""
    y, _, rstd = _launch_forward(x, None, weight, eps, weight_offset)
    return y, rstd


def add_forward(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and x + residual like x (..., D), and rstd (...)."""
    return _launch_forward(x, residual, weight, eps, weight_offset)


class _Backward(NamedTuple):
    """The start of a backward pass, and of how many rows its programs take a multiple."""

    start: Start
    block_n: int


@remembered
def _backward_start(
    dim: int,
    inner: int,
    rows: tuple[RowStrides, ...],
    dtypes: tuple[torch.dtype | None, ...],
    weight_offset: float,
    needs_weight_grad: bool,
    stages: int = _STAGES,
) -> _Backward:
    """Return the start for the tensors of `backward`.

    Rows and dtypes are those of x, grad_y and, where there is one, grad_added; then the weight's dtype.
    """
    has_added, has_weight = dtypes[2] is not None, dtypes[3] is not None
    block_n, block_d, num_warps = _blocks(dim, 4096, 1024)
    assert dtypes[0] is not None
    row_bytes = (2 + has_added) * block_n * block_d * dtypes[0].itemsize
    places = [place for row in (rows[1], rows[2 if has_added else 1], rows[0]) for place in row[1:]]

    def others() -> dict[str, Start]:
        same = dim, inner, rows, dtypes, weight_offset, needs_weight_grad
        return {f"{stages} stages": _backward_start(*same, stages).start for stages in _OTHER_STAGES}

    start = Start(
        _backward_kernel,
        Grid(),
        (*places, inner, dim, weight_offset),
        (
            has_added,
            has_weight,
            needs_weight_grad,
            block_n,
            block_d,
            stages if stages * row_bytes <= _STAGED_BYTES else 1,
        ),
        others=others if stages == _STAGES else None,
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )
    return _Backward(start, block_n)


def backward(
    grad_y: Tensor,
    grad_added: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    needs_weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return grad_x like x (..., D) and grad_weight (D,), empty where it is not needed."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    needs_weight_grad = needs_weight_grad and weight is not None
    if not x.numel():
        return grad_x, torch.zeros_like(weight) if needs_weight_grad else x.new_empty(0)
    if weight is not None and not weight.is_contiguous():
        weight = weight.contiguous()
    inputs = (x, grad_y) if grad_added is None else (x, grad_y, grad_added)
    dtypes = (
        x.dtype,
        grad_y.dtype,
        None if grad_added is None else grad_added.dtype,
        None if weight is None else weight.dtype,
    )
    dim, num_rows = x.shape[-1], rstd.numel()
    inner, rows, inputs = rows_in_place(inputs)
    start, block_n = _backward_start(dim, inner, rows, dtypes, weight_offset, needs_weight_grad)
    rows_per_program = cdiv(cdiv(num_rows, num_programs(x)), block_n) * block_n
    programs = cdiv(num_rows, rows_per_program)
    size = (programs, dim) if needs_weight_grad else (0,)
    partial = torch.empty(size, dtype=rstd.dtype, device=x.device)
    given_weight = x if weight is None else weight
    tensors = inputs[1], inputs[-1], inputs[0], given_weight, rstd.contiguous(), grad_x, partial
    start(programs, tensors, num_rows, rows_per_program)
    if weight is None or not needs_weight_grad:
        return grad_x, torch.empty(0, dtype=x.dtype, device=x.device)
    return grad_x, _sum_rows(partial, weight.dtype)
