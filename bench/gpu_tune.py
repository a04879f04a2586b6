"""What tuning would gain: each kernel that can be tuned, as it is checked in and in the best configuration.

    python bench/gpu_tune.py --out FOLDER [--seconds N] [--dry-run]

The sizes are those of `gpu_ops.py`, forward and backward. Every kernel is timed in all its configurations, by
`pylm.ops.autotune` itself, with an empty memory of its own. A dry run goes through Triton's interpreter. What
fails is a line of the table; the others go on, and the program ends with 1.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from gpu_common import describe, describe_error, find_device, is_lost, write_results

from pylm import ops
from pylm.kernels import _autotune

Launch = Callable[[], object]

# A case is not begun with less time; for the experts tens of configurations of large tiles are compiled.
_SECONDS = 10.0
_EXPERTS, _EXPERTS_SECONDS = "moe_experts 32768 x 2048 x 768, 8 of 128", 50.0


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    # Small numbers, so that nothing overflows; what they are does not matter to the time.
    return torch.randn(shape, device=device).div_(8.0).to(dtype)


def cases(device: torch.device, *, dry_run: bool) -> dict[str, Callable[[], Launch]]:
    """Return what makes the inputs of an op and then launches its kernels."""
    from pylm.kernels import linear_logprob, moe_experts, moe_route, rms_norm, rope, swiglu

    # The interpreter cannot load bfloat16.
    dtype = torch.float32 if dry_run else torch.bfloat16
    silu = "silu", 1.0, None, 0.0

    def random(*shape: int) -> torch.Tensor:
        return _random(device, *shape, dtype=dtype)

    def gated(rows: int, dim: int) -> Launch:
        gate, up = random(rows, dim), random(rows, dim)
        return lambda: (swiglu.forward(gate, up, *silu, False), swiglu.backward(up, gate, up, gate, *silu))

    def packed(rows: int, dim: int) -> Launch:
        x, grad = random(rows, 2 * dim), random(rows, dim)
        return lambda: (
            swiglu.packed_forward(x, False, *silu, False),
            swiglu.packed_backward(grad, x, x, False, *silu),
        )

    def norm(rows: int, dim: int) -> Launch:
        x, weight, rstd = random(rows, dim), random(dim), torch.ones(rows, device=device)
        return lambda: rms_norm.backward(x, None, x, weight, rstd, 0.0, True)

    def rotate(rows: int, heads: int, key_heads: int, features: int) -> Launch:
        q, k = random(1, rows, heads, features), random(1, rows, key_heads, features)
        cos, sin = ops.rope_cache(rows, features, device=device)
        return lambda: rope.rotate(q, k, cos, sin, None, False, False)

    def logprob(rows: int, dim: int, num_classes: int) -> Launch:
        hidden, head, row = random(rows, dim), random(num_classes, dim), torch.ones(rows, device=device)
        targets, needs = torch.zeros(rows, dtype=torch.int64, device=device), [True, False, False]
        call = hidden, head, targets, None, row, row, row, row[:0], 1.0, None, -100, needs
        return lambda: linear_logprob.backward(row, None, None, None, *call)

    def experts(rows: int, num_experts: int, top_k: int, dim: int, hidden: int) -> Launch:
        logits = torch.randn(rows, num_experts, device=device)
        options = top_k, "softmax", "max", 1, 1, True, 1.0
        weight, _, order, offsets, *_ = moe_route.forward(logits, None, *options)
        x, weights = (
            random(rows, dim),
            (random(num_experts, 2 * hidden, dim), random(num_experts, dim, hidden)),
        )
        given = x, weight, order, offsets, *weights
        kept = random(rows * top_k, 2 * hidden)
        return lambda: (
            moe_experts.forward(*given, True),
            moe_experts.backward(x, *given, kept, [True] * 4),
        )

    if dry_run:
        return {
            "swiglu 6 x 96": lambda: gated(6, 96),
            "rms_norm 6 x 64": lambda: norm(6, 64),
            "rope 6 x 2 + 1 x 16": lambda: rotate(6, 2, 1, 16),
            "linear_logprob 6 x 16 x 40": lambda: logprob(6, 16, 40),
            "moe_experts 6 x 32 x 16, 2 of 4": lambda: experts(6, 4, 2, 32, 16),
        }
    return {
        "swiglu 8192 x 14336": lambda: gated(8192, 14336),
        "rope 8192 x 32 + 8 x 128": lambda: rotate(8192, 32, 8, 128),
        "rms_norm 8192 x 4096": lambda: norm(8192, 4096),
        "swiglu_packed 8192 x 28672": lambda: packed(8192, 14336),
        "linear_logprob 8192 x 4096 x 128256": lambda: logprob(8192, 4096, 128256),
        "swiglu 1000 x 4097": lambda: gated(1000, 4097),
        _EXPERTS: lambda: experts(32768, 128, 8, 2048, 768),
    }


def tabulate(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Format the rows for the Markdown table."""
    table = [["op", "kernel", "checked in ms", "best ms", "best / checked in", "best"]]
    for row in rows:
        if "note" in row:
            table.append([row["case"], row["note"], "", "", "", ""])
            continue
        ms, ratio = row["checked_in_ms"], row["ratio"]
        checked_in, share = ("does not fit", "") if ms is None else (f"{ms:.4f}", f"{ratio:.3f}")
        figures = checked_in, f"{row['best_ms']:.4f}", share
        table.append([row["case"], row["kernel"], *figures, row["best"]])
    return table


