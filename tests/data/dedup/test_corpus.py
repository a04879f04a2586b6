"""What comes in: files of other formats and names, lines that are read from the beginning on, odd values."""

import gzip
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import make_rows, read_all, same, write_jsonl, write_parquet

from pylm import dedup
from pylm.data import storage
from pylm.data.dedup import (
    ExactDedupConfig,
    NearDedupConfig,
    SubstringDedupConfig,
    corpus,
    dedup_exact,
    dedup_near,
    dedup_substrings,
)
from pylm.data.dedup.corpus import list_splits
from pylm.data.dedup.plan import plan_substrings
from pylm.data.executors import LocalPool
from pylm.errors import InputError

ALONE = LocalPool(1)


def pack(path: Path, suffix: str) -> Path:
    """Compress a file."""
    content = path.read_bytes()
    packed = path.with_suffix(f"{path.suffix}{suffix}")
    packed.write_bytes(
        gzip.compress(content) if suffix == ".gz" else pa.compress(content, "zstd", asbytes=True)
    )
    return packed


def columns(path: Path, *names: str) -> list[list[Any]]:
    """Columns of all files of a folder."""
    table = read_all(path)
    return [table[name].to_pylist() for name in names]


@pytest.mark.parametrize(("suffix", "split_bytes"), [(".gz", 1), (".zst", 3000), (".gz", 1 << 20)])
def test_compressed_lines_become_parts(suffix: str, split_bytes: int, tmp_path: Path) -> None:
    rows = [row for row in make_rows(5, 12) if row["text"] and not row["text"].isspace()]
    write_jsonl(rows, tmp_path / "a.jsonl")
    packed = pack(tmp_path / "a.jsonl", suffix)
    size = sum(len(row["text"].encode()) for row in rows)
    least = {1: len(rows), 3000: size // 9000, 1 << 20: 1}[split_bytes]
    near = NearDedupConfig(threshold=0.7, ngram=2, priority=("score",), num_partitions=3, verify_bytes=2000)
    substring = SubstringDedupConfig(min_bytes=12, partition_bytes=4000)
    for name, run, config in (("near", dedup_near, near), ("cut", dedup_substrings, substring)):
        results = []
        for path, cut in ((tmp_path / "a.jsonl", 1 << 20), (packed, split_bytes)):
            out = tmp_path / f"{name}-{path.suffix}"
            recipe = config.model_copy(update={"split_bytes": cut})
            report = run([str(path)], str(out), recipe, execute=ALONE)
            shown = [name for name in read_all(out / "removed").schema.names if not name.endswith("file")]
            results.append((columns(out / "documents", "text", "url"), columns(out / "removed", *shown)))
        assert results[0] == results[1]
        assert least <= len(report["files"]) <= len(rows)
        assert sum(file["num_rows"] for file in report["files"]) == len(rows)
        starts = [file["first_row"] for file in report["files"]]
        assert starts == sorted(set(starts))
        assert run([str(packed)], str(out), recipe, execute=ALONE) == report


def test_lines_of_a_store_become_parts(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i} of many", "id": str(i)} for i in range(50)]
    write_jsonl(rows, tmp_path / "a.jsonl")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/lines/a.jsonl", (tmp_path / "a.jsonl").read_bytes())
    try:
        config = ExactDedupConfig(split_bytes=100)
        report = dedup_exact(["memory://lines"], str(tmp_path / "out"), config, execute=ALONE)
        assert len(report["files"]) > 8
        assert columns(tmp_path / "out" / "documents", "id") == [[str(i) for i in range(50)]]
    finally:
        fs.rm("/lines", recursive=True)


def test_another_size_of_parts_is_another_recipe(tmp_path: Path) -> None:
    write_jsonl([{"text": f"text number {i % 40}"} for i in range(50)], tmp_path / "a.jsonl")
    packed, out = str(pack(tmp_path / "a.jsonl", ".zst")), tmp_path / "out"
    for split_bytes in (100, 300, 100):
        config = ExactDedupConfig(split_bytes=split_bytes)
        report = dedup_exact([packed], str(out), config, execute=ALONE, keep_work=True)
        assert report["left"]["documents"] == 40
        assert len(list((out / "documents").iterdir())) == len(report["files"])
        assert len(read_all(out / "documents")) == 40


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write_jsonl([{"text": "a text"}], folder / "a.jsonl")
    for name in ("README.md", "deep/b.csv", "c.parquet.gz", ".hidden.txt", "deep/d.txt"):
        (folder / name).write_text("x")
    report = dedup_exact([str(folder)], str(tmp_path / "out"), ExactDedupConfig(), execute=ALONE)
    (warning,) = report["warnings"]
    assert "left out 4 files" in warning
    assert "README.md, c.parquet.gz, b.csv, ..." in warning
    warnings: list[str] = []
    list_splits([f"{folder}/*.jsonl"], columns=["text"], warn=warnings.append)
    assert not warnings
    with pytest.raises(InputError, match=r"deep: no files whose names end in \.parquet"):
        list_splits([str(folder / "deep")], columns=["text"])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text('{"text": "a"}\n')
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match=r"udcff\.jsonl': a name that is not UTF-8"):
        dedup_exact([str(tmp_path)], str(tmp_path / "out"), ExactDedupConfig())
    assert not (tmp_path / "out" / "dedup.json").exists()


