"""Experts of a mixture: grouped products that gather their rows, with the activation in their epilogues.

For row r = (token t, slot k) of expert e, rows sorted by expert, weights W_e (2 I, H) and V_e (H, I):

    (g, u) = W_e x_t,   a = silu(g) u,   o = V_e a,   y_t = sum_k w_tk o_tk
    v = V_e^T dy_t,   dw_tk = a . v,   da = w_tk v,   dg = da u silu'(g),   du = da silu(g)
    dx_t = sum_k W_e^T (dg, du),   dW_e = sum_r (dg, du) x_t^T,   dV_e = sum_r dy_t (w_tk a)^T

Gale et al., "MegaBlocks", 2022; Guo et al., "SonicMoE", 2025 (dw by v, so that o is not kept). Shapes: N
tokens, E experts, K top-k, R = N K rows, H model dimension, I hidden dimension.
The products and the table of their tiles are in `_grouped.py`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._grouped import (
    SortedRows,
    Tiles,
    combine,
    describes,
    descriptor,
    grouped_tile,
    load_rows,
    multiply,
    multiply_rows,
    outer_products,
    tile_rows,
    weight_tile,
)
from pylm.kernels._launch import Start, cdiv, remembered, rows_of, wide_dtype
from pylm.kernels._math import sigmoid


@triton.jit(do_not_specialize=["bound"])
def _gate_up_kernel(
    x_ptr,
    weight,
    token_ptr,
    offsets_ptr,
    table_ptr,
    gate_up_ptr,
    hidden_ptr,
    bound,
    stride_xn,
    stride_xd,
    stride_we,
    stride_wf,
    stride_wd,
    dim,
    hidden_dim,
    KEEPS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    DESCRIBES: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    num_row_tiles, num_column_tiles = tl.load(table_ptr), tl.cdiv(hidden_dim, BLOCK_N)
    num_tiles = num_row_tiles * num_column_tiles
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        row_tile, column_tile = grouped_tile(tile, num_row_tiles, num_column_tiles, GROUP)
        expert, first_row, rows, row_mask = tile_rows(table_ptr, offsets_ptr, row_tile, bound, BLOCK_M)
        tokens = tl.load(token_ptr + rows, mask=row_mask, other=0)
        column = column_tile * BLOCK_N
        ptrs = x_ptr + tokens[:, None].to(tl.int64) * stride_xn + tl.arange(0, BLOCK_K)[None, :] * stride_xd
        gate = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
        up = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
        for k in range(0, dim, BLOCK_K):
            x = load_rows(ptrs, k, dim, EVEN_K, BLOCK_K)
            ptrs += BLOCK_K * stride_xd
            gate_weight = weight_tile(
                weight, expert, column, k, hidden_dim, dim, stride_we, stride_wf, stride_wd, DESCRIBES, True,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
            up_weight = weight_tile(
                weight, expert, hidden_dim + column, k, 2 * hidden_dim, dim, stride_we, stride_wf, stride_wd,
                DESCRIBES, True, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            gate = tl.dot(x, gate_weight, gate, input_precision="ieee", out_dtype=WIDE)
            up = tl.dot(x, up_weight, up, input_precision="ieee", out_dtype=WIDE)
        columns = column + tl.arange(0, BLOCK_N)
        mask = row_mask[:, None] & (columns < hidden_dim)[None, :]
        # Offsets in the tile have 32 bits: those of 64 would not leave enough registers.
        offsets = tl.arange(0, BLOCK_M)[:, None] * hidden_dim + columns[None, :]
        start = first_row.to(tl.int64) * hidden_dim
        if KEEPS:
            kept_ptr = gate_up_ptr + 2 * start
            kept_offsets = offsets + tl.arange(0, BLOCK_M)[:, None] * hidden_dim
            tl.store(kept_ptr + kept_offsets, gate.to(gate_up_ptr.dtype.element_ty), mask=mask)
            tl.store(kept_ptr + hidden_dim + kept_offsets, up.to(gate_up_ptr.dtype.element_ty), mask=mask)
        if ACTIVATES:
            hidden = gate * sigmoid(gate) * up
            tl.store(hidden_ptr + start + offsets, hidden.to(hidden_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activate_back(
    back, gate_up_ptr, weighted_ptr, grad_gate_up_ptr, share, row_mask, column, hidden_dim,
    NEEDS_DOWN: tl.constexpr, NEEDS_GATE_UP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write from v (BLOCK_M, BLOCK_N) what the other gradients are made of; return its part of dw."""
    # Offsets in the tile have 32 bits: those of 64 would not leave enough registers.
    columns = column + tl.arange(0, BLOCK_N)
    mask = row_mask[:, None] & (columns < hidden_dim)[None, :]
    offsets = tl.arange(0, BLOCK_M)[:, None] * hidden_dim + columns[None, :]
    kept_offsets = offsets + tl.arange(0, BLOCK_M)[:, None] * hidden_dim
    gate = tl.load(gate_up_ptr + kept_offsets, mask=mask, other=0.0).to(back.dtype)
    up = tl.load(gate_up_ptr + hidden_dim + kept_offsets, mask=mask, other=0.0).to(back.dtype)
    share_of_gate = sigmoid(gate)
    silu = gate * share_of_gate
    part = tl.sum(tl.where(mask, back * silu * up, 0.0), axis=1)
    if NEEDS_DOWN:
        weighted = silu * up * share[:, None]
        tl.store(weighted_ptr + offsets, weighted.to(weighted_ptr.dtype.element_ty), mask=mask)
    if NEEDS_GATE_UP:
        back *= share[:, None]
        element = grad_gate_up_ptr.dtype.element_ty
        grad_gate = back * up * (share_of_gate + silu * (1.0 - share_of_gate))
        tl.store(grad_gate_up_ptr + kept_offsets, grad_gate.to(element), mask=mask)
        tl.store(grad_gate_up_ptr + hidden_dim + kept_offsets, (back * silu).to(element), mask=mask)
    return part


