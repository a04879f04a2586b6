"""Repeated substrings against a dictionary of all windows; both methods against each other on real text."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import substrings as oracle

from pylm.errors import InputError
from pylm.text import TokenArray, _substrings, dedup

LAYOUTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
WAYS = [("sampled", False, 0), ("sampled", False, 1), ("suffix_array", False, 0), ("suffix_array", True, 0)]


def as_list(spans: dedup.Spans) -> list[tuple[int, int, int]]:
    assert {a.dtype for a in (spans.doc, spans.start, spans.end)} == {np.dtype(np.int64)}
    return list(zip(spans.doc.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True))


def find_all(texts: Any, length: int, keep: Any, against: Any = None) -> list[dedup.Spans]:
    """In every way there is: methods, widths, passes, threads."""
    return [
        _substrings._find(
            texts,
            against,
            min_bytes=length,
            min_tokens=length,
            keep=keep,
            method=method,  # type: ignore[arg-type]
            num_threads=num_threads,
            wide=wide,
            anchor_bytes=anchor_bytes,
        )
        for method, wide, anchor_bytes in WAYS
        for num_threads in (1, 2, 3)
    ]


def check_bytes(
    texts: Sequence[bytes | None], length: int, against: Sequence[bytes | None] | None = None
) -> None:
    column = pa.array(texts, pa.large_binary())
    other = None if against is None else pa.array(against, pa.large_binary())
    for keep in ("first", "none"):
        expected = oracle.on_characters(oracle.spans(texts, length, keep=keep, against=against), texts)
        for spans in find_all(column, length, keep, other):
            assert as_list(spans) == expected
        assert spans.num_docs == len(texts)
        assert spans.size == sum(end - start for _, start, end in expected)
        assert spans.apply(column).to_pylist() == oracle.cut(texts, expected)


def fibonacci(size: int) -> bytes:
    a, b = b"b", b"a"
    while len(b) < size:
        a, b = b, b + a
    return b[:size]


CASES: dict[str, list[bytes | None]] = {
    "nothing": [],
    "empty": [b"", b"", None],
    "one byte": [b"a", b"a", b"b", b"a"],
    "nulls between": [b"abcdef", None, b"xabcde", None],
    "unary": [b"a" * 300],
    "unary texts": [b"a" * size for size in (1, 40, 39, 41, 100)],
    "fibonacci": [fibonacci(500), b"x" + fibonacci(120)],
    "periodic": [b"abc" * 70, b"bca" * 20, b"cab" * 13 + b"!" + b"abc" * 30],
    "copies": [b"one and the same document, again and again"] * 30,
    "borders": [b"abcdefgh", b"ijkl", b"ghij", b"efghijkl"],
    "separators inside": [b"a\0b\0c\0\0\xff", b"\0b\0c\0\0", b"\xff\0\xff\0", b"a\0b\0c"],
    "invalid": [
        b"\xa9\xa9\xa9\xc3\xa9\xc3",
        b"\xc3\xa9\xa9\xa9\xa9",
        b"\xf0\x9f\x98\xf0\x9f\x98\x80",
        b"\xed\xa0\x80" * 9,
    ],
    "characters": [
        "é漢\U0001f600é".encode(),
        "è漢\U0001f601è".encode(),
        "漢字漢字漢".encode(),
        "\U0001f600".encode() * 9,
    ],
}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, length: int) -> None:
    check_bytes(CASES[name], length)
    check_bytes(CASES[name], length, CASES["characters"] + CASES["unary texts"][:2])
    check_bytes(CASES[name], length, [])


@st.composite
def collections(draw: st.DrawFn, symbols: Sequence[int], max_texts: int = 8) -> list[bytes | None]:
    """Texts of few symbols, and of repeated parts of those before."""
    texts: list[bytes | None] = []
    all_before = b""
    for _ in range(draw(st.integers(0, max_texts))):
        text = bytes(draw(st.lists(st.sampled_from(symbols), max_size=30)))
        for start, size, copies in draw(
            st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(1, 4)), max_size=3)
        ):
            text += all_before[start : start + size] * copies
        all_before += text
        texts.append(draw(st.sampled_from([text, text, text, text, None])))
    return texts


@pytest.mark.parametrize("symbols", [b"a", b"ab", b"abc", b"a\xc3\xa9\0", "漢é".encode(), bytes(range(256))])
@given(data=st.data(), length=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_random(symbols: bytes, data: st.DataObject, length: int) -> None:
    check_bytes(data.draw(collections(symbols)), length)
    check_bytes(data.draw(collections(symbols, 4)), length, data.draw(collections(symbols, 4)))


@given(data=st.data(), length=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_strings(data: st.DataObject, length: int) -> None:
    texts = data.draw(st.lists(st.text(st.sampled_from("aé漢\U0001f600"), max_size=30), max_size=6))
    encoded = [text.encode() for text in texts]
    for keep in ("first", "none"):
        expected = oracle.on_characters(oracle.spans(encoded, length, keep=keep), encoded)
        for spans in find_all(texts, length, keep):
            assert as_list(spans) == expected
        left = spans.apply(texts)
        left.validate(full=True)
        assert [text.encode() for text in left.to_pylist()] == oracle.cut(encoded, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@given(data=st.data(), length=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_tokens(dtype: type[np.unsignedinteger], data: st.DataObject, length: int) -> None:
    most = int(np.iinfo(dtype).max)
    # Ids that agree in some of their bytes: matches must lie on whole ids.
    values = st.lists(st.sampled_from([0, 1, 256, 257, most]), max_size=40)
    rows = data.draw(st.lists(values, min_size=1, max_size=6))
    rows.append(rows[0] * 2)
    other = data.draw(st.lists(values, min_size=1, max_size=3))
    arrays = [np.array(row, dtype) for row in rows]
    for keep in ("first", "none"):
        expected = oracle.spans(rows, length, keep=keep)
        for spans in find_all(arrays, length, keep):
            assert as_list(spans) == expected
            assert spans.unit == "token"
        assert [a.tolist() for a in spans.apply(arrays)] == _cut_rows(rows, expected)
        if dtype == np.uint32:
            tokens = TokenArray(np.concatenate(arrays), np.cumsum([0, *map(len, rows)]))
            assert as_list(dedup.substrings(tokens, min_tokens=length, keep=keep)) == expected
            left = spans.apply(tokens)
            assert left.ids.dtype == np.uint32
            assert [a.tolist() for a in left] == _cut_rows(rows, expected)
        expected = oracle.spans(rows, length, keep=keep, against=other)
        for spans in find_all(arrays, length, keep, [np.array(row, dtype) for row in other]):
            assert as_list(spans) == expected


def _cut_rows(rows: list[list[int]], found: list[tuple[int, int, int]]) -> list[list[int]]:
    left = [list(row) for row in rows]
    for i, start, end in reversed(found):
        del left[i][start:end]
    return left


def test_large_groups() -> None:
    """Hundreds of texts around one core, which differ at every distance from it."""
    draw = np.random.default_rng(3)
    core = bytes(draw.integers(97, 123, 30, np.uint8))
    texts = []
    for _ in range(600):
        left, right = (bytes(draw.integers(97, 99, draw.integers(0, 14), np.uint8)) for _ in range(2))
        texts.append(left + core + right)
    column = pa.array(texts)
    for length in (30, 36, 40, 44, 50):
        for keep in ("first", "none"):
            expected = oracle.spans(texts, length, keep=keep)
            for spans in find_all(column, length, keep):
                assert as_list(spans) == expected
        expected = oracle.spans(texts[250:], length, keep="first", against=texts[:250])
        for spans in find_all(column[250:], length, "first", column[:250]):
            assert as_list(spans) == expected


@pytest.mark.parametrize("num_docs", [3000])
def test_copies_cost_no_more(num_docs: int) -> None:
    texts = ["a document of which there are many copies, whatever that is good for, and no other"] * num_docs
    spans = dedup.substrings(texts, min_bytes=20)
    assert spans.doc.tolist() == list(range(1, num_docs))
    assert spans.apply(texts).to_pylist() == [texts[0]] + [""] * (num_docs - 1)
    assert len(dedup.substrings(texts, min_bytes=20, keep="none")) == num_docs


@pytest.mark.parametrize(("min_bytes", "most"), [(20, 50_000), (100, 4_000_000), (1000, 50_000)])
def test_real_text(shared_data: Path, min_bytes: int, most: int) -> None:
    texts = []
    for path in sorted(shared_data.rglob("*")):
        if path.suffix in (
            ".txt",
            ".jsonl",
            ".json",
            ".csv",
            ".gz",
            ".en",
            ".html",
            ".warc",
            ".model",
            ".md",
        ):
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            texts += [content[i : i + 100_000] for i in range(0, min(len(content), most), 100_000)]
    column = pa.array(texts, pa.large_binary())
    even, odd = pa.array(texts[::2], pa.large_binary()), pa.array(texts[1::2], pa.large_binary())

    def find(method: Any, num_threads: int) -> list[list[tuple[int, int, int]]]:
        found = [
            dedup.substrings(
                column, min_bytes=min_bytes, keep="none", method=method, num_threads=num_threads
            ),
            dedup.substrings(
                odd,
                min_bytes=min_bytes,
                against=even,
                method=method,
                num_threads=num_threads,
            ),
        ]
        return [as_list(spans) for spans in found]

    expected = find("suffix_array", 0)
    assert min(map(len, expected)) > 10
    for num_threads in (1, 2, 3):
        assert find("sampled", num_threads) == expected
    first = dedup.substrings(column, min_bytes=min_bytes)
    assert as_list(first) == as_list(dedup.substrings(column, min_bytes=min_bytes, method="suffix_array"))
    left = first.apply(column)
    assert pc.sum(pc.binary_length(left)).as_py() == sum(map(len, texts)) - first.size


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts(layout: pa.DataType) -> None:
    texts = [
        "",
        None,
        "the same words, the same words again",
        "x",
        "is it the same words again?",
        "short",
        None,
    ]
    encoded = [None if text is None else text.encode() for text in texts]
    expected = oracle.spans(encoded, 8, keep="none")
    assert len(expected) == 3
    column = pa.array(encoded, pa.binary()).cast(layout)
    padded = pa.concat_arrays([pa.array([b"the same words", None], pa.binary()).cast(layout), column])
    for form in (column, pa.chunked_array([column[:3], column[3:3], column[3:]]), padded[2:]):
        spans = dedup.substrings(form, min_bytes=8, keep="none")
        assert as_list(spans) == expected
        left = spans.apply(form)
        left.validate(full=True)
        assert left.type == (pa.large_binary() if "binary" in str(layout) else pa.large_string())
        assert [t.encode() if isinstance(t, str) else t for t in left.to_pylist()] == oracle.cut(
            encoded, expected
        )
        assert left.null_count == 2


def test_memory_mapped(tmp_path: Path) -> None:
    texts = ["a line that comes again and again", "and a line that comes again and again"] * 50
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    with pa.memory_map(str(tmp_path / "t.arrow")) as source:
        column = pa.ipc.open_file(source).read_all()["text"]
        assert as_list(dedup.substrings(column, min_bytes=20)) == as_list(
            dedup.substrings(texts, min_bytes=20)
        )


def test_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "new" / "part-0.spans.parquet"
    texts = ["twice the same", "twice the same", "else"]
    for spans in (dedup.substrings(texts, min_bytes=5), dedup.substrings(texts, min_bytes=50)):
        spans.save(path)
        read = dedup.Spans.load(path)
        assert as_list(read) == as_list(spans)
        assert (read.num_docs, read.unit) == (3, "byte")
        assert read.apply(texts).equals(spans.apply(texts))
    tokens = dedup.substrings([np.zeros(9, np.uint16)], min_tokens=3)
    tokens.save(str(path))
    assert dedup.Spans.load(path).unit == "token"
    assert pq.read_table(path).to_pylist() == [{"doc": 0, "start": 1, "end": 9}]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_wrong_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"doc": [1]}), path)
    with pytest.raises(InputError, match=r"other\.parquet: expected a Parquet file written by Spans\.save"):
        dedup.Spans.load(path)
    about = {b"pylm.spans": b'{"num_docs": "2", "unit": "byte"}'}
    columns = {name: pa.array([None], pa.int64()) for name in ("doc", "start", "end")}
    for table in (
        pa.table(columns).replace_schema_metadata(about),
        pa.table(columns).replace_schema_metadata({b"pylm.spans": b'{"num_docs": 2, "unit": "byte"}'}),
    ):
        pq.write_table(table, path)
        with pytest.raises(InputError, match=r"other\.parquet: expected a Parquet file written by Spans"):
            dedup.Spans.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"other\.parquet: expected a Parquet file"):
        dedup.Spans.load(path)
    with pytest.raises(FileNotFoundError):
        dedup.Spans.load(tmp_path / "absent.parquet")


def spans_of(doc: int, start: int, end: int, num_docs: int = 2, unit: Any = "byte") -> dedup.Spans:
    return dedup.Spans(*(np.array([i], np.int64) for i in (doc, start, end)), num_docs, unit)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (spans_of(2, 0, 1), r"span 0 is \[0, 1\) of text 2, but there are 2 texts"),
        (spans_of(-1, 0, 1), "of text -1"),
        (spans_of(0, -1, 1), "which has 3 bytes"),
        (spans_of(0, 1, 4), "which has 3 bytes"),
        (spans_of(0, 1, 1), "which has 3 bytes"),
        (spans_of(1, 0, 1), r"span 0 is \[0, 1\) of text 1, which cuts a character"),
        (spans_of(1, 1, 2), "which cuts a character"),
        (spans_of(0, 0, 1, 3), "texts must be the 3 texts that the spans are of, got 2"),
        (spans_of(0, 0, 1, 2, "token"), "texts must be counted in tokens as the spans are, got bytes"),
        (
            dedup.Spans(np.array([0, 0]), np.array([0, 1]), np.array([1, 2]), 2),
            r"span 1 is \[1, 2\) of text 0, which is not behind the span before it",
        ),
    ],
)
def test_wrong_spans(spans: dedup.Spans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spans.apply(["abc", "é"])


@pytest.mark.parametrize(
    "spans",
    [
        spans_of(2, 0, 1, unit="token"),
        spans_of(-1, 0, 1, unit="token"),
        spans_of(0, -1, 1, unit="token"),
        spans_of(1, 0, 2, unit="token"),
        spans_of(0, 1, 1, unit="token"),
        dedup.Spans(np.array([0, 0]), np.array([0, 1]), np.array([1, 2]), 2, "token"),
    ],
)
def test_wrong_spans_of_tokens(spans: dedup.Spans) -> None:
    ids = [np.array([1, 2, 3], np.uint16), np.array([4], np.uint16)]
    with pytest.raises(InputError, match=r"span [01] is \[-?\d, \d\) of text"):
        spans.apply(ids)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": "abc"}, TypeError, "texts must be a list of str or an Arrow string array, got str"),
        ({"texts": ["a", 1]}, TypeError, r"texts\[1\] must be str, got int"),
        ({"texts": pa.array([1])}, InputError, "texts: expected an Arrow string or binary array"),
        ({"texts": ["a"], "against": [None]}, TypeError, r"against\[0\] must be str, got NoneType"),
        ({"texts": ["a"], "min_bytes": 0}, InputError, r"min_bytes must lie in \[1, 2147483647\], got 0"),
        ({"texts": ["a"], "min_bytes": 1.5}, TypeError, "min_bytes must be an int, got float"),
        ({"texts": ["a"], "min_tokens": 0}, InputError, "min_tokens must lie in"),
        ({"texts": ["a"], "keep": "last"}, InputError, "keep must be one of 'first', 'none', got 'last'"),
        (
            {"texts": ["a"], "method": "x"},
            InputError,
            "method must be one of 'sampled', 'suffix_array', got 'x'",
        ),
        ({"texts": ["a"], "num_threads": -1}, InputError, "num_threads must lie in"),
        ({"texts": [np.zeros(3)]}, InputError, r"texts\[0\] must have dtype uint16, uint32, got float64"),
        ({"texts": [np.zeros(3, np.uint16), [1]]}, TypeError, r"texts\[1\] must be a NumPy array, got list"),
        (
            {"texts": [np.zeros(3, np.uint16), np.zeros(3, np.uint32)]},
            InputError,
            r"texts\[1\] must have the dtype of texts\[0\], uint16, got uint32",
        ),
        ({"texts": [np.zeros(9, np.uint16)[::2]]}, InputError, r"texts\[0\] must be a contiguous array"),
        (
            {"texts": [np.zeros(3, np.uint16)], "against": ["abc"]},
            InputError,
            "against must hold tokens as texts does, got bytes",
        ),
        (
            {"texts": [np.zeros(3, np.uint16)], "against": [np.zeros(3, np.uint32)]},
            InputError,
            "against must have the dtype of texts, uint16, got uint32",
        ),
        ({"texts": TokenArray(np.zeros(3, np.uint32), np.array([0, 4]))}, ValueError, "offsets must rise"),
        ({"texts": ["a"], "min_tokens": 9}, InputError, "min_tokens does not apply to texts; give min_bytes"),
        (
            {"texts": [np.zeros(3, np.uint16)], "min_bytes": 9},
            InputError,
            "min_bytes does not apply to token ids; give min_tokens",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dedup.substrings(**arguments)
