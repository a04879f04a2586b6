"""The logits of a linear output layer, chunk by chunk, and what is made of them while they are there.

The library's matrix product is faster than one that keeps its tiles, so it writes the raw products h W^T of
a chunk of rows in float32, `_CHUNK_BYTES` at most or `_MIN_CHUNK_ROWS`, and a kernel goes over each row of
them: online softmax (Milakov and Gimelshein, 2018), and where asked a second time, to leave p or dz in the
input's dtype. Two more products turn dz into the gradients, that of the weight adding up in float32.

Shapes: N rows, D model dimension, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
from pylm.kernels._math import exp, sigmoid

_CHUNK_BYTES = 2 << 30
_MIN_CHUNK_ROWS = 4096  # fewer make the matrix products slower
_BLOCK_V = 4096
# Classes are padded to a multiple of it, so that 16 bytes are loaded and stored at a time, also as bfloat16.
PADDING = tl.constexpr(8)


@triton.jit
def as_multiple(size):
    """Return a size that is a multiple of `PADDING` so that the compiler sees it."""
    return size // PADDING * PADDING


@triton.jit
def bend(product, bias, temperature, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
          HAS_TEMPERATURE: tl.constexpr):  # fmt: skip
    """Return the logits, and d logit / d product times the temperature."""
    logits = product
    if HAS_BIAS:
        logits += bias
    slope = 1.0
    if HAS_SOFTCAP:
        # tanh(a) = 2 s(2 a) - 1
        bounded = 2.0 * sigmoid(2.0 * logits / softcap) - 1.0
        slope = 1.0 - bounded * bounded
        logits = bounded * softcap
    if HAS_TEMPERATURE:
        logits /= temperature
    return logits, slope


@triton.jit
def _take_block(
    product_ptr, bias_ptr, block, num_classes, num_columns, temperature, softcap,
    peak, total, moment, logit_sum,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
    WITH_ENTROPY: tl.constexpr, WITH_MEAN: tl.constexpr, IS_FULL: tl.constexpr,
    BLOCK_V: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Take a block of a row into each lane's peak, sums of e^(z - peak) and of that times z - peak, sum of z.

    The lanes are columns of the block, so that a thread adds up what it has loaded and waits for no other.
    """
    steps = tl.arange(0, BLOCK_V // LANES)[:, None] * LANES
    offsets = block * BLOCK_V + steps + tl.arange(0, LANES)[None, :]
    mask = offsets < num_classes
    if IS_FULL:
        product = tl.load(product_ptr + offsets)
    else:
        product = tl.load(product_ptr + offsets, mask=offsets < num_columns, other=0.0)
        product = tl.where(mask, product, float("-inf"))
    bias = product
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(product.dtype)
    logits, _ = bend(product, bias, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE)
    if HAS_SOFTCAP and not IS_FULL:
        logits = tl.where(mask, logits, float("-inf"))
    if WITH_MEAN:
        logit_sum += tl.sum(logits if IS_FULL else tl.where(mask, logits, 0.0), axis=0)
    new_peak = tl.maximum(peak, tl.max(logits, axis=0))
    # A lane may have met nothing but classes masked by a bias of -inf, or none.
    base = tl.where(new_peak > float("-inf"), new_peak, 0.0)
    step = tl.where(peak > float("-inf"), peak - base, 0.0)
    scale = tl.where(peak > float("-inf"), exp(step), 0.0)
    shifted = logits - base[None, :]
    exponentials = exp(shifted)
    if WITH_ENTROPY:
        finite = tl.where(shifted > float("-inf"), exponentials * shifted, 0.0)
        moment = scale * (moment + total * step) + tl.sum(finite, axis=0)
    total = scale * total + tl.sum(exponentials, axis=0)
    return new_peak, total, moment, logit_sum


@triton.jit(do_not_specialize=["first_row"])
def _row_kernel(
    product_ptr,
    bias_ptr,
    target_ptr,
    logprob_ptr,
    lse_ptr,
    entropy_ptr,
    mean_ptr,
    out_ptr,
    first_row,
    stride_product,
    stride_out,
    num_classes,
    num_columns,
    temperature: tl.float64,
    softcap: tl.float64,
    label_smoothing: tl.float64,
    z_loss: tl.float64,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MEAN: tl.constexpr,
    LEAVES: tl.constexpr,
    BLOCK_V: tl.constexpr,
    LANES: tl.constexpr,
):
    wide = product_ptr.dtype.element_ty
    stride_product, stride_out = as_multiple(stride_product), as_multiple(stride_out)
    num_columns = as_multiple(num_columns)
    temperature_1, softcap_1 = tl.full((1,), temperature, wide), tl.full((1,), softcap, wide)
    local_row = tl.program_id(0).to(tl.int64)
    row = first_row + local_row
    product_ptr += local_row * stride_product
    target = tl.load(target_ptr + row).to(tl.int64) + tl.zeros((1,), tl.int64)
    is_kept = target != ignore_index
    # An ignored row costs nothing here.
    is_read = tl.max(is_kept.to(tl.int32), axis=0)
    peaks = tl.full((LANES,), float("-inf"), wide)
    totals, moments, sums = tl.zeros((LANES,), wide), tl.zeros((LANES,), wide), tl.zeros((LANES,), wide)
    for block in range(num_classes // BLOCK_V * is_read):
        peaks, totals, moments, sums = _take_block(
            product_ptr, bias_ptr, block, num_classes, num_columns, temperature_1, softcap_1,
            peaks, totals, moments, sums,
            HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, WITH_ENTROPY, WITH_MEAN, True, BLOCK_V, LANES,
        )  # fmt: skip
    if num_classes % BLOCK_V * is_read != 0:
        peaks, totals, moments, sums = _take_block(
            product_ptr, bias_ptr, num_classes // BLOCK_V, num_classes, num_columns, temperature_1, softcap_1,
            peaks, totals, moments, sums,
            HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, WITH_ENTROPY, WITH_MEAN, False, BLOCK_V, LANES,
        )  # fmt: skip
    peak = tl.max(peaks, axis=0) + tl.zeros((1,), wide)
    has_met = peaks > float("-inf")
    steps = tl.where(has_met, peaks - tl.where(peak > float("-inf"), peak, 0.0), 0.0)
    scales = tl.where(has_met, exp(steps), 0.0)
    # A target outside the vocabulary gives NaN.
    target_mask = (target >= 0) & (target < num_classes) & is_kept
    target_product = tl.load(product_ptr + target, mask=target_mask, other=float("nan"))
    target_bias = target_product
    if HAS_BIAS:
        target_bias = tl.load(bias_ptr + target, mask=target_mask, other=0.0).to(wide)
    target_logit, _ = bend(
        target_product, target_bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE
    )
    total = tl.sum(scales * totals, axis=0) + tl.zeros((1,), wide)
    log_total = tl.log(total)
    lse = log_total + peak
    row += tl.zeros((1,), tl.int64)
    tl.store(logprob_ptr + row, tl.where(is_kept, target_logit - peak - log_total, 0.0))
    tl.store(lse_ptr + row, tl.where(is_kept, lse, 0.0))
    if WITH_ENTROPY:
        moment = tl.sum(scales * (moments + totals * steps), axis=0)
        tl.store(entropy_ptr + row, tl.where(is_kept, log_total - moment / total, 0.0))
    if WITH_MEAN:
        tl.store(mean_ptr + row, tl.where(is_kept, tl.sum(sums, axis=0) / num_classes, 0.0))
    if LEAVES != "nothing":
        out_ptr += local_row * stride_out
        smoothing = tl.full((1,), label_smoothing, wide)
        factor = 1.0 + 2.0 * tl.full((1,), z_loss, wide) * lse
        local_target = tl.where(target_mask, target, -1).to(tl.int32)
        for block in range(tl.cdiv(num_columns, BLOCK_V)):
            offsets = block * BLOCK_V + tl.arange(0, BLOCK_V)
            column_mask = offsets < num_columns
            mask = offsets < num_classes
            product = tl.load(product_ptr + offsets, mask=column_mask, other=0.0)
            bias = product
            if HAS_BIAS:
                bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(wide)
            logits, slope = bend(
                product, bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE
            )
            left = exp(logits - lse)
            if LEAVES == "gradient":
                left = left * factor - smoothing / num_classes
                left = (left - tl.where(offsets == local_target, 1.0 - smoothing, 0.0)) * slope
                if HAS_TEMPERATURE:
                    left /= temperature_1
                # It may take the place of the products, which are wider: all have read the block now.
                tl.debug_barrier()
            left = tl.where(mask & is_kept, left, 0.0)
            tl.store(out_ptr + offsets, left.to(out_ptr.dtype.element_ty), mask=column_mask)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b into `out`, in its dtype, rounded once; autocast leaves a product with an output alone."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)  # the CPU has no such product


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, in the dtype of `total`."""
    if a.dtype == total.dtype or not a.is_cuda:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def chunks(num_rows: int, num_classes: int, itemsize: int) -> Iterator[tuple[int, int]]:
    """Cut rows into parts of about the same size."""
    most = max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // max(1, num_classes * itemsize))
    num_chunks = cdiv(num_rows, most)
    step = cdiv(cdiv(num_rows, max(1, num_chunks)), 128) * 128
    for start in range(0, num_rows, max(1, step)):
        yield start, min(start + step, num_rows)


def pad_classes(weight: Tensor) -> Tensor:
    """Return the weight with rows of zeros up to a multiple of `PADDING`.

    The library's product of 50,257 classes took 7 times as long as its operations do elsewhere (H200), since
    rows of logits then begin at odd addresses.
    """
    lacking = -weight.shape[0] % PADDING.value
    return F.pad(weight, (0, 0, 0, lacking)) if lacking else weight


def block_of_classes(num_classes: int) -> int:
    """Return how many classes are taken together."""
    return min(_BLOCK_V, next_power_of_2(max(1, num_classes)))


def warps_of_block(block_v: int) -> int:
    """Return how many warps share a block of classes."""
    return min(4, max(1, block_v // 256))


@remembered
def _row_start(
    classes: tuple[int, int],
    strides: tuple[int, int],
    dtypes: tuple[torch.dtype | None, ...],
    options: tuple[Any, ...],
) -> Start:
    """Return the start over a chunk of rows for products, bias, targets, four statistics and what is left.

    Classes are those there are and those with padding; strides are of rows of products and of what is left;
    dtypes are of products, bias, targets, statistics and what is left.
    """
    temperature, softcap, label_smoothing, z_loss, ignore_index, with_entropy, with_mean, leaves = options
    block_v = block_of_classes(classes[0])
    num_warps = warps_of_block(block_v)
    return Start(
        _row_kernel,
        Grid(),
        (
            *strides,
            *classes,
            temperature,
            1.0 if softcap is None else softcap,
            label_smoothing,
            z_loss,
            ignore_index,
        ),
        (
            dtypes[1] is not None,
            softcap is not None,
            temperature != 1.0,
            with_entropy,
            with_mean,
            leaves,
            block_v,
            # A load of 16 bytes for each thread; what is left of the block is further ones.
            min(block_v, num_warps * 128),
        ),
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )


def go_over_rows(
    hidden: Tensor,
    padded: Tensor,
    num_classes: int,
    targets: Tensor,
    bias: Tensor | None,
    statistics: list[Tensor],
    products: Tensor,
    out: Tensor | None,
    rows: tuple[int, int],
    leaves: Literal["nothing", "probabilities", "gradient"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int,
    with_entropy: bool = False,
    with_mean: bool = False,
) -> None:
    """Fill the statistics (N,) of a chunk of rows, and `out` (rows, V padded)."""
    num_rows = rows[1] - rows[0]
    if num_rows < products.shape[0]:
        products = products[:num_rows]
    if num_rows < hidden.shape[0]:
        hidden = hidden[rows[0] : rows[1]]
    product = multiply(hidden, padded.t(), products)
    start = _row_start(
        (num_classes, padded.shape[0]),
        (product.stride(0), 0 if out is None else out.stride(0)),
        (
            product.dtype,
            None if bias is None else bias.dtype,
            targets.dtype,
            statistics[0].dtype,
            None if out is None else out.dtype,
        ),
        (temperature, softcap, label_smoothing, z_loss, ignore_index, with_entropy, with_mean, leaves),
    )
    tensors = (
        product,
        product if bias is None else bias,
        targets,
        *statistics,
        product if out is None else out,
    )
    start(num_rows, tensors, rows[0])


class Gradients:
    """The gradients of hidden (N, D), weight (V, D) and bias (V,), from dz chunk by chunk."""

    def __init__(
        self,
        hidden: Tensor,
        padded: Tensor,
        num_classes: int,
        needs: list[bool],
        weight_dtype: torch.dtype,
    ) -> None:
        self._hidden, self._padded, self._num_classes = hidden, padded, num_classes
        self._needs_hidden, self._needs_weight, self._needs_bias = needs
        wide, device = wide_dtype(hidden), hidden.device
        has_terms = bool(hidden.numel() and padded.numel())
        empty = torch.empty if has_terms else torch.zeros
        self.hidden = empty(hidden.shape if self._needs_hidden else (0, 0), dtype=hidden.dtype, device=device)
        self._weight = empty(padded.shape if self._needs_weight else (0,), dtype=weight_dtype, device=device)
        self._bias = torch.zeros(padded.shape[0] if self._needs_bias else 0, dtype=wide, device=device)

    def add(self, grad: Tensor, start: int, stop: int) -> None:
        """Take in dz (rows, V padded) of the rows from start to stop."""
        if self._needs_hidden:
            torch.mm(grad, self._padded, out=self.hidden[start:stop])
        if self._needs_weight:
            if start == 0:
                multiply(grad.t(), self._hidden[:stop], self._weight)
            else:
                _add_product(self._weight, grad.t(), self._hidden[start:stop])
        if self._needs_bias:
            self._bias += grad.sum(0, dtype=self._bias.dtype)

    @property
    def weight(self) -> Tensor:
        """Return the gradient of the weight, in the dtype that it was added up in."""
        return self._weight[: self._num_classes]

    @property
    def bias(self) -> Tensor:
        """Return the gradient of the bias, in the dtype that it was added up in."""
        return self._bias[: self._num_classes]
