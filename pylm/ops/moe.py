"""Mixture of experts: the router, and the experts themselves, dropless.

Router, with s the scores of a row of logits l (softmax or sigmoid) and S its top-k experts:

    S = top-k of s + bias (of the best groups of experts only, where there are groups)
    weight_k = scale s_k / sum_{j in S} s_j        without the sum where `normalize` is off
    aux_loss = E sum_e f_e P_e,   f_e = load_e / N,   P_e = mean of s_e / sum_j s_j
    z_loss   = mean of lse(l)^2

Experts, for a row x_r = x_{token(r)} of expert e, rows being pairs (token, slot) sorted by expert:

    (g_r, u_r) = W_e x_r,   a_r = silu(g_r) u_r,   o_r = V_e a_r,   y_t = sum_k weight_tk o_{r(t, k)}

and backward, with v_r = V_e^T grad_t: grad weight_r = a_r . v_r, grad a_r = weight_r v_r. So the rows o_r are
needed no more, and (g_r, u_r) is all that is kept for the backward pass; a_r is made again.

Shapes: N tokens (all leading dimensions), E experts, K top-k, R = N K rows, H model dimension, I hidden
dimension of an expert.
"""

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    as_rows,
    autocast_like_linear,
    check_device,
    check_flag,
    check_float,
    check_optional_float,
    check_positive,
    check_tensors,
    compute_dtype,
    define_op,
    is_integer,
    is_integral,
    refuse_second_derivative,
    register_autograd,
)

# Added to the sum of scores that divides, as in DeepSeek-V3: sigmoids may all be zero.
_TINY = 1e-20
_MAX_ROWS = 2**31 - 1


class Routing(NamedTuple):
    """What `moe_route` returns: which experts a token goes to, and the rows of each expert."""

    weight: Tensor
    """Weight of each choice, float32 (N, K), best score first."""
    expert: Tensor
    """Expert of each choice, int64 (N, K)."""
    order: Tensor
    """Choices sorted by expert, then token: indices into the flattened (N, K), int32 (N * K,)."""
    offsets: Tensor
    """`order[offsets[e] : offsets[e + 1]]` are the choices of expert e, int32 (E + 1,)."""
    load: Tensor
    """Number of tokens of each expert, int32 (E,)."""
    aux_loss: Tensor
    """Load-balancing loss, float32 scalar; K where the load is balanced."""
    z_loss: Tensor
    """Mean squared log-sum-exp of the logits, float32 scalar."""


def _scores(logits: Tensor, score: str) -> Tensor:
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(1)


