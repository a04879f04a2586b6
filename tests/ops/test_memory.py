"""What the output layer takes of memory on a CPU, by torch's own count of what it allocates."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pylm import ops
from pylm.ops import logprob

DIM = 16
# Rows, classes: fewer rows than a chunk has, a few chunks, many.
SIZES = [(64, 16384), (300, 16384), (700, 4097), (4097, 1000)]
# Rows of a chunk are at least 256; beside it are numbers a row, blocks of at most 1 MiB, and parts of the
# weight of at most 2 MiB.
SMALL = 4 << 20


class Used(NamedTuple):
    """Bytes."""

    peak: int
    left: int
    """With the result still there."""


def _measure(call: Callable[[], object]) -> Used:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return Used(peak, now)


def _inputs(num_rows: int, num_classes: int, *, needs_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, DIM, generator=generator) for n in (num_rows, num_classes))
    targets = torch.randint(0, num_classes, (num_rows,), generator=generator)
    return hidden.requires_grad_(needs_grad), weight.requires_grad_(needs_grad), targets


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)


def _chunk_bytes(num_rows: int, num_classes: int) -> int:
    return min(num_rows, logprob.chunk_rows(num_classes, 4)) * num_classes * 4


def _of_op(*inputs: Tensor) -> Tensor:
    return ops.linear_logprob(*inputs).logprob


@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_logprob_without_gradients(num_rows: int, num_classes: int) -> None:
    inputs = _inputs(num_rows, num_classes, needs_grad=False)
    plain, used = _measure(lambda: _plain(*inputs)), _measure(lambda: ops.linear_logprob(*inputs))
    assert plain.peak >= 2 * 4 * num_rows * num_classes, "the profiler does not see all"
    assert used.peak < plain.peak
    assert used.peak <= _chunk_bytes(num_rows, num_classes) + SMALL
    torch.testing.assert_close(_of_op(*inputs), _plain(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
@pytest.mark.parametrize("keeps", [True, False])
def test_logprob_with_gradients(
    num_rows: int, num_classes: int, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not keeps:
        monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 0})
    inputs = _inputs(num_rows, num_classes, needs_grad=True)

    def differentiate(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*inputs).sum(), inputs[:2])

    plain, used = _measure(lambda: differentiate(_plain)), _measure(lambda: differentiate(_of_op))
    assert used.peak < plain.peak
    kept = 4 * num_rows * num_classes if keeps else 0
    gradients = 2 * 4 * DIM * (num_rows + num_classes)
    assert used.peak <= kept + _chunk_bytes(num_rows, num_classes) + gradients + SMALL
    for a, b in zip(differentiate(_of_op), differentiate(_plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_there_is_no_backward_pass(mode: Callable[[], torch.no_grad]) -> None:
    num_rows, num_classes = 300, 4097
    inputs = _inputs(num_rows, num_classes, needs_grad=True)

    def quietly() -> object:
        with mode():
            return ops.linear_logprob(*inputs), ops.linear_cross_entropy(*inputs)

    # Numbers a row, a few of which the op gives beside the three that are asked for.
    assert _measure(quietly).left <= 12 * 4 * num_rows + 64
    with_graph = _measure(lambda: ops.linear_logprob(*inputs))
    assert with_graph.left >= 4 * num_rows * num_classes, "exponentials are kept for a backward pass"


def test_what_is_kept_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows, num_classes = 300, 4097
    inputs = _inputs(num_rows, num_classes, needs_grad=True)
    size = 4 * num_rows * num_classes
    for budget in (size - 1, size):
        monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": budget})
        left = _measure(lambda: ops.linear_logprob(*inputs)).left
        assert (left >= size) == (budget >= size)
        assert left <= budget + 12 * 4 * num_rows


@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_cross_entropy(num_rows: int, num_classes: int) -> None:
    inputs = _inputs(num_rows, num_classes, needs_grad=True)

    def differentiate(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*inputs), inputs[:2])

    plain = _measure(lambda: differentiate(lambda h, w, t: F.cross_entropy(h @ w.T, t)))
    used = _measure(lambda: differentiate(ops.linear_cross_entropy))
    assert used.peak < plain.peak
