"""Losses against the formulas in plain Python, finite differences, and themselves cut into parts."""

import pytest
import torch
from oracles import dpo as dpo_oracle
from oracles import grpo as grpo_oracle

from pylm.data.pack import IGNORE
from pylm.errors import InputError
from pylm.post import losses

ROUNDING = 1e-5  # float32 sums of a few hundred terms of order one
LENGTHS = (1, 5, 3, 8)


def random_tokens(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (4, 8) with rows of different length, zero outside their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)
    return -2.0 * torch.rand(4, 8, generator=generator).masked_fill(~mask_BT, 0.0), mask_BT


def rows(values_BT: torch.Tensor) -> list[list[float]]:
    return [row[:length].double().tolist() for row, length in zip(values_BT, LENGTHS, strict=True)]


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_sft_loss_does_not_depend_on_the_cut(num_parts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(4, 6, 8, generator=generator)
    weight_VD = torch.randn(11, 8, generator=generator).requires_grad_()
    targets_BT = torch.randint(0, 11, (4, 6), generator=generator)
    targets_BT[torch.rand(4, 6, generator=generator) < 0.5] = IGNORE
    num_tokens = int((targets_BT != IGNORE).sum())
    expected = torch.nn.functional.cross_entropy(
        (hidden_BTD.double() @ weight_VD.double().t()).flatten(0, 1), targets_BT.flatten(), ignore_index=-100
    )
    (expected_grad,) = torch.autograd.grad(expected, weight_VD)
    parts = zip(hidden_BTD.chunk(num_parts), targets_BT.chunk(num_parts), strict=True)
    loss = torch.stack([losses.sft_loss(h, weight_VD, t, num_tokens=num_tokens) for h, t in parts]).sum()
    (grad,) = torch.autograd.grad(loss, weight_VD)
    assert loss.item() == pytest.approx(expected.item(), rel=ROUNDING)
    torch.testing.assert_close(grad, expected_grad, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("kind", "label_smoothing"),
    [
        ("sigmoid", 0.0),
        ("sigmoid", 0.1),
        ("length-normalised", 0.0),
        ("length-normalised", 0.1),
        ("ipo", 0.0),
        ("simpo", 0.0),
        ("simpo", 0.1),
    ],
)
def test_preference_loss_equals_the_formulas(kind: losses.PreferenceKind, label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    policy_2P = -20.0 * torch.rand(2, 5, generator=generator)
    reference_2P = -20.0 * torch.rand(2, 5, generator=generator)
    length_2P = torch.randint(1, 9, (2, 5), generator=generator)
    options = {"kind": kind, "beta": 0.7, "label_smoothing": label_smoothing, "gamma": 0.3}
    result = losses.preference_loss(policy_2P.requires_grad_(), reference_2P, length_2P, **options)
    for p in range(5):
        pairs = (tuple(x[:, p].tolist()) for x in (policy_2P, reference_2P, length_2P))
        assert result.loss_P[p].item() == pytest.approx(dpo_oracle.loss(*pairs, **options), rel=ROUNDING)
    scale_2P = length_2P if kind in ("length-normalised", "simpo") else torch.ones_like(length_2P)
    reward_2P = 0.7 * (policy_2P - (0.0 if kind == "simpo" else reference_2P)) / scale_2P
    torch.testing.assert_close(torch.stack(result[1:]), reward_2P.detach(), rtol=ROUNDING, atol=ROUNDING)
    assert not result.chosen_P.requires_grad


@pytest.mark.parametrize("kind", ["sigmoid", "length-normalised", "ipo", "simpo"])
def test_preference_gradient_equals_finite_differences(kind: losses.PreferenceKind) -> None:
    policy, reference, length = [(-5.0, -7.0), (-6.0, -6.5), (4, 7)]
    options = {"kind": kind, "beta": 0.4, "label_smoothing": 0.0, "gamma": 0.2}
    policy_2P = torch.tensor(policy).unsqueeze(1).requires_grad_()
    losses.preference_loss(
        policy_2P, torch.tensor(reference).unsqueeze(1), torch.tensor(length).unsqueeze(1), **options
    ).loss_P.sum().backward()
    step = 1e-6
    for side in (0, 1):
        ends = []
        for by in (step, -step):
            at = tuple(p + by * (i == side) for i, p in enumerate(policy))
            ends.append(dpo_oracle.loss(at, reference, length, **options))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert policy_2P.grad[side, 0].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", ["standardised", "centred"])
def test_advantages_equal_the_formulas(kind: losses.AdvantageKind) -> None:
    reward_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0], [10.0, -10.0, 10.0, 10.0], [0.1, 0.1, 0.1, 0.1]])
    advantage_PG = losses.group_advantages(reward_PG, kind=kind)
    for p in range(2):
        expected = grpo_oracle.advantages(
            reward_PG[p].tolist(), standardised=kind == "standardised", epsilon=1e-4
        )
        assert advantage_PG[p].tolist() == pytest.approx(expected, rel=ROUNDING)
    # The mean of three equal floats need not equal them; an uninformative group must still give nothing.
    assert advantage_PG[2].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_group_of_one_has_no_advantage() -> None:
    assert losses.group_advantages(torch.tensor([[3.0]])).tolist() == [[0.0]]


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.05])
def test_policy_loss_equals_the_formulas(reduction: losses.Reduction, kl_coefficient: float) -> None:
    (logprob_BT, mask_BT), (old_BT, _), (reference_BT, _) = (random_tokens(seed) for seed in (1, 2, 3))
    advantage_B = torch.tensor([1.0, -0.5, 0.25, -2.0])
    weight_BT = losses.token_weights(
        mask_BT, reduction=reduction, num_sequences=4, num_tokens=sum(LENGTHS), max_tokens=10
    )
    result = losses.policy_loss(
        logprob_BT,
        old_BT,
        advantage_B,
        weight_BT,
        clip_low=0.2,
        clip_high=0.28,
        kl_coefficient=kl_coefficient,
        reference_logprob_BT=reference_BT,
    )
    expected = grpo_oracle.loss(
        rows(logprob_BT),
        rows(old_BT),
        rows(reference_BT),
        advantage_B.tolist(),
        clip_low=0.2,
        clip_high=0.28,
        kl_coefficient=kl_coefficient,
        reduction=reduction,
        max_tokens=10,
    )
    assert result.loss.item() == pytest.approx(expected, rel=ROUNDING)
    ratio_BT = (logprob_BT - old_BT).exp()
    is_clipped_BT = torch.where(advantage_B.unsqueeze(1) > 0, ratio_BT > 1.28, ratio_BT < 0.8)
    assert torch.equal(result.clipped_BT, is_clipped_BT & mask_BT)
    assert (result.kl_BT >= 0).all()


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
def test_policy_loss_does_not_depend_on_the_cut(reduction: losses.Reduction) -> None:
    (logprob_BT, mask_BT), (old_BT, _) = random_tokens(1), random_tokens(2)
    advantage_B = torch.tensor([1.0, -0.5, 0.25, -2.0])

    def loss(part: slice) -> float:
        weight_BT = losses.token_weights(
            mask_BT[part], reduction=reduction, num_sequences=4, num_tokens=sum(LENGTHS), max_tokens=10
        )
        return losses.policy_loss(logprob_BT[part], old_BT[part], advantage_B[part], weight_BT).loss.item()

    whole = loss(slice(0, 4))
    assert loss(slice(0, 1)) + loss(slice(1, 4)) == pytest.approx(whole, rel=ROUNDING)
    assert sum(loss(slice(i, i + 1)) for i in range(4)) == pytest.approx(whole, rel=ROUNDING)


