"""float16 and bfloat16 through every op, forward and backward, against float64 torch of the same numbers.

Also run by kernels/test_interpreted.py, where the CPU's tensors go to the kernels.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import moe as moe_oracle
from torch import Tensor

from pylm import ops
from pylm.ops import logprob

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
# In units of the dtype's eps. The CPU computes in float32 and rounds once, each value by half a unit: ONCE.
# Where it rounds twice, or keeps a factor in the narrow dtype, half a unit more for each: TWICE, times the
# largest value, since sums of such factors may cancel. So it is with the kernels, which also write dz and
# the experts' rows in the narrow dtype, and whose bfloat16 the interpreter cuts off, by a whole unit.
ONCE, TWICE = 0.51, 1.5
KERNELS = {torch.float16: 2.0, torch.bfloat16: 3.0}
# What is kept of logits is bfloat16, as exponentials have no place in float16.
KEPT = TWICE * torch.finfo(torch.bfloat16).eps
# What float32 inside adds, in its eps times the largest value: sums of up to 66 products.
WIDE = 64


class Case(NamedTuple):
    """An op, the same by torch, shapes of its inputs, and how often its results are rounded."""

    op: Callable[..., Any]
    by_torch: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]
    grad_rounds: float = ONCE
    keeps: bool = False


def _assert_close(
    name: str, actual: Tensor, expected: Tensor, rounds: float = ONCE, *, kept: bool = False
) -> None:
    assert actual.shape == expected.shape
    expected = expected.detach()
    largest = max(1.0, float(expected.abs().max()))
    error = (actual.detach().double() - expected).abs()
    limit = torch.full_like(error, WIDE * torch.finfo(torch.float32).eps * largest)
    eps = torch.finfo(actual.dtype).eps
    if INTERPRETS and actual.dtype != torch.float32:
        limit += KERNELS[actual.dtype] * eps * largest
    elif actual.dtype != torch.float32:
        limit += rounds * eps * (expected.abs() if rounds == ONCE else largest)
    if kept:
        limit += KEPT * largest
    assert bool((error <= limit).all()), f"{name}: {float((error / limit).max()):.2f} times the limit"


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def _added(dtype: torch.dtype, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    # What is normed is the sum as it is handed on, rounded.
    total = x + residual
    total = total + (total.to(dtype).double() - total).detach()
    return F.rms_norm(total, weight.shape, weight + 1.0, 1e-6), total


def _silu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _gpt_oss(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1.0)


def _gelu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate) * up


def _gelu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


GPT_OSS: dict[str, Any] = {"alpha": 1.702, "limit": 1.5, "up_offset": 1.0}
POSITIONS = torch.tensor([[0, 1, 2, 3, 4], [9, 7, 7, 0, 3]])


def _rope(interleaved: bool) -> Callable[..., Any]:
    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        angles = POSITIONS[..., None, None] * 10_000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
        turned = []
        for x in (q, k):
            moved, rest = x[..., :16], x[..., 16:]
            a, b = (moved[..., ::2], moved[..., 1::2]) if interleaved else moved.chunk(2, -1)
            pair = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
            moved = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
            turned.append(torch.cat((moved, rest), -1))
        return tuple(turned)

    return rotate


def _op_rope(interleaved: bool) -> Callable[..., Any]:
    tables = ops.rope_cache(10, 16)
    return lambda q, k: ops.rope(q, k, *tables, position_ids=POSITIONS, interleaved=interleaved)


ROWS, CLASSES = 17, 66
TARGETS = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))
TARGETS[::4] = -100


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None = None) -> Tensor:
    logits = hidden @ weight.T
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _logprob(softcap: float | None) -> Callable[..., Any]:
    def by_torch(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        logits = hidden @ weight.T + bias
        logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7
        logprobs, kept = F.log_softmax(logits, -1), TARGETS != -100
        picked = logprobs.gather(1, TARGETS.clamp(min=0)[:, None]).squeeze(1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return picked * kept, torch.logsumexp(logits, -1) * kept, entropy * kept

    return by_torch


def _op_logprob(softcap: float | None) -> Callable[..., Any]:
    return lambda hidden, weight, bias: tuple(
        ops.linear_logprob(hidden, weight, TARGETS, bias=bias, temperature=0.7, softcap=softcap)
    )


def _cross_entropy(softcap: float | None) -> Callable[..., Any]:
    def by_torch(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = _logits(hidden, weight, softcap)
        squares = torch.logsumexp(logits, -1)[TARGETS != -100].square()
        # In sum, so that gradients are of the size of numbers.
        return F.cross_entropy(logits, TARGETS, label_smoothing=0.1, reduction="sum") + 0.01 * squares.sum()

    return by_torch


def _op_cross_entropy(softcap: float | None) -> Callable[..., Any]:
    options: dict[str, Any] = {"softcap": softcap, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "sum"}
    return lambda hidden, weight: ops.linear_cross_entropy(hidden, weight, TARGETS, **options)


def _split(op: Callable[..., Any], interleaved: bool) -> Callable[..., Any]:
    return lambda x: op(*((x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)))


NORM, GATES = [(7, 33, 65), (65,)], [(9, 65), (9, 65)]
HEAD = [(ROWS, 48), (CLASSES, 48)]
CASES: dict[str, Case] = {
    "rms_norm": Case(ops.rms_norm, _rms_norm, NORM),
    "swiglu": Case(ops.swiglu, _silu, GATES),
    "swiglu of gpt-oss": Case(lambda g, u: ops.swiglu(g, u, **GPT_OSS), _gpt_oss, GATES),
    "swiglu_packed": Case(ops.swiglu_packed, _split(_silu, False), [(9, 130)]),
    "swiglu_packed of gpt-oss": Case(
        lambda x: ops.swiglu_packed(x, interleaved=True, **GPT_OSS), _split(_gpt_oss, True), [(9, 130)]
    ),
    "geglu": Case(ops.geglu, _gelu_tanh, GATES),
    "geglu_packed": Case(
        lambda x: ops.geglu_packed(x, approximate="none", interleaved=True), _split(_gelu, True), [(9, 130)]
    ),
    "rope": Case(_op_rope(False), _rope(False), [(2, 5, 3, 16), (2, 5, 1, 16)]),
    "rope of a part": Case(_op_rope(True), _rope(True), [(2, 5, 3, 19), (2, 5, 1, 19)]),
    "linear_logprob": Case(_op_logprob(None), _logprob(None), [*HEAD, (CLASSES,)], keeps=True),
    "linear_logprob with softcap": Case(_op_logprob(3.0), _logprob(3.0), [*HEAD, (CLASSES,)]),
    "linear_cross_entropy": Case(_op_cross_entropy(None), _cross_entropy(None), HEAD, keeps=True),
    "linear_cross_entropy with softcap": Case(_op_cross_entropy(3.0), _cross_entropy(3.0), HEAD, keeps=True),
}


def _check(case: Case, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Rows of a matrix have about the length 1, so that logits are of the size of numbers.
    scales = [shape[-1] ** -0.5 if shape[0] == CLASSES else 1.0 for shape in case.shapes]
    narrow = [
        (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
        for scale, shape in zip(scales, case.shapes, strict=True)
    ]
    wide = [t.detach().double().requires_grad_() for t in narrow]
    outputs, expected = case.op(*narrow), case.by_torch(*wide)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for number, (actual, value) in enumerate(zip(outputs, expected, strict=True)):
        _assert_close(f"output {number}", actual, value)
    upstream = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    grads = torch.autograd.grad(outputs, narrow, upstream)
    truth = torch.autograd.grad(expected, wide, [g.double() for g in upstream])
    for number, (actual, value) in enumerate(zip(grads, truth, strict=True)):
        assert actual.dtype == dtype
        _assert_close(f"gradient {number}", actual, value, case.grad_rounds, kept=case.keeps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: str) -> None:
    _check(CASES[name], DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_with_residual(dtype: str) -> None:
    def op(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return ops.rms_norm(x, weight, residual=residual, weight_offset=1.0)

    def by_torch(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return _added(DTYPES[dtype], *inputs)

    _check(Case(op, by_torch, [(33, 65), (33, 65), (65,)]), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cross_entropy_of_gradients_made_early(
    softcap: float | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 0})
    monkeypatch.setattr(logprob, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(logprob, "_MIN_CHUNK_ROWS", 7)
    # The hidden states' gradient is there before the factor from upstream.
    _check(Case(_op_cross_entropy(softcap), _cross_entropy(softcap), HEAD, TWICE), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_mean_over_many_tokens_reaches_a_float32_weight(
    budget: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": budget})
    generator = torch.Generator().manual_seed(4)
    hidden = (0.1 * torch.randn(HEAD[0], generator=generator)).to(DTYPES[dtype])
    weight = torch.randn(HEAD[1], generator=generator).to(DTYPES[dtype]).float().requires_grad_()
    share = 2.0**-17  # of a row in a mean; hidden states times it are nearly nothing in float16
    loss = ops.linear_cross_entropy(hidden, weight, TARGETS, reduction="sum") * share
    wide = weight.detach().double().requires_grad_()
    exact = F.cross_entropy(hidden.double() @ wide.T, TARGETS, reduction="sum") * share
    (grad,) = torch.autograd.grad(loss, weight)
    (truth,) = torch.autograd.grad(exact, wide)
    assert grad.dtype == torch.float32
    limit = KERNELS[DTYPES[dtype]] * torch.finfo(DTYPES[dtype]).eps if INTERPRETS else KEPT
    assert float((grad.double() - truth).abs().max()) <= limit * float(truth.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_route(score: str, dtype: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (2.0 * torch.randn(33, 12, generator=generator)).to(DTYPES[dtype]).requires_grad_()
    options: dict[str, Any] = {"num_groups": 4, "topk_groups": 2, "normalize": True, "scale": 2.5}
    routing = ops.moe_route(logits, 3, score=score, **options)
    group_score = "top2" if score == "sigmoid" else "max"
    listed = moe_oracle.route(logits.tolist(), 3, score=score, bias=None, group_score=group_score, **options)
    # Equal logits are common among 16-bit numbers.
    assert routing.expert.tolist() == listed["expert"]
    for field in ("weight", "aux_loss", "z_loss"):
        exact = torch.tensor(listed[field], dtype=torch.float64)
        assert getattr(routing, field).dtype == torch.float32
        _assert_close(field, getattr(routing, field), exact)
    wide = logits.detach().double().requires_grad_()
    scores = wide.sigmoid() if score == "sigmoid" else wide.softmax(-1)
    picked = scores.gather(1, routing.expert)
    shares = (scores / scores.sum(1, keepdim=True)).mean(0)
    expected = (
        2.5 * picked / picked.sum(1, keepdim=True),
        12 * (routing.load.double() / 33 * shares).sum(),
        wide.logsumexp(1).square().mean(),
    )
    upstream = [torch.randn(y.shape, generator=generator) for y in expected]
    (grad,) = torch.autograd.grad((routing.weight, routing.aux_loss, routing.z_loss), logits, upstream)
    (truth,) = torch.autograd.grad(expected, wide, [g.double() for g in upstream])
    assert grad.dtype == DTYPES[dtype]
    _assert_close("gradient", grad, truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype: str) -> None:
    generator = torch.Generator().manual_seed(3)
    routing = ops.moe_route(torch.randn(33, 6, generator=generator), 2)

    def op(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return ops.moe_experts(x, routing._replace(weight=weight), 0.125 * gate_up, 0.25 * down)

    def by_torch(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return moe_oracle.experts(x, weight, routing.expert, 0.125 * gate_up, 0.25 * down)

    # gate and up are kept in the narrow dtype.
    _check(Case(op, by_torch, [(33, 65), (33, 2), (6, 40, 65), (6, 65, 20)], TWICE), DTYPES[dtype])
