"""Ids of tokens as columns of bytes, which the deduplicator takes for texts."""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.text.texts import Texts
from pylm.text.token_array import TokenArray

Tokens: TypeAlias = TokenArray | Sequence[NDArray[Any]]


def to_id_bytes(tokens: object) -> Texts:
    """Four bytes an id, a text a document; the ids of a `TokenArray` are read in place."""
    if not isinstance(tokens, TokenArray):
        tokens = _join(tokens)
    ids = np.ascontiguousarray(tokens.ids, np.uint32)
    offsets = np.ascontiguousarray(tokens.offsets, np.int64) * 4
    if len(offsets) == 0 or offsets[0] < 0 or offsets[-1] > ids.nbytes or (np.diff(offsets) < 0).any():
        raise InputError(f"texts: offsets must rise from 0 to at most {len(ids)}, the number of ids")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(ids)]
    return cast(Texts, pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers))


def _join(tokens: object) -> TokenArray:
    if not isinstance(tokens, list | tuple):
        raise TypeError(f"texts must be a TokenArray or a list of arrays of ids, got {type(tokens).__name__}")
    parts = []
    for i, ids in enumerate(tokens):
        array = np.asarray(ids) if len(ids) else np.zeros(0, np.uint32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"texts[{i}] must be a 1-D array of ids, got {array.dtype} of shape {array.shape}"
            )
        if array.dtype != np.uint32 and len(array) and (array.min() < 0 or array.max() >= 1 << 32):
            raise InputError(f"texts[{i}] holds ids outside of 0 to 2^32 - 1, {array.min()} to {array.max()}")
        parts.append(array.astype(np.uint32, copy=False))
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return TokenArray(np.concatenate(parts) if parts else np.zeros(0, np.uint32), offsets)
