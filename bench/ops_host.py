"""What a call of an op takes the host, without a GPU: Triton launches into a libcuda that does nothing.

    PYTHONPATH=tests python bench/ops_host.py

CPU tensors stand for those of a GPU, so allocations and matrix products are the CPU's, and the driver's own
part of a launch is missing. *long* is by the dispatcher and Triton's own path, *short* past both, *launcher*
the kernel module alone, *bare launch* one call of the compiled kernel. *varying* is the launcher with another
number of tokens at each call, of 3,000 that come again in every round. Microseconds of processor time, the
least of many rounds.
"""

import gc
import sys
import time
from collections.abc import Callable
from unittest import mock

from oracles import fake_gpu  # isort: skip  (before anything imports triton)

import torch
import torch.nn.functional as F

from pylm import ops
from pylm.kernels import _launch, linear_logprob, moe_experts, moe_route, rms_norm, rope, swiglu
from pylm.ops import _direct, _library

ROUNDS, CALLS = 40, 200
NUM_LENGTHS = 3000
LAUNCHERS = {
    "rms_norm": rms_norm.forward,
    "rms_norm_backward": rms_norm.backward,
    "gated": lambda *args: swiglu.forward(*args[:-1], False),
    "gated_backward": swiglu.backward,
    "rope": rope.rotate,
    "moe_route": moe_route.forward,
    "linear_logprob": linear_logprob.forward,
    "linear_logprob_backward": linear_logprob.backward,
}


def least_us(call: Callable[[], object]) -> float:
    """Return the microseconds of processor time of a call in the best round."""
    for _ in range(CALLS // 4):
        call()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS)
    return 1e6 * best


