"""Crawl after crawl against an index on disk, against the index's own functions on all texts of a crawl."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dedup_corpora
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import Row, contents, make_rows, ranks_of, read_all, same, write_jsonl, write_parquet

from pylm.data.dedup import NearDedupConfig, SubstringDedupConfig, dedup_near, dedup_substrings, indexed
from pylm.data.executors import LocalPool
from pylm.errors import InputError
from pylm.text import dedup

ALONE = LocalPool(1)
SMALL: dict[str, Any] = {"threshold": 0.7, "ngram": 2, "split_bytes": 1, "num_partitions": 3}
PRIORITIES: list[tuple[tuple[str, ...], str]] = [
    ((), "first"),
    ((), "longest"),
    (("score", "-date"), "first"),
]


def months(seed: int) -> list[list[Row]]:
    """Three crawls that share texts, some of them edited."""
    rows = make_rows(seed, 60)
    return [rows[:80], rows[80:150], [*rows[150:], *rows[:30], *rows[100:120]]]


def near(folder: Path, month: int, out: str = "out", **options: Any) -> dict[str, Any]:
    config = NearDedupConfig(**{**SMALL, "verify_bytes": 2000, "index": str(folder / "index"), **options})
    return dedup_near([str(folder / f"in-{month}")], str(folder / f"{out}-{month}"), config, execute=ALONE)


def write_months(seed: int, folder: Path) -> list[list[Row]]:
    rows = months(seed)
    for number, month in enumerate(rows):
        write_parquet(month, folder / f"in-{number}", num_files=2, group=15)
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("priority", "keep"), PRIORITIES)
def test_near_equals_one_call_of_the_index(
    seed: int, priority: tuple[str, ...], keep: str, tmp_path: Path
) -> None:
    crawls = write_months(seed, tmp_path)
    reference = dedup.NearIndex.create(tmp_path / "reference", threshold=0.7, ngram=2)
    before: list[str | None] = []
    survivors: list[str | None] = []
    for number, rows in enumerate(crawls):
        ranks = ranks_of(rows, priority, keep)
        table = read_all(tmp_path / f"in-{number}")
        expected = reference.add(table["text"], priority=ranks)
        report = near(tmp_path, number, priority=priority, keep=keep, index_batch_bytes=3000)
        out = tmp_path / f"out-{number}"
        left = read_all(out / "documents")
        assert same(left, table.filter(pa.array(expected.keep)))
        check_removed(out, table["text"].to_pylist(), before, expected)
        texts = len(before)
        assert report["index"] == {
            "folder": str(tmp_path / "index"),
            "texts": texts,
            "added": len(rows),
            "documents": len(reference),
        }
        assert report["removed"]["indexed"]["documents"] == int((expected.document >= 0).sum())
        assert (report["removed"]["indexed"]["documents"] > 15) == (number > 0)
        check_counts(out, report, read_all(out / "removed"))
        before += table["text"].to_pylist()
        survivors += left["text"].to_pylist()
    if ranks is None:
        found = dedup.near(pa.array(before), threshold=0.7, ngram=2)
        assert survivors == [before[i] for i in np.flatnonzero(found.keep)]
    # The index is the one that these calls made, whatever it is asked.
    index, probe = dedup.NearIndex(tmp_path / "index"), pa.array([row["text"] for row in make_rows(seed, 60)])
    for name in ("keep", "document", "cluster", "similarity"):
        ours, theirs = (getattr(x.deduplicate(probe), name) for x in (index, reference))
        assert np.array_equal(ours, theirs)


def check_removed(
    out: Path, texts: list[str | None], before: list[str | None], expected: dedup.IndexDuplicates
) -> None:
    removed = read_all(out / "removed").to_pylist()
    gone = np.flatnonzero(~expected.keep).tolist()
    assert [x["document"] for x in removed] == gone
    for x, doc in zip(removed, gone, strict=True):
        assert x["similarity"] == expected.similarity[doc]
        kept = pq.read_table(x["kept_file"])["text"][x["kept_row"]].as_py()
        if expected.document[doc] >= 0:
            assert (x["reason"], x["kept_document"]) == ("indexed", None)
            assert x["index_document"] == expected.document[doc]
            assert kept == before[x["index_document"]]
        else:
            assert x["kept_document"] == expected.cluster[doc]
            assert x["index_document"] is None
            assert kept == texts[x["kept_document"]]
            assert (x["reason"] == "exact") == (kept == texts[doc])


def check_counts(out: Path, report: dict[str, Any], removed: pa.Table) -> None:
    """Clusters, similarities and funnel, counted again."""
    clusters: dict[tuple[bool, int], list[int]] = {}
    for x in removed.to_pylist():
        known = x["index_document"] is not None
        key = (known, x["index_document"] if known else x["kept_document"])
        clusters.setdefault(key, []).append(x["document"])
    order = sorted(clusters, key=lambda key: (-len(clusters[key]), key))[:20]
    shown = report["largest_clusters"]
    assert [x["size"] - 1 for x in shown] == [len(clusters[key]) for key in order]
    assert [("index_document" in x["kept"]) for x in shown] == [known for known, _ in order]
    assert [[y["document"] for y in x["removed"]] for x in shown] == [sorted(clusters[k])[:3] for k in order]
    histogram = np.histogram(removed["similarity"].to_numpy(), 100, (0, 1))[0]
    found = {round(x["from"] * 100): x["documents"] for x in report["similarities"]}
    assert found == {i: n for i, n in enumerate(histogram.tolist()) if n}
    funnel = json.loads((out / "funnel.json").read_text())
    steps = ["read", "exact duplicates", "near duplicates", "in the index"]
    assert [step["name"] for step in funnel["steps"]] == steps
    assert funnel["steps"][-1] == {"name": "in the index", **report["left"]}
    assert sum(x["documents"] for x in funnel["drops"]) == len(removed)
    assert report["left"]["documents"] == len(read_all(out / "documents"))


def results(folder: Path, out: str) -> dict[str, bytes]:
    files = contents(folder / out)
    return {k: v for k, v in files.items() if k.startswith(("documents", "removed", "dropped", "funnel"))}


def test_workers_partitions_and_splits_change_nothing(tmp_path: Path) -> None:
    write_months(7, tmp_path)
    ways: list[tuple[int, dict[str, Any]]] = [(1, {}), (3, {}), (1, {"num_partitions": 7, "verify_bytes": 1})]
    ways += [(2, {"verify_bytes": 1 << 30}), (1, {"split_bytes": 1 << 30})]
    for keep in ("first", "longest"):
        seen: list[tuple[dict[str, bytes], dict[str, bytes], pa.Table]] = []
        for workers, options in ways:
            shutil.rmtree(tmp_path / "index", ignore_errors=True)
            for month in (0, 1):
                out = tmp_path / f"out-{month}"
                shutil.rmtree(out, ignore_errors=True)
                config = NearDedupConfig(
                    **{
                        **SMALL,
                        "keep": keep,
                        "index": str(tmp_path / "index"),
                        "index_batch_bytes": 2000,
                        **options,
                    }
                )
                with LocalPool(workers) as execute:
                    dedup_near([str(tmp_path / f"in-{month}")], str(out), config, execute=execute)
            index = {k: v for k, v in contents(tmp_path / "index").items() if not k.startswith("crawls")}
            seen.append((results(tmp_path, "out-1"), index, read_all(tmp_path / "out-1" / "removed")))
        assert len(seen[0][1]) > 2
        for _, index, removed in seen[1:]:
            assert index == seen[0][1]
            assert removed.equals(seen[0][2])
        for files, _, _ in seen[1:-1]:
            assert files == seen[0][0]


def test_a_finished_command_is_not_compared_with_itself(tmp_path: Path) -> None:
    write_months(1, tmp_path)
    first = near(tmp_path, 0)
    report = near(tmp_path, 1)
    before = contents(tmp_path)
    assert near(tmp_path, 1) == report
    assert near(tmp_path, 0) == first
    assert contents(tmp_path) == before
    with pytest.raises(
        InputError, match=r"and 1 more of these files went into the index .*out-1.*leave it out"
    ):
        near(tmp_path, 1, "other")
    assert near(tmp_path, 1, verify_bytes=7, num_partitions=5, max_bad_fraction=0.5, index_bits=64) == report
    with pytest.raises(InputError, match="went into the index with the run into"):
        near(tmp_path, 1, split_bytes=7000)
    with pytest.raises(InputError, match="went into the index with the run into"):
        near(tmp_path, 1, "other", index_add=False)
    assert contents(tmp_path) == before
    # Nor is what is left of a crawl cleared for another one: its texts would be found in the index.
    config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"))
    for given in (config, NearDedupConfig(**SMALL)):
        with pytest.raises(InputError, match=r"out-1: holds what is left of .*in-1, which is in the index"):
            dedup_near([str(tmp_path / "in-2")], str(tmp_path / "out-1"), given, execute=ALONE)
    assert contents(tmp_path) == before
    (tmp_path / "out-1" / "documents" / "00000.parquet").unlink()
    indexed._open.cache_clear()  # another process has no old state open
    with pytest.raises(InputError, match="the index has changed since the run began"):
        near(tmp_path, 1)
    # An index that is made anew gets the crawl again.
    shutil.rmtree(tmp_path / "index")
    assert near(tmp_path, 0) == first
    assert near(tmp_path, 2)["index"]["texts"] == first["documents"]


def test_no_file_is_added_twice(tmp_path: Path) -> None:
    """Whatever stands beside it, in whatever order, and whatever else is compared with."""
    write_months(1, tmp_path)
    near(tmp_path, 0)
    first, second = sorted(str(path) for path in (tmp_path / "in-0").iterdir())
    os.utime(first)
    before = contents(tmp_path / "index")
    config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"))
    for inputs in ([second, first], [second], [first], [first, second, str(tmp_path / "in-1")]):
        with pytest.raises(InputError, match=r"part-.* went into the index with the run into .*out-0"):
            dedup_near(inputs, str(tmp_path / "other"), config, execute=ALONE)
    assert contents(tmp_path / "index") == before
    shutil.copy(next((tmp_path / "in-2").iterdir()), first)  # another crawl's file under the old name
    assert dedup_near([first], str(tmp_path / "other"), config, execute=ALONE)["index"]["added"] > 0

    spans = SubstringDedupConfig(min_bytes=20, index=str(tmp_path / "spans"), index_gap=8)
    inputs = [str(tmp_path / "in-1")]
    dedup_substrings(inputs, str(tmp_path / "cut"), spans, execute=ALONE)
    against = spans.model_copy(update={"against": (str(tmp_path / "in-2"),)})
    with pytest.raises(InputError, match="went into the index with the run into"):
        dedup_substrings(inputs, str(tmp_path / "cut-too"), against, execute=ALONE)


@pytest.mark.parametrize("name", ["near", "substring"])
def test_an_addition_goes_on_with_other_partitions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compared before is not compared again, whatever tasks the second call would make."""
    write_months(1, tmp_path)
    kind = dedup.NearIndex if name == "near" else dedup.SubstringIndex
    real, added = kind.add, []

    def add(*given: Any, **options: Any) -> object:
        added.append(given)
        if len(added) == 3:
            raise MemoryError
        return real(*given, **options)

    def run(folder: str, **options: Any) -> dict[str, Any]:
        common = {"index": str(tmp_path / f"{folder}-index"), "index_batch_bytes": 1000, **options}
        inputs, out = [str(tmp_path / "in-0")], str(tmp_path / folder)
        if name == "near":
            return dedup_near(inputs, out, NearDedupConfig(**{**SMALL, **common}), execute=ALONE)
        common.pop("verify_bytes", None)
        return dedup_substrings(inputs, out, SubstringDedupConfig(min_bytes=30, **common), execute=ALONE)

    expected = run("plain")
    with monkeypatch.context() as patched:
        patched.setattr(kind, "add", add)
        with pytest.raises(MemoryError):
            run("cut")
    options = {"verify_bytes": 500} if name == "near" else {"partition_bytes": 30000}
    report = run("cut", num_partitions=11, **options)
    for known in (report, expected):
        known["index"].pop("folder")
        known.pop("config")
    assert report == expected
    assert results(tmp_path, "cut") == results(tmp_path, "plain")
    segments = [
        {k: v for k, v in contents(tmp_path / f"{x}-index").items() if not k.startswith("crawls")}
        for x in ("cut", "plain")
    ]
    assert segments[0] == segments[1]


