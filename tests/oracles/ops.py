"""Slow, obvious versions of the ops, one number at a time in Python floats (float64)."""

import cmath
import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    y = torch.empty_like(x)
    for row in range(x.shape[0]):
        values = x[row].tolist()
        rms = math.sqrt(math.fsum(v * v for v in values) / len(values) + eps)
        for d, value in enumerate(values):
            gain = 1.0 if weight is None else float(weight[d]) + weight_offset
            y[row, d] = value / rms * gain
    return y


def rope(x: Tensor, positions: list[int], theta: float, num_rotated: int, interleaved: bool) -> Tensor:
    """Rotate x (T, H, C): each pair of features is a complex number, each position a power of a root."""
    y = x.clone()
    half = num_rotated // 2
    for t, position in enumerate(positions):
        for h in range(x.shape[1]):
            for i in range(half):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                angle = position * theta ** (-2.0 * i / num_rotated)
                turned = complex(x[t, h, a], x[t, h, b]) * cmath.exp(1j * angle)
                y[t, h, a], y[t, h, b] = turned.real, turned.imag
    return y


def swiglu(
    gate: float, up: float, *, alpha: float = 1.0, limit: float | None = None, up_offset: float = 0.0
) -> float:
    if limit is not None:
        gate, up = min(gate, limit), max(-limit, min(up, limit))
    return gate / (1.0 + math.exp(-alpha * gate)) * (up + up_offset)


def geglu(gate: float, up: float, *, approximate: str = "tanh") -> float:
    if approximate == "none":
        return 0.5 * gate * math.erfc(-gate / math.sqrt(2.0)) * up
    inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1.0 + math.tanh(inner)) * up


def logprob(
    hidden: list[float],
    weight: list[list[float]],
    target: int,
    bias: list[float] | None,
    temperature: float,
    softcap: float | None,
) -> tuple[float, float, float]:
    """Return log-probability, log-sum-exp and entropy of one row."""
    logits = []
    for v, row in enumerate(weight):
        logit = math.fsum(h * w for h, w in zip(hidden, row, strict=True)) + (bias[v] if bias else 0.0)
        if softcap is not None:
            logit = softcap * math.tanh(logit / softcap)
        logits.append(logit / temperature)
    peak = max(logits)
    lse = peak + math.log(math.fsum(math.exp(z - peak) for z in logits))
    entropy = -math.fsum(math.exp(z - lse) * (z - lse) for z in logits if z > -math.inf)
    return logits[target] - lse, lse, entropy
