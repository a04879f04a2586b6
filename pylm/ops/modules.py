"""The ops as modules, for models that are built from `torch.nn.Module`.

Shapes: T time, H query heads, K key heads, C features of a head, D model dimension, F hidden dimension,
V vocabulary, E experts. In `MoE` H is the model dimension, I the hidden one, as in `moe_experts`.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylm.errors import InputError
from pylm.ops._library import (
    check_device,
    check_flag,
    check_float,
    check_float_dtype,
    check_not_negative,
    check_positive,
    check_size,
    is_finite,
)
from pylm.ops.gated import swiglu_packed
from pylm.ops.losses import check_loss_options, linear_cross_entropy
from pylm.ops.moe import Routing, check_router, moe_experts, moe_route
from pylm.ops.norm import rms_norm
from pylm.ops.rotary import rope
from pylm.ops.rotary_tables import rope_cache


def _check_features(op: str, name: str, x: Tensor, dim: int) -> None:
    if x.dim() == 0 or x.shape[-1] != dim:
        raise InputError(f"{op}: {name} must be (..., {dim}), got {tuple(x.shape)}")


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
        check_size("RMSNorm", dim=dim)
        check_not_negative("RMSNorm", eps=eps)
        if not is_finite(weight_offset):
            raise InputError(f"RMSNorm: weight_offset must be a finite number, got {weight_offset!r}")
        check_float_dtype("RMSNorm", dtype)
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
        check_flag("RotaryEmbedding", interleaved=interleaved)
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
        check_size("SwiGLU", dim=dim, hidden_dim=hidden_dim)
        check_float_dtype("SwiGLU", dtype)
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
        check_size("LinearCrossEntropy", dim=dim, num_classes=num_classes)
        check_loss_options(
            "LinearCrossEntropy",
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            reduction=reduction,
        )
        check_float_dtype("LinearCrossEntropy", dtype)
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
            check_float("LinearCrossEntropy", hidden=hidden)
            check_device("LinearCrossEntropy", hidden, weight=self.weight)
            _check_features("LinearCrossEntropy", "hidden", hidden, self.weight.shape[1])
            logits = F.linear(hidden, self.weight.to(hidden.dtype))
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


class MoE(nn.Module):
    """Hold a router and its experts: `moe_route`, then `moe_experts`.

    The router computes in float32, under autocast too: rounded logits would choose other experts.

    Args:
        dim: H, the model dimension.
        hidden_dim: I, the hidden dimension of an expert.
        num_experts: E.
        top_k: experts a token.
        score: "softmax" or "sigmoid".
        balance: "loss", where the caller adds `Routing.aux_loss` to the loss, or "bias", which
            `update_bias` moves (DeepSeek-V3).
        num_groups: groups of experts, see `moe_route`.
        topk_groups: groups that a token's experts come from.
        normalize: divide the weights of a token by their sum.
        scale: factor of the weights.
        device: of the weights.
        dtype: of the weights.
    """

    expert_bias: Tensor | None

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        score: Literal["softmax", "sigmoid"] = "softmax",
        balance: Literal["loss", "bias"] = "loss",
        num_groups: int = 1,
        topk_groups: int = 1,
        normalize: bool = True,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("MoE", dim=dim, hidden_dim=hidden_dim, num_experts=num_experts)
        check_router("MoE", num_experts, top_k, score, num_groups, topk_groups, normalize, scale)
        check_float_dtype("MoE", dtype)
        if balance not in ("loss", "bias"):
            raise InputError(f'MoE: balance must be "loss" or "bias", got {balance!r}')
        self.top_k = top_k
        self.score = score
        self.num_groups = num_groups
        self.topk_groups = topk_groups
        self.normalize = normalize
        self.scale = scale
        self.router_weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.gate_up_weight = nn.Parameter(
            torch.empty(num_experts, 2 * hidden_dim, dim, device=device, dtype=dtype)
        )
        self.down_weight = nn.Parameter(torch.empty(num_experts, dim, hidden_dim, device=device, dtype=dtype))
        bias = torch.empty(num_experts, device=device, dtype=torch.float32) if balance == "bias" else None
        self.register_buffer("expert_bias", bias)
        self.reset_parameters()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # A bias of bfloat16 would be too coarse for its steps: only the device is followed.
        bias = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        applied = self.expert_bias
        if bias is not None and applied is not None and applied.dtype != bias.dtype:
            self.expert_bias = bias.to(applied.device)
        return self

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1 / fan-in); set the bias to zero."""
        for weight in (self.router_weight, self.gate_up_weight, self.down_weight):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        if self.expert_bias is not None:
            nn.init.zeros_(self.expert_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return y like x (..., H), and the routing with its losses and loads."""
        check_float("MoE", x=x)
        check_device("MoE", x, router_weight=self.router_weight)
        _check_features("MoE", "x", x, self.router_weight.shape[1])
        wide = torch.promote_types(x.dtype, torch.float32)
        # There is no autocast for every type of device, meta for one.
        has_autocast = torch.amp.is_autocast_available(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if has_autocast else nullcontext():
            logits = F.linear(x.to(wide), self.router_weight.to(wide))
        routing = moe_route(
            logits,
            self.top_k,
            score=self.score,
            bias=self.expert_bias,
            num_groups=self.num_groups,
            topk_groups=self.topk_groups,
            normalize=self.normalize,
            scale=self.scale,
        )
        return moe_experts(x, routing, self.gate_up_weight, self.down_weight), routing

    @torch.no_grad()
    def update_bias(self, load: Tensor, *, rate: float = 1e-3) -> None:
        """Raise the bias of experts with less than the mean load and lower that of the others.

        To be called once a step, after the optimizer.

        Args:
            load: (E,) `Routing.load`, summed over micro-batches and ranks.
            rate: what the bias moves by; 1e-3 in DeepSeek-V3.

        Raises:
            InputError: the module has no bias, or `load` or `rate` does not fit.

        Source:
            Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024.
        """
        if self.expert_bias is None:
            raise InputError('MoE.update_bias: there is no bias; make the module with balance="bias"')
        check_positive("MoE.update_bias", rate=rate)
        if not isinstance(load, Tensor) or load.shape != self.expert_bias.shape:
            got = tuple(load.shape) if isinstance(load, Tensor) else type(load).__name__
            raise InputError(
                f"MoE.update_bias: load must be a tensor {tuple(self.expert_bias.shape)}, got {got}; "
                f"pass Routing.load"
            )
        check_device("MoE.update_bias", self.expert_bias, load=load)
        excess = load.float() - load.float().mean()
        self.expert_bias -= rate * excess.sign()

    def extra_repr(self) -> str:
        """Describe the settings for `print(model)`."""
        num_experts, dim, hidden_dim = self.down_weight.shape
        return f"{dim}, {hidden_dim}, num_experts={num_experts}, top_k={self.top_k}, score={self.score}"
