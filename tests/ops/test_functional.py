"""The ops under torch.func: what the transforms give of the same formulas in torch, in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, func, nn

from pylm import ops
from pylm.ops import logprob

TARGETS = torch.tensor([2, -100, 0, 4])
TABLES = [table.double() for table in ops.rope_cache(4, 2)]
Op = Callable[..., Tensor]


def _rotated(x: Tensor) -> Tensor:
    cos, sin = (table.unsqueeze(1) for table in TABLES)
    a, b, rest = x[..., :1], x[..., 1:2], x[..., 2:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def _log_softmax(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1)


def _logprob(hidden: Tensor, weight: Tensor) -> Tensor:
    log_p = _log_softmax(hidden, weight)
    entropy = -(log_p.exp() * log_p).sum(-1)
    picked = torch.where(TARGETS < 0, 0.0, log_p.gather(-1, TARGETS.clamp(min=0)[:, None])[:, 0])
    return (picked - 0.3 * torch.where(TARGETS < 0, 0.0, entropy)).sum()


def _fused_logprob(hidden: Tensor, weight: Tensor) -> Tensor:
    result = ops.linear_logprob(hidden, weight, TARGETS)
    return (result.logprob - 0.3 * result.entropy).sum()


def _experts(x: Tensor, router: Tensor) -> Tensor:
    """Two of three experts, whose weights are made of the router."""
    weight, expert = (x @ router.T).softmax(-1).topk(2, -1)
    weight = weight / weight.sum(-1, keepdim=True)
    gate_up, down = _expert_weights(router)
    hidden = x @ gate_up.transpose(1, 2)  # (E, N, 2 I)
    each = (F.silu(hidden[..., :4]) * hidden[..., 4:]) @ down.transpose(1, 2)  # (E, N, H)
    choices = F.one_hot(expert, 3).to(x.dtype)
    return torch.einsum("nk,nke,enh->nh", weight, choices, each)


def _expert_weights(router: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("eh,i->eih", router, torch.linspace(-1, 1, 8, dtype=router.dtype)), torch.einsum(
        "eh,i->ehi", router.sin(), torch.linspace(0.5, 1, 4, dtype=router.dtype)
    )


def _fused_experts(x: Tensor, router: Tensor) -> Tensor:
    routing = ops.moe_route(x @ router.T, 2)
    return ops.moe_experts(x, routing, *_expert_weights(router))


def _router_losses(x: Tensor, router: Tensor) -> Tensor:
    logits = x @ router.T
    shares = logits.softmax(-1)
    load = F.one_hot(logits.topk(2, -1).indices, 3).sum((0, 1)).to(x.dtype)
    aux = 3 * (load / 4 * shares.mean(0)).sum()
    return aux + logits.logsumexp(-1).square().mean()


def _fused_router_losses(x: Tensor, router: Tensor) -> Tensor:
    routing = ops.moe_route(x @ router.T, 2)
    return routing.aux_loss + routing.z_loss


# Every op, the same in torch, and the shapes of both inputs.
CASES: dict[str, tuple[Op, Op, tuple[int, ...], tuple[int, ...]]] = {
    "rms_norm": (ops.rms_norm, lambda x, w: F.rms_norm(x, (3,), w, 1e-6), (4, 3), (3,)),
    "rms_norm with residual": (
        lambda x, w: torch.cat(ops.rms_norm(x, w, residual=x.flip(0))),
        lambda x, w: torch.cat((F.rms_norm(x + x.flip(0), (3,), w, 1e-6), x + x.flip(0))),
        (4, 3),
        (3,),
    ),
    "rope": (
        lambda q, k: torch.cat(ops.rope(q, k, *TABLES), 1),
        lambda q, k: torch.cat((_rotated(q), _rotated(k)), 1),
        (4, 2, 3),
        (4, 1, 3),
    ),
    "swiglu": (ops.swiglu, lambda g, u: F.silu(g) * u, (4, 3), (4, 3)),
    "geglu": (ops.geglu, lambda g, u: F.gelu(g, approximate="tanh") * u, (4, 3), (4, 3)),
    "swiglu_packed": (
        lambda x, y: ops.swiglu_packed(torch.cat((x, y), -1)),
        lambda x, y: F.silu(x) * y,
        (4, 3),
        (4, 3),
    ),
    "geglu_packed": (
        lambda x, y: ops.geglu_packed(torch.cat((x, y), -1), approximate="none"),
        lambda x, y: F.gelu(x) * y,
        (4, 3),
        (4, 3),
    ),
    "moe_experts": (_fused_experts, _experts, (4, 3), (3, 3)),
    "moe_route": (_fused_router_losses, _router_losses, (4, 3), (3, 3)),
    "linear_logprob": (_fused_logprob, _logprob, (4, 3), (5, 3)),
    "linear_cross_entropy": (
        lambda h, w: ops.linear_cross_entropy(h, w, TARGETS, z_loss=0.1),
        lambda h, w: (
            F.cross_entropy(h @ w.T, TARGETS) + 0.1 * (h @ w.T).logsumexp(-1)[TARGETS >= 0].square().mean()
        ),
        (4, 3),
        (5, 3),
    ),
}


def _inputs(name: str, *, batch: int | None = None) -> tuple[Op, Op, Tensor, Tensor]:
    op, expected, *shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    lead = () if batch is None else (batch,)
    x, y = (torch.randn(*lead, *shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return op, expected, x, y


def _weighted(call: Op) -> Op:
    """Return a scalar of which every output has another share."""

    def total(*inputs: Tensor) -> Tensor:
        y = call(*inputs)
        return (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()

    return total


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=["kept", "early"], autouse=True)
def keeps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the output layer."""
    if request.param == "early":
        monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 0})


