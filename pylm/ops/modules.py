"""The ops as modules, for models that are built from `torch.nn.Module`.

Shapes: T time, H query heads, K key heads, C features of a head, D model dimension, F hidden dimension,
V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylm.ops.gated import swiglu_packed
from pylm.ops.losses import linear_cross_entropy
from pylm.ops.norm import rms_norm
from pylm.ops.rotary import rope
from pylm.ops.rotary_tables import rope_cache


class RMSNorm(nn.Module):
    """Hold the gain of an `rms_norm`.

    Args:
        dim: D, the normalised dimension.
        eps: added to the mean square.
        weight_offset: added to the weight; the weight starts at 1 - weight_offset.
        device: of the weight.
        dtype: of the weight.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight_offset = weight_offset
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        return rms_norm(x, self.weight, eps=self.eps, weight_offset=self.weight_offset)

    def extra_repr(self) -> str:
        """Describe the settings for `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.eps}, weight_offset={self.weight_offset}"


class RotaryEmbedding(nn.Module):
    """Hold the table of a `rope`, in float32 whatever the model is converted to.

    The table is no part of the state dict. After `to_empty` call `reset_parameters`.

    Args:
        dim: R, the number of rotated features of a head.
        num_positions: the longest sequence.
        theta: base of the frequencies.
        scaling: context extension, as `rope_cache` takes it.
        interleaved: pair features (2 i, 2 i + 1) and not (i, i + R / 2).
        device: of the table.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_positions: int,
        theta: float = 10_000.0,
        scaling: Mapping[str, float | str] | None = None,
        interleaved: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_positions = num_positions
        self.theta = theta
        self.scaling = None if scaling is None else dict(scaling)
        self.interleaved = interleaved
        cos, sin = self._tables(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        return rope_cache(self.num_positions, self.dim, theta=self.theta, scaling=self.scaling, device=device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Angles of bfloat16 tables would be wrong by whole turns far out: only the device is followed.
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.cos.dtype != cos.dtype:
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def reset_parameters(self) -> None:
        """Compute the table again, on the device that it is on."""
        self.cos, self.sin = self._tables(self.cos.device)

    def forward(self, q: Tensor, k: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate q (..., T, H, C) and k (..., T, K, C) by their positions; None is 0 .. T - 1."""
        return rope(q, k, self.cos, self.sin, position_ids=position_ids, interleaved=self.interleaved)

    def extra_repr(self) -> str:
        """Describe the settings for `print(model)`."""
        return f"{self.dim}, num_positions={self.num_positions}, theta={self.theta}, scaling={self.scaling}"


class SwiGLU(nn.Module):
    """A gated feed-forward block, `down(silu(gate) * up)`, gate and up in one product.

    Args:
        dim: D, of the input and the output.
        hidden_dim: F.
        bias: whether both layers have one.
        device: of the weights.
        dtype: of the weights.

    Source:
        Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden_dim, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., D)."""
        y: Tensor = self.down(swiglu_packed(self.gate_up(x)))
        return y


class LinearCrossEntropy(nn.Module):
    """An output layer and its loss: a module, so that under FSDP2 the weight is whole where it is used.

    Args:
        dim: D, of the hidden states.
        num_classes: V.
        ignore_index: targets without loss.
        label_smoothing: in [0, 1].
        z_loss: weight of the squared log-sum-exp.
        softcap: c of c tanh(logit / c), or None.
        reduction: "mean" over the targets that are not ignored, "sum", or "none".
        device: of the weight.
        dtype: of the weight.

    Example:
        >>> head = LinearCrossEntropy(dim, vocab_size)
        >>> head.weight = embedding.weight  # tied
        >>> loss = head(hidden_BTD, targets_BT)
        >>> logits_BTV = head(hidden_BTD)
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.reduction = reduction
        self.weight = nn.Parameter(torch.empty(num_classes, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as `torch.nn.Linear` does: uniform within 1 / sqrt(D)."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the loss of hidden (..., D) for targets (...); without targets the logits (..., V)."""
        if targets is None:
            logits = F.linear(hidden, self.weight)
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        return linear_cross_entropy(
            hidden,
            self.weight,
            targets,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Describe the settings for `print(model)`."""
        num_classes, dim = self.weight.shape
        return f"{dim}, {num_classes}, z_loss={self.z_loss}, softcap={self.softcap}"
