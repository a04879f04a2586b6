"""Cross entropy of an output layer with its gradients, made while the logits are there.

Chunks, the kernel over their rows and the products are those of `_logits`; dz takes the place of
the float32 products that it came from. The gradients are those of the summed loss; the backward pass scales
them. Shapes: N rows, D model dimension, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import Grid, Start, remembered, wide_dtype
from pylm.kernels._logits import Gradients, chunks, go_over_rows, pad_classes

# Elements and warps of a program that scales.
_TILE, _OTHERS = (4096, 4), ((1024, 4), (2048, 4), (8192, 8))


@triton.jit(do_not_specialize=["size"])
def _scale_kernel(grad_ptr, factor_ptr, out_ptr, size, BLOCK: tl.constexpr, LAST: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    factor = tl.load(factor_ptr)
    # Only the last program needs a mask, which would have all others load element by element.
    if first + BLOCK <= size:
        offsets = first + tl.arange(0, BLOCK)
        scaled = tl.load(grad_ptr + offsets) * factor
        tl.store(out_ptr + offsets, scaled.to(out_ptr.dtype.element_ty))
    else:
        for part in range(0, BLOCK, LAST):
            offsets = first + part + tl.arange(0, LAST)
            mask = offsets < size
            scaled = tl.load(grad_ptr + offsets, mask=mask) * factor
            tl.store(out_ptr + offsets, scaled.to(out_ptr.dtype.element_ty), mask=mask)


@remembered
def _scale_start(dtypes: tuple[torch.dtype, ...], tile: tuple[int, int] = _TILE) -> Start:
    def others() -> dict[str, Start]:
        return {
            f"{size} elements, {warps} warps": _scale_start(dtypes, (size, warps)) for size, warps in _OTHERS
        }

    return Start(
        _scale_kernel,
        Grid(tile[0]),
        (),
        (tile[0], 32 * tile[1]),
        others=others if tile == _TILE else None,
        num_warps=tile[1],
    )


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, and its gradients: of hidden (N, D), of weight (V, D) in float32.

    The gradients are made while the logits are there, so there are three matrix products in all. They are
    empty where not needed.
    """
    num_rows, num_classes = hidden.shape[0], weight.shape[0]
    wide, device = wide_dtype(hidden), hidden.device
    padded = pad_classes(weight.to(hidden.dtype))
    logprob, lse, mean = (torch.zeros(num_rows, dtype=wide, device=device) for _ in range(3))
    targets = targets.contiguous()
    parts = list(chunks(num_rows, num_classes, wide.itemsize)) if num_classes else []
    most = parts[0][1] if parts else 0
    products = torch.empty((most, padded.shape[0]), dtype=wide, device=device)
    # dz takes the place of the products, at the beginning of each row.
    grads = products.view(hidden.dtype)[:, : padded.shape[0]]
    gradients = Gradients(hidden, padded, num_classes, [*needs, False], wide)
    for start, stop in parts:
        go_over_rows(
            hidden,
            padded,
            num_classes,
            targets,
            None,
            [logprob, lse, lse, mean],
            products,
            grads,
            (start, stop),
            "gradient",
            softcap=softcap,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
            with_mean=label_smoothing > 0.0,
        )
        gradients.add(grads[: stop - start], start, stop)
    loss = (label_smoothing * (lse - mean) - (1.0 - label_smoothing) * logprob + z_loss * lse.square()).sum()
    return loss, gradients.hidden, gradients.weight


def backward(
    grad_loss: Tensor, grad_hidden: Tensor, grad_weight: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the summed loss times that of the loss, in the dtypes of the inputs."""
    scaled_hidden = torch.empty(grad_hidden.shape, dtype=hidden.dtype, device=hidden.device)
    scaled_weight = torch.empty(grad_weight.shape, dtype=weight.dtype, device=weight.device)
    for grad, scaled in ((grad_hidden, scaled_hidden), (grad_weight, scaled_weight)):
        if grad.numel():
            start = _scale_start((grad.dtype, grad_loss.dtype, scaled.dtype))
            start(grad.numel(), (grad, grad_loss, scaled), grad.numel())
    return scaled_hidden, scaled_weight
