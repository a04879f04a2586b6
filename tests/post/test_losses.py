"""Losses against the formulas in plain Python, finite differences, and themselves cut into parts."""

import pytest
import torch
from oracles import dpo as dpo_oracle

from pylm.data.pack import IGNORE
from pylm.post import losses

ROUNDING = 1e-5  # float32 sums of a few hundred terms of order one


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
        ("robust", 0.1),
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


@pytest.mark.parametrize("kind", ["sigmoid", "length-normalised", "robust", "ipo", "simpo"])
def test_preference_gradient_equals_finite_differences(kind: losses.PreferenceKind) -> None:
    policy, reference, length = [(-5.0, -7.0), (-6.0, -6.5), (4, 7)]
    options = {"kind": kind, "beta": 0.4, "label_smoothing": 0.1 if kind == "robust" else 0.0, "gamma": 0.2}
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
