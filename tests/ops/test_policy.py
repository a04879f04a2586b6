"""GRPO's loss against the formulas token by token, finite differences, and itself cut into parts."""

import itertools
import math

import pytest
import torch
import torch._dynamo.testing
from oracles import grpo as oracle
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops.policy import AdvantageKind, Reduction

ROUNDING = 1e-5  # float32 sums of a few hundred terms of order one
EXACT = 1e-12  # the same in float64
LENGTHS = (1, 5, 3, 8)
ADVANTAGES = (1.0, -0.5, 0.25, -2.0)
REDUCTIONS = ["sequence", "token", "constant"]


def random_tokens(seed: int, outside: float = 0.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (4, 8) with rows of different length, and their mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)
    logprob = -2.0 * torch.rand(4, 8, generator=generator, dtype=torch.float64)
    return logprob.masked_fill(~mask, outside), mask


def rows(values: Tensor) -> list[list[float]]:
    return [row[:length].tolist() for row, length in zip(values, LENGTHS, strict=True)]


@pytest.mark.parametrize("kind", ["standardised", "centred"])
def test_advantages_equal_the_formulas(kind: AdvantageKind) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [10.0, -10.0, 10.0, 10.0], [0.1, 0.1, 0.1, 0.1]])
    advantages = ops.group_advantages(rewards, kind=kind)
    for p in range(2):
        expected = oracle.advantages(rewards[p].tolist(), standardised=kind == "standardised", epsilon=1e-4)
        assert advantages[p].tolist() == pytest.approx(expected, rel=ROUNDING)
    # The mean of three equal floats need not equal them; an uninformative group must still give nothing.
    assert advantages[2].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_group_of_one_has_no_advantage() -> None:
    assert ops.group_advantages(torch.tensor([[3.0]])).tolist() == [[0.0]]
    assert ops.group_advantages(torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, ROUNDING)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.05])
@pytest.mark.parametrize("outside", [0.0, -math.inf, math.nan])
def test_loss_equals_the_formulas(
    reduction: Reduction, kl_coefficient: float, outside: float, dtype: torch.dtype, tolerance: float
) -> None:
    (logprob, mask), (old, _), (reference, _) = (random_tokens(seed, outside) for seed in (1, 2, 3))
    logprob, old, reference = (x.to(dtype) for x in (logprob, old, reference))
    advantages = torch.tensor(ADVANTAGES)
    result = ops.grpo_loss(
        logprob.requires_grad_(),
        advantages,
        mask,
        old_logprob=old,
        reference_logprob=reference,
        clip_low=0.2,
        clip_high=0.28,
        kl_coefficient=kl_coefficient,
        reduction=reduction,
        max_tokens=10,
    )
    expected = oracle.loss(
        rows(logprob),
        rows(old),
        rows(reference),
        ADVANTAGES,
        clip_low=0.2,
        clip_high=0.28,
        kl_coefficient=kl_coefficient,
        reduction=reduction,
        max_tokens=10,
    )
    assert result.loss.dtype == dtype
    assert result.loss.item() == pytest.approx(expected, rel=tolerance)
    ratio = (logprob - old).exp()
    is_clipped = torch.where(advantages.unsqueeze(1) > 0, ratio > 1.28, ratio < 0.8)
    assert torch.equal(result.clipped, is_clipped & mask)
    assert bool(result.clipped.any())
    assert bool((result.kl >= 0).all())
    assert not bool(result.kl[~mask].any())
    assert not result.kl.requires_grad
    # Tokens that the clip cut off have no gradient but the divergence's, and what is outside has none.
    (grad,) = torch.autograd.grad(result.loss, logprob)
    assert bool(grad.isfinite().all())
    assert torch.equal(
        grad[mask & ~result.clipped] != 0, torch.ones(17 - int(result.clipped.sum()), dtype=bool)
    )
    assert not bool(grad[~mask].any())
    if kl_coefficient == 0.0:
        assert not bool(grad[result.clipped].any())


