"""Whole runs of a small recipe: killed, stage by stage or in one go, the result is the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from pylm.files import read_json
from pylm.train.metrics import read_metrics

RECIPE = Path(__file__).parent / "mini.toml"
PACKAGES = ("json", "email", "http", "logging")
STAGES = ("prepare", "tokenizer", "tokenize", "synthesize", "pretrain", "sft", "dpo", "rlvr", "eval")
TRAINED = ("pretrain", "sft", "dpo", "rlvr")
CLOCKS = {"elapsed_s", "rollout_s", "update_s"}


def command(name: str, out: Path, *overrides: str) -> list[str]:
    paths = [str(Path(sysconfig.get_paths()["stdlib"]) / package) for package in PACKAGES]
    return [
        sys.executable, "-m", "pylm", name, str(RECIPE), f"out={out}",
        f"prepare.sources.0.paths={json.dumps(paths)}", *overrides,
    ]  # fmt: skip


def pylm(name: str, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, out, *overrides), capture_output=True, text=True, check=False)


def without_clocks(value: object) -> object:
    """Leave out every measured time."""
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, object]:
    """Everything that a run leaves, bytes or values, but for times (which hidden files hold)."""
    found: dict[str, object] = {}
    for pattern in (
        "prepare/*.parquet", "prepare/*.json*", "tokenizer/*", "tokens/*", "tokens/heldout/*", "rows/*",
        "*/model/*",
    ):  # fmt: skip
        files = [x for x in folder.glob(pattern) if x.is_file() and not x.name.startswith(".")]
        found |= {str(x.relative_to(folder)): x.read_bytes() for x in files}
    found = {name: value for name, value in found.items() if not name.endswith("stage.json")}
    for stage in TRAINED:
        found[f"{stage}/metrics"] = without_clocks(read_metrics(folder / stage / "metrics.jsonl"))
        found[f"eval/{stage}"] = without_clocks(read_json(folder / "eval" / f"{stage}.json"))
    for stage in folder.glob("*/stage.json"):
        found[str(stage)[len(str(folder)) :]] = without_clocks(read_json(stage)["summary"])
    return found


def assert_same(actual: Path, expected: Path) -> None:
    left, right = results(actual), results(expected)
    assert left.keys() == right.keys()
    assert [name for name in right if left[name] != right[name]] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run in one go, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("run") / "unbroken"
    start = time.monotonic()
    done = pylm("run", folder)
    assert done.returncode == 0, done.stderr
    assert f"report: {folder / 'report.html'}" in done.stdout
    return folder, time.monotonic() - start


def test_a_run_leaves_every_stage_and_learns(unbroken: tuple[Path, float]) -> None:
    folder, _ = unbroken
    for stage in folder.glob("*/stage.json"):
        assert read_json(stage)["status"] == "complete"
    assert len(list(folder.glob("*/stage.json"))) == len(STAGES)
    for stage in ("pretrain", "sft"):
        losses = [x["loss"] for x in read_metrics(folder / stage / "metrics.jsonl") if "loss" in x]
        assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
    steps = read_metrics(folder / "rlvr" / "metrics.jsonl")
    assert any(x.get("loss") not in (None, 0.0) for x in steps)  # or the comparisons below say little


def test_stages_one_by_one_give_the_same(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    expected, _ = unbroken
    folder = tmp_path / "stages"
    early = pylm("sft", folder)
    assert early.returncode == 2
    assert early.stderr.count("\n") == 1
    assert "run `pylm pretrain` on this recipe first" in early.stderr
    for stage in STAGES:
        done = pylm(stage, folder)
        assert done.returncode == 0, done.stderr
    assert_same(folder, expected)
    again = pylm("run", folder)
    assert again.returncode == 0
    assert again.stderr.count(": complete\n") == len(STAGES)  # nothing was done twice


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_the_result_is_the_same(
    unbroken: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    expected, total_s = unbroken
    folder = tmp_path / "killed"
    rng = random.Random(seed)
    num_kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            command("run", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0.15, 0.6) * total_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # workers too, as when a machine goes down
            num_kills += 1
        process.communicate()
    done = pylm("run", folder)
    assert done.returncode == 0, done.stderr
    assert num_kills
    assert_same(folder, expected)
    left = [x for x in folder.rglob("*") if ".tmp" in x.name]
    assert not left


def test_ctrl_c_ends_with_one_line_and_can_be_resumed(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    expected, _ = unbroken
    folder = tmp_path / "interrupted"
    process = subprocess.Popen(
        command("run", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("pretrain: starts"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert (
        errors.splitlines()[-1]
        == "pylm: interrupted; the same command goes on from what was finished or last saved"
    )
    assert "Traceback" not in errors
    assert pylm("run", folder).returncode == 0
    assert_same(folder, expected)


def test_what_changed_is_redone_and_the_rest_is_not(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    assert pylm("run", folder, "pretrain.num_steps=2", "sft.num_epochs=0.2").returncode == 0
    done = pylm("run", folder, "pretrain.num_steps=2", "sft.num_epochs=0.3")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for stage in ("prepare", "tokenizer", "tokenize", "synthesize", "pretrain"):
        assert f"{stage}: complete" in lines
    for stage in ("sft", "dpo", "rlvr", "eval"):
        assert f"{stage}: starts" in lines


def test_refused_values_cost_no_finished_stage(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    recipe = (folder / "recipe.json").read_bytes()
    for name, override in (
        ("pretrain", "pretrain.model.vocab_size=100"),
        ("pretrain", "pretrain.mixture.stages=[{weights={absent=1}}]"),
        ("sft", "sft.template=chatml"),
    ):
        done = pylm(name, folder, override)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith("pylm: ")
        assert (folder / "recipe.json").read_bytes() == recipe
    assert_same(folder, unbroken[0])
    assert list(folder.glob(".*.previous")) == []
    # Changed, begun anew, and changed back: what was complete is there still.
    shutil.copytree(folder / "dpo", folder / ".dpo.previous")
    (folder / "dpo" / "stage.json").write_text('{"status": "running", "fingerprint": "of others"}')
    done = pylm("run", folder)
    assert done.returncode == 0, done.stderr
    assert "dpo: complete, as it was before the recipe changed" in done.stderr
    assert_same(folder, unbroken[0])


def test_a_folder_in_use_is_refused(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    folder = tmp_path / "busy"
    process = subprocess.Popen(
        command("run", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first stage has begun, so the folder is locked
    second = pylm("prepare", folder)
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert second.stderr == (
        f"pylm: {folder}: in use by another run (process {process.pid}); wait for it, "
        "or choose another folder\n"
    )


def test_a_model_answers_and_continues(unbroken: tuple[Path, float]) -> None:
    folder, _ = unbroken
    base = [sys.executable, "-m", "pylm"]
    text = [*base, "generate", str(folder / "pretrain" / "model"), "import os\n", "--max-new-tokens", "8"]
    first = subprocess.run(text, capture_output=True, text=True, check=True).stdout
    assert first.startswith("import os\n")
    assert subprocess.run(text, capture_output=True, text=True, check=True).stdout == first
    talk = [*base, "chat", str(folder), "--max-new-tokens", "8"]
    done = subprocess.run(talk, input="What is 2 + 3?\n\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
