"""What torch makes of the ops: exported programs, few compilations, inference mode, changes in place."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.export import Dim

from pylm import ops


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing is compiled yet; tiny matrices on one thread, a second one only waits."""
    torch.compiler.reset()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


GAIN, HEAD, BIAS = _random(8), _random(11, 8), _random(11)
EXPERTS = _random(3, 8, 8), _random(3, 8, 4)
TABLES, IDS = ops.rope_cache(64, 8), torch.arange(64)


def _rope(x: Tensor) -> tuple[Tensor, Tensor]:
    return ops.rope(x[:, None], x[:, None], *TABLES, position_ids=IDS[: x.shape[0]])


def _targets(x: Tensor) -> Tensor:
    return IDS[: x.shape[0]] % 11


def _experts(x: Tensor) -> tuple[Tensor, ...]:
    routing = ops.moe_route(x[:, :3], 2)
    return ops.moe_experts(x, routing, *EXPERTS), routing.aux_loss, routing.z_loss, routing.weight


# Of x (N, 8).
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "rms_norm": lambda x: ops.rms_norm(x, GAIN),
    "rms_norm with residual": lambda x: ops.rms_norm(x, GAIN, residual=x, weight_offset=1.0),
    "swiglu": lambda x: ops.swiglu(x, x + 1.0),
    "swiglu of gpt-oss": lambda x: ops.swiglu_packed(
        x, interleaved=True, alpha=1.702, limit=1.0, up_offset=1.0
    ),
    "swiglu_packed": lambda x: ops.swiglu_packed(x),
    "geglu": lambda x: ops.geglu(x, x + 1.0),
    "geglu_packed": lambda x: ops.geglu_packed(x, approximate="none"),
    "rope": _rope,
    "linear_logprob": lambda x: tuple(ops.linear_logprob(x, HEAD, _targets(x), bias=BIAS, temperature=0.7)),
    "linear_cross_entropy": lambda x: ops.linear_cross_entropy(
        x, HEAD, _targets(x), label_smoothing=0.1, z_loss=0.01
    ),
    "linear_cross_entropy with softcap": lambda x: ops.linear_cross_entropy(
        x, HEAD, _targets(x), softcap=3.0, reduction="none"
    ),
    "moe": _experts,
}


class Calls(nn.Module):
    """A call as a module, since only modules are exported."""

    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("name", CALLS)
def test_exported_ops(name: str, strict: bool) -> None:
    call = CALLS[name]
    shapes = ({0: Dim("n", min=2, max=64)},)
    program = torch.export.export(Calls(call), (_random(5, 8),), dynamic_shapes=shapes, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(target.startswith("pylm.") for target in targets), "the op was taken apart"
    module = program.module()
    for num_rows in (5, 2, 33):
        x = _random(num_rows, 8, seed=num_rows)
        torch.testing.assert_close(module(x), call(x))


def _grpo(x: Tensor) -> Any:
    mask = x > -1.0
    old = {"old_logprob": x + 0.05, "reference_logprob": x - 0.1, "kl_coefficient": 0.01}
    return tuple(ops.grpo_loss(x, ops.group_advantages(x[None, :, 0]).flatten(), mask, **old))


# What is made of log-probabilities, and of offsets, by torch's own operations.
LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "dpo_loss": lambda x: ops.dpo_loss(x[0], x[1], x[2], x[3], label_smoothing=0.1),
    "kto_loss": lambda x: ops.kto_loss(x[0], x[1], x[2] > 0, x[3, 0].exp()),
    "grpo_loss": _grpo,
    "packed_position_ids": lambda x: ops.packed_position_ids(torch.tensor([0, 3, x.shape[0]]), x.shape[0]),
    "moe module": lambda x: MOE(x)[0],
}
torch.manual_seed(0)
MOE = ops.MoE(8, 6, 4, 2).requires_grad_(False)


@pytest.mark.parametrize("name", [*CALLS, *LOSSES])
def test_inference_mode(name: str) -> None:
    call = {**CALLS, **LOSSES}[name]
    expected = call(_random(5, 8))
    with torch.inference_mode():
        actual = call(_random(5, 8))
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0)
    leaves = actual if isinstance(actual, tuple) else (actual,)
    assert all(y.is_inference() and not y.requires_grad for y in leaves)
    # Tensors of inference mode may be given outside of it, where nothing needs gradients.
    with torch.inference_mode():
        x = _random(5, 8)
    torch.testing.assert_close(call(x), expected, rtol=0.0, atol=0.0)


