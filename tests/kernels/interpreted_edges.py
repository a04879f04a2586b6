"""What only the kernels have: tiles, splits, chunks of rows, and NaN where the CPU raises.

Collected by test_interpreted.py, in a process whose CPU tensors go to the kernels.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import moe as moe_oracle
from torch import Tensor

from pylm import ops
from pylm.kernels import _grouped, _logits, moe_route, rms_norm, swiglu
from pylm.kernels._launch import row_strides
from pylm.ops import logprob

# In units of float32 eps times the largest value: sums of up to 300 products, exponentials and quotients.
ULPS = 128
EPS = torch.finfo(torch.float32).eps


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    if not actual.numel():
        return
    error = float((actual.double() - expected).detach().abs().max())
    assert error <= ULPS * EPS * max(1.0, float(expected.detach().abs().max()))


def _rows(num_rows: int, dim: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_classes)
    hidden, weight = (torch.randn(n, dim, generator=generator) for n in (num_rows, num_classes))
    bias = torch.randn(num_classes, generator=generator)
    return hidden, weight, bias, torch.randint(0, num_classes, (num_rows,), generator=generator)


def _torch_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    logits = hidden @ weight.T + bias
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    logprobs, kept = F.log_softmax(logits, -1), targets != -100
    picked = logprobs.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
    return picked * kept, torch.logsumexp(logits, -1) * kept, entropy * kept


@pytest.mark.parametrize(("num_rows", "num_classes"), [(1, 1000), (130, 193)])
@pytest.mark.parametrize(
    ("temperature", "softcap", "keeps"), [(0.7, None, False), (1.3, 3.0, False), (0.7, None, True)]
)
def test_logprob_of_many_blocks(
    num_rows: int,
    num_classes: int,
    temperature: float,
    softcap: float | None,
    keeps: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two chunks of rows, five blocks of classes.
    monkeypatch.setattr(_logits, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(_logits, "_MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(_logits, "_BLOCK_V", 256)
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 1 << 30 if keeps else 0})
    hidden, weight, bias, targets = _rows(num_rows, 37, num_classes)
    targets[1::3] = -100
    wide = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    narrow = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    # Strided views: columns of a wider matrix, and a weight that is stored transposed.
    strided = torch.cat((narrow[0], narrow[0]), 1)[:, :37], narrow[1].t().contiguous().t()
    actual = ops.linear_logprob(*strided, targets, bias=narrow[2], temperature=temperature, softcap=softcap)
    expected = _torch_logprob(*wide, targets, temperature, softcap)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)
    upstream = torch.randn(3, num_rows, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(tuple(actual), narrow, tuple(upstream))
    for a, b in zip(grads, torch.autograd.grad(expected, wide, tuple(upstream.double())), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize(("softcap", "smoothing"), [(None, 0.1), (3.0, 0.0)])
def test_cross_entropy_of_many_blocks(
    softcap: float | None, smoothing: float, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": budget})
    # Two chunks of rows, four blocks of classes, the last of which the padding fills.
    monkeypatch.setattr(_logits, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(_logits, "_MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(_logits, "_BLOCK_V", 64)
    hidden, weight, _, targets = _rows(130, 37, 193)
    targets[::3] = -100
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    narrow = [t.clone().requires_grad_() for t in (hidden, weight)]
    logits = wide[0] @ wide[1].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = expected + 0.01 * torch.logsumexp(logits, -1)[targets != -100].square().mean()
    strided = torch.cat((narrow[0], narrow[0]), 1)[:, :37], narrow[1]
    actual = ops.linear_cross_entropy(
        *strided, targets, softcap=softcap, label_smoothing=smoothing, z_loss=0.01
    )
    assert_close(actual, expected)
    grads = torch.autograd.grad(2.0 * actual, narrow)
    for a, b in zip(grads, torch.autograd.grad(2.0 * expected, wide), strict=True):
        assert_close(a, b)


def test_logprob_of_blocks_that_are_masked_or_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_logits, "_BLOCK_V", 64)
    hidden, weight, bias, targets = _rows(70, 5, 200)
    bias[:130] = -math.inf  # two whole blocks of classes
    targets.clamp_(min=130)
    targets[:64] = -100
    for a, b in zip(
        ops.linear_logprob(hidden, weight, targets, bias=bias),
        _torch_logprob(hidden.double(), weight.double(), bias.double(), targets, 1.0, None),
        strict=True,
    ):
        assert_close(a[64:], b[64:])
        assert bool((a[:64] == 0).all())


def test_a_target_outside_the_vocabulary_gives_nan() -> None:
    hidden, weight, _, targets = _rows(4, 3, 6)
    targets[:2] = torch.tensor([6, -1])
    result = ops.linear_logprob(hidden, weight, targets)
    assert result.logprob.isnan().tolist() == [True, True, False, False]
    assert bool(result.lse.isfinite().all())


def test_a_position_outside_the_table_gives_nan() -> None:
    cos, sin = ops.rope_cache(4, 4)
    q = torch.ones(1, 4, 3, 6)
    for interleaved in (False, True):
        y, _ = ops.rope(q, q, cos, sin, position_ids=torch.tensor([0, 4, -1, 3]), interleaved=interleaved)
        assert y[0, :, 0, 0].isnan().tolist() == [False, True, True, False]
        assert torch.equal(y[..., 4:], q[..., 4:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_the_gradient_back(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (
        torch.randn(2, 3, h, 6, dtype=torch.float64, generator=generator).requires_grad_() for h in (5, 1)
    )
    upstream = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in (q, k)]
    upstream[0] = upstream[0].transpose(1, 2).contiguous().transpose(1, 2)
    ids = torch.tensor([[4, 0, 1], [2, 2, 3]])
    tables = ops.rope_cache(5, 4, dtype=torch.float64)
    turned = ops.rope(q, k, *tables, position_ids=ids, interleaved=interleaved)
    grads = torch.autograd.grad(turned, (q, k), upstream)
    # The op is linear and keeps lengths: (R x) . g = x . (R^T g), and R R^T g = g.
    for x, y, g, grad in zip((q, k), turned, upstream, grads, strict=True):
        torch.testing.assert_close((y * g).sum(), (x * grad).sum(), rtol=1e-13, atol=1e-13)
    again = ops.rope(*grads, *tables, position_ids=ids, interleaved=interleaved)
    torch.testing.assert_close(again, tuple(upstream), rtol=1e-13, atol=1e-13)


def test_norm_of_more_rows_than_programs_hold() -> None:
    generator = torch.Generator().manual_seed(2)
    x, upstream = (
        torch.randn(400, 33, generator=generator) for _ in range(2)
    )  # 3 programs, tiles of 64 rows
    weight = torch.randn(33, generator=generator).requires_grad_()
    (grad,) = torch.autograd.grad(ops.rms_norm(x, weight), weight, upstream)
    assert_close(grad, (upstream.double() * F.rms_norm(x.double(), (33,), None, 1e-6)).sum(0))


def test_rows_are_read_where_they_are() -> None:
    fused = torch.randn(2, 5, 7, 4)  # queries, keys and values of each position
    q = fused[:, :, :3]
    inner, (rows, other) = row_strides(q.shape, q.stride(), torch.empty(2, 5, 3, 4).stride())
    assert (inner, rows) == (3, (True, 28, 4))
    assert other == (True, 12, 4)
    head = fused[0, :, 1]
    inner, (rows,) = row_strides(head.shape, head.stride())
    assert (inner, rows.in_place, rows.outer_stride) == (1, True, 28)
    # Three strides, another number of heads, or no unit stride: copied.
    for x in (fused[:, :3, :2], fused.transpose(-1, -2)):
        (rows,) = row_strides(x.shape, x.stride())[1]
        assert not rows.in_place
    turned = q.transpose(0, 1).contiguous().transpose(0, 1)
    inner, (rows, other) = row_strides(q.shape, q.stride(), turned.stride())
    assert rows.in_place
    assert rows.outer_stride == 28


VIEWS = {
    "queries": lambda fused: fused[:, :, :3],
    "keys": lambda fused: fused[:, :, 3:5],
    "copied": lambda fused: fused[:, :3, :2],
    "one head": lambda fused: fused[0, :, 1],
    "expanded": lambda fused: fused[:1].expand(2, -1, -1, -1),
    "empty": lambda fused: fused[:0],
}


@pytest.mark.parametrize("name", list(VIEWS))
def test_norm_of_strided_rows(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    fused, weight = torch.randn(2, 5, 7, 4, generator=generator), torch.randn(4, generator=generator)
    narrow = [t.clone().requires_grad_() for t in (fused, weight)]
    wide = [t.double().requires_grad_() for t in (fused, weight)]
    x, wide_x = VIEWS[name](narrow[0]), VIEWS[name](wide[0])
    upstream = torch.randn(x.shape, generator=generator).transpose(0, 1).contiguous().transpose(0, 1)
    y, added = ops.rms_norm(x, narrow[1], residual=x)
    expected = F.rms_norm(2.0 * wide_x, (4,), wide[1], 1e-6)
    assert_close(y, expected)
    grads = torch.autograd.grad((y, added), narrow, (upstream, upstream))
    exact = torch.autograd.grad((expected, 2.0 * wide_x), wide, (upstream.double(), upstream.double()))
    for a, b in zip(grads, exact, strict=True):
        assert_close(a, b)


MOE_MODES = ["pointers", "descriptors", "walking"]


@pytest.mark.parametrize("mode", MOE_MODES)
def test_experts_of_many_tiles(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiles of 64 rows, 32 columns and 32 features; descriptors need rows of 16 bytes.
    if mode == "descriptors":
        monkeypatch.setattr(_grouped, "DESCRIBED_BYTES", {4})
    elif mode == "walking":
        monkeypatch.setattr(_grouped, "SMALL_TILES", _grouped.SMALL_TILES._replace(programs=3))
    num_tokens, num_experts, top_k, dim, hidden_dim = 70, 4, 2, 36, 20
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    logits[:, 0] += 2.0  # more than two tiles of rows
    logits[:, 3] = -9.0  # none
    routing = ops.moe_route(logits, top_k)
    shapes = (num_tokens, dim), (num_experts, 2 * hidden_dim, dim), (num_experts, dim, hidden_dim)
    x, gate_up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = [x, routing.weight, gate_up / dim**0.5, down / hidden_dim**0.5]
    upstream = torch.randn(shapes[0], generator=generator)
    wide = [t.double().requires_grad_() for t in inputs]
    expected = moe_oracle.experts(wide[0], wide[1], routing.expert, *wide[2:])
    truth = [expected, *torch.autograd.grad(expected, wide, upstream.double())]
    narrow = [t.clone().requires_grad_() for t in inputs]
    y = ops.moe_experts(narrow[0], routing._replace(weight=narrow[1]), *narrow[2:])
    for a, b in zip([y, *torch.autograd.grad(y, narrow, upstream)], truth, strict=True):
        assert_close(a, b)


def test_what_is_not_finite_stays_with_its_token_and_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grouped, "DESCRIBED_BYTES", {4})  # tiles that read over an expert's rows
    generator = torch.Generator().manual_seed(4)
    routing = ops.moe_route(torch.eye(3).repeat(5, 1), 1)
    shapes = (15, 8), (3, 8, 8), (3, 8, 4)
    x, gate_up, down = inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    with torch.no_grad():
        x[1] = torch.nan  # of expert 1
        gate_up[2] = torch.nan
    y = ops.moe_experts(x, routing, gate_up, down)
    assert y.isfinite().all(1).nonzero().squeeze(1).tolist() == [
        t for t in range(15) if t % 3 == 0 or t % 3 == 1 < t
    ]
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
    assert torch.equal(grads[0].isfinite().all(1), y.isfinite().all(1))
    for grad in grads[1:]:
        assert grad[0].isfinite().all()
        assert not grad[1].isfinite().all()


def test_a_nan_among_logits_is_seen_and_breaks_nothing() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))
    logits[1, 4] = torch.nan
    logits[3] = torch.nan
    for options in ({}, {"score": "sigmoid", "num_groups": 3, "topk_groups": 2}):
        routing = ops.moe_route(logits, 2, **options)
        assert routing.weight.isfinite().all(1).tolist() == [True, False, True, False, True]
        assert int(routing.load.sum()) == 10
        assert sorted(routing.order.tolist()) == list(range(10))


def test_launchers_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="takes up to 16384 experts, got 16385"):
        moe_route.forward(torch.ones(1, 16385), None, 1, "softmax", "max", 1, 1, True, 1.0)
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="keeps nothing for the backward pass"):
        swiglu.forward(x, x, "silu", 1.0, None, 0.0, True)
    with pytest.raises(ValueError, match="takes up to 65536 features in a row, got 65537"):
        rms_norm.forward(torch.ones(1, 65537), None, 1e-6, 0.0)