def test_documents_without_an_address(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "url": f"https://a.org/{i // 2}" if i < 6 else None} for i in range(10)]
    write_jsonl(rows, tmp_path / "a.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    config = ExactDedupConfig(unit="url")
    for name in ("a.jsonl", "a.parquet"):
        report = dedup_exact([str(tmp_path / name)], str(tmp_path / f"{name}-out"), config, execute=ALONE)
        assert report["left"]["documents"] == 7
        assert report["warnings"] == ["4 of 10 documents have no address in 'url', and stay"]
    wrong = ExactDedupConfig(unit="url", url_column="link")
    with pytest.raises(InputError, match="no document has an address in 'link'; name another"):
        dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), wrong, execute=ALONE)


def test_no_line_is_a_document(tmp_path: Path) -> None:
    write_jsonl([{"content": f"text {i}"} for i in range(10)], tmp_path / "a.jsonl")
    config = ExactDedupConfig(max_bad_fraction=1)
    with pytest.raises(
        InputError, match=r"a\.jsonl:1: expected text, .* in the field 'text'.*none is a docu"
    ):
        dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), config, execute=ALONE)
    assert storage.list_files(str(tmp_path / "out" / "documents")) == []


@pytest.mark.parametrize("field", ["score", "id"])
def test_integers_that_lines_cannot_compare(field: str, tmp_path: Path) -> None:
    write_jsonl([{"text": "a text", field: (1 << 53) + 2 * i} for i in range(4)], tmp_path / "a.jsonl")
    config = ExactDedupConfig(priority=(field,))
    report = dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), config, execute=ALONE)
    assert report["left"]["documents"] == 1
    assert read_all(tmp_path / "out" / "removed")["kept_row"].to_pylist() == [3] * 3
    for wrong in ((1 << 53) + 1, -(10**300)):
        write_jsonl([{"text": "a text", field: wrong}], tmp_path / "b.jsonl")
        with pytest.raises(InputError, match=f"b.jsonl: the field '{field}' .* holds .*write Parquet"):
            dedup_exact([str(tmp_path / "b.jsonl")], str(tmp_path / "out-b"), config, execute=ALONE)


@pytest.mark.parametrize("split_bytes", [40, 1 << 20])
def test_names_in_lines_do_not_depend_on_what_is_beside_them(split_bytes: int, tmp_path: Path) -> None:
    values = [0.5, "web", 1.0, True, (1 << 53) + 1, {"a": 1}, "\ud800"]
    write_jsonl(
        [{"text": "a text", "v": x, "id": f"00{i}"} for i, x in enumerate(values)], tmp_path / "a.jsonl"
    )
    rules = {
        "v=1": 2,
        "v=9,0.5": 0,
        "v=true": 3,
        f"v={(1 << 53) + 1}": 4,
        "v=x,web": 1,
        "id=7,003": 3,
        "id=3": 0,
    }
    for rule, kept in rules.items():
        config = ExactDedupConfig(priority=(rule,), split_bytes=split_bytes)
        dedup_exact([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), config, execute=ALONE)
        assert set(read_all(tmp_path / "out" / "removed")["kept_document"].to_pylist()) == {kept}, rule


