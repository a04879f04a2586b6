"""Logits of a patched model that are not computed until someone looks at them.

Shapes: B batch, T time, N rows, D model dimension, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pylm.errors import InputError
from pylm.ops.losses import linear_cross_entropy

Request: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What a patched output layer is asked for in place of logits: hidden (..., D), weight (V, D) -> result."""
DEFERS = "_pylm_defers"
"""Set on a patched output layer while its model is in a forward pass that defers logits."""
# A method of the class below is named float.
_Number: TypeAlias = float
_Step: TypeAlias = tuple[str, float]

# What torch.export hands to modules where Dynamo does not (strict=False); private classes of torch's.
_TRACED = "FakeTensor", "FunctionalTensor"


def is_plain(*tensors: Tensor) -> bool:
    """Tell whether all are tensors that an op takes, or stand for such in torch.export: no other subclass."""
    return all(
        type(tensor) in (Tensor, nn.Parameter) or type(tensor).__name__ in _TRACED for tensor in tensors
    )


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _parameters(head: nn.Module) -> list[Tensor]:
    """Return what an output layer's weight is, or is made of at each look (torch's parametrizations)."""
    weight = head._parameters.get("weight")
    return list(head.parameters()) if weight is None else [weight]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # what inference mode makes counts no writes


class DeferredLogits:
    """Stand in for the logits `head(hidden)` while a model's own forward computes its loss from them.

    A division, tanh and product with numbers (a soft cap), `float()` and `view(-1, V)` are noted.
    `torch.nn.functional.cross_entropy`, where every such model's loss ends, then needs no logits:
    `linear_cross_entropy` takes their place. Any other use computes the logits, with their gradient,
    and goes on with those, so code that looks at `outputs.logits` works and is charged for it only then.

    Args:
        head: the patched output layer; called with a `Request` so that its hooks (FSDP2's) run.
        hidden: (B, T, D).
    """

    def __init__(self, head: nn.Module, hidden: Tensor) -> None:
        self._head = head
        self._hidden = hidden
        self._steps: tuple[_Step, ...] = ()
        self._dtype = _product_dtype(hidden)
        kind = hidden.device.type
        self._autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        self._needs_grad = torch.is_grad_enabled()
        self._logits: Tensor | None = None
        self._computed = [False]  # shared by all that is noted from here on
        # A weight that changes before the logits are asked for would give those of another model.
        self._seen = (
            None
            if torch.compiler.is_compiling()
            else [(id(tensor), _version(tensor), is_plain(tensor)) for tensor in _parameters(head)]
        )

    def _noted(
        self,
        step: _Step | None = None,
        *,
        dtype: torch.dtype | None = None,
        hidden: Tensor | None = None,
    ) -> "DeferredLogits":
        other = DeferredLogits(self._head, self._hidden if hidden is None else hidden)
        other._steps = self._steps if step is None else (*self._steps, step)
        other._dtype = self._dtype if dtype is None else dtype
        other._autocast = self._autocast
        other._needs_grad = self._needs_grad
        other._seen = self._seen
        other._computed = self._computed
        return other

    @property
    def shape(self) -> torch.Size:
        """The shape of the logits, (..., V)."""
        weight: Any = self._head.weight
        return torch.Size((*self._hidden.shape[:-1], weight.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The device of the logits."""
        return self._hidden.device

    @property
    def is_computed(self) -> bool:
        """Whether logits had to be computed, for these or for others made from the same hidden states."""
        return self._computed[0]

    def materialize(self) -> Tensor:
        """Compute the logits.

        Raises:
            InputError: the output layer's weight was written to since the forward pass, or is not whole.
        """
        if self._logits is not None:
            return self._logits
        weight: Any = self._head.weight
        if self._seen is not None and self._has_changed():
            raise InputError(
                "patch: logits were asked for after the weights of the model had changed; "
                "look at outputs.logits before optimizer.step(), or copy them"
            )
        if not is_plain(weight) and not getattr(self._head, DEFERS, False):
            # To gather it here would hang where only one rank looks at logits.
            raise InputError(
                "patch: the output layer's weight is not whole outside of the forward pass; look at "
                "outputs.logits before backward() and leave lm_head to the root of FSDP2, or patch without "
                "linear_cross_entropy"
            )
        self._computed[0] = True
        kind, enabled, dtype = self._autocast
        # As they would have been made in the forward pass.
        with (
            torch.autocast(kind, dtype=dtype, enabled=enabled),
            torch.set_grad_enabled(self._needs_grad),
        ):
            logits: Tensor = self._head(self._hidden, F.linear)
            for step, value in self._steps:
                logits = (
                    logits / value if step == "div" else logits * value if step == "mul" else logits.tanh()
                )
            self._logits = logits.to(self._dtype)
        return self._logits

    def _has_changed(self) -> bool:
        assert self._seen is not None
        now = _parameters(self._head)
        return len(now) != len(self._seen) or any(
            seen_version != _version(tensor)
            if seen_id == id(tensor)
            # FSDP2 puts the whole weight in the place of its part and back; otherwise it is another model's.
            else was_plain and is_plain(tensor)
            for (seen_id, seen_version, was_plain), tensor in zip(self._seen, now, strict=True)
        )

    def float(self) -> "DeferredLogits":
        """Note the conversion to float32."""
        return self._noted(dtype=torch.float32)

    def contiguous(self) -> "DeferredLogits":
        """Return the same: logits are contiguous."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> "DeferredLogits | Tensor":
        """Note a conversion to float32 or to the device that the logits are on; else compute them."""
        if len(args) == 1 and kwargs.keys() <= {"non_blocking"}:
            if args[0] is torch.float32:
                return self.float()
            if isinstance(args[0], str | torch.device) and torch.device(args[0]) == self.device:
                return self
        return self.materialize().to(*args, **kwargs)

    def view(self, *shape: Any) -> "DeferredLogits | Tensor":
        """Note a view as (N, V); compute the logits for any other one."""
        if shape == (-1, self.shape[-1]):
            return self._noted(hidden=self._hidden.reshape(-1, self._hidden.shape[-1]))
        return self.materialize().view(*shape)

    def reshape(self, *shape: Any) -> "DeferredLogits | Tensor":
        """Reshape as `view` does."""
        return self.view(*shape) if shape == (-1, self.shape[-1]) else self.materialize().reshape(*shape)

    def tanh(self) -> "DeferredLogits":
        """Note a tanh."""
        return self._noted(("tanh", 0.0))

    def __truediv__(self, other: Any) -> "DeferredLogits | Tensor":
        if isinstance(other, int | float):
            return self._noted(("div", other))
        logits: Tensor = self.materialize() / other
        return logits

    def __mul__(self, other: Any) -> "DeferredLogits | Tensor":
        if isinstance(other, int | float):
            return self._noted(("mul", other))
        logits: Tensor = self.materialize() * other
        return logits

    __rmul__ = __mul__

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.materialize().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.materialize(), name)

    def __repr__(self) -> str:
        if self._logits is not None:
            return repr(self._logits)
        return f"DeferredLogits(shape={tuple(self.shape)}, dtype={self._dtype}, device={self.device})"

    def _fold(self) -> tuple[_Number, _Number | None] | None:
        """Write what was noted as softcap(scale * logits); None where it is something else."""
        scale, cap = 1.0, None
        for step, value in self._steps:
            if step == "tanh":
                if cap is not None:
                    return None
                cap = 1.0
            elif value <= 0.0:
                return None
            elif cap is None:
                scale = scale * value if step == "mul" else scale / value
            else:
                cap = cap * value if step == "mul" else cap / value
        # cap tanh(scale z) is the soft cap of (scale cap) z.
        scale = scale if cap is None else scale * cap
        return 1.0 if abs(scale - 1.0) < 1e-12 else scale, cap

    def _cross_entropy(
        self,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: object = None,
        ignore_index: int = -100,
        reduce: object = None,
        reduction: Any = "mean",
        label_smoothing: _Number = 0.0,
    ) -> Tensor | None:
        """Compute the loss without logits; None where this op cannot."""
        folded = self._fold()
        fits = (
            self._hidden.dim() == 2 and isinstance(target, Tensor) and target.shape == self._hidden.shape[:1]
        )
        plain = weight is None and size_average is None and reduce is None
        if folded is None or not (fits and plain) or target.is_floating_point():
            return None
        scale, softcap = folded
        hidden = self._hidden if scale == 1.0 else self._hidden * scale

        def request(rows: Tensor, head_weight: Tensor) -> Tensor:
            return linear_cross_entropy(
                rows,
                head_weight,
                target,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                softcap=softcap,
                reduction=reduction,
            )

        loss: Tensor = self._head(hidden, request)
        return loss.to(self._dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, DeferredLogits):
            if func is torch.tanh and not kwargs:
                return first.tanh()
            if func is F.cross_entropy:
                loss = first._cross_entropy(*args[1:], **kwargs)
                if loss is not None:
                    return loss
        args, kwargs = pytree.tree_map(
            lambda x: x.materialize() if isinstance(x, DeferredLogits) else x, (args, dict(kwargs))
        )
        return func(*args, **kwargs)


def _through_logits(name: str) -> Callable[..., Any]:
    def operator(self: DeferredLogits, *args: Any) -> Any:
        return getattr(self.materialize(), name)(*args)

    operator.__name__ = name
    return operator


# Operators are looked up on the class, past __getattr__.
for _name in (
    *(
        "__getitem__",
        "__setitem__",
        "__len__",
        "__iter__",
        "__neg__",
        "__abs__",
        "__invert__",
        "__bool__",
        "__float__",
    ),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__rtruediv__", "__pow__", "__rpow__", "__matmul__"),
    *("__floordiv__", "__rfloordiv__", "__mod__", "__rmod__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__array__"),
):
    setattr(DeferredLogits, _name, _through_logits(_name))
# Equality is elementwise, identity is what containers need, as for tensors.
DeferredLogits.__hash__ = object.__hash__  # type: ignore[method-assign]
