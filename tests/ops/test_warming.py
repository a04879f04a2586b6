"""Warming up runs every op that the sizes allow, forward and backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pylm import ops
from pylm.errors import InputError
from pylm.ops import logprob, warming


class Recorder(TorchDispatchMode):
    """Notes the ops of pylm that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pylm":
            self.names.add(func.name().partition("::")[2])
        return func(*args, **(kwargs or {}))


OUTPUT_LAYER = {
    *("linear_logprob", "linear_logprob_backward"),
    *("linear_cross_entropy", "linear_cross_entropy_backward"),
}
GATED = {"gated", "gated_backward", "gated_packed", "gated_packed_backward"}
EXPERTS = {"moe_route", "moe_route_backward", "moe_experts", "moe_experts_backward"}
NORM = {"rms_norm", "add_rms_norm", "rms_norm_backward"}


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({}, set()),
        ({"dim": 8}, NORM),
        ({"dim": 8, "vocab_size": 5}, NORM | OUTPUT_LAYER),
        ({"hidden_dim": 8}, GATED),
        ({"num_experts": 4, "top_k": 2}, {"moe_route", "moe_route_backward"}),
        ({"dim": 8, "hidden_dim": 4, "num_experts": 4}, NORM | GATED | EXPERTS),
        ({"num_heads": 2, "head_dim": 4}, {"rope"} | NORM),
    ],
)
def test_runs_the_ops_that_the_sizes_allow(
    sizes: dict[str, int], names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {})  # cross entropy makes its gradients early
    with Recorder() as recorder:
        assert ops.warmup(**sizes, dtype=torch.float32, device="cpu") > 0
    assert recorder.names == names


def test_gates_of_few_and_of_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    for name in ("swiglu", "geglu"):
        op = getattr(warming, name)
        monkeypatch.setattr(warming, name, lambda x, y, op=op: (sizes.append(x.numel()), op(x, y))[1])
    ops.warmup(hidden_dim=4096, num_tokens=3, dtype=torch.float32, device="cpu")
    assert len([n for n in sizes if n <= 1 << 20]) == len([n for n in sizes if n > 1 << 20]) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiles_the_backward_pass_where_gradients_are_off(mode: type) -> None:
    with mode(), Recorder() as recorder:
        ops.warmup(dim=8, hidden_dim=8, dtype=torch.float32, device="cpu")
    assert {"rms_norm_backward", "gated_backward"} <= recorder.names


def test_the_number_of_tokens_is_that_of_the_ops() -> None:
    class Rows(TorchDispatchMode):
        seen: set[int] = set()  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "pylm::rms_norm":
                self.seen.add(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    with Rows():
        ops.warmup(dim=8, num_tokens=5, dtype=torch.float32, device="cpu")
    assert Rows.seen == {5}


@pytest.mark.parametrize("sizes", [{"top_k": 2}, {"num_experts": 3, "top_k": 4}])
def test_more_choices_than_experts_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="top_k must be at most num_experts="):
        ops.warmup(**sizes, device="cpu")
