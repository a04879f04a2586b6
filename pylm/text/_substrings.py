"""Stretches of texts or token ids that occur more than once, exactly, and texts without them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text._checks import check_array, check_choice, check_int, check_threads
from pylm.text.texts import Texts
from pylm.text.token_array import TokenArray

KeepCopies = Literal["first", "none"]
Method = Literal["sampled", "suffix_array"]
Unit = Literal["byte", "token"]
Tokens: TypeAlias = TokenArray | Sequence[NDArray[np.uint16]] | Sequence[NDArray[np.uint32]]

_METADATA = b"pylm.spans"
_SCHEMA = pa.schema([("doc", pa.int64()), ("start", pa.int64()), ("end", pa.int64())])


@dataclass(frozen=True)
class Spans:
    """Ranges of the texts of a collection, sorted; those of a text neither overlap nor touch.

    Attributes:
        doc: int64 (num_spans,); index of the text.
        start: int64 (num_spans,); first byte or token.
        end: int64 (num_spans,); the one behind the last.
        num_docs: texts of the collection.
        unit: what `start` and `end` count, bytes of UTF-8 or tokens.
    """

    doc: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    num_docs: int
    unit: Unit = "byte"

    def __len__(self) -> int:
        """Number of spans."""
        return len(self.doc)

    @property
    def size(self) -> int:
        """Bytes or tokens in all spans."""
        return int((self.end - self.start).sum())

    @overload
    def apply(self, texts: TokenArray, *, num_threads: int = 0) -> TokenArray: ...
    @overload
    def apply(
        self, texts: Sequence[NDArray[np.uint16]] | Sequence[NDArray[np.uint32]], *, num_threads: int = 0
    ) -> list[NDArray[np.uint16] | NDArray[np.uint32]]: ...
    @overload
    def apply(self, texts: Texts, *, num_threads: int = 0) -> pa.Array: ...
    def apply(
        self, texts: Texts | Tokens, *, num_threads: int = 0
    ) -> pa.Array | TokenArray | list[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Cut the spans out.

        Args:
            texts: the num_docs texts, or token ids, that the spans are of.
            num_threads: 0 uses all cores.

        Returns:
            (num_docs,) Arrow large_string, or large_binary for a binary column: what is left of every text,
            "" where that is nothing, nulls as they were. For token ids what `texts` is: a TokenArray, or a
            list of arrays.

        Raises:
            TypeError: as for `substrings`.
            InputError: the spans are of another number of texts or of another unit.
            ValueError: a span lies outside of its text, is out of order, or cuts a character; names it.

        Example:
            >>> texts = ["same words", "the same words", "other"]
            >>> substrings(texts, min_bytes=5).apply(texts).to_pylist()
            ['same words', 'the ', 'other']
        """
        num_threads = check_threads(num_threads)
        for name in ("doc", "start", "end"):
            check_array(name, getattr(self, name), (np.int64,))
        plain, tokens = _part("texts", texts, self.unit)
        unit = "token" if plain is None else "byte"
        if unit != self.unit:
            raise InputError(f"texts must be counted in {self.unit}s as the spans are, got {unit}s")
        if tokens is not None:
            ids, offsets = self._cut_ids(tokens)
            if isinstance(texts, TokenArray):
                return TokenArray(ids.astype(np.uint32, copy=False), offsets)
            return [ids[begin:end] for begin, end in pairwise(offsets)]
        offsets, data, valid, is_binary = _core.cut_spans(
            cast(Texts, plain), self.num_docs, self.doc, self.start, self.end, num_threads=num_threads
        )
        buffers = [pa.py_buffer(buffer) for buffer in (valid, offsets, data)]
        layout = pa.large_binary() if is_binary else pa.large_string()
        return pa.Array.from_buffers(layout, self.num_docs, buffers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file beside the texts: a row a span with its doc, start and end.

        Args:
            path: of the file, which is replaced whole or not at all; its folder is created.

        Example:
            >>> spans = substrings(["same words", "same words"], min_bytes=5)
            >>> spans.save(folder / "part-0.spans.parquet")
            >>> Spans.load(folder / "part-0.spans.parquet").doc.tolist()
            [1]
        """
        about = json.dumps({"num_docs": self.num_docs, "unit": self.unit})
        table = pa.table(
            [self.doc, self.start, self.end], schema=_SCHEMA.with_metadata({_METADATA: about.encode()})
        )
        with atomic_path(Path(path)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Spans":
        """Read what `save` has written.

        Raises:
            InputError: the file is no such file; names it.
            FileNotFoundError, PermissionError: the file cannot be read.
        """
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[_METADATA])
            num_docs, unit = about["num_docs"], about["unit"]
            if not isinstance(num_docs, int) or unit not in ("byte", "token"):
                raise ValueError(f"num_docs {num_docs!r} and unit {unit!r}")
            if any(table.column(name).null_count for name in _SCHEMA.names):
                raise ValueError("cells without a number")
            doc, start, end = (table.column(name).cast(pa.int64()).to_numpy() for name in _SCHEMA.names)
            return cls(doc, start, end, num_docs, unit)
        except (FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{os.fspath(path)}: expected a Parquet file written by Spans.save, got {error!r}"
            ) from error

    def _cut_ids(self, tokens: "_Ids") -> "_Ids":
        ids, offsets = tokens
        sizes = np.diff(offsets)
        if len(sizes) != self.num_docs:
            raise InputError(
                f"texts must be the {self.num_docs} texts that the spans are of, got {len(sizes)}"
            )
        inside = (self.doc >= 0) & (self.doc < len(sizes)) & (self.start >= 0) & (self.start < self.end)
        inside &= self.end <= np.append(sizes, 0)[np.clip(self.doc, 0, len(sizes))]
        inside[1:] &= (self.doc[1:] > self.doc[:-1]) | (
            (self.doc[1:] == self.doc[:-1]) & (self.start[1:] > self.end[:-1])
        )
        if not inside.all():
            i = int(np.argmin(inside))
            raise InputError(
                f"span {i} is [{self.start[i]}, {self.end[i]}) of text {self.doc[i]}, which lies outside of "
                "it, is empty or is not behind the span before it"
            )
        steps = np.zeros(len(ids) + 1, np.int8)
        steps[offsets[self.doc] + self.start] += 1
        steps[offsets[self.doc] + self.end] -= 1
        removed = np.zeros(len(offsets), np.int64)
        np.add.at(removed, self.doc + 1, self.end - self.start)
        return ids[np.cumsum(steps[:-1], dtype=np.int8) == 0], offsets - np.cumsum(removed)


_MIN_BYTES, _MIN_TOKENS = 100, 50


def substrings(
    texts: Texts | Tokens,
    *,
    min_bytes: int = _MIN_BYTES,
    min_tokens: int = _MIN_TOKENS,
    keep: KeepCopies = "first",
    against: Texts | Tokens | None = None,
    method: Method = "sampled",
    num_threads: int = 0,
) -> Spans:
    """Find what occurs more than once, exactly.

    A window is any `min_bytes` successive bytes of one text. A byte is in a span if a window that covers it

    - equals a window that begins earlier, in a text before or at a smaller offset, with `keep="first"`: what
      is left holds every window's first occurrence;
    - equals any other window, with `keep="none"`: all copies go, as in deduplicate-text-datasets;
    - equals a window of `against`, where that is given, whatever `keep` says.

    A copy may overlap the first occurrence: of "aaaaaaaa" with windows of four bytes all but the first "a"
    goes. Ends of spans that lie inside a character move inward to its border, so what is left is UTF-8 again.
    Bytes that are no UTF-8, in binary columns, are cut anywhere.

    `sampled` names a place of every window by the window's own bytes (winnowing: Schleimer, Wilkerson, Aiken,
    SIGMOD 2003), looks for equal bytes around equal names only, and compares them. It reads the texts in
    place, memory-mapped ones too, and takes less than their size in memory with windows of 100 bytes, up to
    three times as much with windows under 20. `suffix_array` sorts all suffixes
    (Lee et al., ACL 2022), for comparison: the same spans, at least ten times the memory and time.

    Args:
        texts: num_docs texts; nulls have no windows. Or token ids: a TokenArray, or one contiguous array
            (size,) of uint16 or uint32 for every text, all of one dtype, which are copied.
        min_bytes: size of a window of texts, at least 1 and less than 2^31.
        min_tokens: size of a window of token ids, alike.
        keep: "first" or "none".
        against: other texts, or token ids of the same dtype, to look for in `texts`; repeats within `texts`
            stay.
        method: "sampled" or "suffix_array".
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        The spans, to be cut out or written down.

    Raises:
        TypeError: `texts` or `against` is no list of str, no Arrow column and no token ids; names the item.
        InputError: a column or an array of another type, a lone surrogate, or an argument outside its range.

    Example:
        >>> spans = substrings(["same words", "the same words"], min_bytes=5)
        >>> spans.doc.tolist(), spans.start.tolist(), spans.end.tolist()
        ([1], [4], [14])
    """
    check_int("min_bytes", min_bytes, 1, (1 << 31) - 1)
    check_int("min_tokens", min_tokens, 1, (1 << 31) - 1)
    check_choice("keep", keep, get_args(KeepCopies))
    check_choice("method", method, get_args(Method))
    if _holds_ids(texts) and min_bytes != _MIN_BYTES:
        raise InputError("min_bytes does not apply to token ids; give min_tokens")
    if not _holds_ids(texts) and min_tokens != _MIN_TOKENS:
        raise InputError("min_tokens does not apply to texts; give min_bytes, or pass token ids")
    return _find(
        texts,
        against,
        min_bytes=min_bytes,
        min_tokens=min_tokens,
        keep=keep,
        method=method,
        num_threads=check_threads(num_threads),
    )


def _find(
    texts: Texts | Tokens,
    against: Texts | Tokens | None,
    *,
    min_bytes: int,
    min_tokens: int,
    keep: KeepCopies,
    method: Method,
    num_threads: int,
    wide: bool = False,
    anchor_bytes: int = 0,
) -> Spans:
    """The same behind the checks, with what only tests choose: 64-bit indices, memory for anchors."""
    plain, tokens = _part("texts", texts, "byte")
    plain_sources, token_sources = None, None
    if against is not None:
        plain_sources, token_sources = _part("against", against, "byte" if tokens is None else "token")
    if (token_sources if tokens is None else plain_sources) is not None:
        kinds = ("bytes", "tokens") if tokens is None else ("tokens", "bytes")
        raise InputError(f"against must hold {kinds[0]} as texts does, got {kinds[1]}")
    if tokens is None:
        num_docs, doc, start, end = _core.repeated_substrings(
            cast(Texts, plain),
            plain_sources,
            length=min_bytes,
            keep=keep,
            method=method,
            wide=wide,
            anchor_bytes=anchor_bytes,
            num_threads=num_threads,
        )
        return Spans(doc, start, end, num_docs, "byte")
    ids, offsets = tokens
    if token_sources is not None and len(token_sources[0]) == 0:
        token_sources = ids[:0], token_sources[1]
    if token_sources is not None and token_sources[0].dtype != ids.dtype:
        raise InputError(f"against must have the dtype of texts, {ids.dtype}, got {token_sources[0].dtype}")
    doc, start, end = _core.repeated_tokens(
        ids,
        offsets,
        None if token_sources is None else token_sources[0],
        None if token_sources is None else token_sources[1],
        length=min_tokens,
        keep=keep,
        method=method,
        wide=wide,
        anchor_bytes=anchor_bytes,
        num_threads=num_threads,
    )
    return Spans(doc, start, end, len(offsets) - 1, "token")


_Ids = tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.int64]]


def _holds_ids(texts: Texts | Tokens) -> bool:
    if isinstance(texts, list | tuple):
        return len(texts) > 0 and isinstance(texts[0], np.ndarray)
    return isinstance(texts, TokenArray)


def _part(name: str, texts: Texts | Tokens, unit: str) -> tuple[Texts | None, _Ids | None]:
    """Texts, or ids end to end and where each text begins; an empty list is of the given unit."""
    if isinstance(texts, TokenArray):
        check_array(f"{name}.ids", texts.ids, (np.uint32,))
        check_array(f"{name}.offsets", texts.offsets, (np.int64,))
        if len(texts.offsets) == 0:
            raise InputError(f"{name}.offsets must have one entry more than there are texts, got none")
        return None, (texts.ids, texts.offsets)
    if isinstance(texts, list | tuple) and not texts and unit == "token":
        return None, (np.zeros(0, np.uint32), np.zeros(1, np.int64))
    if not _holds_ids(texts):
        return cast(Texts, texts), None
    assert isinstance(texts, list | tuple)
    for i, ids in enumerate(texts):
        check_array(f"{name}[{i}]", ids, (np.uint16, np.uint32))
        if ids.dtype != texts[0].dtype:
            raise InputError(
                f"{name}[{i}] must have the dtype of {name}[0], {texts[0].dtype}, got {ids.dtype}"
            )
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(ids) for ids in texts], out=offsets[1:])
    return None, (np.concatenate(texts), offsets)
