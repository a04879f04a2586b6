"""How an op enters the dispatcher: schema, CPU reference, lazily imported CUDA launcher, fake."""

import importlib
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from pylm.errors import InputError
from pylm.ops import _direct

Implementation: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]

# Under torch.compile and torch.export a number may be symbolic.
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_INTEGERS = (int, torch.SymInt)
_INFINITY = float("inf")

# Launchers of the ops that have been called on a GPU, and what makes a call a node of the graph.
_launchers: dict[str, Implementation] = {}
_appliers: dict[str, Implementation] = {}

LIBRARY = torch.library.Library("pylm", "FRAGMENT")  # type: ignore[no-untyped-call]


def define_op(schema: str, *, cpu: Implementation, kernel: str, fake: Implementation) -> Callable[..., Any]:
    """Register the op `pylm::NAME` and return what calls it.

    Args:
        schema: the op's schema without the namespace, for example `"twice(Tensor x) -> Tensor"`.
        cpu: the implementation for CPU tensors.
        kernel: `"MODULE.LAUNCHER"` under `pylm.kernels`; the module, and with it triton, is imported
            the first time the op runs on a CUDA tensor. There is no other implementation to fall
            back on, so a GPU without triton gets the ImportError.
        fake: computes shapes, dtypes and strides only.
    """
    name = schema.partition("(")[0]
    module, launcher = kernel.split(".")

    def on_cpu(*args: object) -> Tensor | tuple[Tensor, ...]:
        # Autocast would reach the operations inside, which are in float32 for a reason.
        if not torch.is_autocast_enabled("cpu"):
            return cpu(*args)
        with torch.autocast("cpu", enabled=False):
            return cpu(*args)

    def cuda(*args: object) -> Tensor | tuple[Tensor, ...]:
        if name not in _launchers:
            _launchers[name] = getattr(importlib.import_module(f"pylm.kernels.{module}"), launcher)
        return _launchers[name](*args)

    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, on_cpu, "CPU")  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"pylm::{name}", fake, lib=LIBRARY)
    overload: OpOverload = getattr(torch.ops.pylm, name).default

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or name not in _launchers or _direct.is_observed():
            return overload(*args)
        needs_grad = _direct.needs_grad(args)
        if needs_grad is None:
            return overload(*args)
        return _appliers[name](*args) if needs_grad else _launchers[name](*args)

    return call


