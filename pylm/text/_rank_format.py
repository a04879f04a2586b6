"""Rank files (`.tiktoken`): a line a token, base64 of its bytes, a space, its rank."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError


def read(path: Path) -> list[bytes]:
    """Give the bytes of each rank; empty where a rank is missing.

    Raises:
        InputError: a damaged line, or no line; names it.
    """
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            ranks[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InputError(f"{path}:{number}: expected base64 and a rank, got {line[:40]!r}") from error
    if not ranks:
        raise InputError(f"{path}: the rank file is empty")
    return [ranks.get(rank, b"") for rank in range(max(ranks) + 1)]


def merges_of(tokens: Sequence[bytes]) -> NDArray[np.uint32]:
    """Give every pair of tokens whose bytes concatenate to a token; the result's id is the rank."""
    ids = {token: i for i, token in enumerate(tokens) if token}
    rows = [
        (left, right, merged, merged)
        for token, merged in ids.items()
        if len(token) > 1
        for cut in range(1, len(token))
        if (left := ids.get(token[:cut])) is not None and (right := ids.get(token[cut:])) is not None
    ]
    return np.array(sorted(rows, key=lambda row: row[3]), dtype=np.uint32).reshape(-1, 4)
