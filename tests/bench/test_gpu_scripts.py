"""The GPU benchmarks go through all their steps on the CPU, at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def run(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(BENCH / "gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_dry_run_of_the_ops(tmp_path: Path) -> None:
    done = run("--phase", "ops", "--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ops.json").read_text())
    cases = {row["case"].split()[0] for row in result["rows"]}
    assert cases == {
        "rms_norm", "add_rms_norm", "swiglu", "swiglu_packed", "geglu", "rope", "linear_cross_entropy",
        "linear_logprob", "moe_route", "moe_experts",
    }  # fmt: skip
    for row in result["rows"]:
        assert "note" not in row
        assert row["both_ms"] > 0
        # The share of the ceiling that was measured in the same run.
        ceiling = row["ceiling_ms"]
        assert ceiling["both"] == pytest.approx(ceiling["forward"] + ceiling["backward"])
        for part in ("forward", "both"):
            assert row[f"{part}_share"] == pytest.approx(ceiling[part] / row[f"{part}_ms"])
        assert ("backward_ms" in row) == (not row["case"].startswith("linear_cross_entropy"))
        assert ("host_us" in row) == (row["case"] == "rms_norm 24 x 64")
    assert "| rms_norm 24 x 64 | pylm |" in (tmp_path / "ops.md").read_text()


def test_dry_run_of_a_training_step(tmp_path: Path) -> None:
    done = run("--phase", "train", "--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "train.json").read_text())
    plain, ours = result["rows"]
    assert [plain["variant"], ours["variant"]] == ["torch", "pylm"]
    assert ours["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert ours["losses"][-1] < ours["losses"][0]
    assert result["model"]["tokens_a_step"] == 3 * 16
    assert ours["tokens_per_s"] == pytest.approx(1e3 * 3 * 16 / ours["step_ms"])
    assert "| pylm |" in (tmp_path / "train.md").read_text()


def test_dry_run_of_tuning(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed (there is none for macOS)")
    done = run("--phase", "tune", "--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "tune.json").read_text())["rows"]
    assert {row["kernel"].partition(".")[2] for row in rows} == {
        "_forward_kernel", "_backward_kernel", "_rope_kernel", "_gradient_kernel", "_combine_kernel",
    }  # fmt: skip
    for row in rows:
        assert row["best_ms"] == row["ms"][row["best"]] == min(row["ms"].values())
        assert row["ratio"] == pytest.approx(row["best_ms"] / row["ms"]["checked in"])
        assert row["ratio"] <= 1.0
    assert "| swiglu 6 x 96 | swiglu._forward_kernel |" in (tmp_path / "tune.md").read_text()


def test_the_plain_variant_runs_no_op_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_train

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func.namespace)
            return func(*args, **(kwargs or {}))

    config = gpu_train.model_config(dry_run=True)
    batch = torch.zeros(1, config.max_seq_len + 1, dtype=torch.int64)
    with gpu_train.plain_torch(), Names() as names:
        gpu_train.build_step(config, gpu_train.torch_loss, batch, compiled=False)[0]()
    assert "aten" in names.seen
    assert "pylm" not in names.seen
    with Names() as names:
        gpu_train.build_step(config, gpu_train.pylm_loss, batch, compiled=False)[0]()
    assert "pylm" in names.seen


def test_what_does_not_fit_into_the_seconds_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(BENCH / "gpu_ops.py"), "--dry-run", "--out", str(tmp_path), "--seconds", "0"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ops.json").read_text())
    assert (result["cases_left_out"], result["rows"]) == (12, [])
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_common
    import gpu_ops

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    calls = {"torch": double, "pylm": double, "other": double}
    case = gpu_ops.Case("double", calls, [torch.ones(4, requires_grad=True)], bytes_moved=(32, 32))
    device = torch.device("cpu")
    rows = gpu_ops.measure(case, device, gpu_ops.Ceilings(device, 2), 2, gpu_common.Clock(-1.0))
    assert ["both_ms" in row for row in rows] == [True, True, False]
    assert rows[2]["note"] == "the time was over: not timed"
    rows = gpu_ops.measure(case, device, gpu_ops.Ceilings(device, 2), 2, gpu_common.Clock(60.0))
    assert all("both_ms" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "python", "line"),
    [
        (("--phase", "ops"), sys.executable, "torch sees no CUDA GPU here"),
        (
            ("--phase", "fly"),
            sys.executable,
            "--phase must be build, test, ops, train, tune or all, got 'fly'",
        ),
        (("--seconds", "soon"), sys.executable, "--seconds must be a whole number, got 'soon'"),
        (("--fast",), sys.executable, "unknown argument --fast"),
        (("--dry-run",), "no-such-python", "no no-such-python here"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], python: str, line: str) -> None:
    done = run(*arguments, python=python)
    assert done.returncode == 1
    assert done.stdout == ""
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["gpu_ops.py", "gpu_train.py", "gpu_tune.py"])
def test_the_scripts_need_a_gpu(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / script), "--out", str(tmp_path / "out")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "this benchmark needs a CUDA GPU, and torch sees none; --dry-run tries it on the CPU\n"
    )
    assert not (tmp_path / "out").exists()
