"""The decoder-only Transformer. It knows nothing of ranks, precision or data.

Shapes: B batch, T time, S cached time, D model, H heads, V vocabulary, F inside of the SwiGLU.
"""

import torch
from torch import Tensor, nn

from pylm.errors import InputError
from pylm.model.attention import (
    Attention,
    Context,
    KVCache,
    LayerCache,
    cache_mask,
    dense_bias,
    document_mask,
)
from pylm.model.config import ModelConfig
from pylm.ops import rms_norm, rope_cache, swiglu
from pylm.ops.modules import RMSNorm


class FeedForward(nn.Module):
    """SwiGLU between two projections; gate and up share one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        output_BTD: Tensor = self.down(swiglu(gate_BTF, up_BTF))
        return output_BTD


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, normalised before or after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.reordered = config.norm == "reordered"
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None, start: int = 0
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        if self.reordered:
            x_BTD = x_BTD + self.attention_norm(self.attention(x_BTD, context, cache, start))
            x_BTD = x_BTD + self.ffn_norm(self.ffn(x_BTD))
            return x_BTD
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context, cache, start)
        x_BTD = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return x_BTD


class Transformer(nn.Module):
    """Token ids to hidden states; the output matrix is `output_weight`, for `ops.linear_logprob`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the model with initial weights.

        Args:
            config: with `vocab_size` given.

        Raises:
            InputError: `vocab_size` is missing.
        """
        super().__init__()
        if config.vocab_size is None:
            raise InputError("model.vocab_size is not set; a recipe takes it from the tokenizer")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.output = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.reset_parameters()

    @property
    def output_weight(self) -> Tensor:
        """The output matrix (V, D)."""
        return self.embedding.weight if self.output is None else self.output.weight

    def reset_parameters(self) -> None:
        """Draw initial weights from torch's generator and build the rotary tables.

        Called by the constructor; call it again after `to_empty` on a model made on the meta device.
        """
        config = self.config
        self.reset_tables()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                _truncated_normal(module.weight, config.init_std)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        if self.output is not None and config.output_init_std is not None:
            _truncated_normal(self.output.weight, config.output_init_std)
        if config.zero_init_residual:
            for module in self.modules():
                if isinstance(module, Attention):
                    nn.init.zeros_(module.out.weight)
                elif isinstance(module, FeedForward):
                    nn.init.zeros_(module.down.weight)

    def reset_tables(self) -> None:
        """Build the rotary tables, which are not saved, on the device of the weights."""
        config, device = self.config, self.embedding.weight.device
        self.cos, self.sin = rope_cache(
            config.max_seq_len, config.head_features, theta=config.rope_theta, device=device
        )

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute hidden states.

        Args:
            ids_BT: int64 token ids.
            positions_BT: position of each token in its document; None means 0 .. T - 1.
            documents_BT: segment number of each token; attention stays within a segment. None means
                one document a row, which takes the fast causal path.
            cache: earlier keys and values; this call's T columns are added to it. Every row attends to
                the columns that `cache.valid_BS` marks (those of this call included, by the caller)
                and, within this call, causally. `positions_BT` must be given.

        Returns:
            (B, T, D) hidden states after the last norm.

        Raises:
            InputError: a row is longer than `max_seq_len`.
        """
        length = ids_BT.shape[1]
        if length > self.config.max_seq_len:
            raise InputError(f"got {length} tokens, but the model's max_seq_len is {self.config.max_seq_len}")
        mask, start = None, 0
        if cache is not None:
            start = cache.length
            mask = cache_mask(cache.valid_BS, start, length)
            cache.length = start + length
        elif documents_BT is not None:
            mask = document_mask(documents_BT)
        bias = dense_bias(mask, length, self.embedding.weight)
        context = Context(self.cos, self.sin, positions_BT, mask, bias)
        x_BTD = self.embedding(ids_BT)
        if self.config.embedding_norm:
            x_BTD = rms_norm(x_BTD, eps=self.config.norm_eps)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context, cache.layers[index] if cache is not None else None, start)
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD

    def num_params(self, *, non_embedding: bool = False) -> int:
        """Count parameters; `non_embedding` leaves out embedding and untied output matrix."""
        total = sum(p.numel() for p in self.parameters())
        if non_embedding:
            total -= self.embedding.weight.numel()
            total -= 0 if self.output is None else self.output.weight.numel()
        return total

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> int:
        """Estimate floating-point operations of forward and backward for one token.

        Six for every weight that multiplies (the output matrix, but not the embedding's look-up), and
        12 H C S for attention scores and values, half of that when what the causal mask hides is not
        counted.

        Args:
            seq_len: S, keys that a full row has.
            causal: count only what a query can see.
        """
        config = self.config
        weights = self.num_params(non_embedding=True) + self.output_weight.numel()
        attention = 12 * config.num_layers * config.num_heads * config.head_features * seq_len
        return 6 * weights + (attention // 2 if causal else attention)


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
