"""Rotary embedding against complex numbers in a loop, and its tables against scalar formulas."""

import math

import pytest
import torch
from oracles import ops as oracle

from pylm import ops
from pylm.errors import InputError
from pylm.ops import rotary

# In units of eps times the largest value: cosine and sine are rounded (1 each), then two products and a sum.
ULPS = 5


def _limit(dtype: torch.dtype, x: torch.Tensor) -> float:
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


def test_cache_values() -> None:
    cos, sin = ops.rope_cache(100_001, 8, theta=500_000.0)
    for position in (0, 1, 777, 100_000):
        for i in range(4):
            angle = position * 500_000.0 ** (-2 * i / 8)
            # Rounded once from float64: half a unit of float32, where inv_freq in float32 is off by 4e-3.
            assert abs(float(cos[position, i]) - math.cos(angle)) <= 2.0**-25
            assert abs(float(sin[position, i]) - math.sin(angle)) <= 2.0**-25


def test_cache_scaling() -> None:
    plain = [10_000.0 ** (-2 * i / 64) for i in range(32)]
    cos, _ = ops.rope_cache(2, 64, scaling={"rope_type": "linear", "factor": 4.0}, dtype=torch.float64)
    assert cos[1].tolist() == pytest.approx([math.cos(f / 4.0) for f in plain], abs=1e-15)
    cos, _ = ops.rope_cache(2, 64, scaling={"type": "default"}, dtype=torch.float64)
    assert cos[1].tolist() == pytest.approx([math.cos(f) for f in plain], abs=1e-15)
    llama = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    assert len({round(e / p, 6) for e, p in zip(expected, plain, strict=True)}) > 3, "all three cases occur"
    _, sin = ops.rope_cache(2, 64, scaling=llama, dtype=torch.float64)
    assert sin[1].tolist() == pytest.approx([math.sin(f) for f in expected], abs=1e-15)


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
    with pytest.raises(InputError, match="positive even number, got 5"):
        ops.rope_cache(4, 5)
    with pytest.raises(InputError, match="got 'dynamic'"):
        ops.rope_cache(4, 4, scaling={"rope_type": "dynamic"})
    with pytest.raises(InputError, match="needs the number 'factor', got None"):
        ops.rope_cache(4, 4, scaling={"rope_type": "linear"})