def test_a_renamed_copy_is_noticed(tmp_path: Path) -> None:
    rows = write_months(1, tmp_path)
    assert near(tmp_path, 0)["warnings"] == []
    copied = next((tmp_path / "in-0").iterdir())
    write_parquet([*rows[2][:60], *rows[0][:3]], tmp_path / "new", num_files=1, group=30)
    shutil.copy(copied, tmp_path / "new" / "copy.parquet")
    config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"))
    report = dedup_near([str(tmp_path / "new")], str(tmp_path / "out"), config, execute=ALONE)
    [warning] = report["warnings"]
    removed = read_all(tmp_path / "out" / "removed").to_pylist()
    known = [x for x in removed if x["file"].endswith("copy.parquet") and x["reason"] == "indexed"]
    share = 100 * len(known) / len(pq.read_table(copied))
    assert warning.startswith(
        f"{tmp_path / 'new' / 'copy.parquet'}: {share:.1f} % of its documents are in the index already, most "
        f"of them those of {copied}; if it is a copy of what was added before, leave it out"
    )
    spans = SubstringDedupConfig(min_bytes=20, index=str(tmp_path / "spans"), index_gap=1)
    inputs = [str(tmp_path / "in-1")]
    assert dedup_substrings(inputs, str(tmp_path / "cut"), spans, execute=ALONE)["warnings"] == []
    for number, path in enumerate(sorted((tmp_path / "in-1").iterdir())):
        texts = [text for text in pq.read_table(path)["text"].to_pylist() if text and len(text) > 20]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"copy-{number}.parquet")
    inputs = [str(tmp_path / f"copy-{number}.parquet") for number in range(2)]
    warnings = dedup_substrings(inputs, str(tmp_path / "cut-too"), spans, execute=ALONE)["warnings"]
    assert [x.partition(" of its")[0] for x in warnings] == [f"{path}: 100.0 %" for path in inputs]


