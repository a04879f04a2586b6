"""What the GPU benchmarks share: the device, times, the ceilings, the tables."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pylm

# Dense bfloat16 peaks in FLOP/s, from NVIDIA's data sheets (without sparsity); the first match counts.
BF16_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
# As many rounds as fit, so that calls of 100 ms do not take the time of all others.
_LEAST_ROUNDS, _ROUNDS_MS = 5, 500.0
_FLUSH_BYTES = 256 << 20  # more than the L2 cache of any of them


def find_device(dry_run: bool) -> torch.device:
    """Return the GPU, or the CPU for a dry run; end with one line where there is neither."""
    if dry_run:
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU, and torch sees none; --dry-run tries it on the CPU")
    return torch.device("cuda", torch.cuda.current_device())


def bf16_peak(device: torch.device) -> float | None:
    """Return the GPU's dense bfloat16 peak in FLOP/s; None for a slice of one, or where no table has it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if "MIG" in name.split():
        return None
    return next((peak for key, peak in BF16_PEAKS.items() if key in name), None)


def median_ms(call: Callable[[], object], device: torch.device, *, rounds: int) -> tuple[float, float]:
    """Time a call `rounds` times after three warm-ups; where that takes half a second, only 5 times or more.

    On a GPU between CUDA events, the L2 cache emptied before each and the GPU kept busy until the host
    has queued the call, so that what is timed is the GPU's work and not the host's.

    Returns:
        The median and the distance between the quartiles, in milliseconds.
    """
    for _ in range(3 if device.type == "cuda" else 1):
        call()
    times = []
    if device.type != "cuda":
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    else:
        flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
        while len(times) < rounds and (len(times) < _LEAST_ROUNDS or sum(times) < _ROUNDS_MS):
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(10_000_000)  # about 5 ms: longer than any call takes the host
            start_event.record()
            call()
            end_event.record()
            end_event.synchronize()
            times.append(start_event.elapsed_time(end_event))
    quartiles = statistics.quantiles(times, n=4)
    return statistics.median(times), quartiles[2] - quartiles[0]


def measure_ceilings(device: torch.device, *, dry_run: bool) -> dict[str, float]:
    """Measure what this machine copies (bytes read and written a second) and multiplies (FLOP/s)."""
    size, side, rounds = (1 << 20, 128, 3) if dry_run else (1 << 30, 8192, 30)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy_ms, _ = median_ms(lambda: target.copy_(source), device, rounds=rounds)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    matmul_ms, _ = median_ms(lambda: a @ b, device, rounds=rounds)
    return {"copy_bytes_per_s": 2e3 * size / copy_ms, "matmul_flops_per_s": 2e3 * side**3 / matmul_ms}


def describe(device: torch.device) -> dict[str, Any]:
    """Return hardware, versions and commit."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        checkout = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        checkout = ""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    # What was imported: it need not be installed.
    versions["pylm-llm"] = pylm.__version__
    for name in ("triton", "liger-kernel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    hardware = platform.processor() or platform.machine()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    return {"hardware": hardware, "versions": versions, "checkout": checkout or "no git"}


def describe_error(error: Exception) -> str:
    """Return an error as a note of one line."""
    lines = str(error).splitlines() or [""]
    return f"fails: {type(error).__name__}: {lines[0][:160]}".replace("|", "/")


def is_lost(device: torch.device) -> bool:
    """Return whether this process can use the GPU no more: after a bad access all later calls fail too."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is whole, or as it was, when the program is stopped meanwhile."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def write_results(
    folder: Path, name: str, result: dict[str, Any], table: list[list[str]], *, show: bool = True
) -> None:
    """Write NAME.json and NAME.md, and print the latter; the first row of the table is its head."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    about = result["about"]
    versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
    lines = [f"# {name}", "", f"{about['hardware']}; {versions}; commit {about['checkout']}", ""]
    if "ceilings" in result:
        ceilings = result["ceilings"]
        lines += [
            f"Measured in this run: copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, "
            f"bfloat16 matmul {ceilings['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s.",
            "",
        ]
    lines += ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
    text = "\n".join(lines) + "\n"
    replace_text(folder / f"{name}.md", text)
    if show:
        print(text, flush=True)
