"""Log-probabilities against a scalar loop, gradients against finite differences and float64 torch."""

import math

import pytest
import torch
from oracles import ops as oracle
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pylm import ops
from pylm.errors import InputError
from pylm.ops import logprob as module
from pylm.ops._library import autocast_like_linear

# In units of float32 eps. A logit of D = 127 unit products is off by sqrt(D) eps |z|, here |z| < 40; the
# gradients multiply probabilities by weights and sum over V or N below 300.
ULPS = {"forward": 64, "grad": 256}
EPS = torch.finfo(torch.float32).eps


def _inputs(
    num_rows: int, dim: int, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, dim, generator=generator)
    weight = torch.randn(num_classes, dim, generator=generator)
    bias = torch.randn(num_classes, generator=generator)
    targets = torch.randint(0, num_classes, (num_rows,), generator=generator)
    return hidden, weight, bias, targets


@pytest.mark.parametrize(
    ("num_rows", "dim", "num_classes"), [(1, 1, 1), (3, 127, 5), (5, 3, 257), (2, 1000, 3), (2, 3, 4097)]
)
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.7, 5.0)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values(
    num_rows: int, dim: int, num_classes: int, temperature: float, softcap: float | None, has_bias: bool
) -> None:
    hidden, weight, bias, targets = _inputs(num_rows, dim, num_classes)
    bias = bias if has_bias else None
    result = ops.linear_logprob(hidden, weight, targets, bias=bias, temperature=temperature, softcap=softcap)
    rows = zip(hidden.tolist(), targets.tolist(), strict=True)
    listed = None if bias is None else bias.tolist()
    expected = [oracle.logprob(h, weight.tolist(), t, listed, temperature, softcap) for h, t in rows]
    for actual, column in zip(result, zip(*expected, strict=True), strict=True):
        assert actual.dtype == torch.float32
        assert actual.tolist() == pytest.approx(column, abs=ULPS["forward"] * EPS * 40)


def test_ignored_rows_give_zero_and_cost_no_gradient() -> None:
    hidden, weight, _, targets = _inputs(6, 4, 7)
    targets[torch.tensor([0, 3, 5])] = -100
    hidden.requires_grad_()
    weight.requires_grad_()
    result = ops.linear_logprob(hidden, weight, targets)
    ignored = targets == -100
    for value in result:
        assert bool((value[ignored] == 0).all())
        assert bool((value[~ignored] != 0).all())
    sum(value.sum() for value in result).backward()
    assert bool((hidden.grad[ignored] == 0).all())
    kept = ~ignored
    few_hidden, few_weight = hidden[kept].detach().requires_grad_(), weight.detach().requires_grad_()
    sum(v.sum() for v in ops.linear_logprob(few_hidden, few_weight, targets[kept])).backward()
    assert torch.equal(hidden.grad[kept], few_hidden.grad)
    assert torch.equal(weight.grad, few_weight.grad)


