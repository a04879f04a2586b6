"""Log-probability of targets, log-sum-exp and entropy of a linear output layer, without all its logits.

With z = softcap(h W^T + bias) / temperature, softcap(a) = c tanh(a / c), p = softmax(z), o one-hot:

    lse = log sum_v exp(z_v),   logprob = z_target - lse,   entropy = lse - sum_v p_v z_v
    dz = g_logprob (o - p) + g_lse p - g_entropy p (log p + entropy) + g_mean / V

Shapes: N rows, D model dimension, V vocabulary. The library's matrix product is faster than one that keeps
its tiles, so it writes the raw products h W^T of a chunk of rows in float32, `_CHUNK_BYTES` at most or
`_MIN_CHUNK_ROWS`, and a kernel goes over each row of them: online softmax (Milakov and Gimelshein, 2018),
and where asked a second time, to leave p or dz in the input's dtype. Two more products turn dz into the
gradients, that of the weight adding up in float32.
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

_CHUNK_BYTES = 2 << 30
_MIN_CHUNK_ROWS = 4096  # fewer make the matrix products slower
_BLOCK_V = 4096
# Classes and warps of a program that makes gradients: each is one of its own. Those of the kernel over whole
# rows decide about the order of its sums, so they are not tuned.
_OTHER_TILES = (1024, 4), (2048, 4), (4096, 8), (8192, 8)


@triton.jit
def _bend(product, bias, temperature, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
          HAS_TEMPERATURE: tl.constexpr):  # fmt: skip
    """Return the logits, and d logit / d product times the temperature."""
    logits = product
    if HAS_BIAS:
        logits += bias
    slope = 1.0
    if HAS_SOFTCAP:
        # tanh(a) = 2 s(2 a) - 1
        bounded = 2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0
        slope = 1.0 - bounded * bounded
        logits = bounded * softcap
    if HAS_TEMPERATURE:
        logits /= temperature
    return logits, slope


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
):
    wide = product_ptr.dtype.element_ty
    temperature_1, softcap_1 = tl.full((1,), temperature, wide), tl.full((1,), softcap, wide)
    local_row = tl.program_id(0).to(tl.int64)
    row = first_row + local_row + tl.zeros((1,), tl.int64)
    product_ptr += local_row * stride_product
    target = tl.load(target_ptr + row).to(tl.int64)
    is_kept = target != ignore_index
    num_blocks = tl.cdiv(num_classes, BLOCK_V)
    columns = tl.arange(0, BLOCK_V)
    peak = tl.full((1,), float("-inf"), wide)
    total = tl.zeros((BLOCK_V,), wide)
    moment = tl.zeros((BLOCK_V,), wide)
    logit_sum = tl.zeros((BLOCK_V,), wide)
    # An ignored row costs nothing here.
    for block in range(num_blocks * tl.max(is_kept.to(tl.int32), axis=0)):
        offsets = block * BLOCK_V + columns
        mask = offsets < num_classes
        product = tl.load(product_ptr + offsets, mask=mask, other=float("-inf"))
        bias = product
        if HAS_BIAS:
            bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(wide)
        logits, _ = _bend(product, bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE)
        if HAS_SOFTCAP:
            logits = tl.where(mask, logits, float("-inf"))
        if WITH_MEAN:
            logit_sum += tl.where(mask, logits, 0.0)
        new_peak = tl.maximum(peak, tl.max(logits, axis=0))
        # Classes masked by a bias of -inf may fill a whole block.
        base = tl.where(new_peak > float("-inf"), new_peak, 0.0)
        step = tl.where(peak > float("-inf"), peak - base, 0.0)
        scale = tl.where(peak > float("-inf"), tl.exp(step), 0.0)
        shifted = logits - base
        exponentials = tl.exp(shifted)
        if WITH_ENTROPY:
            finite = tl.where(shifted > float("-inf"), exponentials * shifted, 0.0)
            moment = scale * (moment + total * step) + finite
        total = scale * total + exponentials
        peak = new_peak
    # A target outside the vocabulary gives NaN.
    target_mask = (target >= 0) & (target < num_classes) & is_kept
    target_product = tl.load(product_ptr + target, mask=target_mask, other=float("nan"))
    target_bias = target_product
    if HAS_BIAS:
        target_bias = tl.load(bias_ptr + target, mask=target_mask, other=0.0).to(wide)
    target_logit, _ = _bend(
        target_product, target_bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE
    )
    sum_1 = tl.sum(total, axis=0) + tl.zeros((1,), wide)
    log_total = tl.log(sum_1)
    lse = log_total + peak
    tl.store(logprob_ptr + row, tl.where(is_kept, target_logit - peak - log_total, 0.0))
    tl.store(lse_ptr + row, tl.where(is_kept, lse, 0.0))
    if WITH_ENTROPY:
        tl.store(entropy_ptr + row, tl.where(is_kept, log_total - tl.sum(moment, axis=0) / sum_1, 0.0))
    if WITH_MEAN:
        tl.store(mean_ptr + row, tl.where(is_kept, tl.sum(logit_sum, axis=0) / num_classes, 0.0))
    if LEAVES != "nothing":
        out_ptr += local_row * stride_out
        smoothing = tl.full((1,), label_smoothing, wide)
        factor = 1.0 + 2.0 * tl.full((1,), z_loss, wide) * lse
        for block in range(tl.cdiv(num_columns, BLOCK_V)):
            offsets = block * BLOCK_V + columns
            mask = offsets < num_classes
            product = tl.load(product_ptr + offsets, mask=mask & is_kept, other=0.0)
            bias = product
            if HAS_BIAS:
                bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(wide)
            logits, slope = _bend(
                product, bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE
            )
            left = tl.exp(logits - lse)
            if LEAVES == "gradient":
                left = left * factor - smoothing / num_classes
                left = (left - tl.where(offsets == target, 1.0 - smoothing, 0.0)) * slope
                if HAS_TEMPERATURE:
                    left /= temperature_1
            left = tl.where(mask & is_kept, left, 0.0)
            # What is left may take the place of the products, which are wider: all have read the block now.
            tl.debug_barrier()
            tl.store(out_ptr + offsets, left.to(out_ptr.dtype.element_ty), mask=offsets < num_columns)


@triton.jit(do_not_specialize=["first_row"])
def _gradient_kernel(
    source_ptr,
    bias_ptr,
    target_ptr,
    lse_ptr,
    entropy_ptr,
    g_logprob_ptr,
    g_lse_ptr,
    g_entropy_ptr,
    g_mean_ptr,
    grad_ptr,
    first_row,
    stride_source,
    stride_grad,
    stride_logprob,
    stride_lse,
    stride_entropy,
    stride_mean,
    num_classes,
    num_columns,
    temperature: tl.float64,
    softcap: tl.float64,
    ignore_index,
    FROM_PROBABILITIES: tl.constexpr,
    HAS_G_LOGPROB: tl.constexpr,
    HAS_G_LSE: tl.constexpr,
    HAS_G_ENTROPY: tl.constexpr,
    HAS_G_MEAN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    local_row = tl.program_id(0).to(tl.int64)
    row = first_row + local_row + tl.zeros((1,), tl.int64)
    offsets = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = offsets < num_classes
    target = tl.load(target_ptr + row).to(tl.int64)
    is_kept = target != ignore_index
    temperature_1, softcap_1 = tl.full((1,), temperature, WIDE), tl.full((1,), softcap, WIDE)
    source_ptr += local_row * stride_source
    source = tl.load(source_ptr + offsets, mask=mask & is_kept, other=0.0).to(WIDE)
    slope = 1.0
    if FROM_PROBABILITIES:
        p = source
        if HAS_G_ENTROPY:
            log_p = tl.maximum(tl.log(p), -1000.0)
    else:
        bias = source
        if HAS_BIAS:
            bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(WIDE)
        logits, slope = _bend(source, bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE)
        log_p = tl.maximum(logits - tl.load(lse_ptr + row), -1000.0)
        p = tl.exp(log_p)
    factor = tl.zeros((1,), WIDE)
    if HAS_G_LSE:
        factor += tl.load(g_lse_ptr + row * stride_lse)
    if HAS_G_LOGPROB:
        g_logprob = tl.load(g_logprob_ptr + row * stride_logprob)
        factor -= g_logprob
    if HAS_G_ENTROPY:
        g_entropy = tl.load(g_entropy_ptr + row * stride_entropy)
        grad = p * (factor - g_entropy * (log_p + tl.load(entropy_ptr + row)))
    else:
        grad = p * factor
    if HAS_G_MEAN:
        grad += tl.load(g_mean_ptr + row * stride_mean) / num_classes
    if HAS_G_LOGPROB:
        grad += tl.where(offsets == target, g_logprob, 0.0)
    grad *= slope
    if HAS_TEMPERATURE:
        grad /= temperature_1
    grad = tl.where(mask & is_kept, grad, 0.0)
    grad_ptr += local_row * stride_grad
    tl.store(grad_ptr + offsets, grad.to(grad_ptr.dtype.element_ty), mask=offsets < num_columns)


def multiply(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """Return a @ b in the given dtype, rounded once."""
    if a.dtype == dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype) if out is None else torch.mm(a, b, out_dtype=dtype, out=out)
    return torch.mm(a.to(dtype), b.to(dtype), out=out)  # the CPU has no such product


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
    """Return the weight with rows of zeros up to a multiple of 8.

    The library's product of 50,257 classes took 7 times as long as its operations do elsewhere (H200), since
    rows of logits then begin at odd addresses.
    """
    return F.pad(weight, (0, 0, 0, -weight.shape[0] % 8)) if weight.shape[0] % 8 else weight


def _block_of_classes(num_classes: int) -> int:
    return min(_BLOCK_V, next_power_of_2(max(1, num_classes)))


def _num_warps(block_v: int) -> int:
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
    block_v = _block_of_classes(classes[0])
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
        ),
        num_warps=_num_warps(block_v),
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
    product = multiply(hidden, padded.t(), products.dtype, out=products)
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
    """Return logprob, lse, entropy, mean logit and zeros (N,); with `keep` probabilities (N, V padded)."""
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    wide, device = wide_dtype(hidden), hidden.device
    kept_dtype = torch.bfloat16 if hidden.dtype == torch.float16 else hidden.dtype
    padded = pad_classes(weight)
    kept = torch.empty((num_rows, padded.shape[0]) if keep else (0, 0), dtype=kept_dtype, device=device)
    has_terms = bool(num_rows and num_classes)
    # What is not asked for stays zero; the kernel writes the rest.
    is_written = True, True, with_entropy, with_mean, False
    logprob, lse, entropy, mean, total = (
        (torch.empty if has_terms and written else torch.zeros)(num_rows, dtype=wide, device=device)
        for written in is_written
    )
    if has_terms:
        targets = targets.contiguous()
        bias = None if bias is None else bias.contiguous()
        parts = list(chunks(num_rows, num_classes, wide.itemsize))
        products = torch.empty((parts[0][1], padded.shape[0]), dtype=wide, device=device)
        for start, stop in parts:
            go_over_rows(
                hidden,
                padded,
                num_classes,
                targets,
                bias,
                [logprob, lse, entropy, mean],
                products,
                kept[start:stop] if keep else None,
                (start, stop),
                "probabilities" if keep else "nothing",
                temperature=temperature,
                softcap=softcap,
                ignore_index=ignore_index,
                with_entropy=with_entropy,
                with_mean=with_mean,
            )
    return logprob, lse, entropy, mean, total, kept


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
                multiply(grad.t(), self._hidden[:stop], self._weight.dtype, out=self._weight)
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


@remembered
def _gradient_start(
    classes: tuple[int, int],
    strides: tuple[int, int],
    upstream_strides: tuple[int | None, ...],
    dtypes: tuple[torch.dtype | None, ...],
    options: tuple[float, float | None, int, bool],
    tile: tuple[int, int] | None = None,
) -> Start:
    """Return the start for source, bias, targets, lse, entropy, the four gradients from upstream and dz.

    Classes are those there are and those with padding; strides are of rows of source and dz; dtypes are of
    source, bias, targets, lse, dz and the gradients from upstream.
    """
    temperature, softcap, ignore_index, from_probabilities = options
    block_v = _block_of_classes(classes[0])
    num_warps = _num_warps(block_v)
    if tile is not None:
        block_v, num_warps = min(tile[0], next_power_of_2(max(1, classes[0]))), tile[1]

    def others() -> dict[str, Start]:
        same = classes, strides, upstream_strides, dtypes, options
        return {
            f"{v} classes, {warps} warps": _gradient_start(*same, (v, warps)) for v, warps in _OTHER_TILES
        }

    return Start(
        _gradient_kernel,
        Grid(layers=cdiv(classes[1], block_v)),
        (
            *strides,
            *[stride or 0 for stride in upstream_strides],
            *classes,
            temperature,
            1.0 if softcap is None else softcap,
            ignore_index,
        ),
        (
            from_probabilities,
            *[stride is not None for stride in upstream_strides],
            dtypes[1] is not None,
            softcap is not None,
            temperature != 1.0,
            tl.float64 if dtypes[3] == torch.float64 else tl.float32,
            block_v,
        ),
        others=others if tile is None else None,
        num_warps=num_warps,
        **FUSED_MULTIPLY_ADD,
    )


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
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    device, has_kept = hidden.device, bool(kept.numel())
    padded = pad_classes(weight)
    targets = targets.contiguous()
    contiguous_bias = None if bias is None else bias.contiguous()
    # Probabilities that were kept, dz beside them, and the weight's gradient rounded on its way out take less
    # memory than chunks with sums in float32.
    parts = list(chunks(num_rows, num_classes, lse.element_size())) if num_classes else []
    if has_kept:
        parts = [(0, num_rows)]
    most = parts[0][1] if parts else 0
    grads = torch.empty((most, padded.shape[0]), dtype=hidden.dtype, device=device)
    products = torch.empty((0 if has_kept else most, padded.shape[0]), dtype=lse.dtype, device=device)
    gradients = Gradients(hidden, padded, num_classes, needs, weight.dtype if len(parts) == 1 else lse.dtype)
    upstream = [grad_logprob, grad_lse, grad_entropy, grad_mean]
    for start, stop in parts:
        if has_kept:
            source = kept[start:stop]
        else:
            source = multiply(hidden[start:stop], padded.t(), lse.dtype, out=products[: stop - start])
        gradient_start = _gradient_start(
            (num_classes, padded.shape[0]),
            (source.stride(0), grads.stride(0)),
            tuple([None if g is None else g.stride(0) for g in upstream]),
            (
                source.dtype,
                None if bias is None else bias.dtype,
                targets.dtype,
                lse.dtype,
                grads.dtype,
                *[None if g is None else g.dtype for g in upstream],
            ),
            (temperature, softcap, ignore_index, has_kept),
        )
        given_bias = source if contiguous_bias is None else contiguous_bias
        given_upstream = [lse if g is None else g for g in upstream]
        tensors = source, given_bias, targets, lse, entropy, *given_upstream, grads
        gradient_start(stop - start, tensors, start)
        gradients.add(grads[: stop - start], start, stop)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return gradients.hidden, gradients.weight.to(weight.dtype), gradients.bias.to(bias_dtype)
