"""Calls that go past the dispatcher: the same values, gradients and refusals, and only where nobody listens.

A GPU is played by the CPU: its tensors are taken for ordinary ones, and its implementations for launchers.
"""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pylm import ops
from pylm.ops import _direct, _library, gated, logprob, norm, rotary

LAUNCHERS: dict[str, Callable[..., object]] = {
    "rms_norm": norm._forward_cpu,
    "add_rms_norm": norm._add_forward_cpu,
    "rms_norm_backward": norm._backward_cpu,
    "gated": gated._forward_cpu,
    "gated_backward": gated._backward_cpu,
    "rope": rotary._rope_cpu,
    "linear_logprob": logprob.forward_cpu,
    "linear_logprob_backward": logprob.backward_cpu,
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the launchers that are called directly."""
    names: list[str] = []

    def counted(name: str) -> Callable[..., object]:
        def launch(*args: object) -> object:
            names.append(name)
            return LAUNCHERS[name](*args)

        return launch

    monkeypatch.setattr(_direct, "ORDINARY", set(_direct.ordinary_keys("CPU")))
    for name in LAUNCHERS:
        monkeypatch.setitem(_library._launchers, name, counted(name))
    return names


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def step(x: Tensor, weight: Tensor, head: Tensor) -> Tensor:
    """All ops once: a scalar."""
    cos, sin = ops.rope_cache(4, 8)
    y, added = ops.rms_norm(x, weight, residual=x * 2)
    y = ops.swiglu(ops.rms_norm(y, weight), added)
    q, k = ops.rope(y.view(1, 4, 1, 8), y.view(1, 4, 1, 8), cos, sin)
    logprob, lse, entropy = ops.linear_logprob((q + k).view(4, 8), head, torch.tensor([1, 0, 2, -100]))
    return (logprob + lse * 0.5 + entropy * 0.25).sum()


def test_ordinary_keys_are_those_of_tensors() -> None:
    found = {torch._C._dispatch_keys(torch.ones(1)).raw_repr()}
    with torch.inference_mode():
        found.add(torch._C._dispatch_keys(torch.ones(1)).raw_repr())
    assert _direct.ordinary_keys("CPU") == found


@pytest.mark.gpu
def test_ordinary_keys_are_those_of_a_gpu() -> None:
    found = {torch._C._dispatch_keys(torch.ones(1, device="cuda")).raw_repr()}
    with torch.inference_mode():
        found.add(torch._C._dispatch_keys(torch.ones(1, device="cuda")).raw_repr())
    assert _direct.ordinary_keys("CUDA") == found == _direct.ORDINARY


def test_a_torch_without_these_functions_goes_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _direct._found("_dispatch_keys") is not None
    assert _direct._found("_dispatch_keys", "_functorch.gone") is None
    monkeypatch.setattr(_direct, "_FUNCTIONS", None)
    monkeypatch.setattr(_direct, "_NUM_MODES", _direct._UNKNOWN)
    assert _direct.ordinary_keys("CUDA") == frozenset()
    assert _direct.is_observed()


def test_values_and_gradients_are_the_same(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = leaf(4, 8), nn.Parameter(torch.randn(8)), leaf(3, 8)
    loss = step(*inputs)
    grads = torch.autograd.grad(loss, inputs)
    assert set(launched) == set(LAUNCHERS)
    launched.clear()
    monkeypatch.setattr(_direct, "ORDINARY", set())
    expected = step(*inputs)
    assert torch.equal(loss, expected)
    for grad, other in zip(grads, torch.autograd.grad(expected, inputs), strict=True):
        assert torch.equal(grad, other)
    assert not launched


def test_without_gradients(launched: list[str]) -> None:
    x, weight = leaf(4, 8), leaf(8)
    with torch.no_grad():
        y = ops.rms_norm(x, weight)
    assert not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(ops.rms_norm(torch.ones(4, 8), weight), ops.rms_norm(torch.ones(4, 8), weight))
    assert ops.rms_norm(x.detach(), weight.detach()).grad_fn is None
    assert launched == ["rms_norm"] * 4


def test_second_derivatives_are_refused(launched: list[str]) -> None:
    x, weight = leaf(4, 8), leaf(8)
    (grad,) = torch.autograd.grad(ops.rms_norm(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()
    # rope has one: it is linear.
    cos, sin = ops.rope_cache(4, 8)
    q = leaf(1, 4, 1, 8)
    (grad,) = torch.autograd.grad(ops.rope(q, q, cos, sin)[0].pow(3).sum(), q, create_graph=True)
    torch.autograd.grad(grad.sum(), q)
    assert {"rms_norm", "rms_norm_backward", "rope"} == set(launched)


def test_checkpointing_and_threads(launched: list[str]) -> None:
    inputs = leaf(4, 8), leaf(8), leaf(3, 8)
    expected = torch.autograd.grad(step(*inputs), inputs)
    again = torch.autograd.grad(checkpoint(step, *inputs, use_reentrant=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    results: list[tuple[Tensor, ...]] = []
    threads = [
        threading.Thread(target=lambda: results.append(torch.autograd.grad(step(*inputs), inputs)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(a, b) for grads in results for a, b in zip(grads, expected, strict=True))


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_modes_and_profilers_see_the_ops(launched: list[str]) -> None:
    x, weight = torch.ones(4, 8), torch.ones(8)
    with _Seen() as seen:
        ops.rms_norm(x, weight)
    assert "pylm::rms_norm" in seen.names
    functions: list[object] = []

    class Functions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            functions.append(func)
            return func(*args, **(kwargs or {}))

    with Functions():
        ops.rms_norm(x, weight)
    assert torch.ops.pylm.rms_norm.default in functions
    with torch.profiler.profile() as profile:
        ops.rms_norm(x, weight)
    assert "pylm::rms_norm" in {event.name for event in profile.events()}
    assert not launched


def test_wrapped_tensors_go_through_the_dispatcher(launched: list[str]) -> None:
    x = torch.randn(4, 8)
    negative = torch.randn(4, 8, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(ops.rms_norm(negative), F.rms_norm(negative.clone(), (8,), eps=1e-6))
    meta = ops.rms_norm(torch.empty(4, 8, device="meta"))
    assert meta.device.type == "meta"
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert isinstance(ops.rms_norm(fake), torch._subclasses.FakeTensor)

    class Subclass(Tensor):
        pass

    y = ops.rms_norm(x.as_subclass(Subclass))
    assert type(y) is Subclass
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        ops.rms_norm(x.to_sparse())
    gradient, expected = (
        torch.func.grad(lambda x, norm=norm: norm(x).pow(3).sum())
        for norm in (ops.rms_norm, lambda x: F.rms_norm(x, (8,), eps=1e-6))
    )
    torch.testing.assert_close(gradient(x), expected(x))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        ops.rms_norm(forward_ad.make_dual(x, x))
    traced = torch.jit.trace(lambda x: ops.rms_norm(x), x, check_trace=False)
    assert "pylm::rms_norm" in str(traced.graph)
    assert not launched


def test_compiled_graphs_hold_the_ops(launched: list[str]) -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    inputs = leaf(4, 8), leaf(8), leaf(3, 8)
    torch.compile(step, fullgraph=True, backend=backend)(*inputs)
    assert len(graphs) == 1
    for name in ("rms_norm", "add_rms_norm", "gated", "rope", "linear_logprob"):
        assert f"torch.ops.pylm.{name}.default" in graphs[0]
    exported = torch.export.export(_Norm(), (torch.ones(4, 8),))
    assert "torch.ops.pylm.rms_norm.default" in exported.graph_module.code


class _Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x)


def test_autocast_is_left_alone(launched: list[str]) -> None:
    x, weight = leaf(4, 8), leaf(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.rms_norm(x, weight)
    assert y.dtype == torch.float32
    assert launched == ["rms_norm"]
