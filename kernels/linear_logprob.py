"""Log-probability of targets, log-sum-exp and entropy of a linear output layer, without its logits.

With z = softcap(h W^T + bias) / temperature, softcap(a) = c tanh(a / c), p = softmax(z), o one-hot:

    lse = log sum_v exp(z_v),   logprob = z_target - lse,   entropy = lse - sum_v p_v z_v
    dz = g_logprob (o - p) + g_lse p - g_entropy p (log p + entropy) + g_mean / V

Shapes: N rows, D model dimension, V vocabulary, S splits of the vocabulary. The forward kernel multiplies
tile by tile and keeps running sums for its rows and its split (online softmax, Milakov and Gimelshein,
2018); the splits are put together in a fixed order. The backward kernel makes the logits of a chunk of rows
again and writes dz in the input's dtype, up to `_GRAD_BYTES`; two library products turn it into the
gradients, that of the weight adding up in float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import FUSED_MULTIPLY_ADD, current_device, num_programs, wide_dtype

_GRAD_BYTES = 512 << 20


@triton.jit
def _tile_logits(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    columns,
    row_mask,
    column_mask,
    stride_hn,
    stride_hd,
    stride_wv,
    stride_wd,
    dim,
    temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return the logits (BLOCK_N, BLOCK_V), and d logit / d product times the temperature."""
    features = tl.arange(0, BLOCK_D)
    hidden_ptrs = hidden_ptr + rows[:, None] * stride_hn + features[None, :] * stride_hd
    weight_ptrs = weight_ptr + columns[None, :] * stride_wv + features[:, None] * stride_wd
    logits = tl.zeros((BLOCK_N, BLOCK_V), WIDE)
    for start in range(0, dim, BLOCK_D):
        feature_mask = start + features < dim
        hidden = tl.load(hidden_ptrs, mask=row_mask[:, None] & feature_mask[None, :], other=0.0)
        weight = tl.load(weight_ptrs, mask=feature_mask[:, None] & column_mask[None, :], other=0.0)
        # "ieee" concerns float32 inputs only: no TensorFloat-32, as in torch by default.
        logits = tl.dot(hidden, weight, logits, input_precision="ieee", out_dtype=WIDE)
        hidden_ptrs += BLOCK_D * stride_hd
        weight_ptrs += BLOCK_D * stride_wd
    if HAS_BIAS:
        logits += tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(WIDE)[None, :]
    slope = tl.full((BLOCK_N, BLOCK_V), 1.0, WIDE)
    if HAS_SOFTCAP:
        # tanh(a) = 2 s(2 a) - 1
        bounded = 2.0 * tl.sigmoid(2.0 * logits / tl.full((1, 1), softcap, WIDE)) - 1.0
        slope = 1.0 - bounded * bounded
        logits = bounded * tl.full((1, 1), softcap, WIDE)
    logits /= tl.full((1, 1), temperature, WIDE)
    return tl.where(column_mask[None, :], logits, float("-inf")), slope


