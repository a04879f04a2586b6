import codecs
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm.data import readers
from pylm.data.documents import SCHEMA, Piece, SourceConfig, cut_file
from pylm.data.readers import BadRow, line_of, read_pieces
from pylm.errors import InputError

Row = dict[str, object]


def read(path: Path, kind: str, *pieces: Piece, **fields: object) -> tuple[list[Row], list[BadRow]]:
    config = SourceConfig(name="web", kind=kind, **fields)
    batches = list(read_pieces(config, pieces or [Piece(str(path))]))
    for batch in batches:
        assert batch.documents.schema == SCHEMA
        batch.documents.validate(full=True)
        assert set(batch.documents["source"].to_pylist()) <= {"web"}
    rows = [row for batch in batches for row in batch.documents.to_pylist()]
    return rows, [bad for batch in batches for bad in batch.bad_rows]


def texts(path: Path, kind: str, **fields: object) -> list[object]:
    rows, bad = read(path, kind, **fields)
    assert bad == []
    return [row["text"] for row in rows]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_fields_of_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = [
        '{"text": "naïve 🙂", "id": "a", "url": "http://x", "date": "2024", "lang": "en", "n": [1]}',
        "   ",
        '{"id": 7, "text": "two\\nlines", "url": 5, "meta": {"group": "g"}}',
        '{"text": "no id", "id": null}',
        '{"text": "empty id", "id": ""}',
    ]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join(lines).encode()))
    rows, bad = read(path, "jsonl")
    starts = np.cumsum([0, *(len(line.encode()) + 1 for line in lines)]).tolist()
    assert bad == []
    assert [row["text"] for row in rows] == ["naïve 🙂", "two\nlines", "no id", "empty id"]
    assert [row["id"] for row in rows] == ["a", "7", f"{path}@{starts[3]}", f"{path}@{starts[4]}"]
    assert [(row["url"], row["date"]) for row in rows] == [("http://x", "2024"), *[(None, None)] * 3]
    metas = [json.loads(str(row["meta"])) if row["meta"] else None for row in rows]
    assert metas == [{"lang": "en", "n": [1]}, {"url": 5, "group": "g"}, None, None]


def test_named_fields(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"content": "c", "key": "k", "text": "t"})
    rows, _ = read(path, "jsonl", text_field="content", id_field="key")
    assert [(row["text"], row["id"], row["meta"]) for row in rows] == [("c", "k", '{"text": "t"}')]
    rows, _ = read(path, "jsonl", text_field="text", id_field="text")
    assert [(row["text"], row["id"]) for row in rows] == [("t", "t")]


def test_bad_lines_are_set_aside(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "\xff"}',
        b"{",
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 5}',
        b'{"text": ""}',
        b'{"text": " \\n"}',
        b'{"text": "\\ud800"}',
        b'{"text": "x", "n": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b'{"text": "also good", "id": "\\udfff", "url": "\\ud800", "x": "\\ud800"}\r',
        b"\xef\xbb\xbf{}",
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows, bad = read(path, "jsonl")
    assert [(row["text"], row["id"], row["url"]) for row in rows][1] == ("also good", "?", "?")
    assert [row["text"] for row in rows] == ["good", "also good"]
    reasons = ["not_utf8", "bad_json", "bad_json", *["no_text"] * 4, "not_utf8", *["bad_json"] * 3]
    assert [row.reason for row in bad] == reasons
    numbers = [i for i, _ in enumerate(lines, start=1) if i not in (1, 12)]
    assert [line_of(row.place) for row in bad] == [f"{path}:{i}" for i in numbers]
    assert [row.size_bytes for row in bad] == [len(lines[i - 1]) + (i < len(lines)) for i in numbers]
    assert bad[3].shown == '{"body": "x"}\n'
    assert all(len(row.shown) <= 60 for row in bad)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'{"text": "a\\r\\n"}\r\n\r\n{"text": "b"}\r\n')
    assert texts(path, "jsonl") == ["a\r\n", "b"]
    for kind in ("text", "files"):
        path.write_bytes(codecs.BOM_UTF8 + b"a\r\n\r\nb\rc\r")
        assert texts(path, kind) == ["a\n\nb\nc\n"]


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"x.jsonl{suffix}"
        for content in (b"", compress(b"")):
            path.write_bytes(content)
            assert read(path, "jsonl") == ([], [])
            assert read(path, "text") == ([], [BadRow(str(path), "empty", "", 0)])
            assert read(path, "files") == ([], [BadRow(str(path), "empty", "", 0)])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(max_size=8), max_size=12),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
)
def test_pieces_read_as_the_whole(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], step: int, end: str, is_open: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.jsonl"
    content = "".join(json.dumps({"text": x}, ensure_ascii=False) + end for x in values)
    path.write_bytes(content.encode()[: -len(end)] if is_open else content.encode())
    pieces = [piece for piece, _ in cut_file("jsonl", path, step)]
    whole = read(path, "jsonl")
    assert read(path, "jsonl", *pieces) == whole
    assert [row["text"] for row in whole[0]] == [x for x in values if x.strip()]


