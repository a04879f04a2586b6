"""Gated activations against scalar formulas, and their gradients against finite differences."""

import pytest
import torch
from oracles import ops as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import gated

# In units of eps times the largest value: exponential (1), quotient or tanh (2), up to 5 products and sums.
ULPS = {"forward": 6, "grad": 12}


def _limit(name: str, expected: Tensor) -> float:
    return ULPS[name] * torch.finfo(torch.float32).eps * max(1.0, float(expected.detach().abs().max()))


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.shape == expected.shape
    assert float((actual.double() - expected).detach().abs().max()) <= _limit(name, expected)


@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_values(op: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up = (4.0 * torch.randn(3, 127, generator=generator) for _ in range(2))
    gate[0, :4] = torch.tensor([0.0, 80.0, -80.0, -0.0])
    formula = getattr(oracle, op)
    pairs = zip(gate.flatten().tolist(), up.flatten().tolist(), strict=True)
    expected = torch.tensor([formula(g, u) for g, u in pairs], dtype=torch.float64).view(3, 127)
    assert_close(getattr(ops, op)(gate, up), expected, "forward")


def test_packed_is_the_same_op() -> None:
    generator = torch.Generator().manual_seed(1)
    gate, up, upstream = (torch.randn(5, 33, generator=generator) for _ in range(3))
    packed = torch.cat((gate, up), -1).requires_grad_()
    gate.requires_grad_()
    up.requires_grad_()
    y, expected = ops.swiglu_packed(packed), ops.swiglu(gate, up)
    assert_close(y, expected, "forward")
    y.backward(upstream)
    expected.backward(upstream)
    assert_close(packed.grad, torch.cat((gate.grad, up.grad), -1), "grad")


@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_gradcheck(op: str) -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = (
        torch.randn(2, 3, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    function = getattr(ops, op)
    assert torch.autograd.gradcheck(function, (gate, up))
    assert torch.autograd.gradcheck(lambda g: function(g, up.detach()), (gate,))
    assert torch.autograd.gradcheck(lambda u: function(gate.detach(), u), (up,))
    if op == "swiglu":
        assert torch.autograd.gradcheck(ops.swiglu_packed, (gate,))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("shape", [(257, 127), (1, 1), (3, 1, 5), (0, 4), (4, 0), (7,)])
def test_gradients_follow_torch_in_float64(
    shape: tuple[int, ...], keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "_CHUNK_ELEMENTS", 1000)  # several chunks and a rest
    if not keeps:
        monkeypatch.setattr(gated, "_keeps_sigmoid", lambda *args: False)
    generator = torch.Generator().manual_seed(3)
    gate, up, upstream = (3.0 * torch.randn(shape, generator=generator) for _ in range(3))
    wide = [t.double().requires_grad_() for t in (gate, up)]
    (torch.nn.functional.silu(wide[0]) * wide[1]).backward(upstream.double())
    narrow = [t.clone().requires_grad_() for t in (gate, up)]
    ops.swiglu(*narrow).backward(upstream)
    for a, b in zip(narrow, wide, strict=True):
        assert a.grad.shape == shape
        if b.grad.numel():
            assert_close(a.grad, b.grad, "grad")


def test_any_strides_are_accepted() -> None:
    # Torch's exponential rounds otherwise at the end of a run of memory, so the bits may differ.
    base = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(4))
    before = base.clone()
    cases = (base.transpose(0, 2), base[::2, 1::3], base[:1].expand(6, 10, 8), base[..., ::2])
    for x in cases:
        for op in (ops.swiglu, ops.geglu):
            strided = x.detach().requires_grad_()
            plain = x.contiguous().requires_grad_()
            a, b = op(strided, strided.flip(0)), op(plain, plain.flip(0))
            assert_close(a, b, "forward")
            assert a.is_contiguous()
            a.sum().backward()
            b.sum().backward()
            assert_close(strided.grad, plain.grad, "grad")
        assert_close(ops.swiglu_packed(x), ops.swiglu_packed(x.contiguous()), "forward")
    assert torch.equal(base, before), "the input was written to"


def test_bfloat16_rounds_once() -> None:
    generator = torch.Generator().manual_seed(5)
    gate, up = (torch.randn(9, 65, generator=generator).bfloat16() for _ in range(2))
    y = ops.swiglu(gate, up)
    assert y.dtype == torch.bfloat16
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    eps = torch.finfo(torch.bfloat16).eps
    assert bool(((y.double() - expected).abs() <= 0.51 * eps * expected.abs() + 1e-6).all())


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"swiglu: up must be torch.float32 \(2, 4\) like gate"):
        ops.swiglu(torch.randn(2, 4), torch.randn(4))
    with pytest.raises(InputError, match=r"geglu: up must be torch\.float32"):
        ops.geglu(torch.randn(2, 4), torch.randn(2, 4).bfloat16())
    with pytest.raises(InputError, match=r"must be even.*got shape \(2, 3\)"):
        ops.swiglu_packed(torch.randn(2, 3))
    with pytest.raises(InputError, match=r"got torch\.int64"):
        ops.swiglu(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
