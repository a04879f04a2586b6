"""Compile every kernel for a GPU that is not there, with the arguments that the launchers pass.

Run as a script without TRITON_INTERPRET; prints one JSON line a compiled kernel. The interpreter accepts
what the compiler refuses (types, constants, shared memory), so this is the nearest to a GPU on a machine
without one.
"""

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class AbsentGPU:
    """Stands for the driver of a GPU of the given compute capability: names its target, launches nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


compiled = []
_run = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = _run(self, *args, grid=grid, warmup=True, **kwargs)
    compiled.append((f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}", kernel))
    # None, as from the interpreter: what is compiled cannot be loaded here, and so not be started again.


def launch_all(dtype: torch.dtype) -> None:
    from pylm.kernels import linear_cross_entropy, linear_logprob, rms_norm, rope, swiglu

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    for num_rows, dim in ((64, 4096), (1, 127), (3, 1), (4096, 128)):
        x, weight, rstd = empty(num_rows, dim), empty(dim), empty(num_rows, dtype=torch.float32)
        rms_norm.forward(x, weight, 1e-6, 0.0)
        rms_norm.forward(x, None, 1e-6, 0.0)
        rms_norm.add_forward(x, x, weight, 1e-6, 1.0)
        rms_norm.backward(x, None, x, weight, rstd, 0.0, True)
        rms_norm.backward(x, x, x, None, rstd, 0.0, False)
        wide = empty(num_rows, 2 * dim)
        for form in (("silu", 1.0, None, 0.0), ("silu", 1.702, 7.0, 1.0), ("gelu_tanh", 1.0, None, 0.0)):
            swiglu.forward(x, x, *form, False)
            swiglu.backward(x, x, x, x, *form)
            swiglu.packed_forward(wide, True, *form, False)
            swiglu.packed_backward(x, wide, x, True, *form)
        swiglu.packed_forward(wide, False, "gelu", 1.0, None, 0.0, False)
        swiglu.packed_backward(x, wide, x, False, "gelu", 1.0, None, 0.0)
    for batch, time, heads, features in ((2, 8, 4, 128), (1, 1, 1, 6)):
        cos = empty(16, features // 2 - 1, dtype=torch.float32)
        positions = torch.zeros(batch, time, dtype=torch.int64)
        q, k = empty(batch, time, heads, features), empty(batch, heads, time, features).transpose(1, 2)
        rope.rotate(q, k, cos, cos, None, False, False)
        rope.rotate(q, k, cos, cos, positions, True, True)
    for num_rows, dim, num_classes in ((256, 512, 4096), (1, 1, 1), (127, 33, 257)):
        hidden, weight, bias = empty(num_rows, dim), empty(num_classes, dim), empty(num_classes)
        targets = torch.zeros(num_rows, dtype=torch.int64)
        row = empty(num_rows, dtype=torch.float32)
        for b, softcap in ((None, None), (bias, 30.0)):
            keep = softcap is None
            *_, kept = linear_logprob.forward(
                hidden, weight, targets, b, 1.0, softcap, -100, True, True, keep
            )
            linear_logprob.backward(
                row, None, row, row, hidden, weight, targets, b, row, row, row, kept, 0.5, softcap, -100,
                [True, True, b is not None],
            )  # fmt: skip
            grads = linear_cross_entropy.forward(
                hidden, weight, targets, softcap, -100, 0.1, 1e-4, [True, True]
            )
            linear_cross_entropy.backward(*grads, hidden, weight)
            total, dz = linear_cross_entropy.keep(hidden, weight, targets, softcap, -100, 0.1, 1e-4)
            linear_cross_entropy.backward_of_kept(total, dz, hidden, weight, targets, -100, [True, True])


def launch_mixture(dtype: torch.dtype) -> None:
    """Launch the kernels of experts with what a router of each kind gives."""
    from pylm.kernels import moe_experts, moe_route

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    for num_tokens, num_experts, top_k, groups in ((256, 128, 8, 1), (3, 5, 2, 1), (100, 160, 6, 8)):
        logits, bias = empty(num_tokens, num_experts), empty(num_experts)
        for score, b in (("softmax", None), ("sigmoid", bias)):
            group_score = "top2" if score == "sigmoid" else "max"
            options = top_k, score, group_score, groups, (groups + 1) // 2, score == "sigmoid", 1.0
            weight, expert, _, _, load, aux, z, lse = moe_route.forward(logits, b, *options)
            for grads in ((weight, aux, z), (weight, None, None)):
                moe_route.backward(*grads, logits, expert, load, lse, score, score == "sigmoid", 1.0)
    for num_tokens, num_experts, top_k, dim, hidden_dim in ((256, 64, 8, 2048, 768), (3, 5, 2, 33, 7)):
        order = torch.zeros(num_tokens * top_k, dtype=torch.int32)
        offsets = torch.zeros(num_experts + 1, dtype=torch.int32)
        x, weight = empty(num_tokens, dim), empty(num_tokens, top_k, dtype=torch.float32)
        weights = empty(num_experts, 2 * hidden_dim, dim), empty(num_experts, dim, hidden_dim)
        arguments = x, weight, order, offsets, *weights
        kept = empty(num_tokens * top_k, 2 * hidden_dim)
        moe_experts.forward(*arguments, True)
        moe_experts.backward(x, *arguments, kept, [True] * 4)
        moe_experts.forward(*arguments, False)
        moe_experts.backward(x.t().contiguous().t(), *arguments, empty(0, 0), [True, False, False, False])


def launch_length(dtype: torch.dtype, num_rows: int) -> None:
    """Launch every kernel for a number of rows of one model."""
    from pylm.kernels import (
        linear_cross_entropy,
        linear_logprob,
        moe_experts,
        moe_route,
        rms_norm,
        rope,
        swiglu,
    )

    weight, head, cos = torch.empty(64, dtype=dtype), torch.empty(160, 64, dtype=dtype), torch.empty(4096, 8)
    x, row = torch.empty(num_rows, 64, dtype=dtype), torch.empty(num_rows)
    targets = torch.zeros(num_rows, dtype=torch.int64)
    rms_norm.forward(x, weight, 1e-6, 0.0)
    rms_norm.backward(x, None, x, weight, row, 0.0, True)
    swiglu.forward(x, x, "silu", 1.0, None, 0.0, False)
    swiglu.backward(x, x, x, x, "silu", 1.0, None, 0.0)
    swiglu.packed_backward(x[:, :32], x, x, True, "silu", 1.702, 7.0, 1.0)
    q = x.view(1, num_rows, 4, 16)
    rope.rotate(q, q, cos, cos, None, False, False)
    linear_logprob.forward(x, head, targets, None, 1.0, None, -100, True, False, False)
    grads = linear_cross_entropy.forward(x, head, targets, None, -100, 0.0, 0.0, [True, True])
    linear_cross_entropy.backward(*grads, x, head)
    linear_logprob.backward(
        row, None, None, None, x, head, targets, None, row, row, row, torch.empty(0), 1.0, None, -100,
        [True, True, False],
    )  # fmt: skip
    weight, expert, order, offsets, load, aux, z, lse = moe_route.forward(
        torch.empty(num_rows, 8), None, 2, "softmax", "max", 1, 1, True, 1.0
    )
    moe_route.backward(weight, aux, z, torch.empty(num_rows, 8), expert, load, lse, "softmax", True, 1.0)
    weights = torch.empty(8, 64, 64, dtype=dtype), torch.empty(8, 64, 32, dtype=dtype)
    _, kept = moe_experts.forward(x, weight, order, offsets, *weights, True)
    moe_experts.backward(x, x, weight, order, offsets, *weights, kept, [True] * 4)


def launch_odd(dtype: torch.dtype) -> None:
    """Launch what reads long rows of a length that nothing divides."""
    from pylm.kernels import linear_cross_entropy, linear_logprob, swiglu

    hidden, weight = torch.empty(2, 8, dtype=dtype), torch.empty(50257, 8, dtype=dtype)
    targets, row = torch.zeros(2, dtype=torch.int64), torch.empty(2)
    *_, kept = linear_logprob.forward(hidden, weight, targets, None, 1.0, None, -100, True, False, True)
    linear_logprob.backward(
        row, None, None, None, hidden, weight, targets, None, row, row, row, kept, 1.0, None, -100,
        [True, True, False],
    )  # fmt: skip
    grads = linear_cross_entropy.forward(hidden, weight, targets, None, -100, 0.1, 0.0, [False, True])
    linear_cross_entropy.backward(*grads, hidden, weight)
    x = torch.empty(3, 4097, dtype=dtype)
    swiglu.forward(x, x, "silu", 1.0, None, 0.0, False)
    swiglu.backward(x, x, x, x, "silu", 1.0, None, 0.0)


def main() -> None:
    capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    triton.runtime.driver.set_active(AbsentGPU(capability))
    JITFunction.run = compile_only
    if sys.argv[3:] == ["odd"]:
        launch_odd(dtype)
    lengths = [] if sys.argv[3:] == ["odd"] else [int(n) for n in sys.argv[3:]]
    for num_rows in lengths:
        launch_length(dtype, num_rows)
    if len(sys.argv) == 3:
        launch_all(dtype)
        launch_mixture(dtype)
    for name, kernel in compiled:
        row = {"kernel": name, "shared_bytes": kernel.metadata.shared, "has_cubin": "cubin" in kernel.asm}
        accesses = re.findall(r"\b(?:ld|st)\.global\.(\S+)", kernel.asm["ptx"])
        sys.stdout.write(json.dumps(row | {"hash": kernel.hash, "accesses": accesses}) + "\n")


if __name__ == "__main__":
    main()
