"""Swapped classes: a subclass with another `forward` takes the place of a module's class.

The subclass has the names of its base, since registries of transformers, PEFT and FSDP2 look classes up by
them, and is made anew from a `Swap` where a module is copied or unpickled.
"""

import copyreg
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple, TypeAlias

from torch import nn


class Swap(NamedTuple):
    """How a class is swapped: all that is needed to do it again in another process."""

    base: type[nn.Module]
    op: str
    make_forward: Callable[..., Callable[..., Any]]
    """Makes the new `forward` of the base and the settings; pickled by its name."""
    settings: tuple[Any, ...] = ()
    child: tuple[str, "Callable[..., Callable[..., Any]]"] | None = None
    """A child that is swapped with the module, and what makes its `forward`."""


Verdict: TypeAlias = Swap | str | None
"""How to swap a module; why not; or None for a module that has nothing to do with the op."""


def swap_of(module: nn.Module) -> Swap | None:
    """Return how a module was swapped, or None."""
    swap: Swap | None = getattr(type(module), "_pylm_swap", None)
    return swap


def original(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class without any swap, also where another class (FSDP2's) was made on top of it."""
    swap: Swap | None = getattr(cls, "_pylm_swap", None)
    if swap is None:
        return cls
    if "_pylm_swap" in vars(cls):
        return original(swap.base)
    kept = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(original(base) for base in cls.__bases__), kept)


@functools.cache
def swapped_class(swap: Swap) -> type[nn.Module]:
    """Return the class that takes the place of `swap.base`, always the same one."""
    forward = swap.make_forward(swap.base, *swap.settings)
    functools.update_wrapper(forward, swap.base.forward)
    namespace = {
        "__module__": swap.base.__module__,
        "__qualname__": swap.base.__qualname__,
        "__doc__": swap.base.__doc__,
        "__reduce_ex__": _reduce,
        "_pylm_swap": swap,
        "forward": forward,
    }
    return type(swap.base.__name__, (swap.base,), namespace)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle as (how to make the class again, state): there is no name to find the class by."""
    owner: Any = next(cls for cls in type(self).__mro__ if "_pylm_swap" in vars(cls))
    how, args, *rest = super(owner, self).__reduce_ex__(protocol)
    if how is not copyreg.__newobj__ or args != (owner,):  # type: ignore[attr-defined]
        return how, args, *rest
    return _new, (swap_of(self),), *rest


def _new(swap: Swap) -> nn.Module:
    cls = swapped_class(swap)
    return cls.__new__(cls)


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a module, in bound methods that it keeps as well."""
    old: Any = type(module).forward
    module.__class__ = cls
    # accelerate keeps the bound forward of a module that it puts hooks on.
    for key in ("forward", "_old_forward"):
        bound = module.__dict__.get(key)
        if isinstance(bound, MethodType) and bound.__func__ is old:
            module.__dict__[key] = MethodType(cls.forward, module)


def why_not_effective(module: nn.Module) -> str | None:
    """Tell why another class would change nothing: another forward is on the instance."""
    own = module.__dict__.get("forward")
    if own is None:
        return None
    kept = module.__dict__.get("_old_forward") if hasattr(module, "_hf_hook") else own
    if isinstance(kept, MethodType) and kept.__func__ is type(module).forward:
        return None
    return "its forward was replaced on the instance; patch before what replaces it"


def apply(module: nn.Module, swap: Swap) -> None:
    """Swap the class of a module, and of the child that goes with it."""
    set_class(module, swapped_class(swap))
    if swap.child is not None:
        name, make_forward = swap.child
        child = getattr(module, name)
        if swap_of(child) is None:
            set_class(child, swapped_class(Swap(type(child), f"part of {swap.op}", make_forward)))
