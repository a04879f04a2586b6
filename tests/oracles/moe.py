"""Mixture of experts, one token and one expert at a time, in Python floats and float64 tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def route(
    logits: list[list[float]],
    top_k: int,
    score: str,
    bias: list[float] | None,
    num_groups: int,
    topk_groups: int,
    group_score: str,
    normalize: bool,
    scale: float,
) -> dict[str, object]:
    num_tokens, num_experts = len(logits), len(logits[0])
    size = num_experts // num_groups
    weights, experts, shares, squares = [], [], [0.0] * num_experts, 0.0
    for row in logits:
        peak = max(row)
        total = math.fsum(math.exp(v - peak) for v in row)
        squares += (peak + math.log(total)) ** 2
        scores = [
            1.0 / (1.0 + math.exp(-v)) if score == "sigmoid" else math.exp(v - peak) / total for v in row
        ]
        keys = scores if bias is None else [s + b for s, b in zip(scores, bias, strict=True)]
        best = []
        for g in range(num_groups):
            largest = sorted(keys[g * size : (g + 1) * size], reverse=True)
            best.append(math.fsum(largest[: 2 if group_score == "top2" else 1]))
        # sorted() is stable: of equal values the lower index comes first.
        groups = sorted(range(num_groups), key=lambda g: -best[g])[:topk_groups]
        allowed = [e for e in range(num_experts) if e // size in groups]
        chosen = sorted(allowed, key=lambda e: -keys[e])[:top_k]
        divisor = math.fsum(scores[e] for e in chosen) if normalize else 1.0
        experts.append(chosen)
        weights.append([scale * scores[e] / divisor for e in chosen])
        for e in range(num_experts):
            shares[e] += scores[e] / math.fsum(scores)
    choices = [(expert, t, k) for t, row in enumerate(experts) for k, expert in enumerate(row)]
    load = [sum(c[0] == e for c in choices) for e in range(num_experts)]
    return {
        "weight": weights,
        "expert": experts,
        "order": [t * top_k + k for _, t, k in sorted(choices)],
        "offsets": [sum(load[:e]) for e in range(num_experts + 1)],
        "load": load,
        "aux_loss": num_experts * sum(f * p for f, p in zip(load, shares, strict=True)) / num_tokens**2,
        "z_loss": squares / num_tokens,
    }


def experts(x: Tensor, weight: Tensor, expert: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """Compute (N, H) token by token, differentiable."""
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t])
        for k, e in enumerate(expert[t].tolist()):
            gate, up = (gate_up_weight[e] @ x[t]).chunk(2)
            total = total + weight[t, k] * (down_weight[e] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows) if rows else x * 1.0
