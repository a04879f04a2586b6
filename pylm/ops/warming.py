"""Compiling kernels before they are needed."""

import time

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_float_dtype, check_size
from pylm.ops.gated import geglu, swiglu, swiglu_packed
from pylm.ops.logprob import linear_logprob
from pylm.ops.losses import linear_cross_entropy
from pylm.ops.moe import moe_experts, moe_route
from pylm.ops.norm import rms_norm
from pylm.ops.rotary import rope
from pylm.ops.rotary_tables import rope_cache

# Elements of gated activations past which another kernel takes them.
_MANY = 1 << 20


def warmup(
    *,
    dim: int | None = None,
    hidden_dim: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    num_tokens: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
) -> float:
    """Run the ops of a model once, forward and backward, on a few tokens, so that their kernels are compiled.

    A kernel is compiled when its op first runs with a size of model, in about a second, and kept on disk by
    Triton; other numbers of tokens compile nothing again. So this is for those who time a first step, or
    capture one in a CUDA graph. Sizes that are None leave out the ops that need them.

    Args:
        dim: D, of `rms_norm` and of the output layer.
        hidden_dim: F, of `swiglu`, `swiglu_packed` and `geglu`; I, of the experts.
        num_heads: H, of `rope`.
        num_kv_heads: K; None means as many as `num_heads`.
        head_dim: C, of `rope` and of `rms_norm` over heads.
        vocab_size: V, of `linear_logprob` and `linear_cross_entropy`.
        num_experts: E, of `moe_route` and, with `dim` and `hidden_dim`, of `moe_experts`. The router has
            softmax scores and no groups; other options of it compile when it first runs.
        top_k: K; None means 1.
        num_tokens: N, of all ops. Few do to compile; to tune (`autotune`) as many as a step has.
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
        "num_experts": num_experts,
        "top_k": top_k,
    }
    check_size(
        "warmup", num_tokens=num_tokens, **{name: size for name, size in sizes.items() if size is not None}
    )
    check_float_dtype("warmup", dtype)
    if top_k is not None and (num_experts is None or top_k > num_experts):
        raise InputError(f"warmup: top_k must be at most num_experts={num_experts}, got {top_k}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"warmup: torch sees no GPU for device {str(device)!r}; on a CPU there is nothing to compile"
        )
    start = time.perf_counter()
    # Wherever it is called, so that there is a backward pass.
    with torch.inference_mode(False), torch.enable_grad():
        _run(sizes, num_tokens, dtype, device)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _run(
    sizes: dict[str, int | None], num_tokens: int, dtype: torch.dtype, device: torch.device | str
) -> None:
    dim, hidden_dim, num_heads, num_kv_heads, head_dim, vocab_size, num_experts, top_k = sizes.values()

    def leaf(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)

    outputs: list[Tensor] = []
    for norm_dim in (dim, head_dim):
        if norm_dim is not None:
            x, weight = leaf(num_tokens, norm_dim), leaf(norm_dim)
            outputs += [rms_norm(x, weight), *rms_norm(x, weight, residual=x)]
    if hidden_dim is not None:
        # One kernel serves few elements and another one many.
        for rows in (1, max(num_tokens, _MANY // hidden_dim + 1)):
            gate, up = leaf(rows, hidden_dim), leaf(rows, hidden_dim)
            outputs += [swiglu(gate, up), geglu(gate, up)]
        outputs += [swiglu_packed(leaf(num_tokens, 2 * hidden_dim))]
    if num_heads is not None and head_dim is not None:
        cos, sin = rope_cache(num_tokens, head_dim, device=device)
        q = leaf(1, num_tokens, num_heads, head_dim)
        k = leaf(1, num_tokens, num_kv_heads or num_heads, head_dim)
        positions = torch.arange(num_tokens, device=device)
        for ids in (None, positions):
            outputs += rope(q, k, cos, sin, position_ids=ids)
    if dim is not None and vocab_size is not None:
        hidden, head = leaf(num_tokens, dim), leaf(vocab_size, dim)
        targets = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        outputs += linear_logprob(hidden, head, targets)
        outputs += [linear_cross_entropy(hidden, head, targets)]
    if num_experts is not None:
        # In float32, as in `MoE`; each expert is chosen as often as the others.
        experts, tokens = (torch.arange(size, device=device) for size in (num_experts, num_tokens))
        logits = ((experts - tokens[:, None]) % num_experts).float().requires_grad_()
        routing = moe_route(logits, top_k or 1)
        outputs += [routing.weight, routing.aux_loss, routing.z_loss]
        if dim is not None and hidden_dim is not None:
            gate_up, down = leaf(num_experts, 2 * hidden_dim, dim), leaf(num_experts, dim, hidden_dim)
            outputs += [moe_experts(leaf(num_tokens, dim), routing, gate_up, down)]
    if outputs:
        torch.autograd.backward(torch.stack([y.float().sum() for y in outputs]).sum())