def test_all_ignored_and_empty() -> None:
    for num_rows in (0, 3):
        hidden, weight, _, _ = _inputs(num_rows, 4, 7)
        hidden.requires_grad_()
        weight.requires_grad_()
        targets = torch.full((num_rows,), -1)
        result = ops.linear_logprob(hidden, weight, targets, ignore_index=-1)
        assert all(torch.equal(value, torch.zeros(num_rows)) for value in result)
        sum(value.sum() for value in result).backward()
        assert torch.equal(hidden.grad, torch.zeros(num_rows, 4))
        assert torch.equal(weight.grad, torch.zeros(7, 4))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("outputs", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradcheck(softcap: float | None, outputs: tuple[int, ...]) -> None:
    hidden, weight, bias, targets = (t.double() if t.is_floating_point() else t for t in _inputs(5, 3, 6))
    targets[1] = -100
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]

    def call(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        result = ops.linear_logprob(h, w, targets, bias=b, temperature=0.8, softcap=softcap)
        return tuple(result[i] for i in outputs)

    assert torch.autograd.gradcheck(call, inputs)
    for i in range(3):  # each gradient alone

        def only(x: Tensor, i: int = i) -> tuple[Tensor, ...]:
            arguments = [t.detach() for t in inputs]
            arguments[i] = x
            return call(*arguments)

        assert torch.autograd.gradcheck(only, inputs[i : i + 1])


def _reference(h: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = torch.log_softmax(h @ w.T, -1)
    lse = torch.logsumexp(h @ w.T, -1)
    kept = (targets != -100).double()
    picked = logprobs.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return picked * kept, lse * kept, -(logprobs.exp() * logprobs).sum(-1) * kept


def _check_sizes(num_rows: int, dim: int, num_classes: int) -> None:
    hidden, weight, _, targets = _inputs(num_rows, dim, num_classes)
    weight /= dim**0.5
    targets[1::5] = -100
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    narrow = [t.clone().requires_grad_() for t in (hidden, weight)]
    result, expected = tuple(ops.linear_logprob(*narrow, targets)), _reference(*wide, targets)
    upstream = torch.randn(3, num_rows, generator=torch.Generator().manual_seed(9))
    grads = torch.autograd.grad(result, narrow, tuple(upstream))
    truth = torch.autograd.grad(expected, wide, tuple(upstream.double()))
    for actual, value in zip(result, expected, strict=True):
        assert float((actual.double() - value).detach().abs().max()) <= ULPS["forward"] * EPS * 40
    for actual, value in zip(grads, truth, strict=True):
        assert actual.shape == value.shape
        assert float((actual.double() - value).abs().max()) <= ULPS["grad"] * EPS * float(value.abs().max())


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize(("num_rows", "dim", "num_classes"), [(3, 1000, 7), (2, 4097, 3), (3, 2, 4097)])
def test_gradients_of_sizes(
    num_rows: int, dim: int, num_classes: int, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEEP_BYTES", {"cpu": keep_bytes})
    _check_sizes(num_rows, dim, num_classes)


@pytest.mark.parametrize(
    ("num_rows", "dim", "num_classes"), [(1000, 3, 1), (1, 3, 1000), (1000, 5, 1000), (4097, 3, 5)]
)
def test_thousands_of_rows(num_rows: int, dim: int, num_classes: int) -> None:
    _check_sizes(num_rows, dim, num_classes)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize("with_entropy_gradient", [False, True])
def test_chunks_and_budget(
    keep_bytes: int, with_entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEEP_BYTES", {"cpu": keep_bytes})
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 16)
    hidden, weight, _, targets = _inputs(77, 31, 257)
    targets[::5] = -100
    upstream = torch.randn(3, 77, generator=torch.Generator().manual_seed(9))
    upstream[2] *= with_entropy_gradient
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    narrow = [t.clone().requires_grad_() for t in (hidden, weight)]
    expected = _reference(*wide, targets)
    result = tuple(ops.linear_logprob(*narrow, targets))
    count = 3 if with_entropy_gradient else 2
    torch.autograd.backward(expected[:count], tuple(upstream.double())[:count])
    torch.autograd.backward(result[:count], tuple(upstream)[:count])
    for actual, value in zip(result, expected, strict=True):
        assert float((actual.double() - value).detach().abs().max()) <= ULPS["forward"] * EPS * 40
    for actual, value in zip(narrow, wide, strict=True):
        assert float((actual.grad.double() - value.grad).abs().max()) <= ULPS["grad"] * EPS * float(
            value.grad.abs().max()
        )


def test_extreme_logits() -> None:
    hidden = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [-200.0], [300.0]], requires_grad=True)
    logprob, lse, entropy = ops.linear_logprob(hidden, weight, torch.tensor([0, 1, 2]))
    assert logprob.tolist() == [-300.0, -500.0, 0.0]
    assert lse.tolist() == [300.0] * 3
    assert entropy.tolist() == pytest.approx([0.0] * 3, abs=1e-20)
    (logprob.sum() + entropy.sum()).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0], [1.0], [-2.0]]))


