"""Rotary position embedding of queries and keys in one launch.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)        for pairs (i, i + R / 2), interleaved (2 i, 2 i + 1)

Su et al., 2021. The inverse turns sin around; it is the gradient. Shapes: B batch, T time, H query heads, K
key heads, C features, R <= C rotated ones, P rows of the tables. A program takes all heads of one position.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import FUSED_MULTIPLY_ADD, Grid, Start, next_power_of_2, remembered

# No element depends on another but of its pair, so the result does not on these.
_NUM_WARPS, _OTHER_NUM_WARPS = 4, (1, 2, 8)


@triton.jit
def _rotate_heads(
    x_ptr,
    y_ptr,
    cos,
    sin,
    stride_xh,
    stride_xc,
    num_heads,
    num_features,
    half,
    INTERLEAVED: tl.constexpr,
    HAS_REST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rotate (num_heads, C) at x_ptr into the contiguous y_ptr."""
    heads = tl.arange(0, BLOCK_H)[:, None].to(tl.int64)
    wide = cos.dtype
    if INTERLEAVED:
        # Both of a pair are read together: every second feature alone would be read at a tenth of the speed.
        features = tl.arange(0, 2 * BLOCK_R)[None, :].to(tl.int64)
        mask = (heads < num_heads) & (features < 2 * half)
        x = tl.load(x_ptr + heads * stride_xh + features * stride_xc, mask=mask, other=0.0).to(wide)
        x1, x2 = tl.split(tl.reshape(x, (BLOCK_H, BLOCK_R, 2)))
        y = tl.reshape(tl.join(x1 * cos - x2 * sin, x2 * cos + x1 * sin), (BLOCK_H, 2 * BLOCK_R))
        tl.store(y_ptr + heads * num_features + features, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        first = tl.arange(0, BLOCK_R)[None, :].to(tl.int64)
        second = first + half
        mask = (heads < num_heads) & (first < half)
        x1 = tl.load(x_ptr + heads * stride_xh + first * stride_xc, mask=mask, other=0.0).to(wide)
        x2 = tl.load(x_ptr + heads * stride_xh + second * stride_xc, mask=mask, other=0.0).to(wide)
        y1 = x1 * cos - x2 * sin
        y2 = x2 * cos + x1 * sin
        tl.store(y_ptr + heads * num_features + first, y1.to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y_ptr + heads * num_features + second, y2.to(y_ptr.dtype.element_ty), mask=mask)
    if HAS_REST:
        rest = 2 * half + tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
        rest_mask = (heads < num_heads) & (rest < num_features)
        unchanged = tl.load(x_ptr + heads * stride_xh + rest * stride_xc, mask=rest_mask, other=0.0)
        tl.store(y_ptr + heads * num_features + rest, unchanged, mask=rest_mask)


@triton.jit(do_not_specialize=["time", "num_positions"])
def _rope_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    q_out_ptr,
    k_out_ptr,
    time,
    num_positions,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_qc,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_kc,
    stride_pb,
    stride_pt,
    num_q_heads,
    num_k_heads,
    num_features,
    half,
    HAS_POSITIONS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    HAS_REST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    b, t = row // time, row % time
    position = t
    if HAS_POSITIONS:
        position = tl.load(position_ptr + b * stride_pb + t * stride_pt).to(tl.int64)
    position += tl.zeros((1,), tl.int64)
    pairs = tl.arange(0, BLOCK_R)
    # A position outside the tables gives NaN: the host is not asked, and the mistake is not silent.
    offsets = position * half + pairs
    mask = (pairs < half) & (position >= 0) & (position < num_positions)
    cos = tl.load(cos_ptr + offsets, mask=mask, other=float("nan")).to(WIDE)[None, :]
    sin = tl.load(sin_ptr + offsets, mask=mask, other=float("nan")).to(WIDE)[None, :]
    if INVERSE:
        sin = -sin
    q_out_ptr += row * num_q_heads * num_features
    q_ptr += b * stride_qb + t * stride_qt
    _rotate_heads(
        q_ptr, q_out_ptr, cos, sin, stride_qh, stride_qc, num_q_heads, num_features, half,
        INTERLEAVED, HAS_REST, BLOCK_H, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    k_out_ptr += row * num_k_heads * num_features
    k_ptr += b * stride_kb + t * stride_kt
    _rotate_heads(
        k_ptr, k_out_ptr, cos, sin, stride_kh, stride_kc, num_k_heads, num_features, half,
        INTERLEAVED, HAS_REST, BLOCK_K, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@remembered
def _start(
    heads: tuple[int, int],
    num_features: int,
    half: int,
    strides: tuple[tuple[int, ...], ...],
    dtypes: tuple[torch.dtype | None, ...],
    interleaved: bool,
    inverse: bool,
    num_warps: int = _NUM_WARPS,
) -> Start:
    """Return the start for q (B, T, H, C), k, cos, sin, positions and both outputs.

    Strides are those of q, k and, where there are any, positions (B, T); dtypes are of the first five.
    """
    num_q_heads, num_k_heads = heads
    has_positions = dtypes[-1] is not None

    def others() -> dict[str, Start]:
        same = heads, num_features, half, strides, dtypes, interleaved, inverse
        return {f"{warps} warps": _start(*same, warps) for warps in _OTHER_NUM_WARPS}

    return Start(
        _rope_kernel,
        Grid(),
        (
            *strides[0],
            *strides[1],
            *(strides[2] if has_positions else (0, 0)),
            num_q_heads,
            num_k_heads,
            num_features,
            half,
        ),
        (
            has_positions,
            interleaved,
            inverse,
            2 * half < num_features,
            tl.float64 if dtypes[0] == torch.float64 else tl.float32,
            next_power_of_2(max(1, num_q_heads)),
            next_power_of_2(max(1, num_k_heads)),
            next_power_of_2(max(1, half)),
            next_power_of_2(max(1, num_features - 2 * half)),
        ),
        others=others if num_warps == _NUM_WARPS else None,
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides, that of a batch of one as 0: it is often one of the length, and never used."""
    return x.stride() if x.shape[0] > 1 else (0, *x.stride()[1:])


def _with_batch(x: Tensor) -> Tensor:
    """Return x (..., T, H, C) as (B, T, H, C)."""
    return x if x.dim() == 4 else x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return q (..., T, H, C) and k (..., T, K, C) rotated, contiguous."""
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    k_out = torch.empty_like(k, memory_format=torch.contiguous_format)
    q_BTHC, k_BTKC = _with_batch(q), _with_batch(k)
    batch, time, num_q_heads, num_features = q_BTHC.shape
    if not (batch and time and num_features):
        return q_out, k_out
    cos, sin = cos.contiguous(), sin.contiguous()
    positions_BT, strides = cos, (_strides(q_BTHC), _strides(k_BTKC))
    if position_ids is not None:
        positions_BT = position_ids.expand(q.shape[:-2]).reshape(batch, time)
        strides = (*strides, _strides(positions_BT))
    dtypes = q.dtype, k.dtype, cos.dtype, sin.dtype, None if position_ids is None else position_ids.dtype
    heads = num_q_heads, k_BTKC.shape[2]
    start = _start(heads, num_features, cos.shape[1], strides, dtypes, interleaved, inverse)
    start(batch * time, (q_BTHC, k_BTKC, cos, sin, positions_BT, q_out, k_out), time, cos.shape[0])
    return q_out, k_out
