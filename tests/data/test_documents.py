import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm.data.documents import (
    Piece,
    SourceConfig,
    cut_file,
    group_of,
    keyed_fraction,
    list_files,
    meta_of,
)
from pylm.errors import InputError


def source(kind: str = "files", *paths: object, **fields: object) -> SourceConfig:
    return SourceConfig(name="web", kind=kind, paths=tuple(map(str, paths)), **fields)


def make_tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def listed(folder: Path, config: SourceConfig) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_files(config)]


def test_folders_in_a_fixed_order(tmp_path: Path) -> None:
    make_tree(tmp_path, "b/2.py", "b/10.py", "a.py", "c.txt", ".hidden.py", ".git/x.py", "b/.cache/y.py")
    assert listed(tmp_path, source("files", tmp_path)) == ["a.py", "b/10.py", "b/2.py", "c.txt"]
    assert listed(tmp_path, source("files", tmp_path, suffixes=[".py"])) == ["a.py", "b/10.py", "b/2.py"]
    assert listed(tmp_path, source("files", tmp_path / "c.txt", tmp_path / "b")) == [
        "c.txt",
        "b/10.py",
        "b/2.py",
    ]


def test_globs_match_files_and_folders(tmp_path: Path) -> None:
    make_tree(tmp_path, "x1/a.txt", "x1/b.txt", "x2/c.txt", "y.txt", "odd[1].txt")
    assert listed(tmp_path, source("text", tmp_path / "x*")) == ["x1/a.txt", "x1/b.txt", "x2/c.txt"]
    assert listed(tmp_path, source("text", tmp_path / "**/*.txt")) == [
        "odd[1].txt",
        "x1/a.txt",
        "x1/b.txt",
        "x2/c.txt",
        "y.txt",
    ]
    assert listed(tmp_path, source("text", tmp_path / "odd[1].txt")) == ["odd[1].txt"]


def test_relative_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, "a/1.txt", "a/2.md")
    monkeypatch.chdir(tmp_path)
    assert list_files(source("text", "a/*.txt")) == [Path("a/1.txt")]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.txt", "b.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    config = source("text", tmp_path / "b.txt", tmp_path, tmp_path / "*.txt", tmp_path / "link.txt")
    assert listed(tmp_path, config) == ["b.txt", "a.txt"]


def test_row_formats_take_their_own_files_of_a_folder(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.jsonl", "b.json.gz", "c.ndjson.zst", "README.md", "d.parquet", "e.jsonl.tmp")
    assert listed(tmp_path, source("jsonl", tmp_path)) == ["a.jsonl", "b.json.gz", "c.ndjson.zst"]
    assert listed(tmp_path, source("parquet", tmp_path)) == ["d.parquet"]
    assert listed(tmp_path, source("jsonl", tmp_path / "README.md")) == ["README.md"]


@pytest.mark.parametrize("pattern", ["nothing.txt", "no/*.txt", "a**b", "", "nul\0"])
def test_paths_that_match_nothing(tmp_path: Path, pattern: str) -> None:
    path = f"{tmp_path}/{pattern}" if pattern else ""
    with pytest.raises(InputError, match=r"source web: nothing at '.*'; give a file, a folder or a glob"):
        list_files(source("text", path))


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="source web: no files in its empty list of paths"):
        list_files(source("text"))
    make_tree(tmp_path, "a.txt")
    with pytest.raises(InputError, match=r"source web: no files whose names end in \.py in /"):
        list_files(source("files", tmp_path, suffixes=[".py"]))
    with pytest.raises(InputError, match=r"no files whose names end in \.parquet in /"):
        list_files(source("parquet", tmp_path))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(1, 70))
def test_ranges_of_bytes_cover_a_file(tmp_path_factory: pytest.TempPathFactory, size: int, step: int) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_bytes(b"\n" * size)
    pieces = list(cut_file("jsonl", path, step))
    if size <= step:
        assert pieces == [(Piece(str(path)), size)]
    else:
        assert [byte for piece, _ in pieces for byte in range(piece.start, piece.stop or 0)] == list(
            range(size)
        )
        assert all(piece.stop - piece.start == n <= step for piece, n in pieces if piece.stop is not None)


def test_row_groups_cover_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [str(i) * 100 for i in range(50)]})
    pq.write_table(table, path, row_group_size=7, compression="none", use_dictionary=False)
    for step in (1, 3000, 20_000):
        pieces = [piece for piece, _ in cut_file("parquet", path, step)]
        if step == 20_000:
            assert pieces == [Piece(str(path))]
        else:
            assert [i for piece in pieces for i in range(piece.start, piece.stop or 0)] == list(range(8))
            assert len(pieces) == 8 if step == 1 else 1 < len(pieces) < 8
    pq.ParquetWriter(path, table.schema).close()
    assert list(cut_file("parquet", path, 1)) == [(Piece(str(path)), 0)]


def test_what_cannot_be_entered_midway_stays_whole(tmp_path: Path) -> None:
    for kind, name in (("jsonl", "a.jsonl.gz"), ("jsonl", "a.zst"), ("text", "a.txt"), ("files", "a.py")):
        (tmp_path / name).write_bytes(b"x" * 100)
        assert list(cut_file(kind, tmp_path / name, 10)) == [(Piece(str(tmp_path / name)), 100)]
    os.truncate(tmp_path / "a.zst", 50)
    (tmp_path / "a.zst").rename(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: not a readable Parquet file"):
        list(cut_file("parquet", tmp_path / "a.parquet", 10))


def test_meta_is_put_together() -> None:
    assert meta_of({}) is None
    assert meta_of({"a": None}) is None
    assert json.loads(meta_of({"a": 1, "b": [None]}) or "") == {"a": 1, "b": [None]}
    for meta in ({"x": 1, "a": 2}, '{"x": 1, "a": 2}'):
        assert json.loads(meta_of({"meta": meta, "a": 3}) or "") == {"x": 1, "a": 3}
    for text in ("not JSON", "[1]", '"x"'):
        assert json.loads(meta_of({"meta": text}) or "") in ({"meta": text}, {"meta": json.loads('"x"')})
    assert json.loads(meta_of({"meta": "not JSON"}) or "") == {"meta": "not JSON"}
    assert meta_of({"a": "é"}) == '{"a": "é"}'
    assert meta_of({"a": "\ud800é"}) == '{"a": "\\ud800\\u00e9"}'


def test_groups() -> None:
    assert group_of("id", None) == "id"
    assert group_of("id", '{"x": {"group": "inner"}}') == "id"
    assert group_of("id", '{"x": "group"}') == "id"
    assert group_of("id", '{"group": "g"}') == "g"
    assert group_of("id", '{"group": 7}') == "7"
    assert group_of("id", '{"group": {"b": 1, "a": 2}}') == '{"a": 2, "b": 1}'
    assert group_of("id", '{"group": null}') == "id"


def test_fractions_are_the_hash_and_even() -> None:
    digest = hashlib.blake2b(b"3\0doc", digest_size=8).digest()
    assert keyed_fraction("doc", 3) == sum(byte << 8 * i for i, byte in enumerate(digest)) / 2**64
    fractions = sorted(keyed_fraction(f"doc {i}", 0) for i in range(4000))
    # Kolmogorov-Smirnov: the bound holds for 99.9 % of draws from the uniform distribution.
    assert max(abs(x - i / 4000) for i, x in enumerate(fractions)) < 1.95 / 4000**0.5
    assert sum(keyed_fraction(f"doc {i}", 0) < 0.5 != keyed_fraction(f"doc {i}", 1) for i in range(100)) > 0
