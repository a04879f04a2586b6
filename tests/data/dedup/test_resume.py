"""Runs of deduplication that are killed, changed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dedup_corpora import contents, make_rows, write_jsonl, write_parquet

from pylm.data.dedup import (
    ExactDedupConfig,
    NearDedupConfig,
    SubstringDedupConfig,
    dedup_exact,
    dedup_near,
    dedup_substrings,
)
from pylm.data.executors import LocalPool
from pylm.errors import InputError

ALONE = LocalPool(1)
SMALL: dict[str, Any] = {"split_bytes": 4000, "num_partitions": 2}
WAYS: dict[str, tuple[Any, Any]] = {
    "near": (dedup_near, NearDedupConfig(**SMALL, threshold=0.7, ngram=2, verify_bytes=4000)),
    "exact": (dedup_exact, ExactDedupConfig(**SMALL)),
    "substring": (
        dedup_substrings,
        SubstringDedupConfig(split_bytes=12000, num_partitions=2, min_bytes=30, partition_bytes=8000),
    ),
}

PROGRAM = """
import os, signal, sys
from contextlib import contextmanager
sys.path[:0] = sys.argv[5:]
from pylm.data import storage
from pylm.data.executors import LocalPool
from test_resume import WAYS

name, out, fatal, workers = sys.argv[1:5]
published, real = 0, storage.publish

@contextmanager
def publish(path):
    global published
    published += 1
    with real(path) as temporary:
        yield temporary
        if published == int(fatal):
            os.kill(os.getpid(), signal.SIGKILL)

storage.publish = publish
if __name__ == "__main__":
    work, config = WAYS[name]
    with LocalPool(int(workers)) as execute:
        work([os.environ["CORPUS"]], out, config, execute=execute, keep_work=True)
