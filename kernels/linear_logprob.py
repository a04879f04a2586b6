"""Log-probability of targets, log-sum-exp and entropy of a linear output layer, without all its logits.

With z = softcap(h W^T + bias) / temperature, softcap(a) = c tanh(a / c), p = softmax(z), o one-hot:

    lse = log sum_v exp(z_v),   logprob = z_target - lse,   entropy = lse - sum_v p_v z_v
    dz = g_logprob (o - p) + g_lse p - g_entropy p (log p + entropy) + g_mean / V

Chunks of logits, and what is made of them while they are there, are those of `_logits`; here is what turns p,
or logits that are made again, into dz. Shapes: N rows, D model dimension, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

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
from pylm.kernels._logits import (
    Gradients,
    as_multiple,
    bend,
    block_of_classes,
    chunks,
    go_over_rows,
    multiply,
    pad_classes,
    warps_of_block,
)
from pylm.kernels._math import exp

# Classes and warps of a program that makes gradients: each is one of its own. Those of the kernel over whole
# rows decide about the order of its sums, so they are not tuned.
_OTHER_TILES = (1024, 4), (2048, 4), (4096, 8), (8192, 8)


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
    stride_source, stride_grad = as_multiple(stride_source), as_multiple(stride_grad)
    num_columns = as_multiple(num_columns)
    local_row = tl.program_id(0).to(tl.int64)
    row = first_row + local_row
    offsets = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask, column_mask = offsets < num_classes, offsets < num_columns
    target = tl.load(target_ptr + row).to(tl.int64) + tl.zeros((1,), tl.int64)
    is_kept = target != ignore_index
    temperature_1, softcap_1 = tl.full((1,), temperature, WIDE), tl.full((1,), softcap, WIDE)
    source_ptr += local_row * stride_source
    source = tl.load(source_ptr + offsets, mask=column_mask & is_kept, other=0.0).to(WIDE)
    slope = 1.0
    if FROM_PROBABILITIES:
        p = source
        if HAS_G_ENTROPY:
            log_p = tl.maximum(tl.log(p), -1000.0)
    else:
        bias = source
        if HAS_BIAS:
            bias = tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(WIDE)
        logits, slope = bend(source, bias, temperature_1, softcap_1, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE)
        log_p = logits - tl.load(lse_ptr + row)
        log_p = tl.where(log_p < -1000.0, -1000.0, log_p)  # NaN stays
        p = exp(log_p)
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
        is_class = (target >= 0) & (target < num_classes)
        grad += tl.where(offsets == tl.where(is_class, target, -1).to(tl.int32), g_logprob, 0.0)
    grad *= slope
    if HAS_TEMPERATURE:
        grad /= temperature_1
    grad = tl.where(mask & is_kept, grad, 0.0)
    grad_ptr += local_row * stride_grad
    tl.store(grad_ptr + offsets, grad.to(grad_ptr.dtype.element_ty), mask=column_mask)


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
    block_v = block_of_classes(classes[0])
    num_warps = warps_of_block(block_v)
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
            source = multiply(hidden[start:stop], padded.t(), products[: stop - start])
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
