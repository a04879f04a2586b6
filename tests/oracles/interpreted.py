"""A pytest plugin that gives CPU tensors to the GPU kernels, run by Triton's interpreter.

    TRITON_INTERPRET=1 PYTHONPATH=tests python -m pytest -p oracles.interpreted tests/ops

So the tests of the ops hold for the kernels too, through registration and autograd. It must be loaded
before anything imports triton, whose functions are made for the interpreter or for a GPU once, on import.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

assert "triton" not in sys.modules, "load this plugin before triton"

import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from pylm.kernels import (  # noqa: E402
    linear_cross_entropy,
    linear_logprob,
    moe_experts,
    moe_route,
    rms_norm,
    rope,
    swiglu,
)

LAUNCHERS = {
    "rms_norm": rms_norm.forward,
    "add_rms_norm": rms_norm.add_forward,
    "rms_norm_backward": rms_norm.backward,
    "gated": swiglu.forward,
    "gated_backward": swiglu.backward,
    "gated_packed": swiglu.packed_forward,
    "gated_packed_backward": swiglu.packed_backward,
    "rope": rope.rotate,
    "linear_logprob": linear_logprob.forward,
    "linear_logprob_backward": linear_logprob.backward,
    "linear_cross_entropy": linear_cross_entropy.forward,
    "linear_cross_entropy_backward": linear_cross_entropy.backward,
    "linear_cross_entropy_kept": linear_cross_entropy.keep,
    "linear_cross_entropy_kept_backward": linear_cross_entropy.backward_of_kept,
    "moe_route": moe_route.forward,
    "moe_route_backward": moe_route.backward,
    "moe_experts": moe_experts.forward,
    "moe_experts_backward": moe_experts.backward,
}
# On the CPU the public functions ask these to keep values for the backward pass, which their kernels do not.
KEEPING = ("gated", "gated_packed")

launches: list[str] = []
_library = torch.library.Library("pylm", "IMPL")


def _counted(name: str, launcher: Callable[..., object]) -> Callable[..., object]:
    def launch(*args: object) -> object:
        launches.append(name)
        return launcher(*args[:-1], False) if name in KEEPING else launcher(*args)

    return launch


def _multiply_bfloat16(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """Give products bfloat16 in float32: the interpreter multiplies its bits as those of integers."""

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(builder, widened(a), widened(b), *rest)

    return dot


def pytest_configure() -> None:
    import pylm.ops  # noqa: F401  (defines the ops)

    builder = interpreter.InterpreterBuilder
    builder.create_dot = _multiply_bfloat16(builder.create_dot)
    for name, launcher in LAUNCHERS.items():
        _library.impl(name, _counted(name, launcher), "CPU", allow_override=True)


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"launchers that ran: {' '.join(sorted(set(launches)))}")
