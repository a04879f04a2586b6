"""How gpu.sh goes through its phases, whatever they end with; a script plays Python, torch and pytest."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="timeout, flock and nproc are those of Linux")

# Notes what it is called with, says what it is told to, and runs nothing but the summary.
FAKE = """#!/bin/bash
case $1 in
  -) case $(cat) in *get_device_name*) echo Fake-GPU ;; esac; exit 0 ;;
  bench/gpu_summary.py) PYTHONPATH='' exec {python} "$@" ;;
  bench/*)
    name=${{1#bench/gpu_}}
    echo "${{name%.py}} ${{*:2}}" >> {folder}/calls
    codes={folder}/${{name%.py}}
    [ -s "$codes" ] || exit 0
    code=$(head -n 1 "$codes")
    sed -i 1d "$codes"
    exit "$code" ;;
esac
case "$*" in
  *--collect-only*) cat {folder}/collected; exit "$(cat {folder}/collecting)" ;;
esac
own=()
for argument; do case $argument in tests/*::*) own+=("$argument") ;; esac; done
(
  flock 9
  printf 'tests %s %s' "$TORCHINDUCTOR_COMPILE_THREADS" "$PYTHONSAFEPATH" >> {folder}/calls
  printf '|%s' "${{own[@]}}" >> {folder}/calls
  echo >> {folder}/calls
) 9> {folder}/lock
for id in "${{own[@]}}"; do
  case $id in
    *fails*) echo "$id FAILED"; echo "FAILED $id - AssertionError" ;;
    *hangs*) echo "$id " ;;
    *) echo "$id PASSED" ;;
  esac
done
case "${{own[*]}}" in *hangs*) exit 124 ;; *fails*) exit 1 ;; esac
"""


class Machine:
    """A machine with a GPU, as gpu.sh sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.python = folder / "python"
        self.python.write_text(FAKE.format(python=sys.executable, folder=folder))
        self.python.chmod(0o755)
        self.collect(["tests/ops/test_x.py::test_one", "tests/ops/test_x.py::test_two"])

    def collect(self, lines: list[str], code: int = 0) -> None:
        (self.folder / "collected").write_text("\n".join(lines) + "\n")
        (self.folder / "collecting").write_text(str(code))

    def end_with(self, name: str, *codes: int) -> None:
        (self.folder / name).write_text("".join(f"{code}\n" for code in codes))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(self.python), "CC": "sh"}
        command = ["bash", str(ROOT / "bench/gpu.sh"), "--out", str(self.out), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_test_runs_once_and_large_ones_by_themselves(machine: Machine) -> None:
    names = [f"tests/kernels/test_x.py::test_{i // 12}[name {i % 12}-dtype]" for i in range(150)]
    large = [f"tests/kernels/test_x.py::test_past_32_bits_{i}" for i in range(5)]
    machine.collect([*names[:70], *large, *names[70:], "155/200 tests collected (45 deselected) in 4.2s"])
    done = machine.run()
    assert done.returncode == 0, done.stdout + done.stderr
    calls = machine.calls()
    parts = [call.split("|")[1:] for call in calls if call.startswith("tests 2 1|")]
    assert sorted(name for part in parts for name in part) == sorted(names + large)
    assert [part for part in parts if set(part) & set(large)] == [large]
    assert len(parts) == 1 + min(8, max(1, len(os.sched_getaffinity(0)) // 2))
    assert [call.split()[0] for call in calls if not call.startswith("tests")] == ["ops", "train", "tune"]
    assert "\ntests: 155 passed, 0 failed, 0 skipped\n" in (machine.out / "summary.md").read_text()
    assert done.stdout.endswith(f"all phases ended\nresults: {machine.out}\n")
    assert {path.name for path in machine.out.iterdir()} == {"tests.txt", "summary.md"}


def test_what_fails_does_not_stop_the_rest(machine: Machine) -> None:
    broken = ["tests/ops/test_x.py::test_one", "tests/ops/test_x.py::test_fails", ""]
    broken += ["E   ModuleNotFoundError: No module named 'nope'", "ERROR tests/ops/test_y.py"]
    machine.collect(broken, 2)
    machine.end_with("ops", 3)
    machine.end_with("train", 124)
    done = machine.run()
    assert done.returncode == 1
    assert [call.split()[0] for call in machine.calls()][-3:] == ["ops", "train", "tune"]
    note = "failed: test ops; cut off, what is written counts: train"
    assert done.stdout.endswith(f"{note}\nresults: {machine.out}\n")
    assert "== train was cut off after" in done.stdout
    assert "ERROR tests/ops/test_y.py" in done.stdout
    summary = (machine.out / "summary.md").read_text()
    for line in (
        "tests: 1 passed, 2 failed, 0 skipped",
        "  failed: tests/ops/test_x.py::test_fails",
        "  failed: tests/ops/test_y.py",
        note,
    ):
        assert f"\n{line}\n" in summary


def test_a_hanging_test_is_named(machine: Machine) -> None:
    machine.collect([f"tests/ops/test_x.py::test_{name}" for name in ("one", "hangs")])
    done = machine.run("--phase", "test")
    assert done.returncode == 1
    assert done.stdout.endswith(f"cut off, what is written counts: test\nresults: {machine.out}\n")
    summary = (machine.out / "summary.md").read_text()
    assert "  began and did not end: tests/ops/test_x.py::test_hangs\n" in summary
    assert ", 1 did not end\n" in summary
    # What failed before the time was over is a failure.
    machine.collect([f"tests/ops/test_x.py::test_{name}" for name in ("fails", "one", "two", "hangs")])
    assert f"\nfailed: test\nresults: {machine.out}\n" in machine.run("--phase", "test").stdout


def test_nothing_collected(machine: Machine) -> None:
    machine.collect(["ImportError: no torch"], 4)
    done = machine.run("--phase", "test")
    assert done.returncode == 1
    assert "collecting the tests failed (4)" in done.stderr
    assert "phase test found no test" in done.stderr
    assert "ImportError: no torch" in (machine.out / "tests.txt").read_text()


def test_a_lost_gpu_takes_a_new_process(machine: Machine) -> None:
    machine.end_with("ops", 75, 75, 1)
    done = machine.run("--phase", "ops")
    assert done.returncode == 1
    assert [call.count("--go-on") > 0 for call in machine.calls()] == [False, True, True]
    assert f"\nfailed: ops\nresults: {machine.out}\n" in done.stdout


@pytest.mark.parametrize(("seconds", "margin"), [(400, 30), (60, 15)])
def test_programs_are_told_to_end_before_they_are_ended(machine: Machine, seconds: int, margin: int) -> None:
    machine.run("--phase", "ops", "--seconds", str(seconds))
    told = re.search(r"--seconds (\d+)", machine.calls()[0])
    assert told is not None
    assert seconds - margin - 12 <= int(told[1]) <= seconds - margin


def test_the_phases_share_the_seconds(machine: Machine) -> None:
    machine.run()
    told = {call.split()[0]: int(call.rpartition(" ")[2]) for call in machine.calls() if "--seconds" in call}
    # Nothing took time here, so each could have more than where the tests take their two minutes.
    assert told["ops"] > 180
    assert told["train"] > told["ops"]
    assert told["train"] < told["tune"] <= 480 - 8 - 30


def test_without_time_phases_are_left_out(machine: Machine) -> None:
    began = time.monotonic()
    done = machine.run("--seconds", "30")
    assert time.monotonic() - began < 30
    assert done.returncode == 0
    left_out = re.search(r"^left out, the time was over: (.*)$", done.stdout, re.M)
    assert left_out is not None
    assert left_out[1].split()[0] == "test"


def test_results_of_an_earlier_run_are_not_those_of_this(machine: Machine) -> None:
    machine.out.mkdir()
    (machine.out / "ops.json").write_text(json.dumps({"rows": []}))
    (machine.out / "tests.txt").write_text("tests/ops/test_old.py::test_old FAILED\n")
    done = machine.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ops: nothing was written" in done.stdout
    assert "test_old" not in (machine.out / "tests.txt").read_text()
