"""Rotary embedding against complex numbers in a loop."""

import pytest
import torch
from oracles import ops as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import rotary

# In units of eps times the largest value: cosine and sine are rounded (1 each), then two products and a sum.
ULPS = 5


def _limit(dtype: torch.dtype, x: Tensor) -> float:
    return ULPS * torch.finfo(dtype).eps * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("time", "features", "rotated"), [(1, 2, 2), (5, 6, 6), (7, 10, 4), (3, 32, 32)])
def test_values(interleaved: bool, time: int, features: int, rotated: int) -> None:
    generator = torch.Generator().manual_seed(time)
    q = torch.randn(2, time, 3, features, generator=generator)
    k = torch.randn(2, time, 1, features, generator=generator)
    cos, sin = ops.rope_cache(20, rotated, theta=100.0)
    ids = torch.randint(0, 20, (2, time), generator=generator)
    for position_ids in (None, ids, ids[0], ids[1].to(torch.int32)):
        rotated_q, rotated_k = ops.rope(q, k, cos, sin, position_ids=position_ids, interleaved=interleaved)
        for b in range(2):
            positions = list(range(time))
            if position_ids is not None:
                positions = position_ids.expand(2, time)[b].tolist()
            for x, y in ((q, rotated_q), (k, rotated_k)):
                expected = oracle.rope(x[b].double(), positions, 100.0, rotated, interleaved)
                assert float((y[b].double() - expected).abs().max()) <= _limit(torch.float32, x)


def _rotated(x: Tensor, angles_TR: Tensor, interleaved: bool) -> Tensor:
    """Rotate x (..., T, H, C) in float64 by indices."""
    half = angles_TR.shape[1]
    first = torch.arange(half) * (2 if interleaved else 1)
    second = first + (1 if interleaved else half)
    cos, sin = angles_TR.cos().unsqueeze(1), angles_TR.sin().unsqueeze(1)
    y, x = x.double().clone(), x.double()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


# Batch, time, query heads, key heads, features, rotated features.
SIZES = [
    (1, 1, 1, 1, 2, 2),
    (3, 1, 1, 3, 127, 126),
    (1, 3, 127, 1, 6, 2),
    (2, 31, 3, 1, 10, 10),
    (1, 65, 1, 1, 6, 4),
    (1, 2, 1, 1, 257, 254),
    (1, 2, 3, 1, 1000, 1000),
    (1, 1, 1, 2, 4097, 4096),
]
EMPTY = [(0, 5, 2, 1, 6, 6), (2, 0, 2, 1, 6, 4), (2, 3, 0, 1, 6, 6), (0, 0, 0, 0, 2, 2)]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sizes", SIZES + EMPTY)
def test_sizes(sizes: tuple[int, ...], interleaved: bool) -> None:
    batch, time, num_heads, num_keys, features, rotated = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    # Queries and keys as they lie in a fused projection, values behind them.
    fused = torch.randn(batch, time, (num_heads + 2 * num_keys) * features, generator=generator)
    heads = fused.view(batch, time, num_heads + 2 * num_keys, features)
    leaves = [t.requires_grad_() for t in heads.split((num_heads, num_keys, num_keys), 2)[:2]]
    cos, sin = ops.rope_cache(time + 9, rotated)
    ids = torch.randint(0, time + 9, (batch, time), generator=generator)
    frequencies, _ = ops.rope_frequencies(rotated)
    for position_ids in (None, ids):
        outputs = ops.rope(*leaves, cos, sin, position_ids=position_ids, interleaved=interleaved)
        upstream = [torch.randn(y.shape, generator=generator) for y in outputs]
        grads = torch.autograd.grad(outputs, leaves, upstream)
        for b in range(batch):
            positions = torch.arange(time) if position_ids is None else position_ids[b]
            angles = torch.outer(positions.double(), frequencies)
            for x, y, g, grad in zip(leaves, outputs, upstream, grads, strict=True):
                for actual, given, sign in ((y, x, 1), (grad, g, -1)):
                    expected = _rotated(given[b].detach(), sign * angles, interleaved)
                    if expected.numel():
                        error = float((actual[b].detach().double() - expected).abs().amax())
                        assert error <= _limit(torch.float32, given.detach())
        assert [y.shape for y in outputs] == [x.shape for x in leaves]
        assert all(y.is_contiguous() for y in outputs)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradcheck(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(2, 3, h, 6, dtype=torch.float64, generator=generator).requires_grad_() for h in (2, 1)
    )
    cos, sin = ops.rope_cache(5, 4, dtype=torch.float64)
    ids = torch.tensor([[4, 0, 1], [2, 2, 3]])
    for position_ids in (None, ids):

        def rope(q, k, ids=position_ids):
            return ops.rope(q, k, cos, sin, position_ids=ids, interleaved=interleaved)

        assert torch.autograd.gradcheck(rope, (q, k))
        # The gradient is the op itself, so it has a derivative.
        assert torch.autograd.gradgradcheck(rope, (q, k))


