"""What every launcher shares: rows of any tensor, the current device, how many programs to start."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Programs per multiprocessor for kernels that walk over their rows and leave partial sums behind.
_PROGRAMS_PER_MULTIPROCESSOR = 4
# The interpreter has no multiprocessors; a few programs show that partial sums are added up.
_INTERPRETED_PROGRAMS = 3

# The compiler's default changes with its version; with it a product and a sum are rounded once.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}


def current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of `x` current, as a launch goes to the current one; nothing for the interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def rows_of(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D) with unit stride along D: a view where there is one, else a copy."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def num_programs(x: Tensor) -> int:
    """Return how many programs of a walking kernel fill the device of `x`."""
    if not x.is_cuda:
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(x.device).multi_processor_count


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that kernels compute in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