def test_parquet_pieces_read_as_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = [None if i % 11 == 3 else f"text {i}" for i in range(50)]
    pq.write_table(pa.table({"text": values}), path, row_group_size=7)
    pieces = [piece for piece, _ in cut_file("parquet", path, 1)]
    rows, bad = read(path, "parquet")
    assert len(pieces) == 8
    assert read(path, "parquet", *pieces) == (rows, bad)
    assert [(row["id"], row["text"]) for row in rows] == [
        (f"{path}:{i}", x) for i, x in enumerate(values, start=1) if x
    ]
    assert bad == [BadRow(f"{path}:{i}", "no_text", "", 0) for i, x in enumerate(values, start=1) if not x]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {
            "text": pa.array(["naïve", "b", "c", " ", ""], kind),
            "id": pa.array([1, None, 3, 4, 5]),
            "url": pa.array(["u", None, "w", "x", "y"]),
            "date": pa.array([0, None, 86_400_000_000, 1, 2], pa.timestamp("us")),
            "meta": pa.array([{"group": "g"}, None, {"group": None}, None, None]),
            "group": pa.array([None, "h", None, None, None]),
            "unused": pa.array([b"\xff"] * 5),
        }
    )
    pq.write_table(table, path)
    rows, bad = read(path, "parquet")
    assert [tuple(row[x] for x in ("id", "text", "url", "meta")) for row in rows] == [
        ("1", "naïve", "u", '{"group": "g"}'),
        (f"{path}:2", "b", None, '{"group": "h"}'),
        ("3", "c", "w", '{"group": null}'),
    ]
    assert [row["date"] for row in rows] == [
        "1970-01-01 00:00:00.000000",
        None,
        "1970-01-02 00:00:00.000000",
    ]
    assert [(x.place, x.reason, x.size_bytes) for x in bad] == [
        (f"{path}:4", "no_text", 1),
        (f"{path}:5", "no_text", 0),
    ]


