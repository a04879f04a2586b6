"""Cross entropy of an output layer with dz, the gradient of its logits, made while they are there.

Chunks, the kernel over their rows and the products are those of `_logits`. dz of the summed loss is kept for
the backward pass, or it takes the place of the float32 products that it came from and is turned into the
gradients at once. The backward pass scales by the gradient of the loss. Shapes: N rows, D model dimension, V
vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

import torch
import triton
import triton.language as tl
from torch import Tensor

from pylm.kernels._launch import Grid, Start, remembered, wide_dtype
from pylm.kernels._logits import Gradients, chunks, go_over_rows, multiply, pad_classes

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


def _scale(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x times a number that is on the device, rounded once."""
    scaled = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        _scale_start((x.dtype, factor.dtype, dtype))(x.numel(), (x, factor, scaled), x.numel())
    return scaled


def _sum_losses(
    hidden: Tensor,
    padded: Tensor,
    num_classes: int,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    kept: Tensor | None,
    gradients: Gradients | None,
) -> Tensor:
    """Return the summed loss; leave dz in `kept` (N, V padded), or hand it to `gradients` chunk by chunk."""
    num_rows, wide, device = hidden.shape[0], wide_dtype(hidden), hidden.device
    logprob, lse, mean = (torch.zeros(num_rows, dtype=wide, device=device) for _ in range(3))
    targets = targets.contiguous()
    parts = list(chunks(num_rows, num_classes, wide.itemsize)) if num_classes else []
    most = parts[0][1] if parts else 0
    products = torch.empty((most, padded.shape[0]), dtype=wide, device=device)
    # dz takes the place of the products, at the beginning of each row.
    in_place = products.view(hidden.dtype)[:, : padded.shape[0]]
    for start, stop in parts:
        grads = in_place[: stop - start] if kept is None else kept[start:stop]
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
        if gradients is not None:
            gradients.add(grads, start, stop)
    loss = (label_smoothing * (lse - mean) - (1.0 - label_smoothing) * logprob + z_loss * lse.square()).sum()
    return loss


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
    num_classes = weight.shape[0]
    padded = pad_classes(weight.to(hidden.dtype))
    gradients = Gradients(hidden, padded, num_classes, [*needs, False], wide_dtype(hidden))
    options = softcap, ignore_index, label_smoothing, z_loss
    loss = _sum_losses(hidden, padded, num_classes, targets, *options, None, gradients)
    return loss, gradients.hidden, gradients.weight


def backward(
    grad_loss: Tensor, grad_hidden: Tensor, grad_weight: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the summed loss times that of the loss, in the dtypes of the inputs."""
    return _scale(grad_hidden, grad_loss, hidden.dtype), _scale(grad_weight, grad_loss, weight.dtype)


def keep(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its dz (N, V padded), in the dtype of the hidden states."""
    num_classes = weight.shape[0]
    padded = pad_classes(weight.to(hidden.dtype))
    kept = torch.empty((hidden.shape[0], padded.shape[0]), dtype=hidden.dtype, device=hidden.device)
    options = softcap, ignore_index, label_smoothing, z_loss
    return _sum_losses(hidden, padded, num_classes, targets, *options, kept, None), kept


def backward_of_kept(
    grad_loss: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden (N, D) and weight (V, D), in their dtypes, empty where not needed.

    The weight's is made from hidden states times the gradient of the loss, so that nothing goes over dz.
    """
    grad_hidden = torch.empty((0, 0), dtype=hidden.dtype, device=hidden.device)
    grad_weight = torch.empty(0, dtype=weight.dtype, device=weight.device)
    wide = wide_dtype(hidden)
    if needs[0]:
        product = torch.empty(hidden.shape, dtype=wide, device=hidden.device)
        multiply(kept, pad_classes(weight.to(hidden.dtype)), product)
        grad_hidden = _scale(product, grad_loss, hidden.dtype)
    if needs[1]:
        scaled = _scale(hidden.contiguous(), grad_loss, hidden.dtype)
        dtype = weight.dtype if weight.dtype in (hidden.dtype, wide) else wide
        product = torch.empty((kept.shape[1], hidden.shape[1]), dtype=dtype, device=weight.device)
        multiply(kept.t(), scaled, product)
        grad_weight = product[: weight.shape[0]].to(weight.dtype)
    return grad_hidden, grad_weight
