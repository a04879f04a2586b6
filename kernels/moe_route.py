"""Router of a mixture of experts: scores, groups, top-k, both losses, and the choices sorted by expert.

With l the logits of a token, s = softmax(l) or sigmoid(l), S its K experts, T = sum_{j in S} s_j:

    weight_k = scale s_k / T,  aux_loss = E sum_e (load_e / N) (mean of s_e / sum_j s_j),  z_loss = mean lse^2

    softmax:  dl = s (ds - sum_j ds_j s_j)      sigmoid:  dl = s (1 - s) ds      z_loss:  dl = 2 lse p g / N
    weights:  ds_k = scale (g_k - sum_j g_j s_j / T) / T, or scale g_k where they are not divided by T

Fedus et al., "Switch Transformers", 2021; Zoph et al., "ST-MoE", 2022; DeepSeek-AI, "DeepSeek-V3", 2024.
Shapes: N tokens, E experts in G groups of M, K top-k, B blocks of tokens.

Sorting is counting: the first kernel leaves the load of every block and expert, sums over the blocks give
where each block's choices of each expert begin, and the second kernel numbers them. No atomics, no sort.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import (
    FUSED_MULTIPLY_ADD,
    Grid,
    Start,
    cdiv,
    next_power_of_2,
    remembered,
    wide_dtype,
)

# Elements of a program's tile, and of a warp: few, since each waits for one choice after another.
_FORWARD_TILE = 1024, 512
_BACKWARD_TILE = 512, 256
_MAX_EXPERTS = 16384


@triton.jit
def _first_largest(key, columns, is_open):
    """Return the lowest of the columns that have the largest open key (BLOCK_N,)."""
    peak = tl.max(tl.where(is_open, key, float("-inf")), axis=1)[:, None]
    return tl.min(tl.where(is_open & (key == peak), columns, 1 << 30), axis=1)


@triton.jit
def _score(logits, USES_SIGMOID: tl.constexpr):
    """Return scores, shares of the softmax (BLOCK_N, BLOCK_E) and log-sum-exp (BLOCK_N, 1)."""
    peak = tl.max(logits, axis=1)[:, None]
    exponentials = tl.exp(logits - peak)
    total = tl.sum(exponentials, axis=1)[:, None]
    shares = exponentials / total
    scores = shares
    if USES_SIGMOID:
        scores = tl.sigmoid(logits)
    return scores, shares, peak + tl.log(total)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward_kernel(
    logits_ptr,
    bias_ptr,
    weight_ptr,
    expert_ptr,
    lse_ptr,
    block_load_ptr,
    block_share_ptr,
    block_z_ptr,
    num_tokens,
    stride_ln,
    stride_le,
    num_experts,
    group_size,
    num_groups,
    topk_groups,
    top_k,
    scale: tl.float64,
    HAS_BIAS: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    SUMS_TWO: tl.constexpr,
    USES_SIGMOID: tl.constexpr,
    NORMALIZES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wide = lse_ptr.dtype.element_ty
    block = tl.program_id(0).to(tl.int64)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < num_tokens
    # Columns are padded group by group, so that a group is a row of a reshaped tile.
    places = tl.arange(0, BLOCK_G * BLOCK_M)
    group, member = places // BLOCK_M, places % BLOCK_M
    is_expert = (group < num_groups) & (member < group_size)
    experts = group * group_size + member
    mask = row_mask[:, None] & is_expert[None, :]
    offsets = rows[:, None] * stride_ln + experts[None, :].to(tl.int64) * stride_le
    logits = tl.load(logits_ptr + offsets, mask=mask, other=0.0).to(wide)
    logits = tl.where(is_expert[None, :], logits, float("-inf"))
    scores, shares, lse = _score(logits, USES_SIGMOID)
    key = scores
    if HAS_BIAS:
        key += tl.load(bias_ptr + experts, mask=is_expert, other=0.0).to(wide)[None, :]
    key = tl.where(key == key, key, float("inf"))
    is_open = tl.broadcast_to(is_expert[None, :], (BLOCK_N, BLOCK_G * BLOCK_M))
    if HAS_GROUPS:
        members = tl.arange(0, BLOCK_M)[None, None, :]
        keys_NGM = tl.reshape(tl.where(is_open, key, float("-inf")), (BLOCK_N, BLOCK_G, BLOCK_M))
        best = tl.max(keys_NGM, axis=2)
        if SUMS_TWO:
            first = tl.min(tl.where(keys_NGM == best[:, :, None], members, BLOCK_M), axis=2)
            best += tl.max(tl.where(members == first[:, :, None], float("-inf"), keys_NGM), axis=2)
        best = tl.where(best == best, best, float("inf"))
        groups = tl.broadcast_to(tl.arange(0, BLOCK_G)[None, :], (BLOCK_N, BLOCK_G))
        is_left = groups < num_groups
        for _ in range(topk_groups):
            group_index = _first_largest(best, groups, is_left)
            is_left &= groups != group_index[:, None]
        is_chosen = (groups < num_groups) & (is_left == 0)
        spread = tl.broadcast_to(is_chosen[:, :, None].to(tl.int32), (BLOCK_N, BLOCK_G, BLOCK_M))
        is_open &= tl.reshape(spread, (BLOCK_N, BLOCK_G * BLOCK_M)) != 0
    columns = tl.broadcast_to(experts[None, :], (BLOCK_N, BLOCK_G * BLOCK_M))
    slots = tl.arange(0, BLOCK_K)[None, :]
    picked = tl.zeros((BLOCK_N, BLOCK_K), wide)
    chosen = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    counts = tl.zeros((BLOCK_N, BLOCK_G * BLOCK_M), tl.int32)
    for k in range(top_k):
        index = _first_largest(key, columns, is_open)
        is_index = (columns == index[:, None]) & is_expert[None, :]
        is_open &= is_index == 0
        counts += is_index.to(tl.int32)
        picked = tl.where(slots == k, tl.sum(tl.where(is_index, scores, 0.0), axis=1)[:, None], picked)
        chosen = tl.where(slots == k, index[:, None], chosen)
    weight = picked
    if NORMALIZES:
        weight = picked / (tl.sum(picked, axis=1)[:, None] + 1e-20)
    slot_offsets = rows[:, None] * top_k + slots
    slot_mask = row_mask[:, None] & (slots < top_k)
    tl.store(weight_ptr + slot_offsets, weight * tl.full((1, 1), scale, wide), mask=slot_mask)
    tl.store(expert_ptr + slot_offsets, chosen.to(tl.int64), mask=slot_mask)
    tl.store(lse_ptr + rows, tl.sum(lse, axis=1), mask=row_mask)
    if USES_SIGMOID:
        known = tl.where(is_expert[None, :], scores, 0.0)
        shares = known / (tl.sum(known, axis=1)[:, None] + 1e-20)
    block_offsets = block * num_experts + experts
    counts = tl.where(row_mask[:, None], counts, 0)
    tl.store(block_load_ptr + block_offsets, tl.sum(counts, axis=0), mask=is_expert)
    shares = tl.where(row_mask[:, None], shares, 0.0)
    tl.store(block_share_ptr + block_offsets, tl.sum(shares, axis=0), mask=is_expert)
    squares = tl.where(row_mask[:, None], lse * lse, 0.0)
    tl.store(block_z_ptr + block, tl.sum(tl.sum(squares, axis=1), axis=0))


@triton.jit(do_not_specialize=["num_blocks"])
def _start_kernel(
    block_load_ptr,
    block_share_ptr,
    load_ptr,
    share_ptr,
    num_blocks,
    num_experts,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Put the loads of all earlier blocks in place of a block's; sum loads and shares over the blocks."""
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    is_expert = experts < num_experts
    before = tl.zeros((BLOCK_E,), tl.int32)
    share = tl.zeros((BLOCK_B, BLOCK_E), share_ptr.dtype.element_ty)
    for first in range(0, num_blocks, BLOCK_B):
        blocks = first + tl.arange(0, BLOCK_B)
        mask = (blocks < num_blocks)[:, None] & is_expert[None, :]
        offsets = blocks[:, None].to(tl.int64) * num_experts + experts[None, :]
        loads = tl.load(block_load_ptr + offsets, mask=mask, other=0)
        share += tl.load(block_share_ptr + offsets, mask=mask, other=0.0)
        tl.store(block_load_ptr + offsets, tl.cumsum(loads, axis=0) - loads + before[None, :], mask=mask)
        before += tl.sum(loads, axis=0)
    tl.store(load_ptr + experts, before, mask=is_expert)
    tl.store(share_ptr + experts, tl.sum(share, axis=0), mask=is_expert)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks"])