def varying_us(call: Callable[[int], object]) -> float:
    """Return the microseconds of processor time of a call with another number of tokens each time."""
    best = float("inf")
    for _ in range(ROUNDS // 4):
        start = time.thread_time()
        for length in range(1, NUM_LENGTHS + 1):
            call(length)
        best = min(best, (time.thread_time() - start) / NUM_LENGTHS)
    return 1e6 * best


def mixture() -> tuple[Callable[[int], object], Callable[[int], object]]:
    """Return the experts' launchers, as functions of the number of tokens."""
    most, top_k = NUM_LENGTHS, 2
    order, offsets = torch.zeros(top_k * most, dtype=torch.int32), torch.zeros(9, dtype=torch.int32)
    x, share = torch.zeros(most, 64, dtype=torch.bfloat16), torch.zeros(most, top_k)
    gate_up, down = torch.zeros(8, 64, 64, dtype=torch.bfloat16), torch.zeros(8, 64, 32, dtype=torch.bfloat16)
    kept = torch.zeros(top_k * most, 64, dtype=torch.bfloat16)

    def given(n: int) -> tuple[torch.Tensor, ...]:
        return x[:n], share[:n], order[: top_k * n], offsets, gate_up, down

    def forward(n: int) -> object:
        return moe_experts.forward(*given(n), True)

    def backward(n: int) -> object:
        return moe_experts.backward(x[:n], *given(n), kept[: top_k * n], [True] * 4)

    return forward, backward


def launch_all_the_way(
    self: _launch.Start, num_rows: int, tensors: tuple[torch.Tensor, ...], *lengths: float
) -> None:
    self._launch(num_rows, tensors, lengths)


def main() -> None:
    torch.set_num_threads(1)
    gc.disable()
    library = torch.library.Library("pylm", "IMPL")
    for name, launcher in LAUNCHERS.items():
        library.impl(name, launcher, "CPU", allow_override=True)
    _library._launchers.update(LAUNCHERS)
    ordinary = set(_direct.ordinary_keys("CPU"))

    x, weight, up = torch.randn(16, 64), torch.randn(64), torch.randn(16, 64)
    q, k = torch.randn(1, 16, 4, 64), torch.randn(1, 16, 2, 64)
    cos, sin = ops.rope_cache(16, 64)
    logits = torch.randn(16, 8)
    routed = logits.clone().requires_grad_()
    head, targets = torch.randn(128, 64), torch.zeros(16, dtype=torch.int64)
    leaf = [tensor.clone().requires_grad_() for tensor in (x, weight, q)]
    calls: dict[str, tuple[Callable[[], object], Callable[[], object], Callable[[], object]]] = {
        "rms_norm": (
            lambda: ops.rms_norm(x, weight),
            lambda: ops.rms_norm(leaf[0], leaf[1]),
            lambda: rms_norm.forward(x, weight, 1e-6, 0.0),
        ),
        "rope": (
            lambda: ops.rope(q, k, cos, sin),
            lambda: ops.rope(leaf[2], k, cos, sin),
            lambda: rope.rotate(q, k, cos, sin, None, False, False),
        ),
        "swiglu": (
            lambda: ops.swiglu(x, up),
            lambda: ops.swiglu(leaf[0], up),
            lambda: swiglu.forward(x, up, "silu", 1.0, None, 0.0, False),
        ),
        "moe_route": (
            lambda: ops.moe_route(logits, 2),
            lambda: ops.moe_route(routed, 2),
            lambda: moe_route.forward(logits, None, 2, "softmax", "max", 1, 1, True, 1.0),
        ),
        "linear_logprob": (
            lambda: ops.linear_logprob(x, head, targets),
            lambda: ops.linear_logprob(leaf[0], head, targets),
            lambda: linear_logprob.forward(x, head, targets, None, 1.0, None, -100, True, False, False),
        ),
    }
    out = sys.stdout.write
    out("| op | way | no gradients | with gradients | launcher |\n|---|---|---|---|---|\n")
    for name, (plain, recorded, launcher) in calls.items():
        for way in ("long", "short"):
            keys = set() if way == "long" else ordinary
            start = launch_all_the_way if way == "long" else _launch.Start.__call__
            with (
                mock.patch.object(_direct, "ORDINARY", keys),
                mock.patch.object(_launch.Start, "__call__", start),
            ):
                figures = [least_us(call) for call in (plain, recorded, launcher)]
            out(f"| {name} | {way} | " + " | ".join(f"{us:.1f}" for us in figures) + " |\n")
    long_x = torch.randn(NUM_LENGTHS, 64)
    long_q, long_k = torch.randn(2, NUM_LENGTHS, 4, 64), torch.randn(2, NUM_LENGTHS, 2, 64)
    long_cos, long_sin = ops.rope_cache(NUM_LENGTHS, 64)
    rstd, long_logits = torch.empty(NUM_LENGTHS), torch.randn(NUM_LENGTHS, 8)
    long_targets = torch.zeros(NUM_LENGTHS, dtype=torch.int64)
    varying: dict[str, Callable[[int], object]] = {
        "rms_norm": lambda n: rms_norm.forward(long_x[:n], weight, 1e-6, 0.0),
        "rms_norm_backward": lambda n: rms_norm.backward(
            long_x[:n], None, long_x[:n], weight, rstd[:n], 0.0, True
        ),
        "rope, one row": lambda n: rope.rotate(
            long_q[:1, :n], long_k[:1, :n], long_cos, long_sin, None, False, False
        ),
        "rope, two rows": lambda n: rope.rotate(
            long_q.view(-1, 4, 64)[: 2 * n].view(2, n, 4, 64),
            long_k.view(-1, 2, 64)[: 2 * n].view(2, n, 2, 64),
            long_cos,
            long_sin,
            None,
            False,
            False,
        ),
        "swiglu": lambda n: swiglu.forward(long_x[:n], long_x[:n], "silu", 1.0, None, 0.0, False),
        "moe_route": lambda n: moe_route.forward(long_logits[:n], None, 2, "softmax", "max", 1, 1, True, 1.0),
        "linear_logprob": lambda n: linear_logprob.forward(
            long_x[:n, :4], head[:8, :4], long_targets[:n], None, 1.0, None, -100, True, False, False
        ),
    }
    experts, grad_steps = mixture()
    varying["moe_experts"] = experts
    varying["moe_experts_backward"] = grad_steps
    out("| op | varying | the same again |\n|---|---|---|\n")
    for name, by_length in varying.items():
        figures = varying_us(by_length), least_us(lambda f=by_length: f(1000))
        out(f"| {name} | " + " | ".join(f"{us:.1f}" for us in figures) + " |\n")
    y, rstd = rms_norm.forward(x, weight, 1e-6, 0.0)
    rows, dtypes = (_launch.RowStrides(True, 64, 64),), (x.dtype, None, weight.dtype)
    start = rms_norm._forward_start(64, 1, rows, dtypes, 1e-6, 0.0)
    tensors = x, x, weight, y, y, rstd
    start(16, tensors, 16)
    prepared = next(iter(start._prepared.values()))
    addresses = [tensor.data_ptr() for tensor in tensors]
    head_of_call = 1, 1, 1, fake_gpu.DRIVER.streams[0], prepared.function, prepared.metadata
    parts = {
        "Triton's kernel[grid](...)": lambda: start._launch(16, tensors, (16,)),
        "a start that is prepared": lambda: start(16, tensors, 16),
        "bare launch": lambda: prepared.run(*head_of_call, None, None, None, *addresses, 16, *start._rest),
        "torch.empty": lambda: torch.empty((16,), dtype=torch.float32, device=x.device),
        "torch.nn.functional.silu, with gradients": lambda: F.silu(leaf[0]),
    }
    for name, call in parts.items():
        out(f"{name}: {least_us(call):.1f}\n")


if __name__ == "__main__":
    main()