def _select(key: Tensor, top_k: int, num_groups: int, topk_groups: int, group_score: str) -> Tensor:
    """Return the experts with the largest keys (N, K), equal ones in the order of their indices."""
    key = torch.where(key.isnan(), torch.inf, key)  # a NaN shows in the weights
    order = key.sort(dim=1, descending=True, stable=True).indices
    if topk_groups < num_groups:
        size = key.shape[1] // num_groups
        groups = key.view(key.shape[0], num_groups, size)
        best = groups.topk(2 if group_score == "top2" and size > 1 else 1, 2).values.sum(2)
        best = torch.where(best.isnan(), torch.inf, best)
        chosen = best.sort(dim=1, descending=True, stable=True).indices[:, :topk_groups]
        is_chosen = torch.zeros(best.shape, dtype=torch.int8).scatter_(1, chosen, 1)
        # Experts of the chosen groups first, each part as it was.
        is_first = is_chosen.gather(1, order // size)
        order = order.gather(1, is_first.sort(dim=1, descending=True, stable=True).indices)
    return order[:, :top_k]


def _route_cpu(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    score: str,
    group_score: str,
    num_groups: int,
    topk_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(logits)
    num_tokens, num_experts = logits.shape
    logits = logits.to(wide)
    lse = logits.logsumexp(1)
    # As softmax has it, and the kernels: inf - inf where a logit is inf, or all are -inf.
    lse = lse.masked_fill(lse.isinf(), torch.nan)
    scores = _scores(logits, score)
    key = scores if bias is None else scores + bias.to(wide)
    expert = _select(key, top_k, num_groups, topk_groups, group_score).contiguous()
    weight = scores.gather(1, expert)
    if normalize:
        weight = weight / (weight.sum(1, keepdim=True) + _TINY)
    order = expert.flatten().sort(stable=True).indices.to(torch.int32)
    load = expert.flatten().bincount(minlength=num_experts).to(torch.int32)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32)
    offsets[1:] = load.cumsum(0)
    if score == "sigmoid":
        scores = scores / (scores.sum(1, keepdim=True) + _TINY)
    size = max(1, num_tokens)
    aux_loss = (load.to(wide) * scores.sum(0)).sum() * (num_experts / size**2)
    return weight * scale, expert, order, offsets, load, aux_loss, lse.square().sum() / size, lse


def _route_fake(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    score: str,
    group_score: str,
    num_groups: int,
    topk_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(logits)
    num_tokens, num_experts = logits.shape
    weight = logits.new_empty((num_tokens, top_k), dtype=wide)
    expert = logits.new_empty((num_tokens, top_k), dtype=torch.int64)
    order, offsets, load = (
        logits.new_empty(size, dtype=torch.int32)
        for size in (num_tokens * top_k, num_experts + 1, num_experts)
    )
    aux_loss, z_loss = (logits.new_empty((), dtype=wide) for _ in range(2))
    return weight, expert, order, offsets, load, aux_loss, z_loss, logits.new_empty(num_tokens, dtype=wide)


def _route_backward_cpu(
    grad_weight: Tensor | None,
    grad_aux: Tensor | None,
    grad_z: Tensor | None,
    logits: Tensor,
    expert: Tensor,
    load: Tensor,
    lse: Tensor,
    score: str,
    normalize: bool,
    scale: float,
) -> Tensor:
    wide = compute_dtype(logits)
    num_tokens, num_experts = logits.shape
    size = max(1, num_tokens)
    wide_logits = logits.to(wide)
    scores = _scores(wide_logits, score)
    grad = torch.zeros_like(scores)
    if grad_aux is not None:
        grad += load.to(wide) * (grad_aux * (num_experts / size**2))
        if score == "sigmoid":
            total = scores.sum(1, keepdim=True) + _TINY
            grad = (grad - (grad * scores).sum(1, keepdim=True) / total) / total
    if grad_weight is not None:
        grad_picked = grad_weight.to(wide) * scale
        if normalize:
            picked = scores.gather(1, expert)
            total = picked.sum(1, keepdim=True) + _TINY
            grad_picked = (grad_picked - (grad_picked * picked).sum(1, keepdim=True) / total) / total
        grad.scatter_add_(1, expert, grad_picked)
    if score == "sigmoid":
        grad = grad * scores * (1.0 - scores)
    else:
        grad = scores * (grad - (grad * scores).sum(1, keepdim=True))
    if grad_z is not None:
        shares = scores if score == "softmax" else (wide_logits - lse[:, None]).exp()
        grad += shares * lse[:, None] * (grad_z * (2.0 / size))
    return grad.to(logits.dtype)


def _route_backward_fake(
    grad_weight: Tensor | None,
    grad_aux: Tensor | None,
    grad_z: Tensor | None,
    logits: Tensor,
    expert: Tensor,
    load: Tensor,
    lse: Tensor,
    score: str,
    normalize: bool,
    scale: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


_ROUTE = define_op(
    "moe_route(Tensor logits, Tensor? bias, int top_k, str score, str group_score, int num_groups,"
    " int topk_groups, bool normalize, float scale) -> (Tensor weight, Tensor expert, Tensor order,"
    " Tensor offsets, Tensor load, Tensor aux_loss, Tensor z_loss, Tensor lse)",
    cpu=_route_cpu,
    kernel="moe_route.forward",
    fake=_route_fake,
)
_ROUTE_BACKWARD = define_op(
    "moe_route_backward(Tensor? grad_weight, Tensor? grad_aux, Tensor? grad_z, Tensor logits,"
    " Tensor expert, Tensor load, Tensor lse, str score, bool normalize, float scale) -> Tensor",
    cpu=_route_backward_cpu,
    kernel="moe_route.backward",
    fake=_route_backward_fake,
)


def _save_route(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, ctx.score, _, _, _, ctx.normalize, ctx.scale = inputs
    _, expert, order, offsets, load, _, _, lse = output
    ctx.save_for_backward(logits, expert, load, lse)
    ctx.mark_non_differentiable(expert, order, offsets, load, lse)
    ctx.set_materialize_grads(False)


def _route_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_weight, _, _, _, _, grad_aux, grad_z, _ = grads
    options = ctx.score, ctx.normalize, ctx.scale
    return _ROUTE_BACKWARD(grad_weight, grad_aux, grad_z, *ctx.saved_tensors, *options), *[None] * 8


register_autograd("moe_route", _route_backward, setup_context=_save_route)
refuse_second_derivative("moe_route_backward")


def moe_route(
    logits: Tensor,
    top_k: int,
    *,
    score: Literal["softmax", "sigmoid"] = "softmax",
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: Literal["max", "top2"] | None = None,
    normalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Choose the experts of every token, and sort the choices by expert.

    Nothing is dropped: an expert takes as many tokens as choose it. Of equal scores the lower index wins.
    Gradients flow from `weight`, `aux_loss` and `z_loss` to the logits.

    Args:
        logits: (..., E), one row a token.
        top_k: K, experts a token; at most those of `topk_groups` groups.
        score: "softmax" over the experts (Mixtral, OLMoE, Qwen3), or "sigmoid" of each (DeepSeek-V3).
        bias: (E,), added to the scores for the choice only; it moves load without a loss. No gradient.
        num_groups: groups of consecutive experts, a divisor of E; 1 is no groups.
        topk_groups: experts come from this many groups, the best ones.
        group_score: what the best groups are told by: "max", the largest score (with bias) of their
            experts (DeepSeek-V2), or "top2", the sum of the two largest (DeepSeek-V3). None is "top2" for
            sigmoid and "max" for softmax.
        normalize: divide the weights by their sum over the K choices, before `scale`.
        scale: factor of the weights (`routed_scaling_factor`).

    Returns:
        Routing(weight, expert, order, offsets, load, aux_loss, z_loss), float64 for float64 logits. The
        losses have no coefficient. `aux_loss` counts choices by token, as Hugging Face's models do;
        divide it by K for the loss of DeepSeek-V3 and MegaBlocks, which is 1 where balanced. Where a logit
        is NaN or inf, or all of a row are -inf, `z_loss` is NaN, for softmax `aux_loss` too.

    Raises:
        InputError: a shape, dtype, device or option does not fit.

    Source:
        Fedus et al., "Switch Transformers", 2021, eq. 4-6 (aux_loss); Zoph et al., "ST-MoE", 2022, eq. 5
        (z_loss); DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.2 (groups), and "DeepSeek-V3", 2024,
        eq. 12-20 (sigmoid, bias, shares of sigmoids).
    """
    check_float("moe_route", logits=logits)
    check_optional_float("moe_route", bias=bias)
    check_device("moe_route", logits, bias=bias)
    if logits.dim() == 0:
        raise InputError("moe_route: logits must be (..., E), got a scalar")
    num_experts = logits.shape[-1]
    check_router("moe_route", num_experts, top_k, score, num_groups, topk_groups, normalize, scale)
    if group_score not in ("max", "top2", None):
        raise InputError(f'moe_route: group_score must be "max", "top2" or None, got {group_score!r}')
    if bias is not None and bias.shape != (num_experts,):
        raise InputError(f"moe_route: bias must have shape ({num_experts},), got {tuple(bias.shape)}")
    rows = as_rows(logits)
    if rows.shape[0] * top_k > _MAX_ROWS:
        raise InputError(
            f"moe_route: {rows.shape[0]} tokens x top_k={top_k} must be below 2^31; split the batch"
        )
    group_score = group_score or ("top2" if score == "sigmoid" else "max")
    options = score, group_score, num_groups, topk_groups, normalize, scale
    return Routing(*_ROUTE(rows, bias, top_k, *options)[:7])


def check_router(
    op: str,
    num_experts: int,
    top_k: object,
    score: object,
    num_groups: object,
    topk_groups: object,
    normalize: object,
    scale: object,
) -> None:
    """Raise InputError unless the options of `moe_route` are in range."""
    if score not in ("softmax", "sigmoid"):
        raise InputError(f'{op}: score must be "softmax" or "sigmoid", got {score!r}')
    if not is_integer(num_groups) or num_groups < 1 or num_experts % num_groups:
        raise InputError(
            f"{op}: num_groups must be at least 1 and divide the {num_experts} experts, got {num_groups!r}"
        )
    if not is_integer(topk_groups) or not 1 <= topk_groups <= num_groups:
        raise InputError(f"{op}: topk_groups must be in [1, num_groups={num_groups}], got {topk_groups!r}")
    num_allowed = num_experts // num_groups * topk_groups
    if not is_integer(top_k) or not 1 <= top_k <= num_allowed:
        raise InputError(
            f"{op}: top_k must be in [1, {num_allowed}], the experts that may be chosen, got {top_k!r}"
        )
    check_flag(op, normalize=normalize)
    check_positive(op, scale=scale)


def _expert_slices(order: Tensor, offsets: Tensor) -> list[tuple[int, slice]]:
    """Return the experts that have rows, with their rows; raise where they are not those of a routing."""
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != order.numel() or any(a > b for a, b in pairwise(ends)):
        raise InputError(
            f"moe_experts: the offsets of routing must rise from 0 to its {order.numel()} rows, "
            f"got {ends[:8]}; pass what moe_route gives"
        )
    if order.numel():
        low, high = torch.aminmax(order)
        if int(low) < 0 or int(high) >= order.numel():
            raise InputError(
                f"moe_experts: the order of routing must be in [0, {order.numel()}), "
                f"got {int(low)} to {int(high)}; pass what moe_route gives"
            )
    return [(e, slice(ends[e], ends[e + 1])) for e in range(len(ends) - 1) if ends[e] < ends[e + 1]]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b where `torch.autocast` does not reach it: it would round the factors."""
    return torch.mm(a, b, out=a.new_empty((a.shape[0], b.shape[1])))


def _gather_sum(rows: Tensor, order: Tensor, weight: Tensor) -> Tensor:
    """Return sum_k weight[t, k] rows[place of choice (t, k) in order], (N, H)."""
    rows_in_order = torch.arange(order.numel(), dtype=order.dtype)
    place = torch.full_like(order, -1).scatter_(0, order.long(), rows_in_order)
    if bool((place < 0).any()):
        raise InputError(
            "moe_experts: the order of routing must hold every choice once, got some twice; "
            "pass what moe_route gives"
        )
    return F.embedding_bag(place.view(weight.shape), rows, per_sample_weights=weight, mode="sum")


def _experts_cpu(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(x)
    kept = torch.empty((order.numel(), gate_up_weight.shape[1]) if keep else (0, 0), dtype=x.dtype)
    if order.numel() == 0 or x.shape[1] == 0:
        return torch.zeros(x.shape, dtype=x.dtype), kept
    out = torch.empty((order.numel(), x.shape[1]), dtype=wide)
    for e, rows in _expert_slices(order, offsets):
        gate_up = _gate_up(x, order[rows] // weight.shape[1], gate_up_weight[e])
        if keep:
            kept[rows] = gate_up
        gate, up = gate_up.chunk(2, 1)
        torch.mm(F.silu(gate).mul_(up), down_weight[e].to(wide).t(), out=out[rows])
    return _gather_sum(out, order, weight.to(wide)).to(x.dtype), kept


def _gate_up(x: Tensor, tokens: Tensor, gate_up_weight: Tensor) -> Tensor:
    wide = compute_dtype(x)
    return _product(x.index_select(0, tokens).to(wide), gate_up_weight.to(wide).t())


def _experts_fake(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    kept_shape = (order.shape[0], gate_up_weight.shape[1]) if keep else (0, 0)
    return x.new_empty(x.shape), x.new_empty(kept_shape)


def _experts_backward_cpu(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    gate_up: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(x)
    needs_x, needs_weight, needs_gate_up, needs_down = needs
    num_rows, top_k = order.numel(), weight.shape[1]
    flat_weight = weight.reshape(-1).to(wide)
    grad_weight = torch.zeros(num_rows if needs_weight else 0, dtype=wide)
    grad_gate_up = torch.zeros(gate_up_weight.shape if needs_gate_up else (0,), dtype=gate_up_weight.dtype)
    grad_down = torch.zeros(down_weight.shape if needs_down else (0,), dtype=down_weight.dtype)
    grad_rows = torch.empty((num_rows if needs_x else 0, x.shape[1]), dtype=wide)
    for e, rows in _expert_slices(order, offsets) if x.shape[1] else []:
        choices = order[rows].long()
        tokens = choices // top_k
        kept = gate_up[rows].to(wide) if gate_up.numel() else _gate_up(x, tokens, gate_up_weight[e])
        gate, up = kept.chunk(2, 1)
        share = flat_weight[choices].unsqueeze(1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        hidden = silu * up
        upstream = grad.index_select(0, tokens).to(wide)
        back = _product(upstream, down_weight[e].to(wide))
        if needs_weight:
            grad_weight[choices] = (back * hidden).sum(1)
        if needs_down:
            grad_down[e] = _product(upstream.t(), hidden.mul_(share))
        if not (needs_x or needs_gate_up):
            continue
        back *= share
        grad_kept = torch.empty_like(kept)
        grad_gate, grad_up = grad_kept.chunk(2, 1)
        torch.mul(back, silu, out=grad_up)
        # silu' = s + silu (1 - s): the point s of the way from silu to 1.
        torch.mul(back.mul_(up), silu.lerp_(silu.new_ones(()), sigmoid), out=grad_gate)
        if needs_gate_up:
            grad_gate_up[e] = _product(grad_kept.t(), x.index_select(0, tokens).to(wide))
        if needs_x:
            torch.mm(grad_kept, gate_up_weight[e].to(wide), out=grad_rows[rows])
    grad_x = torch.zeros(x.shape if needs_x else (0, 0), dtype=x.dtype)
    if needs_x and num_rows and x.shape[1]:
        grad_x = _gather_sum(grad_rows, order, torch.ones(weight.shape, dtype=wide)).to(x.dtype)
    grad_weight = grad_weight.to(weight.dtype).view(weight.shape if needs_weight else (0, 0))
    return grad_x, grad_weight, grad_gate_up, grad_down


def _experts_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    gate_up: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs[0] else (0, 0)),
        weight.new_empty(weight.shape if needs[1] else (0, 0)),
        gate_up_weight.new_empty(gate_up_weight.shape if needs[2] else (0,)),
        down_weight.new_empty(down_weight.shape if needs[3] else (0,)),
    )


_EXPERTS = define_op(
    "moe_experts(Tensor x, Tensor weight, Tensor order, Tensor offsets, Tensor gate_up_weight,"
    " Tensor down_weight, bool keep) -> (Tensor y, Tensor gate_up)",
    cpu=_experts_cpu,
    kernel="moe_experts.forward",
    fake=_experts_fake,
)
_EXPERTS_BACKWARD = define_op(
    "moe_experts_backward(Tensor grad, Tensor x, Tensor weight, Tensor order, Tensor offsets,"
    " Tensor gate_up_weight, Tensor down_weight, Tensor gate_up, bool[4] needs) -> (Tensor grad_x,"
    " Tensor grad_weight, Tensor grad_gate_up_weight, Tensor grad_down_weight)",
    cpu=_experts_backward_cpu,
    kernel="moe_experts.backward",
    fake=_experts_backward_fake,
)


def _save_experts(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _experts_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 4, 5)]
    grads = _EXPERTS_BACKWARD(grad, *ctx.saved_tensors, needs)
    grad_x, grad_weight, grad_gate_up, grad_down = (
        g if need else None for g, need in zip(grads, needs, strict=True)
    )
    return grad_x, grad_weight, None, None, grad_gate_up, grad_down, None


register_autograd("moe_experts", _experts_backward, setup_context=_save_experts)
refuse_second_derivative("moe_experts_backward")


def moe_experts(x: Tensor, routing: Routing, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """Send every token through its experts and add up what they give, weighted.

    An expert is `down(silu(gate) * up)`. The layout of the weights is that of Hugging Face's Mixtral, OLMoE,
    Qwen3-MoE and DeepSeek-V3 since transformers 5: parameters of those models are passed as they are.

    Args:
        x: (..., H), one row a token; under `torch.autocast` on a GPU converted to its dtype.
        routing: what `moe_route` gives for the same tokens.
        gate_up_weight: (E, 2 * I, H), the gate's rows first; converted to the dtype of `x`.
        down_weight: (E, H, I); converted to the dtype of `x`.

    Returns:
        (..., H), dtype of `x`. Kept for the backward pass: the inputs and the products with
        `gate_up_weight`, (N * K, 2 * I) in the dtype of `x`.

    Raises:
        InputError: a shape, dtype or device does not fit.

    Source:
        Shazeer et al., "Outrageously Large Neural Networks", 2017; Gale et al., "MegaBlocks", 2022
        (dropless); Guo et al., "SonicMoE", 2025 (the gradient of the weights without the experts' outputs).

    Example:
        >>> routing = moe_route(x_ND @ router_ED.T, top_k=8)
        >>> y_ND = moe_experts(x_ND, routing, gate_up_weight, down_weight)
        >>> loss = loss + 0.01 * routing.aux_loss + 0.001 * routing.z_loss
    """
    if not isinstance(routing, tuple) or len(routing) < 4:
        raise InputError(f"moe_experts: routing must be what moe_route gives, got {type(routing).__name__}")
    weight, _, order, offsets = routing[:4]
    check_tensors("moe_experts", order=order, offsets=offsets)
    check_float("moe_experts", x=x, weight=weight, gate_up_weight=gate_up_weight, down_weight=down_weight)
    check_device(
        "moe_experts",
        x,
        weight=weight,
        order=order,
        offsets=offsets,
        gate_up_weight=gate_up_weight,
        down_weight=down_weight,
    )
    shape = tuple(gate_up_weight.shape)
    if x.dim() == 0 or len(shape) != 3 or shape[1] % 2 or shape[2] != x.shape[-1]:
        raise InputError(
            f"moe_experts: expected x (..., H) and gate_up_weight (E, 2 * I, H), got {tuple(x.shape)} "
            f"and {shape}"
        )
    if tuple(down_weight.shape) != (shape[0], shape[2], shape[1] // 2):
        raise InputError(
            f"moe_experts: down_weight must be (E, H, I) = {(shape[0], shape[2], shape[1] // 2)}, "
            f"got {tuple(down_weight.shape)}"
        )
    rows = as_rows(autocast_like_linear(x))
    if weight.dim() != 2 or weight.shape[0] != rows.shape[0] or order.shape != (weight.numel(),):
        raise InputError(
            f"moe_experts: routing is of {tuple(weight.shape)} choices and {order.shape[0]} rows, expected "
            f"those of the {rows.shape[0]} tokens of x; route the same tokens"
        )
    if not is_integral(order) or not is_integral(offsets):
        raise InputError(
            f"moe_experts: order and offsets of routing must be integers, got {order.dtype} and "
            f"{offsets.dtype}; pass what moe_route gives"
        )
    if offsets.shape != (shape[0] + 1,):
        raise InputError(
            f"moe_experts: routing is of {offsets.shape[0] - 1} experts, but gate_up_weight has {shape[0]}"
        )
    tensors = rows, weight, gate_up_weight, down_weight
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    y: Tensor = _EXPERTS(
        rows,
        weight,
        order.to(torch.int32),
        offsets.to(torch.int32),
        gate_up_weight.to(rows.dtype),
        down_weight.to(rows.dtype),
        keep,
    )[0]
    return y.view(x.shape)