def test_globs_leave_out_what_a_shell_would(tmp_path: Path) -> None:
    for name in ("a/b.jsonl", ".a/b.jsonl", "a/.b.jsonl", ".c.jsonl", "c.jsonl"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl([{"text": name}], tmp_path / "in" / name)

    def found(pattern: str) -> list[str]:
        splits = list_splits([str(tmp_path / "in" / pattern)], columns=["text"], split_bytes=1 << 20)
        return [str(Path(x.path).relative_to(tmp_path / "in")) for x in splits]

    assert found("*") == found("**/*.jsonl") == found("") == ["a/b.jsonl", "c.jsonl"]
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "in"), "/globbed", recursive=True)
    for pattern, names in (("*", ["a/b", "c"]), ("*/*.jsonl", ["a/b"]), (".*", [".a/b", ".c"])):
        splits = list_splits([f"memory://globbed/{pattern}"], columns=["text"], split_bytes=1 << 20)
        assert [x.path for x in splits] == [f"memory:///globbed/{name}.jsonl" for name in names]
    fs.rm("/globbed", recursive=True)
    assert found(".*") == [".a/b.jsonl", ".c.jsonl"]
    assert found(".a/*") == [".a/b.jsonl"]
    (tmp_path / "in" / "d.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(InputError, match=r"in/d\.jsonl: a link to a file that is not there"):
        found("*")


def test_dictionaries_with_small_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes out can be read again, though a row group may not hold more values than the indices count."""
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [f"text number {i} has some longer words {i * 7919} of {i * 104729}" for i in range(10, 310)]

    def encode(values: list[str]) -> pa.Array:
        return pa.array(values).dictionary_encode().cast(kind)

    schema = pa.schema([("text", kind), ("site", kind)])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for first in (0, 100, 200):
            some = texts[first : first + 100]
            writer.write_table(pa.table([encode(some), encode([f"{x}/" for x in some])], schema=schema))
    # Emptied copies are one more value than the indices count.
    pq.write_table(
        pa.table([encode(texts[:128] * 2), encode(["a"] * 256)], schema=schema), tmp_path / "b.parquet"
    )
    substring = SubstringDedupConfig(min_bytes=45, split_bytes=20_000)
    for least in (1 << 40, 1):
        monkeypatch.setattr(corpus, "_LEAST_CUT_BYTES", least)
        for name, left in (("a", 300), ("b", 128)):
            inputs, out = [str(tmp_path / f"{name}.parquet")], str(tmp_path / f"{name}-{least}")
            dedup_near(inputs, f"{out}-near", NearDedupConfig(ngram=20, threshold=0.99), execute=ALONE)
            dedup_substrings(inputs, f"{out}-cut", substring, execute=ALONE)
            for found in (Path(f"{out}-near"), Path(f"{out}-cut")):
                table = read_all(found / "documents")
                assert table.schema.types == [kind, kind]
                assert table["text"].to_pylist() == texts[:left]


def test_small_dictionaries_in_lists(tmp_path: Path) -> None:
    kind = pa.list_(pa.dictionary(pa.int8(), pa.string()))
    schema = pa.schema([("text", pa.string()), ("tags", kind)])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for first, count in ((0, 60), (100, 100), (200, 90)):
            tags = (
                pa.array([f"tag {first + i}" for i in range(count)]).dictionary_encode().cast(kind.value_type)
            )
            lists = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), tags)
            texts = [f"text number {first + i}, {i * 7919} and {i}" for i in range(count)]
            writer.write_table(pa.table([texts, lists], schema=schema))
    inputs = [str(tmp_path / "a.parquet")]
    dedup_exact(inputs, str(tmp_path / "out"), ExactDedupConfig(), execute=ALONE)
    with pq.ParquetFile(
        tmp_path / "out" / "documents" / "00000.parquet"
    ) as file:  # which it can by row groups only
        assert sum(len(file.read_row_group(i)) for i in range(file.num_row_groups)) == 250
    plan = plan_substrings(inputs, SubstringDedupConfig(min_bytes=30), num_workers=1)
    assert plan.documents == pytest.approx(250)


@pytest.mark.parametrize("group", [7, 40, 10_000])
def test_large_row_groups_become_parts(group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_parquet(make_rows(3, 12), tmp_path / "in", num_files=2, group=group)
    texts = table["text"].cast(pa.large_string()).combine_chunks()
    spans = dedup.substrings(texts, min_bytes=12)
    config = SubstringDedupConfig(min_bytes=12, split_bytes=600, partition_bytes=4000)
    inputs, whole, cut = [str(tmp_path / "in")], str(tmp_path / "whole"), str(tmp_path / "cut")
    expected = dedup_substrings(inputs, whole, config, execute=ALONE)
    monkeypatch.setattr(corpus, "_LEAST_CUT_BYTES", 1)
    report = dedup_substrings(inputs, cut, config, execute=ALONE)
    assert report["removed_bytes"] == expected["removed_bytes"] > 1000
    assert same(read_all(tmp_path / "cut" / "documents"), read_all(tmp_path / "whole" / "documents"))
    removed = [read_all(tmp_path / name / "removed") for name in ("whole", "cut")]
    assert removed[0].equals(removed[1])
    assert int((spans.end - spans.start).sum()) == report["removed_bytes"]
    rows = [(file["input"], file["first_row"]) for file in report["files"]]
    assert rows == sorted(set(rows))
    assert len(rows) > (2 if group == 7 else 10)
    assert not (tmp_path / "cut" / "work").exists()
    assert dedup_substrings(inputs, cut, config, execute=ALONE) == report
    near = dedup_near(inputs, str(tmp_path / "near"), NearDedupConfig(split_bytes=600), execute=ALONE)
    assert len(near["files"]) == len(expected["files"]) < len(rows) + (group == 7)