def test_losses_of_tokens_add_up() -> None:
    (logprob, mask), (old, _) = random_tokens(1), random_tokens(2)
    advantages = torch.tensor(ADVANTAGES)
    tokens = ops.grpo_loss(logprob, advantages, mask, old_logprob=old, reduction="none").loss
    assert tokens.shape == logprob.shape
    assert not bool(tokens[~mask].any())
    for reduction, expected in (
        ("token", tokens.sum() / sum(LENGTHS)),
        ("sequence", (tokens.sum(1) / torch.tensor(LENGTHS)).mean()),
        ("constant", tokens.sum() / 40),
    ):
        loss = ops.grpo_loss(
            logprob, advantages, mask, old_logprob=old, reduction=reduction, max_tokens=10
        ).loss
        torch.testing.assert_close(loss, expected, rtol=EXACT, atol=EXACT)
    each = advantages.unsqueeze(1).expand(4, 8)
    assert torch.equal(tokens, ops.grpo_loss(logprob, each, mask, old_logprob=old, reduction="none").loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_does_not_depend_on_the_cut(reduction: Reduction) -> None:
    (logprob, mask), (old, _) = random_tokens(1), random_tokens(2)
    advantages = torch.tensor(ADVANTAGES)

    def loss(part: slice, counts: bool = True) -> float:
        step = {"num_sequences": 4, "num_tokens": torch.tensor(sum(LENGTHS))} if counts else {}
        return ops.grpo_loss(
            logprob[part], advantages[part], mask[part], old_logprob=old[part],
            reduction=reduction, max_tokens=10, **step,
        ).loss.item()  # fmt: skip

    whole = loss(slice(0, 4))
    assert loss(slice(0, 4), counts=False) == pytest.approx(whole, rel=EXACT)
    assert loss(slice(0, 1)) + loss(slice(1, 4)) == pytest.approx(whole, rel=EXACT)
    assert sum(loss(slice(i, i + 1)) for i in range(4)) == pytest.approx(whole, rel=EXACT)


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "none"])
def test_a_row_that_counts_twice_is_two_rows(reduction: Reduction) -> None:
    (logprob, mask), (old, _), (reference, _) = (random_tokens(seed) for seed in (1, 2, 3))
    advantages = torch.tensor(ADVANTAGES)
    copies = torch.tensor([1, 3, 2, 1])
    options = {"kl_coefficient": 0.1, "reduction": reduction, "max_tokens": 9}
    weighted = ops.grpo_loss(
        logprob, advantages, mask, old_logprob=old, reference_logprob=reference, row_weight=copies, **options
    )
    repeated = ops.grpo_loss(
        *(x.repeat_interleave(copies, 0) for x in (logprob, advantages, mask)),
        old_logprob=old.repeat_interleave(copies, 0),
        reference_logprob=reference.repeat_interleave(copies, 0),
        **options,
    )
    torch.testing.assert_close(weighted.loss.sum(), repeated.loss.sum(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-3])
def test_a_mean_does_not_depend_on_the_scale_of_weights(reduction: Reduction, scale: float) -> None:
    (logprob, mask), (old, _) = random_tokens(1), random_tokens(2)
    copies = torch.tensor([1, 3, 2, 1])
    options = {"old_logprob": old, "reduction": reduction, "max_tokens": 9}
    inputs = logprob, torch.tensor(ADVANTAGES), mask
    loss = ops.grpo_loss(*inputs, row_weight=copies, **options).loss
    scaled = ops.grpo_loss(*inputs, row_weight=scale * copies.double(), **options).loss
    torch.testing.assert_close(scaled, loss, rtol=EXACT, atol=EXACT)
    # The denominators of a step are sums of such weights.
    num_sequences, num_tokens = scale * 7, scale * (copies * torch.tensor(LENGTHS)).sum()
    for counts in ((num_sequences, num_tokens), (torch.tensor(num_sequences).double(), float(num_tokens))):
        step = dict(zip(("num_sequences", "num_tokens"), counts, strict=True))
        parts = [
            ops.grpo_loss(
                *(x[part] for x in inputs), row_weight=scale * copies[part].double(),
                **{**options, **step, "old_logprob": old[part]},
            ).loss
            for part in (slice(0, 1), slice(1, 4))
        ]  # fmt: skip
        torch.testing.assert_close(sum(parts), loss, rtol=1e-6, atol=1e-6)  # float32 counts


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_a_denominator_of_zero_is_one(count: float | Tensor) -> None:
    logprob, mask = random_tokens(1)
    for reduction in REDUCTIONS:
        inputs, options = (logprob, torch.tensor(ADVANTAGES), mask), {"reduction": reduction, "max_tokens": 9}
        actual, expected = (
            ops.grpo_loss(*inputs, num_sequences=n, num_tokens=n, **options).loss for n in (count, 1)
        )
        assert torch.equal(actual, expected)
        assert ops.grpo_loss(*inputs, row_weight=torch.zeros(4), **options).loss.item() == 0.0


