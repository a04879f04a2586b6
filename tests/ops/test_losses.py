"""The losses against torch's cross entropy and against the papers' formulas, one pair at a time."""

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from oracles import dpo as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import logprob

# Relative to the largest value, in float64: both sides are sums of fewer than 300 terms.
TOLERANCE = 1e-12


def _inputs(num_rows: int = 11, dim: int = 5, num_classes: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, dim, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(num_classes, dim, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(0, num_classes, (num_rows,), generator=generator)
    targets[::4] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])  # gradients along with the loss, or from what is kept
def test_cross_entropy_follows_torch(
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    keep_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": keep_bytes})
    hidden, weight, targets = _inputs()
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=label_smoothing)
    kept = (targets != -100).double()
    squares = z_loss * torch.logsumexp(logits, -1).square() * kept
    expected = (
        expected + {"mean": squares.sum() / kept.sum(), "sum": squares.sum(), "none": squares}[reduction]
    )
    actual = ops.linear_cross_entropy(
        hidden,
        weight,
        targets,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        reduction=reduction,
    )
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (hidden, weight), upstream, retain_graph=True)
    got = torch.autograd.grad(actual, (hidden, weight), upstream)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=TOLERANCE)


@pytest.mark.parametrize("is_ignored", ["none", "some", "all but one", "all"])
@pytest.mark.parametrize(
    ("num_rows", "dim", "num_classes"),
    [(1, 1, 1), (1, 3, 127), (3, 127, 1), (257, 3, 127), (3, 1, 1000), (2, 3, 4097), (2, 4097, 3)],
)
def test_cross_entropy_sizes(num_rows: int, dim: int, num_classes: int, is_ignored: str) -> None:
    hidden, weight, targets = _inputs(num_rows, dim, num_classes)
    if is_ignored != "some":
        targets.clamp_(min=0)
    if is_ignored.startswith("all"):
        targets[0 if is_ignored == "all" else 1 :] = -100
    kept = (targets != -100).sum().clamp(min=1)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1) / kept
    # Columns of a wider matrix, and a weight that lies transposed.
    wider = torch.cat((hidden, hidden), 1)[:, :dim]
    for given in ((hidden, weight), (wider, weight.t().contiguous().t())):
        actual = ops.linear_cross_entropy(*given, targets, label_smoothing=0.1)
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
        got = torch.autograd.grad(actual, (hidden, weight), retain_graph=True)
        wanted = torch.autograd.grad(expected, (hidden, weight), retain_graph=True)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=TOLERANCE)
    # One row that stands for many, with strides of 0.
    one = hidden[:1].detach().expand(num_rows, dim).requires_grad_()
    actual = ops.linear_cross_entropy(one, weight, targets, reduction="sum")
    expected = F.cross_entropy(one @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(1000, 1000), (4097, 7)])
def test_cross_entropy_of_thousands_of_rows(
    num_rows: int, num_classes: int, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": keep_bytes})
    hidden, weight, targets = _inputs(num_rows, 3, num_classes)
    actual = ops.linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1)
    expected = F.cross_entropy(hidden @ weight.T, targets, label_smoothing=0.1)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    grads = torch.autograd.grad(actual, (hidden, weight))
    wanted = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(grads, wanted, rtol=1e-10, atol=TOLERANCE)


