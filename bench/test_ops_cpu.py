"""The ops on the CPU against the same formulas in torch, eager and compiled; forward and backward together.

Float32, the sizes of a small model's training step, and an output layer of a large vocabulary. Outputs and
gradients must agree before a run is timed.
`compiled` is skipped where torch finds no C++ compiler.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pylm import ops

NUM_ROWS, DIM, HIDDEN, VOCAB = 2048, 384, 1024, 8192
HEADS, FEATURES = 6, 64
# Vocabularies of large models, and as many rows as plain torch has the memory for.
LARGE_VOCABS, FEW_ROWS = (32768, 65536), 512
# Relative to the largest value: sums of up to 8192 float32 terms, in another order.
TOLERANCE = 64 * torch.finfo(torch.float32).eps

Step = Callable[[], list[Tensor]]


def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]), -1)

    return rotate(q), rotate(k)


def _logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)


def _cases() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]]:
    """Return for every op: the op, torch's version, the inputs."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    tables = ops.rope_cache(NUM_ROWS // 4, FEATURES)
    targets = torch.randint(0, VOCAB, (NUM_ROWS,), generator=generator)
    head = torch.randn(VOCAB, DIM, generator=generator).div_(DIM**0.5).requires_grad_()
    q, k = leaf(4, NUM_ROWS // 4, HEADS, FEATURES), leaf(4, NUM_ROWS // 4, HEADS // 2, FEATURES)
    return {
        "rms_norm": (
            ops.rms_norm,
            lambda x, w: F.rms_norm(x, (DIM,), w, 1e-6),
            [leaf(NUM_ROWS, DIM), leaf(DIM)],
        ),
        "swiglu": (ops.swiglu, lambda g, u: F.silu(g) * u, [leaf(NUM_ROWS, HIDDEN), leaf(NUM_ROWS, HIDDEN)]),
        "geglu": (
            ops.geglu,
            lambda g, u: F.gelu(g, approximate="tanh") * u,
            [leaf(NUM_ROWS, HIDDEN), leaf(NUM_ROWS, HIDDEN)],
        ),
        "rope": (lambda q, k: ops.rope(q, k, *tables), lambda q, k: _rope(q, k, *tables), [q, k]),
        "linear_cross_entropy": (
            lambda h, w: ops.linear_cross_entropy(h, w, targets),
            lambda h, w: F.cross_entropy(h @ w.T, targets),
            [leaf(NUM_ROWS, DIM), head],
        ),
    }


def _logprob_case(num_classes: int) -> tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, num_classes, (FEW_ROWS,), generator=generator)
    hidden = torch.randn(FEW_ROWS, DIM, generator=generator).requires_grad_()
    weight = torch.randn(num_classes, DIM, generator=generator).div_(DIM**0.5).requires_grad_()
    return (
        lambda h, w: ops.linear_logprob(h, w, targets).logprob,
        lambda h, w: _logprob(h, w, targets),
        [hidden, weight],
    )


def _step(call: Callable[..., Any], inputs: list[Tensor], upstream: list[Tensor]) -> Step:
    def step() -> list[Tensor]:
        outputs = call(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]

    return step


@pytest.mark.parametrize("kind", ["pylm", "torch", "compiled"])
@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "geglu", "rope", "linear_cross_entropy"])
def test_forward_and_backward(name: str, kind: str, benchmark: Any) -> None:
    _compare(name, kind, _cases()[name], benchmark)


@pytest.mark.parametrize("kind", ["pylm", "torch", "compiled"])
@pytest.mark.parametrize("num_classes", LARGE_VOCABS)
def test_logprob_of_large_vocabularies(num_classes: int, kind: str, benchmark: Any) -> None:
    _compare(f"linear_logprob of {num_classes}", kind, _logprob_case(num_classes), benchmark)


def _compare(
    name: str,
    kind: str,
    case: tuple[Callable[..., Any], Callable[..., Any], list[Tensor]],
    benchmark: Any,
) -> None:
    op, torch_op, inputs = case
    call = {"pylm": op, "torch": torch_op, "compiled": torch.compile(torch_op)}[kind]
    outputs = torch_op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator) for y in outputs]
    step = _step(call, inputs, upstream)
    try:
        actual = step()
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    for a, b in zip(actual, _step(torch_op, inputs, upstream)(), strict=True):
        assert float((a - b).detach().abs().max()) <= TOLERANCE * max(1.0, float(b.detach().abs().max()))
    benchmark.group = f"{name}, {torch.get_num_threads()} threads"
    benchmark.pedantic(step, rounds=15, warmup_rounds=2)