@pytest.mark.parametrize("name", list(CASES))
def test_grad_and_vjp(name: str) -> None:
    op, plain, x, y = _inputs(name)
    transform = func.grad_and_value(_weighted(op), argnums=(0, 1))
    expected = func.grad_and_value(_weighted(plain), argnums=(0, 1))(x, y)
    assert_same(transform(x, y), expected)
    compiled = torch.compile(func.grad(_weighted(op), argnums=(0, 1)), backend="aot_eager")
    assert_same(compiled(x, y), expected[0])
    (value, pull), (expected_value, expected_pull) = func.vjp(op, x, y), func.vjp(plain, x, y)
    assert_same(value, expected_value)
    assert_same(pull(value.cos()), expected_pull(value.cos()))


@pytest.mark.parametrize("name", list(CASES))
def test_jacrev(name: str) -> None:
    op, plain, x, y = _inputs(name)
    assert_same(func.jacrev(op, argnums=(0, 1))(x, y), func.jacrev(plain, argnums=(0, 1))(x, y))


@pytest.mark.parametrize("name", list(CASES))
def test_vmap(name: str) -> None:
    op, plain, xs, ys = _inputs(name, batch=3)
    pairs = list(zip(xs, ys, strict=True))
    assert_same(torch.vmap(op)(xs, ys), torch.stack([plain(x, y) for x, y in pairs]))
    actual = torch.vmap(op, (1, None))(xs.movedim(0, 1), ys[0])
    assert_same(actual, torch.stack([plain(x, ys[0]) for x in xs]))
    if name != "linear_cross_entropy":  # torch's own division of empty batches fails
        assert torch.vmap(op)(xs[:0], ys[:0]).shape == (0, *plain(xs[0], ys[0]).shape)


@pytest.mark.parametrize("name", list(CASES))
def test_vmap_of_grad_and_grad_of_vmap(name: str) -> None:
    op, plain, xs, ys = _inputs(name, batch=3)
    grad, expected = (func.grad(_weighted(call), argnums=(0, 1)) for call in (op, plain))
    one_by_one = [torch.stack(parts) for parts in zip(*map(expected, xs, ys), strict=True)]
    assert_same(list(torch.vmap(grad)(xs, ys)), one_by_one)
    shared = [torch.stack(parts) for parts in zip(*(expected(x, ys[0]) for x in xs), strict=True)]
    assert_same(list(torch.vmap(grad, (0, None))(xs, ys[0])), shared)

    def batched(call: Op) -> Op:
        return _weighted(lambda xs, y: torch.vmap(call, (0, None))(xs, y))

    def looped(xs: Tensor, y: Tensor) -> Tensor:
        return torch.stack([plain(x, y) for x in xs])

    actual = func.grad(batched(op), argnums=(0, 1))(xs, ys[0])
    leaves = xs.clone().requires_grad_(), ys[0].clone().requires_grad_()
    assert_same(actual, torch.autograd.grad(_weighted(looped)(*leaves), leaves))