@pytest.mark.parametrize(("dtype", "highest"), [(torch.float32, 88.0), (torch.float64, 709.0)])
def test_ratios_that_overflow_leave_what_is_clipped_finite(dtype: torch.dtype, highest: float) -> None:
    old = torch.tensor([[0.0, -highest, -highest - 1.0, -2000.0, -math.inf]], dtype=dtype)
    logprob, mask = torch.zeros(1, 5, dtype=dtype).requires_grad_(), torch.ones(1, 5)
    for advantage, expected in ((1.0, [-1.0, *[-1.2] * 4]), (0.0, [0.0] * 5)):
        result = ops.grpo_loss(logprob, torch.tensor([advantage]), mask, old_logprob=old, reduction="none")
        assert result.loss[0].tolist() == pytest.approx(expected)
        assert result.clipped[0].tolist() == [False, *[advantage > 0.0] * 4]
        (grad,) = torch.autograd.grad(result.loss.sum(), logprob)
        assert grad[0].tolist() == [-advantage, 0.0, 0.0, 0.0, 0.0]
    # Where nothing is clipped the loss is as large as the ratio; the gradient ends with the numbers.
    result = ops.grpo_loss(logprob, torch.tensor([-0.5]), mask, old_logprob=old, reduction="none")
    largest = 0.5 * math.exp(highest)
    assert result.loss[0].tolist() == pytest.approx([0.5, *[largest] * 4], rel=1e-5)
    (grad,) = torch.autograd.grad(result.loss.sum(), logprob)
    assert grad[0].tolist() == pytest.approx([0.5, largest, 0.0, 0.0, 0.0], rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_equals_finite_differences(reduction: Reduction) -> None:
    (logprob, mask), (old, _), (reference, _) = (random_tokens(seed) for seed in (1, 2, 3))
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        return ops.grpo_loss(
            at, advantages, mask, old_logprob=old, reference_logprob=reference,
            kl_coefficient=0.1, reduction=reduction, max_tokens=10,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (logprob.requires_grad_(),))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprob, mask = random_tokens(1)
    logprob.requires_grad_()
    advantages = torch.tensor(ADVANTAGES)
    for old in (None, logprob):  # the old policy receives no gradient, even where it is the same tensor
        loss = ops.grpo_loss(logprob, advantages, mask, old_logprob=old, reduction="token", num_tokens=1).loss
        (grad,) = torch.autograd.grad(loss, logprob)
        assert torch.equal(grad, -advantages.unsqueeze(1) * mask.double())


def test_bfloat16_is_computed_in_float32() -> None:
    logprob, mask = random_tokens(1)
    narrow = logprob.bfloat16()
    advantages = torch.tensor(ADVANTAGES)
    loss = ops.grpo_loss(narrow, advantages.bfloat16(), mask, old_logprob=narrow + 0.25).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ops.grpo_loss(narrow.float(), advantages, mask, old_logprob=narrow + 0.25).loss)


