"""Rows of equal length from documents and from conversations, in which nothing leaks across a border.

Pretraining cuts a shard, one long row of ids, into windows. Window w reads ids `w T ... (w+1) T` (T + 1 of
them): T inputs, each with the next id as its target. So in an epoch every id but the shard's last is an
input once, and every id but its first a target once.

    ids       ... the  end  EOS  A  new  one  EOS ...
    targets   ... end  EOS  A    new one  EOS ...
    documents ...  0    0    1   1   1    1    2

An end of text ends a document as a target and opens the next one as an input: it is the one token that
stands before every document, so the model learns how documents begin, and never from another document's
text, since attention stays within `documents` and positions start again from 0 at it.

Fine-tuning packs whole conversations (`pack_rows`), or pads them (`pad_rows`).

Shapes: B rows, T time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError

IGNORE = -100
"""Target of a position that is not trained."""

Tokens = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.int64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Conversations side by side.

    Attributes:
        ids_BT: int64 inputs.
        targets_BT: int64 next ids of the same conversation, `IGNORE` where not trained.
        positions_BT: int64, from 0 in every conversation; None where each row holds one, from its start.
        documents_BT: int64 number of the conversation within its row, filling included as the last; None
            where each row holds one, filled up behind, where causal attention does not look.
        members: for each row, which conversations it holds, in order.
    """

    ids_BT: Int64
    targets_BT: Int64
    positions_BT: Int64 | None
    documents_BT: Int64 | None
    members: list[list[int]]


def num_windows(num_tokens: int, seq_len: int) -> int:
    """Count the windows of a shard; the last may be short."""
    return max(0, -(-(num_tokens - 1) // seq_len))


def cut_windows(
    parts: Sequence[tuple[Tokens, int]], *, seq_len: int, eos_ids: Sequence[int]
) -> tuple[Int64, Int64]:
    """Cut windows out of shards.

    Args:
        parts: for each row, a shard's ids and the number of the window.
        seq_len: T.
        eos_ids: for each row, the id that fills up the last window of a shard, behind its end.

    Returns:
        ids_BT and targets_BT, int64; targets are `IGNORE` behind the end.
    """
    ids_BT1 = np.empty((len(parts), seq_len + 1), dtype=np.int64)
    ends: list[tuple[int, int]] = []
    for row, (tokens, window) in enumerate(parts):
        piece = tokens[window * seq_len : (window + 1) * seq_len + 1]
        ids_BT1[row, : len(piece)] = piece
        if len(piece) <= seq_len:
            ids_BT1[row, len(piece) :] = eos_ids[row]
            ends.append((row, max(0, len(piece) - 1)))
    targets_BT = ids_BT1[:, 1:].copy()
    for row, end in ends:
        targets_BT[row, end:] = IGNORE
    return np.ascontiguousarray(ids_BT1[:, :-1]), targets_BT


def number_documents(opens_BT: NDArray[np.bool_]) -> tuple[Int64, Int64] | tuple[None, None]:
    """Number the documents of each row and the positions in each document.

    Args:
        opens_BT: true where a document opens. The first column opens one in any case.

    Returns:
        positions_BT and documents_BT, int64, both from 0; (None, None) where no document opens behind the
        first column, so that plain causal attention from position 0 is the same.
    """
    opens_BT = opens_BT.copy()
    opens_BT[:, :1] = False
    if not opens_BT.any():
        return None, None
    column_T = np.arange(opens_BT.shape[1])
    start_BT = np.maximum.accumulate(np.where(opens_BT, column_T, 0), axis=1)
    return column_T - start_BT, opens_BT.cumsum(axis=1)


def pack_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]], seq_len: int, *, pad_id: int = 0
) -> PackedRows:
    """Pack conversations into as few rows as first-fit decreasing finds, the same way every time.

    A conversation of n ids takes n - 1 places: its last id is a target only. Each keeps to itself through
    `documents_BT`, which attention must respect; `positions_BT` starts again in each.

    Args:
        rows: (ids, mask) of each conversation, as `ChatTemplate.render` gives them: mask is true at ids
            that are trained.
        seq_len: T; no conversation may take more.
        pad_id: fills up rows; never a target.

    Returns:
        The packed rows, those of the longest conversations first.

    Raises:
        InputError: a conversation is too long or too short, or ids and mask differ in length.
    """
    sizes = _sizes(rows)
    for number, size in enumerate(sizes):
        if size > seq_len:
            raise InputError(
                f"row {number} has {size + 1} tokens, and at most seq_len + 1 = {seq_len + 1} fit; "
                f"cut it, drop it, or raise seq_len"
            )
    members = _first_fit_decreasing(sizes, seq_len)
    shape = (len(members), seq_len)
    ids_BT, targets_BT = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    opens_BT = np.zeros(shape, dtype=bool)
    for b, numbers in enumerate(members):
        start = 0
        for number in numbers:
            stop = start + sizes[number]
            ids_BT[b, start:stop], targets_BT[b, start:stop] = _shift(*rows[number])
            opens_BT[b, start] = True
            start = stop
        opens_BT[b, start : start + 1] = True
    positions_BT, documents_BT = number_documents(opens_BT)
    return PackedRows(ids_BT, targets_BT, positions_BT, documents_BT, members)


def pad_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, multiple_of: int = 8, pad_id: int = 0
) -> PackedRows:
    """Give each conversation a row of its own, filled up on the right.

    Args:
        rows: (ids, mask) of each conversation.
        multiple_of: T is the smallest multiple of this that the longest fits into.
        pad_id: fills up rows; never a target.

    Returns:
        The rows, in order.

    Raises:
        InputError: a conversation is too short, or ids and mask differ in length.
    """
    sizes = _sizes(rows)
    num_columns = -(-max(sizes, default=0) // multiple_of) * multiple_of
    shape = (len(rows), num_columns)
    ids_BT, targets_BT = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    for b, (size, row) in enumerate(zip(sizes, rows, strict=True)):
        ids_BT[b, :size], targets_BT[b, :size] = _shift(*row)
    return PackedRows(ids_BT, targets_BT, None, None, [[number] for number in range(len(rows))])


def _sizes(rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> list[int]:
    for number, (ids, mask) in enumerate(rows):
        if len(ids) != len(mask):
            raise InputError(
                f"row {number} has {len(ids)} ids and a mask of {len(mask)}; give one for each id"
            )
        if len(ids) < 2:
            raise InputError(f"row {number} has {len(ids)} tokens; one to read and one to predict are needed")
    return [len(ids) - 1 for ids, _ in rows]


def _shift(ids: Sequence[int], mask: Sequence[bool]) -> tuple[Int64, Int64]:
    ids_N, mask_N = np.asarray(ids, np.int64), np.asarray(mask, np.bool_)
    return ids_N[:-1], np.where(mask_N[1:], ids_N[1:], IGNORE)


def _first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each size, longest first, into the first bin that has room; ties in order. O(n log n).

    `room` is a tree over bins: node k holds the most room of any bin below it, children 2k and 2k + 1.
    """
    num_leaves = 1 << max(0, len(sizes) - 1).bit_length()
    room = [capacity] * (2 * num_leaves)
    bins: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        node = 1
        while node < num_leaves:
            node = 2 * node if room[2 * node] >= sizes[number] else 2 * node + 1
        if node - num_leaves == len(bins):
            bins.append([])
        bins[node - num_leaves].append(number)
        room[node] -= sizes[number]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return bins