@triton.jit
def _forward_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,
    stride_hn,
    stride_hd,
    stride_wv,
    stride_wd,
    num_rows,
    num_classes,
    dim,
    size,
    tiles_per_split,
    temperature: tl.float64,
    softcap: tl.float64,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs that follow each other share their part of the weight.
    num_row_tiles = tl.cdiv(num_rows, BLOCK_N)
    program = tl.program_id(0)
    split = program // num_row_tiles
    rows = (program % num_row_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < num_rows
    targets = tl.load(target_ptr + rows, mask=row_mask, other=ignore_index).to(tl.int64)
    peak = tl.full((BLOCK_N,), float("-inf"), WIDE)
    total = tl.zeros((BLOCK_N,), WIDE)
    moment = tl.zeros((BLOCK_N,), WIDE)
    target_logit = tl.zeros((BLOCK_N,), WIDE)
    logit_sum = tl.zeros((BLOCK_N,), WIDE)
    has_targets = tl.max((targets != ignore_index).to(tl.int32), axis=0)
    first = split.to(tl.int64) * tiles_per_split * BLOCK_V
    # A tile whose rows are all ignored costs nothing.
    num_tiles = tiles_per_split * has_targets
    for tile in range(num_tiles):
        columns = first + tile * BLOCK_V + tl.arange(0, BLOCK_V)
        column_mask = columns < num_classes
        logits, _ = _tile_logits(
            hidden_ptr, weight_ptr, bias_ptr, rows, columns, row_mask, column_mask, stride_hn, stride_hd,
            stride_wv, stride_wd, dim, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, WIDE, BLOCK_N, BLOCK_V,
            BLOCK_D,
        )  # fmt: skip
        finite = tl.where(logits > float("-inf"), logits, 0.0)
        target_logit += tl.sum(tl.where(columns[None, :] == targets[:, None], logits, 0.0), axis=1)
        logit_sum += tl.sum(tl.where(column_mask[None, :], logits, 0.0), axis=1)
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        # Classes masked by a bias of -inf may fill a whole tile.
        base = tl.where(new_peak > float("-inf"), new_peak, 0.0)
        step = tl.where(peak > float("-inf"), peak - base, 0.0)
        scale = tl.where(peak > float("-inf"), tl.exp(step), 0.0)
        exponentials = tl.exp(logits - base[:, None])
        moment = scale * (moment + total * step) + tl.sum(exponentials * (finite - base[:, None]), axis=1)
        total = scale * total + tl.sum(exponentials, axis=1)
        peak = new_peak
    # partial (5, S, N)
    offsets = split.to(tl.int64) * num_rows + rows
    tl.store(partial_ptr + offsets, peak, mask=row_mask)
    tl.store(partial_ptr + size + offsets, total, mask=row_mask)
    tl.store(partial_ptr + 2 * size + offsets, moment, mask=row_mask)
    tl.store(partial_ptr + 3 * size + offsets, target_logit, mask=row_mask)
    tl.store(partial_ptr + 4 * size + offsets, logit_sum, mask=row_mask)


@triton.jit
def _backward_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    lse_ptr,
    entropy_ptr,
    upstream_ptr,
    grad_ptr,
    stride_hn,
    stride_hd,
    stride_wv,
    stride_wd,
    first_row,
    last_row,
    num_rows,
    num_classes,
    dim,
    temperature: tl.float64,
    softcap: tl.float64,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    num_row_tiles = tl.cdiv(last_row - first_row, BLOCK_N)
    program = tl.program_id(0)
    local_rows = (program % num_row_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = first_row + local_rows
    row_mask = rows < last_row
    columns = (program // num_row_tiles).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    column_mask = columns < num_classes
    targets = tl.load(target_ptr + rows, mask=row_mask, other=ignore_index).to(tl.int64)
    is_kept = targets != ignore_index
    # Of a tile whose rows are all ignored, only the zeros are written.
    used_dim = dim * tl.max(is_kept.to(tl.int32), axis=0)
    logits, slope = _tile_logits(
        hidden_ptr, weight_ptr, bias_ptr, rows, columns, row_mask, column_mask, stride_hn, stride_hd,
        stride_wv, stride_wd, used_dim, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, WIDE, BLOCK_N, BLOCK_V,
        BLOCK_D,
    )  # fmt: skip
    lse = tl.load(lse_ptr + rows, mask=row_mask, other=0.0)
    entropy = tl.load(entropy_ptr + rows, mask=row_mask, other=0.0)
    # upstream (4, N): gradients of logprob, lse, entropy and mean logit
    g_logprob = tl.load(upstream_ptr + rows, mask=row_mask, other=0.0)
    g_lse = tl.load(upstream_ptr + num_rows + rows, mask=row_mask, other=0.0)
    g_entropy = tl.load(upstream_ptr + 2 * num_rows + rows, mask=row_mask, other=0.0)
    g_mean = tl.load(upstream_ptr + 3 * num_rows + rows, mask=row_mask, other=0.0)
    log_p = tl.maximum(logits - lse[:, None], -1000.0)
    factor = (g_lse - g_logprob)[:, None] - g_entropy[:, None] * (log_p + entropy[:, None])
    grad = tl.exp(log_p) * factor + (g_mean / num_classes)[:, None]
    grad += tl.where(columns[None, :] == targets[:, None], g_logprob[:, None], 0.0)
    grad = tl.where(is_kept[:, None], grad * slope / tl.full((1, 1), temperature, WIDE), 0.0)
    mask = row_mask[:, None] & column_mask[None, :]
    grad_offsets = local_rows[:, None] * num_classes + columns[None, :]
    tl.store(grad_ptr + grad_offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)


def _tiles(hidden: Tensor) -> dict[str, Any]:
    small = hidden.dtype in (torch.float32, torch.float64)
    return {
        "WIDE": tl.float64 if hidden.dtype == torch.float64 else tl.float32,
        "BLOCK_N": 64 if small else 128,
        "BLOCK_V": 64 if small else 128,
        "BLOCK_D": 32 if small else 64,
        "num_warps": 4 if small else 8,
        "num_stages": 2,
        **FUSED_MULTIPLY_ADD,
    }


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
    with_mean: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return logprob, lse, entropy, mean logit and sum of exponentials (N,), and an empty tensor."""
    if keep:
        raise ValueError("linear_logprob: the kernel keeps no logits; pass keep=False on a GPU")
    num_rows, dim = hidden.shape
    num_classes = weight.shape[0]
    wide, device = wide_dtype(hidden), hidden.device
    kept = torch.empty((0, 0), dtype=wide, device=device)
    if num_rows == 0 or num_classes == 0:
        logprob, lse, entropy, mean, total = (
            torch.zeros(num_rows, dtype=wide, device=device) for _ in range(5)
        )
        return logprob, lse, entropy, mean, total, kept
    tiles = _tiles(hidden)
    num_row_tiles = triton.cdiv(num_rows, tiles["BLOCK_N"])
    num_column_tiles = triton.cdiv(num_classes, tiles["BLOCK_V"])
    wanted_splits = triton.cdiv(num_programs(hidden), num_row_tiles)
    tiles_per_split = triton.cdiv(num_column_tiles, min(wanted_splits, num_column_tiles))
    num_splits = triton.cdiv(num_column_tiles, tiles_per_split)
    partial = torch.empty((5, num_splits, num_rows), dtype=wide, device=device)
    with current_device(hidden):
        _forward_kernel[(num_row_tiles * num_splits,)](
            hidden,
            weight,
            hidden if bias is None else bias.contiguous(),
            targets.contiguous(),
            partial,
            *hidden.stride(),
            *weight.stride(),
            num_rows,
            num_classes,
            dim,
            num_splits * num_rows,
            tiles_per_split,
            temperature,
            1.0 if softcap is None else softcap,
            ignore_index,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            **tiles,
        )
    return *_combine(partial, targets, ignore_index, num_classes), kept


def _combine(
    partial: Tensor, targets: Tensor, ignore_index: int, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Put the splits together; a target outside the vocabulary gives NaN, an ignored one 0."""
    peaks, totals, moments, target_logits, sums = partial
    peak = peaks.amax(0)
    steps = (peaks - peak).clamp(min=-1000.0)
    scales = steps.exp()
    total = (scales * totals).sum(0)
    log_total = total.log()
    is_valid = (targets >= 0) & (targets < num_classes)
    target_logit = torch.where(is_valid, target_logits.sum(0), float("nan"))
    entropy = log_total - (scales * (moments + totals * steps)).sum(0) / total
    results = target_logit - peak - log_total, log_total + peak, entropy, sums.sum(0) / num_classes, total
    is_kept = targets != ignore_index
    logprob, lse, entropy, mean, total = (torch.where(is_kept, result, 0.0) for result in results)
    return logprob, lse, entropy, mean, total


def backward(
    grad_logprob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_mean: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    entropy: Tensor,
    total: Tensor,
    kept: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden (N, D), weight (V, D) and bias (V,), empty where not needed."""
    needs_hidden, needs_weight, needs_bias = needs
    num_rows, dim = hidden.shape
    num_classes = weight.shape[0]
    wide, device = lse.dtype, hidden.device
    grad_hidden = torch.empty((num_rows, dim) if needs_hidden else (0, 0), dtype=hidden.dtype, device=device)
    grad_weight = torch.zeros(weight.shape if needs_weight else (0,), dtype=wide, device=device)
    grad_bias = torch.zeros(num_classes if needs_bias else 0, dtype=wide, device=device)
    upstream = torch.zeros((4, num_rows), dtype=wide, device=device)
    for row, grad in zip(upstream, (grad_logprob, grad_lse, grad_entropy, grad_mean), strict=True):
        if grad is not None:
            row.copy_(grad)
    tiles = _tiles(hidden)
    targets, lse, entropy = targets.contiguous(), lse.contiguous(), entropy.contiguous()
    tile_rows: int = tiles["BLOCK_N"]
    step = max(1, _GRAD_BYTES // max(1, num_classes * hidden.element_size() * tile_rows)) * tile_rows
    buffer = torch.empty((min(step, num_rows), num_classes), dtype=hidden.dtype, device=device)
    for start in range(0, num_rows if num_classes else 0, step):
        stop = min(start + step, num_rows)
        grad_NV = buffer[: stop - start]
        grid = (triton.cdiv(stop - start, tile_rows) * triton.cdiv(num_classes, tiles["BLOCK_V"]),)
        with current_device(hidden):
            _backward_kernel[grid](
                hidden,
                weight,
                hidden if bias is None else bias.contiguous(),
                targets,
                lse,
                entropy,
                upstream,
                grad_NV,
                *hidden.stride(),
                *weight.stride(),
                start,
                stop,
                num_rows,
                num_classes,
                dim,
                temperature,
                1.0 if softcap is None else softcap,
                ignore_index,
                HAS_BIAS=bias is not None,
                HAS_SOFTCAP=softcap is not None,
                **tiles,
            )
        if needs_hidden:
            torch.mm(grad_NV, weight, out=grad_hidden[start:stop])
        if needs_weight:
            _add_product(grad_weight, grad_NV.t(), hidden[start:stop])
        if needs_bias:
            grad_bias += grad_NV.sum(0, dtype=wide)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(bias_dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)
