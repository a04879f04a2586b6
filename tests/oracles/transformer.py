"""A decoder-only Transformer in NumPy float64: one token, one head, one score at a time.

Straight from the papers: RMSNorm (Zhang and Sennrich, 2019), rotary positions as complex numbers (Su et al.,
2021), grouped queries (Ainslie et al., 2023), SwiGLU (Shazeer, 2020), norms on what enters a sublayer or on
what leaves it (OLMo 2).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

Weights = Mapping[str, np.ndarray]


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copy a model's weights to float64."""
    return {name: p.detach().double().numpy() for name, p in model.state_dict().items()}


def rms_norm(x: np.ndarray, gain: np.ndarray | float, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + eps) * gain


def rotate(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    half = len(x) // 2
    angle = position * theta ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def attention(weights: Weights, prefix: str, config, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    num_heads, num_kv, size = config.num_heads, config.kv_heads, config.head_features
    queries, keys, values = [], [], []
    for position, x in enumerate(inputs):
        heads = (weights[f"{prefix}.qkv.weight"] @ x).reshape(-1, size)
        q, k, v = heads[:num_heads], heads[num_heads : num_heads + num_kv], heads[num_heads + num_kv :]
        if config.qk_norm:
            q = [rms_norm(head, weights[f"{prefix}.q_norm.weight"], config.norm_eps) for head in q]
            k = [rms_norm(head, weights[f"{prefix}.k_norm.weight"], config.norm_eps) for head in k]
        queries.append([rotate(head, position, config.rope_theta) for head in q])
        keys.append([rotate(head, position, config.rope_theta) for head in k])
        values.append(v)
    outputs = []
    for t in range(len(inputs)):
        heads = []
        for h in range(num_heads):
            shared = h * num_kv // num_heads
            scores = np.array([queries[t][h] @ keys[s][shared] / np.sqrt(size) for s in range(t + 1)])
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            heads.append(sum(p * values[s][shared] for s, p in enumerate(probabilities)))
        outputs.append(weights[f"{prefix}.out.weight"] @ np.concatenate(heads))
    return outputs


def feed_forward(weights: Weights, prefix: str, x: np.ndarray) -> np.ndarray:
    gate, up = np.split(weights[f"{prefix}.gate_up.weight"] @ x, 2)
    return weights[f"{prefix}.down.weight"] @ (gate / (1 + np.exp(-gate)) * up)


def hidden_states(weights: Weights, config, ids: Sequence[int]) -> np.ndarray:
    """Give the hidden states (T, D) of one document."""
    eps = config.norm_eps
    xs = [weights["embedding.weight"][i] for i in ids]
    if config.embedding_norm:
        xs = [rms_norm(x, 1.0, eps) for x in xs]
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        gain = weights[f"{block}.attention_norm.weight"], weights[f"{block}.ffn_norm.weight"]
        if config.norm == "pre":
            added = attention(weights, f"{block}.attention", config, [rms_norm(x, gain[0], eps) for x in xs])
            xs = [x + a for x, a in zip(xs, added, strict=True)]
            xs = [x + feed_forward(weights, f"{block}.ffn", rms_norm(x, gain[1], eps)) for x in xs]
        else:
            added = attention(weights, f"{block}.attention", config, xs)
            xs = [x + rms_norm(a, gain[0], eps) for x, a in zip(xs, added, strict=True)]
            xs = [x + rms_norm(feed_forward(weights, f"{block}.ffn", x), gain[1], eps) for x in xs]
    return np.stack([rms_norm(x, weights["norm.weight"], eps) for x in xs])


def logits(weights: Weights, config, ids: Sequence[int]) -> np.ndarray:
    """Give the logits (T, V) of one document."""
    output = weights["embedding.weight" if config.tie_embeddings else "output.weight"]
    return hidden_states(weights, config, ids) @ output.T
