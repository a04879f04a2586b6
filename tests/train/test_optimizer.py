"""Parameter groups, AdamW against a hand-written update, Muon against singular value decomposition."""

import pytest
import torch
from torch import nn

from pylm.train.muon import Muon, orthogonalise
from pylm.train.optimizer import OptimizerConfig, build_optimizer, parameter_groups


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 6)
        self.norm = nn.RMSNorm(6)
        self.output_weight = nn.Parameter(torch.randn(7, 6))


def test_groups_hold_each_parameter_once() -> None:
    model = Toy()
    groups = parameter_groups(model)
    assert {id(p) for p in groups["matrix"]} == {id(model.linear.weight)}
    assert {id(p) for p in groups["embedding"]} == {id(model.embedding.weight), id(model.output_weight)}
    assert {id(p) for p in groups["vector"]} == {id(model.linear.bias), id(model.norm.weight)}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_adamw_decays_matrices_only() -> None:
    torch.manual_seed(0)
    model = Toy()
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, beta1=0.9, beta2=0.95, eps=1e-8)
    optimizer = build_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    rate = optimizer.set_learning_rate(0.5)
    optimizer.step()
    assert rate == pytest.approx(0.05)
    for name, parameter in model.named_parameters():
        decay = 0.5 if name == "linear.weight" else 0.0
        # After one step the bias-corrected moments are g and g^2.
        update = gradients[name] / (gradients[name].abs() + 1e-8)
        expected = before[name] * (1 - 0.05 * decay) - 0.05 * update
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_clipping_reports_the_norm_before() -> None:
    model = Toy()
    optimizer = build_optimizer(model, OptimizerConfig(max_grad_norm=1.0))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    count = sum(p.numel() for p in model.parameters())
    assert optimizer.clip_gradients().item() == pytest.approx(2.0 * count**0.5, rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8), (1, 1, 5)])
def test_orthogonalise_keeps_singular_vectors(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    rotated = u.mT @ result @ vh.mT
    singular = torch.diagonal(rotated, dim1=-2, dim2=-1)
    off_diagonal = rotated - torch.diag_embed(singular)
    assert off_diagonal.abs().max() < 1e-9
    # A square Gaussian matrix has singular values near zero, which five rounds lift only part of the way.
    assert singular.max() < 1.3
    assert singular.median() > 0.6


@pytest.mark.parametrize("is_fast", [True, False])
def test_single_precision_may_iterate_in_bfloat16(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylm.train.muon.has_fast_bfloat16", lambda device: is_fast)
    torch.manual_seed(1)
    matrices = torch.randn(3, 64, 24)
    exact = orthogonalise(matrices.double())
    result = orthogonalise(matrices)
    assert result.dtype == torch.float32
    # bfloat16 rounds to 2^-9; each of five rounds of three products adds up at most about that again.
    limit = 15 * 2**-9 if is_fast else 1e-5
    error = torch.linalg.matrix_norm(result - exact) / torch.linalg.matrix_norm(exact)
    assert error.max() < limit


def test_muon_update_equals_its_definition() -> None:
    torch.manual_seed(2)
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    expected, momentum = weight.detach().clone(), torch.zeros(6, 4)
    for _ in range(3):
        gradient = torch.randn(6, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        nesterov = 0.1 * gradient + 0.9 * momentum
        update = orthogonalise(nesterov[None])[0] * (6 / 4) ** 0.5
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * update
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([nn.Parameter(torch.zeros(3))])
