import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pylm import _core
from pylm.data.dedup.blocks import group, read_arrays, read_block, write_blocks
from pylm.errors import InputError


def test_every_block_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [
        [rng.integers(0, 9, n).astype("<u4"), rng.random((n, 2)), np.frombuffer(b"abc" * n, np.uint8)]
        for n in (0, 1, 5, 1000)
    ]
    path = str(tmp_path / "folder" / "x.blocks")
    write_blocks(path, iter(blocks), num=4)
    for number, (rows, values, data) in enumerate(blocks):
        found = read_arrays(path, number, "<u4", "<f8", "u1")
        assert [x.tolist() for x in found] == [rows.tolist(), values.ravel().tolist(), data.tolist()]
        mapped = read_block(path, number, mapped=True)
        assert [bytes(x) for x in mapped] == [x.tobytes() for x in (rows, values, data)]
        assert all(buffer.address % 8 == 0 for buffer in mapped if buffer.size)
    assert read_arrays(path, -1, "<u4", "<f8", "u1")[0].tolist() == blocks[-1][0].tolist()
    write_blocks(path, [[pa.py_buffer(b"12345")], []], num=2)
    assert bytes(read_block(path, 0)[0]) == b"12345"
    assert read_block(path, 1) == []
    write_blocks(path, [], num=0)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.blocks"
    write_blocks(str(path), [[np.arange(10)], [np.arange(3)]], num=2)
    whole = path.read_bytes()
    for index in (2, -3):
        with pytest.raises(InputError, match=r"x\.blocks: damaged; remove it"):
            read_block(str(path), index)
    with pytest.raises(InputError, match="damaged"):
        read_arrays(str(path), 0, "<i8", "<i8")
    for content in (
        b"",
        whole[:20],
        whole[:-8],
        b"x" + whole[1:],
        whole[:40] + struct.pack("<Q", 9) + whole[48:],
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            [read_block(str(path), number) for number in (0, 1)]
    with pytest.raises(InputError, match="no such file"):
        read_block(str(tmp_path / "none"), 0)


def test_group() -> None:
    keys = np.array([2, 0, 2, 1, 0], np.uint16)
    order, bounds = group(keys, 4)
    assert order.tolist() == [1, 4, 3, 0, 2]
    assert bounds.tolist() == [0, 2, 3, 5, 5]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("seed", range(5))
def test_sets_against_a_search(dtype: type[np.uint32], seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, num_pairs = 200, rng.integers(0, 200)
    a, b = rng.integers(0, size, num_pairs), rng.integers(0, size, num_pairs)
    parents = np.arange(size, dtype=dtype)
    for begin in range(0, num_pairs, 50):
        _core.unite_pairs(parents, a[begin : begin + 50], b[begin : begin + 50])
    _core.find_roots(parents)
    neighbours: dict[int, set[int]] = {i: {i} for i in range(size)}
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        neighbours[x].add(y)
        neighbours[y].add(x)
    for start in range(size):
        seen, waiting = {start}, [start]
        while waiting:
            for other in neighbours[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        assert parents[start] == min(seen)


def test_sets_refuse_strangers() -> None:
    parents = np.arange(3, dtype=np.uint32)
    for a, b in [([0], [3]), ([-1], [0]), ([0, 1], [1])]:
        with pytest.raises(ValueError, match=r"outside of the sets|one length"):
            _core.unite_pairs(parents, np.array(a), np.array(b))
