# ruff: noqa: RUF001 (Greek letters)
"""Equal texts by options, parts, streams and filters, against sets and dictionaries."""

import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dedup as oracle

from pylm import _core
from pylm.errors import InputError
from pylm.text import dedup

TEXTS = st.lists(
    st.none() | st.text(alphabet="aA \n\r.,!é\u0301ΣσßİΑ漢\u3000\u00a1\x85", max_size=6), max_size=12
)


def _column(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.string())


def _normalized(text: str | None, punctuation: bool) -> str | None:
    if text is None:
        return None
    text = text.lower()
    if not punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    return " ".join(text.split())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts=TEXTS, punctuation=st.booleans())
def test_normalised_texts(texts: list[str | None], punctuation: bool) -> None:
    expected = oracle.exact([_normalized(text, punctuation) for text in texts])
    for num_threads in (1, 3):
        found = dedup.exact(_column(texts), normalize=True, punctuation=punctuation, num_threads=num_threads)
        assert found.tolist() == expected


def _lines(text: str) -> list[tuple[int, int]]:
    """Places of lines that are not blank, in bytes."""
    places, start = [], 0
    for line in text.encode().split(b"\n"):
        end = start + len(line)
        places.append((start, end - line.endswith(b"\r") if line != b"" else end))
        start = end + 1
    return [(a, b) for a, b in places if text.encode()[a:b].strip(b" \t\r\v\f")]


def _paragraphs(text: str) -> list[tuple[int, int]]:
    """Runs of lines without a blank one between them."""
    data, places = text.encode(), []
    for a, b in _lines(text):
        between = data[places[-1][1] : a] if places else b""
        if places and between in (b"\n", b"\r\n"):
            places[-1] = (places[-1][0], b)
        else:
            places.append((a, b))
    return places


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.none() | st.text(alphabet="ab \n\n\r\t", max_size=14), max_size=6),
    unit=st.sampled_from(["line", "paragraph"]),
)
def test_parts(texts: list[str | None], unit: dedup.PartUnit) -> None:
    found = dedup.exact_parts(_column(texts), unit=unit)
    split = _lines if unit == "line" else _paragraphs
    places = [(i, a, b) for i, text in enumerate(texts) for a, b in split(text or "")]
    assert list(zip(found.doc.tolist(), found.start.tolist(), found.end.tolist(), strict=True)) == places
    parts = [(texts[i] or "").encode()[a:b].decode() for i, a, b in places]
    assert found.first.tolist() == oracle.exact(parts)
    assert found.keep.tolist() == [i == first for i, first in enumerate(oracle.exact(parts))]
    folded = dedup.exact_parts(_column(texts), unit=unit, normalize=True)
    assert folded.first.tolist() == oracle.exact([_normalized(part, True) for part in parts])


def test_parts_left_to_python() -> None:
    found = dedup.exact_parts(["ΟΔΟΣ\nοδος", "Οδος\n"], normalize=True)
    assert found.first.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="no UTF-8"):
        dedup.exact_parts(pa.array([b"a\n\xff"], pa.binary()), normalize=True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.Example.org:443/a/?utm_source=x&id=7#top", "example.org/a?id=7"),
        ("http://example.org", "example.org"),
        (" HTTP://EXAMPLE.ORG:80/// ", "example.org"),
        ("//example.org/A/b/", "example.org/A/b"),
        ("user:word@example.org:8080/x?b=1&a=2", "example.org:8080/x?b=1&a=2"),
        ("example.org/?gclid=1&fbclid&q=", "example.org?q="),
        ("example.org/p?a=1&&b=2#x?y", "example.org/p?a=1&b=2"),
        ("https://example.org/u?next=http://www.other.org/", "example.org/u?next=http://www.other.org/"),
        ("https://www.example.org.", "example.org"),
        ("https://[2001:db8::1]/a", "[2001:db8::1]/a"),
        ("https://www.example.org.:443/", "example.org"),
        ("www.www.example.org:8080", "example.org:8080"),
        ("https://www.org/", "www.org"),
        ("example.org/a /#x", "example.org/a"),
        ("mailto:x@y.org", "mailto:x@y.org"),
        ("data:text/plain,www.a//", "data:text/plain,www.a//"),
        ("https://", "https://"),
        ("#top", "#top"),
        ("", ""),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert dedup.normalize_url(url) == expected
    assert dedup.normalize_url(expected) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(url=st.text(alphabet="aw.:/@#?&=8\u00a0 ", max_size=12))
def test_an_address_in_its_form_stays(url: str) -> None:
    once = dedup.normalize_url("www." + url)
    assert dedup.normalize_url(once) == once


def test_equal_addresses() -> None:
    urls = ["http://a.org/x", None, "https://www.a.org/x/#1", "a.org/X", None, "a.org/x?utm_medium=m"]
    assert dedup.exact(_column(urls), unit="url").tolist() == [0, 1, 0, 3, 4, 0]
    assert dedup.normalize_url("a.org/x?utm_medium=m", drop_tracking=False) == "a.org/x?utm_medium=m"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches=st.lists(TEXTS, max_size=5), num_partitions=st.integers(1, 5), normalize=st.booleans())