"""


def command(name: str, out: Path, fatal: int, workers: int) -> list[str]:
    here = Path(__file__).resolve().parent
    return [
        sys.executable,
        "-c",
        PROGRAM,
        name,
        str(out),
        str(fatal),
        str(workers),
        str(here),
        str(here.parents[1]),
    ]


def corpus(folder: Path) -> Path:
    rows = make_rows(8, 25)
    write_parquet(rows[:60], folder, num_files=2, group=40)
    write_jsonl([row for row in rows[60:] if row["text"]], folder / "x.jsonl")
    return folder


def states(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


DESCRIPTIONS = {"dedup.json", "plan.json", "funnel.json", "dropped.jsonl", "report.json"}


def is_finished(path: str, there: dict[str, Any]) -> bool:
    """Whether the file is there that an item writes last."""
    place = Path(path)
    match place.parent.name:
        case "signed":
            return str(place.with_name(place.stem.split("-")[0] + ".json")) in there
        case "verdicts":
            return f"{path}.json" in there or f"{path.removesuffix('.json')}.json" in there
        case "documents" | "removed":
            return any(x.endswith(f"applied/{place.stem}.json") for x in there)
        case "copied":
            return False  # a split that is signed again is copied again
    if place.name in ("members.blocks", "copies.blocks", "direct.blocks"):
        return str(place.with_name("components.json")) in there
    return True


def moved(files: dict[str, bytes], old: Path, new: Path) -> dict[str, bytes]:
    """Contents as they would be in another folder, without what killed writers left of the stages."""
    return {
        k: v.replace(str(old).encode(), str(new).encode())
        for k, v in files.items()
        if not (k.startswith("work") and ".tmp-" in k)
    }


@pytest.mark.parametrize("name", WAYS)
def test_killed_while_any_file_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", str(corpus(tmp_path / "in")))
    work, config = WAYS[name]
    work([str(tmp_path / "in")], str(tmp_path / "plain"), config, execute=ALONE, keep_work=True)
    expected = contents(tmp_path / "plain")
    out, kills, fatal = tmp_path / "out", 0, 1
    while True:
        before = states(out)
        done = subprocess.run(command(name, out, fatal, 1), capture_output=True, text=True, check=False)
        after = states(out)
        # What was finished is not made again: only descriptions, and the plan of the last stage.
        again = {path for path in before if after.get(path) != before[path] and is_finished(path, before)}
        assert {Path(path).name for path in again} <= DESCRIPTIONS
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        fatal = kills % 8 + 3  # other files each time, and each run gets somewhere
    assert kills > 4
    assert moved(contents(out), out, tmp_path / "plain") == expected


STAGES = {
    "near": ["signed", "candidates", "members.blocks", "texts", "verdicts", "applied"],
    "substring": [
        "signed",
        "copies",
        "keys-0",
        "repeats-0",
        "keys-1",
        "contexts",
        "compared",
        "spans",
        "applied",
    ],
}


@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name in STAGES for stage in STAGES[name]])
def test_killed_with_workers_in_every_stage(
    name: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS", str(corpus(tmp_path / "in")))
    work, config = WAYS[name]
    work([str(tmp_path / "in")], str(tmp_path / "plain"), config, execute=ALONE, keep_work=True)
    out = tmp_path / "out"
    process = subprocess.Popen(command(name, out, 0, 2), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(out.glob(f"work/**/{stage}")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.returncode is None, "it ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    work([str(tmp_path / "in")], str(out), config, execute=ALONE, keep_work=True)
    assert moved(contents(out), out, tmp_path / "plain") == contents(tmp_path / "plain")


@pytest.mark.parametrize("name", WAYS)
def test_a_complete_result_is_left_alone(name: str, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    work, config = WAYS[name]
    report = work([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    assert not (tmp_path / "out" / "work").exists()
    before = states(tmp_path / "out")

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be done")

    assert work([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=refuse) == report
    assert states(tmp_path / "out") == before
    (tmp_path / "out" / "documents" / "00001.parquet").unlink()
    assert work([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE) == report
    assert before.keys() == states(tmp_path / "out").keys()


def test_changed_inputs_are_noticed_and_others_not_signed_again(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["near"]
    work([str(folder)], str(out), config, execute=ALONE, keep_work=True)
    before = states(out / "work" / "signed")
    write_parquet(make_rows(1, 10), tmp_path / "more", num_files=1, group=40)
    (tmp_path / "more" / "part-0.parquet").replace(folder / "part-1.parquet")
    work([str(folder)], str(out), config, execute=ALONE, keep_work=True)
    work([str(folder)], str(tmp_path / "plain"), config, execute=ALONE)
    after = states(out / "work" / "signed")
    assert set(before.items()) & set(after.items())
    assert len(after) > len(before)
    result = {k: v for k, v in contents(out).items() if not k.startswith("work")}
    assert result == contents(tmp_path / "plain")


@pytest.mark.parametrize("stop", range(0, 40, 6))
def test_another_recipe_never_takes_what_is_there(stop: int, tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"

    class StoppedError(Exception):
        pass

    seen = 0

    def progress(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > stop:
            raise StoppedError

    work, config = WAYS["near"]
    other = config.model_copy(update={"threshold": 0.4, "split_bytes": 1})
    work([str(folder)], str(out), config, execute=ALONE, keep_work=True)
    with pytest.raises(StoppedError):
        work([str(folder)], str(out), other, execute=ALONE, progress=progress, keep_work=True)
    work([str(folder)], str(tmp_path / "plain"), config, execute=ALONE)
    plain = contents(tmp_path / "plain")
    left = {k: v for k, v in contents(out).items() if not k.startswith("work")}
    assert left == plain or not (out / "report.json").exists(), "whole until something takes its place"
    work([str(folder)], str(out), config, execute=ALONE)
    assert contents(out) == plain


def test_a_file_that_changes_during_the_run(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == total:
            os.utime(folder / "part-0.parquet", ns=(1, 1))

    work, config = WAYS["near"]
    with pytest.raises(
        InputError, match=r"part-0.parquet: changed while it was read; run the same command again"
    ):
        work([str(folder)], str(tmp_path / "out"), config, execute=ALONE, progress=progress)
    work([str(folder)], str(tmp_path / "out"), config, execute=ALONE)


def test_damaged_files_of_the_stages_are_named(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["near"]

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == 0 and total:
            for path in out.glob("work/signed/*.blocks"):
                os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(InputError, match=r"\.blocks: damaged; remove it and run the same command again"):
        work([str(folder)], str(out), config, execute=ALONE, progress=progress)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["exact"]

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == 0:
            with pytest.raises(InputError, match="in use by another run"):
                work([str(folder)], str(out), config, execute=ALONE)

    work([str(folder)], str(out), config, execute=ALONE, progress=progress)


def test_what_is_refused_takes_no_result_away(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["near"]
    work([str(folder)], str(out), config, execute=ALONE)
    before = contents(out)
    (tmp_path / "bad.jsonl").write_text("no json\n" * 9)
    other = config.model_copy(update={"threshold": 0.4})
    exact, exact_config = WAYS["exact"]
    for call, message in (
        (lambda: work([str(tmp_path / "bad.jsonl")], str(out), config, execute=ALONE), "no documents"),
        (lambda: work([str(folder)], str(out), other, execute=ALONE, dry_run=True), "a dry run would take"),
        (
            lambda: exact([str(folder)], str(out), exact_config, execute=ALONE),
            "a result of `pylm dedup near`",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
        assert {k: v for k, v in contents(out).items() if not k.startswith("work")} == before


def test_lists_that_are_gone_are_made_again(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["near"]
    other = config.model_copy(update={"threshold": 0.4})
    for recipe in (config, other, config):
        work([str(folder)], str(out), recipe, execute=ALONE, dry_run=True)
        assert list((out / "removed").iterdir())
    work([str(folder)], str(out), config, execute=ALONE)
    before = contents(out)
    next((out / "removed").iterdir()).unlink()
    work([str(folder)], str(out), config, execute=ALONE)
    assert contents(out) == before


def test_a_dry_run_that_becomes_a_run_is_not_complete_before_its_end(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    work, config = WAYS["near"]
    work([str(folder)], str(out), config, execute=ALONE, dry_run=True)

    def progress(stage: str, done: int, total: int) -> None:
        del total
        if stage == "apply" and done:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work([str(folder)], str(out), config, execute=ALONE, progress=progress)
    assert json.loads((out / "dedup.json").read_text())["status"] == "running"