@pytest.mark.parametrize("name", list(CASES))
def test_forward_mode_and_second_derivatives_are_refused_in_one_line(name: str) -> None:
    op, plain, x, y = _inputs(name)
    line = r"^pylm::\w+ has no derivative in forward mode [^\n]*$"
    for call in (lambda: func.jvp(op, (x, y), (x, y)), lambda: func.jacfwd(op)(x, y)):
        with pytest.raises(NotImplementedError, match=line):
            call()

    def twice(call: Op) -> Tensor:
        return func.grad(lambda x: func.grad(_weighted(lambda x: call(x, y)))(x).square().sum())(x)

    if name == "rope":
        assert_same(twice(op), twice(plain))
    else:
        with pytest.raises(NotImplementedError, match=r"^pylm::\w+ has no derivative: [^\n]*$"):
            twice(op)


def test_positions_of_a_batch_may_differ() -> None:
    x = torch.randn(3, 2, 1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.tensor([[0, 3], [2, 2], [1, 0]])

    def rotate(x: Tensor, ids: Tensor) -> Tensor:
        return ops.rope(x, x, *TABLES, position_ids=ids)[0]

    assert_same(torch.vmap(rotate)(x, ids), rotate(x, ids))


def test_gradients_of_single_samples_through_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ops.RMSNorm(6), ops.SwiGLU(6, 4), ops.RMSNorm(6)).double()
    output = ops.LinearCrossEntropy(6, 9).double()
    weights = dict(model.named_parameters())
    xs = torch.randn(3, 5, 6, dtype=torch.float64)
    targets = torch.randint(0, 9, (3, 5))

    def loss(weights: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return output(func.functional_call(model, weights, (x,)), target)

    detached = {name: weight.detach() for name, weight in weights.items()}
    actual = torch.vmap(func.grad(loss), (None, 0, 0))(detached, xs, targets)
    for i in range(3):
        expected = torch.autograd.grad(output(model(xs[i]), targets[i]), list(weights.values()))
        for name, grad in zip(weights, expected, strict=True):
            assert_same(actual[name][i], grad)


def test_experts_as_a_module() -> None:
    torch.manual_seed(0)
    moe = ops.MoE(6, 4, num_experts=5, top_k=2)
    x = torch.randn(7, 6)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        y, routing = func.functional_call(moe, weights, (x,))
        return y.square().sum() + routing.aux_loss

    weights = dict(moe.named_parameters())
    actual = func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    y, routing = moe(x)
    expected = torch.autograd.grad(y.square().sum() + routing.aux_loss, list(weights.values()))
    for name, grad in zip(weights, expected, strict=True):
        torch.testing.assert_close(actual[name], grad)


def test_losses_of_log_probabilities() -> None:
    lp = -torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    old, advantages, mask = lp.flip(0), torch.tensor([1.0, -0.5, 2.0]).double(), torch.ones(3, 4)
    calls = {
        "grpo": lambda lp: ops.grpo_loss(lp, advantages, mask, old_logprob=old).loss,
        "dpo": lambda lp: ops.dpo_loss(*lp).sum(),
        "advantages": lambda lp: ops.group_advantages(lp).square().mean(),
    }
    for name, call in calls.items():
        leaf = (lp.T if name == "dpo" else lp).clone().requires_grad_()
        (expected,) = torch.autograd.grad(call(leaf), leaf)
        assert_same(func.grad(call)(leaf.detach()), expected)


def test_vocabulary_over_ranks(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        hidden, weight = _inputs("linear_logprob")[2:]

        def total(hidden: Tensor, weight: Tensor) -> Tensor:
            group = dist.group.WORLD
            result = ops.vocab_parallel_logprob(hidden, weight, TARGETS, group=group, first_class=0)
            return (result.logprob - 0.3 * result.entropy).sum()

        actual = func.grad(total, argnums=(0, 1))(hidden, weight)
        assert_same(actual, func.grad(_logprob, argnums=(0, 1))(hidden, weight))
    finally:
        dist.destroy_process_group()