def describe_choice(name: str, choice: _autotune.Choice) -> dict[str, Any]:
    """Return the row of a kernel: its time as checked in, None where that needs more than the GPU has."""
    kernel, ms = choice.about["kernel"], choice.ms
    if not ms:
        return {"case": name, "note": f"fails: no configuration of {kernel} fits"}
    best = min(ms, key=lambda key: ms[key])
    # The first of the names is the one in the code.
    checked_in_ms = ms.get(choice.about["names"][0])
    row = {"case": name, "kernel": kernel, "best": best, "best_ms": ms[best], "checked_in_ms": checked_in_ms}
    return row | {"ratio": None if checked_in_ms is None else ms[best] / checked_in_ms, "ms": ms}


def measure(name: str, build: Callable[[], Launch]) -> list[dict[str, Any]]:
    """Return a row for each kernel of a case, what was timed before anything fails included."""
    rows: list[dict[str, Any]] = []
    _autotune.forget()
    try:
        launch = build()
        with ops.autotune():
            launch()
    except Exception as error:
        rows.append({"case": name, "note": describe_error(error)})
    return [describe_choice(name, choice) for choice in _autotune.choices()] + rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the kernels' configurations on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for tune.json and tune.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=120.0, help="that it may take")
    options = parser.parse_args()
    clock = gpu_clock.Clock(options.seconds, since=gpu_clock.STARTED)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    device = find_device(options.dry_run)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    result: dict[str, Any] = {"about": describe(device), "left_out": left_out, "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        lost = False
        for name, build in cases(device, dry_run=options.dry_run).items():
            if lost or clock.left() <= (_EXPERTS_SECONDS if name == _EXPERTS else _SECONDS):
                reason = "the GPU is lost" if lost else f"{clock.left():.0f} s are left"
                print(f"{name}: left out, {reason}", flush=True)
                left_out.append(name)
                write_results(options.out, "tune", result, tabulate(rows), show=False)
                continue
            start = time.perf_counter()
            rows += measure(name, build)
            write_results(options.out, "tune", result, tabulate(rows), show=False)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
            if device.type == "cuda":
                lost = is_lost(device)
                if not lost:
                    torch.cuda.empty_cache()
    write_results(options.out, "tune", result, tabulate(rows))
    if failed := [f"{row['case']}: {row['note']}" for row in rows if "note" in row]:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
