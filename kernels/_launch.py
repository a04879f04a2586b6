"""What every launcher shares: rows of any tensor, the current device, how many programs to start."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Programs per multiprocessor for kernels that walk over their rows and leave partial sums behind.
_PROGRAMS_PER_MULTIPROCESSOR = 2
# The interpreter has no multiprocessors; a few programs show that partial sums are added up.
_INTERPRETED_PROGRAMS = 3

# The compiler's default changes with its version; with it a product and a sum are rounded once.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}

_NOTHING_TO_DO: AbstractContextManager[object] = nullcontext()


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up; triton's own takes the host five times as long."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n, which is positive."""
    return 1 << (n - 1).bit_length()


def current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of `x` current, as a launch goes to the current one; nothing for the interpreter."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return _NOTHING_TO_DO
    return torch.cuda.device(x.device)


def rows_of(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D) with unit stride along D: a view where there is one, else a copy."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


class Rows(NamedTuple):
    """Rows (N, D) in memory: row n begins at (n // inner) * outer_stride + (n % inner) * inner_stride."""

    data: Tensor
    outer_stride: int
    inner_stride: int


def strided_rows(*tensors: Tensor) -> tuple[int, list[Rows]]:
    """Return `inner`, and the rows of tensors of one shape (..., D), with unit stride along D.

    Tensors are read in place where their leading dimensions have at most two strides, as the heads of queries
    within fused queries, keys and values; else they are copied.
    """
    dim, inner = tensors[0].shape[-1], 1
    if all(x.is_contiguous() for x in tensors):
        return 1, [Rows(x, dim, dim) for x in tensors]
    leading: list[tuple[Tensor, list[tuple[int, int]]]] = []
    for x in tensors:
        dims = _leading_dims(x)
        if (
            len(dims) > 2
            or (len(dims) == 2 and inner not in (1, dims[1][0]))
            or (x.stride(-1) != 1 and dim > 1)
        ):
            x, dims = x.contiguous(), []
        if len(dims) == 2:
            inner = dims[1][0]
        leading.append((x, dims))
    rows = []
    for x, dims in leading:
        if len(dims) == 2:
            rows.append(Rows(x, dims[0][1], dims[1][1]))
        else:
            stride = dims[0][1] if dims else dim
            rows.append(Rows(x, inner * stride, stride))
    return inner, rows


def _leading_dims(x: Tensor) -> list[tuple[int, int]]:
    """Return size and stride of the dimensions before the last, those put together that are one in memory."""
    if x.is_contiguous():
        return []
    dims: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return dims


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_programs(x: Tensor) -> int:
    """Return how many programs of a walking kernel fill the device of `x`."""
    if not x.is_cuda:
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_MULTIPROCESSOR * _num_multiprocessors(x.device)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that kernels compute in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
