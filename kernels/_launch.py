"""What every launcher shares: rows of any tensor, the current device, how many programs to start, and a start
that costs the host little the second time."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver
from triton.tools.tensor_descriptor import TensorDescriptor

from pylm.kernels import _autotune

# Programs per multiprocessor for kernels that walk over their rows and leave partial sums behind.
_PROGRAMS_PER_MULTIPROCESSOR = 2
# The interpreter has no multiprocessors; a few programs show that partial sums are added up.
_INTERPRETED_PROGRAMS = 3

# The compiler's default changes with its version; with it a product and a sum are rounded once.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}

# What is remembered of calls of different sizes, other than numbers of rows; a model has few.
_REMEMBERED_SIZES = 1024
# Where a compiled kernel's `run` is known to take grid, stream, function, metadata, hooks, all parameters.
_KNOWN_TRITON = (3, 6), (3, 9)
_MAX_INT32 = 2**31 - 1


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up; triton's own takes the host five times as long."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n, which is positive."""
    return 1 << (n - 1).bit_length()


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


class Grid(NamedTuple):
    """How many programs a number of rows takes: rows / a_program, rounded up, times columns, at most `most`.

    As many again for each of `layers`, the second axis of the grid.
    """

    a_program: int = 1
    columns: int = 1
    most: int = 0  # 0 is no bound
    layers: int = 1

    def programs(self, num_rows: int) -> int:
        """Return the programs on the first axis."""
        programs = -(-num_rows // self.a_program) * self.columns
        return self.most if 0 < self.most < programs else programs


class Start:
    """A kernel with its grid and all it is given but tensors and lengths, to be started time and again.

    Triton binds the arguments of each start anew and makes a text of them to look the kernel up by, which
    takes nine of the eleven microseconds of a start (`docs/decisions.md`). Which compiled kernel is needed
    depends here on the device, on whether addresses are multiples of 16, and on whether lengths fit into 32
    bits; everything else is fixed. What is fixed falls into classes, as for Triton: starts with other strides
    of the same class share their compiled kernels. The first start of a class, those under Triton's
    interpreter, with hooks on launches, or with a Triton that is not known, go Triton's way.

    A kernel's parameters must be its tensors, then lengths, which Triton does not specialize, then other
    values, then constants, in this order. The caller vouches that tensors of one `Start` have one set of
    dtypes, and that the same ones are described: it is remembered by them.
    """

    __slots__ = (
        *("_grid", "_is_described", "_is_jit", "_kernel", "_options", "_prepared", "_rest", "_values"),
        *("_fastest", "others"),
    )

    def __init__(
        self,
        kernel: Any,
        grid: Grid,
        values: tuple[Any, ...],
        constants: tuple[Any, ...],
        *,
        others: Callable[[], dict[str, "Start"]] | None = None,
        **options: Any,
    ) -> None:
        """Take the kernel, its grid, values and constants by their place, and Triton's options.

        `others` are the same work in other configurations, with the same bits, by names that tell them
        apart; None where there are none. What is written must not be read: they are timed on the tensors.
        """
        self._kernel = kernel
        self._is_jit = type(kernel) is JITFunction
        self._grid = grid
        self._values = values
        self._rest = values + constants
        self._options = options
        self._is_described = False
        self._prepared: dict[object, _Prepared] | None = None
        self.others = others
        self._fastest: dict[tuple[torch.device, int, int], Start] = {}

    def __call__(self, num_rows: int, tensors: tuple[Any, ...], *lengths: float) -> None:
        """Start the kernel for a number of rows, on the device of the first tensor, in torch's stream there.

        Tensors may be `TensorDescriptor`s.
        """
        if self.others is not None and _autotune.STATE.is_used:
            start = self._find_fastest(self.others, num_rows, tensors, lengths)
            if start is not self:
                start._start(num_rows, tensors, *lengths)
                return
        self._start(num_rows, tensors, *lengths)

    def _start(self, num_rows: int, tensors: tuple[Any, ...], *lengths: float) -> None:
        if not self._is_jit:
            self._launch(num_rows, tensors, lengths)
            return
        runtime = _runtime()
        device = runtime.device()
        if not runtime.has_one_device:
            first = tensors[0] if isinstance(tensors[0], Tensor) else tensors[0].base
            if first.is_cuda and first.get_device() != device:
                with torch.cuda.device(first.device):
                    self._start(num_rows, tensors, *lengths)
                return
        kernels = self._prepared
        if kernels is None:
            kernels = self._find_kernels(tensors)
        bits, given = 0, []
        for tensor in tensors:
            if self._is_described and type(tensor) is TensorDescriptor:
                given.append(tensor)  # always at a multiple of 16
                continue
            address = tensor.data_ptr()
            bits |= address
            given.append(address)
        key: object = device
        if bits & 15:
            key = device, *[type(address) is not int or address & 15 == 0 for address in given]
        if lengths and max(lengths) > _MAX_INT32:
            key = key, *[length > _MAX_INT32 for length in lengths]
        prepared = kernels.get(key)
        if prepared is None or not _is_unobserved(self._kernel):
            self._prepare(key, self._launch(num_rows, tensors, lengths))
            return
        run, function, metadata, _ = prepared
        programs, layers = self._grid.programs(num_rows), self._grid.layers
        stream = runtime.stream(device)
        run(programs, layers, 1, stream, function, metadata, None, None, None, *given, *lengths, *self._rest)

    def _find_fastest(
        self,
        others: Callable[[], dict[str, "Start"]],
        num_rows: int,
        tensors: tuple[Any, ...],
        lengths: tuple[float, ...],
    ) -> "Start":
        """Return what was chosen for about as many rows on this device; where asked to, choose."""
        device = (tensors[0] if isinstance(tensors[0], Tensor) else tensors[0].base).device
        # Four times as many rows may want another configuration.
        num_rows_class = (num_rows - 1).bit_length() // 2
        state = _autotune.STATE
        key = device, num_rows_class, state.epoch
        known = self._fastest.get(key)
        if known is not None:
            return known
        may_measure = state.measures and _autotune.may_measure(device)
        starts = {_CHECKED_IN: self, **others()}
        calls = {name: partial(start._start, num_rows, tensors, *lengths) for name, start in starts.items()}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            about = self._about(num_rows_class, tensors)
            name = _autotune.choose(about, calls, device, may_measure=may_measure)
        fastest = self if name is None else starts[name]
        if may_measure or not state.measures:
            self._fastest[key] = fastest
        return fastest

    def _about(self, num_rows_class: int, tensors: tuple[Any, ...]) -> dict[str, Any]:
        """Describe the class of shapes, sizes by their powers of two."""
        constants = self._rest[len(self._values) :]
        dtypes = [(x if isinstance(x, Tensor) else x.base).dtype for x in tensors]
        return {
            "kernel": f"{self._kernel.fn.__module__.rpartition('.')[2]}.{self._kernel.fn.__name__}",
            "source": getattr(self._kernel, "cache_key", ""),
            "triton": triton.__version__,
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in dtypes],
            "sizes": [[v.bit_length(), v & 15 == 0] for v in self._values if isinstance(v, int)],
            "constants": [str(constant) for constant in constants],
            "options": {name: str(value) for name, value in self._options.items()},
            "rows": f"4^{num_rows_class}",
        }

    def _launch(self, num_rows: int, tensors: tuple[Any, ...], lengths: tuple[float, ...]) -> object:
        programs, layers = self._grid.programs(num_rows), self._grid.layers
        grid = (programs,) if layers == 1 else (programs, layers)
        return self._kernel[grid](*tensors, *lengths, *self._rest, **self._options)

    def _find_kernels(self, tensors: tuple[Any, ...]) -> dict[object, _Prepared]:
        """Take part in the compiled kernels of all starts of this class."""
        kinds = []
        for tensor in tensors:
            if isinstance(tensor, TensorDescriptor):
                self._is_described = True
                kinds.append((tensor.base.dtype, *tensor.block_shape))
            else:
                kinds.append(tensor.dtype)
        constants = self._rest[len(self._values) :]
        values = [(type(v), *_class_of(v)) for v in self._values]
        key = id(self._kernel), *kinds, *values, *constants, *self._options.items()
        self._prepared = kernels = _prepared_by_class.setdefault(key, {})
        return kernels

    def _prepare(self, key: object, compiled: object) -> None:
        if not isinstance(compiled, CompiledKernel) or compiled.metadata.target.backend != "cuda":
            return
        if _is_known_triton() and _is_unobserved(self._kernel):
            assert self._prepared is not None
            run = compiled.run
            self._prepared[key] = _Prepared(run, compiled.function, compiled.packed_metadata, compiled)