def register_autograd(
    name: str, backward: Callable[..., Any], *, setup_context: Callable[..., None] | None = None
) -> None:
    """Make the op `pylm::NAME` differentiable, as `torch.library.register_autograd` does.

    Torch's own goes through more Python at each call: 24 against 13 microseconds on top of the op's, measured
    on a CPU.

    Args:
        name: what was given to `define_op`.
        backward: `(ctx, *grad_outputs)`, a gradient or None for each argument.
        setup_context: `(ctx, inputs, output)` saves what `backward` needs; None saves nothing.
    """

    op: OpOverload = getattr(torch.ops.pylm, name).default

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor | tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                output: Tensor | tuple[Tensor, ...] = op(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(
                f"pylm::{name} has no derivative in forward mode (jvp, jacfwd, hessian); "
                f"take grad, vjp or jacrev"
            )

    class Direct(Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor | tuple[Tensor, ...]:
            output = _launchers[name](*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

    class Transformed(Function):
        """The same under torch.func, whose levels it passes one by one."""

        @staticmethod
        def forward(*args: Any) -> Tensor | tuple[Tensor, ...]:
            output: Tensor | tuple[Tensor, ...] = op(*args)
            return output

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            return _one_by_one(op, info.batch_size, in_dims, args)

    # What Function.apply does beforehand is for torch.func alone, and takes 2 microseconds.
    _appliers[name] = super(torch.autograd.Function, Direct).apply

    def transformed(*args: Any) -> Any:
        return Transformed.apply(*args)  # type: ignore[no-untyped-call]

    def autograd(*args: Any) -> Any:
        needs_grad = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        # In forward mode Function says that there is no jvp; the op alone would drop the tangents.
        if needs_grad or forward_ad._current_level >= 0:
            return Function.apply(*args)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, autograd, "Autograd")  # type: ignore[no-untyped-call]
    # The key that all calls pass first while torch.func is at work, and only then.
    LIBRARY.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")  # type: ignore[no-untyped-call]


def _one_by_one(
    op: Callable[..., Any], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Call an op on every element of a batch of torch.vmap and stack the outputs along a first dimension."""

    dims = [dim if isinstance(dim, int) else None for dim in in_dims]  # lists of numbers have lists of None

    def element(i: int, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        output = op(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)))
        return (output,) if isinstance(output, Tensor) else output

    if size:
        elements = [element(i, args) for i in range(size)]
        stacked = tuple(torch.stack(parts) for parts in zip(*elements, strict=True))
    else:
        stacked = _empty_batch(element, dims, args)
    return (stacked[0], 0) if len(stacked) == 1 else (stacked, (0,) * len(stacked))


def _empty_batch(
    element: Callable[[int, tuple[Any, ...]], tuple[Tensor, ...]],
    dims: list[int | None],
    args: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Return outputs for no element; their shapes are those of an element on the meta device."""
    device = next(a.device for a, d in zip(args, dims, strict=True) if d is not None)
    args = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    args = tuple(
        a if d is None else a.new_empty((*a.shape[:d], 1, *a.shape[d + 1 :]))
        for a, d in zip(args, dims, strict=True)
    )
    return tuple(torch.empty((0, *y.shape), dtype=y.dtype, device=device) for y in element(0, args))


def refuse_second_derivative(name: str) -> None:
    """Make the op `pylm::NAME`, itself a gradient, raise where a gradient of it is asked for.

    Without this torch goes through the reference's own operations and may give a wrong answer.
    """

    def backward(ctx: object, *grads: Tensor | None) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"pylm::{name} has no derivative: pylm's ops are differentiable once")

    register_autograd(name, backward)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype an op computes in: float32, or float64 where the input is float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def as_rows(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D), a view where the strides allow one."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def unit_rows(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D) with unit stride along D: a view where there is one, else a copy.

    Torch's loops over a strided and over a contiguous dimension round differently.
    """
    rows = as_rows(x)
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def check_tensors(op: str, **tensors: object) -> None:
    """Raise InputError unless every argument is a tensor."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it first")


def check_float(op: str, **tensors: object) -> None:
    """Raise InputError unless every argument is a tensor of a floating dtype."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it first")
        if not tensor.is_floating_point():
            raise InputError(
                f"{op}: {name} must be a floating-point tensor, got {tensor.dtype}; convert it first"
            )


def check_optional_float(op: str, **tensors: object) -> None:
    """Raise InputError unless every argument is None or a tensor of a floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            check_float(op, **{name: tensor})


def autocast_like_linear(x: Tensor) -> Tensor:
    """Convert to the dtype that `torch.autocast` wants products in, as `F.linear` does.

    Not on the CPU, where the products are in float32 in any case and would only lose digits.
    """
    if x.device.type != "cuda" or x.dtype == torch.float64 or not torch.is_autocast_enabled("cuda"):
        return x
    return x.to(torch.get_autocast_dtype("cuda"))


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number; neither a tensor, which a GPU would be waited for, nor text.

    No math.isfinite: Dynamo follows comparisons of symbolic numbers alone.
    """
    if isinstance(value, _NUMBERS):
        return -_INFINITY < value < _INFINITY
    return isinstance(value, numbers.Real) and -_INFINITY < float(value) < _INFINITY


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, of NumPy too; bools are none."""
    if isinstance(value, _INTEGERS):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)


def check_positive(op: str, *, or_none: bool = False, **values: object) -> None:
    """Raise InputError unless every argument is a positive finite number, or None where that is allowed."""
    for name, value in values.items():
        if not (or_none and value is None) and not (is_finite(value) and value > 0.0):
            expected = "positive or None" if or_none else "positive"
            raise InputError(f"{op}: {name} must be {expected}, got {value!r}; pass a finite number")


def check_not_negative(op: str, **values: object) -> None:
    """Raise InputError unless every argument is a finite number of at least 0."""
    for name, value in values.items():
        if not (is_finite(value) and value >= 0.0):
            raise InputError(f"{op}: {name} must not be negative, got {value!r}; pass a finite number")


def check_size(op: str, **values: object) -> None:
    """Raise InputError unless every argument is a positive whole number."""
    for name, value in values.items():
        if not (is_integer(value) and value > 0):
            raise InputError(f"{op}: {name} must be a positive whole number, got {value!r}")


def check_float_dtype(op: str, dtype: object) -> None:
    """Raise InputError unless `dtype` is a floating one, or None for torch's default."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"{op}: dtype must be a floating torch.dtype, got {dtype!r}; pass torch.bfloat16")


def check_flag(op: str, **values: object) -> None:
    """Raise InputError unless every argument is True or False."""
    for name, value in values.items():
        if value is not True and value is not False:
            raise InputError(f"{op}: {name} must be True or False, got {value!r}")


def check_ignore_index(op: str, ignore_index: object) -> None:
    """Raise InputError unless `ignore_index` can be a target."""
    if not (is_integer(ignore_index) and -(2**63) <= ignore_index < 2**63):
        raise InputError(f"{op}: ignore_index must be a whole number of 64 bits, got {ignore_index!r}")


def is_integral(x: Tensor) -> bool:
    """Return whether x holds integers: neither floats nor complex numbers nor bools."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def check_device(op: str, reference: Tensor, /, **tensors: Tensor | None) -> None:
    """Raise InputError unless every given tensor is on the device of `reference`."""
    device = reference.device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it first")
        if tensor.device != device:
            raise InputError(
                f"{op}: {name} is on {tensor.device}, expected {device} like the first argument; "
                f"move it there"
            )
