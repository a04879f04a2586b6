"""Suffix arrays and common prefixes against sorting and counting."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import suffix_array as oracle

from pylm import _core
from pylm.errors import InputError
from pylm.text import dedup

DTYPES = [np.uint8, np.uint16, np.uint32]


def fibonacci(size: int) -> bytes:
    a, b = b"b", b"a"
    while len(b) < size:
        a, b = b, b + a
    return b[:size]


TEXTS = {
    "empty": b"",
    "one": b"x",
    "zero": b"\0",
    "two": b"ba",
    "unary": b"a" * 700,
    "largest": b"\xff" * 300,
    "fibonacci": fibonacci(1000),
    "periodic": b"abc" * 300,
    "rising": bytes(range(256)),
    "falling": bytes(range(256))[::-1],
    "noise": random.Random(5).randbytes(3000),
    "utf-8": "naïve 漢字 \U0001f600 ".encode() * 40,
}


def check(data: bytes | NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]) -> None:
    expected = oracle.suffix_array(list(data))
    for num_threads in (1, 2, 5):
        order = dedup.suffix_array(data, num_threads=num_threads)
        assert order.dtype == np.int32
        assert order.tolist() == expected
        lcp = dedup.lcp_array(data, order, num_threads=num_threads)
        assert lcp.dtype == np.int32
        assert lcp.tolist() == oracle.lcp_array(list(data), expected)
    symbols = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    wide = _core.suffix_array(symbols, wide=True, num_threads=2)
    assert wide.dtype == np.int64
    assert wide.tolist() == expected
    assert dedup.lcp_array(data, wide).dtype == np.int64
    assert dedup.lcp_array(data, wide).tolist() == lcp.tolist()


@pytest.mark.parametrize("name", TEXTS)
def test_edges(name: str) -> None:
    check(TEXTS[name])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_small_alphabets(dtype: type[np.unsignedinteger], data: st.DataObject) -> None:
    most = int(np.iinfo(dtype).max)
    symbols = st.sampled_from([0, 1, 2, most - 1, most][: data.draw(st.integers(1, 5))])
    check(np.array(data.draw(st.lists(symbols, max_size=60)), dtype))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=60))
@settings(deadline=None)
def test_large_token_ids(ids: list[int]) -> None:
    check(np.array(ids + ids[: len(ids) // 2], np.uint32))


def check_long(data: NDArray[np.uint8] | NDArray[np.uint32]) -> None:
    """A permutation whose neighbours share lcp symbols and then rise is the suffix array."""
    order = dedup.suffix_array(data, num_threads=1)
    lcp = dedup.lcp_array(data, order, num_threads=1)
    assert (np.bincount(order, minlength=data.size) == 1).all()
    padded = np.append(data.astype(np.int64), -1)  # the end comes first
    assert (padded[order[:-1] + lcp[1:]] < padded[order[1:] + lcp[1:]]).all()
    for i in random.Random(0).sample(range(1, data.size), 2000):
        a, b, shared = order[i - 1], order[i], lcp[i]
        assert (data[a : a + shared] == data[b : b + shared]).all()
    wide = _core.suffix_array(data, wide=True, num_threads=2)
    assert (dedup.suffix_array(data, num_threads=2) == order).all()
    assert (dedup.lcp_array(data, order, num_threads=2) == lcp).all()
    assert (wide == order).all()
    assert (dedup.lcp_array(data, wide, num_threads=2) == lcp).all()


def test_real_text(shared_data: Path) -> None:
    files = sorted(path for path in (shared_data / "text").rglob("*") if path.is_file())
    data = np.frombuffer(b"".join(path.read_bytes()[:500_000] for path in files)[:2_000_000], np.uint8)
    check_long(data)
    half = data[: data.size // 8 * 4]
    check_long(half.view(np.uint32))  # large symbols


@pytest.mark.parametrize("num_symbols", [2, 256])
def test_long_noise(num_symbols: int) -> None:
    check_long(np.random.default_rng(3).integers(0, num_symbols, 1_000_000).astype(np.uint8))


def test_long_repeats() -> None:
    check_long(np.frombuffer(fibonacci(500_000) + b"a" * 500_000, np.uint8))
    block = random.Random(4).randbytes(70_000)
    check_long(np.frombuffer(block * 9, np.uint8))


def test_containers() -> None:
    text = b"mississippi"
    expected = dedup.suffix_array(text).tolist()
    for data in (bytearray(text), memoryview(text), np.frombuffer(text, np.uint8)):
        assert dedup.suffix_array(data).tolist() == expected
        assert dedup.lcp_array(data, np.array(expected, np.int32)).tolist() == oracle.lcp_array(
            list(text), expected
        )


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("text", TypeError, "data must be a NumPy array, got str; encode it"),
        ([1, 2], TypeError, "data must be a NumPy array, got list"),
        (np.zeros(3), InputError, "data must have dtype uint8, uint16, uint32, got float64"),
        (np.zeros(3, np.int32), InputError, "got int32"),
        (np.zeros(3, ">u4"), InputError, "got >u4"),
        (np.zeros((2, 2), np.uint8), InputError, r"one dimension, got shape \(2, 2\)"),
        (np.zeros(8, np.uint8)[::2], InputError, "data must be a contiguous array"),
        (memoryview(bytes(8))[::2], InputError, "data must be a contiguous array"),
    ],
)
def test_wrong_data(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dedup.suffix_array(data)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        dedup.lcp_array(data, np.zeros(3, np.int32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ([0, 1, 2], TypeError, "suffix_array must be a NumPy array, got list"),
        (np.array([2, 1, 0], np.uint32), InputError, "suffix_array must have dtype int32, int64, got uint32"),
        (np.array([2, 1], np.int32), InputError, "one entry a symbol, 3, got 2"),
        (np.array([2, 1, 3], np.int32), ValueError, "suffix_array: entry 2 is 3, expected one of 0 to 2"),
        (np.array([2, -1, 0], np.int64), ValueError, "suffix_array: entry 1 is -1"),
        (np.zeros((3, 1), np.int32), InputError, "suffix_array must be a contiguous array"),
    ],
)
def test_wrong_suffix_array(order: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dedup.lcp_array(b"abc", order)  # type: ignore[arg-type]


def test_wrong_threads() -> None:
    with pytest.raises(InputError, match="num_threads must lie in"):
        dedup.suffix_array(b"abc", num_threads=-1)
