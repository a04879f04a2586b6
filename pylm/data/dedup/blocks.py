"""Files of numbered blocks: what one task hands to many others, each of which reads its own block.

    bytes 0-7    b"pylmblk1"
    then         number of blocks, and where each begins and the last ends: little-endian uint64
    then         the blocks, each beginning at a multiple of 8

A block holds arrays of one dimension: their number, the bytes of each, and their bytes, each filled up to a
multiple of 8. What is in them, the reader knows. Reading a block takes two small reads and one of the block.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from pylm.data import storage
from pylm.errors import InputError

_MAGIC = b"pylmblk1"


class BlockWriter:
    """Writes the blocks of a file one after another."""

    def __init__(self, file: BinaryIO, num_blocks: int) -> None:
        """Begin a file that shall have `num_blocks` blocks."""
        self._file = file
        self._bounds = [len(_MAGIC) + 8 * (num_blocks + 2)]
        self._num_blocks = num_blocks
        file.write(bytes(self._bounds[0]))

    def add(self, *arrays: NDArray[np.generic] | pa.Buffer) -> None:
        """Write the next block."""
        sizes = [array.nbytes if isinstance(array, np.ndarray) else array.size for array in arrays]
        head = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
        self._file.write(head)
        for array, size in zip(arrays, sizes, strict=True):
            self._file.write(np.ascontiguousarray(array).data if isinstance(array, np.ndarray) else array)
            self._file.write(bytes(-size % 8))
        self._bounds.append(self._bounds[-1] + len(head) + sum(size + -size % 8 for size in sizes))

    def finish(self) -> None:
        """Write the table of blocks."""
        assert len(self._bounds) == self._num_blocks + 1, "every block is written, and no other"
        self._file.seek(0)
        self._file.write(_MAGIC + struct.pack(f"<{2 + self._num_blocks}Q", self._num_blocks, *self._bounds))


def write_blocks(path: str, blocks: Iterable[Sequence[NDArray[np.generic] | pa.Buffer]], *, num: int) -> None:
    """Write a file of `num` blocks, whole or not at all."""
    with storage.publish(path) as temporary, temporary.open("wb") as file:
        writer = BlockWriter(file, num)
        for block in blocks:
            writer.add(*block)
        writer.finish()


def read_block(path: str, index: int, *, mapped: bool = False) -> list[pa.Buffer]:
    """Read a block of a file as bytes, one buffer an array.

    Args:
        path: of the file.
        index: of the block; from the end where negative.
        mapped: map a local file into memory in place of reading it, for large blocks.

    Raises:
        InputError: the file is not there, damaged, or has no such block.
    """
    head = storage.read_bytes(path, 0, 16)
    num_blocks = struct.unpack("<Q", head[8:])[0] if head[:8] == _MAGIC and len(head) == 16 else 0
    index += num_blocks if index < 0 else 0
    bounds = storage.read_bytes(path, 16 + 8 * index, 16) if 0 <= index < num_blocks else b""
    if len(bounds) < 16:
        raise _damaged(path)
    begin, end = struct.unpack("<2Q", bounds)
    if mapped and end > begin and storage.is_local(path):
        with pa.memory_map(path) as file:
            file.seek(begin)
            block = file.read_buffer(end - begin)
    else:
        block = pa.py_buffer(storage.read_bytes(path, begin, end - begin))
    return _split(path, block, end - begin)


def _split(path: str, block: pa.Buffer, size: int) -> list[pa.Buffer]:
    if block.size != size or size < 8:
        raise _damaged(path)
    (num_arrays,) = struct.unpack("<Q", block[:8])
    if 8 * (1 + num_arrays) > size:
        raise _damaged(path)
    sizes = struct.unpack(f"<{num_arrays}Q", block[8 : 8 * (1 + num_arrays)])
    arrays, place = [], 8 * (1 + num_arrays)
    for array_size in sizes:
        if place + array_size > size:
            raise _damaged(path)
        arrays.append(block.slice(place, array_size))
        place += array_size + -array_size % 8
    return arrays


def _damaged(path: str) -> InputError:
    return InputError(f"{path}: damaged; remove it and run the same command again, which writes it anew")


def read_arrays(path: str, index: int, *dtypes: DTypeLike) -> list[NDArray[Any]]:
    """Read a block as arrays of the given types.

    Raises:
        InputError: as `read_block`.
    """
    buffers = read_block(path, index)
    if len(buffers) != len(dtypes):
        raise _damaged(path)
    return [np.frombuffer(buffer, dtype) for buffer, dtype in zip(buffers, dtypes, strict=True)]


def group(keys: NDArray[np.generic], num_groups: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order items by their group, keeping their order in it.

    Args:
        keys: (num_items,) group of each, 0 to num_groups - 1.
        num_groups: how many there are.

    Returns:
        The order (num_items,), and the bounds of the groups in it (num_groups + 1,).
    """
    order = np.argsort(keys, kind="stable")
    return order, np.searchsorted(keys[order], np.arange(num_groups + 1))