def test_written_documents_are_read_as_they_were(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "t", "source": "web", "url": "u", "date": "d", "meta": '{"group": "g"}'},
        {"id": "b", "text": "u", "source": "web", "url": None, "date": None, "meta": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", "parquet") == (rows, [])


def raw_strings(*values: bytes) -> pa.Array:
    """A string column whose bytes nobody has checked."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def test_parquet_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {
        "text": raw_strings(b"a", b"\xff\xfe", b" ", b"d"),
        "id": raw_strings(b"1", b"2", b"3", b"\xff"),
    }
    pq.write_table(pa.table(columns), path)
    rows, bad = read(path, "parquet")
    assert [(row["id"], row["text"]) for row in rows] == [("1", "a"), ("\ufffd", "d")]
    assert [(row.place, row.reason, row.size_bytes) for row in bad] == [
        (f"{path}:2", "not_utf8", 2),
        (f"{path}:3", "no_text", 1),
    ]


def parquet_bytes(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


GOOD = b'{"text": "hello"}\n' * 1000
GZIP, ZSTD, PARQUET = gzip.compress(GOOD), zstandard.compress(GOOD), parquet_bytes(text=["a"] * 5000)

DAMAGED = {
    "cut.jsonl.gz": (GZIP[:-20], r"damaged or truncated gz stream \(.+\); fetch the file again"),
    "cut-in-footer.jsonl.gz": (GZIP[:-1], "damaged or truncated gz stream"),
    "header.jsonl.gz": (GZIP[:5], "damaged or truncated gz stream"),
    "flipped.jsonl.gz": (GZIP[:-8] + b"\0\0\0\0" + GZIP[-4:], "damaged or truncated gz stream"),
    "trailing.jsonl.gz": (GZIP + b"garbage", "damaged or truncated gz stream"),
    "plain.jsonl.gz": (GOOD, "damaged or truncated gz stream"),
    "cut.jsonl.zst": (ZSTD[:-5], r"damaged or truncated zst stream \(.+\); fetch the file again"),
    "plain.jsonl.zst": (GOOD, "damaged or truncated zst stream"),
    "cut.txt.gz": (GZIP[:-20], "damaged or truncated gz stream"),
    "cut.py.zst": (ZSTD[:-5], "damaged or truncated zst stream"),
    "latin.txt": (
        b"ab\r\n" + "é".encode("latin-1") + b"cd",
        r"not UTF-8 at byte 4 \(b'\\xe9cd'\); convert it first",
    ),
    "bom.txt": (codecs.BOM_UTF8 + b"abc\xff", r"not UTF-8 at byte 6 \(b'\\xff'\)"),
    "utf16.txt": ("abc".encode("utf-16"), "not UTF-8 at byte 0"),
    "cut-character.txt": ("abcé".encode()[:-1], r"not UTF-8 at byte 3 \(b'\\xc3'\)"),
    "far.txt": (b"x" * (1 << 20) + b"y\xc3\xa9\xc3" + b"z" * 10, rf"not UTF-8 at byte {(1 << 20) + 3} "),
    "border.txt": (b"x" * ((1 << 20) - 1) + b"\xc3z", rf"not UTF-8 at byte {(1 << 20) - 1} "),
    "lines.parquet": (GOOD, "not a readable Parquet file"),
    "empty.parquet": (b"", "not a readable Parquet file"),
    "cut.parquet": (PARQUET[:-20], "not a readable Parquet file"),
    "no-column.parquet": (
        parquet_bytes(body=["x"], id=[1]),
        "no column 'text'; it has body, id; set text_field",
    ),
    "numbers.parquet": (parquet_bytes(text=[1]), "the column 'text' must hold strings, it holds int64"),
    "bytes.parquet": (parquet_bytes(text=[b"x"]), "the column 'text' must hold strings, it holds binary"),
    "lists.parquet": (parquet_bytes(text=["x"], id=[["y"]]), "the column 'id' must hold strings or numbers"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    kinds = {".jsonl": "jsonl", ".txt": "text", ".py": "files", ".parquet": "parquet"}
    with pytest.raises(InputError, match=re.escape(str(path)) + ": " + message) as caught:
        read(path, next(kinds[x] for x in path.suffixes if x in kinds))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text", "files"])
def test_files_that_vanish(tmp_path: Path, kind: str) -> None:
    for name in ("gone", "gone.gz"):
        with pytest.raises(InputError, match=f"{name}: (cannot be read|not a readable Parquet file)"):
            read(tmp_path / name, kind)


def test_damaged_pages_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(PARQUET[:4] + b"\xff" * 40 + PARQUET[44:])
    with pytest.raises(InputError, match=r"x\.parquet: not a readable Parquet file"):
        read(path, "parquet")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_streams_of_several_members_are_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](json.dumps({"text": x}).encode() + b"\n") for x in "abc"))
    assert texts(path, "jsonl") == ["a", "b", "c"]


@settings(deadline=None, max_examples=100)
@given(st.text("ab\r\n-é", max_size=40), st.sampled_from(["-", "--", "\n\n", "a-", "aa"]), st.integers(1, 9))
def test_separators(tmp_path_factory: pytest.TempPathFactory, text: str, separator: str, block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "parts.txt"
    path.write_bytes(text.encode())
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split(separator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK_BYTES", block)
        rows, bad = read(path, "text", separator=separator)
    wanted = [(f"{path}:{i}", x) for i, x in enumerate(expected, start=1) if x.strip()]
    assert [(row["id"], row["text"]) for row in rows] == wanted
    assert [row.reason for row in bad] == ([] if wanted else ["empty"])


def test_source_files(tmp_path: Path) -> None:
    files = {"a.py": b"x = 1\n", "b.bin": b"\x00\xff\xfe", "c.py": b" \n", "d.py.gz": gzip.compress(b"y\n")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows, bad = read(tmp_path, "files", *(Piece(str(tmp_path / name)) for name in files))
    assert [(row["id"], row["text"]) for row in rows] == [
        (str(tmp_path / "a.py"), "x = 1\n"),
        (str(tmp_path / "d.py.gz"), "y\n"),
    ]
    assert [(row.place, row.reason, row.size_bytes) for row in bad] == [
        (str(tmp_path / "b.bin"), "not_utf8", 3),
        (str(tmp_path / "c.py"), "empty", 2),
    ]


def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 5000)
    rows = [{"text": "x" * 400, "id": i} for i in range(100)]
    write_lines(tmp_path / "x.jsonl", *rows)
    (tmp_path / "x.txt").write_text("-".join("x" * 400 for _ in range(100)))
    pq.write_table(
        pa.table({"text": [row["text"] for row in rows]}), tmp_path / "x.parquet", use_dictionary=False
    )
    write_lines(tmp_path / "bad.jsonl", *[{}] * 100)
    for kind, name in (("jsonl", "x"), ("text", "x"), ("parquet", "x"), ("jsonl", "bad")):
        config = SourceConfig(name="web", kind=kind, separator="-")
        path = tmp_path / f"{name}.{'txt' if kind == 'text' else kind}"
        batches = list(read_pieces(config, [Piece(str(path))]))
        sizes = [len(batch.documents) + len(batch.bad_rows) for batch in batches]
        assert sum(sizes) == 100
        assert max(sizes) <= 13


def test_documents_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_DOCUMENT_BYTES", 30)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 7)
    path = tmp_path / "x.jsonl"
    lines = [
        b'{"text": "a"}',
        b'{"text": "' + b"b" * 100 + b'"}',
        b'{"text": "' + b"c" * 17 + b'"}',
        b"d" * 31,
    ]
    assert len(lines[2]) == 29
    path.write_bytes(b"\n".join(lines))
    rows, bad = read(path, "jsonl")
    assert [row["text"] for row in rows] == ["a", "c" * 17]
    assert [(line_of(row.place), row.reason, row.size_bytes) for row in bad] == [
        (f"{path}:2", "too_long", 113),
        (f"{path}:4", "too_long", 31),
    ]
    (tmp_path / "x.txt").write_text("x" * 31)
    assert [row.reason for row in read(tmp_path / "x.txt", "files")[1]] == ["too_long"]
    with pytest.raises(InputError, match=r"x\.txt: a document of more than 0 MiB; set a separator"):
        read(tmp_path / "x.txt", "text")
    assert texts(write_lines(tmp_path / "y.txt", "x" * 20, "y" * 20), "text", separator="\n") == [
        f'"{"x" * 20}"',
        f'"{"y" * 20}"',
    ]


def test_real_rows(shared_data: Path) -> None:
    path = shared_data / "text" / "c4_demo.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    rows, bad = read(path, "jsonl", *(piece for piece, _ in cut_file("jsonl", path, 100_000)))
    assert bad == []
    assert [row["text"] for row in rows] == [json.loads(line)["text"] for line in lines]
    assert len(rows) == len(lines) > 200