def test_without_adding(tmp_path: Path) -> None:
    write_months(2, tmp_path)
    for options in ({"index_add": False}, {}):
        config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"), **options)
        with pytest.raises(InputError, match="holds no index, and nothing is to be added"):
            dedup_near(
                [str(tmp_path / "in-0")], str(tmp_path / "no"), config, execute=ALONE, dry_run=not options
            )
    near(tmp_path, 0)
    before = contents(tmp_path / "index")
    config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"))
    inputs, out = [str(tmp_path / "in-1")], str(tmp_path / "out-1")
    dry = dedup_near(inputs, out, config, execute=ALONE, dry_run=True)
    alone = near(tmp_path, 1, "alone", index_add=False)
    assert near(tmp_path, 1, "alone", index_add=False) == alone
    assert contents(tmp_path / "index") == before
    assert dry["removed"] == alone["removed"]
    assert (
        dry["index"] == alone["index"] == {"folder": config.index, "texts": dry["index"]["texts"], "added": 0}
    )
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.extend([stage] * (done < total and stage not in stages))

    report = dedup_near(inputs, out, config, execute=ALONE, progress=progress)
    assert stages == ["apply", "add to the index"]
    assert report["removed"] == dry["removed"]
    assert contents(tmp_path / "index") != before
    with pytest.raises(InputError, match="went into the index with the run into"):
        near(tmp_path, 1, "alone", index_add=False)