def test_streams(batches: list[list[str | None]], num_partitions: int, normalize: bool) -> None:
    texts = [text for batch in batches for text in batch]
    found = dedup.exact_batches(
        (_column(batch) for batch in batches), num_partitions=num_partitions, normalize=normalize
    )
    first = oracle.exact([_normalized(text, True) if normalize else text for text in texts])
    expected = [(i, kept) for i, kept in enumerate(first) if i != kept]
    assert found.num_docs == len(texts)
    assert list(zip(found.duplicate.tolist(), found.first.tolist(), strict=True)) == expected


def test_streams_leave_nothing_behind(tmp_path: Path) -> None:
    draw = random.Random(1)
    texts = [str(draw.randrange(3000)) for _ in range(9000)]
    batches = [texts[i : i + 1000] for i in range(0, 9000, 1000)]
    found = dedup.exact_batches(iter(batches), folder=tmp_path, num_threads=3)
    first = dedup.exact(texts)
    duplicate = np.flatnonzero(first != np.arange(9000))
    assert (found.duplicate == duplicate).all()
    assert (found.first == first[duplicate]).all()
    with pytest.raises(TypeError, match=r"texts\[1\] must be str, got int"):
        dedup.exact_batches([["a"], ["a", 3]], folder=tmp_path)  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error_rate", [0.3, 0.05, 0.01, 0.001])
def test_filters_err_as_often_as_they_say(error_rate: float) -> None:
    capacity, strangers = 20_000, 100_000
    bloom = dedup.BloomFilter(capacity, error_rate)
    members = [f"member {i}" for i in range(capacity)]
    bloom.seen(members)
    assert bloom.contains(members).all()
    rate = bloom.contains([f"stranger {i}" for i in range(strangers)]).mean()
    # Rounding the number of hashes costs at most a sixth; three standard errors of the count.
    most = error_rate * 7 / 6
    assert error_rate / 2 < rate < most + 3 * (most / strangers) ** 0.5
    bits = -capacity * np.log(error_rate) / np.log(2) ** 2
    assert bits / 8 <= bloom.size_bytes < bits / 8 + 8


def test_filters_see_in_order() -> None:
    bloom = dedup.BloomFilter(100)
    assert bloom.seen(_column(["a", None, "b", "a", None])).tolist() == [False, False, False, True, False]
    assert bloom.contains(["b", "c", "c"]).tolist() == [True, False, False]
    assert bloom.seen(["b", "c", "c"]).tolist() == [True, False, True]
    assert bloom.seen([]).tolist() == []
    folded = dedup.BloomFilter(100, normalize=True, punctuation=False)
    assert folded.seen(["A  b.", "a b", "Σ", "σ"]).tolist() == [False, True, False, True]
    addresses = dedup.BloomFilter(100, unit="url")
    assert addresses.seen(["http://a.org/", "www.a.org"]).tolist() == [False, True]


