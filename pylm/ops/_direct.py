"""Calls that go past torch's dispatcher, where it would only lead to the kernel.

An op that is written in Python is entered three times on its way: by its schema, at the Autograd key, and at
the CUDA key, 15 microseconds in all on a CPU (`docs/decisions.md`). Where every tensor is an ordinary one of
a GPU and nobody listens to what is dispatched, the outcome is known beforehand: the launcher, or a node of
the graph around it. Everywhere else, under torch.compile, torch.export, torch.func, a mode, a profiler, or
with a subclass of Tensor, the dispatcher is asked.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Its name is private, so it may be gone one day; then every call goes through the dispatcher.
_C: Any = torch._C
_KEYS_OF = getattr(_C, "_dispatch_keys", None)


def ordinary_keys(backend: str) -> frozenset[int]:
    """Return the sets of dispatch keys that ordinary tensors have, in inference mode as well."""
    if _KEYS_OF is None:
        return frozenset()

    def keys(*names: str) -> int:
        members = [_C.DispatchKeySet(getattr(_C.DispatchKey, name)) for name in names]
        for other in members[1:]:
            members[0] = members[0] | other
        number: int = members[0].raw_repr()
        return number

    autocast, autograd = f"Autocast{backend}", f"Autograd{backend}"
    return frozenset({keys(backend, autocast), keys(backend, autocast, autograd, "ADInplaceOrView")})


# A view with a conjugate or negative bit, a sparse, fake or wrapped tensor has other keys.
ORDINARY = set(ordinary_keys("CUDA"))


def is_observed() -> bool:
    """Return whether something wants to see what is dispatched."""
    return bool(
        _C._len_torch_dispatch_stack()
        or _C._is_torch_function_mode_enabled()
        or _C._functorch.peek_interpreter_stack() is not None
        or _C._is_tracing()
        or torch._C._autograd._profiler_enabled()
        # In forward mode Function says that there is no jvp.
        or forward_ad._current_level >= 0
    )


def needs_grad(arguments: tuple[Any, ...]) -> bool | None:
    """Return whether a call is to be recorded for a backward pass; None where the dispatcher is to decide."""
    requires_grad = False
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor or kind is nn.Parameter:
            if _KEYS_OF is None or _KEYS_OF(argument).raw_repr() not in ORDINARY:
                return None
            requires_grad = requires_grad or argument.requires_grad
        elif isinstance(argument, Tensor):
            return None
    return requires_grad and torch.is_grad_enabled()