@triton.jit
def _halves(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["num_rows", "bound"])
def _grad_hidden_kernel(
    grad_ptr,
    weight,
    gate_up_ptr,
    share_ptr,
    order_ptr,
    token_ptr,
    offsets_ptr,
    table_ptr,
    weighted_ptr,
    grad_gate_up_ptr,
    partial_ptr,
    num_rows,
    bound,
    stride_gn,
    stride_gd,
    stride_we,
    stride_wd,
    stride_wf,
    dim,
    hidden_dim,
    NEEDS_SHARE: tl.constexpr,
    NEEDS_DOWN: tl.constexpr,
    NEEDS_GATE_UP: tl.constexpr,
    DESCRIBES: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    num_row_tiles, num_column_tiles = tl.load(table_ptr), tl.cdiv(hidden_dim, BLOCK_N)
    num_tiles = num_row_tiles * num_column_tiles
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        row_tile, column_tile = grouped_tile(tile, num_row_tiles, num_column_tiles, GROUP)
        expert, first_row, rows, row_mask = tile_rows(table_ptr, offsets_ptr, row_tile, bound, BLOCK_M)
        tokens = tl.load(token_ptr + rows, mask=row_mask, other=0)
        column = column_tile * BLOCK_N
        back = multiply(
            grad_ptr, tokens, first_row, weight, expert, column, hidden_dim, dim, stride_gn, stride_gd,
            stride_we, stride_wf, stride_wd, False, DESCRIBES, False, EVEN_K, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        choices = tl.load(order_ptr + rows, mask=row_mask, other=0)
        share = tl.load(share_ptr + choices, mask=row_mask, other=0.0).to(WIDE)
        start = first_row.to(tl.int64) * hidden_dim
        kept_ptr, grad_kept_ptr = gate_up_ptr + 2 * start, grad_gate_up_ptr + 2 * start
        # In halves, as registers are few.
        left, right = _halves(back, BLOCK_M, BLOCK_N)
        part = _activate_back(
            left, kept_ptr, weighted_ptr + start, grad_kept_ptr, share, row_mask,
            column, hidden_dim, NEEDS_DOWN, NEEDS_GATE_UP, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        part += _activate_back(
            right, kept_ptr, weighted_ptr + start, grad_kept_ptr, share, row_mask,
            column + BLOCK_N // 2, hidden_dim, NEEDS_DOWN, NEEDS_GATE_UP, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip
        if NEEDS_SHARE:
            tl.store(partial_ptr + column_tile.to(tl.int64) * num_rows + choices, part, mask=row_mask)


@remembered
def _gate_up_start(
    tiles: Tiles,
    wide: tl.dtype,
    sizes: tuple[int, int],
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    flags: tuple[bool, bool, bool],
    num_processors: int,
) -> Start:
    """Return the start for x, weight, tokens, offsets, table, gate and up, and hidden rows.

    Sizes are H and I; strides are those of x and weight; flags tell what is written, and whether the weight
    is described.
    """
    dim, hidden_dim = sizes
    same = wide, sizes, strides, dtypes, flags, num_processors
    return Start(
        _gate_up_kernel,
        tiles.grid(cdiv(hidden_dim, tiles.block_n), num_processors),
        (*strides, *sizes),
        (*flags, dim % tiles.block_k == 0, *tiles.constants(wide)),
        others=tiles.others(lambda other: _gate_up_start(other, *same)),
        **tiles.options(),
    )


def _gate_up(
    x: Tensor, weight: Tensor, rows: SortedRows, *, keeps: bool, activates: bool
) -> tuple[Tensor, Tensor]:
    """Return gate and up (R, 2 I), and silu(gate) * up (R, I), each empty where it is not asked for."""
    hidden_dim, dim = weight.shape[1] // 2, weight.shape[2]
    tiles = rows.tiles("gate_up")
    block_m, block_n, block_k = tiles[:3]
    kept = torch.empty((rows.num_rows if keeps else 0, 2 * hidden_dim), dtype=x.dtype, device=x.device)
    hidden = torch.empty((rows.num_rows if activates else 0, hidden_dim), dtype=x.dtype, device=x.device)
    is_described = describes(weight)
    start = _gate_up_start(
        tiles,
        rows.wide,
        (dim, hidden_dim),
        (*x.stride(), *weight.stride()),
        (x.dtype, weight.dtype, rows.offsets.dtype, rows.token.dtype),
        (keeps, activates, is_described),
        rows.num_processors,
    )
    described = descriptor(weight, [1, block_n, block_k]) if is_described else weight
    bound = rows.bound(block_m)
    start(bound, (x, described, rows.token, rows.offsets, rows.table(block_m), kept, hidden), bound)
    return kept, hidden


@remembered
def _grad_hidden_start(
    tiles: Tiles,
    wide: tl.dtype,
    sizes: tuple[int, int],
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    flags: tuple[bool, bool, bool, bool],
    num_processors: int,
) -> Start:
    """Return the start for the tensors of `_grad_hidden`; sizes are H and I.

    Strides are those of the gradient and weight; flags tell what is needed, and whether the weight is
    described.
    """
    dim, hidden_dim = sizes
    same = wide, sizes, strides, dtypes, flags, num_processors
    return Start(
        _grad_hidden_kernel,
        tiles.grid(cdiv(hidden_dim, tiles.block_n), num_processors),
        (*strides, *sizes),
        (*flags, dim % tiles.block_k == 0, *tiles.constants(wide)),
        others=tiles.others(lambda other: _grad_hidden_start(other, *same)),
        **tiles.options(),
    )


def _grad_hidden(
    grad: Tensor,
    down_weight: Tensor,
    gate_up: Tensor,
    share: Tensor,
    rows: SortedRows,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dw in parts (parts, R), the weighted hidden rows (R, I), the gradient of gate_up (R, 2 I)."""
    needs_share, needs_down, needs_gate_up = needs
    _, dim, hidden_dim = down_weight.shape
    device, num_rows = grad.device, rows.num_rows
    weighted = torch.empty((num_rows if needs_down else 0, hidden_dim), dtype=grad.dtype, device=device)
    grad_gate_up = torch.empty_like(gate_up) if needs_gate_up else gate_up.new_empty((0, 0))
    tiles = rows.tiles("grad_hidden")
    block_m, block_n, block_k = tiles[:3]
    num_parts = cdiv(hidden_dim, block_n) if needs_share else 0
    partial = torch.empty((num_parts, num_rows), dtype=wide_dtype(grad), device=device)
    is_described = describes(down_weight)
    start = _grad_hidden_start(
        tiles,
        rows.wide,
        (dim, hidden_dim),
        (*grad.stride(), *down_weight.stride()),
        (grad.dtype, down_weight.dtype, gate_up.dtype, share.dtype, rows.offsets.dtype, rows.order.dtype),
        (*needs, is_described),
        rows.num_processors,
    )
    tensors = (
        grad,
        descriptor(down_weight, [1, block_k, block_n]) if is_described else down_weight,
        gate_up,
        share,
        rows.order,
        rows.token,
        rows.offsets,
        rows.table(block_m),
        weighted,
        grad_gate_up,
        partial,
    )
    bound = rows.bound(block_m)
    start(bound, tensors, num_rows, bound)
    return partial, weighted, grad_gate_up


def forward(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    offsets: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (N, H), and gate and up (R, 2 I), empty where they are not kept."""
    kept = torch.empty((0, 0), dtype=x.dtype, device=x.device)
    if order.numel() == 0 or x.numel() == 0 or down_weight.numel() == 0:
        kept = kept.new_empty((order.numel(), gate_up_weight.shape[1])) if keep else kept
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device), kept
    x = rows_of(x)
    rows = SortedRows(order, offsets, weight.shape[1], x, gate_up_weight, down_weight)
    gate_up, hidden = _gate_up(x, gate_up_weight, rows, keeps=keep, activates=True)
    out_rows = multiply_rows("down", hidden, down_weight.transpose(1, 2), rows)
    y = combine(out_rows, weight.contiguous(), rows)
    return y, gate_up if keep else kept


def backward(
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
    """Return the gradients of x (N, H), weight (N, K), W (E, 2 I, H), V (E, H, I), empty if not needed."""
    needs_x, needs_share, needs_gate_up, needs_down = needs
    inputs = x, weight, gate_up_weight, down_weight
    if order.numel() == 0 or x.numel() == 0 or down_weight.numel() == 0:
        grad_x, grad_share, grad_gate_up_weight, grad_down_weight = (
            torch.zeros(tensor.shape if need else empty, dtype=tensor.dtype, device=x.device)
            for tensor, need, empty in zip(inputs, needs, ((0, 0), (0, 0), (0,), (0,)), strict=True)
        )
        return grad_x, grad_share, grad_gate_up_weight, grad_down_weight
    grad_x, grad_share = x.new_empty((0, 0)), weight.new_empty((0, 0))
    grad_gate_up_weight, grad_down_weight = gate_up_weight.new_empty(0), down_weight.new_empty(0)
    x, grad = rows_of(x), rows_of(grad)
    rows = SortedRows(order, offsets, weight.shape[1], x, gate_up_weight, down_weight)
    if not gate_up.numel():
        gate_up, _ = _gate_up(x, gate_up_weight, rows, keeps=True, activates=False)
    parts, weighted, grad_gate_up = _grad_hidden(
        grad,
        down_weight,
        gate_up,
        weight.contiguous(),
        rows,
        (needs_share, needs_down, needs_x or needs_gate_up),
    )
    if needs_share:
        grad_share = parts.sum(0).to(weight.dtype).view(weight.shape)
    if needs_down:
        grad_down_weight = outer_products(grad, weighted, rows, gathers_a=True)
    del weighted
    if needs_gate_up:
        grad_gate_up_weight = outer_products(grad_gate_up, x, rows, gathers_a=False)
    if needs_x:
        grad_x = combine(multiply_rows("grad_x", grad_gate_up, gate_up_weight, rows), None, rows)
    return grad_x, grad_share, grad_gate_up_weight, grad_down_weight
