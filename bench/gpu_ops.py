"""Each op on a GPU against torch, torch.compile and Liger-Kernel, in bfloat16.

    python bench/gpu_ops.py --out FOLDER [--dry-run]

Outputs and gradients of every competitor must agree before it is timed. `forward` runs without gradients,
`both` is forward and backward together. Bytes are those that must be read and written at least; FLOPs of
the output layer are those of its three products, without what is computed twice.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_common import describe, find_device, measure_ceilings, median_ms, write_results
from torch import Tensor

from pylm import ops

# Relative error of a whole tensor in the 2-norm. One rounding to bfloat16 is off by 0.2 % so; torch's own
# sequences of rounded operations by up to 1 %.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """One op at one size.

    Attributes:
        name: op and size, as the table has it.
        calls: implementation by name; "torch" is there, and gives what is right.
        inputs: those with gradients.
        forward_cost: bytes moved, or FLOPs where `by_flops`.
        both_cost: the same of forward and backward.
        by_flops: compare with the matmul ceiling.
    """

    name: str
    calls: dict[str, Callable[..., Any]]
    inputs: list[Tensor]
    forward_cost: float
    both_cost: float
    by_flops: bool = False


def _liger() -> dict[str, Callable[..., Any]]:
    """Return the functions of Liger-Kernel by our names; empty where it is not installed."""
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return {}
    return {
        "rms_norm": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
        "swiglu": LigerSiLUMulFunction.apply,
        "geglu": LigerGELUMulFunction.apply,
        "linear_cross_entropy": lambda h, w, t: LigerFusedLinearCrossEntropyFunction.apply(h, w, t)[0],
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def build_cases(device: torch.device, *, dry_run: bool) -> list[Case]:
    """Return the ops at the sizes of a Llama-3 8B layer with 8192 tokens, tiny for a dry run."""
    rows, dim, hidden, vocab = (24, 64, 96, 160) if dry_run else (8192, 4096, 14336, 128256)
    heads, key_heads, features = (4, 2, 16) if dry_run else (32, 8, 128)
    generator = torch.Generator(device).manual_seed(0)
    liger = _liger()

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(scale).bfloat16().requires_grad_()

    def case(
        name: str, op: Any, torch_op: Any, inputs: list[Tensor], passes: tuple[int, int], elements: int
    ) -> Case:
        calls = {"torch": torch_op, "pylm": op}
        if not dry_run:
            calls["torch.compile"] = torch.compile(torch_op, dynamic=False)
        if name in liger:
            calls["liger"] = liger[name]
        forward, backward = (2.0 * elements * count for count in passes)
        shape = " x ".join(str(n) for n in inputs[0].shape)
        return Case(f"{name} {shape}", calls, inputs, forward, forward + backward)

    cos, sin = ops.rope_cache(rows, features, device=device)
    targets = torch.randint(0, vocab, (rows,), generator=generator, device=device)
    norm = leaf(dim)
    cases = [
        case(
            "rms_norm", ops.rms_norm, lambda x, w: F.rms_norm(x, (dim,), w, 1e-6),
            [leaf(rows, dim), norm], (2, 3), rows * dim,
        ),
        case(
            "add_rms_norm", lambda x, r, w: ops.rms_norm(x, w, residual=r),
            lambda x, r, w: (F.rms_norm(x + r, (dim,), w, 1e-6), x + r),
            [leaf(rows, dim), leaf(rows, dim), norm], (4, 4), rows * dim,
        ),
        case(
            "swiglu", ops.swiglu, lambda g, u: F.silu(g) * u,
            [leaf(rows, hidden), leaf(rows, hidden)], (3, 5), rows * hidden,
        ),
        case(
            "swiglu_packed", ops.swiglu_packed, lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
            [leaf(rows, 2 * hidden)], (3, 5), rows * hidden,
        ),
        case(
            "geglu", ops.geglu, lambda g, u: F.gelu(g, approximate="tanh") * u,
            [leaf(rows, hidden), leaf(rows, hidden)], (3, 5), rows * hidden,
        ),
        case(
            "rope", lambda q, k: ops.rope(q, k, cos, sin),
            lambda q, k: (_rotate(q, cos, sin), _rotate(k, cos, sin)),
            [leaf(1, rows, heads, features), leaf(1, rows, key_heads, features)],
            (2, 2), rows * (heads + key_heads) * features,
        ),
    ]  # fmt: skip
    calls = {
        "torch": lambda h, w: F.cross_entropy((h @ w.T).float(), targets),
        "pylm": lambda h, w: ops.linear_cross_entropy(h, w, targets),
    }
    if not dry_run:
        calls["torch.compile"] = torch.compile(calls["torch"], dynamic=False)
    if "linear_cross_entropy" in liger:
        calls["liger"] = lambda h, w: liger["linear_cross_entropy"](h, w, targets)
    product = 2.0 * rows * dim * vocab
    inputs = [leaf(rows, dim), leaf(vocab, dim, scale=dim**-0.5)]
    name = f"linear_cross_entropy {rows} x {dim} x {vocab}"
    return [*cases, Case(name, calls, inputs, product, 3 * product, by_flops=True)]


def run_both(call: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Return outputs and gradients, for upstream gradients of one."""
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])
    return [*(y.detach() for y in outputs), *grads]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative error in the 2-norm over all tensors."""
    pairs = zip(actual, expected, strict=True)
    norm = torch.linalg.vector_norm
    return max(
        float(norm((a - b).float()) / norm(b.float(), dtype=torch.float32).clamp(min=1e-12)) for a, b in pairs
    )


def measure(
    case: Case, device: torch.device, ceilings: dict[str, float], rounds: int
) -> list[dict[str, Any]]:
    """Compare and time all implementations of a case."""
    expected, rows = run_both(case.calls["torch"], case.inputs), []
    ceiling = ceilings["matmul_flops_per_s" if case.by_flops else "copy_bytes_per_s"]
    for name, call in case.calls.items():
        row: dict[str, Any] = {"case": case.name, "implementation": name}
        rows.append(row)
        try:
            actual = run_both(call, case.inputs)
        except Exception as error:
            if name == "pylm":
                raise
            row["note"] = f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        row["error"] = largest_error(actual, expected)
        if not row["error"] <= TOLERANCE:
            row["note"] = "differs from torch: not timed"
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run_both(call, case.inputs)
            row["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before

        def forward(call: Callable[..., Any] = call) -> None:
            with torch.no_grad():
                call(*case.inputs)

        for part, cost, timed in (
            ("forward", case.forward_cost, forward),
            ("both", case.both_cost, lambda call=call: run_both(call, case.inputs)),
        ):
            row[f"{part}_ms"], row[f"{part}_iqr_ms"] = median_ms(timed, device, rounds=rounds)
            row[f"{part}_per_s"] = 1e3 * cost / row[f"{part}_ms"]
            row[f"{part}_share"] = row[f"{part}_per_s"] / ceiling
    return rows


def tabulate(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Format the rows for the Markdown table; ratios are times relative to pylm's in the same run."""
    table = [
        ["op", "by", "forward ms", "of ceiling", "both ms", "of ceiling", "both / pylm", "peak extra MiB"]
    ]
    ours = {row["case"]: row for row in rows if row["implementation"] == "pylm"}
    for row in rows:
        line = [row["case"], row["implementation"]]
        if "note" in row:
            table.append([*line, row["note"], "", "", "", "", ""])
            continue
        base = ours[row["case"]].get("both_ms")
        peak = row.get("peak_extra_bytes")
        for part in ("forward", "both"):
            line.append(f"{row[f'{part}_ms']:.3f} ± {row[f'{part}_iqr_ms'] / 2:.3f}")
            line.append(f"{100 * row[f'{part}_share']:.0f} %")
        line.append("" if base is None else f"{row['both_ms'] / base:.2f}")
        line.append("" if peak is None else f"{peak / 2**20:.0f}")
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each op on a GPU against its peers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for ops.json and ops.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    options = parser.parse_args()
    device = find_device(options.dry_run)
    ceilings = measure_ceilings(device, dry_run=options.dry_run)
    rows: list[dict[str, Any]] = []
    for case in build_cases(device, dry_run=options.dry_run):
        rows += measure(case, device, ceilings, rounds=3 if options.dry_run else 30)
    result = {"about": describe(device), "ceilings": ceilings, "rows": rows}
    write_results(options.out, "ops", result, tabulate(rows))
    wrong = [row["case"] for row in rows if row["implementation"] == "pylm" and "note" in row]
    if wrong:
        raise SystemExit(f"pylm differs from torch in: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
