"""What the ops that are gradients owe the dispatcher: schemas that are true, and fakes of what they return.

They are checked on what the backward passes of the public functions give them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pylm import ops
from pylm.ops import logprob


class _Recorded(TorchDispatchMode):
    """Note the calls of pylm's gradients, with copies of what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pylm" and "_backward" in func.name():
            copies = pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, args)
            self.calls.append((func, copies))
        return func(*args, **(kwargs or {}))


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.to(dtype).requires_grad_()


TARGETS = torch.tensor([0, 3, -100, 10])


def _head(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return _leaf(4, 8, dtype=dtype), _leaf(11, 8, dtype=dtype)


def _moe(**options: Any) -> Tensor:
    routing = ops.moe_route(_leaf(5, 4), 2, **options)
    y = ops.moe_experts(_leaf(5, 3), routing, _leaf(4, 14, 3), _leaf(4, 3, 7))
    return y.sum() + routing.aux_loss + routing.z_loss


# Each gives something to differentiate.
CALLS: dict[str, Callable[[], Tensor]] = {
    "norm": lambda: ops.rms_norm(_leaf(3, 5, 8), _leaf(8)),
    "norm without weight": lambda: ops.rms_norm(_leaf(4, 6).t()),
    "norm of bfloat16": lambda: ops.rms_norm(_leaf(3, 8, dtype=torch.bfloat16), _leaf(8)),
    "norm with residual": lambda: sum(ops.rms_norm(_leaf(3, 8), _leaf(8), residual=_leaf(3, 8))),
    "norm of a frozen weight": lambda: ops.rms_norm(_leaf(3, 8), _leaf(8).detach()),
    "swiglu": lambda: ops.swiglu(_leaf(3, 8), _leaf(8, 3).t()),
    "swiglu limit": lambda: ops.swiglu(_leaf(3, 8), _leaf(3, 8), alpha=1.7, limit=0.5, up_offset=1.0),
    "geglu": lambda: ops.geglu(_leaf(3, 8), _leaf(3, 8)),
    "swiglu_packed": lambda: ops.swiglu_packed(_leaf(2, 3, 8)),
    "geglu_packed": lambda: ops.geglu_packed(_leaf(8, 3).t(), interleaved=True),
    "logprob": lambda: sum(t.sum() for t in ops.linear_logprob(*_head(), TARGETS, bias=_leaf(11))),
    "logprob alone": lambda: ops.linear_logprob(*_head(), TARGETS, temperature=0.7).logprob,
    "logprob of bfloat16": lambda: ops.linear_logprob(*_head(torch.bfloat16), TARGETS, softcap=3.0).entropy,
    "logprob of float16": lambda: ops.linear_logprob(*_head(torch.float16), TARGETS).logprob,
    "cross entropy": lambda: ops.linear_cross_entropy(*_head(), TARGETS, label_smoothing=0.1, z_loss=0.1),
    "cross entropy of bfloat16": lambda: ops.linear_cross_entropy(*_head(torch.bfloat16), TARGETS),
    "rows of cross entropy": lambda: ops.linear_cross_entropy(*_head(), TARGETS, reduction="none"),
    "moe": _moe,
    "moe of sigmoids": lambda: _moe(score="sigmoid", num_groups=2, topk_groups=1, normalize=False),
}


def _record(name: str) -> list[tuple[Any, tuple[Any, ...]]]:
    with _Recorded() as recorded:
        CALLS[name]().sum().backward()
    return recorded.calls


BUDGETS = [
    (name, size) for name in CALLS for size in (1 << 30, 0) if size or "entropy" in name or "logprob" in name
]


@pytest.mark.parametrize(("name", "keep_bytes"), BUDGETS)
def test_opcheck(name: str, keep_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": keep_bytes})
    calls = _record(name)
    assert calls
    for op, arguments in calls:
        torch.library.opcheck(op, arguments)


def test_every_gradient_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = set()
    for keep_bytes in (1 << 30, 0):
        monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": keep_bytes})
        checked |= {op.name() for name in CALLS for op, _ in _record(name)}
    names = torch._C._dispatch_get_all_op_names()
    assert checked == {n for n in names if n.startswith("pylm::") and "_backward" in n}
