"""Documents: their schema, where they come from, and what decides a document's side of a split."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pylm.config import Config
from pylm.errors import InputError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("meta", pa.string()),
    ]
)
"""Columns of a document; `meta` is a JSON object, whose `group` keeps documents on one side of a split."""

FilterName = Literal["gopher_quality", "gopher_repetition", "fineweb", "code"]


class SourceConfig(Config):
    """One place that documents come from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source, in shards, mixtures and reports."""
    kind: Literal["jsonl", "parquet", "text", "files", "python-source", "python-docs"]
    """`jsonl` and `parquet` hold many documents a file; `text` one, or several between separators; `files`
    are trees of source files, one document each; `python-source` and `python-docs` are the standard library
    of the Python that runs."""
    paths: tuple[str, ...] = ()
    """Files, folders or globs; those that end in .gz or .zst are decompressed."""
    suffixes: tuple[str, ...] = ()
    """In folders take only names that end so. None takes all names, for `jsonl` and `parquet` those that say
    so (.jsonl, .ndjson, .json, plain or compressed; .parquet)."""
    text_field: str = "text"
    """Field or column that holds the text."""
    id_field: str = "id"
    """Field or column that holds the id; documents without one get `FILE@BYTE` (JSON lines, where the line
    starts) or `FILE:NUMBER`."""
    separator: str | None = Field(default=None, min_length=1)
    """For `text`: cut each file here."""
    filters: tuple[FilterName, ...] = ()
    """Rule sets that documents of this source must pass."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of bad rows among all rows of a `jsonl` or `parquet` source; above it the source is
    refused."""


@dataclass(frozen=True)
class Piece:
    """A file, or a part of a big one: what one reader takes.

    Attributes:
        path: of the file.
        start: first byte of JSON lines, where a line belongs to the piece in which it starts; first row group
            of Parquet.
        stop: end, exclusive; None for the file's.
    """

    path: str
    start: int = 0
    stop: int | None = None


_DEFAULT_SUFFIXES = {
    "jsonl": tuple(f".{x}{y}" for x in ("jsonl", "ndjson", "json") for y in ("", ".gz", ".zst")),
    "parquet": (".parquet",),
}


def list_files(source: SourceConfig) -> list[Path]:
    """List the files of a source in a fixed order, each once.

    Raises:
        InputError: a path that matches nothing, or paths without any file.
    """
    suffixes = source.suffixes or _DEFAULT_SUFFIXES.get(source.kind, ())
    found: dict[Path, Path] = {}
    for pattern in source.paths:
        for match in _matches(source, pattern):
            files = [match] if match.is_file() else _walk(match, suffixes)
            for path in files:
                found.setdefault(path.resolve(), path)
    if not found:
        named = f" whose names end in {', '.join(suffixes)}" if suffixes else ""
        raise InputError(
            f"source {source.name}: no files{named} in {', '.join(source.paths) or 'its empty list of paths'}"
        )
    return list(found.values())


def _matches(source: SourceConfig, pattern: str) -> list[Path]:
    path = Path(pattern)
    matches: list[Path] = []
    with contextlib.suppress(ValueError, OSError):  # no pattern of a glob, and no path either
        if path.exists():
            matches = [path] if pattern else []  # an empty path would be the working folder
        else:
            root = Path(path.anchor or ".")
            matches = sorted(root.glob(str(path.relative_to(path.anchor))))
    if matches:
        return matches
    raise InputError(f"source {source.name}: nothing at {pattern!r}; give a file, a folder or a glob")


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files below a folder, hidden ones and those in hidden folders left out."""
    return [
        x
        for x in sorted(folder.rglob("*"))
        if (not suffixes or x.name.endswith(suffixes))
        and not any(part.startswith(".") for part in x.relative_to(folder).parts)
        and x.is_file()
    ]


def cut_file(kind: str, path: Path, max_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Cut a file into pieces of about a size, if its format can be entered midway.

    Uncompressed JSON lines are cut into ranges of bytes, Parquet into runs of row groups. What is read from
    the pieces in order is what is read from the file.

    Args:
        kind: of the source.
        path: the file.
        max_bytes: size of the larger pieces.

    Yields:
        Pieces in order, with their bytes on disk.

    Raises:
        InputError: not a Parquet file.
    """
    size = path.stat().st_size
    if size <= max_bytes or kind not in ("jsonl", "parquet") or path.suffix in (".gz", ".zst"):
        yield Piece(str(path)), size
    elif kind == "jsonl":
        for start in range(0, size, max_bytes):
            stop = min(start + max_bytes, size)
            yield Piece(str(path), start, stop), stop - start
    else:
        yield from _cut_parquet(path, max_bytes)


def _cut_parquet(path: Path, max_bytes: int) -> Iterator[tuple[Piece, int]]:
    with open_parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    start, size = 0, 0
    for number, group in enumerate(groups, start=1):
        size += sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        if size >= max_bytes or number == len(groups):
            yield Piece(str(path), start, number), size
            start, size = number, 0
    if not groups:
        yield Piece(str(path)), 0


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a Parquet file; the caller closes it.

    Raises:
        InputError: not a readable Parquet file.
    """
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Give the first line of an error's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def meta_of(fields: Mapping[str, object]) -> str | None:
    """Put what a row holds besides text, id, url and date into one JSON object, None where that is nothing.

    A `meta` that is an object, or the JSON of one, is taken apart, so that documents written out and read
    again have the meta data that they had.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    meta = fields.get("meta")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except (ValueError, RecursionError):
            meta = None
    if isinstance(meta, dict):
        fields = {**meta, **{name: value for name, value in fields.items() if name != "meta"}}
    if not fields:
        return None
    text = json.dumps(fields, ensure_ascii=False, default=str)
    return text if is_unicode(text) else json.dumps(fields, default=str)


def is_unicode(text: str) -> bool:
    """Tell whether a string can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def group_of(doc_id: str, meta: str | None) -> str:
    """Give the key that keeps documents together in a split: `group` of the meta data, or the id.

    Example:
        >>> group_of("a.py:docstrings", '{"group": "a.py"}')
        'a.py'
    """
    if meta and '"group"' in meta:
        group = json.loads(meta).get("group")
        if group is not None:
            return group if isinstance(group, str) else json.dumps(group, sort_keys=True)
    return doc_id


def keyed_fraction(key: str, seed: int) -> float:
    """Hash a key to [0, 1), the same on every machine and in any order."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64
