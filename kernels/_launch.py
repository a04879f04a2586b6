"""What every launcher shares: rows of any tensor, the current device, how many programs to start, and a start
that costs the host little the second time."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

# Programs per multiprocessor for kernels that walk over their rows and leave partial sums behind.
_PROGRAMS_PER_MULTIPROCESSOR = 2
# The interpreter has no multiprocessors; a few programs show that partial sums are added up.
_INTERPRETED_PROGRAMS = 3

# The compiler's default changes with its version; with it a product and a sum are rounded once.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}

# What is remembered of calls of different sizes; a model has few.
_REMEMBERED_SIZES = 1024
# Where a compiled kernel's `run` is known to take grid, stream, function, metadata, hooks, all parameters.
_KNOWN_TRITON = (3, 6), (3, 9)

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


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a function of sizes, strides, dtypes and options returns, for as many as a model has."""
    return lru_cache(maxsize=_REMEMBERED_SIZES)(function)


class _Runtime(NamedTuple):
    """What is asked of torch at each start."""

    device: Callable[[], int]
    stream: Callable[[int], int]
    has_one_device: bool


@lru_cache(maxsize=1)
def _runtime() -> _Runtime:
    active = driver.active
    device, stream = active.get_current_device, active.get_current_stream
    if device is torch.cuda.current_device:
        # The tensors are there, so CUDA has been started and need not be asked whether it has.
        device = torch._C._cuda_getDevice
    return _Runtime(device, stream, torch.cuda.device_count() <= 1)


class _Prepared(NamedTuple):
    """A kernel compiled for one alignment of its tensors, on one device."""

    run: Callable[..., None]
    function: int
    metadata: object
    compiled: object  # unloads the function when it goes


class Start:
    """A kernel with its grid and everything it is given but the tensors, to be started time and again.

    Triton binds the arguments of each start anew and makes a text of them to look the kernel up by, which
    takes nine of the eleven microseconds of a start (`docs/decisions.md`). Here sizes are fixed, so which
    compiled kernel is needed depends on the device and on whether addresses are multiples of 16 alone. The
    first start, those under Triton's interpreter, with hooks on launches, or with a Triton that is not known,
    go its way.

    A kernel's parameters must be its tensors, then other values, then constants, in this order. The caller
    vouches that tensors of one `Start` have one set of dtypes: it is remembered by them.
    """

    __slots__ = ("_grid", "_kernel", "_options", "_prepared", "_programs", "_rest")

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        values: tuple[Any, ...],
        constants: tuple[Any, ...],
        **options: Any,
    ) -> None:
        """Take the kernel, up to three numbers of programs, values and constants by their place, options."""
        self._kernel = kernel
        self._grid = grid
        self._programs = grid + (1,) * (3 - len(grid))
        self._rest = values + constants
        self._options = options
        self._prepared: dict[object, _Prepared] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """Start the kernel on the device of the first tensor, in torch's current stream there."""
        first = tensors[0]
        runtime = _runtime() if type(self._kernel) is JITFunction else None
        if runtime is None:
            self._launch(tensors)
            return
        device = runtime.device()
        if not runtime.has_one_device and first.is_cuda and first.get_device() != device:
            with torch.cuda.device(first.device):
                self(*tensors)
            return
        bits, addresses = 0, []
        for tensor in tensors:
            address = tensor.data_ptr()
            bits |= address
            addresses.append(address)
        key: object = device if not bits & 15 else (device, *[address & 15 == 0 for address in addresses])
        prepared = self._prepared.get(key)
        if prepared is None or not _is_unobserved(self._kernel):
            self._prepare(key, self._launch(tensors))
            return
        run, function, metadata, _ = prepared
        stream = runtime.stream(device)
        run(*self._programs, stream, function, metadata, None, None, None, *addresses, *self._rest)

    def _launch(self, tensors: tuple[Tensor, ...]) -> object:
        return self._kernel[self._grid](*tensors, *self._rest, **self._options)

    def _prepare(self, key: object, compiled: object) -> None:
        if not isinstance(compiled, CompiledKernel) or compiled.metadata.target.backend != "cuda":
            return
        if _is_known_triton() and _is_unobserved(self._kernel):
            run = compiled.run
            self._prepared[key] = _Prepared(run, compiled.function, compiled.packed_metadata, compiled)


@lru_cache(maxsize=1)
def _is_known_triton() -> bool:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return _KNOWN_TRITON[0] <= version <= _KNOWN_TRITON[1]


def _is_unobserved(kernel: Any) -> bool:
    """Return whether nobody has asked Triton to be told of launches or to compile for debugging."""
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return False
    return not kernel.pre_run_hooks and not runtime.debug and runtime.add_stages_inspection_hook is None


def rows_of(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D) with unit stride along D: a view where there is one, else a copy."""
    rows = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


class RowStrides(NamedTuple):
    """Rows (N, D) in memory: row n begins at (n // inner) * outer_stride + (n % inner) * inner_stride.

    In the tensor as it is or, where not `in_place`, in its contiguous copy.
    """

    in_place: bool
    outer_stride: int
    inner_stride: int


@remembered
def row_strides(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[int, list[RowStrides]]:
    """Return `inner` and, for tensors of one shape (..., D) with these strides, where their rows lie.

    They are read in place, with unit stride along D, where their leading dimensions have at most two strides,
    as the heads of queries within fused queries, keys and values.
    """
    dim, inner = shape[-1], 1
    leading: list[tuple[bool, list[tuple[int, int]]]] = []
    for stride in strides:
        dims = _leading_dims(shape, stride)
        in_place = len(dims) <= 2 and (stride[-1] == 1 or dim <= 1)
        if len(dims) == 2:
            in_place = in_place and inner in (1, dims[1][0])
        if not in_place:
            dims = []
        if len(dims) == 2:
            inner = dims[1][0]
        leading.append((in_place, dims))
    rows = []
    for in_place, dims in leading:
        if len(dims) == 2:
            rows.append(RowStrides(in_place, dims[0][1], dims[1][1]))
        else:
            stride_of_row = dims[0][1] if dims else dim
            rows.append(RowStrides(in_place, inner * stride_of_row, stride_of_row))
    return inner, rows


def _leading_dims(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return size and stride of the dimensions before the last, those put together that are one in memory.

    None where all are one with the last.
    """
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape[:-1], strides[:-1], strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return [] if len(dims) == 1 and dims[0][1] == shape[-1] else dims


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
