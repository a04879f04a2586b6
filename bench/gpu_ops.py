"""Each op on a GPU against torch, torch.compile and Liger-Kernel, in bfloat16.

    python bench/gpu_ops.py --out FOLDER [--seconds N] [--only NAME] [--go-on] [--dry-run]

Outputs and gradients of every competitor must agree before it is timed. `forward` runs without gradients,
`backward` alone on a graph that is kept, `both` is one after the other. The ceiling is a copy that moves as
many bytes as must be read and written at least, or the bare matrix products, timed in the same run. Host time
is what one call takes the CPU where the tensors are small. Each size has its share of the seconds: torch and
pylm are timed in any case, others while it lasts. The sizes that have goals come first.

What fails is a line of the table, the others go on, and the program ends with 1. Where the GPU refuses this
process from then on, it ends with 75, and `--go-on` takes up what is left in a new one.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import torch
import torch._functorch.config
from gpu_cases import Call, Case, Cases
from gpu_common import (
    describe,
    describe_error,
    find_device,
    is_lost,
    measure_ceilings,
    median_ms,
    write_results,
)
from torch import Tensor

# Relative error of a whole tensor in the 2-norm. One rounding to bfloat16 is off by 0.2 % so; torch's own
# sequences of rounded operations by up to 1 %.
TOLERANCE = 0.02
PARTS = ("forward", "backward", "both")
HOST_CALLS, HOST_ROUNDS = 200, 5
TIME_WAS_OVER = "the time was over: not timed"
# EX_TEMPFAIL: the rest wants a new process.
GO_ON = 75


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def run_both(call: Call, inputs: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """Return outputs and gradients."""
    outputs = _as_tuple(call(*inputs))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, upstream)]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative error in the 2-norm over all tensors."""
    pairs = zip(actual, expected, strict=True)
    norm = torch.linalg.vector_norm
    return max(
        float(norm((a - b).float()) / norm(b.float(), dtype=torch.float32).clamp(min=1e-12)) for a, b in pairs
    )


class Ceilings:
    """Times of copies of a number of bytes and of bare products, each measured once."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device, self._rounds = device, rounds
        self._copies: dict[int, float] = {}

    def copy_ms(self, bytes_moved: int) -> float:
        """Return the time of a copy that reads and writes so many bytes together."""
        if bytes_moved not in self._copies:
            source = torch.zeros(bytes_moved // 2, dtype=torch.int8, device=self._device)
            target = torch.empty_like(source)
            ms, _ = median_ms(lambda: target.copy_(source), self._device, rounds=self._rounds)
            self._copies[bytes_moved] = ms
        return self._copies[bytes_moved]

    def of(self, case: Case) -> dict[str, float]:
        """Return the ceiling of each part in milliseconds."""
        if case.products is not None:
            forward, backward = (median_ms(p, self._device, rounds=self._rounds)[0] for p in case.products)
        else:
            assert case.bytes_moved is not None
            forward, backward = (self.copy_ms(n) for n in case.bytes_moved)
        return {"forward": forward, "backward": backward, "both": forward + backward}


def host_us(call: Call, inputs: list[Tensor], device: torch.device) -> float:
    """Return what a call takes the host, the graph for the backward pass included."""
    best = math.inf
    for _ in range(HOST_ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            call(*inputs)
        best = min(best, (time.perf_counter() - start) / HOST_CALLS)
    return 1e6 * best


def time_parts(
    call: Call,
    case: Case,
    upstream: list[Tensor],
    limits: dict[str, float],
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """Return times, shares of the ceiling and the memory of an implementation."""
    figures: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run_both(call, case.inputs, upstream)
        figures["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before

    def forward() -> None:
        with torch.no_grad():
            call(*case.inputs)

    timed: dict[str, Call] = {"forward": forward, "both": lambda: run_both(call, case.inputs, upstream)}
    if case.separate:
        kept = _as_tuple(call(*case.inputs))
        timed["backward"] = lambda: torch.autograd.grad(kept, case.inputs, upstream, retain_graph=True)
    for part, function in timed.items():
        ms, figures[f"{part}_iqr_ms"] = median_ms(function, device, rounds=rounds)
        figures[f"{part}_ms"], figures[f"{part}_share"] = ms, limits[part] / ms
        if case.flops is not None:
            flops = dict(zip(PARTS, (*case.flops, sum(case.flops)), strict=True))[part]
            figures[f"{part}_flops_per_s"] = 1e3 * flops / ms
    if case.host:
        figures["host_us"] = host_us(call, case.inputs, device)
    return figures


def measure(
    case: Case, device: torch.device, ceilings: Ceilings, rounds: int, clock: gpu_clock.Clock
) -> Iterator[dict[str, Any]]:
    """Compare and time the implementations of a case in turn, those of others only while there is time."""
    generator = torch.Generator(device).manual_seed(1)
    try:
        with torch.no_grad():
            outputs = _as_tuple(case.calls["torch"](*case.inputs))
        upstream = [torch.randn(y.shape, generator=generator, device=device).to(y.dtype) for y in outputs]
        del outputs
        expected = run_both(case.calls["torch"], case.inputs, upstream)
        limits = ceilings.of(case)
    except Exception as error:
        yield {"case": case.name, "implementation": "torch", "note": describe_error(error)}
        return
    for name, call in case.calls.items():
        row: dict[str, Any] = {"case": case.name, "implementation": name, "ceiling_ms": limits}
        if name not in ("torch", "pylm") and clock.left() <= 0.0:
            yield row | {"note": TIME_WAS_OVER}
            continue
        try:
            row["error"] = largest_error(run_both(call, case.inputs, upstream), expected)
            if row["error"] <= TOLERANCE:
                row |= time_parts(call, case, upstream, limits, device, rounds)
            else:
                row["note"] = f"differs from torch by {row['error']:.3f}: not timed"
        except Exception as error:
            row["note"] = describe_error(error)
        yield row


def tabulate(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Format the rows for the Markdown table; ratios are times relative to pylm's in the same run."""
    table = [["op", "by"]]
    for part in PARTS:
        table[0] += [f"{part} ms", "of ceiling"]
    table[0] += ["both / pylm", "peak extra MiB", "host us"]
    ours = {row["case"]: row.get("both_ms") for row in rows if row["implementation"] == "pylm"}
    for row in rows:
        line = [row["case"], row["implementation"]]
        table.append(line)
        if "note" in row:
            line += [row["note"], *[""] * (len(table[0]) - 3)]
            continue
        for part in PARTS:
            if f"{part}_ms" in row:
                line += [f"{row[f'{part}_ms']:.3f} ± {row[f'{part}_iqr_ms'] / 2:.3f}"]
                line += [f"{100 * row[f'{part}_share']:.0f} %"]
            else:
                line += ["", ""]
        base, peak = ours.get(row["case"]), row.get("peak_extra_bytes")
        line.append("" if base is None else f"{row['both_ms'] / base:.2f}")
        line.append("" if peak is None else f"{peak / 2**20:.0f}")
        line.append(f"{row['host_us']:.0f}" if "host_us" in row else "")
    return table


