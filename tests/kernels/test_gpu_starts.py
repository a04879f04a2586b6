"""The short way to a kernel, on a GPU: past the dispatcher and Triton's own path, with the same bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pylm import ops
from pylm.ops import _direct

pytestmark = pytest.mark.gpu

Call = Callable[[], tuple[Tensor, ...]]


@contextmanager
def the_long_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send every call through the dispatcher and every start through Triton."""
    from pylm.kernels import _launch

    def launch(self: _launch.Start, num_rows: int, tensors: tuple[object, ...], *lengths: float) -> None:
        self._launch(num_rows, tensors, lengths)

    with monkeypatch.context() as patch:
        patch.setattr(_direct, "ORDINARY", set())
        patch.setattr(
            _launch.Start,
            "__call__",
            launch,
        )
        yield


def _calls(device: str = "cuda") -> dict[str, Call]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.to(device, torch.bfloat16).requires_grad_()

    x, up, weight, packed = leaf(48, 64), leaf(48, 64), leaf(64), leaf(48, 128)
    q, k, head = leaf(2, 24, 4, 64), leaf(2, 24, 2, 64), leaf(160, 64)
    cos, sin = ops.rope_cache(24, 64, device=device)
    targets = torch.arange(48, device=device)

    def with_grads(call: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Call:
        def run() -> tuple[Tensor, ...]:
            outputs = call(*inputs)
            grads = torch.autograd.grad([y.float().square().sum() for y in outputs], inputs)
            return *outputs, *grads

        return run

    return {
        "rms_norm": with_grads(lambda x, w: (ops.rms_norm(x, w),), x, weight),
        "add_rms_norm": with_grads(lambda x, r, w: ops.rms_norm(x, w, residual=r), x, up, weight),
        "swiglu": with_grads(lambda g, u: (ops.swiglu(g, u),), x, up),
        "swiglu_packed": with_grads(lambda g: (ops.swiglu_packed(g, interleaved=True, limit=1.0),), packed),
        "rope": with_grads(lambda q, k: ops.rope(q, k, cos, sin), q, k),
        "linear_logprob": with_grads(lambda h, w: tuple(ops.linear_logprob(h, w, targets)), x, head),
        "linear_cross_entropy": with_grads(lambda h, w: (ops.linear_cross_entropy(h, w, targets),), x, head),
    }


NAMES = ["rms_norm", "add_rms_norm", "swiglu", "swiglu_packed", "rope"]
NAMES += ["linear_logprob", "linear_cross_entropy"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = _calls()[name]
    with the_long_way(monkeypatch):
        expected = call()
    for _ in range(3):
        for value, other in zip(call(), expected, strict=True):
            assert torch.equal(value.detach(), other.detach())


def test_starts_are_prepared() -> None:
    from pylm.kernels import _launch

    x = torch.randn(16, 64, device="cuda")
    ops.rms_norm(x)
    asked: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        launch = _launch.Start._launch
        patch.setattr(_launch.Start, "_launch", lambda *args: (asked.append(args[0]), launch(*args))[1])
        ops.rms_norm(x)
    assert _launch._is_known_triton() is not bool(asked)


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_addresses_that_are_no_multiples_of_16(offset: int) -> None:
    values = torch.randn(33 * 64, device="cuda", dtype=torch.bfloat16)
    base = torch.zeros(33 * 64 + 16, device="cuda", dtype=torch.bfloat16)
    x = base[offset : offset + 33 * 64].view(33, 64).copy_(values.view(33, 64))
    for _ in range(2):
        assert torch.equal(ops.rms_norm(x), ops.rms_norm(values.view(33, 64)))
        assert torch.equal(ops.swiglu(x, values.view(33, 64)), ops.swiglu(values.view(33, 64), x))


@pytest.mark.parametrize("name", NAMES)
def test_launches_go_to_the_current_stream(name: str) -> None:
    call = _calls()[name]
    expected = call()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    # A launch into another stream than the one that is captured would end the capture with an error.
    with torch.cuda.graph(graph, stream=side):
        captured = call()
    for output in captured:
        output.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    for value, other in zip(captured, expected, strict=True):
        assert torch.equal(value.detach(), other.detach())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_the_other_device(name: str) -> None:
    first, second = _calls("cuda:0")[name], _calls("cuda:1")[name]
    for _ in range(2):
        for value, other in zip(second(), first(), strict=True):
            assert value.device.index == 1
            assert torch.equal(value.detach().cpu(), other.detach().cpu())


def test_profilers_see_the_ops() -> None:
    x = torch.randn(16, 64, device="cuda")
    ops.rms_norm(x)
    with torch.profiler.profile() as profile:
        ops.rms_norm(x)
    assert "pylm::rms_norm" in {event.name for event in profile.events()}
