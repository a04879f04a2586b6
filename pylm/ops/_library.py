"""How an op enters the dispatcher: schema, CPU reference, lazily imported CUDA launcher, fake."""

import importlib
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload

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

    def cuda(*args: object) -> Tensor | tuple[Tensor, ...]:
        function: Implementation = getattr(importlib.import_module(f"pylm.kernels.{module}"), launcher)
        return function(*args)

    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"pylm::{name}", fake, lib=LIBRARY)
    overload: OpOverload = getattr(torch.ops.pylm, name).default
    return overload


def refuse_second_derivative(name: str) -> None:
    """Make the op `pylm::NAME`, itself a gradient, raise where a gradient of it is asked for.

    Without this torch goes through the reference's own operations and may give a wrong answer.
    """

    def backward(ctx: object, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(f"pylm::{name} has no derivative: pylm's ops are differentiable once")

    torch.library.register_autograd(f"pylm::{name}", backward, lib=LIBRARY)


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
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(
                f"{op}: {name} must be a floating-point tensor, got {tensor.dtype}; convert it first"
            )


def check_device(op: str, reference: Tensor, **tensors: Tensor | None) -> None:
    """Raise InputError unless every given tensor is on the device of `reference`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != reference.device:
            raise InputError(
                f"{op}: {name} is on {tensor.device}, expected {reference.device} like the first argument; "
                f"move it there"
            )
