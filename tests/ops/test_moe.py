"""Routing against scalar loops, experts against one token at a time, both against transformers."""

import importlib

import pytest
import torch
from oracles import moe as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import moe as module

# In units of float32 eps times the largest value: exponentials and quotients for the router; sums of up to
# 4097 products of three factors for the experts, twice for their gradients, of errors of either sign.
ULPS = {"route": 16, "experts": 64, "grad": 256}

# score, bias, groups, chosen groups, how groups are told, normalised, scale
OPTIONS = {
    "mixtral": ("softmax", False, 1, 1, None, True, 1.0),
    "olmoe": ("softmax", False, 1, 1, None, False, 1.0),
    "deepseek2": ("softmax", False, 4, 2, None, False, 16.0),
    "deepseek3": ("sigmoid", True, 4, 2, None, True, 2.5),
    "sigmoid": ("sigmoid", False, 1, 1, None, False, 1.0),
    "softmax bias top2": ("softmax", True, 3, 2, "top2", True, 1.0),
    "sigmoid bias max": ("sigmoid", True, 6, 3, "max", True, 1.0),
}


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        limit = ULPS[name] * torch.finfo(torch.float32).eps * max(1.0, float(expected.detach().abs().max()))
        assert float((actual.double() - expected).detach().abs().max()) <= limit


