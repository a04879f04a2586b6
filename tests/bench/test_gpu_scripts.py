"""The GPU benchmarks go through all their steps on the CPU, at tiny sizes."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pylm

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (there is none for macOS)"
)


BARE = """#!/bin/sh
# A Python with the packages of this one, but for pylm and pydantic.
PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{packages}" exec {python} -S "$@"
"""


def run(*arguments: str, python: str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(BENCH / "gpu.sh"), *arguments]
    environment |= variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bare")
    packages = folder / "packages"
    packages.mkdir()
    for place in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for path in place.iterdir():
            if path.suffix != ".pth" and "pylm" not in path.name and "pydantic" not in path.name:
                (packages / path.name).symlink_to(path)
    script = folder / "python"
    script.write_text(BARE.format(packages=packages, python=getattr(sys, "_base_executable", sys.executable)))
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def dry(
    bare_python: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the folder of a dry run of all phases, and what it printed."""
    out = tmp_path_factory.mktemp("dry")
    return out, run("--dry-run", "--out", str(out), python=bare_python)


@needs_triton
def test_dry_run(dry: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = dry
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pydantic is not there" in done.stdout
    files = {f"{name}.{kind}" for name in ("ops", "train", "tune") for kind in ("json", "md")}
    assert {path.name for path in out.iterdir()} == files | {"tests.txt", "summary.md"}
    # Only the tests that are to run on a GPU, in as many parts as there are processes.
    collected = re.match(r"collected (\d+) tests", (out / "tests.txt").read_text())
    parts = re.findall(r"^=+ (\d+) tests collected", (out / "tests.txt").read_text(), re.M)
    assert collected is not None
    assert int(collected[1]) == sum(int(part) for part in parts) > 100
    summary = (out / "summary.md").read_text()
    for line in ("tests: collected", "  rms_norm 24 x 64: ", "  pylm: ", "tuning: ", "all phases ended"):
        assert f"\n{line}" in summary
    assert done.stdout.endswith(f"all phases ended\nresults: {out}\n")


def test_dry_run_of_the_ops(dry: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out = dry[0]
    result = json.loads((out / "ops.json").read_text())
    cases = {row["case"].split()[0] for row in result["rows"]}
    assert cases == {
        "rms_norm", "add_rms_norm", "swiglu", "swiglu_packed", "geglu", "rope", "linear_cross_entropy",
        "linear_logprob", "moe_route", "moe_experts",
    }  # fmt: skip
    assert result["about"]["versions"]["pylm-llm"] == pylm.__version__
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
        if row["case"].startswith("moe_experts"):
            # Two products of 64 x 64 and 32 x 64 for two experts of each of 24 tokens, then their gradients.
            flops = 2 * 24 * 2 * (64 * 64 + 32 * 64)
            assert row["forward_flops_per_s"] == pytest.approx(1e3 * flops / row["forward_ms"])
            assert row["backward_flops_per_s"] == pytest.approx(2e3 * flops / row["backward_ms"])
    assert "| rms_norm 24 x 64 | pylm |" in (out / "ops.md").read_text()


def test_dry_run_of_a_training_step(
    dry: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = dry[0]
    result = json.loads((out / "train.json").read_text())
    plain, ours = result["rows"]
    assert [plain["variant"], ours["variant"]] == ["torch", "pylm"]
    assert ours["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert ours["losses"][-1] < ours["losses"][0]
    assert result["model"]["tokens_a_step"] == 3 * 16
    assert ours["tokens_per_s"] == pytest.approx(1e3 * 3 * 16 / ours["step_ms"])
    assert "| pylm |" in (out / "train.md").read_text()
    # What stands in for pydantic gave the model that pydantic gives.
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_train

    config = gpu_train.model_config(dry_run=True)
    assert config.model_dump().items() <= result["model"].items()


@needs_triton
def test_dry_run_of_tuning(dry: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out = dry[0]
    result = json.loads((out / "tune.json").read_text())
    rows = result["rows"]
    assert {row["kernel"].partition(".")[0] for row in rows} == {
        "swiglu", "rms_norm", "rope", "linear_logprob", "_grouped",
    }  # fmt: skip
    assert result["left_out"] == []
    for row in rows:
        assert row["best_ms"] == row["ms"][row["best"]] == min(row["ms"].values())
        assert row["ratio"] == pytest.approx(row["best_ms"] / row["ms"]["checked in"])
        assert row["ratio"] <= 1.0
    assert "| swiglu 6 x 96 | swiglu." in (out / "tune.md").read_text()


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
    # The import of torch alone takes longer than that.
    arguments = [str(BENCH / "gpu_ops.py"), "--dry-run", "--out", str(tmp_path), "--seconds", "0.2"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ops.json").read_text())
    assert (result["cases_left_out"], result["rows"]) == (12, [])
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_clock
    import gpu_ops

    calls = {"torch": double, "pylm": double, "other": double}
    case = gpu_ops.Case("double", calls, [torch.ones(4, requires_grad=True)], bytes_moved=(32, 32))
    device = torch.device("cpu")
    rows = list(gpu_ops.measure(case, device, gpu_ops.Ceilings(device, 2), 2, gpu_clock.Clock(-1.0)))
    assert ["both_ms" in row for row in rows] == [True, True, False]
    assert rows[2]["note"] == "the time was over: not timed"
    rows = list(gpu_ops.measure(case, device, gpu_ops.Ceilings(device, 2), 2, gpu_clock.Clock(60.0)))
    assert all("both_ms" in row for row in rows)


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def fail(*_: object) -> torch.Tensor:
    raise RuntimeError("out of | memory\nand more")


def run_main(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> str | int | None:
    """Run a program in this process; return what it ends with."""
    main = __import__(name).main
    monkeypatch.setattr(sys, "argv", [name, "--dry-run", *arguments])
    monkeypatch.setattr(sys.modules[name], "find_device", lambda _: torch.device("cpu"))
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return None


def test_failing_ops_are_rows_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_cases
    import gpu_ops

    def case(name: str, **calls: object) -> gpu_cases.Case:
        given = {"torch": double, "pylm": double, **calls}
        return gpu_cases.Case(name, given, [torch.ones(4, requires_grad=True)], bytes_moved=(32, 32))

    builders = [
        partial(case, "ours fails", pylm=fail, other=double),
        partial(case, "torch fails", torch=fail),
        partial(case, "ours differs", pylm=lambda x: x * 3),
        partial(fail, 7),
        partial(case, "peer fails", other=fail),
        partial(case, "fine"),
    ]
    monkeypatch.setattr(gpu_ops.Cases, "all", lambda _: builders)
    code = run_main(monkeypatch, "gpu_ops", "--out", str(tmp_path))
    assert code == "failed: ours fails (pylm), torch fails (torch), ours differs (pylm), fail(7,) (inputs)"
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    note = "fails: RuntimeError: out of / memory"
    assert [(row["case"], row["implementation"], row.get("note")) for row in rows] == [
        ("ours fails", "torch", None),
        ("ours fails", "pylm", note),
        ("ours fails", "other", None),
        ("torch fails", "torch", note),
        ("ours differs", "torch", None),
        ("ours differs", "pylm", "differs from torch by 0.500: not timed"),
        ("fail(7,)", "inputs", note),
        ("peer fails", "torch", None),
        ("peer fails", "pylm", None),
        ("peer fails", "other", note),
        ("fine", "torch", None),
        ("fine", "pylm", None),
    ]
    table = (tmp_path / "ops.md").read_text()
    assert f"| ours fails | pylm | {note} |" in table
    assert "| fine | pylm | 0." in table


def test_a_new_process_goes_on_where_the_gpu_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_cases
    import gpu_ops

    def case(name: str, ours: object) -> gpu_cases.Case:
        calls = {"torch": double, "pylm": ours, "other": double}
        return gpu_cases.Case(name, calls, [torch.ones(4, requires_grad=True)], bytes_moved=(32, 32))

    builders = [partial(case, "first", double), partial(case, "bad", fail), partial(case, "last", double)]
    monkeypatch.setattr(gpu_ops.Cases, "all", lambda _: builders)
    monkeypatch.setattr(gpu_ops, "is_lost", lambda _: True)
    assert run_main(monkeypatch, "gpu_ops", "--out", str(tmp_path)) == 75
    assert run_main(monkeypatch, "gpu_ops", "--out", str(tmp_path), "--go-on") == "failed: bad (pylm)"
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["first"] * 3 + ["bad"] * 2 + ["last"] * 3


def test_a_failing_variant_of_the_step_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_train

    monkeypatch.setattr(gpu_train, "torch_loss", fail)
    code = run_main(monkeypatch, "gpu_train", "--out", str(tmp_path))
    assert code == "failed: torch: fails: RuntimeError: out of / memory"
    plain, ours = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert plain == {"variant": "torch", "note": "fails: RuntimeError: out of / memory"}
    assert ours["step_ms"] > 0
    table = (tmp_path / "train.md").read_text()
    assert "| torch | fails: RuntimeError: out of / memory |" in table
    assert "| pylm | " in table


def test_no_variant_is_compiled_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_clock
    import gpu_train

    def measure(row: dict[str, object], *_: object, **__: object) -> None:
        row |= {"losses": [1.0], "step_ms": 1.0, "step_iqr_ms": 0.0, "tokens_per_s": 1.0, "flops_per_s": 1.0}

    monkeypatch.setattr(gpu_train, "measure", measure)
    config = gpu_train.model_config(dry_run=True)
    ceilings = {"copy_bytes_per_s": 1.0, "matmul_flops_per_s": 1.0}
    variants = ["torch", "torch, compiled", "pylm, compiled"]
    for seconds, left, is_timed in ((200.0, 85.0, False), (200.0, 95.0, True), (600.0, 145.0, False)):
        options = argparse.Namespace(seconds=seconds, dry_run=False, out=tmp_path)
        about = {"hardware": "", "versions": {}, "checkout": ""}
        result = {"about": about, "ceilings": ceilings, "bf16_peak_flops_per_s": None, "rows": []}
        clock = gpu_clock.Clock(left)
        assert gpu_train.measure_all(variants, result, config, torch.zeros(1, 17), options, clock) == []
        assert ["note" not in row for row in result["rows"]] == [True, is_timed, is_timed]


@needs_triton
def test_tuning_without_the_checked_in_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_tune

    from pylm.kernels import _autotune

    about = {"kernel": "swiglu._kernel", "names": ["checked in", "8 warps", "2 stages"]}
    row = gpu_tune.describe_choice(
        "x", _autotune.Choice(about, {"8 warps": 2.0, "2 stages": 1.0}, "2 stages")
    )
    assert (row["checked_in_ms"], row["ratio"], row["best"]) == (None, None, "2 stages")
    ms = {"checked in": 4.0, "8 warps": 2.0}
    other = gpu_tune.describe_choice("x", _autotune.Choice(about, ms, "8 warps"))
    assert (other["checked_in_ms"], other["ratio"], other["best"]) == (4.0, 0.5, "8 warps")
    nothing = gpu_tune.describe_choice("x", _autotune.Choice(about, {}, "checked in"))
    assert gpu_tune.tabulate([row, other, nothing])[1:] == [
        ["x", "swiglu._kernel", "does not fit", "1.0000", "", "2 stages"],
        ["x", "swiglu._kernel", "4.0000", "2.0000", "0.500", "8 warps"],
        ["x", "fails: no configuration of swiglu._kernel fits", "", "", "", ""],
    ]
    monkeypatch.setattr(gpu_tune, "cases", lambda *_, **__: {"bad": fail, "empty": lambda: lambda: None})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = run_main(monkeypatch, "gpu_tune", "--out", str(tmp_path))
    assert code == "failed: bad: fails: RuntimeError: out of / memory"


def test_a_slice_of_a_gpu_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_common

    device = torch.device("cuda", 0)
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA T4", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert gpu_common.bf16_peak(device) == peak


def test_packages_come_from_wheels(bare_python: str, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    about = "Metadata-Version: 2.1\nName: pydantic\nVersion: 2.7\nRequires-Dist: not-there\n"
    files = {
        "pydantic.py": "",
        "pydantic-2.7.dist-info/METADATA": about,
        "pydantic-2.7.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "pydantic-2.7.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheels / "pydantic-2.7-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    options = ("--phase", "build", "--dry-run", "--out", str(tmp_path / "out"))
    assert "pydantic is not there" in run(*options, python=bare_python).stdout
    done = run(*options, "--wheels", str(wheels), python=bare_python)
    assert done.returncode == 0, done.stderr
    assert "pydantic is not there" not in done.stdout
    (wheels / "x-1-cp20-none-any.whl").touch()
    done = run(*options, "--wheels", str(wheels), python=bare_python)
    assert done.returncode == 1
    assert f"not all wheels in {wheels} fit" in done.stderr


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
