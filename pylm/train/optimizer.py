"""Optimizers of a run: which parameters get which rule, and one handle over all of them."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from pylm.config import Config
from pylm.train.muon import Muon


class OptimizerConfig(Config):
    """AdamW for every parameter, or Muon for the matrices of the blocks and AdamW for the rest."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the update of each hidden matrix (Jordan et al., 2024)."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak rate of AdamW."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak rate of Muon; updates have spectral norm one, scaled by sqrt(max(1, rows / columns))."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; embeddings and norm weights get none (OLMo 2)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""


class Optimizers:
    """One or more optimizers stepped together, with learning rates given as a share of their peaks."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], *, max_grad_norm: float) -> None:
        self.optimizers = optimizers
        self.max_grad_norm = max_grad_norm
        self._peaks = [[float(g["lr"]) for g in x.param_groups] for x in optimizers]
        self._parameters = [p for x in optimizers for g in x.param_groups for p in g["params"]]

    @property
    def peak_learning_rate(self) -> float:
        """The first optimizer's peak rate: the number that metrics report."""
        return self._peaks[0][0]

    def set_learning_rate(self, factor: float) -> float:
        """Set every group's rate to `factor` times its peak; give the first group's rate."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        return self.peak_learning_rate * factor

    def clip_gradients(self) -> torch.Tensor:
        """Scale gradients to at most `max_grad_norm`; give their norm before that, shape ()."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort parameters into `matrix` (decayed), `embedding` and `vector` (neither decayed).

    Embeddings are what `nn.Embedding` modules hold and the output matrix (a parameter named
    `output_weight` or a module named `output`); vectors have fewer than two dimensions.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    output = getattr(model, "output_weight", None)
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "vector": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings or parameter is output:
            groups["embedding"].append(parameter)
        else:
            groups["matrix" if parameter.ndim >= 2 else "vector"].append(parameter)
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """Make the optimizers of a model; call it after sharding.

    Args:
        model: its parameters are sorted by `parameter_groups`.
        config: rule, rates, decay.

    Returns:
        The handle that a training loop steps.
    """
    groups = parameter_groups(model)
    undecayed = groups["embedding"] + groups["vector"]
    adamw_groups = [
        {"params": groups["matrix"] if config.kind == "adamw" else [], "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [g for g in adamw_groups if g["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
    ]
    if config.kind == "muon":
        optimizers.append(
            Muon(
                groups["matrix"],
                lr=config.matrix_learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
        )
    return Optimizers(optimizers, max_grad_norm=config.max_grad_norm)
