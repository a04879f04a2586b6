"""Compiling kernels before they are needed."""

import time

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_float_dtype, check_size
from pylm.ops.gated import geglu, swiglu, swiglu_packed
from pylm.ops.logprob import linear_logprob
from pylm.ops.losses import linear_cross_entropy
from pylm.ops.norm import rms_norm
from pylm.ops.rotary import rope
from pylm.ops.rotary_tables import rope_cache

_NUM_ROWS = 16


def warmup(
    *,
    dim: int | None = None,
    hidden_dim: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
) -> float:
    """Run the ops of a model once, forward and backward, on a few rows, so that their kernels are compiled.

    A kernel is compiled when its op first runs with a size of model, in about a second, and kept on disk by
    Triton; other numbers of tokens compile nothing again. So this is for those who time a first step, or
    capture one in a CUDA graph. Sizes that are None leave out the ops that need them.

    Args:
        dim: D, of `rms_norm` and of the output layer.
        hidden_dim: F, of `swiglu`, `swiglu_packed` and `geglu`.
        num_heads: H, of `rope`.
        num_kv_heads: K; None means as many as `num_heads`.
        head_dim: C, of `rope` and of `rms_norm` over heads.
        vocab_size: V, of `linear_logprob` and `linear_cross_entropy`.
        dtype: of activations and weights.
        device: a GPU; on the CPU there is nothing to compile.

    Returns:
        Seconds that it took.

    Raises:
        InputError: there is no GPU, or a size or the dtype does not fit.

    Example:
        >>> seconds = warmup(dim=64, vocab_size=100, device="cpu")
    """
    sizes = {
        "dim": dim,
        "hidden_dim": hidden_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
    }
    check_size("warmup", **{name: size for name, size in sizes.items() if size is not None})
    check_float_dtype("warmup", dtype)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"warmup: torch sees no GPU for device {str(device)!r}; on a CPU there is nothing to compile"
        )
    start = time.perf_counter()

    def leaf(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)

    outputs: list[Tensor] = []
    for norm_dim in (dim, head_dim):
        if norm_dim is not None:
            x, weight = leaf(_NUM_ROWS, norm_dim), leaf(norm_dim)
            outputs += [rms_norm(x, weight), *rms_norm(x, weight, residual=x)]
    if hidden_dim is not None:
        gate, up = leaf(_NUM_ROWS, hidden_dim), leaf(_NUM_ROWS, hidden_dim)
        outputs += [swiglu(gate, up), geglu(gate, up), swiglu_packed(leaf(_NUM_ROWS, 2 * hidden_dim))]
    if num_heads is not None and head_dim is not None:
        cos, sin = rope_cache(_NUM_ROWS, head_dim, device=device)
        q = leaf(1, _NUM_ROWS, num_heads, head_dim)
        k = leaf(1, _NUM_ROWS, num_kv_heads or num_heads, head_dim)
        positions = torch.arange(_NUM_ROWS, device=device)
        for ids in (None, positions):
            outputs += rope(q, k, cos, sin, position_ids=ids)
    if dim is not None and vocab_size is not None:
        hidden, head = leaf(_NUM_ROWS, dim), leaf(vocab_size, dim)
        targets = torch.zeros(_NUM_ROWS, dtype=torch.int64, device=device)
        outputs += linear_logprob(hidden, head, targets)
        outputs += [linear_cross_entropy(hidden, head, targets)]
    if outputs:
        torch.autograd.backward(torch.stack([y.float().sum() for y in outputs]).sum())
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
