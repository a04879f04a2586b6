"""The kernels through Triton's compiler, for GPUs that need not be there."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "kernels"
# Shared memory that a block may have (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}


def compile_kernels(*arguments: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    triton = pytest.importorskip("triton", reason="triton is not installed (there is none for macOS)")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this triton brings no ptxas")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))  # a cached kernel was not compiled
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        (90, "bfloat16"),
        pytest.param(80, "float16", marks=pytest.mark.slow),
        pytest.param(90, "float32", marks=pytest.mark.slow),
        pytest.param(90, "float64", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles(
    capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compile_kernels(str(capability), dtype, cache=tmp_path, monkeypatch=monkeypatch)
    written = {
        f"{path.stem}.{name}"
        for path in KERNELS.glob("*.py")
        for name in re.findall(r"@triton\.jit(?:\(.*\))?\ndef (\w+_kernel)\(", path.read_text())
    }
    assert written
    assert {row["kernel"] for row in rows} == written
    for row in rows:
        assert row["has_cubin"]
        assert row["shared_bytes"] <= SHARED_BYTES[capability]


def test_other_lengths_compile_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1, 2, 3, 16, 17, 128, 1000, 4096]
    rows = compile_kernels("90", "bfloat16", *map(str, lengths), cache=tmp_path, monkeypatch=monkeypatch)
    first = rows[: len(rows) // len(lengths)]
    assert {row["hash"] for row in rows} == {row["hash"] for row in first}


def test_rows_of_odd_lengths_are_moved_16_bytes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compile_kernels("90", "bfloat16", "odd", cache=tmp_path, monkeypatch=monkeypatch)
    assert [row["kernel"] for row in rows] == [
        "_logits._row_kernel",
        "linear_logprob._gradient_kernel",
        "_logits._row_kernel",
        "linear_cross_entropy._scale_kernel",
        "swiglu._run_forward_kernel",
        "swiglu._run_backward_kernel",
    ]
    wide = [row["accesses"].count("v4.b32") for row in rows]
    # Of a row there is one target, its logit, statistics, and what comes from upstream.
    assert all(len(row["accesses"]) - n <= 8 <= n for row, n in zip(rows[:3], wide[:3], strict=True))
    # All programs of a run but the last: as many float32 as 8 loads take, and one access for each tensor.
    assert wide[3:] == [8 + 4, 3, 5]