def test_nothing_sampled_is_zero() -> None:
    logprob, mask = random_tokens(1)
    logprob.requires_grad_()
    for reduction in REDUCTIONS:
        loss = ops.grpo_loss(
            logprob, torch.ones(4), torch.zeros_like(mask), reduction=reduction, max_tokens=10
        ).loss
        assert loss.item() == 0.0
        assert not bool(torch.autograd.grad(loss, logprob)[0].any())
        for shape in ((0, 8), (4, 0)):
            empty = torch.empty(shape)
            result = ops.grpo_loss(
                empty, torch.ones(shape[0]), empty.bool(), reduction=reduction, max_tokens=10
            )
            assert result.loss.item() == 0.0


def test_any_strides_give_the_same_bits() -> None:
    (logprob, mask), (old, _) = random_tokens(1), random_tokens(2)
    advantages = torch.tensor(ADVANTAGES)
    for reduction in REDUCTIONS:
        plain, strided = (
            ops.grpo_loss(*inputs, old_logprob=o, reduction=reduction, max_tokens=10).loss
            for inputs, o in (
                ((logprob, advantages, mask), old),
                (
                    (logprob.t().contiguous().t(), advantages, mask.t().contiguous().t()),
                    torch.stack((old, old), -1)[..., 0],
                ),
            )
        )
        torch.testing.assert_close(strided, plain, rtol=EXACT, atol=EXACT)


def test_full_graphs_serve_other_sizes() -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.grpo_loss, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(5)
    for batch, time in itertools.product((2, 3, 5, 7), (4, 6, 9)):
        logprob, old, reference = (-torch.rand(batch, time, generator=generator) for _ in range(3))
        advantages = torch.randn(batch, generator=generator)
        mask = torch.rand(batch, time, generator=generator) < 0.7
        options = {"old_logprob": old, "reference_logprob": reference, "kl_coefficient": 0.1}
        results = [
            function(logprob.requires_grad_(), advantages, mask, **options)
            for function in (ops.grpo_loss, compiled)
        ]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(result.loss, logprob)[0] for result in results]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 3, "once for the first size, once or twice for any"


def test_errors_name_what_is_wrong() -> None:
    logprob, mask = random_tokens(1)
    ones = torch.ones(4)
    with pytest.raises(InputError, match=r"kl_coefficient=0\.1 needs reference_logprob, got None"):
        ops.grpo_loss(logprob, ones, mask, kl_coefficient=0.1)
    with pytest.raises(InputError, match=r"advantages must have the shape \(4,\) or \(4, 8\), got \(3,\)"):
        ops.grpo_loss(logprob, torch.ones(3), mask)
    with pytest.raises(InputError, match=r"mask must have the shape \(4, 8\), got \(4, 7\)"):
        ops.grpo_loss(logprob, ones, mask[:, :7])
    with pytest.raises(InputError, match=r"old_logprob must have the shape \(4, 8\)"):
        ops.grpo_loss(logprob, ones, mask, old_logprob=logprob[0])
    with pytest.raises(InputError, match=r"row_weight must have the shape \(4,\)"):
        ops.grpo_loss(logprob, ones, mask, row_weight=logprob)
    with pytest.raises(InputError, match=r"logprob must be \(B, T\), got \(8,\)"):
        ops.grpo_loss(logprob[0], ones, mask[0])
    with pytest.raises(InputError, match=r"must not be negative, got -0\.1 and 0\.2"):
        ops.grpo_loss(logprob, ones, mask, clip_low=-0.1)
    with pytest.raises(InputError, match='"constant" needs max_tokens of at least 1, got None'):
        ops.grpo_loss(logprob, ones, mask, reduction="constant")
    with pytest.raises(InputError, match=r"reduction must be .* got 'mean'"):
        ops.grpo_loss(logprob, ones, mask, reduction="mean")
    with pytest.raises(InputError, match=r"rewards must be \(P, G\), got \(4,\)"):
        ops.group_advantages(ones)
    with pytest.raises(InputError, match=r"kind must be .* got 'ranked'"):
        ops.group_advantages(torch.ones(2, 2), kind="ranked")
