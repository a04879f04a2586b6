"""Calls that go past torch's dispatcher, where it would only lead to the kernel.

An op that is written in Python is entered three times on its way: by its schema, at the Autograd key, and at
the CUDA key, about 6 microseconds on a CPU without gradients (`docs/decisions.md`). Where every tensor is an
ordinary one of a GPU and nobody listens to what is dispatched, the outcome is known beforehand: the launcher,
or a node of the graph around it. Everywhere else, under torch.compile, torch.export, torch.func, a mode, a
profiler, or with a subclass of Tensor, the dispatcher is asked.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_C: Any = torch._C


def _found(*paths: str) -> list[Callable[..., Any]] | None:
    """Return functions of torch's, None unless all are there."""
    try:
        return [operator.attrgetter(path)(_C) for path in paths]
    except AttributeError:
        return None


# Their names are private, so one may be gone some day; then every call goes through the dispatcher.
_FUNCTIONS = _found(
    "_dispatch_keys",
    "_len_torch_dispatch_stack",
    "_is_torch_function_mode_enabled",
    "_functorch.peek_interpreter_stack",
    "_is_tracing",
    "_autograd._profiler_enabled",
    "DispatchKeySet.raw_repr",
    "DispatchKeySet.__or__",
    "DispatchKey.ADInplaceOrView",
    "DispatchKey.AutogradCUDA",
    "DispatchKey.AutocastCUDA",
)
_UNKNOWN: Callable[..., Any] = lambda *_: True  # noqa: E731
_KEYS_OF, _NUM_MODES, _HAS_FUNCTION_MODE, _TRANSFORM, _IS_TRACING, _IS_PROFILING, *_ = (
    _FUNCTIONS or [_UNKNOWN] * 6
)


def ordinary_keys(backend: str) -> frozenset[int]:
    """Return the sets of dispatch keys that ordinary tensors have, in inference mode as well."""
    if _FUNCTIONS is None:
        return frozenset()

    def keys(*names: str) -> int:
        members = [_C.DispatchKeySet(getattr(_C.DispatchKey, name)) for name in names]
        for other in members[1:]:
            members[0] = members[0] | other
        number: int = members[0].raw_repr()
        return number

    autocast, autograd = f"Autocast{backend}", f"Autograd{backend}"
    return frozenset({keys(backend, autocast), keys(backend, autocast, autograd, "ADInplaceOrView")})


_PLAIN = frozenset({int, float, bool, str, type(None), list, tuple, torch.dtype})

# A view with a conjugate or negative bit, a sparse, fake or wrapped tensor has other keys.
ORDINARY = set(ordinary_keys("CUDA"))


def is_transformed() -> bool:
    """Return whether torch.func is at work."""
    return _TRANSFORM() is not None


def is_observed() -> bool:
    """Return whether something wants to see what is dispatched."""
    return bool(
        _NUM_MODES()
        or _HAS_FUNCTION_MODE()
        or _TRANSFORM() is not None
        or _IS_TRACING()
        or _IS_PROFILING()
        # In forward mode Function says that there is no jvp.
        or forward_ad._current_level >= 0
    )


def needs_grad(arguments: tuple[Any, ...]) -> bool | None:
    """Return whether a call is to be recorded for a backward pass; None where the dispatcher is to decide."""
    requires_grad = False
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor or kind is nn.Parameter:
            if _KEYS_OF(argument).raw_repr() not in ORDINARY:
                return None
            requires_grad = requires_grad or argument.requires_grad
        elif kind not in _PLAIN:
            return None  # a subclass of Tensor, or a number of NumPy, which the schema converts
    return requires_grad and torch.is_grad_enabled()
