"""RMSNorm on the CPU against a loop over numbers, and its gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from oracles import ops as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError

# In units of the dtype's eps times the largest value of the result. A value takes the square sum (its
# rounding, at most log2(D) + 1 halves), a root, a quotient and two products: 12 covers D = 4097. The
# gradient adds two more row sums. A weight gradient adds up N rows one by one: sqrt(N) on average, 64.
ULPS = {"forward": 12, "grad": 24, "grad_weight": 64}


def assert_close(actual: Tensor, expected: Tensor, ulps: float) -> None:
    assert actual.shape == expected.shape
    limit = (
        ulps * torch.finfo(actual.dtype).eps * max(1.0, float(expected.detach().abs().amax()))
        if expected.numel()
        else 0
    )
    error = float((actual.double() - expected).detach().abs().amax()) if expected.numel() else 0.0
    assert error <= limit, f"error {error} over {limit}"


@pytest.mark.parametrize("dim", [1, 3, 127, 257, 1000, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(dim, generator=generator, dtype=torch.float64)
    x, weight = x.to(dtype).double(), weight.to(dtype).double()
    for gain, offset in ((weight, 0.0), (weight, 1.0), (None, 0.0)):
        expected = oracle.rms_norm(x, gain, 1e-5, offset)
        given = None if gain is None else gain.to(dtype)
        actual = ops.rms_norm(x.to(dtype), given, eps=1e-5, weight_offset=offset)
        assert actual.dtype == dtype
        assert_close(actual, expected, ULPS["forward"])


SHAPES = [
    (257, 127), (2, 5, 3, 32), (1, 1), (0, 8), (4, 0), (7,), (1, 1000), (3, 4097), (1000, 3), (4097, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_gradients_follow_torch_in_float64(shape: tuple[int, ...], has_residual: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, residual, upstream, upstream_added = (torch.randn(shape, generator=generator) for _ in range(4))
    weight = torch.randn(shape[-1], generator=generator)
    wide = [t.double().requires_grad_() for t in (x, weight, residual)]
    narrow = [t.clone().requires_grad_() for t in (x, weight, residual)]
    added = wide[0] + wide[2] if has_residual else wide[0]
    if has_residual:  # the op normalises the rounded sum
        added = added + ((x + residual).double() - added).detach()
    expected = F.rms_norm(added, shape[-1:], wide[1], 1e-6)
    if has_residual:
        y, actual_added = ops.rms_norm(narrow[0], narrow[1], residual=narrow[2])
        assert torch.equal(actual_added, x + residual)
        torch.autograd.backward((expected, added), (upstream.double(), upstream_added.double()))
        torch.autograd.backward((y, actual_added), (upstream, upstream_added))
    else:
        y = ops.rms_norm(narrow[0], narrow[1])
        expected.backward(upstream.double())
        y.backward(upstream)
    assert_close(y, expected, ULPS["forward"])
    assert_close(narrow[0].grad, wide[0].grad, ULPS["grad"])
    assert_close(narrow[1].grad, wide[1].grad, ULPS["grad_weight"])
    if has_residual:
        assert torch.equal(narrow[0].grad, narrow[2].grad)


def test_the_gradient_of_many_rows_follows_torch() -> None:
    # All of one sign, so that sums grow: a row is added to up to 8191 others, a rounding of half a unit each
    # time, that is sqrt(8192) / 2 of them by chance, and less where the sum is small yet.
    generator = torch.Generator().manual_seed(3)
    x, upstream = (torch.rand(1_000_000, 4, generator=generator) + 0.5 for _ in range(2))
    weight = torch.randn(4, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.to(dtype) for t in (x, weight, upstream)]
        narrow, wide = ([t.to(d).requires_grad_() for t in inputs[:2]] for d in (dtype, torch.float64))
        grads = torch.autograd.grad(ops.rms_norm(*narrow), narrow, inputs[2])
        y = F.rms_norm(wide[0], (4,), wide[1], 1e-6)
        expected = torch.autograd.grad(y, wide, inputs[2].double())
        error = ((grads[1].double() - expected[1]) / expected[1]).abs().max()
        assert float(error) < (16 * torch.finfo(torch.float32).eps if dtype == torch.float32 else 2.0**-8)
        if dtype == torch.float32:
            assert_close(grads[0], expected[0], ULPS["grad"])


def test_small_gradients_beside_a_large_one_keep_their_digits() -> None:
    # Without a weight an element has an error of its own size; with one also of its row's mean, which is
    # taken off and added again, of sums that are rounded in other places.
    for row in range(3):
        x, upstream = torch.zeros(3, 512), torch.full((3, 512), 1e-4)
        x[:, row], upstream[:, 5] = 1.0, 1e4
        for weight in (None, torch.linspace(0.5, 1.5, 512)):
            leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
            (grad,) = torch.autograd.grad(ops.rms_norm(leaf, weight), leaf, upstream)
            y = F.rms_norm(wide, (512,), None if weight is None else weight.double(), 1e-6)
            (expected,) = torch.autograd.grad(y, wide, upstream.double())
            others = torch.arange(512) != row  # there the gradient is what two nearly equal terms leave
            error = (grad.double() - expected)[:, others].abs()
            scale = expected[:, others].abs()
            if weight is not None:
                scale = scale + 4 * scale.mean(1, keepdim=True)
            assert float((error / scale).max()) < 4 * torch.finfo(torch.float32).eps


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    x, residual = (torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = torch.randn(5, dtype=torch.float64, generator=generator)
    inputs = [t.requires_grad_() for t in (x, weight, residual)]
    assert torch.autograd.gradcheck(lambda x, w, r: ops.rms_norm(x, w), inputs)
    assert torch.autograd.gradcheck(lambda x, w, r: ops.rms_norm(x, residual=r), inputs)
    assert torch.autograd.gradcheck(lambda x, w, r: ops.rms_norm(x, w, residual=r, weight_offset=1.0), inputs)
    # Each gradient alone: what is not needed is not computed.
    assert torch.autograd.gradcheck(lambda x: ops.rms_norm(x, weight.detach()), inputs[:1])
    assert torch.autograd.gradcheck(lambda w: ops.rms_norm(x.detach(), w), inputs[1:2])
    # Only the sum is used further: its gradient passes both inputs unchanged.
    assert torch.autograd.gradcheck(lambda x, w, r: ops.rms_norm(x, w, residual=r)[1], inputs)


def test_any_strides_give_the_same_bits() -> None:
    base = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(3))
    weight = torch.randn(16)[::2]
    for x in (base.transpose(0, 2), base[::2, 1::3], base[:1].expand(6, 10, 8), base[..., ::2]):
        gain = weight[: x.shape[-1]] if x.shape[-1] <= 8 else None
        before = base.clone()
        plain, strided = x.contiguous().requires_grad_(), x.detach().requires_grad_()
        upstream = torch.randn(x.shape[::-1]).permute(*range(x.dim())[::-1])
        a, b = ops.rms_norm(plain, gain), ops.rms_norm(strided, gain)
        assert torch.equal(a, b)
        assert b.is_contiguous()
        a.backward(upstream.contiguous())
        b.backward(upstream)
        assert torch.equal(plain.grad, strided.grad)
        assert torch.equal(base, before), "the input was written to"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_heads_of_a_fused_projection(dtype: torch.dtype) -> None:
    # Queries and keys of every head are normalised where they lie between the values.
    generator = torch.Generator().manual_seed(5)
    batch, time, num_heads, num_keys, features = 2, 3, 4, 2, 33
    fused = torch.randn(batch, time, (num_heads + 2 * num_keys) * features, generator=generator).to(dtype)
    before = fused.clone()
    fused.requires_grad_()
    weights = [torch.randn(features, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    heads = fused.unflatten(-1, (-1, features)).split((num_heads, num_keys, num_keys), 2)
    upstream = [torch.randn(x.shape, generator=generator).to(dtype) for x in heads[:2]]
    for transposed in (False, True):
        views = [x.transpose(1, 2) if transposed else x for x in heads[:2]]
        given = [g.transpose(1, 2) if transposed else g for g in upstream]
        copies = [x.detach().contiguous().requires_grad_() for x in views]
        outputs = [ops.rms_norm(x, w) for x, w in zip(views, weights, strict=True)]
        expected = [ops.rms_norm(x, w) for x, w in zip(copies, weights, strict=True)]
        for a, b in zip(outputs, expected, strict=True):
            assert torch.equal(a, b)
            assert a.is_contiguous()
        grads = torch.autograd.grad(outputs, [fused, *weights], given)
        expected_grads = torch.autograd.grad(expected, [*copies, *weights], [g.contiguous() for g in given])
        q, k = (g.transpose(1, 2) if transposed else g for g in expected_grads[:2])
        values = torch.zeros(batch, time, num_keys, features, dtype=dtype)
        assert torch.equal(grads[0], torch.cat((q, k, values), 2).flatten(2))
        assert all(torch.equal(a, b) for a, b in zip(grads[1:], expected_grads[2:], strict=True))
    assert torch.equal(fused, before), "the input was written to"


def test_the_sum_is_handed_on_from_any_strides() -> None:
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(4, 6, 5, generator=generator)
    residuals = (
        base.transpose(0, 2), base[..., :1].expand(4, 6, 5), base[:1, :1].expand(4, 6, 5), base[::2, 1::2],
    )  # fmt: skip
    for residual in residuals:
        x = torch.randn(residual.shape, generator=generator)
        gain = torch.randn(1, generator=generator).expand(residual.shape[-1])
        upstream = [torch.randn(x.shape, generator=generator) for _ in range(2)]
        leaves = [t.detach().requires_grad_() for t in (x, residual, gain)]
        plain = [t.detach().contiguous().requires_grad_() for t in (x, residual, gain)]
        outputs = ops.rms_norm(leaves[0], leaves[2], residual=leaves[1])
        expected = ops.rms_norm(plain[0], plain[2], residual=plain[1])
        assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(outputs, expected, strict=True))
        assert torch.equal(outputs[1], x + residual)
        grads = torch.autograd.grad(outputs, leaves, upstream)
        for a, b in zip(grads, torch.autograd.grad(expected, plain, upstream), strict=True):
            assert torch.equal(a, b)
        # The gradient of a sum comes expanded, with strides of 0.
        ones = torch.ones(()).expand(x.shape)
        first = torch.autograd.grad(ops.rms_norm(leaves[0], leaves[2]), leaves[0], ones)[0]
        again = torch.autograd.grad(ops.rms_norm(leaves[0], leaves[2]), leaves[0], ones.contiguous())[0]
        assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = (
        torch.randn(33, 127, generator=generator).to(dtype),
        torch.randn(127, generator=generator).to(dtype),
    )
    expected = F.rms_norm(x.double(), (127,), weight.double(), 1e-6)
    y = ops.rms_norm(x, weight)
    assert y.dtype == dtype
    # Half a unit in the last place of the result, and a little for float32 inside.
    assert bool(
        ((y.double() - expected).abs() <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-6).all()
    )


def test_large_and_tiny_values() -> None:
    x = torch.tensor([[3e18, -4e18], [3e-18, 4e-18], [0.0, 0.0]], requires_grad=True)
    y = ops.rms_norm(x, eps=1e-6)
    root = 12.5**0.5
    expected = torch.tensor([[3 / root, -4 / root], [3e-15, 4e-15], [0.0, 0.0]])
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0.0)
    y.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_errors_name_what_is_wrong() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(InputError, match=r"weight must have shape \(4,\).*got \(3,\)"):
        ops.rms_norm(x, torch.ones(3))
    with pytest.raises(
        InputError, match=r"residual must be torch.float32 \(2, 4\).*got torch.float32 \(4,\)"
    ):
        ops.rms_norm(x, residual=torch.ones(4))
    with pytest.raises(InputError, match=r"x must be a floating-point tensor, got torch.int64"):
        ops.rms_norm(torch.ones(3, dtype=torch.int64))
    with pytest.raises(InputError, match="got a scalar"):
        ops.rms_norm(torch.tensor(1.0))
    with pytest.raises(InputError, match="weight is on meta, expected cpu"):
        ops.rms_norm(x, torch.ones(4, device="meta"))


def test_module_starts_as_identity_gain() -> None:
    x = torch.randn(3, 8)
    for offset in (0.0, 1.0):
        norm = ops.RMSNorm(8, eps=1e-5, weight_offset=offset)
        assert torch.equal(norm(x), ops.rms_norm(x, eps=1e-5))
        assert torch.equal(norm.weight, torch.full((8,), 1.0 - offset))
    assert "eps=1e-05" in repr(norm)