def test_filters_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "seen.bloom"
    bloom = dedup.BloomFilter(1000, 1e-4, normalize=True)
    bloom.seen(["One", "two"])
    bloom.save(path)
    again = dedup.BloomFilter.load(path)
    assert (again.capacity, again.error_rate, again.num_hashes) == (1000, 1e-4, bloom.num_hashes)
    assert again.contains(["one", "TWO", "three"]).tolist() == [True, True, False]
    data = path.read_bytes()
    for damaged in (b"", b"no filter", data[: len(data) // 2], data[:200] + b"x" * 50 + data[250:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"seen\.bloom is (no filter|a filter of another version)"):
            dedup.BloomFilter.load(path)


def test_small_filters_err_no_more_often() -> None:
    """A million questions to filters of a thousand: places in a row would err several times as often."""
    capacity, error_rate, errors, num_strangers = 1000, 1e-4, 0, 1 << 18
    draw = np.random.default_rng(0)
    for _ in range(4):
        bloom = dedup.BloomFilter(capacity, error_rate)
        hashes = draw.integers(0, 1 << 64, (capacity + num_strangers, 2), np.uint64, endpoint=False)
        _core.visit_bloom(bloom._words, bloom.num_hashes, hashes[:capacity], add=True)
        errors += int(_core.visit_bloom(bloom._words, bloom.num_hashes, hashes[capacity:], add=False).sum())
    expected = 4 * num_strangers * error_rate
    assert errors < 7 / 6 * expected + 4 * expected**0.5


def test_threads_share_a_filter() -> None:
    bloom = dedup.BloomFilter(200_000, 1e-6)
    texts = [[f"{thread} {i}" for i in range(20_000)] for thread in range(4)]
    threads = [Thread(target=bloom.seen, args=(part,)) for part in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(bloom.contains(part).all() for part in texts)


def test_saved_filters_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "seen.bloom"
    dedup.BloomFilter(10).save(path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no room"):
        dedup.BloomFilter(20).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_files_are_no_filters(tmp_path: Path) -> None:
    path = tmp_path / "seen.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match=r"seen\.npy is no filter"):
        dedup.BloomFilter.load(path)
    fields = {
        "version": 2,
        "scheme": "",
        "capacity": 1 << 60,
        "error_rate": 0.1,
        "words": np.zeros(1, np.uint64),
    }
    for change in ({}, {"capacity": 1000}, {"capacity": 10, "error_rate": np.nan}, {"version": 1}):
        with path.open("wb") as file:
            np.savez(file, **(fields | change))
        with pytest.raises(InputError, match="a filter of another version, or damaged"):
            dedup.BloomFilter.load(path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the size of files are POSIX's")
def test_a_full_disk_is_no_result(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pylm.text import dedup
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
dedup.exact_batches([[str(i) for i in range(9000)]], num_partitions=2, folder={str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OSError" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_bad_options() -> None:
    for call, message in (
        (lambda: dedup.exact([], unit="word"), "unit must be one of 'document', 'url', got 'word'"),
        (lambda: dedup.exact([], unit="url", normalize=True), "addresses have rules of their own"),
        (lambda: dedup.exact([], punctuation=False), "add normalize=True"),
        (lambda: dedup.exact_parts([], unit="url"), "unit must be one of 'line', 'paragraph'"),
        (lambda: dedup.exact_batches([], num_partitions=0), "num_partitions must lie in"),
        (lambda: dedup.BloomFilter(0), "capacity must lie in"),
        (lambda: dedup.BloomFilter(1, 0.0), r"error_rate must lie in \[1e-15, 0.5\], got 0.0"),
        (lambda: dedup.BloomFilter(1, float("nan")), "error_rate must lie in"),
        (lambda: dedup.exact(pa.array([b"\xff"]), normalize=True), "no UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(TypeError, match="url must be a str, got bytes"):
        dedup.normalize_url(b"a.org")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.binary_view()])
def test_layouts_left_to_python(kind: pa.DataType) -> None:
    texts = pa.array(["ΟΔΟΣ", "οδος", None, "a"], pa.string()).cast(kind)
    assert dedup.exact(texts, normalize=True).tolist() == [0, 0, 2, 3]


@pytest.mark.slow
def test_more_than_4_gib() -> None:
    """Chunks that share their buffers: 4.5 GB of text in 30 MB of memory."""
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(10**6)) for _ in range(5000)) for _ in range(900)]
    chunk = pa.array(texts, pa.string())
    column = pa.chunked_array([chunk] * (4_500_000_000 // chunk.nbytes + 1))
    assert column.nbytes > 1 << 32
    first = dedup.exact(column)
    assert (first == np.arange(len(column)) % len(texts)).all()
    assert (dedup.near(column).cluster == first).all()
    assert len(dedup.exact_batches(iter(column.chunks)).duplicate) == len(column) - len(texts)