def test_json_lines_and_a_foreign_index(tmp_path: Path) -> None:
    rows = [row for row in make_rows(3, 30) if row["text"] and not row["text"].isspace()]
    old, new = [row["text"] for row in rows[:60]], [row["text"] for row in rows[60:] + rows[:20]]
    for name in ("index", "reference"):
        index = dedup.NearIndex.create(tmp_path / name, threshold=0.7, ngram=2, shingle_bits=32)
        index.add(old, ids=np.arange(len(old)) + 10**6)
    write_jsonl([{"text": text} for text in new], tmp_path / "new.jsonl")
    config = NearDedupConfig(**{**SMALL, "split_bytes": 900}, index=str(tmp_path / "index"))
    for name in ("new.jsonl", "more.jsonl"):
        dedup_near([str(tmp_path / name)], str(tmp_path / f"{name}-out"), config, execute=ALONE)
        write_jsonl([{"text": text} for text in new[:9]], tmp_path / "more.jsonl")
    expected = dedup.NearIndex(tmp_path / "reference").deduplicate(new)
    left = read_all(tmp_path / "new.jsonl-out" / "documents")
    assert left["text"].to_pylist() == [new[i] for i in np.flatnonzero(expected.keep)]
    removed = read_all(tmp_path / "new.jsonl-out" / "removed").to_pylist()
    known = [x for x in removed if x["reason"] == "indexed"]
    assert [x["index_document"] for x in known] == expected.document[expected.document >= 0].tolist()
    assert {x["kept_file"] for x in known} == {None}
    again = read_all(tmp_path / "more.jsonl-out" / "removed").to_pylist()
    assert [x["document"] for x in again] == list(range(9))
    for x in again:
        if x["kept_file"] is not None:
            assert new[x["index_document"] - len(old)] == new[x["kept_row"]]


