import json
import random
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import contents, make_rows, ranks_of, read_all, same, write_jsonl, write_parquet

from pylm import dedup
from pylm.data import storage
from pylm.data.dedup import NearDedupConfig, dedup_near, run
from pylm.data.executors import LocalPool
from pylm.errors import InputError

ALONE = LocalPool(1)
SMALL: dict[str, Any] = {
    "threshold": 0.7,
    "ngram": 2,
    "split_bytes": 1,
    "num_partitions": 3,
    "verify_bytes": 2000,
}


def check(table: pa.Table, out: Path, config: NearDedupConfig, ranks: np.ndarray | None) -> None:
    """Compare a result with that of one call on all texts."""
    expected = dedup.near(
        table["text"],
        threshold=config.threshold,
        ngram=config.ngram,
        num_perm=config.num_perm,
        unit=config.unit,
        priority=ranks,
    )
    assert same(read_all(out / "documents"), table.filter(pa.array(expected.keep)))
    removed = read_all(out / "removed")
    gone = np.flatnonzero(~expected.keep)
    assert removed["document"].to_pylist() == gone.tolist()
    assert removed["kept_document"].to_pylist() == expected.cluster[gone].tolist()
    similarity = dict(zip(expected.pairs[:, 1].tolist(), expected.similarity.tolist(), strict=True))
    assert removed["similarity"].to_pylist() == [similarity[doc] for doc in gone.tolist()]
    texts = table["text"].to_pylist()
    equal = [texts[a] == texts[b] for a, b in zip(gone, expected.cluster[gone], strict=True)]
    assert [reason == "exact" for reason in removed["reason"].to_pylist()] == equal
    rows = list(zip(removed["file"].to_pylist(), removed["row"].to_pylist(), gone.tolist(), strict=True))
    for path, row, doc in rows[:: max(1, len(rows) // 10)]:
        assert pq.read_table(path)["text"][row].as_py() == texts[doc]
    rows = list(zip(removed["kept_file"].to_pylist(), removed["kept_row"].to_pylist(), strict=True))
    for (path, row), doc in list(zip(rows, expected.cluster[gone].tolist(), strict=True))[:10]:
        assert pq.read_table(path)["text"][row].as_py() == texts[doc]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("priority", "keep"),
    [
        ((), "first"),
        ((), "longest"),
        (("score",), "first"),
        (("-score", "date"), "longest"),
        (("site=books,wiki", "-date"), "first"),
    ],
)
def test_equals_one_call_on_the_whole_corpus(
    seed: int, priority: tuple[str, ...], keep: str, tmp_path: Path
) -> None:
    rows = make_rows(seed)
    table = write_parquet(rows, tmp_path / "in", num_files=3, group=25)
    config = NearDedupConfig(**SMALL, priority=priority, keep=keep)
    report = dedup_near([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    check(table, tmp_path / "out", config, ranks_of(rows, priority, keep))
    assert report["removed"]["exact"]["documents"] > 10
    assert report["removed"]["near"]["documents"] > 20


@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize("threshold", [0.3, 0.9, 1.0])
def test_other_recipes(unit: str, threshold: float, tmp_path: Path) -> None:
    rows = make_rows(9)
    table = write_parquet(rows, tmp_path / "in", num_files=1, group=1000)
    config = NearDedupConfig(unit=unit, threshold=threshold, ngram=3, num_perm=60)
    dedup_near([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    check(table, tmp_path / "out", config, None)


def edited(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for _ in range(rng.randrange(1, max(2, len(words) // 80))):
        words[rng.randrange(len(words))] = rng.choice(["", "edit", words[rng.randrange(len(words))]])
    return " ".join(words)


def test_real_text_with_planted_edits(shared_data: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    folder = shared_data / "text"
    texts = [json.loads(line)["text"] for line in (folder / "c4_demo.jsonl").open(encoding="utf-8")]
    texts += (folder / "wiki_demo.txt").read_text("utf-8").splitlines()[:1000]
    texts += (folder / "tinyshakespeare.txt").read_text("utf-8").split("\n\n")[:2000]
    copies = [rng.choice(texts) for _ in range(len(texts) // 2)]
    texts += [text if rng.random() < 0.3 else edited(text, rng) for text in copies]
    rng.shuffle(texts)
    rows = [{"text": text} for text in texts]
    table = write_parquet(rows, tmp_path / "in", num_files=4, group=100)
    config = NearDedupConfig(split_bytes=1, verify_bytes=1 << 16)
    report = dedup_near([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    check(table, tmp_path / "out", config, None)
    assert report["removed"]["near"]["documents"] > 50


def test_workers_and_partitions_change_nothing(tmp_path: Path) -> None:
    write_parquet(make_rows(1), tmp_path / "in", num_files=2, group=40)
    results = []
    ways: list[tuple[int, dict[str, int]]] = [(workers, {}) for workers in (1, 2, 3, 8)]
    ways += [(1, {"num_partitions": 1}), (1, {"num_partitions": 17, "verify_bytes": 1})]
    ways += [(1, {"num_partitions": 2, "verify_bytes": 1 << 30})]
    for number, (workers, options) in enumerate(ways):
        out = tmp_path / str(number)
        config = NearDedupConfig(**{**SMALL, "priority": ("score",), **options})
        with LocalPool(workers) as execute:
            dedup_near([str(tmp_path / "in")], str(out), config, execute=execute, keep_work=True)
        written = contents(out)
        results.append({k: v.replace(str(out).encode(), b"OUT") for k, v in written.items()})
    assert results[1] == results[2] == results[3] == results[0]  # files of the stages too
    for other in results[4:]:
        for name in ("documents", "removed", "funnel", "dropped"):
            mine = {k: v for k, v in other.items() if k.startswith(name)}
            assert mine == {k: v for k, v in results[0].items() if k.startswith(name)}
        reports = [json.loads(x["report.json"]) for x in (results[0], other)]
        assert {**reports[0], "config": 0} == {**reports[1], "config": 0}


def test_splits_change_only_where_the_files_end(tmp_path: Path) -> None:
    table = write_parquet(make_rows(2), tmp_path / "in", num_files=2, group=30)
    for split_bytes in (1, 5000, 1 << 30):
        out = tmp_path / str(split_bytes)
        config = NearDedupConfig(**{**SMALL, "split_bytes": split_bytes})
        report = dedup_near([str(tmp_path / "in")], str(out), config, execute=ALONE)
        check(table, out, config, None)
    assert len(report["files"]) == 2


def test_json_lines_are_parquet_in_another_format(tmp_path: Path) -> None:
    rows = [row for row in make_rows(3) if row["text"] and not row["text"].isspace()]
    write_jsonl(rows[:50], tmp_path / "a.jsonl")
    write_jsonl(rows[50:], tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl.gz").write_bytes(__import__("gzip").compress(b"\n"))
    config = NearDedupConfig(**{**SMALL, "split_bytes": 1500}, priority=("score", "date", "site=web,wiki"))
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz")]
    report = dedup_near(inputs, str(tmp_path / "out"), config, execute=ALONE)
    assert len(report["files"]) > 5
    expected = dedup.near(
        [row["text"] for row in rows],
        threshold=0.7,
        ngram=2,
        priority=ranks_of(rows, ("score", "date", "site=web,wiki"), "first"),
    )
    left = read_all(tmp_path / "out" / "documents")
    kept = [row for row, keep in zip(rows, expected.keep, strict=True) if keep]
    assert left["text"].to_pylist() == [row["text"] for row in kept]
    assert left["id"].to_pylist() == [row["id"] for row in kept]
    assert left["url"].to_pylist() == [row["url"] for row in kept]


def test_lines_that_are_no_documents(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i} of many", "id": str(i)} for i in range(50)]
    write_jsonl(rows, tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("no json\n")
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"a.jsonl:51: expected a JSON object, got 'no json.*1 of 51 lines"):
        dedup_near([str(tmp_path / "a.jsonl")], out, NearDedupConfig(), execute=ALONE)
    config = NearDedupConfig(max_bad_fraction=0.05)
    report = dedup_near([str(tmp_path / "a.jsonl")], out, config, execute=ALONE)
    assert report["bad_lines"] == 1
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["steps"][0]["documents"] == 51
    assert funnel["steps"][1]["documents"] == 50 - report["removed"]["exact"]["documents"]


def test_funnel_and_report_add_up(tmp_path: Path) -> None:
    table = write_parquet(make_rows(4), tmp_path / "in", num_files=3, group=25)
    config = NearDedupConfig(**SMALL)
    report = dedup_near([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    sizes = [len(text.encode()) if text else 0 for text in table["text"].to_pylist()]
    removed = read_all(tmp_path / "out" / "removed")
    why = zip(removed["document"].to_pylist(), removed["reason"].to_pylist(), strict=True)
    exact = [doc for doc, reason in why if reason == "exact"]
    assert (report["documents"], report["bytes"]) == (len(table), sum(sizes))
    assert report["removed"]["exact"] == {"documents": len(exact), "bytes": sum(sizes[doc] for doc in exact)}
    assert report["left"]["documents"] == len(read_all(tmp_path / "out" / "documents"))
    assert report["left"]["bytes"] == sum(sizes) - sum(sizes[doc] for doc in removed["document"].to_pylist())
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [step["name"] for step in funnel["steps"]] == ["read", "exact duplicates", "near duplicates"]
    assert funnel["steps"][-1] == {"name": "near duplicates", **report["left"]}
    assert sum(drop["documents"] for drop in funnel["drops"]) == len(removed)
    # Clusters and similarities, counted again.
    kept, counts = np.unique(removed["kept_document"].to_numpy(), return_counts=True)
    order = np.lexsort((kept, -counts))[:20]
    shown = [(cluster["kept"]["document"], cluster["size"] - 1) for cluster in report["largest_clusters"]]
    assert shown == [(int(kept[i]), int(counts[i])) for i in order]
    texts = table["text"].to_pylist()
    for cluster in report["largest_clusters"]:
        for part in (cluster["kept"], *cluster["removed"]):
            assert part["text"] == texts[part["document"]][:300]
    histogram = np.histogram(removed["similarity"].to_numpy(), 100, (0, 1))[0]
    found = {round(x["from"] * 100): x["documents"] for x in report["similarities"]}
    assert found == {i: n for i, n in enumerate(histogram.tolist()) if n}
    samples = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {x["step"] for x in samples} == {"exact duplicates", "near duplicates"}


def test_a_dry_run_writes_no_documents_and_spares_work(tmp_path: Path) -> None:
    write_parquet(make_rows(5), tmp_path / "in", num_files=2, group=50)
    config, out = NearDedupConfig(**SMALL), tmp_path / "out"
    plain = dedup_near([str(tmp_path / "in")], str(tmp_path / "plain"), config, execute=ALONE)
    dry = dedup_near([str(tmp_path / "in")], str(out), config, execute=ALONE, dry_run=True)
    assert not (out / "documents").exists()
    assert {**dry, "dry_run": False, "files": plain["files"]} == plain
    stages: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, total - done)

    dedup_near([str(tmp_path / "in")], str(out), config, execute=ALONE, progress=progress)
    assert {name for name, waiting in stages.items() if waiting} == {"apply"}
    assert contents(out) == contents(tmp_path / "plain")


def test_other_storage(tmp_path: Path) -> None:
    table = write_parquet(make_rows(6), tmp_path / "in", num_files=2, group=30)
    write_jsonl([{"text": text} for text in ["one two three four"] * 3], tmp_path / "x.jsonl")
    store = fsspec.filesystem("memory")
    for path in [*(tmp_path / "in").iterdir(), tmp_path / "x.jsonl"]:
        store.pipe_file(f"/corpus/{path.name}", path.read_bytes())
    config = NearDedupConfig(**SMALL)
    inputs = ["memory://corpus/part-*", "memory://corpus/x.jsonl"]
    report = dedup_near(inputs, "memory://result", config, execute=ALONE)
    for name in storage.list_files("memory://result/documents"):
        (tmp_path / "documents").mkdir(exist_ok=True)
        (tmp_path / "documents" / Path(name).name).write_bytes(storage.read_bytes(name))
    for name in ("parquet", "lines"):
        (tmp_path / name).mkdir()
    for file, path in zip(report["files"], sorted((tmp_path / "documents").iterdir()), strict=True):
        path.rename(tmp_path / ("lines" if file["input"].endswith("/x.jsonl") else "parquet") / path.name)
    found = dedup.near(table["text"], threshold=0.7, ngram=2)
    assert same(read_all(tmp_path / "parquet"), table.filter(pa.array(found.keep)))
    assert read_all(tmp_path / "lines")["id"].to_pylist() == ["memory://corpus/x.jsonl@0"]
    assert report["files"][-1]["input"] == "memory://corpus/x.jsonl"
    assert dedup_near(inputs, "memory://result", config, execute=ALONE) == report
    store.rm("/corpus", recursive=True)
    store.rm("/result", recursive=True)


@pytest.mark.parametrize(("small_bytes", "expected"), [(1, [0]), (1 << 20, [1])])
def test_processes_by_the_size_of_the_input(
    small_bytes: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small inputs are done in this process, unless the caller says otherwise."""
    asked = []

    def pool(num_workers: int = 0) -> LocalPool:
        asked.append(num_workers)
        return LocalPool(1)

    write_parquet(make_rows(1, 5), tmp_path / "in", num_files=2, group=10)
    monkeypatch.setattr(run, "LocalPool", pool)
    monkeypatch.setattr(run, "_SMALL_BYTES", small_bytes)
    dedup_near([str(tmp_path / "in")], str(tmp_path / "out"), NearDedupConfig())
    assert asked == expected
