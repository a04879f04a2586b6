import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import slurm_daemons
from dedup_corpora import contents, make_rows, read_all, same, write_jsonl, write_parquet
from typer.main import get_command

from pylm import dedup
from pylm.cli import app, call
from pylm.commands import dedup as dedup_command
from pylm.data.dedup import blocks
from pylm.data.executors import slurm

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "dedup.md"


def run(arguments: Sequence[object]) -> int:
    return call(lambda: app([str(x) for x in arguments], standalone_mode=False))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_parquet(make_rows(11), tmp_path / "in", num_files=2, group=40)
    return tmp_path / "in"


def test_near(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--threshold", 0.7, "--ngram", 2, "--workers", 1, "--priority", "-date", "--keep", "longest"]
    assert run(["dedup", "near", corpus, "--out", tmp_path / "out", *options]) == 0
    table = read_all(corpus)
    days = [int(x.replace("-", "")) if x else 99999999 for x in table["date"].to_pylist()]
    sizes = [len(x.encode()) if x else 0 for x in table["text"].to_pylist()]
    priority = np.empty(len(days), np.int64)
    priority[np.lexsort((np.negative(range(len(days))), sizes, np.negative(days)))] = range(len(days))
    found = dedup.near(table["text"], threshold=0.7, ngram=2, priority=priority)
    assert same(read_all(tmp_path / "out" / "documents"), table.filter(pa.array(found.keep)))
    shown = capsys.readouterr().out
    assert f"read {len(table):>29,}" in shown
    assert f"left {int(found.keep.sum()):>29,}" in shown
    assert "similarity 0.95-1.00" in shown
    assert "alike: " in shown
    assert f"report: {tmp_path / 'out'}/report.json" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["priority"] == ["-date"]
    again = contents(tmp_path / "out")
    assert run(["dedup", "near", corpus, "--out", tmp_path / "out", *options]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"nothing to do: {tmp_path / 'out'} holds the complete result of this command (")
    assert f"({len(table):,} documents read, {int(found.keep.sum()):,} left)" in shown
    assert shown.count("\n") == 1
    assert contents(tmp_path / "out") == again


@pytest.mark.parametrize("command", ["near", "substring"])
def test_plan(command: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["dedup", "plan", command, corpus, "--input-gb", 1000, "--file-mb", 1000, "--workers", 64]
    assert run(call) == 0
    out = capsys.readouterr().out
    assert "1,000.0 GB on disk" in out
    options = re.findall(rf"pylm dedup {command} \.\.\. (.*)$", out, re.MULTILINE)[0].split()
    assert run(["dedup", command, corpus, "--out", tmp_path / "out", *options, "--workers", 1]) == 0
    capsys.readouterr()
    assert run([*call, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["num_workers"] == 64
    settings = planned["settings"]
    assert options[: 2 * len(settings)] == [
        x
        for name, value in settings.items()
        for x in (
            f"--{name.replace('num_', '').replace('bytes', 'mb').replace('_', '-')}",
            str(value >> 20 if name.endswith("bytes") else value),
        )
    ]


def test_a_fault_is_said_of_the_option(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dedup", "exact", corpus, "--out", tmp_path / "out", "--partitions", 70_000]) == 2
    assert "pylm: --partitions: " in capsys.readouterr().err


def test_a_plan_of_a_recipe_that_is_none(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dedup", "plan", "near", corpus, "--threshold", 2]) == 2
    assert "--threshold" in capsys.readouterr().err


def test_slurm_gives_the_same(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    slurm_daemons.write_fake(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "run_slurm", partial(slurm.run_slurm, poll_seconds=0.1, grace_seconds=0.5))
    call = ["dedup", "exact", corpus, "--out"]
    assert run([*call, tmp_path / "here", "--workers", 1]) == 0
    assert run([*call, tmp_path / "there", "--executor", "slurm", "--sbatch", "mem=1G"]) == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_jobs_that_slurm_refuses_leave_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    call = ["dedup", "exact", corpus, "--out", tmp_path / "out"]
    assert run([*call, "--executor", "slurm"]) == 2
    assert "no such partition" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("[!.]*"))
    assert run([*call, "--workers", 1]) == 0


def test_slurm_options_of_stages(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, str]] = {}

    def run_here(
        work: Callable[[Any], Any], items: Sequence[Any], *, folder: str, options: dict[str, str]
    ) -> Iterator[Any]:
        assert folder == str(tmp_path / "out" / "work" / "slurm")
        function = work
        while isinstance(function, partial):
            function = function.func
        seen[function.__name__.strip("_")] = options
        return map(work, items)

    monkeypatch.setattr(slurm, "run_slurm", run_here)
    options = ["mem=8G", "time=01:00:00", "connect:mem=40G", "add:mem=64G", "add:cpus-per-task=8"]
    call = ["dedup", "near", corpus, "--out", tmp_path / "out", "--executor", "slurm"]
    call += [x for option in options for x in ("--sbatch", option)]
    assert run([*call, "--index", tmp_path / "index"]) == 0
    common = {"mem": "8G", "time": "01:00:00"}
    stages = ("sign", "check_index", "match", "gather", "verify", "apply")
    assert seen == {
        **dict.fromkeys(stages, common),
        "connect": {**common, "mem": "40G"},
        "add": {**common, "mem": "64G", "cpus-per-task": "8"},
    }


def test_a_refused_run_leaves_the_disk_as_it_was(corpus: Path, tmp_path: Path) -> None:
    """Options are refused at many places: none leaves a folder, a lock or an index behind."""
    dedup.NearIndex.create(tmp_path / "seen", threshold=0.7)
    (tmp_path / "full" / "work").mkdir(parents=True)
    (tmp_path / "full" / "work" / "thesis.doc").write_text("x")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"text": [1]}), tmp_path / "numbers.parquet")
    out, index = ["--out", tmp_path / "out" / "near"], ["--index", tmp_path / "new" / "seen"]
    calls: list[list[object]] = [
        [corpus, *out, "--index", tmp_path / "seen"],
        [corpus, *out, "--index", corpus],
        [corpus, *out, "--index", tmp_path / "full"],
        [corpus, *out, *index, "--no-add"],
        [corpus, *out, *index, "--dry-run"],
        [corpus, "--out", tmp_path / "full", *index],
        [corpus, "--out", tmp_path / "empty", "--index", tmp_path / "seen"],
        [corpus, *out, *index, "--executor", "slurm"],
        [corpus, *out, *index, "--priority", "likes"],
        [tmp_path / "numbers.parquet", *out, *index],
    ]
    before = sorted(tmp_path.rglob("*")), contents(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", "")
        for call in calls:
            assert run(["dedup", "near", *call]) == 2
            assert (sorted(tmp_path.rglob("*")), contents(tmp_path)) == before, call


@pytest.mark.slow
def test_ray_with_an_index_gives_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two months by the command, as tasks of a Ray cluster of three places."""
    pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'pylm-llm[ray]'")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    write_parquet(make_rows(12) + make_rows(11)[:30], tmp_path / "june", num_files=2, group=40)
    options = ["--threshold", 0.7, "--ngram", 2, "--split-mb", 1, "--partitions", 3, "--keep", "longest"]

    def months(name: str, *engine: object) -> tuple[Any, ...]:
        for month, folder in (("may", corpus), ("june", tmp_path / "june")):
            call = ["dedup", "near", folder, "-o", tmp_path / f"{name}-{month}", *options, *engine]
            assert run([*call, "--index", tmp_path / f"{name}-index"]) == 0
        report = json.loads((tmp_path / f"{name}-june" / "report.json").read_text())
        assert report["removed"]["indexed"]["documents"] > 15
        index = {k: v for k, v in contents(tmp_path / f"{name}-index").items() if k.endswith(".segment")}
        files = [f"{name}-june/{part}" for part in ("documents", "removed")]
        return index, [contents(tmp_path / x) for x in files], report["removed"], report["similarities"]

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        there = months("ray", "--executor", "ray")
    finally:
        ray.shutdown()
    assert there == months("here", "--workers", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sbatch", "mem=8G"], "--sbatch mem=8G is about --executor slurm"),
        (["--executor", "slurm", "--sbatch", "mem"], "--sbatch takes NAME=VALUE"),
        (
            ["--executor", "slurm", "--sbatch", "match:=8G"],
            "or STAGE:NAME=VALUE for one stage, got 'match:=8G'",
        ),
        (
            ["--executor", "slurm", "--sbatch", "verify:mem=8G"],
            "no stage 'verify'; those of exact are sign, match",
        ),
        (["--executor", "ray", "--workers", 2], "--workers counts processes of this machine"),
        (["--executor", "slurm"], "run_slurm needs sbatch on the PATH"),
    ],
)
def test_wrong_executors(
    corpus: Path,
    tmp_path: Path,
    options: Sequence[object],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(["dedup", "exact", corpus, "--out", tmp_path / "out", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_result_among_the_inputs(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be read with them by the next command."""
    assert run(["dedup", "exact", corpus, "--out", corpus / "clean"]) == 2
    assert f"{corpus / 'clean'}: lies in the input {corpus}" in capsys.readouterr().err
    assert not (corpus / "clean").exists()


def test_a_plan_for_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dedup", "plan", "near", corpus, "--input-gb", "-5"]) == 2
    assert "--input-gb must be positive, got -5" in capsys.readouterr().err
    assert run(["dedup", "plan", "near", corpus, "--file-mb", 5]) == 2
    assert "--file-mb is about the files of --input-gb" in capsys.readouterr().err


def test_exact(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["dedup", "exact", corpus, "-o", out, "--normalize", "--no-punctuation", "--workers", 1]) == 0
    table = read_all(corpus)
    keep = dedup.exact(table["text"], normalize=True, punctuation=False) == np.arange(len(table))
    assert same(read_all(out / "documents"), table.filter(pa.array(keep)))
    assert "exact duplicates" in capsys.readouterr().out


@pytest.mark.parametrize("keep", ["first", "none"])
def test_substring(keep: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--min-bytes", 30, "--keep", keep, "--workers", 1]
    assert run(["dedup", "substring", corpus, "-o", out, *options]) == 0
    table = read_all(corpus)
    spans = dedup.substrings(table["text"], min_bytes=30, keep=keep)
    texts = spans.apply(table["text"]).to_pylist()
    left = read_all(out / "documents")
    before = table["text"].to_pylist()
    kept = [i for i, text in enumerate(texts) if text or not before[i]]
    assert left["text"].to_pylist() == [texts[i] for i in kept]
    assert left["id"].to_pylist() == [table["id"][i].as_py() for i in kept]
    assert left.schema.equals(table.schema, check_metadata=True)
    removed = read_all(out / "removed")
    for name in ("start", "end"):
        assert removed[name].to_pylist() == getattr(spans, name).tolist()
    assert removed["document"].to_pylist() == spans.doc.tolist()
    report = json.loads((out / "report.json").read_text())
    assert (report["spans"], report["removed_bytes"]) == (len(spans), spans.size)
    assert report["left"]["documents"] == len(left)
    assert report["left"]["bytes"] == sum(len(text.encode()) for text in texts if text)
    longest = np.argsort(spans.start - spans.end, kind="stable")[:20]
    assert [x["document"] for x in report["longest"]] == spans.doc[longest].tolist()
    for x in report["longest"]:
        content = before[x["document"]].encode()[x["start"] : x["end"]]
        assert x["text"] == content.decode("utf-8", "replace")[:300]
    assert "repeated substrings" in capsys.readouterr().out
    assert json.loads((out / "funnel.json").read_text())["steps"][1]["name"] == "repeated substrings"


def test_substring_against(corpus: Path, tmp_path: Path) -> None:
    table = read_all(corpus)
    texts = [text for text in table["text"].to_pylist() if text][::9]
    write_jsonl([{"text": text} for text in texts], tmp_path / "tests.jsonl")
    options = ["--min-bytes", 30, "--against", tmp_path / "tests.jsonl", "--partition-mb", 1, "--workers", 1]
    assert run(["dedup", "substring", corpus, "-o", tmp_path / "out", *options]) == 0
    spans = dedup.substrings(table["text"], min_bytes=30, against=texts)
    removed = read_all(tmp_path / "out" / "removed")
    assert removed["document"].to_pylist() == spans.doc.tolist()
    assert removed["start"].to_pylist() == spans.start.tolist()
    assert removed["end"].to_pylist() == spans.end.tolist()


def test_months(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(make_rows(12) + make_rows(11)[:30], tmp_path / "june", num_files=2, group=40)
    months = {"may": read_all(corpus), "june": read_all(tmp_path / "june")}
    index = dedup.NearIndex.create(tmp_path / "reference", threshold=0.7, ngram=2, shingle_bits=32)
    options = ["--threshold", 0.7, "--ngram", 2, "--workers", 1, "--index", tmp_path / "index"]
    for name, folder in (("may", corpus), ("june", tmp_path / "june")):
        capsys.readouterr()
        call = ["dedup", "near", folder, "-o", tmp_path / f"{name}-out", *options, "--index-bits", 32]
        assert run(call) == 0
        found = index.add(months[name]["text"])
        assert same(
            read_all(tmp_path / f"{name}-out" / "documents"), months[name].filter(pa.array(found.keep))
        )
        shown = capsys.readouterr().out
        assert (
            f"index: {index.num_texts - len(found.keep):,} texts before, {len(found.keep):,} added" in shown
        )
        assert f"indexed duplicates  {-int((found.document >= 0).sum()):>14,}" in shown or name == "may"
    before = contents(tmp_path / "index")
    assert run(["dedup", "near", tmp_path / "june", "-o", tmp_path / "june-out", *options]) == 0
    assert f"of this command, and {tmp_path / 'index'} has its texts" in capsys.readouterr().out
    assert run(["dedup", "near", tmp_path / "june", "-o", tmp_path / "look", *options, "--no-add"]) == 2
    assert "went into the index with the run into" in capsys.readouterr().err
    write_parquet(make_rows(13), tmp_path / "july", num_files=1, group=40)
    assert run(["dedup", "near", tmp_path / "july", "-o", tmp_path / "look", *options, "--no-add"]) == 0
    assert run(["dedup", "near", tmp_path / "july", "-o", tmp_path / "dry", *options, "--dry-run"]) == 0
    assert contents(tmp_path / "index") == before
    options = ["--min-bytes", 30, "--workers", 1, "--index", tmp_path / "windows", "--index-gap", 8]
    windows = dedup.SubstringIndex.create(tmp_path / "windows-too", min_bytes=30, gap=8)
    for name, folder in (("may", corpus), ("june", tmp_path / "june")):
        capsys.readouterr()
        assert run(["dedup", "substring", folder, "-o", tmp_path / f"{name}-cut", *options]) == 0
        size = windows.find(months[name]["text"]).size
        assert f"texts before, {size:,} bytes cut for them, " in capsys.readouterr().out
        windows.add(months[name]["text"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["near", "--no-add"], "--no-add is about an index; name its folder with --index"),
        (["near", "--index-bits", 32], "--index-bits is about an index"),
        (["substring", "--index-gap", 8], "--index-gap is about an index"),
        (["near", "--index", "s3://b/seen"], "s3://b/seen: an index is mapped into memory"),
        (
            ["near", "--index", "seen", "--index-bits", 16],
            "--index-bits: input should be 0, 32 or 64, got 16",
        ),
        (["near", "--index", "seen", "--no-add"], "holds no index, and nothing is to be added"),
    ],
)
def test_wrong_indexes(
    corpus: Path,
    tmp_path: Path,
    options: Sequence[object],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["dedup", *options, corpus, "-o", tmp_path / "out", "--workers", 1]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("near", "exact", "substring"):
        out = tmp_path / name
        assert run(["dedup", name, corpus, "-o", out, "--dry-run", "--workers", 1]) == 0
        assert "no documents written" in capsys.readouterr().out
        assert not (out / "documents").exists()
        dry = json.loads((out / "report.json").read_text())
        assert run(["dedup", name, corpus, "-o", out, "--workers", 1]) == 0
        report = json.loads((out / "report.json").read_text())
        assert {**report, "dry_run": True, "files": []} == dry
        assert list((out / "documents").iterdir())


def test_faults_in_one_line(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "damaged.parquet").write_bytes((corpus / "part-0.parquet").read_bytes()[:-100])
    content = bytearray((corpus / "part-0.parquet").read_bytes())
    content[200:1200] = bytes(1000)
    (tmp_path / "pages.parquet").write_bytes(content)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "no.jsonl.gz").write_bytes(b"no gzip")
    write_jsonl([{"text": "a", "score": 1}], tmp_path / "a.jsonl")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    faults: list[tuple[list[object], str]] = [
        ([corpus, "--text-column", "body"], "no column 'body'; it has id, nested, text, date"),
        ([tmp_path / "numbers.parquet"], "the column 'text' must hold strings, it holds int64"),
        ([corpus, "--priority", "likes"], "no column 'likes'"),
        ([corpus, "--priority", "nested"], "must hold numbers or dates, it holds struct"),
        ([corpus, "--priority", "site"], "site=FIRST,SECOND"),
        ([corpus, "--priority", "site="], "priority must be COLUMN, -COLUMN or COLUMN=VALUE"),
        ([tmp_path / "damaged.parquet"], "damaged.parquet: not a readable Parquet file"),
        ([tmp_path / "pages.parquet"], "pages.parquet: not a readable Parquet file"),
        ([tmp_path / "none.parquet"], "no documents; check the inputs"),
        ([tmp_path / "none.jsonl"], "no documents; check the inputs"),
        ([tmp_path / "no.jsonl.gz"], "damaged or truncated gz stream"),
        ([tmp_path / "notes.txt"], "expected a name that ends in .parquet"),
        ([tmp_path / "empty"], "no files whose names end in"),
        ([tmp_path / "missing*"], "nothing there; give a file, a folder or a glob"),
        ([""], "an input has no name"),
        (["nothing://x/y.parquet"], "no protocol 'nothing' is known"),
        ([corpus, "--threshold", 1.5], "--threshold: input should be less than or equal to 1, got 1.5"),
        ([corpus, "--out", tmp_path / "file"], "a file stands there, expected a folder"),
        ([corpus, "--out", tmp_path / "full"], "holds other files (thesis.doc)"),
        ([corpus, "--out", tmp_path], "lies in the folder of the result"),
        ([corpus, tmp_path / "a.jsonl", "--priority", "score", "--priority", "date"], ""),
    ]
    for arguments, message in faults:
        capsys.readouterr()
        code = run(["dedup", "near", "--workers", 1, "--out", out, *arguments])
        shown = capsys.readouterr().err
        if message:
            assert (code, shown.count("pylm: ")) == (2, 1), (arguments, shown)
            assert message in shown
        else:
            assert code == 0


def test_a_folder_that_cannot_be_written(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind this user")
    (tmp_path / "shut").mkdir(mode=0o500)
    assert run(["dedup", "near", corpus, "--out", tmp_path / "shut" / "out", "--workers", 1]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_full_disk(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks.BlockWriter.finish

    def finish(self: blocks.BlockWriter) -> None:
        if len(list((tmp_path / "out" / "work").rglob("*.blocks"))) > 2:
            raise OSError(28, os.strerror(28), "x.blocks")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(blocks.BlockWriter, "finish", finish)
        assert run(["dedup", "near", corpus, "-o", tmp_path / "out", "--workers", 1]) == 2
    assert "the disk is full at x.blocks; make room and run the same command again" in capsys.readouterr().err
    assert run(["dedup", "near", corpus, "-o", tmp_path / "out", "--workers", 1]) == 0
    assert run(["dedup", "near", corpus, "-o", tmp_path / "plain", "--workers", 1]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_corpus_of_nulls(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(5, pa.string()), "n": range(5)}), tmp_path / "x.parquet")
    for name in ("near", "exact", "substring"):
        assert run(["dedup", name, tmp_path / "x.parquet", "-o", tmp_path / name, "--workers", 1]) == 0
        assert read_all(tmp_path / name / "documents")["n"].to_pylist() == list(range(5))


def test_text_types(tmp_path: Path) -> None:
    texts = ["same words here in both", "same words here in both", None, "others"]
    column = pa.array(texts)
    kinds = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    for number, kind in enumerate(kinds):
        path, out = tmp_path / f"{number}.parquet", tmp_path / str(number)
        table = pa.table({"text": column.dictionary_encode() if number == 2 else column.cast(kind)})
        pq.write_table(table, path)
        for name, options in [("near", []), ("exact", []), ("substring", ["--min-bytes", 10])]:
            assert run(["dedup", name, path, "-o", out / name, "--workers", 1, *options]) == 0
            left = read_all(out / name / "documents")
            assert left["text"].to_pylist() == [texts[0], None, "others"]
            assert left.schema.field("text").type == pq.read_schema(path).field("text").type


def test_help_and_work_load_no_torch(corpus: Path, tmp_path: Path) -> None:
    work = ["dedup", "near", str(corpus), "-o", str(tmp_path / "out"), "--workers", "1"]
    for arguments in (["dedup", "near", "--help"], work):
        code = "import sys; from pylm.cli import app\n"
        code += f"app({arguments!r}, standalone_mode=False); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"


def test_priorities_that_decide_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["dedup", "exact", "--workers", 1, "-o"]
    assert run([*call, tmp_path / "a", corpus, "--priority", "site=wiki,boks", "--priority", "url=a"]) == 0
    shown = capsys.readouterr().err
    assert "warning: no document has 'boks' as 'site': check the values of --priority site=wiki,boks" in shown
    assert "warning: no document has 'a' as 'url': check the values of --priority url=a" in shown
    write_jsonl([{"text": "a", "site": "wiki"}], tmp_path / "a.jsonl")
    assert run([*call, tmp_path / "b", tmp_path / "a.jsonl", "--priority", "sit=wiki"]) == 2
    assert "no document has a field 'sit', which --priority names" in capsys.readouterr().err
    assert run([*call, tmp_path / "b", tmp_path / "a.jsonl", "--priority", "site=wiki"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_the_first_run_of_the_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    texts = ["The quick brown fox jumps over the lazy dog.", "Another story."]
    texts += ["the quick brown fox jumps over the lazy dog", "Another story."]
    write_jsonl([{"text": text} for text in texts], tmp_path / "raw" / "pages.jsonl")
    first, printed, left = re.findall(r"```(?:console)?\n(.*?)```", GUIDE.read_text(), re.DOTALL)[:3]
    assert run(shlex.split(first)[1:]) == 0
    assert capsys.readouterr().out == printed
    names = set(re.findall(r"[\w/]+\.(?:parquet|jsonl?)", left))
    assert names == set(contents(tmp_path / "clean"))


def test_commands_of_the_guide_are_accepted() -> None:
    commands = get_command(dedup_command.app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^pylm dedup (\w+) (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert {name for name, _ in lines} == {"near", "exact", "substring", "plan"}
    for name, options in lines:
        given, command = shlex.split(options), commands[name]
        if name == "plan":
            command = command.commands[given.pop(0)]
        command.make_context(name, given)


def test_the_guide_lists_all_options_with_their_defaults() -> None:
    """Options that several commands share stand in a table of their own."""
    commands = get_command(dedup_command.app).commands  # type: ignore[attr-defined]
    text = GUIDE.read_text()
    tables = {
        head: dict(re.findall(r"^\| (`-.*?) \| ?(.*?) ?\|", rows, re.MULTILINE))
        for head, rows in re.findall(r"^(.+)\n\n\| option \| default \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    }
    heads = {re.findall(r"\w+", head.removeprefix("`pylm dedup "))[0]: head for head in tables}
    common = tables[heads["All"]]
    used = set()
    plans = {f"plan {name}": command for name, command in commands.pop("plan").commands.items()}
    for name, command in (commands | plans).items():
        own = tables[heads[name.split()[0]]]
        options = [x for x in command.params if x.param_type_name == "option"]
        for option in options:
            names = ", ".join(f"`{x}`" for x in [*option.opts, *option.secondary_opts])
            if name in plans and names not in own:
                assert re.search(rf"`pylm dedup {name}`[^;]*{names}", heads["plan"]), names
                continue
            used.add(names)
            shown = own[names] if names in own else common[names]
            default = getattr(option.default, "value", option.default)
            if isinstance(default, bool) or default in (None, ""):
                assert not re.search(r"\d", shown) or names in ("`--index-bits`", "`--index-gap`"), names
            elif not option.required:
                assert shown == (default if isinstance(default, str) else f"{default:g}"), names
        known = {f"`{x}`" for option in options for x in [*option.opts, *option.secondary_opts]}
        assert {x for names in own for x in names.split(", ")} <= known
    assert set(common) <= used
