"""Gated activations against scalar formulas, and their gradients against finite differences and torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracles import ops as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import gated

# In units of eps times the largest value: exponential (1), quotient, tanh or error function (2), up to 5
# products and sums; alpha is rounded, and so the exponent, up to 90, by one more unit of its own size.
ULPS = {"forward": 8, "grad": 16}

GPT_OSS = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0}
# name: (the op, its options)
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "swiglu": ("swiglu", {}),
    "swiglu alpha": ("swiglu", {"alpha": 0.5}),
    "swiglu limit": ("swiglu", {"limit": 2.5}),
    "swiglu offset": ("swiglu", {"up_offset": -0.75}),
    "swiglu gpt-oss": ("swiglu", GPT_OSS),
    "geglu": ("geglu", {}),
    "geglu exact": ("geglu", {"approximate": "none"}),
}
SHAPES = [(257, 127), (1, 1), (3, 1, 5), (0, 4), (4, 0), (7,), (1, 1000), (3, 4097), (1000, 3), (4097, 1)]


def _op(form: str, packing: str = "apart") -> Callable[..., Tensor]:
    """Return the op as a function of gate and up, whatever it takes."""
    name, options = FORMS[form]
    if packing == "apart":
        return lambda gate, up: getattr(ops, name)(gate, up, **options)
    packed = getattr(ops, f"{name}_packed")
    if packing == "halves":
        return lambda gate, up: packed(torch.cat((gate, up), -1), **options)
    return lambda gate, up: packed(torch.stack((gate, up), -1).flatten(-2), interleaved=True, **options)


def _by_torch(form: str, gate: Tensor, up: Tensor) -> Tensor:
    name, options = FORMS[form]
    if name == "geglu":
        return F.gelu(gate, approximate=options.get("approximate", "tanh")) * up
    limit = options.get("limit", float("inf"))
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(options.get("alpha", 1.0) * gate) * (up + options.get("up_offset", 0.0))


def _limit(name: str, expected: Tensor) -> float:
    return ULPS[name] * torch.finfo(torch.float32).eps * max(1.0, float(expected.detach().abs().max()))


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert float((actual.double() - expected).detach().abs().max()) <= _limit(name, expected)


@pytest.mark.parametrize("packing", ["apart", "halves", "interleaved"])
@pytest.mark.parametrize("form", list(FORMS))
def test_values(form: str, packing: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up = (4.0 * torch.randn(3, 127, generator=generator) for _ in range(2))
    gate[0, :4] = torch.tensor([0.0, 80.0, -80.0, -0.0])
    up[1, :4] = torch.tensor([50.0, -50.0, 2.5, -2.5])
    name, options = FORMS[form]
    pairs = zip(gate.flatten().tolist(), up.flatten().tolist(), strict=True)
    expected = [getattr(oracle, name)(g, u, **options) for g, u in pairs]
    assert_close(
        _op(form, packing)(gate, up), torch.tensor(expected, dtype=torch.float64).view(3, 127), "forward"
    )


@pytest.mark.parametrize("packing", ["apart", "halves", "interleaved"])
@pytest.mark.parametrize("form", list(FORMS))
def test_gradcheck(form: str, packing: str) -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = (2.0 * torch.randn(2, 1, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    gate[0, 0, 0], up[0, 0, 1], up[0, 0, 2] = 9.0, 8.0, -8.0
    gate.requires_grad_()
    up.requires_grad_()
    function = _op(form, packing)
    assert torch.autograd.gradcheck(function, (gate, up))
    if packing == "apart":
        assert torch.autograd.gradcheck(lambda g: function(g, up.detach()), (gate,))
        assert torch.autograd.gradcheck(lambda u: function(gate.detach(), u), (up,))


@pytest.mark.parametrize("keeps", [True, False], ids=["kept-sigmoid", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", list(FORMS))
def test_gradients_follow_torch_in_float64(
    form: str, shape: tuple[int, ...], keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "_CHUNK_ELEMENTS", 1000)  # several chunks and a rest
    if not keeps:
        monkeypatch.setattr(gated, "_keeps_sigmoid", lambda *args: False)
    generator = torch.Generator().manual_seed(3)
    gate, up, upstream = (3.0 * torch.randn(shape, generator=generator) for _ in range(3))
    wide = [t.double().requires_grad_() for t in (gate, up)]
    expected = _by_torch(form, *wide)
    grads = torch.autograd.grad(expected, wide, upstream.double())
    for packing in ("apart", "halves", "interleaved"):
        narrow = [t.clone().requires_grad_() for t in (gate, up)]
        y = _op(form, packing)(*narrow)
        assert_close(y, expected, "forward")
        for a, b in zip(torch.autograd.grad(y, narrow, upstream), grads, strict=True):
            assert_close(a, b, "grad")


def test_at_the_limit_the_gradient_passes() -> None:
    values = [-1.5, -1.0, 0.0, 1.0, 1.5]
    gate = torch.tensor(values).repeat(5).requires_grad_()
    up = torch.tensor(values).repeat_interleave(5).requires_grad_()
    grads = torch.autograd.grad(ops.swiglu(gate, up, limit=1.0, up_offset=2.0).sum(), (gate, up))
    clamped = gate.clamp(max=1.0), up.clamp(-1.0, 1.0)
    expected = torch.autograd.grad((F.silu(clamped[0]) * (clamped[1] + 2.0)).sum(), (gate, up))
    for a, b in zip(grads, expected, strict=True):
        assert_close(a, b, "grad")
        assert torch.equal(a == 0.0, b == 0.0)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    one = torch.ones(4)
    y = ops.swiglu(x, one, **GPT_OSS)
    assert y.isnan().tolist() == [True, False, True, False]  # -inf times a sigmoid of 0
    assert float(y[1]) == pytest.approx(2.0 * oracle.swiglu(7.0, 1.0, alpha=1.702))
    y = ops.swiglu(one, x, **GPT_OSS)
    assert y.isnan().tolist() == [True, False, False, False]
    share = oracle.swiglu(1.0, 1.0, alpha=1.702)
    assert y[1:].tolist() == pytest.approx([8.0 * share, -6.0 * share, 2.0 * share])


def test_equals_gpt_oss_of_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    gpt_oss = pytest.importorskip(
        "transformers.models.gpt_oss.modeling_gpt_oss", reason="transformers is older than gpt-oss"
    )
    config = pytest.importorskip("transformers").GptOssConfig(
        hidden_size=8, intermediate_size=6, num_local_experts=2
    )
    experts = gpt_oss.GptOssExperts(config)
    if not hasattr(experts, "_apply_gate"):
        pytest.skip("this transformers has the activation inside of the experts' forward")
    gate_up = 6.0 * torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    actual = ops.swiglu_packed(gate_up, interleaved=True, **GPT_OSS)
    torch.testing.assert_close(actual, experts._apply_gate(gate_up), rtol=1e-14, atol=1e-14)
    assert bool((gate_up.abs() > 7.0).any())


@pytest.mark.parametrize("form", ["swiglu", "swiglu gpt-oss", "geglu", "geglu exact"])
def test_any_strides_are_accepted(form: str) -> None:
    # Torch's exponential rounds otherwise at the end of a run of memory, so the bits may differ.
    base = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(4))
    before = base.clone()
    op = _op(form)
    name, options = FORMS[form]
    cases = (
        base.transpose(0, 2), base[::2, 1::3], base[:1].expand(6, 10, 8), base[..., ::2],
        base[..., :1].expand(6, 10, 8), base[0, 0, 0].expand(3, 4),
    )  # fmt: skip
    for x in cases:
        strided = x.detach().requires_grad_()
        plain = x.contiguous().requires_grad_()
        a, b = op(strided, strided.flip(0)), op(plain, plain.flip(0))
        assert_close(a, b, "forward")
        assert a.is_contiguous()
        upstream = torch.randn(a.shape[::-1]).permute(*range(a.dim())[::-1])
        (strided_grad,) = torch.autograd.grad(a, strided, upstream)
        assert_close(strided_grad, torch.autograd.grad(b, plain, upstream.contiguous())[0], "grad")
        if x.shape[-1] % 2:
            continue
        for interleaved in (False, True):
            packed = getattr(ops, f"{name}_packed")
            a, b = (packed(t, interleaved=interleaved, **options) for t in (strided, plain))
            assert_close(a, b, "forward")
            upstream = torch.ones(()).expand(a.shape)
            (strided_grad,) = torch.autograd.grad(a, strided, upstream)
            assert_close(strided_grad, torch.autograd.grad(b, plain, upstream)[0], "grad")
    assert torch.equal(base, before), "the input was written to"


def test_bfloat16_rounds_once() -> None:
    generator = torch.Generator().manual_seed(5)
    gate, up = (torch.randn(9, 65, generator=generator).bfloat16() for _ in range(2))
    eps = torch.finfo(torch.bfloat16).eps
    for form in FORMS:
        for packing in ("apart", "halves", "interleaved"):
            y = _op(form, packing)(gate, up)
            assert y.dtype == torch.bfloat16
            expected = _by_torch(form, gate.double(), up.double())
            assert bool(((y.double() - expected).abs() <= 0.51 * eps * expected.abs() + 1e-6).all())


def test_errors_name_what_is_wrong() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(InputError, match=r"swiglu: up must be torch.float32 \(2, 4\) like gate"):
        ops.swiglu(x, torch.randn(4))
    with pytest.raises(InputError, match=r"geglu: up must be torch\.float32"):
        ops.geglu(x, x.bfloat16())
    with pytest.raises(InputError, match=r"must be even \(gate, then up\), got shape \(2, 3\)"):
        ops.swiglu_packed(torch.randn(2, 3))
    with pytest.raises(InputError, match=r"geglu_packed: .* must be even \(gate and up in turn\)"):
        ops.geglu_packed(torch.tensor(1.0), interleaved=True)
    with pytest.raises(InputError, match=r"got torch\.int64"):
        ops.swiglu(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="swiglu: limit must be positive or None, got"):
            ops.swiglu(x, x, limit=limit)
    with pytest.raises(InputError, match="alpha and up_offset must be finite, got inf"):
        ops.swiglu_packed(x, alpha=float("inf"))
    with pytest.raises(InputError, match='geglu: approximate must be "tanh" or "none", got \'erf\''):
        ops.geglu(x, x, approximate="erf")
