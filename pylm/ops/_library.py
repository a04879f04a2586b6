"""How an op enters the dispatcher: schema, CPU reference, lazily imported CUDA launcher, fake."""

import importlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from pylm.errors import InputError

Implementation: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]

LIBRARY = torch.library.Library("pylm", "FRAGMENT")  # type: ignore[no-untyped-call]


def define_op(schema: str, *, cpu: Implementation, kernel: str, fake: Implementation) -> OpOverload:
    """Register the op `pylm::NAME` and return its overload, ready to be called.

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

    found: list[Implementation] = []

    def cuda(*args: object) -> Tensor | tuple[Tensor, ...]:
        if not found:
            found.append(getattr(importlib.import_module(f"pylm.kernels.{module}"), launcher))
        return found[0](*args)

    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, on_cpu, "CPU")  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"pylm::{name}", fake, lib=LIBRARY)
    overload: OpOverload = getattr(torch.ops.pylm, name).default
    return overload


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

    def autograd(*args: Any) -> Any:
        needs_grad = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        # In forward mode Function says that there is no jvp; the op alone would drop the tangents.
        if needs_grad or forward_ad._current_level >= 0:
            return Function.apply(*args)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, autograd, "Autograd")  # type: ignore[no-untyped-call]


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
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def unit_rows(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D) with unit stride along D: a view where there is one, else a copy.

    Torch's loops over a strided and over a contiguous dimension round differently.
    """
    rows = as_rows(x)
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def check_float(op: str, **tensors: Tensor | None) -> None:
    """Raise InputError unless every given tensor is of a floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it first")
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(
                f"{op}: {name} must be a floating-point tensor, got {tensor.dtype}; convert it first"
            )


def autocast_like_linear(x: Tensor) -> Tensor:
    """Convert to the dtype that `torch.autocast` wants products in, as `F.linear` does.

    Not on the CPU, where the products are in float32 in any case and would only lose digits.
    """
    if x.device.type != "cuda" or x.dtype == torch.float64 or not torch.is_autocast_enabled("cuda"):
        return x
    return x.to(torch.get_autocast_dtype("cuda"))


def is_integral(x: Tensor) -> bool:
    """Return whether x holds integers: neither floats nor complex numbers nor bools."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def check_device(op: str, reference: Tensor, /, **tensors: Tensor | None) -> None:
    """Raise InputError unless every given tensor is on the device of `reference`."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it first")
        if tensor is not None and tensor.device != reference.device:
            raise InputError(
                f"{op}: {name} is on {tensor.device}, expected {reference.device} like the first argument; "
                f"move it there"
            )
