"""Swap pylm's ops into a Hugging Face model, in place, for that model only, and back.

A swapped module keeps its parameters, its hooks and its name; its class becomes a subclass of its class
whose `forward` calls an op. Nothing of transformers is changed, nor imported. What is swapped is decided by
what a module computes: its own forward, on small random numbers, must agree with the op.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from pylm.errors import InputError
from pylm.ops._deferred import DEFERS
from pylm.ops._recognize import (
    probing,
    recognize_causal_lm,
    recognize_experts,
    recognize_mlp,
    recognize_norm,
    recognize_rotation,
    why_not_tables,
)
from pylm.ops._swap import Swap, Verdict, apply, original, set_class, swap_of, why_not_effective

OPS = ("rms_norm", "rope", "swiglu", "geglu", "linear_cross_entropy", "moe_experts")


@dataclass(frozen=True)
class Swapped:
    """A module that runs an op of pylm."""

    name: str
    """The module's name in the model; empty for the model itself."""
    op: str
    """The op's name in `pylm.ops`."""
    kind: str
    """The name of the module's class."""


@dataclass(frozen=True)
class Left:
    """A module that looked like one for an op and was left as it is."""

    name: str
    """The module's name in the model; empty where nothing in the model is for this op."""
    op: str
    """The op's name in `pylm.ops`."""
    kind: str
    """The name of the module's class."""
    reason: str
    """Why it was left."""


@dataclass(frozen=True)
class PatchReport:
    """What `patch` found in a model. `print(report)` shows it."""

    model: str
    """The name of the model's class."""
    swapped: tuple[Swapped, ...]
    """The modules that run ops of pylm now, those of earlier calls included."""
    left: tuple[Left, ...]
    """What was not swapped, and why."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of swapped modules by op."""
        return dict(Counter(entry.op for entry in self.swapped))

    def __str__(self) -> str:
        return "\n".join(_describe(self))


def patch(model: nn.Module, *, ops: Collection[str] | None = None) -> PatchReport:
    """Make the modules of a transformers model run pylm's ops, in place.

    Norms, rotary embeddings, gated MLPs, experts and the loss are found by what they compute, checked on
    small random numbers, so unknown architectures get what fits them and the report says what did not.
    Weights, names of the state dict, hooks, `copy.deepcopy`, pickling and random states are as before;
    other models of the same classes are not touched. Calling it again changes nothing.

    In training, with labels, the loss is computed from hidden states without logits; `outputs.logits`
    then stands for them and computes them only if something looks at it.

    Args:
        model: a model, on any device, before or after FSDP2, PEFT or `torch.compile`.
        ops: which of "rms_norm", "rope", "swiglu", "geglu", "linear_cross_entropy", "moe_experts" to
            swap; None means all.

    Returns:
        What was swapped, and what was left and why.

    Raises:
        InputError: `model` is no module, or `ops` names something else.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
        >>> print(pylm.ops.patch(model))
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"patch: model must be a torch.nn.Module, got {type(model).__name__}")
    is_set = ops is None or (isinstance(ops, Iterable) and not isinstance(ops, str))
    wanted = set(OPS if ops is None else ops) if is_set else set()
    if not is_set or not wanted <= set(OPS):
        unknown = repr(ops) if not is_set else ", ".join(map(repr, sorted(wanted - set(OPS))))
        raise InputError(f"patch: ops must be a set of names among {', '.join(OPS)}; got {unknown}")
    swapped: list[Swapped] = []
    left: list[Left] = []
    why_not_rope = functools.cache(lambda: why_not_tables(model))
    for name, module in list(model.named_modules()):
        kind = original(type(module)).__name__
        done = swap_of(module)
        if done is not None:
            if done.op in OPS:
                swapped.append(Swapped(name, done.op, kind))
            continue
        with probing():
            op, verdict = _recognize(module, wanted)
            if isinstance(verdict, Swap) and op == "rope":
                verdict = why_not_rope() or verdict
        if isinstance(verdict, Swap):
            verdict = why_not_effective(module) or verdict
        if isinstance(verdict, Swap):
            apply(module, verdict)
            swapped.append(Swapped(name, op, kind))
        elif verdict is not None:
            left.append(Left(name, op, kind, verdict))
    found = {entry.op for entry in swapped} | {entry.op for entry in left}
    for ops_found, _ in _RECOGNIZERS:
        if set(ops_found) <= wanted and not found & {*ops_found, *_ELSE.get(ops_found[0], ())}:
            left.append(Left("", ops_found[0], "", "no module for it in this model"))
    return PatchReport(original(type(model)).__name__, tuple(swapped), tuple(left))


def _recognize(module: nn.Module, wanted: set[str]) -> tuple[str, Verdict]:
    """Return the op that a module is for, and how to swap it or why not."""
    for ops_found, recognize in _RECOGNIZERS:
        verdict = recognize(module) if wanted & set(ops_found) else None
        if verdict is not None:
            op = verdict.op if isinstance(verdict, Swap) else ops_found[0]
            return op, verdict if op in wanted else None
    return "", None


_RECOGNIZERS: tuple[tuple[tuple[str, ...], Callable[[nn.Module], Verdict]], ...] = (
    (("rms_norm",), recognize_norm),
    (("rope",), recognize_rotation),
    (("swiglu", "geglu"), recognize_mlp),
    (("moe_experts",), recognize_experts),
    (("linear_cross_entropy",), recognize_causal_lm),
)
# A model has experts or MLPs: it is no lack that it has only one of them.
_ELSE = {"swiglu": ("moe_experts",), "moe_experts": ("swiglu", "geglu")}


def unpatch(model: nn.Module) -> None:
    """Give every module of a model the class back that it had before `patch`.

    Args:
        model: any model; one that is not patched is left as it is.

    Raises:
        InputError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"unpatch: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        module.__dict__.pop(DEFERS, None)
        if swap_of(module) is not None:
            set_class(module, original(type(module)))


def _describe(report: PatchReport) -> Iterator[str]:
    total = len(report.swapped)
    yield (
        f"pylm.ops in {report.model}: {total} modules swapped"
        if total
        else (f"pylm.ops in {report.model}: nothing swapped")
    )
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for done in report.swapped:
        groups[done.op, done.kind, _place(done.name)].append(done.name)
    if groups:
        yield from _columns(
            [(op, str(len(names)), kind, place) for (op, kind, place), names in groups.items()]
        )
    groups = defaultdict(list)
    for entry in report.left:
        groups[entry.op, entry.kind, _place(entry.name), entry.reason].append(entry.name)
    if groups:
        yield "left as it was:"
        yield from _columns(
            [
                (op, str(len(n)) if kind else "", kind, place, why)
                for (op, kind, place, why), n in groups.items()
            ]
        )


def _place(name: str) -> str:
    """Write the numbers of layers as *."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