def _options(name: str, num_experts: int, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    score, has_bias, num_groups, topk_groups, group_score, normalize, scale = OPTIONS[name]
    generator = torch.Generator().manual_seed(7)
    bias = 0.2 * torch.randn(num_experts, generator=generator, dtype=dtype) if has_bias else None
    groups = {"num_groups": num_groups, "topk_groups": topk_groups, "group_score": group_score}
    return {"score": score, "bias": bias, "normalize": normalize, "scale": scale, **groups}


def _oracle_route(logits: Tensor, top_k: int, options: dict[str, object]) -> dict[str, object]:
    bias, group_score = options["bias"], options["group_score"]
    default = "top2" if options["score"] == "sigmoid" else "max"
    listed = None if bias is None else bias.tolist()
    return oracle.route(
        logits.tolist(), top_k, **{**options, "bias": listed, "group_score": group_score or default}
    )


def _tensors(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    dim: int,
    hidden_dim: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, x, gate_up_weight and down_weight; no token wants the second and the last expert."""
    generator = torch.Generator().manual_seed(num_tokens + num_experts)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    logits = draw(num_tokens, num_experts)
    if num_experts > top_k + 2:
        logits[:, [1, -1]] = -9.0
    gate_up, down = draw(num_experts, 2 * hidden_dim, dim), draw(num_experts, dim, hidden_dim)
    return logits, draw(num_tokens, dim), gate_up / max(1, dim) ** 0.5, down / max(1, hidden_dim) ** 0.5


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 12, 1), (127, 12, 4), (3, 36, 6)])
def test_route_values(name: str, num_tokens: int, num_experts: int, top_k: int) -> None:
    logits = _tensors(num_tokens, num_experts, top_k, 1, 1)[0] * 2.0
    options = _options(name, num_experts)
    result = ops.moe_route(logits, top_k, **options)
    expected = _oracle_route(logits, top_k, options)
    for field in ("expert", "order", "offsets", "load"):
        assert getattr(result, field).tolist() == expected[field], field
    for field in ("weight", "aux_loss", "z_loss"):
        assert getattr(result, field).dtype == torch.float32
        assert_close(getattr(result, field), torch.tensor(expected[field], dtype=torch.float64), "route")


@pytest.mark.parametrize(("name", "num_experts"), [("mixtral", 1000), ("deepseek3", 1000), ("sigmoid", 4097)])
def test_route_of_many_experts(name: str, num_experts: int) -> None:
    narrow = _tensors(3, num_experts, 8, 1, 1)[0].requires_grad_()
    options = _options(name, num_experts)
    result, expected = ops.moe_route(narrow, 8, **options), _oracle_route(narrow, 8, options)
    for field in ("expert", "order", "offsets", "load"):
        assert getattr(result, field).tolist() == expected[field], field
    for field in ("weight", "aux_loss", "z_loss"):
        assert_close(getattr(result, field), torch.tensor(expected[field], dtype=torch.float64), "route")
    wide = narrow.detach().double().requires_grad_()
    truth = _plain_route(wide, result.expert, options)
    (grad,) = torch.autograd.grad(
        sum(t.sum() for t in (result.weight, result.aux_loss, result.z_loss)), narrow
    )
    assert_close(grad, torch.autograd.grad(sum(t.sum() for t in truth), wide)[0], "route")


@pytest.mark.parametrize("name", ["mixtral", "deepseek3"])
def test_route_of_many_tokens(name: str) -> None:
    logits = _tensors(1025, 24, 3, 1, 1)[0].to(torch.float64)
    result = ops.moe_route(logits, 3, **_options(name, 24, torch.float64))
    load = torch.bincount(result.expert.flatten(), minlength=24)
    assert torch.equal(result.load.long(), load)
    assert torch.equal(result.offsets.long(), torch.cat((torch.zeros(1, dtype=torch.int64), load.cumsum(0))))
    assert torch.equal(result.order.long(), result.expert.flatten().sort(stable=True).indices)
    split = ops.moe_route(logits.view(5, 205, 24), 3, **_options(name, 24, torch.float64))
    assert torch.equal(result.weight, split.weight)


def test_of_equal_scores_the_lower_index_wins() -> None:
    assert ops.moe_route(torch.zeros(3, 8), 3).expert.tolist() == [[0, 1, 2]] * 3
    result = ops.moe_route(torch.zeros(2, 8), 4, num_groups=4, topk_groups=2, score="sigmoid")
    assert result.expert.tolist() == [[0, 1, 2, 3]] * 2
    bias = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    result = ops.moe_route(torch.zeros(1, 6), 4, num_groups=3, topk_groups=2, bias=bias)
    assert result.expert.tolist() == [[3, 5, 2, 4]]


def test_the_bias_chooses_and_does_not_weigh() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    result = ops.moe_route(logits, 2, score="sigmoid", bias=torch.tensor([0.0, -9.0, 0.0, 9.0]))
    assert result.expert.tolist() == [[3, 0]]
    picked = logits.sigmoid()[0, [3, 0]]
    torch.testing.assert_close(result.weight[0], picked / picked.sum())


def test_a_disabled_expert_is_never_chosen_before_another() -> None:
    logits, bias = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(6)
    bias[2] = -torch.inf
    result = ops.moe_route(logits, 5, bias=bias)
    assert int(result.load[2]) == 0
    masked = logits.clone()
    masked[:, 2] = -torch.inf
    assert int(ops.moe_route(masked, 5).load[2]) == 0
    # Experts with a bias of -inf are still better than those of other groups.
    result = ops.moe_route(
        torch.tensor([[0.0, 1.0, 5.0, 5.0]]),
        2,
        num_groups=2,
        topk_groups=1,
        bias=torch.tensor([-torch.inf, 2.0, 0.0, 0.0]),
    )
    assert result.expert.tolist() == [[1, 0]]


def test_balanced_load_gives_a_loss_of_top_k() -> None:
    logits = torch.eye(6).roll(1, 1) + torch.eye(6)
    for score in ("softmax", "sigmoid"):
        assert float(ops.moe_route(20.0 * logits, 2, score=score).aux_loss) == pytest.approx(2.0, rel=1e-6)


def _plain_route(logits: Tensor, expert: Tensor, options: dict[str, object]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute weights and losses by torch's operations, for a given choice."""
    scores = logits.sigmoid() if options["score"] == "sigmoid" else logits.softmax(-1)
    weight = scores.gather(1, expert)
    if options["normalize"]:
        weight = weight / weight.sum(1, keepdim=True)
    load = torch.bincount(expert.flatten(), minlength=logits.shape[1]).to(logits.dtype)
    shares = (scores / scores.sum(1, keepdim=True)).mean(0)
    aux_loss = logits.shape[1] * (load / logits.shape[0] * shares).sum()
    return weight * options["scale"], aux_loss, logits.logsumexp(1).square().mean()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_route_gradients_follow_torch_in_float64(name: str) -> None:
    logits, options = _tensors(37, 12, 4, 1, 1)[0], _options(name, 12)
    narrow, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    result = ops.moe_route(narrow, 4, **options)
    outputs = result.weight, result.aux_loss, result.z_loss
    expected = _plain_route(wide, result.expert, options)
    upstream = (
        torch.randn(37, 4, generator=torch.Generator().manual_seed(1)),
        torch.tensor(3.0),
        torch.tensor(2.0),
    )
    for part in ([0], [1], [2], [0, 1, 2]):
        (grad,) = torch.autograd.grad([outputs[i] for i in part], narrow, [upstream[i] for i in part], True)
        (truth,) = torch.autograd.grad(
            [expected[i] for i in part], wide, [upstream[i].double() for i in part], True
        )
        assert_close(grad, truth, "route")


@pytest.mark.parametrize("name", list(OPTIONS))
def test_route_gradcheck(name: str) -> None:
    logits = _tensors(3, 12, 4, 1, 1, torch.float64)[0].requires_grad_()
    options = _options(name, 12, torch.float64)

    def route(logits: Tensor) -> tuple[Tensor, ...]:
        result = ops.moe_route(logits, 4, **options)
        return result.weight, result.aux_loss, result.z_loss

    assert torch.autograd.gradcheck(route, (logits,))


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "dim", "hidden_dim"),
    [
        *((1, 1, 1, 1, 1), (3, 5, 2, 127, 3), (37, 7, 3, 3, 33), (257, 4, 1, 8, 5)),
        *((3, 3, 1, 1000, 3), (3, 3, 1, 3, 1000)),
    ],
)
def test_experts_values_and_gradients(
    num_tokens: int, num_experts: int, top_k: int, dim: int, hidden_dim: int
) -> None:
    _check_experts(num_tokens, num_experts, top_k, dim, hidden_dim)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "dim", "hidden_dim"),
    [
        *((1000, 5, 2, 5, 3), (4097, 3, 1, 3, 5), (5, 1000, 3, 5, 3), (5, 4097, 2, 3, 2)),
        *((3, 2, 1, 4097, 3), (3, 2, 1, 3, 4097)),
    ],
)
def test_thousands_of_tokens_experts_and_features(
    num_tokens: int, num_experts: int, top_k: int, dim: int, hidden_dim: int
) -> None:
    _check_experts(num_tokens, num_experts, top_k, dim, hidden_dim)