def test_what_does_not_fit(tmp_path: Path) -> None:
    write_months(4, tmp_path)
    near(tmp_path, 0)
    folder = tmp_path / "index"
    faults: list[tuple[dict[str, Any], str]] = [
        ({"threshold": 0.8}, r"made with threshold=0.7, and here it is 0.8; give --threshold 0.7, or name"),
        ({"ngram": 5}, "made with ngram=2, and here it is 5; give --ngram 2"),
        ({"unit": "char"}, "made with unit='word', and here it is 'char'; give --unit word"),
        ({"num_perm": 64}, "made with num_perm=128, and here it is 64; give --num-perm 128"),
        ({"seed": 1}, "made with seed=42, and here it is 1; give --seed 42"),
        ({"index_bits": 32}, "made with shingle_bits=64, and here it is 32; give --index-bits 64"),
        (
            {"index": "s3://bucket/index"},
            "s3://bucket/index: an index is mapped into memory and must lie on a",
        ),
        ({"index": str(tmp_path / "out-1" / "x")}, "the index needs a folder apart from"),
        ({"index": str(tmp_path / "in-1")}, "in-1: the index needs a folder apart from"),
        ({"index": str(tmp_path)}, "the index needs a folder apart from"),
        (
            {"index": str(tmp_path / "in-0" / "part-0.parquet")},
            "a file stands there, expected the folder of an",
        ),
        ({"index": str(tmp_path / "in-0")}, r"in-0: holds other files \(part-.*\) and no index"),
    ]
    for options, message in faults:
        with pytest.raises(InputError, match=message):
            near(tmp_path, 1, **options)
    config = SubstringDedupConfig(index=str(folder))
    with pytest.raises(InputError, match="holds an index of kind 'near', expected 'substring'"):
        dedup_substrings([str(tmp_path / "in-1")], str(tmp_path / "out-1"), config, execute=ALONE)
    dedup.NearIndex.create(tmp_path / "bands", threshold=0.7, ngram=2, bands=4, rows=4)
    with pytest.raises(InputError, match="made with bands=4, and here it is"):
        near(tmp_path, 1, index=str(tmp_path / "bands"))
    segment = next(folder.glob("*.segment"))
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{segment.name}.*"):
        near(tmp_path, 1)


def test_others_add_to_the_index(tmp_path: Path) -> None:
    write_months(5, tmp_path)
    near(tmp_path, 0)
    config = NearDedupConfig(**SMALL, index=str(tmp_path / "index"))

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "gather" and done == total:
            with pytest.raises(InputError, match="another run adds to this index; wait for its end"):
                near(tmp_path, 2)
            dedup.NearIndex(tmp_path / "index").add(["a text of another program"])

    inputs, out = [str(tmp_path / "in-1")], str(tmp_path / "out-1")
    with pytest.raises(InputError, match=r"the index has changed since the run began"):
        dedup_near(inputs, out, config, execute=ALONE, progress=progress)
    report = dedup_near(inputs, out, config, execute=ALONE)
    assert report["index"]["texts"] == len(read_all(tmp_path / "in-0")) + 1


