"""Causal attention with grouped queries, rotary positions, document masks and a key-value cache.

Shapes: B batch, T query time, S key time, D model, H query heads, K key/value heads, C features a head.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylm.model.config import ModelConfig
from pylm.ops import rms_norm, rope
from pylm.ops.modules import RMSNorm


@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share.

    Attributes:
        cos: (P, C / 2) rotary cosines.
        sin: (P, C / 2) rotary sines.
        positions_BT: rows of the tables, or None for 0 .. T - 1.
        mask: bool, broadcast to (B, H, T, S), or None for plain causal.
        bias: where attention is dense, the mask as numbers to add to the scores: 0 or minus infinity.
    """

    cos: Tensor
    sin: Tensor
    positions_BT: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None


DENSE_KEYS = 1024
"""On a CPU, rows of at most this many keys are attended to with plain matrix products. For 16 rows of 256
tokens and 2 heads of 64 in bfloat16 (one core with AVX-512 bfloat16, torch 2.13) forward and backward take
8 ms, those of `scaled_dot_product_attention` 23 ms."""


def dense_bias(mask: Tensor | None, length: int, like: Tensor) -> Tensor | None:
    """Turn a mask into numbers to add to the scores, where attention is dense; None where it is not.

    Args:
        mask: bool (B, 1, T, S); None for plain causal.
        length: T; also S where `mask` is None.
        like: parameters of the model, for device and dtype.
    """
    num_keys = length if mask is None else mask.shape[-1]
    if like.device.type != "cpu" or num_keys > DENSE_KEYS:
        return None
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return torch.zeros(mask.shape, dtype=_compute_dtype(like)).masked_fill_(~mask, -math.inf)


def _compute_dtype(like: Tensor) -> torch.dtype:
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def _attend_dense(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, bias: Tensor) -> Tensor:
    """Attend with plain matrix products; the queries of a key head are stacked, so that no key is copied.

    Scores take the dtype of the products, as where they are kept in eager code; softmax computes in float32.
    """
    batch, num_heads, length, head_dim = q_BHTC.shape
    num_kv_heads, num_keys = k_BKSC.shape[1:3]
    groups = num_heads // num_kv_heads
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.to(bias.dtype) for x in (q_BHTC * head_dim**-0.5, k_BKSC, v_BKSC))
        stacked = q.reshape(batch, num_kv_heads, groups * length, head_dim)
        scores = (stacked @ k.mT).view(batch, num_kv_heads, groups, length, num_keys)
        weights = torch.softmax(scores + bias.unsqueeze(2), dim=-1)
        y = weights.view(batch, num_kv_heads, groups * length, num_keys) @ v
        return y.view(batch, num_heads, length, head_dim)


def document_mask(documents_BT: Tensor) -> Tensor:
    """Build the mask of packed rows: causal, and within one document only.

    Args:
        documents_BT: segment number of each token.

    Returns:
        bool (B, 1, T, T), true where a query (third axis) may look.
    """
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    length = documents_BT.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()


def cache_mask(valid_BS: Tensor, start: int, length: int) -> Tensor:
    """Build the mask of T new columns after `start` cached ones.

    Args:
        valid_BS: columns that hold a token of the row.
        start: columns before this call's.
        length: T.

    Returns:
        bool (B, 1, T, start + T): valid columns up to a query's own. A padded query sees itself, so that
        no softmax is over nothing; nobody looks at what it gives.
    """
    visible = valid_BS[:, None, None, : start + length]
    if length == 1:
        return visible
    everything = torch.ones(length, start + length, dtype=torch.bool, device=valid_BS.device)
    causal = everything.tril(start)
    return (visible & causal) | (causal & everything.triu(start))


class LayerCache:
    """Keys and values of one layer, in buffers of fixed length."""

    def __init__(self, k_BKSC: Tensor, v_BKSC: Tensor) -> None:
        self.k_BKSC = k_BKSC
        self.v_BKSC = v_BKSC

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write T new keys and values at `start`; give all up to there, views without a copy."""
        end = start + k_BKTC.shape[2]
        self.k_BKSC[:, :, start:end] = k_BKTC
        self.v_BKSC[:, :, start:end] = v_BKTC
        return self.k_BKSC[:, :, :end], self.v_BKSC[:, :, :end]


class KVCache:
    """Keys and values of all layers, with the number of columns that are filled.

    Columns are shared by all rows: column s of every row is written by the same forward pass. Rows of
    different length are aligned on the right by their caller and masked through `valid_BS`.
    """

    def __init__(self, config: ModelConfig, num_rows: int, num_columns: int, *, like: Tensor) -> None:
        """Reserve room; tensors take dtype and device of `like`."""
        shape = (num_rows, config.kv_heads, num_columns, config.head_features)
        self.layers = [
            LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.num_layers)
        ]
        self.length = 0
        self.valid_BS = torch.zeros(num_rows, num_columns, dtype=torch.bool, device=like.device)

    def select_rows(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, in this order: int64 (num_rows,)."""
        for layer in self.layers:
            layer.k_BKSC = layer.k_BKSC[rows]
            layer.v_BKSC = layer.v_BKSC[rows]
        self.valid_BS = self.valid_BS[rows]


class Attention(nn.Module):
    """Project to heads, normalise, rotate, attend, project back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.kv_heads
        self.head_dim, self.eps = config.head_features, config.norm_eps
        num_all = self.num_heads + 2 * self.num_kv_heads
        self.qkv = nn.Linear(config.dim, num_all * self.head_dim, bias=False)
        self.out = nn.Linear(self.num_heads * self.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        """Attend.

        Args:
            x_BTD: input.
            context: tables, positions, mask.
            cache: earlier keys and values, to which this call's are added.
            start: column of the cache at which they are written.

        Returns:
            (B, T, D).
        """
        batch, length, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, length, -1, self.head_dim)
        q_BTHC, k_BTKC, v_BTKC = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHC = rms_norm(q_BTHC, self.q_norm.weight, eps=self.eps)
            k_BTKC = rms_norm(k_BTKC, self.k_norm.weight, eps=self.eps)
        q_BTHC, k_BTKC = rope(q_BTHC, k_BTKC, context.cos, context.sin, position_ids=context.positions_BT)
        q_BHTC, k_BKSC, v_BKSC = q_BTHC.transpose(1, 2), k_BTKC.transpose(1, 2), v_BTKC.transpose(1, 2)
        if cache is not None:
            k_BKSC, v_BKSC = cache.append(k_BKSC, v_BKSC, start)
        if context.bias is not None:
            y_BHTC = _attend_dense(q_BHTC, k_BKSC, v_BKSC, context.bias)
        else:
            y_BHTC = F.scaled_dot_product_attention(
                q_BHTC,
                k_BKSC,
                v_BKSC,
                attn_mask=context.mask,
                is_causal=context.mask is None,
                enable_gqa=self.num_kv_heads != self.num_heads,
            )
        output_BTD: Tensor = self.out(y_BHTC.transpose(1, 2).reshape(batch, length, -1))
        return output_BTD