def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(3, 11, 4, 8, generator=generator)
    k = torch.randn(3, 11, 2, 8, generator=generator)
    cos, sin = ops.rope_cache(11, 8)
    ids = torch.randint(0, 11, (3, 11), generator=generator)
    for position_ids in (None, ids):
        whole = ops.rope(q, k, cos, sin, position_ids=position_ids)
        monkeypatch.setattr(rotary, "_CHUNK_ELEMENTS", 100)
        parts = ops.rope(q, k, cos, sin, position_ids=position_ids)
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_any_strides_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(2, 5, 8 * 6, generator=generator)
    before = qkv.clone()
    cos, sin = ops.rope_cache(5, 6)
    q, k, _ = qkv.view(2, 5, 8, 6).split((4, 2, 2), 2)
    heads_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    shared = k[:, :, :1].expand(2, 5, 4, 6)
    for interleaved in (False, True):
        for a, b in ((q, k), (heads_first, k), (shared, k), (q[..., ::2], k[..., ::2])):
            tables = ops.rope_cache(5, a.shape[-1] - a.shape[-1] % 2)
            if a.shape[-1] != 6:
                tables = ops.rope_cache(5, 2)
            strided = ops.rope(a, b, *tables, interleaved=interleaved)
            plain = ops.rope(a.contiguous(), b.contiguous(), *tables, interleaved=interleaved)
            assert all(torch.equal(x, y) and x.is_contiguous() for x, y in zip(strided, plain, strict=True))
    assert torch.equal(qkv, before), "the input was written to"
    assert cos.shape == sin.shape == (5, 3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_tensors_may_start_and_step_anywhere(interleaved: bool) -> None:
    # Storage offsets and strides that are odd: of inputs, and of the gradient that comes back.
    memory = torch.randn(1 + 2 * 3 * 7 * 8, generator=torch.Generator().manual_seed(5))
    whole = memory[1:].view(2, 3, 7, 8)
    one_of_time = whole.view(1, 1, 42, 8)[..., :7][:, :, 1:2].transpose(1, 2)
    for x, rotated in ((whole, 8), (whole, 4), (one_of_time, 6), (whole[..., 1:], 6)):
        cos, sin = ops.rope_cache(3, rotated)
        angles = torch.outer(torch.arange(x.shape[-3]).double(), ops.rope_frequencies(rotated)[0])
        leaf = x.detach().requires_grad_()
        y, _ = ops.rope(leaf, leaf.detach(), cos, sin, interleaved=interleaved)
        (grad,) = torch.autograd.grad(y, leaf, x)
        for actual, sign in ((y, 1), (grad, -1)):
            expected = _rotated(x, sign * angles, interleaved)
            assert float((actual.detach().double() - expected).abs().max()) <= _limit(torch.float32, x)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("time", [3, 5000])
def test_a_table_of_no_feature_changes_nothing(time: int, interleaved: bool) -> None:
    x = torch.randn(1, time, 5, 8).transpose(2, 3).requires_grad_()
    tables = torch.empty(time, 0), torch.empty(time, 0)
    q, k = ops.rope(x, x, *tables, interleaved=interleaved)
    assert torch.equal(q, x)
    assert torch.equal(k, x)
    assert q.is_contiguous()
    assert q.data_ptr() != x.data_ptr()
    assert torch.equal(torch.autograd.grad(q, x, x.detach())[0], x)


def test_positions_broadcast_over_leading_dimensions() -> None:
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(2, 3, 4, heads, 6, generator=generator) for heads in (2, 1))
    table = ops.rope_cache(9, 6)
    for shape in ((1, 4), (3, 4), (1, 1, 4), (2, 1, 4), (1, 3, 4), (2, 3, 4)):
        ids = torch.randint(0, 9, shape, generator=generator)
        actual = ops.rope(q, k, *table, position_ids=ids)
        for i in range(2):
            for j in range(3):
                row = ids.expand(2, 3, 4)[i, j]
                expected = ops.rope(q[i, j], k[i, j], *table, position_ids=row)
                assert all(torch.equal(a[i, j], e) for a, e in zip(actual, expected, strict=True))
    for shape in ((2, 4), (1, 1, 1, 4), (2, 3, 1), (1,), ()):
        with pytest.raises(InputError, match=r"position_ids must be integers of shape \(4,\) or \(2, 3, 4\)"):
            ops.rope(q, k, *table, position_ids=torch.zeros(shape, dtype=torch.int64))


