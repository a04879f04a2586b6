"""The summary of a run on a GPU: what counts as failed, which goals are missed."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("gpu_summary")


TESTS = """collected 8 tests
tests/ops/test_a.py::test_x[a b] PASSED    [ 14%]
tests/ops/test_a.py::test_x[c] PASSED      [ 28%]
tests/ops/test_a.py::test_f FAILED         [ 42%]
tests/ops/test_a.py::test_e[a - b] ERROR   [ 57%]
tests/ops/test_a.py::test_late PASSED      [ 71%]
tests/ops/test_a.py::test_late ERROR       [ 71%]
tests/ops/test_a.py::test_s SKIPPED (needs two GPUs) [ 85%]
tests/ops/test_a.py::test_s2 SKIPPED (n...) [100%]
tests/ops/test_a.py::test_hangs[d e]\x20
ERROR    root:test_a.py:3 a message that was logged
SKIPPED [2] tests/ops/test_a.py:16: needs two GPUs
SKIPPED [1] tests/ops/test_b.py:9: needs 70 GB of free GPU memory
FAILED tests/ops/test_a.py::test_f - assert 0
ERROR tests/ops/test_a.py::test_late - RuntimeError
ERROR tests/ops/test_b.py
"""


def test_tests(summary: Any) -> None:
    assert summary.summarize_tests(TESTS) == [
        "tests: 2 passed, 4 failed, 2 skipped, 1 did not end",
        "  failed: tests/ops/test_a.py::test_f",
        "  failed: tests/ops/test_a.py::test_e[a - b]",
        "  failed: tests/ops/test_a.py::test_late",
        "  failed: tests/ops/test_b.py",
        "  began and did not end: tests/ops/test_a.py::test_hangs[d e]",
        "  skipped: 2 x needs two GPUs",
        "  skipped: 1 x needs 70 GB of free GPU memory",
    ]
    many = "".join(f"tests/a.py::test_{i} FAILED\n" for i in range(20))
    assert len(summary.summarize_tests(many)) == 1 + 12 + 1


def row(case: str, implementation: str, **figures: object) -> dict[str, object]:
    return {"case": case, "implementation": implementation, **figures}


def test_ops_and_their_goals(summary: Any) -> None:
    norm, loss = "rms_norm 8192 x 4096", "linear_cross_entropy 8192 x 4096 x 151936"
    experts, few = "moe_experts 32768 x 2048 x 768, 8 of 128", "rms_norm 16 x 4096"
    shares = {"forward_share": 0.96, "backward_share": 0.894, "both_share": 0.92}
    flops = {"forward_flops_per_s": 520e12, "backward_flops_per_s": 449e12}
    result = {
        "ceilings": {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 700e12},
        "cases_left_out": 3,
        "rows": [
            row(norm, "torch", both_ms=2.0),
            row(norm, "pylm", both_ms=1.0, **shares),
            row(norm, "torch.compile", both_ms=1.25),
            row(norm, "liger", note="fails: RuntimeError: x"),
            row(loss, "torch", both_ms=60.0),
            row(loss, "pylm", both_ms=48.0, forward_share=0.9, both_share=0.88, peak_extra_bytes=8 << 30),
            row(loss, "torch.compile", note="the time was over: not timed"),
            row(experts, "pylm", both_ms=1.0, **flops),
            row(few, "pylm", both_ms=1.0, host_us=15.2),
            row("rope 1", "torch", note="fails: OutOfMemoryError: y"),
        ],
    }
    assert summary.summarize_ops(result) == [
        "ops (copy 3000 GB/s, matmul 700 TFLOP/s; time / best peer; reached/goal):",
        f"  {norm}: 0.80 torch.compile; forward 96.0/95 %, backward 89.4/90 % MISSED",
        f"  {loss}: 0.80 torch; forward 90 %, both 88.0/87 %, 8.0/7 GiB MISSED",
        f"  {experts}: no peer; forward 520/500 TFLOP/s, backward 449/450 TFLOP/s MISSED",
        f"  {few}: no peer; host 15.2/15 us MISSED",
        "  rope 1: torch fails: OutOfMemoryError: y",
        "  3 cases left out: the time was over",
        "  not timed for lack of time: torch.compile 1 x",
        "  failing peers: liger 1 x",
    ]


def test_goals_are_of_sizes_that_are_timed(summary: Any) -> None:
    # The names are made of the sizes, of which only small ones can be built here.
    text = (BENCH / "gpu_cases.py").read_text()
    for name in summary.GOALS:
        numbers = [part for part in name.replace(",", " ").replace("+", " ").split() if part.isdigit()]
        assert all(number in text or str(int(number) // 2) in text for number in numbers), name


def test_steps_and_tuning(summary: Any) -> None:
    figures = {"step_ms": 100.0, "tokens_per_s": 5e4, "flops_per_s": 500e12, "peak_bytes": 3 << 30}
    result = {
        "bf16_peak_flops_per_s": 1000e12,
        "rows": [{"variant": name, **figures} for name in ("torch", "pylm")]
        + [{"variant": "x", "note": "no"}],
    }
    assert summary.summarize_train(result)[1:] == [
        "  torch: 100.0 ms, 50000 tokens/s, MFU 50.0 %, 3.0 GiB",
        "  pylm: 100.0 ms, 50000 tokens/s, MFU 50.0 % MISSED, 3.0 GiB",
        "  x: no",
    ]
    result["bf16_peak_flops_per_s"] = None
    assert summary.summarize_train(result)[2] == "  pylm: 100.0 ms, 50000 tokens/s, peak unknown, 3.0 GiB"
    rows = [{"case": "x", "kernel": "k", "best": "8 warps", "ratio": ratio} for ratio in (1.0, 0.9, None)]
    tuned = {"rows": [*rows, {"case": "y", "note": "fails: E"}], "left_out": ["z"]}
    assert summary.summarize_tuning(tuned) == [
        "tuning: 3 kernels, 2 gain 2 % or more",
        "  x, k: 0.900 with 8 warps",
        "  x, k: checked in does not fit with 8 warps",
        "  y: fails: E",
        "  left out: z",
    ]


def test_a_folder_that_lacks_everything(summary: Any, tmp_path: Path) -> None:
    lines = summary.summarize(tmp_path)
    assert lines[0] == "tests: none were run"
    assert len(lines) == 4
    about = {"hardware": "NVIDIA H200", "versions": {"torch": "2"}, "checkout": "abc"}
    (tmp_path / "tune.json").write_text(json.dumps({"about": about, "rows": []}))
    assert summary.summarize(tmp_path)[:2] == [
        "NVIDIA H200; torch 2; commit abc",
        "The goals are those on an H100, which this is not.",
    ]