def write_texts(texts: list[str | None], folder: Path) -> None:
    folder.mkdir()
    half = len(texts) // 2
    for number, part in enumerate((texts[:half], texts[half:])):
        pq.write_table(
            pa.table({"text": pa.array(part, pa.string())}), folder / f"{number}.parquet", row_group_size=25
        )


@pytest.mark.parametrize("keep", ["first", "none"])
@pytest.mark.parametrize("gap", [1, 8])
@pytest.mark.parametrize("with_tests", [False, True])
def test_substrings_equal_those_of_the_index_and_of_the_crawl(
    keep: str, gap: int, with_tests: bool, tmp_path: Path
) -> None:
    crawls = [[row["text"] for row in month] for month in months(11)]
    tests = [text for text in crawls[2] if text][::9]
    write_texts(tests, tmp_path / "tests")
    reference = dedup.SubstringIndex.create(tmp_path / "reference", min_bytes=30, gap=gap)
    config = SubstringDedupConfig(
        min_bytes=30,
        keep_copies=keep,
        index=str(tmp_path / "index"),
        index_gap=gap,
        index_batch_bytes=2000,
        split_bytes=1,
        partition_bytes=128000,
        against=(str(tmp_path / "tests"),) if with_tests else (),
    )
    for number, texts in enumerate(crawls):
        write_texts(texts, tmp_path / f"in-{number}")
        inputs, out = [str(tmp_path / f"in-{number}")], tmp_path / f"out-{number}"
        report = dedup_substrings(inputs, str(out), config, execute=ALONE)
        options: dict[str, Any] = {"against": tests} if with_tests else {"keep": keep}
        column = pa.array(texts, pa.string())
        own, seen = dedup.substrings(column, min_bytes=30, **options), reference.find(column)
        known = bytes_of(seen)
        expected = spans_of(bytes_of(own) | known)
        removed = read_all(out / "removed").to_pylist()
        assert [(x["document"], x["start"], x["end"]) for x in removed] == expected
        for x in removed:
            inside = sum((x["document"], i) in known for i in range(x["start"], x["end"]))
            assert x["index_bytes"] == inside
        assert report["index"]["bytes"] == seen.size
        assert report["index"]["spans"] == sum(x["index_bytes"] > 0 for x in removed)
        assert (report["index"]["texts"], report["index"]["added"]) == (reference.num_texts, len(texts))
        assert (seen.size > 1000) == (number > 0)
        if gap == 1 and number:
            old = [text for month in crawls[:number] for text in month]
            exact = dedup.substrings(column, min_bytes=30, against=pa.array(old))
            assert (exact.doc.tolist(), exact.start.tolist()) == (seen.doc.tolist(), seen.start.tolist())
        left = [text for text, old in zip(apply(texts, expected), texts, strict=True) if text or not old]
        assert read_all(out / "documents")["text"].to_pylist() == left
        reference.add(column)
        assert dedup_substrings(inputs, str(out), config, execute=ALONE) == report
    assert dedup.SubstringIndex(tmp_path / "index").num_windows == reference.num_windows
    other = config.model_copy(update={"min_bytes": 40})
    with pytest.raises(InputError, match=r"made with min_bytes=30, and here it is 40; give --min-bytes 30"):
        dedup_substrings([str(tmp_path / "in-0")], str(tmp_path / "no"), other, execute=ALONE)


def bytes_of(spans: dedup.Spans) -> set[tuple[int, int]]:
    places = zip(spans.doc.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True)
    return {(doc, i) for doc, start, end in places for i in range(start, end)}


def spans_of(covered: set[tuple[int, int]]) -> list[tuple[int, int, int]]:
    starts = sorted((doc, i) for doc, i in covered if (doc, i - 1) not in covered)
    ends = sorted((doc, i + 1) for doc, i in covered if (doc, i + 1) not in covered)
    return [(doc, start, end) for (doc, start), (_, end) in zip(starts, ends, strict=True)]