def _order_kernel(
    expert_ptr,
    block_start_ptr,
    load_ptr,
    share_ptr,
    block_z_ptr,
    order_ptr,
    offsets_ptr,
    aux_ptr,
    z_ptr,
    num_tokens,
    num_blocks,
    size: tl.float64,
    num_experts,
    top_k,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Write the choices of a block of tokens to their places: after those of earlier blocks and tokens."""
    wide = block_z_ptr.dtype.element_ty
    block = tl.program_id(0).to(tl.int64)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < num_tokens
    experts = tl.arange(0, BLOCK_E)
    is_expert = experts < num_experts
    loads = tl.load(load_ptr + experts, mask=is_expert, other=0)
    ends = tl.cumsum(loads, axis=0)
    if block == 0:
        # One program finishes what is there once.
        tl.store(offsets_ptr, 0)
        tl.store(offsets_ptr + 1 + experts, ends, mask=is_expert)
        tokens = tl.full((1,), size, wide)
        shares = tl.load(share_ptr + experts, mask=is_expert, other=0.0)
        aux = tl.sum(loads.to(wide) * shares, axis=0) * num_experts / tokens / tokens
        tl.store(aux_ptr + tl.arange(0, 1), aux)
        squares = tl.zeros((BLOCK_B,), wide)
        for first in range(0, num_blocks, BLOCK_B):
            blocks = first + tl.arange(0, BLOCK_B)
            squares += tl.load(block_z_ptr + blocks, mask=blocks < num_blocks, other=0.0)
        tl.store(z_ptr + tl.arange(0, 1), tl.sum(squares, axis=0) / tokens)
    counts = tl.zeros((BLOCK_N, BLOCK_E), tl.int32)
    for k in range(top_k):
        chosen = tl.load(expert_ptr + rows * top_k + k, mask=row_mask, other=-1)
        counts += (chosen[:, None] == experts[None, :]).to(tl.int32)
    start = tl.load(block_start_ptr + block * num_experts + experts, mask=is_expert, other=0)
    places = tl.cumsum(counts, axis=0) - counts + (start + ends - loads)[None, :]
    for k in range(top_k):
        choices = rows * top_k + k
        chosen = tl.load(expert_ptr + choices, mask=row_mask, other=-1)
        place = tl.sum(tl.where(chosen[:, None] == experts[None, :], places, 0), axis=1)
        tl.store(order_ptr + place, choices.to(tl.int32), mask=row_mask)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_kernel(
    grad_weight_ptr,
    grad_aux_ptr,
    grad_z_ptr,
    logits_ptr,
    expert_ptr,
    load_ptr,
    lse_ptr,
    grad_ptr,
    num_tokens,
    stride_gn,
    stride_gk,
    stride_ln,
    stride_le,
    num_experts,
    top_k,
    scale: tl.float64,
    HAS_WEIGHT: tl.constexpr,
    HAS_AUX: tl.constexpr,
    HAS_Z: tl.constexpr,
    USES_SIGMOID: tl.constexpr,
    NORMALIZES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    wide = lse_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    experts = tl.arange(0, BLOCK_E)
    row_mask, is_expert = rows < num_tokens, experts < num_experts
    mask = row_mask[:, None] & is_expert[None, :]
    offsets = rows[:, None] * stride_ln + experts[None, :].to(tl.int64) * stride_le
    logits = tl.load(logits_ptr + offsets, mask=mask, other=0.0).to(wide)
    logits = tl.where(is_expert[None, :], logits, float("-inf"))
    scores, shares, _ = _score(logits, USES_SIGMOID)
    scores = tl.where(is_expert[None, :], scores, 0.0)
    lse = tl.load(lse_ptr + rows, mask=row_mask, other=0.0)[:, None]
    grad = tl.zeros((BLOCK_N, BLOCK_E), wide)
    if HAS_AUX:
        load = tl.load(load_ptr + experts, mask=is_expert, other=0).to(wide)
        factor = tl.load(grad_aux_ptr).to(wide) * num_experts / num_tokens / num_tokens
        grad += (load * factor)[None, :]
        if USES_SIGMOID:
            total = tl.sum(scores, axis=1)[:, None] + 1e-20
            grad = (grad - tl.sum(grad * scores, axis=1)[:, None] / total) / total
    if HAS_WEIGHT:
        total = tl.zeros((BLOCK_N, 1), wide)
        product = tl.zeros((BLOCK_N, 1), wide)
        grad_picked = tl.zeros((BLOCK_N, BLOCK_E), wide)
        is_picked = tl.zeros((BLOCK_N, BLOCK_E), tl.int32)
        for k in range(top_k):
            chosen = tl.load(expert_ptr + rows * top_k + k, mask=row_mask, other=-1)
            upstream = tl.load(grad_weight_ptr + rows * stride_gn + k * stride_gk, mask=row_mask, other=0.0)
            is_chosen = chosen[:, None] == experts[None, :]
            is_picked += is_chosen.to(tl.int32)
            grad_picked += tl.where(is_chosen, upstream.to(wide)[:, None], 0.0)
        if NORMALIZES:
            picked = tl.where(is_picked != 0, scores, 0.0)
            total = tl.sum(picked, axis=1)[:, None] + 1e-20
            product = tl.sum(grad_picked * picked, axis=1)[:, None] / total
            grad_picked = tl.where(is_picked != 0, (grad_picked - product) / total, 0.0)
        grad += grad_picked * tl.full((1, 1), scale, wide)
    if USES_SIGMOID:
        grad = grad * scores * (1.0 - scores)
    else:
        grad = scores * (grad - tl.sum(grad * scores, axis=1)[:, None])
    if HAS_Z:
        grad += shares * lse * (2.0 * tl.load(grad_z_ptr).to(wide) / num_tokens)
    grad_offsets = rows[:, None] * num_experts + experts[None, :]
    tl.store(grad_ptr + grad_offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)


def _block_tokens(num_columns: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Return how many tokens a program takes, and its warps."""
    elements, elements_a_warp = tile
    block_n = max(1, min(64, elements // num_columns))
    return block_n, min(16, max(2, block_n * num_columns // elements_a_warp))


class _ForwardStarts(NamedTuple):
    """The three starts of a forward pass, and how many tokens a program looks at."""

    choose: Start
    add: Start
    sort: Start
    block_n: int


@remembered
def _forward_starts(
    num_experts: int,
    strides: tuple[int, int],
    dtypes: tuple[torch.dtype, torch.dtype | None],
    top_k: int,
    score: str,
    group_score: str,
    groups: tuple[int, int],
    normalize: bool,
    scale: float,
) -> _ForwardStarts:
    """Return the starts for logits with these strides; dtypes are of logits and bias."""
    num_groups, topk_groups = groups
    group_size = num_experts // num_groups
    block_m, block_g = next_power_of_2(group_size), next_power_of_2(num_groups)
    block_n, num_warps = _block_tokens(block_g * block_m, _FORWARD_TILE)
    choose = Start(
        _forward_kernel,
        Grid(),
        (*strides, num_experts, group_size, num_groups, topk_groups, top_k, scale),
        (
            dtypes[1] is not None,
            topk_groups < num_groups,
            group_score == "top2" and group_size > 1,
            score == "sigmoid",
            normalize,
            block_n,
            block_g,
            block_m,
            next_power_of_2(top_k),
        ),
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )
    add = Start(_start_kernel, Grid(columns=cdiv(num_experts, 16)), (num_experts,), (256, 16), num_warps=8)
    sort = Start(
        _order_kernel,
        Grid(),
        (num_experts, top_k),
        (block_n, next_power_of_2(num_experts), 1024),
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )
    return _ForwardStarts(choose, add, sort, block_n)


def forward(
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
    """Return weight and expert (N, K), order (N K,), offsets (E + 1,), load (E,), losses, lse (N,)."""
    num_tokens, num_experts = logits.shape
    if num_experts > _MAX_EXPERTS:
        raise ValueError(f"moe_route: the kernel takes up to {_MAX_EXPERTS} experts, got {num_experts}")
    wide, device = wide_dtype(logits), logits.device
    starts = _forward_starts(
        num_experts,
        logits.stride(),
        (logits.dtype, None if bias is None else bias.dtype),
        top_k,
        score,
        group_score,
        (num_groups, topk_groups),
        normalize,
        scale,
    )
    num_blocks = max(1, cdiv(num_tokens, starts.block_n))
    weight = torch.empty((num_tokens, top_k), dtype=wide, device=device)
    expert = torch.empty((num_tokens, top_k), dtype=torch.int64, device=device)
    order = torch.empty(num_tokens * top_k, dtype=torch.int32, device=device)
    lse = torch.empty(num_tokens, dtype=wide, device=device)
    block_load = torch.empty((num_blocks, num_experts), dtype=torch.int32, device=device)
    block_share = torch.empty((num_blocks, num_experts), dtype=wide, device=device)
    block_z = torch.empty(num_blocks, dtype=wide, device=device)
    given_bias = logits if bias is None else bias.contiguous()
    tensors = logits, given_bias, weight, expert, lse, block_load, block_share, block_z
    starts.choose(num_blocks, tensors, num_tokens)
    load = torch.empty(num_experts, dtype=torch.int32, device=device)
    share = torch.empty(num_experts, dtype=wide, device=device)
    starts.add(1, (block_load, block_share, load, share), num_blocks)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    aux_loss, z_loss = (torch.empty((), dtype=wide, device=device) for _ in range(2))
    tensors = expert, block_load, load, share, block_z, order, offsets, aux_loss, z_loss
    starts.sort(num_blocks, tensors, num_tokens, num_blocks, float(max(1, num_tokens)))
    return weight, expert, order, offsets, load, aux_loss, z_loss, lse


@remembered
def _backward_start(
    num_experts: int,
    top_k: int,
    strides: tuple[int, int],
    weight_strides: tuple[int, int] | None,
    dtypes: tuple[torch.dtype | None, ...],
    score: str,
    normalize: bool,
    scale: float,
) -> Start:
    """Return the start for the tensors of `backward`; dtypes are of gradients, logits, expert, load."""
    block_e = next_power_of_2(num_experts)
    block_n, num_warps = _block_tokens(block_e, _BACKWARD_TILE)
    return Start(
        _backward_kernel,
        Grid(block_n),
        (*(weight_strides or (0, 0)), *strides, num_experts, top_k, scale),
        (*[dtype is not None for dtype in dtypes[:3]], score == "sigmoid", normalize, block_n, block_e),
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )


def backward(
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
    """Return the gradient of the logits (N, E)."""
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel():
        upstream = grad_weight, grad_aux, grad_z
        start = _backward_start(
            logits.shape[1],
            expert.shape[1],
            logits.stride(),
            None if grad_weight is None else grad_weight.stride(),
            (*[None if g is None else g.dtype for g in upstream], logits.dtype, expert.dtype, load.dtype),
            score,
            normalize,
            scale,
        )
        given = [lse if g is None else g for g in upstream]
        start(logits.shape[0], (*given, logits, expert, load, lse, grad), logits.shape[0])
    return grad
