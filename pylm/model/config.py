"""Architecture of a model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pylm.config import Config


class ModelConfig(Config):
    """A decoder-only Transformer with grouped queries, rotary positions, SwiGLU and RMSNorm."""

    vocab_size: int | None = Field(default=None, ge=2)
    """Rows of the embedding; None means the tokenizer's vocabulary, filled in when training starts."""
    dim: int = Field(ge=2)
    """Width of the residual stream."""
    num_layers: int = Field(ge=1)
    """Blocks."""
    num_heads: int = Field(ge=1)
    """Query heads."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads, a divisor of `num_heads`; None takes one for every query head."""
    head_dim: int | None = Field(default=None, ge=2)
    """Features a head, even; None takes dim / num_heads."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the SwiGLU's inside; None takes 8/3 dim, rounded up to a multiple of 32."""
    norm: Literal["pre", "reordered"] = "pre"
    """`pre` normalises what enters a sublayer; `reordered` what leaves it (OLMo 2)."""
    qk_norm: bool = True
    """Normalise every query and key head before the rotation."""
    embedding_norm: bool = False
    """Normalise token embeddings before the first block, without a weight."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in every norm."""
    rope_theta: float = Field(default=5e5, gt=0)
    """Base of the rotary frequencies (OLMo 2: 5e5)."""
    max_seq_len: int = Field(default=4096, ge=1)
    """Longest context that the rotary tables are made for."""
    tie_embeddings: bool = False
    """Use the embedding as the output matrix."""
    init_std: float = Field(default=0.02, gt=0)
    """Of initial weights: normal, cut at three deviations (OLMo 2: 0.02)."""
    output_init_std: float | None = Field(default=None, gt=0)
    """Of the untied output matrix; None takes `init_std`."""
    zero_init_residual: bool = False
    """Start the matrices that write into the residual stream at zero, so each block begins as identity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.kv_heads}"
            )
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}; or set head_dim"
            )
        if self.head_features % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_features}")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_features(self) -> int:
        """Features a head, resolved."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Width inside the SwiGLU, resolved."""
        return self.hidden_dim or -(-8 * self.dim // (3 * 32)) * 32