def test_masked_classes() -> None:
    hidden, weight, bias, targets = _inputs(4, 3, 6)
    bias[4:] = -math.inf
    targets.clamp_(max=3)
    hidden.requires_grad_()
    result = ops.linear_logprob(hidden, weight, targets, bias=bias)
    small = ops.linear_logprob(hidden, weight[:4], targets, bias=bias[:4])
    for a, b in zip(result, small, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(result.entropy.sum() + result.logprob.sum(), hidden)
    (expected,) = torch.autograd.grad(small.entropy.sum() + small.logprob.sum(), hidden)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_any_strides_and_shapes() -> None:
    hidden, weight, _, targets = _inputs(24, 8, 9)
    flat = ops.linear_logprob(hidden, weight, targets)
    cases = (
        (hidden.view(2, 3, 4, 8), weight, targets.view(2, 3, 4)),
        (hidden.t().contiguous().t(), weight.t().contiguous().t(), torch.stack((targets, targets), 1)[:, 0]),
    )
    for h, w, t in cases:
        before = h.clone(), w.clone(), t.clone()
        result = ops.linear_logprob(h, w, t)
        for a, b in zip(result, flat, strict=True):
            torch.testing.assert_close(a.reshape(-1), b, rtol=1e-6, atol=1e-6)
            assert a.shape == t.shape
        assert all(torch.equal(a, b) for a, b in zip((h, w, t), before, strict=True))
    expanded = ops.linear_logprob(hidden[:1].expand(24, 8), weight, targets)
    assert torch.equal(expanded.lse, expanded.lse[:1].expand(24))


def test_low_precision_computes_in_float32() -> None:
    hidden, weight, _, targets = _inputs(9, 32, 65)
    hidden = hidden.bfloat16().requires_grad_()
    weight.requires_grad_()  # a float32 master weight under bfloat16 activations
    result = ops.linear_logprob(hidden, weight, targets)
    exact = ops.linear_logprob(hidden.float(), weight.bfloat16().float(), targets)
    for a, b in zip(result, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
    result.logprob.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_autocast_decides_the_dtype_of_products_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    with FakeTensorMode():  # stands for tensors of a GPU that need not be there
        assert autocast_like_linear(torch.empty(4, 3, device="cuda")).dtype == torch.bfloat16
        assert autocast_like_linear(torch.empty(4, 3, device="cuda").double()).dtype == torch.float64


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_autocast_changes_nothing_on_the_cpu(keep_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP_BYTES", {"cpu": keep_bytes})
    leaves = [t.requires_grad_() for t in _inputs(9, 7, 31)[:2]]
    targets = torch.arange(9)

    def run() -> list[Tensor]:
        result = ops.linear_logprob(*leaves, targets)
        loss = ops.linear_cross_entropy(*leaves, targets, z_loss=0.1)
        total = result.logprob.sum() + result.entropy.square().sum() + loss
        return [*result, loss, *torch.autograd.grad(total, leaves)]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_integers(dtype: torch.dtype) -> None:
    hidden, weight, _, targets = _inputs(4, 3, 6)
    expected = ops.linear_logprob(hidden, weight, targets).logprob
    assert torch.equal(ops.linear_logprob(hidden, weight, targets.to(dtype)).logprob, expected)
    with pytest.raises(InputError, match=r"targets must be integers of shape \(4,\), got torch.bool"):
        ops.linear_logprob(hidden, weight, targets > 0)


def test_errors_name_what_is_wrong() -> None:
    hidden, weight, bias, targets = _inputs(4, 3, 6)
    with pytest.raises(InputError, match=r"targets must be in \[0, 6\) or ignore_index=-100, got -1 to 6"):
        ops.linear_logprob(hidden, weight, torch.tensor([-1, 6, 0, -100]))
    with pytest.raises(InputError, match=r"expected hidden \(\.\.\., D\) and weight \(V, D\)"):
        ops.linear_logprob(hidden, weight.t(), targets)
    with pytest.raises(InputError, match=r"targets must be integers of shape \(4,\)"):
        ops.linear_logprob(hidden, weight, targets[:3])
    with pytest.raises(InputError, match=r"bias must have shape \(6,\), got \(5,\)"):
        ops.linear_logprob(hidden, weight, targets, bias=bias[:5])
    with pytest.raises(InputError, match=r"temperature must be positive, got 0.0"):
        ops.linear_logprob(hidden, weight, targets, temperature=0.0)
    with pytest.raises(InputError, match=r"softcap must be positive or None, got -1.0"):
        ops.linear_logprob(hidden, weight, targets, softcap=-1.0)