def test_scores_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 1, 1, 64, generator=generator).expand(1, 50, 1, 64) for _ in range(2))
    rotated_q, rotated_k = ops.rope(q, k, *ops.rope_cache(50, 64))
    scores = rotated_q[0, :, 0] @ rotated_k[0, :, 0].T
    for offset in (0, 1, 20):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)


def test_bfloat16_rounds_once() -> None:
    q, k = (torch.randn(1, 9, 2, 16, generator=torch.Generator().manual_seed(4)).bfloat16() for _ in range(2))
    cos, sin = ops.rope_cache(9, 16)
    narrow, _ = ops.rope(q, k, cos, sin)
    wide, _ = ops.rope(q.double(), k.double(), *ops.rope_cache(9, 16, dtype=torch.float64))
    assert narrow.dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    assert bool(((narrow.double() - wide).abs() <= 0.51 * eps * wide.abs() + 1e-5).all())


def test_errors_name_what_is_wrong() -> None:
    q, cos, sin = torch.randn(1, 5, 2, 6), *ops.rope_cache(4, 6)
    with pytest.raises(InputError, match="q has 5 positions but cos only 4 rows"):
        ops.rope(q, q, cos, sin)
    with pytest.raises(InputError, match=r"position_ids must be in \[0, 4\).*got 0 to 4"):
        ops.rope(q, q, cos, sin, position_ids=torch.arange(5))
    with pytest.raises(InputError, match=r"position_ids must be integers of shape \(5,\) or \(1, 5\)"):
        ops.rope(q, q, cos, sin, position_ids=torch.arange(4))
    with pytest.raises(InputError, match="must agree in all but the heads"):
        ops.rope(q, q[..., :4], cos, sin)
    with pytest.raises(InputError, match="R <= 6"):
        ops.rope(q, q, *ops.rope_cache(5, 8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_positions_of_any_integers(dtype: torch.dtype) -> None:
    q, table = torch.randn(4, 2, 8), ops.rope_cache(4, 8)
    ids = torch.tensor([1, 1, 0, 3])
    expected = ops.rope(q, q, *table, position_ids=ids)[0]
    assert torch.equal(ops.rope(q, q, *table, position_ids=ids.to(dtype))[0], expected)
    with pytest.raises(InputError, match="position_ids must be integers"):
        ops.rope(q, q, *table, position_ids=ids > 0)