# The name of the configuration that is in the code.
_CHECKED_IN = "checked in"

# As many as there are kernels compiled.
_prepared_by_class: dict[object, dict[object, _Prepared]] = {}


def _class_of(value: float) -> tuple[bool, ...]:
    """Return what Triton tells values apart by: 1, multiples of 16, more than 32 bits; nothing for floats."""
    if not isinstance(value, int):
        return ()
    return value == 1, value & 15 == 0, not -_MAX_INT32 - 1 <= value <= _MAX_INT32


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
def row_strides(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[int, tuple[RowStrides, ...]]:
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
    return inner, tuple(rows)


def rows_in_place(
    tensors: tuple[Tensor, ...],
) -> tuple[int, tuple[RowStrides, ...], tuple[Tensor, ...]]:
    """Return `inner`, where the rows of tensors of one shape (..., D) lie, and the tensors.

    In place of a tensor whose rows cannot be read where they are comes its contiguous copy.
    """
    if all(map(Tensor.is_contiguous, tensors)):
        dim = tensors[0].shape[-1]
        return 1, (RowStrides(True, dim, dim),) * len(tensors), tensors
    inner, rows = row_strides(tensors[0].shape, *[tensor.stride() for tensor in tensors])
    read = [t if row.in_place else t.contiguous() for t, row in zip(tensors, rows, strict=True)]
    return inner, rows, tuple(read)


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


def num_multiprocessors(x: Tensor) -> int:
    """Return how many multiprocessors the device of `x` has; the interpreter has one."""
    return _num_multiprocessors(x.device) if x.is_cuda else 1


@lru_cache
def _has_accelerator(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


def has_tensor_memory_accelerator(x: Tensor) -> bool:
    """Return whether the device of `x` reads tiles by descriptors; the interpreter does."""
    return not x.is_cuda or _has_accelerator(x.device)


def num_programs(x: Tensor) -> int:
    """Return how many programs of a walking kernel fill the device of `x`."""
    if not x.is_cuda:
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_MULTIPROCESSOR * _num_multiprocessors(x.device)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that kernels compute in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