def test_policy_gradient_equals_finite_differences() -> None:
    (logprob_BT, mask_BT), (old_BT, _), (reference_BT, _) = (random_tokens(seed) for seed in (1, 2, 3))
    advantage_B = torch.tensor([1.0, -0.5, 0.25, -2.0])
    weight_BT = losses.token_weights(
        mask_BT, reduction="token", num_sequences=4, num_tokens=sum(LENGTHS), max_tokens=10
    )

    def loss(at_BT: torch.Tensor) -> torch.Tensor:
        return losses.policy_loss(
            at_BT,
            old_BT.double(),
            advantage_B.double(),
            weight_BT.double(),
            kl_coefficient=0.1,
            reference_logprob_BT=reference_BT.double(),
        ).loss

    assert torch.autograd.gradcheck(loss, (logprob_BT.double().requires_grad_(),))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprob_BT, mask_BT = random_tokens(1)
    logprob_BT.requires_grad_()
    advantage_B = torch.tensor([1.0, -0.5, 0.25, -2.0])
    weight_BT = mask_BT.float()
    losses.policy_loss(logprob_BT, logprob_BT.detach(), advantage_B, weight_BT).loss.backward()
    assert torch.equal(logprob_BT.grad, -advantage_B.unsqueeze(1) * weight_BT)


def test_a_divergence_without_reference_is_an_error() -> None:
    logprob_BT, mask_BT = random_tokens(1)
    with pytest.raises(InputError, match="needs reference_logprob_BT"):
        losses.policy_loss(logprob_BT, logprob_BT, torch.ones(4), mask_BT.float(), kl_coefficient=0.1)