# Of a rotation the tables are saved, of a norm with residual the sum.
SAVES_INPUT = [name for name in CALLS if name not in ("rope", "rms_norm with residual")]


@pytest.mark.parametrize("name", SAVES_INPUT)
def test_a_saved_input_that_was_changed_in_place_is_refused(name: str) -> None:
    leaf = _random(5, 8).requires_grad_()
    x = leaf * 1.0
    outputs = CALLS[name](x)
    total = sum(y.sum() for y in outputs) if isinstance(outputs, tuple) else outputs.sum()
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_residual_stream_that_was_changed_in_place_is_refused() -> None:
    x = _random(5, 8).requires_grad_()
    y, added = ops.rms_norm(x, GAIN, residual=x)
    added.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_table_of_rotations_that_was_changed_in_place_is_refused() -> None:
    x, table = _random(5, 1, 8).requires_grad_(), [t.clone() for t in TABLES]
    y, _ = ops.rope(x, x, *table)
    table[0].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _heavy_ops(x: Tensor, head: Tensor, targets: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The ops of an output layer and of a mixture of experts, of x (B, T, 8)."""
    routing = ops.moe_route(x[..., :3], 2, score="sigmoid")
    x = x + ops.moe_experts(x, routing, gate_up, down)
    result = ops.linear_logprob(x, head, targets, temperature=0.7)
    loss = ops.linear_cross_entropy(x, head, targets, z_loss=0.01, label_smoothing=0.1)
    return loss + result.entropy.mean() - result.logprob.mean() + routing.aux_loss + routing.z_loss


SIZES = ((2, 5), (3, 7), (2, 11), (6, 4), (4, 64), (5, 3))


def test_one_graph_of_the_output_layer_and_of_experts_serves_all_sizes() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_heavy_ops, fullgraph=True, backend=counter)
    leaves = [t.clone().requires_grad_() for t in (HEAD, *EXPERTS)]
    for batch, time in SIZES:
        x = _random(batch, time, 8, seed=time).requires_grad_()
        targets = torch.randint(0, 11, (batch, time), generator=torch.Generator().manual_seed(time))
        given = x, leaves[0], targets, *leaves[1:]
        losses = [function(*given) for function in (_heavy_ops, compiled)]
        torch.testing.assert_close(*losses)
        grads = [torch.autograd.grad(loss, (x, *leaves)) for loss in losses]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2, "once for the first size, once for any"


def _tiny() -> tuple[Any, Any]:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tiny_models import build

    plain = build("Llama", num_hidden_layers=1)
    patched = copy.deepcopy(plain)
    ops.patch(patched)
    return plain, patched


def test_a_patched_model_compiles_a_few_times_for_all_sizes() -> None:
    plain, patched = _tiny()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(patched, fullgraph=True, backend=counter)
    for batch, time in SIZES:
        ids = torch.randint(3, 61, (batch, time), generator=torch.Generator().manual_seed(time))
        losses = [model(input_ids=ids, labels=ids).loss for model in (plain, compiled)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        losses[1].backward()
    assert counter.frame_count <= 3, "once for the first size, once for any, and where one grows past it"


class Logits(nn.Module):
    """A model as a function of ids alone: what it is served for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_a_patched_model_is_exported(strict: bool) -> None:
    plain, patched = (model.eval() for model in _tiny())
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    shapes = ({0: Dim("batch", min=2, max=8), 1: Dim("time", min=2, max=32)},)
    with torch.no_grad():
        program = torch.export.export(Logits(patched), (ids,), dynamic_shapes=shapes, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"pylm.rms_norm.default", "pylm.rope.default", "pylm.gated.default"} <= targets
    for batch, time in ((2, 9), (5, 17)):
        ids = torch.randint(3, 61, (batch, time), generator=torch.Generator().manual_seed(time))
        with torch.no_grad():
            actual, expected = program.module()(ids), Logits(plain)(ids)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
