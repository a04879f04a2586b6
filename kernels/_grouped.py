"""Products of sorted rows with the weight of their group: rows of tokens with the weights of their experts.

    rows (R, K), weights (E, K, N):  y_r = rows_r W_e(r)        rows (R, M) and (R, N):  G_e = sum_r a_r b_r^T

A table on the GPU gives every tile of rows its expert. Its length is bounded by R / BLOCK_M + E, so that
nobody waits for the loads. Tiles do not cross experts; what a tile computes behind its expert's last row is
not written. A token's rows are added in the order of its slots: no atomics, the same bits each time.
Gale et al., "MegaBlocks", 2022. Shapes: N tokens, E experts, K top-k, R = N K rows.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pylm.kernels._launch import (
    FUSED_MULTIPLY_ADD,
    Grid,
    Start,
    cdiv,
    has_tensor_memory_accelerator,
    next_power_of_2,
    num_multiprocessors,
    remembered,
)


class Tiles(NamedTuple):
    """How a product is cut, and how its kernel runs."""

    block_m: int
    block_n: int  # of gate_up there are two, gate and up
    block_k: int
    group: int  # tiles of rows share the weights in the second-level cache
    programs: int  # a multiprocessor, which walk over the tiles; 0 is one program a tile
    num_warps: int
    num_stages: int

    def grid(self, columns: int, num_processors: int) -> Grid:
        """Return the grid over tiles of rows times tiles of columns."""
        return Grid(columns=columns, most=self.programs * num_processors)

    def constants(self, wide: tl.dtype) -> tuple[Any, ...]:
        """Return the last constants of a product's kernel.

        FLATTEN lets the next tile's loads begin before the last one's results are written.
        """
        is_flat = self.programs > 0
        return wide, self.block_m, self.block_n, self.block_k, self.group, is_flat

    def options(self) -> dict[str, Any]:
        """Return Triton's options."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED_MULTIPLY_ADD}

    def others(self, start: Callable[["Tiles"], Start]) -> Callable[[], dict[str, Start]] | None:
        """Return other ways through the same tiles, for small ones none.

        Which tile comes when, on which program, and how far ahead is loaded: a tile adds up as it did.
        """
        if self not in TILES.values():
            return None
        ways = [self._replace(group=group) for group in (4, 8, 16) if group != self.group]
        ways += [self._replace(programs=1 - min(1, self.programs))]
        ways += [self._replace(num_stages=self.num_stages + more) for more in (-1, 1)]
        names = [f"group {t.group}, programs {t.programs}, stages {t.num_stages}" for t in ways]
        return lambda: {name: start(tiles) for name, tiles in zip(names, ways, strict=True)}


# Of products of 16-bit inputs.
TILES = {
    "gate_up": Tiles(128, 128, 64, 16, 0, 8, 4),
    "down": Tiles(128, 256, 64, 16, 1, 8, 3),
    "grad_hidden": Tiles(128, 128, 64, 4, 0, 8, 4),
    "grad_x": Tiles(128, 256, 64, 16, 1, 8, 3),
    "grad_weight": Tiles(128, 256, 64, 16, 0, 8, 5),
}
# Of wider inputs, and where rows are not aligned: many registers go into loads one by one.
SMALL_TILES = Tiles(64, 32, 32, 8, 0, 4, 2)
# Sizes in bytes of the elements that come through the tensor memory accelerator.
DESCRIBED_BYTES = {2}
# Columns and warps of a program that adds up the rows of a token; each column is a sum of its own.
_COMBINE_TILE, _OTHER_COMBINE_TILES = (1024, 4), ((512, 4), (1024, 8), (2048, 8))
_PLACE_ROWS = 1024