def _check_experts(num_tokens: int, num_experts: int, top_k: int, dim: int, hidden_dim: int) -> None:
    logits, *tensors = _tensors(num_tokens, num_experts, top_k, dim, hidden_dim)
    routing = ops.moe_route(logits, top_k, normalize=False)
    upstream = torch.randn(num_tokens, dim, generator=torch.Generator().manual_seed(1))
    narrow = [t.clone().requires_grad_() for t in (tensors[0], routing.weight, *tensors[1:])]
    wide = [t.detach().double().requires_grad_() for t in narrow]
    x, weight, gate_up, down = narrow
    y = ops.moe_experts(x, routing._replace(weight=weight), gate_up, down)
    assert y.dtype == torch.float32
    expected = oracle.experts(wide[0], wide[1], routing.expert, *wide[2:])
    assert_close(y, expected, "experts")
    grads = torch.autograd.grad(y, narrow, upstream)
    for a, b in zip(grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        assert_close(a, b, "grad")
    if num_experts > top_k + 2:
        assert bool((grads[2][1] == 0).all()), "an expert without tokens has a gradient"


def test_experts_gradcheck() -> None:
    logits, *tensors = _tensors(3, 5, 2, 3, 2, torch.float64)
    routing = ops.moe_route(logits, 2)
    inputs = [t.requires_grad_() for t in (tensors[0], routing.weight, *tensors[1:])]

    def experts(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return ops.moe_experts(x, routing._replace(weight=weight), gate_up, down)

    assert torch.autograd.gradcheck(experts, inputs)
    for i in range(4):  # what is needed alone
        alone = [t if i == j else t.detach() for j, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(experts, alone)


def test_experts_without_what_is_kept() -> None:
    logits, *tensors = _tensors(9, 5, 2, 7, 6)
    routing = ops.moe_route(logits, 2)
    arguments = tensors[0], routing.weight, routing.order, routing.offsets, *tensors[1:]
    forward, backward = torch.ops.pylm.moe_experts, torch.ops.pylm.moe_experts_backward
    y, kept = forward(*arguments, True)
    again, nothing = forward(*arguments, False)
    assert torch.equal(y, again)
    assert kept.shape == (18, 12)
    assert nothing.numel() == 0
    grads = backward(y, *arguments, kept, [True] * 4)
    for a, b in zip(grads, backward(y, *arguments, nothing, [True] * 4), strict=True):
        assert torch.equal(a, b)
    assert [g.numel() for g in backward(y, *arguments, kept, [False] * 4)] == [0] * 4


@pytest.mark.parametrize("shape", [(0, 4, 6, 5), (2, 0, 6, 5), (2, 4, 0, 5), (2, 4, 6, 0)])
def test_nothing_to_do(shape: tuple[int, int, int, int]) -> None:
    batch, time, dim, hidden_dim = shape
    _, _, gate_up, down = _tensors(8, 5, 2, dim, hidden_dim)
    x = torch.randn(batch, time, dim, requires_grad=True)
    logits = torch.randn(batch, time, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate_up.requires_grad_()
    down.requires_grad_()
    routing = ops.moe_route(logits, 2)
    assert int(routing.load.sum()) == routing.order.numel() == 2 * batch * time
    y = ops.moe_experts(x, routing, gate_up, down)
    assert y.shape == x.shape
    assert bool((y == 0).all())
    grads = torch.autograd.grad(
        y.sum() + routing.aux_loss + routing.z_loss, (x, logits, gate_up, down), allow_unused=True
    )
    for grad, tensor in zip(grads, (x, logits, gate_up, down), strict=True):
        assert grad.shape == tensor.shape
        assert bool(grad.isfinite().all())
    if routing.order.numel() == 0:
        assert routing.aux_loss.item() == routing.z_loss.item() == 0.0


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_token_goes_nowhere(name: str, shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, 12, requires_grad=True)
    routing = ops.moe_route(logits, 3, **_options(name, 12))
    assert routing.weight.shape == routing.expert.shape == (0, 3)
    assert routing.load.tolist() == [0] * 12
    assert routing.offsets.tolist() == [0] * 13
    assert routing.order.numel() == 0
    assert routing.aux_loss.item() == routing.z_loss.item() == 0.0
    (grad,) = torch.autograd.grad(routing.weight.sum() + routing.aux_loss + routing.z_loss, logits)
    assert grad.shape == logits.shape
    moe = ops.MoE(4, 3, num_experts=12, top_k=3, num_groups=4, topk_groups=2)
    assert moe(torch.randn(*shape, 4))[0].shape == (*shape, 4)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("row", [[torch.inf, 0.0, 1.0], [-torch.inf] * 3, [0.0, torch.nan, 0.0]])
def test_logits_without_a_finite_sum_show_in_the_losses(score: str, row: list[float]) -> None:
    routing = ops.moe_route(torch.tensor([row, [1.0, 2.0, 3.0]]), 2, score=score)
    assert bool(routing.z_loss.isnan())
    assert bool(routing.aux_loss.isnan()) == (score == "softmax" or bool(torch.tensor(row).isnan().any()))
    assert bool(routing.weight[1].isfinite().all())


def test_choices_that_come_twice_are_refused() -> None:
    logits, x, gate_up, down = _tensors(4, 6, 2, 5, 3)
    routing = ops.moe_route(logits, 2)
    twice = routing.order.clone()
    twice[3] = twice[4]
    with pytest.raises(InputError, match="order of routing must hold every choice once"):
        ops.moe_experts(x, routing._replace(order=twice), gate_up, down)


def test_any_strides_are_accepted() -> None:
    logits, x, gate_up, down = _tensors(21, 6, 2, 5, 4)
    routing = ops.moe_route(logits, 2)
    upstream = torch.randn(21, 5, generator=torch.Generator().manual_seed(1))

    def run(*tensors: Tensor) -> list[Tensor]:
        logits, x, weight, gate_up, down = (t.detach().requires_grad_() for t in tensors)
        routed = ops.moe_route(logits, 2)
        y = ops.moe_experts(x, routed._replace(weight=weight), gate_up, down)
        inputs = logits, x, weight, gate_up, down
        return [y, *torch.autograd.grad((y, routed.aux_loss), inputs, (upstream, torch.ones(())))]

    tensors = logits, x, routing.weight, gate_up, down
    strided = [torch.stack((t, t), -1)[..., 0].mT.contiguous().mT for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    copies = [t.clone() for t in strided]
    for a, b in zip(run(*strided), run(*tensors), strict=True):
        assert_close(a, b, "grad")
    wide = torch.cat((x, x), 1)[:, :5], gate_up.expand(2, *gate_up.shape)[1], down.repeat(1, 1, 2)[..., :4]
    y = ops.moe_experts(wide[0], routing, wide[1], wide[2])
    assert_close(y, ops.moe_experts(x, routing, gate_up, down), "experts")
    expanded = ops.moe_experts(x[:1].expand(21, 5), routing, gate_up, down)
    assert_close(expanded, ops.moe_experts(x[:1].repeat(21, 1), routing, gate_up, down), "experts")
    assert all(torch.equal(a, b) for a, b in zip(strided, copies, strict=True)), "the input was written to"


def test_the_same_bits_twice() -> None:
    logits, x, gate_up, down = _tensors(40, 5, 2, 16, 12)
    inputs = [t.requires_grad_() for t in (logits, x, gate_up, down)]

    def run() -> list[Tensor]:
        routing = ops.moe_route(logits, 2)
        y = ops.moe_experts(x, routing, gate_up, down)
        return [y, *torch.autograd.grad(y.square().sum() + routing.aux_loss, inputs)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_bfloat16() -> None:
    logits, x, gate_up, down = (t.bfloat16() for t in _tensors(33, 6, 2, 65, 20))
    routing = ops.moe_route(logits, 2)
    exact = ops.moe_route(logits.double(), 2)
    assert torch.equal(routing.expert, exact.expert)
    assert_close(routing.weight, exact.weight, "route")
    inputs = [t.requires_grad_() for t in (x, gate_up, down)]
    y = ops.moe_experts(x, routing, gate_up, down)
    assert y.dtype == torch.bfloat16
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = oracle.experts(wide[0], exact.weight, exact.expert, wide[1], wide[2])
    eps = torch.finfo(torch.bfloat16).eps
    assert float((y.double() - expected).detach().abs().max()) <= 0.51 * eps * float(
        expected.detach().abs().max()
    )
    upstream = torch.randn(33, 65, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = torch.autograd.grad(y, inputs, upstream)
    # gate and up are kept in bfloat16: half an ulp each, and one rounding of the result.
    for a, b in zip(grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.double() - b).abs().max()) <= 2.0 * eps * float(b.abs().max())


def test_errors_name_what_is_wrong() -> None:
    logits, x, gate_up, down = _tensors(4, 6, 2, 5, 3)
    with pytest.raises(InputError, match=r"top_k must be in \[1, 6\].*got 7"):
        ops.moe_route(logits, 7)
    with pytest.raises(InputError, match=r"top_k must be in \[1, 2\], the experts that may be chosen, got 3"):
        ops.moe_route(logits, 3, num_groups=3)
    with pytest.raises(InputError, match=r"num_groups must be at least 1 and divide the 6 experts, got 4"):
        ops.moe_route(logits, 2, num_groups=4)
    with pytest.raises(InputError, match=r"topk_groups must be in \[1, num_groups=3\], got 4"):
        ops.moe_route(logits, 2, num_groups=3, topk_groups=4)
    with pytest.raises(InputError, match=r'score must be "softmax" or "sigmoid", got \'relu\''):
        ops.moe_route(logits, 2, score="relu")
    with pytest.raises(InputError, match=r'group_score must be "max", "top2" or None'):
        ops.moe_route(logits, 2, group_score="sum")
    with pytest.raises(InputError, match=r"bias must have shape \(6,\), got \(4,\)"):
        ops.moe_route(logits, 2, bias=torch.zeros(4))
    with pytest.raises(InputError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        ops.moe_route(logits.long(), 2)
    with pytest.raises(InputError, match=r"logits must be \(\.\.\., E\), got a scalar"):
        ops.moe_route(torch.tensor(1.0), 1)
    routing = ops.moe_route(logits, 2)
    with pytest.raises(InputError, match=r"gate_up_weight \(E, 2 \* I, H\), got \(4, 5\) and \(6, 5, 6\)"):
        ops.moe_experts(x, routing, gate_up.mT, down)
    with pytest.raises(InputError, match=r"down_weight must be \(E, H, I\) = \(6, 5, 3\), got \(6, 3, 5\)"):
        ops.moe_experts(x, routing, gate_up, down.mT)
    with pytest.raises(InputError, match=r"routing is of \(4, 2\) choices.*the 3 tokens of x"):
        ops.moe_experts(x[:3], routing, gate_up, down)
    with pytest.raises(InputError, match=r"routing is of 6 experts, but gate_up_weight has 5"):
        ops.moe_experts(x, routing, gate_up[:5], down[:5])
    with pytest.raises(InputError, match=r'balance must be "loss" or "bias"'):
        ops.MoE(4, 4, 2, 1, balance="none")
    with pytest.raises(InputError, match=r"there is no bias"):
        ops.MoE(4, 4, 2, 1).update_bias(torch.ones(2))


def test_too_many_choices_are_an_error() -> None:
    with pytest.raises(InputError, match=r"must be below 2\^31"):
        ops.moe_route(torch.empty(2**30, 4, device="meta"), 2)


def test_module() -> None:
    torch.manual_seed(0)
    moe = ops.MoE(6, 5, 8, 2, score="sigmoid", balance="bias", num_groups=4, topk_groups=2, scale=2.5)
    assert set(moe.state_dict()) == {"router_weight", "gate_up_weight", "down_weight", "expert_bias"}
    x = torch.randn(3, 7, 6)
    y, routing = moe(x)
    logits = x.flatten(0, 1) @ moe.router_weight.T
    again = ops.moe_route(
        logits, 2, score="sigmoid", bias=moe.expert_bias, num_groups=4, topk_groups=2, scale=2.5
    )
    assert torch.equal(routing.expert, again.expert)
    torch.testing.assert_close(y, ops.moe_experts(x, again, moe.gate_up_weight, moe.down_weight))
    (y.square().sum() + routing.aux_loss).backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in moe.parameters())
    moe.update_bias(torch.tensor([0, 9, 4, 4, 4, 4, 3, 4]), rate=0.5)
    assert moe.expert_bias.tolist() == [0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0]
    assert "6, 5, num_experts=8, top_k=2" in repr(moe)


def test_the_bias_balances() -> None:
    torch.manual_seed(0)
    moe = ops.MoE(16, 4, 8, 2, score="sigmoid", balance="bias")
    logits = (torch.randn(512, 16) + 0.5) @ moe.router_weight.detach().T

    def load() -> Tensor:
        return ops.moe_route(logits, 2, score="sigmoid", bias=moe.expert_bias).load.float()

    before = load()
    for _ in range(400):
        moe.update_bias(load(), rate=0.002)
    after = load()
    assert float(after.max() / after.mean()) < 1.1 < 1.3 < float(before.max() / before.mean())


def test_autocast_changes_nothing_on_the_cpu() -> None:
    torch.manual_seed(0)
    moe = ops.MoE(16, 4, 8, 2)
    x = torch.randn(64, 16)

    def run() -> tuple[Tensor, ...]:
        y, _ = moe(x)
        return y, *torch.autograd.grad(y.square().sum(), (moe.gate_up_weight, moe.down_weight))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run()
    assert all(torch.equal(a, b) for a, b in zip(actual, run(), strict=True))
    assert moe.bfloat16()(x.bfloat16())[1].weight.dtype == torch.float32


def _transformers(name: str) -> tuple[object, object]:
    pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")
    configuration = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    return configuration, importlib.import_module(f"transformers.models.{name}.modeling_{name}")


MODELS = {
    "mixtral": ("Mixtral", "TopKRouter", {"num_local_experts": 16}, {}),
    "qwen3_moe": ("Qwen3Moe", "TopKRouter", {"num_experts": 16, "norm_topk_prob": True}, {}),
    "olmoe": ("Olmoe", "TopKRouter", {"num_experts": 16, "norm_topk_prob": False}, {"normalize": False}),
    "deepseek_v2": (
        "DeepseekV2",
        "TopkRouter",
        {"n_routed_experts": 16, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 16.0},
        {"num_groups": 4, "topk_groups": 2, "normalize": False, "scale": 16.0},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        "TopkRouter",
        {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
        {"score": "sigmoid", "num_groups": 4, "topk_groups": 2, "scale": 2.5},
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_follows_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, modeling = _transformers(name)
    prefix, router_name, fields, options = MODELS[name]
    config = getattr(configuration, f"{prefix}Config")(
        hidden_size=24,
        intermediate_size=12,
        moe_intermediate_size=12,
        num_experts_per_tok=3,
        num_attention_heads=4,
        **fields,
    )
    torch.manual_seed(0)
    router = getattr(modeling, prefix + router_name)(config)
    experts = getattr(modeling, f"{prefix}Experts")(config)
    with torch.no_grad():
        for parameter in (*router.parameters(), *experts.parameters()):
            parameter.normal_(std=0.3)
        if name == "deepseek_v3":
            router.e_score_correction_bias.normal_(std=0.1)
            options = {**options, "bias": router.e_score_correction_bias}
    x = torch.randn(50, 24)
    logits, weight, expert = router(x)
    routing = ops.moe_route(logits, 3, **options)
    # Theirs may be in any order.
    for ours, theirs in ((routing.expert, expert), (routing.weight, weight)):
        order, their_order = routing.expert.argsort(1), expert.argsort(1)
        torch.testing.assert_close(ours.gather(1, order), theirs.gather(1, their_order))
    theirs = experts(x, expert, weight)
    ours = ops.moe_experts(x, routing, experts.gate_up_proj, experts.down_proj)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    parameters = [router.weight, experts.gate_up_proj, experts.down_proj]
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, parameters, upstream, retain_graph=True),
        torch.autograd.grad(theirs, parameters, upstream, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if name == "mixtral":
        loss = modeling.load_balancing_loss_func((logits,), 16, 3)
        torch.testing.assert_close(routing.aux_loss, loss)
        (a,), (b,) = (
            torch.autograd.grad(t, router.weight, retain_graph=True) for t in (routing.aux_loss, loss)
        )
        torch.testing.assert_close(a, b)


def test_keeps_only_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x, gate_up, down = _tensors(5, 4, 2, 3, 2)
    kept = []
    forward = module._EXPERTS
    monkeypatch.setattr(module, "_EXPERTS", lambda *args: kept.append(args[-1]) or forward(*args))
    routing = ops.moe_route(logits, 2)
    ops.moe_experts(x, routing, gate_up, down)
    with torch.no_grad():
        ops.moe_experts(x.requires_grad_(), routing, gate_up, down)
    ops.moe_experts(x, routing, gate_up, down)
    assert kept == [False, False, True]
