"""What every op owes the dispatcher: opcheck, full graphs, autograd that never lies, lazy kernels."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from pylm import ops
from pylm.ops import logprob

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _cases(device: str) -> dict[str, tuple[object, ...]]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    x, q, k = leaf(3, 5, 8), leaf(2, 5, 3, 8), leaf(2, 5, 1, 8)
    cos, sin = ops.rope_cache(7, 6, device=device)
    positions = torch.tensor([[1, 2, 3, 4, 6], [0, 0, 1, 1, 5]], device=device)
    targets = torch.tensor([0, 3, -100, 10], device=device)
    routing = [t.detach() for t in ops.moe_route(leaf(5, 4), 2)[:4]]
    choices = leaf(5, 2), *routing[2:]
    keeps = device == "cpu"
    flags = (True, True, keeps)
    return {
        "rms_norm": (x, leaf(8), 1e-6, 0.0),
        "rms_norm without weight": (leaf(4, 6).transpose(0, 1), None, 1e-6, 0.0),
        "add_rms_norm": (x, leaf(3, 5, 8), leaf(8), 1e-6, 1.0),
        "gated": (x, leaf(8, 5, 3).transpose(0, 2), "silu", 1.0, None, 0.0, keeps),
        "gated limit": (x, leaf(3, 5, 8), "silu", 1.702, 0.5, 1.0, False),
        "gated gelu": (x, leaf(3, 5, 8), "gelu_tanh", 1.0, None, 0.0, False),
        "gated_packed": (x, False, "silu", 1.0, None, 0.0, keeps),
        "gated_packed interleaved": (x, True, "silu", 1.702, 0.5, 1.0, False),
        "gated_packed gelu": (x, True, "gelu", 1.0, None, 0.0, False),
        "rope": (q, k, cos, sin, None, False, False),
        "rope with positions": (q.transpose(0, 1), k.transpose(0, 1), cos, sin, positions.t(), True, True),
        "linear_logprob": (leaf(4, 8), leaf(11, 8), targets, leaf(11), 0.7, None, -100, *flags),
        "linear_cross_entropy": (leaf(4, 8), leaf(11, 8), targets, 5.0, -100, 0.1, 1e-4, [True, True]),
        "linear_cross_entropy_kept": (leaf(4, 8), leaf(11, 8), targets, 5.0, -100, 0.1, 1e-4),
        "moe_route": (leaf(5, 6), None, 2, "softmax", "max", 1, 1, True, 1.0),
        "moe_route groups": (leaf(6, 5).t(), leaf(6).detach(), 2, "sigmoid", "top2", 3, 2, False, 2.5),
        "moe_experts": (leaf(5, 3), *choices, leaf(4, 14, 3), leaf(4, 3, 7), True),
        "moe_experts without what is kept": (leaf(5, 3), *choices, leaf(4, 14, 3), leaf(4, 3, 7), False),
        "linear_logprob softcap": (leaf(4, 8), leaf(11, 8), targets, None, 1.0, 5.0, -100, True, True, False),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", list(_cases("cpu")))
def test_opcheck(case: str, device: str) -> None:
    arguments = _cases(device)[case]
    # Two leaves of the same case must not share memory with what opcheck perturbs: it clones them.
    torch.library.opcheck(getattr(torch.ops.pylm, case.split()[0]).default, arguments)


def _block(x: Tensor, weights: dict[str, Tensor], targets: Tensor) -> Tensor:
    """One small transformer-like block through every op."""
    cos, sin = weights["cos"], weights["sin"]
    y = ops.rms_norm(x, weights["norm"])
    q = (y @ weights["q"]).unflatten(-1, (2, 8))
    q, k = ops.rope(q, q, cos, sin)
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2), is_causal=True
    )
    y, x = ops.rms_norm(attended.transpose(1, 2).flatten(2), weights["norm"], residual=x)
    wide = y @ weights["wide"]
    x = x + ops.swiglu(y @ weights["q"], ops.swiglu_packed(wide)) + ops.geglu(y, y)
    x = x + ops.swiglu_packed(wide, interleaved=True, alpha=1.702, limit=1.0, up_offset=1.0)
    x = x + ops.geglu_packed(wide, approximate="none")
    routing = ops.moe_route(y @ weights["router"], 2)
    x = x + ops.moe_experts(y, routing, weights["gate_up"], weights["down"])
    logprob = ops.linear_logprob(x, weights["head"], targets).logprob.sum()
    loss = ops.linear_cross_entropy(x, weights["head"], targets, z_loss=1e-4) - 0.1 * logprob
    return loss + 0.1 * routing.aux_loss + 0.1 * routing.z_loss


@pytest.mark.parametrize("device", DEVICES)
def test_full_graph_gives_the_same_gradients(device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"norm": (16,), "q": (16, 16), "wide": (16, 32), "head": (23, 16)}
    shapes |= {"router": (16, 4), "gate_up": (4, 12, 16), "down": (4, 16, 6)}
    weights = {n: torch.randn(s, generator=generator).to(device).requires_grad_() for n, s in shapes.items()}
    weights["cos"], weights["sin"] = ops.rope_cache(6, 8, device=device)
    x = torch.randn(2, 6, 16, generator=generator).to(device)
    targets = torch.randint(0, 23, (2, 6), generator=generator).to(device)
    leaves = [weights[name] for name in shapes]
    eager = _block(x, weights, targets)
    expected = torch.autograd.grad(eager, leaves)
    compiled = torch.compile(_block, fullgraph=True, backend="aot_eager")
    loss = compiled(x, weights, targets)
    torch.testing.assert_close(loss, eager)
    # What several ops send back to one tensor is added up in another order.
    for actual, value in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=0.0, atol=1e-5 * float(value.abs().max()))


def _small_ops(x: Tensor, residual: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, ids: Tensor) -> Tensor:
    """Every op but the output layer, of x (B, T, 32)."""
    y, x = ops.rms_norm(x, gain, residual=residual)
    heads = y.unflatten(-1, (4, 8))
    q, k = ops.rope(heads[:, :, :3], heads[:, :, 3:], cos, sin, position_ids=ids)
    q = ops.rms_norm(q).flatten(2) + ops.geglu(k, k).flatten(2).repeat(1, 1, 3)
    gpt_oss = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0}
    gates = ops.swiglu_packed(x, interleaved=True, **gpt_oss) * ops.swiglu_packed(y)
    return q.sum(-1) + (gates * ops.geglu_packed(x, approximate="none")).sum(-1)


def test_one_graph_serves_all_sizes() -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_small_ops, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(2)
    gain = torch.randn(32, generator=generator).requires_grad_()
    tables = ops.rope_cache(64, 6)
    for batch, time in ((2, 5), (3, 7), (2, 11), (6, 4), (4, 64), (5, 3)):
        x = torch.randn(batch, time, 32, generator=generator).requires_grad_()
        residual = torch.randn(batch, time, 32, generator=generator).requires_grad_()
        ids = torch.randint(0, 64, (batch, time), generator=generator)
        results = [function(x, residual, gain, *tables, ids) for function in (_small_ops, compiled)]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad(y.sum(), (x, residual, gain)) for y in results]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2, "once for the first size, once for any"


@pytest.mark.slow
def test_full_graph_under_inductor() -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(lambda x: ops.swiglu(ops.rms_norm(x) * 2.0, x), fullgraph=True)
    torch.testing.assert_close(compiled(x), ops.swiglu(ops.rms_norm(x) * 2.0, x))


def test_a_second_derivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 0})  # cross entropy makes its gradients early
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    calls = {
        "rms_norm_backward": lambda: ops.rms_norm(x).square(),
        "gated_backward": lambda: ops.swiglu(x, x),
        "gated_packed_backward": lambda: ops.swiglu_packed(x),
        "linear_logprob_backward": lambda: ops.linear_logprob(x, weight, targets).logprob,
        "linear_cross_entropy_backward": lambda: ops.linear_cross_entropy(x, weight, targets),
    }
    routing = ops.moe_route(torch.randn(3, 5), 2)
    gate_up, down = torch.randn(5, 6, 8), torch.randn(5, 8, 3)
    calls["moe_route_backward"] = lambda: ops.moe_route(x, 2).weight[:, 0]
    calls["moe_experts_backward"] = lambda: ops.moe_experts(x, routing, gate_up, down)
    for name, call in calls.items():
        (grad,) = torch.autograd.grad(call().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"pylm::{name} has no derivative"):
            torch.autograd.grad(grad.sum(), x)


def test_works_without_gradients_and_under_checkpointing() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    expected = ops.swiglu(ops.rms_norm(x), x)
    with torch.inference_mode():
        assert torch.equal(ops.swiglu(ops.rms_norm(x), x), expected)
    with torch.no_grad():
        y = ops.rms_norm(x)
        assert not y.requires_grad
    again = torch.utils.checkpoint.checkpoint(
        lambda x: ops.swiglu(ops.rms_norm(x), x), x, use_reentrant=False
    )
    (grad,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], grad)


def test_meta_tensors_have_shapes() -> None:
    x = torch.empty(2, 3, 8, device="meta")
    assert ops.rms_norm(x).shape == (2, 3, 8)
    assert ops.swiglu_packed(x).shape == (2, 3, 4)
    cos, sin = ops.rope_cache(3, 8, device="meta")
    assert ops.rope(x.unsqueeze(2), x.unsqueeze(2), cos, sin)[1].shape == (2, 3, 1, 8)
    targets = torch.empty(2, 3, dtype=torch.int64, device="meta")
    assert ops.linear_logprob(x, torch.empty(9, 8, device="meta"), targets).lse.shape == (2, 3)
    routing = ops.moe_route(x, 2)
    assert routing.order.shape == (12,)
    gate_up, down = (torch.empty(shape, device="meta") for shape in ((8, 10, 8), (8, 8, 5)))
    assert ops.moe_experts(x, routing, gate_up, down).shape == (2, 3, 8)


def test_running_on_the_cpu_loads_no_triton() -> None:
    code = (
        "import sys, torch, pylm.ops as ops\n"
        "x = torch.randn(2, 4, requires_grad=True)\n"
        "ops.linear_cross_entropy(ops.swiglu(ops.rms_norm(x), x), x, torch.tensor([0, 1])).backward()\n"
        "ops.MoE(4, 3, 2, 1)(x)[0].sum().backward()\n"
        "print('triton' in sys.modules, 'pylm.kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def _public_calls() -> dict[str, Callable[..., object]]:
    gain, table, ids = torch.randn(8), ops.rope_cache(40, 8), torch.arange(40)
    weight, experts = torch.randn(11, 8), (torch.randn(3, 8, 8), torch.randn(3, 8, 4))
    return {
        "rms_norm": lambda x: ops.rms_norm(x, gain),
        "rms_norm with residual": lambda x: ops.rms_norm(x, gain, residual=x),
        "swiglu": lambda x: ops.swiglu(x, x),
        "swiglu with forms": lambda x: ops.swiglu(x, x, alpha=1.7, limit=7.0, up_offset=1.0),
        "swiglu_packed": lambda x: ops.swiglu_packed(x),
        "geglu": lambda x: ops.geglu(x, x),
        "geglu_packed": lambda x: ops.geglu_packed(x),
        "rope": lambda x: ops.rope(x[:, None], x[:, None], *table, position_ids=ids[: x.shape[0]]),
        "linear_logprob": lambda x: ops.linear_logprob(x, weight, ids[: x.shape[0]] % 11),
        "linear_cross_entropy": lambda x: ops.linear_cross_entropy(x, weight, ids[: x.shape[0]] % 11),
        "moe": lambda x: ops.moe_experts(x, ops.moe_route(x[:, :3], 2), *experts),
    }


@pytest.mark.parametrize("name", list(_public_calls()))
def test_full_graph_with_dynamic_shapes(name: str) -> None:
    call = _public_calls()[name]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows in (5, 9):
        x = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(num_rows))
        torch.testing.assert_close(compiled(x), call(x))


def test_numbers_of_swiglu_may_be_symbolic() -> None:
    compiled = torch.compile(
        lambda x, alpha: ops.swiglu(x, x, alpha=alpha), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(3, 8)
    for alpha in (1.0, 1.5, 1.7):
        torch.testing.assert_close(compiled(x, alpha), ops.swiglu(x, x, alpha=alpha))


def test_forward_mode_is_refused() -> None:
    x, tangent = torch.randn(3, 8), torch.ones(3, 8)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        ops.rms_norm(forward_ad.make_dual(x, tangent))
    assert not ops.rms_norm(x).requires_grad
