"""Starts of kernels on the CPU: Triton's launcher, against a libcuda that notes down what it is given."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", ["starts.py", "tuned_starts.py"])
def test_starts_launch_what_triton_would(file: str) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed (there is none for macOS)")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this triton brings no ptxas")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "oracles.fake_gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(TESTS / "kernels" / file)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