def test_cross_entropy_does_not_depend_on_the_split_into_batches() -> None:
    hidden, weight, targets = _inputs()
    whole = ops.linear_cross_entropy(hidden, weight, targets, reduction="sum")
    halves = sum(
        ops.linear_cross_entropy(h, weight, t, reduction="sum")
        for h, t in zip(hidden.split(4), targets.split(4), strict=True)
    )
    torch.testing.assert_close(whole, halves, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cross_entropy_in_many_chunks(
    softcap: float | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": budget})
    hidden, weight, targets = _inputs(77)
    options = {"softcap": softcap, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "sum"}
    whole = ops.linear_cross_entropy(hidden, weight, targets, **options)
    expected = torch.autograd.grad(whole, (hidden, weight))
    monkeypatch.setattr(logprob, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(logprob, "_MIN_CHUNK_ROWS", 3)
    parts = ops.linear_cross_entropy(hidden, weight, targets, **options)
    torch.testing.assert_close(parts, whole, rtol=TOLERANCE, atol=TOLERANCE)
    grads = torch.autograd.grad(parts, (hidden, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-10, atol=TOLERANCE)
    # Without gradients, or with those of single rows, the other op gives the same.
    with torch.no_grad():
        torch.testing.assert_close(ops.linear_cross_entropy(hidden, weight, targets, **options), whole)
    rows = ops.linear_cross_entropy(hidden, weight, targets, **{**options, "reduction": "none"})
    grads = torch.autograd.grad(rows.sum(), (hidden, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-10, atol=TOLERANCE)


def test_cross_entropy_of_bfloat16_keeps_the_float32_gradient_of_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = _inputs()
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cpu": 0})
    low = hidden.detach().bfloat16().requires_grad_()
    single = weight.detach().float().requires_grad_()
    loss = ops.linear_cross_entropy(low, single, targets)
    grads = torch.autograd.grad(loss, (low, single))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]
    # The weight is converted to the dtype of the hidden states; its gradient is not.
    rounded = weight.detach().bfloat16().double().requires_grad_()
    exact = F.cross_entropy(low.double() @ rounded.T, targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    (expected,) = torch.autograd.grad(exact, rounded)
    torch.testing.assert_close(grads[1].double(), expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_nothing_is_zero() -> None:
    hidden, weight, targets = _inputs()
    loss = ops.linear_cross_entropy(
        hidden, weight, torch.full_like(targets, -100), label_smoothing=0.1, z_loss=0.1
    )
    assert loss.item() == 0.0
    loss.backward()
    assert float(hidden.grad.abs().max()) == 0.0
    assert float(weight.grad.abs().max()) == 0.0


def test_cross_entropy_errors() -> None:
    hidden, weight, targets = _inputs()
    with pytest.raises(InputError, match=r'reduction must be "mean", "sum" or "none", got \'batchmean\''):
        ops.linear_cross_entropy(hidden, weight, targets, reduction="batchmean")
    with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        ops.linear_cross_entropy(hidden, weight, targets, label_smoothing=1.5)
    with pytest.raises(InputError, match="softcap must be positive"):
        ops.linear_cross_entropy(hidden, weight, targets, softcap=0.0)


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


PAIRS = [
    (-10.0, -12.0, -11.0, -11.5),
    (-3.0, -1.0, -2.0, -2.5),
    (-500.0, -20.0, -30.0, -25.0),
    (0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("beta", [0.1, 5.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_dpo_follows_the_paper(beta: float, label_smoothing: float, margin: float) -> None:
    columns = torch.tensor(PAIRS, dtype=torch.float64).T
    actual = ops.dpo_loss(*columns, beta=beta, label_smoothing=label_smoothing, margin=margin)
    for loss, (pc, pr, rc, rr) in zip(actual.tolist(), PAIRS, strict=True):
        x = beta * ((pc - rc) - (pr - rr)) - margin
        expected = -(1 - label_smoothing) * _log_sigmoid(x) - label_smoothing * _log_sigmoid(-x)
        assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ipo_and_simpo() -> None:
    columns = torch.tensor(PAIRS, dtype=torch.float64).T
    for loss, (pc, pr, rc, rr) in zip(
        ops.dpo_loss(*columns, beta=0.25, kind="ipo").tolist(), PAIRS, strict=True
    ):
        assert loss == pytest.approx(((pc - pr) - (rc - rr) - 2.0) ** 2, rel=1e-12)
    simpo = ops.dpo_loss(columns[0], columns[1], None, None, beta=2.0, kind="simpo", margin=0.5)
    for loss, (pc, pr, _, _) in zip(simpo.tolist(), PAIRS, strict=True):
        assert loss == pytest.approx(-_log_sigmoid(2.0 * (pc - pr) - 0.5), rel=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2, 0.45])
def test_robust_is_unbiased_under_wrong_labels(label_smoothing: float) -> None:
    columns = torch.tensor(PAIRS, dtype=torch.float64).T
    swapped = columns[[1, 0, 3, 2]]
    options = {"beta": 0.3, "margin": 0.25, "kind": "robust", "label_smoothing": label_smoothing}
    given = ops.dpo_loss(*columns, **options)
    for loss, (pc, pr, rc, rr) in zip(given.tolist(), PAIRS, strict=True):
        x = 0.3 * ((pc - rc) - (pr - rr)) - 0.25
        right, wrong = -(1 - label_smoothing) * _log_sigmoid(x), -label_smoothing * _log_sigmoid(-x)
        assert loss == pytest.approx((right - wrong) / (1 - 2 * label_smoothing), rel=1e-12, abs=1e-12)
    # Chowdhury et al. 2024, lemma 3.1: the expectation over flipped labels is the loss of the right ones.
    options["margin"] = 0.0
    right, flipped = ops.dpo_loss(*columns, **options), ops.dpo_loss(*swapped, **options)
    expected = ops.dpo_loss(*columns, beta=0.3)
    torch.testing.assert_close(
        (1 - label_smoothing) * right + label_smoothing * flipped, expected, rtol=1e-11, atol=1e-11
    )


def test_dpo_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    columns = [
        c.clone().requires_grad_() for c in torch.randn(4, 5, dtype=torch.float64, generator=generator)
    ]
    for kind, label_smoothing in (("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.1), ("ipo", 0.0)):

        def loss(*columns: Tensor, kind=kind, label_smoothing=label_smoothing) -> Tensor:
            return ops.dpo_loss(*columns, kind=kind, label_smoothing=label_smoothing)

        assert torch.autograd.gradcheck(loss, columns)


ANSWERS = [
    (-10.0, -12.0, True),
    (-3.0, -1.0, True),
    (-500.0, -20.0, False),
    (-1.0, -80.0, False),
    (-2.0, -2.0, True),
]


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("kl", [-3.0, 0.0, 1.5])
def test_kto_follows_the_paper(beta: float, kl: float) -> None:
    policy, reference = (torch.tensor(x, dtype=torch.float64) for x in list(zip(*ANSWERS, strict=True))[:2])
    is_desirable = torch.tensor([good for _, _, good in ANSWERS])
    expected = [oracle.kto(*answer, kl, beta) for answer in ANSWERS]
    for given in (kl, torch.tensor(kl), torch.tensor([kl], dtype=torch.float64)):
        loss = ops.kto_loss(policy, reference, is_desirable, given, beta=beta)
        assert loss.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    weighted = ops.kto_loss(
        policy, reference, is_desirable, kl, beta=beta, desirable_weight=1.25, undesirable_weight=0.5
    )
    weights = [1.25 if good else 0.5 for _, _, good in ANSWERS]
    assert weighted.tolist() == pytest.approx([w * e for w, e in zip(weights, expected, strict=True)])


def test_kto_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    policy, reference = (
        x.clone().requires_grad_() for x in torch.randn(2, 6, dtype=torch.float64, generator=generator)
    )
    is_desirable = torch.tensor([True, False, True, False, False, True])
    kl = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(policy: Tensor, reference: Tensor) -> Tensor:
        return ops.kto_loss(policy, reference, is_desirable, kl, desirable_weight=1.3)

    assert torch.autograd.gradcheck(loss, (policy, reference))
    assert torch.autograd.grad(loss(policy, reference).sum(), kl, allow_unused=True) == (None,)
    # Far from the border a loss near 0 keeps its digits: 1 - sigmoid would give 0.
    far = ops.kto_loss(torch.tensor([1000.0]), torch.zeros(1), torch.tensor([True]), 0.0)
    assert float(far) == pytest.approx(math.exp(-100.0), rel=1e-5)
    assert ops.kto_loss(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.bool), 0.0).shape == (0,)


def test_kto_errors() -> None:
    one, good = torch.zeros(2), torch.tensor([True, False])
    with pytest.raises(InputError, match=r"reference must have the shape of policy \(2,\), got \(1,\)"):
        ops.kto_loss(one, one[:1], good, 0.0)
    with pytest.raises(InputError, match=r"is_desirable must be bool, got torch.float32"):
        ops.kto_loss(one, one, one, 0.0)
    with pytest.raises(InputError, match=r"kl must be one number, got \(2,\)"):
        ops.kto_loss(one, one, good, one)
    with pytest.raises(InputError, match="beta must be positive, got 0"):
        ops.kto_loss(one, one, good, 0.0, beta=0.0)
    with pytest.raises(InputError, match="weights must not be negative"):
        ops.kto_loss(one, one, good, 0.0, undesirable_weight=-1.0)
    with pytest.raises(InputError, match="reference is on meta, expected cpu"):
        ops.kto_loss(one, one.to("meta"), good, 0.0)


def test_preference_losses_compile_for_all_sizes() -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def both(columns: Tensor, is_desirable: Tensor) -> Tensor:
        pairs = ops.dpo_loss(*columns.unbind(0), label_smoothing=0.1, kind="robust")
        return pairs + ops.kto_loss(columns[0], columns[2], is_desirable, columns[1].mean())

    compiled = torch.compile(both, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(3)
    for num_pairs in (2, 3, 5, 8, 13):
        columns = torch.randn(4, num_pairs, generator=generator).requires_grad_()
        is_desirable = torch.rand(num_pairs, generator=generator) < 0.5
        results = [function(columns, is_desirable) for function in (both, compiled)]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad(loss.sum(), columns)[0] for loss in results]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2, "once for the first size, once for any"


def test_dpo_errors() -> None:
    one = torch.zeros(1)
    with pytest.raises(InputError, match="reference_chosen and reference_rejected, got None"):
        ops.dpo_loss(one, one, None, None)
    with pytest.raises(InputError, match="simpo has no reference"):
        ops.dpo_loss(one, one, one, one, kind="simpo")
    with pytest.raises(InputError, match=r"reference_rejected must have the shape of policy_chosen \(1,\)"):
        ops.dpo_loss(one, one, one, torch.zeros(2))
    with pytest.raises(InputError, match="got 'kto'"):
        ops.dpo_loss(one, one, one, one, kind="kto")
    with pytest.raises(InputError, match="beta must be positive"):
        ops.dpo_loss(one, one, one, one, beta=0.0)
    with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 0.5\)"):
        ops.dpo_loss(one, one, one, one, label_smoothing=0.5)
    with pytest.raises(InputError, match="ipo takes neither"):
        ops.dpo_loss(one, one, one, one, kind="ipo", margin=1.0)