@triton.jit(do_not_specialize=["bound"])
def _table_kernel(
    offsets_ptr,
    table_ptr,
    bound,
    num_experts,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write the number of tiles, then the expert and the first row of each."""
    experts = tl.arange(0, BLOCK_E)
    mask = experts < num_experts
    first_rows = tl.load(offsets_ptr + experts, mask=mask, other=0)
    num_rows = tl.load(offsets_ptr + experts + 1, mask=mask, other=0) - first_rows
    num_tiles = tl.where(mask, (num_rows + BLOCK_M - 1) // BLOCK_M, 0)
    last_tiles = tl.cumsum(num_tiles, axis=0)
    tiles = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_own = (tiles[:, None] >= (last_tiles - num_tiles)[None, :]) & (tiles[:, None] < last_tiles[None, :])
    expert = tl.sum(tl.where(is_own, experts[None, :], 0), axis=1)
    row = first_rows[None, :] + (tiles[:, None] - (last_tiles - num_tiles)[None, :]) * BLOCK_M
    tl.store(table_ptr + 1 + tiles, expert, mask=tiles < bound)
    tl.store(table_ptr + 1 + bound + tiles, tl.sum(tl.where(is_own, row, 0), axis=1), mask=tiles < bound)
    tl.store(table_ptr, tl.sum(num_tiles, axis=0))


@triton.jit(do_not_specialize=["num_rows"])
def _place_kernel(order_ptr, token_ptr, place_ptr, num_rows, top_k, BLOCK_R: tl.constexpr):
    """Write the token of every row, and the row of every choice."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < num_rows
    choices = tl.load(order_ptr + rows, mask=mask, other=0)
    tl.store(token_ptr + rows, choices // top_k, mask=mask)
    tl.store(place_ptr + choices, rows.to(tl.int32), mask=mask)


@triton.jit
def grouped_tile(tile, num_row_tiles, num_column_tiles, GROUP: tl.constexpr):
    """Return the tile of rows and that of columns: GROUP tiles of rows take each tile of columns in turn."""
    width = GROUP * num_column_tiles
    first = tile // width * GROUP
    size = tl.minimum(num_row_tiles - first, GROUP)
    return first + tile % width % size, tile % width // size


@triton.jit
def tile_rows(table_ptr, offsets_ptr, row_tile, bound, BLOCK_M: tl.constexpr):
    """Return the expert of a tile, its first row, its rows (BLOCK_M,), and which of them are the expert's."""
    expert = tl.load(table_ptr + 1 + row_tile)
    first_row = tl.load(table_ptr + 1 + bound + row_tile)
    rows = first_row + tl.arange(0, BLOCK_M)
    return expert, first_row, rows, rows < tl.load(offsets_ptr + expert + 1)


@triton.jit
def weight_tile(
    weight, expert, column, k, num_columns, dim, stride_we, stride_wn, stride_wk,
    DESCRIBES: tl.constexpr, K_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the tile (BLOCK_K, BLOCK_N) of an expert's weight; zeros outside it."""
    if DESCRIBES:
        if K_LAST:
            tile = tl.trans(tl.reshape(weight.load([expert, column, k]), (BLOCK_N, BLOCK_K)))
        else:
            tile = tl.reshape(weight.load([expert, k, column]), (BLOCK_K, BLOCK_N))
    else:
        columns, inner = column + tl.arange(0, BLOCK_N), k + tl.arange(0, BLOCK_K)
        offsets = columns[None, :].to(tl.int64) * stride_wn + inner[:, None].to(tl.int64) * stride_wk
        mask = (inner < dim)[:, None] & (columns < num_columns)[None, :]
        tile = tl.load(weight + expert.to(tl.int64) * stride_we + offsets, mask=mask, other=0.0)
    return tile


@triton.jit
def load_rows(ptrs, k, dim, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr):
    if EVEN_K:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=(k + tl.arange(0, BLOCK_K) < dim)[None, :], other=0.0)
    return tile


@triton.jit
def multiply(
    a, a_rows, first_row, weight, expert, column, num_columns, dim, stride_ar, stride_ak, stride_we,
    stride_wn, stride_wk, DESCRIBES_A: tl.constexpr, DESCRIBES_W: tl.constexpr, K_LAST: tl.constexpr,
    EVEN_K: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the product (BLOCK_M, BLOCK_N) of rows of a with an expert's weight."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
    if not DESCRIBES_A:
        ptrs = a + a_rows[:, None].to(tl.int64) * stride_ar + tl.arange(0, BLOCK_K)[None, :] * stride_ak
    for k in range(0, dim, BLOCK_K):
        if DESCRIBES_A:
            tile = a.load([first_row, k])
        else:
            tile = load_rows(ptrs, k, dim, EVEN_K, BLOCK_K)
            ptrs += BLOCK_K * stride_ak
        weights = weight_tile(
            weight, expert, column, k, num_columns, dim, stride_we, stride_wn, stride_wk, DESCRIBES_W, K_LAST,
            BLOCK_N, BLOCK_K,
        )  # fmt: skip
        # "ieee" concerns float32 inputs only: no TensorFloat-32, as in torch by default.
        acc = tl.dot(tile, weights, acc, input_precision="ieee", out_dtype=WIDE)
    return acc


@triton.jit(do_not_specialize=["bound"])
def _rows_kernel(
    a,
    weight,
    offsets_ptr,
    table_ptr,
    out_ptr,
    bound,
    stride_ar,
    stride_ak,
    stride_we,
    stride_wn,
    stride_wk,
    dim,
    num_columns,
    DESCRIBES_A: tl.constexpr,
    DESCRIBES_W: tl.constexpr,
    K_LAST: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Multiply sorted rows (R, dim) by their experts' weights."""
    num_row_tiles, num_column_tiles = tl.load(table_ptr), tl.cdiv(num_columns, BLOCK_N)
    num_tiles = num_row_tiles * num_column_tiles
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        row_tile, column_tile = grouped_tile(tile, num_row_tiles, num_column_tiles, GROUP)
        expert, first_row, rows, row_mask = tile_rows(table_ptr, offsets_ptr, row_tile, bound, BLOCK_M)
        column = column_tile * BLOCK_N
        acc = multiply(
            a, tl.where(row_mask, rows, first_row), first_row, weight, expert, column, num_columns, dim,
            stride_ar, stride_ak, stride_we, stride_wn, stride_wk, DESCRIBES_A, DESCRIBES_W, K_LAST, EVEN_K,
            WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        columns = column + tl.arange(0, BLOCK_N)
        offsets = tl.arange(0, BLOCK_M)[:, None] * num_columns + columns[None, :]
        mask = row_mask[:, None] & (columns < num_columns)[None, :]
        start = first_row.to(tl.int64) * num_columns
        tl.store(out_ptr + start + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _outer_tile(
    a, token_ptr, row, last, column, num_columns, stride_ar, stride_ac, GATHERS: tl.constexpr,
    DESCRIBES: tl.constexpr, IS_LAST: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return rows (BLOCK_K, BLOCK_N) from `row` on; zeros behind the expert's last one."""
    rows = row + tl.arange(0, BLOCK_K)
    row_mask = rows < last
    columns = column + tl.arange(0, BLOCK_N)
    if DESCRIBES:
        tile = a.load([row, column])
        if IS_LAST:
            tile = tl.where(row_mask[:, None], tile, 0.0)
    else:
        if GATHERS:
            rows = tl.load(token_ptr + rows, mask=row_mask, other=0) if IS_LAST else tl.load(token_ptr + rows)
        ptrs = a + rows[:, None].to(tl.int64) * stride_ar + columns[None, :] * stride_ac
        if IS_LAST:
            tile = tl.load(ptrs, mask=row_mask[:, None] & (columns < num_columns)[None, :], other=0.0)
        elif EVEN:
            tile = tl.load(ptrs)
        else:
            tile = tl.load(ptrs, mask=(columns < num_columns)[None, :], other=0.0)
    return tile


@triton.jit
def _grad_weight_kernel(
    a,
    b,
    token_ptr,
    offsets_ptr,
    out_ptr,
    stride_ar,
    stride_am,
    stride_br,
    stride_bn,
    num_a,
    num_b,
    num_experts,
    GATHERS_A: tl.constexpr,
    DESCRIBES: tl.constexpr,
    EVEN_A: tl.constexpr,
    EVEN_B: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Write a_e^T b_e (num_a, num_b) for every expert, over its rows; zeros for one without rows.

    One of a and b is gathered by token; the other is sorted, and may come by a descriptor.
    """
    num_a_tiles, num_b_tiles = tl.cdiv(num_a, BLOCK_M), tl.cdiv(num_b, BLOCK_N)
    tiles_of_expert = num_a_tiles * num_b_tiles
    num_tiles = tiles_of_expert * num_experts
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN):
        expert = (tile // tiles_of_expert).to(tl.int64)
        a_tile, b_tile = grouped_tile(tile % tiles_of_expert, num_a_tiles, num_b_tiles, GROUP)
        a_column, b_column = a_tile * BLOCK_M, b_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
        first, last = tl.load(offsets_ptr + expert), tl.load(offsets_ptr + expert + 1)
        full = first + (last - first) // BLOCK_K * BLOCK_K
        for row in range(first, full, BLOCK_K):
            a_rows = _outer_tile(
                a, token_ptr, row, last, a_column, num_a, stride_ar, stride_am, GATHERS_A,
                DESCRIBES and not GATHERS_A, False, EVEN_A, BLOCK_K, BLOCK_M,
            )  # fmt: skip
            b_rows = _outer_tile(
                b, token_ptr, row, last, b_column, num_b, stride_br, stride_bn, not GATHERS_A,
                DESCRIBES and GATHERS_A, False, EVEN_B, BLOCK_K, BLOCK_N,
            )  # fmt: skip
            acc = tl.dot(tl.trans(a_rows), b_rows, acc, input_precision="ieee", out_dtype=WIDE)
        if full < last:
            a_rows = _outer_tile(
                a, token_ptr, full, last, a_column, num_a, stride_ar, stride_am, GATHERS_A,
                DESCRIBES and not GATHERS_A, True, EVEN_A, BLOCK_K, BLOCK_M,
            )  # fmt: skip
            b_rows = _outer_tile(
                b, token_ptr, full, last, b_column, num_b, stride_br, stride_bn, not GATHERS_A,
                DESCRIBES and GATHERS_A, True, EVEN_B, BLOCK_K, BLOCK_N,
            )  # fmt: skip
            acc = tl.dot(tl.trans(a_rows), b_rows, acc, input_precision="ieee", out_dtype=WIDE)
        a_columns, b_columns = a_column + tl.arange(0, BLOCK_M), b_column + tl.arange(0, BLOCK_N)
        offsets = tl.arange(0, BLOCK_M)[:, None] * num_b + b_columns[None, :]
        mask = (a_columns < num_a)[:, None] & (b_columns < num_b)[None, :]
        start = (expert * num_a + a_column) * num_b
        tl.store(out_ptr + start + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _combine_kernel(
    rows_ptr,
    share_ptr,
    place_ptr,
    out_ptr,
    dim,
    HAS_SHARES: tl.constexpr,
    TOP_K: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add up the rows of a token, times their shares where there are some."""
    num_column_tiles = tl.cdiv(dim, BLOCK_D)
    token = (tl.program_id(0) // num_column_tiles).to(tl.int64)
    columns = tl.program_id(0) % num_column_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = columns < dim
    acc = tl.zeros((BLOCK_D,), WIDE)
    for k in tl.static_range(TOP_K):
        row = tl.load(place_ptr + token * TOP_K + k).to(tl.int64)
        value = tl.load(rows_ptr + row * dim + columns, mask=mask, other=0.0).to(WIDE)
        if HAS_SHARES:
            value *= tl.load(share_ptr + token * TOP_K + k).to(WIDE)
        acc += value
    tl.store(out_ptr + token * dim + columns, acc.to(out_ptr.dtype.element_ty), mask=mask)


@remembered
def _place_start(top_k: int, dtype: torch.dtype) -> Start:
    return Start(_place_kernel, Grid(_PLACE_ROWS), (top_k,), (_PLACE_ROWS,))


@remembered
def _table_start(num_experts: int, block_m: int, dtype: torch.dtype) -> Start:
    block_e = next_power_of_2(num_experts)
    block_t = max(1, min(64, 8192 // block_e))
    return Start(_table_kernel, Grid(block_t), (num_experts,), (block_m, block_e, block_t))


class SortedRows:
    """The rows of all experts, and what the launches of a pass share: tokens, places, tables of tiles."""

    def __init__(self, order: Tensor, offsets: Tensor, top_k: int, x: Tensor, *weights: Tensor) -> None:
        self.order, self.offsets = order.contiguous(), offsets.contiguous()
        self.num_rows, self.top_k, self.num_experts = order.numel(), top_k, offsets.numel() - 1
        self.token, self.place = torch.empty_like(self.order), torch.empty_like(self.order)
        self.wide = tl.float64 if x.dtype == torch.float64 else tl.float32
        self.uses_small_tiles = x.element_size() > 2 or not all(_is_aligned(t) for t in (x, *weights))
        self.num_processors = num_multiprocessors(x)
        self._tables: dict[int, Tensor] = {}
        _place_start(top_k, order.dtype)(self.num_rows, (self.order, self.token, self.place), self.num_rows)

    def tiles(self, product: str) -> Tiles:
        """Return the tiles of a product."""
        return SMALL_TILES if self.uses_small_tiles else TILES[product]

    def bound(self, block_m: int) -> int:
        """Return how many tiles of rows there are at most."""
        return self.num_rows // block_m + min(self.num_experts, self.num_rows)

    def table(self, block_m: int) -> Tensor:
        """Return the number of tiles of rows, the expert of each and the first row of each."""
        if block_m not in self._tables:
            bound = self.bound(block_m)
            table = torch.empty(1 + 2 * bound, dtype=torch.int32, device=self.order.device)
            _table_start(self.num_experts, block_m, self.offsets.dtype)(bound, (self.offsets, table), bound)
            self._tables[block_m] = table
        return self._tables[block_m]


def _is_aligned(x: Tensor) -> bool:
    """Whether the rows of x are contiguous and begin at multiples of 16 bytes."""
    size = x.element_size()
    starts = [stride * size for stride in x.stride()[:-1]]
    return x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % 16 == 0 for s in starts)


def describes(x: Tensor) -> bool:
    """Whether the tensor memory accelerator reads x."""
    return x.element_size() in DESCRIBED_BYTES and has_tensor_memory_accelerator(x) and _is_aligned(x)


def descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block)


@remembered
def _rows_start(
    tiles: Tiles,
    wide: tl.dtype,
    sizes: tuple[int, int],
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    flags: tuple[bool, bool, bool],
    num_processors: int,
) -> Start:
    """Return the start for a, weight, offsets, table and out; sizes are the inner one and the columns.

    Strides are those of a and weight; flags tell whether a and weight are described, and how it is stored.
    """
    same = wide, sizes, strides, dtypes, flags, num_processors
    return Start(
        _rows_kernel,
        tiles.grid(cdiv(sizes[1], tiles.block_n), num_processors),
        (*strides, *sizes),
        (*flags, sizes[0] % tiles.block_k == 0, *tiles.constants(wide)),
        others=tiles.others(lambda other: _rows_start(other, *same)),
        **tiles.options(),
    )


def multiply_rows(product: str, a: Tensor, weight_EKN: Tensor, rows: SortedRows) -> Tensor:
    """Return sorted rows a (R, K) times their experts' weights, (R, N)."""
    _, dim, num_columns = weight_EKN.shape
    stored = weight_EKN if weight_EKN.stride(2) == 1 else weight_EKN.transpose(1, 2)
    tiles = rows.tiles(product)
    block_m, block_n, block_k = tiles[:3]
    out = torch.empty((rows.num_rows, num_columns), dtype=a.dtype, device=a.device)
    describes_a, describes_w = describes(a), describes(stored)
    k_last = stored is not weight_EKN
    block = [1, block_n, block_k] if k_last else [1, block_k, block_n]
    stride_we, stride_wk, stride_wn = weight_EKN.stride()
    start = _rows_start(
        tiles,
        rows.wide,
        (dim, num_columns),
        (*a.stride(), stride_we, stride_wn, stride_wk),
        (a.dtype, weight_EKN.dtype, rows.offsets.dtype),
        (describes_a, describes_w, k_last),
        rows.num_processors,
    )
    tensors = (
        descriptor(a, [block_m, block_k]) if describes_a else a,
        descriptor(stored, block) if describes_w else weight_EKN,
        rows.offsets,
        rows.table(block_m),
        out,
    )
    bound = rows.bound(block_m)
    start(bound, tensors, bound)
    return out


@remembered
def _grad_weight_start(
    tiles: Tiles,
    wide: tl.dtype,
    sizes: tuple[int, int, int],
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    flags: tuple[bool, bool],
    num_processors: int,
) -> Start:
    """Return the start for a, b, tokens, offsets and out; sizes are columns of a and b, and experts.

    Strides are those of a and b; flags tell whether a is gathered, and whether the other is described.
    """
    num_a, num_b, num_experts = sizes
    num_tiles = num_experts * cdiv(num_a, tiles.block_m) * cdiv(num_b, tiles.block_n)
    same = wide, sizes, strides, dtypes, flags, num_processors
    return Start(
        _grad_weight_kernel,
        tiles.grid(num_tiles, num_processors),
        (*strides, *sizes),
        (*flags, num_a % tiles.block_m == 0, num_b % tiles.block_n == 0, *tiles.constants(wide)),
        others=tiles.others(lambda other: _grad_weight_start(other, *same)),
        **tiles.options(),
    )


def outer_products(a: Tensor, b: Tensor, rows: SortedRows, *, gathers_a: bool) -> Tensor:
    """Return a^T b (E, num_a, num_b) over the rows of every expert; one of a and b is gathered by token."""
    num_a, num_b = a.shape[1], b.shape[1]
    tiles = rows.tiles("grad_weight")
    block_m, block_n, block_k = tiles[:3]
    is_described = describes(b if gathers_a else a)
    out = torch.empty((rows.num_experts, num_a, num_b), dtype=a.dtype, device=a.device)
    start = _grad_weight_start(
        tiles,
        rows.wide,
        (num_a, num_b, rows.num_experts),
        (*a.stride(), *b.stride()),
        (a.dtype, b.dtype, rows.offsets.dtype, rows.token.dtype),
        (gathers_a, is_described),
        rows.num_processors,
    )
    described_a = descriptor(a, [block_k, block_m]) if is_described and not gathers_a else a
    described_b = descriptor(b, [block_k, block_n]) if is_described and gathers_a else b
    start(1, (described_a, described_b, rows.token, rows.offsets, out))
    return out


@remembered
def _combine_start(
    dim: int,
    top_k: int,
    wide: tl.dtype,
    dtypes: tuple[torch.dtype | None, ...],
    tile: tuple[int, int] = _COMBINE_TILE,
) -> Start:
    """Return the start for rows, shares, places and sums; dtypes are of rows, shares and places."""
    block_d = min(tile[0], next_power_of_2(dim))

    def others() -> dict[str, Start]:
        same = dim, top_k, wide, dtypes
        return {f"{d} columns, {w} warps": _combine_start(*same, (d, w)) for d, w in _OTHER_COMBINE_TILES}

    return Start(
        _combine_kernel,
        Grid(columns=cdiv(dim, block_d)),
        (dim,),
        (dtypes[1] is not None, top_k, wide, block_d),
        others=others if tile is _COMBINE_TILE else None,
        num_warps=tile[1],
        **FUSED_MULTIPLY_ADD,
    )


def combine(sorted_rows: Tensor, share: Tensor | None, rows: SortedRows) -> Tensor:
    """Return the sum of the rows of every token, (N, H)."""
    dim, num_tokens = sorted_rows.shape[1], rows.num_rows // rows.top_k
    out = torch.empty((num_tokens, dim), dtype=sorted_rows.dtype, device=sorted_rows.device)
    dtypes = sorted_rows.dtype, None if share is None else share.dtype, rows.place.dtype
    start = _combine_start(dim, rows.top_k, rows.wide, dtypes)
    start(num_tokens, (sorted_rows, sorted_rows if share is None else share, rows.place, out))
    return out