def apply(texts: list[str | None], spans: list[tuple[int, int, int]]) -> list[str | None]:
    left = [None if text is None else text.encode() for text in texts]
    for doc, start, end in reversed(spans):
        content = left[doc]
        assert content is not None
        left[doc] = content[:start] + content[end:]
    return [None if x is None else x.decode() for x in left]


KILLS = """
import json, os, shutil, signal, sys
from contextlib import contextmanager
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from pylm.data import storage
from pylm.data.dedup import indexed
from pylm.text import _index_folder
from dedup_corpora import contents
from test_indexed import run_killed

name, folder, every = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
count, fatal = 0, -1

def event():
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(module, attribute):
    real = getattr(module, attribute)
    @contextmanager
    def context(*given):
        with real(*given) as path:
            event()
            yield path
            event()
        event()
    setattr(module, attribute, context)

def counted_call(module, attribute):
    real = getattr(module, attribute)
    def call(*given):
        event()
        real(*given)
        event()
    setattr(module, attribute, call)

counted(storage, "publish")
counted(_index_folder, "atomic_path")
counted_call(_index_folder, "_write")
counted_call(indexed, "_write_crawl")

def fork(at):
    global count, fatal
    pid = os.fork()
    if pid == 0:
        count, fatal = 0, at
        run_killed(name, folder)
        (folder / "count").write_text(str(count))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def restore(saved):
    for part in ("index", "out"):
        shutil.rmtree(folder / part, ignore_errors=True)
        if (saved / part).exists():
            shutil.copytree(saved / part, folder / part)

def found():
    return {part: contents(folder / part) for part in ("index", "out")}

assert fork(-1) == 0
expected, total = found(), int((folder / "count").read_text())
kills = 0
for fatal_at in range(1, total + 1):
    if fatal_at % every and fatal_at < total - 160 // every:
        continue
    restore(folder / "before")
    assert fork(fatal_at) == -signal.SIGKILL, fatal_at
    again = fatal_at
    while again > 8 and fatal_at % 2 == 0:  # killed again, before it gets as far
        again //= 2
        fork(again)
    assert fork(-1) == 0, fatal_at
    now = found()
    wrong = [k for part in now for k in now[part].keys() | expected[part].keys()
             if ".tmp-" not in k and now[part].get(k) != expected[part].get(k)]
    assert not wrong, (fatal_at, wrong)
    kills += 1
print(kills)
"""


def run_killed(name: str, folder: Path) -> None:
    """The second crawl into an index that has the first."""
    common: dict[str, Any] = {"index": str(folder / "index"), "index_batch_bytes": 4000, "split_bytes": 4000}
    inputs, out = [str(folder / "in-1")], str(folder / "out")
    if name == "substring":
        config = SubstringDedupConfig(**common, min_bytes=30, partition_bytes=64000)
        dedup_substrings(inputs, out, config, execute=ALONE)
    else:
        keep = "first" if name == "near" else "longest"
        near_config = NearDedupConfig(**{**SMALL, **common, "num_partitions": 2, "keep": keep})
        dedup_near(inputs, out, near_config, execute=ALONE)


@pytest.mark.parametrize("every", [9, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["near", "near-longest", "substring"])
def test_killed_anywhere_the_index_gets_a_crawl_once(name: str, every: int, tmp_path: Path) -> None:
    crawls = months(6)
    for number in (0, 1):
        write_parquet(crawls[number], tmp_path / f"in-{number}", num_files=2, group=40)
    texts = pa.array([row["text"] for row in crawls[0]])
    if name == "substring":
        dedup.SubstringIndex.create(tmp_path / "index", min_bytes=30, gap=8).add(texts)
    else:
        dedup.NearIndex.create(tmp_path / "index", threshold=0.7, ngram=2).add(texts)
    (tmp_path / "before").mkdir()
    shutil.copytree(tmp_path / "index", tmp_path / "before" / "index")
    here = Path(__file__).resolve().parent
    helpers = Path(dedup_corpora.__file__).resolve().parent
    command = [sys.executable, "-c", KILLS, name, str(tmp_path), str(every), str(here), str(helpers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 20