def describe_case(rows: list[dict[str, Any]], seconds: float) -> str:
    """Return a line about a case that has been timed."""
    ours = next((row for row in rows if row["implementation"] == "pylm"), rows[0])
    if "note" in ours:
        return f"{ours['case']}: {ours['implementation']} {ours['note']}"
    shares = ", ".join(
        f"{part} {100 * ours[f'{part}_share']:.0f} %" for part in PARTS if f"{part}_ms" in ours
    )
    peers = {row["implementation"]: row["both_ms"] for row in rows if row is not ours and "note" not in row}
    ratios = ", ".join(f"{ours['both_ms'] / ms:.2f} of {name}" for name, ms in peers.items())
    return f"{ours['case']}: {shares} of the ceiling; time {ratios or 'of no peer'}; {seconds:.0f} s"


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Return what failed, but for the peers, which may."""
    return [
        f"{row['case']} ({row['implementation']})"
        for row in rows
        if row["implementation"] in ("inputs", "torch", "pylm") and "note" in row
    ]


def measure_all(
    builders: list["partial[Case]"],
    result: dict[str, Any],
    options: argparse.Namespace,
    device: torch.device,
    clock: gpu_clock.Clock,
) -> None:
    """Time all cases while there is time, and write each row when it is there."""
    rounds = 3 if options.dry_run else 20
    ceilings, rows = Ceilings(device, rounds), result["rows"]

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        write_results(options.out, "ops", result, tabulate(rows), show=False)
        if "note" in row and is_lost(device):
            print(f"{row['case']}: {row['implementation']} {row['note']}", flush=True)
            raise SystemExit(GO_ON)

    for i in range(result["cases_begun"], len(builders)):
        if clock.left() <= 0.0:
            print(f"the time was over: {len(builders) - i} cases left out", flush=True)
            result["cases_left_out"] = len(builders) - i
            break
        # Twice the share of a case, as most take less; what is left over goes to those behind it.
        share = gpu_clock.Clock(2.0 * clock.left() / (len(builders) - i))
        start, first, build, case = time.perf_counter(), len(rows), builders[i], None
        result["cases_begun"] = i + 1
        try:
            case = build()
        except Exception as error:
            name = f"{build.func.__name__}{build.args}"
            record({"case": name, "implementation": "inputs", "note": describe_error(error)})
        if case is not None and options.only in case.name:
            torch.compiler.reset()
            for row in measure(case, device, ceilings, rounds, share):
                record(row)
        if len(rows) > first:
            print(describe_case(rows[first:], time.perf_counter() - start), flush=True)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each op on a GPU against its peers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for ops.json and ops.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=570.0, help="that it may take")
    parser.add_argument("--only", default="", help="a part of the names of the cases to time")
    parser.add_argument("--go-on", action="store_true", help="after the cases that are in ops.json")
    options = parser.parse_args()
    clock = gpu_clock.Clock(options.seconds, since=gpu_clock.STARTED)
    device = find_device(options.dry_run)
    # A graph that is kept may not give its buffers away.
    torch._functorch.config.donated_buffer = False
    overall = measure_ceilings(device, dry_run=options.dry_run)
    rows, begun = [], 0
    if options.go_on:
        before = json.loads((options.out / "ops.json").read_text())
        rows, begun = before["rows"], before["cases_begun"]
    result = {"about": describe(device), "ceilings": overall, "cases_begun": begun, "rows": rows}
    measure_all(Cases(device, dry_run=options.dry_run).all(), result, options, device, clock)
    write_results(options.out, "ops", result, tabulate(rows))
    if failed := failures(rows):
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
