"""A corpus as deduplication sees it: files of Parquet or JSON lines, cut into splits for tasks.

Documents are numbered through the whole corpus, in the order of the inputs: document `first + row` is row
`row` of the split whose first number is `first`. JSON lines are turned into Parquet once (columns of
`pylm.data.documents.SCHEMA`), so that all that follows reads one format; Parquet keeps all of its columns.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pylm.data import readers, storage
from pylm.data.documents import SCHEMA, Piece, SourceConfig, first_line, is_unicode
from pylm.data.funnel import Tally
from pylm.errors import InputError

SPLIT_BYTES = 128 << 20
MOST_SPLIT_ROWS = 1 << 20
"""A split of short documents ends here, so that a task's memory has a bound."""
_BATCH_BYTES = 16 << 20
_SHOWN_FILES = 3
_PACKED_ROWS = 256
_DICTIONARY_BYTES = 2 << 20
"""Of values, at most; 1 MiB is usual."""
ROW_GROUP_BYTES = 64 << 20
_ROW_GROUP_ROWS = 1 << 16
_LEAST_CUT_BYTES = 64 << 20
_JSONL = tuple(f".{x}{y}" for x in ("jsonl", "ndjson", "json") for y in ("", ".gz", ".zst"))
_SUFFIXES = (".parquet", *_JSONL)

Kind = Literal["parquet", "jsonl"]


@dataclass(frozen=True)
class Split:
    """What one task takes of a corpus.

    Attributes:
        source: the input, as the user named it, that the file belongs to.
        path: of the file.
        kind: its format.
        start: first row group of Parquet, first byte of JSON lines.
        stop: the end, exclusive; None for that of the file.
        state: changes when the file does.
        part_bytes: of texts, from which a part of the split ends; 0 where the split is one part. What is read
            from its beginning on is one split whose documents become parts: lines in a compressed file or in
            a store, and large row groups.
    """

    source: str
    path: str
    kind: Kind
    start: int
    stop: int | None
    state: str
    part_bytes: int = 0

    @property
    def is_copied(self) -> bool:
        """Whether its documents are copied, as Parquet, before anything else."""
        return self.kind == "jsonl" or self.part_bytes > 0

    def name(self, recipe: object) -> str:
        """Give a name for what is made of the split: a hash of all that it depends on."""
        source = self.source if self.kind == "jsonl" else ""  # which stands in its documents
        place = (self.path, self.kind, self.start, self.stop, self.state, self.part_bytes)
        content = repr((recipe, *place, source))
        return xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogateescape"))


def list_splits(
    inputs: Sequence[str],
    *,
    columns: Sequence[str],
    split_bytes: int = SPLIT_BYTES,
    cut_groups: bool = False,
    warn: Callable[[str], None] | None = None,
) -> list[Split]:
    """Cut a corpus into splits, and look whether its files can be read.

    Args:
        inputs: files, folders and globs, local or URLs; documents are numbered in this order, files of a
            folder or glob in that of their names.
        columns: that every Parquet file must have, the first of them with texts.
        split_bytes: size on disk from which a split ends, at the next row group.
        cut_groups: whether row groups much larger than a split are copied, in parts.
        warn: told of files in folders and globs that are of another format, and are left out.

    Raises:
        InputError: nothing there, a file of another format, a damaged one, or one without such a column.
    """
    files: dict[str, tuple[str, str]] = {}
    for given in inputs:
        listed = _list_files(given)
        for path in (found := [path for path in listed if path.endswith(_SUFFIXES)]):
            if not is_unicode(path):
                raise InputError(f"{path!a}: a name that is not UTF-8; rename the file or folder")
            files.setdefault(str(Path(path).resolve()) if storage.is_local(path) else path, (given, path))
        if not found:
            raise InputError(f"{given}: no files whose names end in {', '.join(_SUFFIXES)}")
        if warn is not None and len(found) < len(listed):
            warn(_say_left_out(given, [path for path in listed if not path.endswith(_SUFFIXES)]))
    with ThreadPoolExecutor(16) as pool:
        most = most_uncut_bytes(split_bytes) if cut_groups else 1 << 62
        cut = pool.map(lambda pair: _cut(pair[0], pair[1], columns, split_bytes, most), files.values())
        return [split for splits in cut for split in splits]


def _say_left_out(given: str, paths: Sequence[str]) -> str:
    names = [Path(path).name.encode("utf-8", "replace").decode() for path in paths]
    shown = ", ".join(names[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
    endings = ", ".join(_SUFFIXES)
    return f"{given}: left out {len(names)} files, whose names do not end in {endings}: {shown}"


def total_bytes(splits: Sequence[Split]) -> int:
    """Add up the sizes of the files on disk."""
    return sum(storage.size(path) for path in dict.fromkeys(split.path for split in splits))


def _list_files(given: str) -> list[str]:
    """List the files of an input, of whatever format where it is a folder or glob; no hidden ones."""
    if not given:
        raise InputError("an input has no name; give files, folders or globs")
    if storage.is_local(given):
        return _list_local(given)
    if any(mark in given for mark in "*?["):
        fs, pattern = fsspec.core.url_to_fs(given)
        matches = [name for name in sorted(fs.glob(pattern)) if _is_named(Path(name), Path(pattern))]
        names = [fs.unstrip_protocol(name) for name in matches]
        found = [path for name in names for path in (storage.list_tree(name) if fs.isdir(name) else [name])]
    elif given.endswith(_SUFFIXES):
        storage.size(given)
        return [given]
    else:
        found = storage.list_tree(given)
    return found


def _list_local(given: str) -> list[str]:
    place = local_path(given)
    if place.is_file():
        if not place.name.endswith(_SUFFIXES):
            raise InputError(f"{given}: expected a name that ends in {', '.join(_SUFFIXES)}")
        return [str(place)]
    folders = [place]
    if not place.exists():
        root = Path(place.anchor or ".")
        try:
            found = sorted(root.glob(str(place.relative_to(place.anchor))))
            folders = [path for path in found if _is_named(path.relative_to(root), place)]
        except (ValueError, NotImplementedError):
            folders = []
        if not folders:
            raise InputError(f"{given}: nothing there; give a file, a folder or a glob")
    paths = [
        path
        for folder in folders
        for path in (sorted(folder.rglob("*")) if folder.is_dir() else [folder])
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    for path in paths:
        if path.is_symlink() and not path.exists() and path.name.endswith(_SUFFIXES):
            raise InputError(f"{path}: a link to a file that is not there; mend or remove it")
    return [str(path) for path in paths if path.is_file()]


def _is_named(path: Path, pattern: Path) -> bool:
    """Whether the hidden files and folders on a path are named as such in a glob, as in a shell."""
    hidden = [part for part in pattern.parts if part.startswith(".")]
    return all(any(fnmatch(part, x) for x in hidden) for part in path.parts if part.startswith("."))


def local_path(path: str) -> Path:
    """Turn a path of this machine, or a URL of it (file://), into a Path."""
    return Path(path.partition("://")[2] if "://" in path else path)


def state_of(path: str) -> str:
    """Give what changes when a file does: size and time of change, or the store's tag."""
    if storage.is_local(path):
        status = local_path(path).stat()
        return f"{status.st_size}-{status.st_mtime_ns}"
    size = storage.size(path)  # which says what is wrong with the store
    fs, name = fsspec.core.url_to_fs(path, use_listings_cache=False)
    info = fs.info(name)
    tags = [
        str(info[x]) for x in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if x in info
    ]
    return "-".join([str(size), *tags[:1]])


def _cut(
    source: str, path: str, columns: Sequence[str], split_bytes: int, most_group_bytes: int
) -> list[Split]:
    state = state_of(path)
    if path.endswith(".parquet"):
        with open_parquet(path) as file:
            _check_columns(path, file.schema_arrow, columns)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        return [
            Split(source, path, "parquet", start, stop, state, split_bytes if is_cut else 0)
            for start, stop, is_cut in _cut_groups(groups, columns[0], split_bytes, most_group_bytes)
        ]
    if not storage.is_local(path) or path.endswith((".gz", ".zst")):
        return [Split(source, path, "jsonl", 0, None, state, split_bytes)]
    size = storage.size(path)
    starts = range(0, max(size, 1), split_bytes)
    stops = [*starts[1:], None]
    return [
        Split(source, path, "jsonl", start, stop, state) for start, stop in zip(starts, stops, strict=True)
    ]


def _cut_groups(
    groups: Sequence[Any], column: str, split_bytes: int, most_group_bytes: int
) -> Iterator[tuple[int, int, bool]]:
    """Give the row groups of splits, and whether it is one that is cut."""
    begin = size = rows = 0
    for number, group in enumerate(groups, start=1):
        size += sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        rows += group.num_rows
        is_cut = group_text_bytes(group, column) > most_group_bytes
        is_end = is_cut or size >= split_bytes or number == len(groups)
        if not is_end:
            following = groups[number]
            is_end = rows + following.num_rows > MOST_SPLIT_ROWS
            is_end = is_end or group_text_bytes(following, column) > most_group_bytes
        if is_end:
            yield begin, number, is_cut
            begin, size, rows = number, 0, 0
    if not groups:
        yield 0, 0, False


def group_text_bytes(row_group: Any, column: str) -> int:
    """Give the size of a row group's texts as they are in memory, but for those that a dictionary holds."""
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    return sum(x.total_uncompressed_size for x in columns if x.path_in_schema == column)


def most_uncut_bytes(split_bytes: int) -> int:
    """Give the size of the texts of a row group from which it is cut: copies are worth it for large ones."""
    return max(_LEAST_CUT_BYTES, 4 * split_bytes)


def _check_columns(path: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    for place, name in enumerate(columns):
        if schema.names.count(name) != 1:
            has = ", ".join(dict.fromkeys(schema.names)) or "no columns"
            option = "--text-column" if place == 0 else "--priority or --url-column"
            raise InputError(f"{path}: no column {name!r}; it has {has}; name another with {option}")
    kind = schema.field(columns[0]).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.string(), pa.large_string(), pa.string_view()):
        raise InputError(
            f"{path}: the column {columns[0]!r} must hold strings, it holds {kind}; "
            "name another with --text-column"
        )


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of any storage.

    Raises:
        InputError: not there, or not readable; also what goes wrong while it is read in the block.
    """
    with storage.open_input(path) as stream:
        try:
            source = pa.memory_map(path) if storage.is_local(path) and "://" not in path else stream
            with pq.ParquetFile(source) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{path}: not a readable Parquet file ({first_line(error)}); fetch or write it again"
            ) from error


def read_rows(
    path: str,
    start: int,
    stop: int | None,
    *,
    columns: Sequence[str] | None = None,
    wanted: NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Read row groups of a Parquet file in batches of bounded size.

    Args:
        path: of the file.
        start: first row group.
        stop: end, exclusive; None for the file's.
        columns: to read; None for all.
        wanted: ascending rows, counted from the first row group's first; groups without any are left out.

    Yields:
        The number of a batch's first row, counted as `wanted`, and the batch.

    Raises:
        InputError: as `open_parquet`.
    """
    with open_parquet(path) as file:
        first = 0
        for number in range(start, file.num_row_groups if stop is None else stop):
            row_group = file.metadata.row_group(number)
            end = first + row_group.num_rows
            if wanted is None or np.searchsorted(wanted, first) < np.searchsorted(wanted, end):
                size = max(row_group.total_byte_size, 1)
                num_rows = max(1, min(8192, _BATCH_BYTES * row_group.num_rows // size))
                row = first
                names = None if columns is None else list(dict.fromkeys(columns))
                for batch in _read_group(file, number, names, num_rows):
                    yield row, batch
                    row += len(batch)
            first = end


def _read_group(
    file: pq.ParquetFile, number: int, columns: Sequence[str] | None, num_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read a row group in batches of so many rows, or fewer where values of a dictionary come to more."""
    read = partial(file.iter_batches, row_groups=[number], columns=columns, use_threads=False)
    if not _is_packed(file.metadata.row_group(number), columns):
        yield from read(num_rows)
        return
    waiting: list[pa.RecordBatch] = []
    for batch in read(min(num_rows, _PACKED_ROWS)):
        waiting.append(batch)
        if sum(x.nbytes for x in waiting) >= _BATCH_BYTES or sum(map(len, waiting)) >= num_rows:
            yield from _joined(waiting)
            waiting = []
    yield from _joined(waiting)


def _is_packed(group: Any, columns: Sequence[str] | None) -> bool:
    """Say whether values may be many times as large as what is stored: all in a dictionary.

    A writer gives a dictionary up that has grown too large, after which each value is stored.
    """
    for place in range(group.num_columns):
        column = group.column(place)
        if columns is not None and column.path_in_schema.partition(".")[0] not in columns:
            continue
        most = _DICTIONARY_BYTES + 4 * column.num_values
        is_dictionary = column.physical_type == "BYTE_ARRAY" and "_DICTIONARY" in " ".join(column.encodings)
        if is_dictionary and column.total_uncompressed_size <= most:
            return True
    return False


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Put batches together, where Arrow can join their types."""
    if len(batches) < 2:
        return batches
    try:
        joined: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    except pa.ArrowNotImplementedError:
        return batches
    return joined


def texts_of(batch: pa.RecordBatch, column: str) -> pa.LargeStringArray:
    """Give a column of a batch as large strings."""
    return batch.column(column).cast(pa.large_string())


def text_sizes(texts: pa.LargeStringArray) -> NDArray[np.int64]:
    """Give the bytes of every text, 0 for null."""
    sizes = pc.binary_length(texts).fill_null(0)
    return np.asarray(sizes.to_numpy(zero_copy_only=False), np.int64)


def copy_documents(split: Split, text_column: str, path_of: Callable[[int], str], tally: Tally) -> int:
    """Write a split's documents as Parquet, one file a part.

    Args:
        split: of JSON lines, or of one large row group.
        text_column: column, or field of lines, that holds the texts.
        path_of: gives the path of a part's file.
        tally: gets the lines that are no documents.

    Returns:
        The number of parts, at least one.

    Raises:
        InputError: the file cannot be read.
    """
    with ExitStack() as stack:
        if split.kind == "jsonl":
            schema, column = SCHEMA, "text"
            local = stack.enter_context(storage.fetch(split.path))
            documents = _read_lines(split, str(local), text_column, tally)
        else:
            with open_parquet(split.path) as file:
                schema, column = file.schema_arrow, text_column
            documents = (batch for _, batch in read_rows(split.path, split.start, split.stop))
        num_parts = 0
        parts = _in_parts(documents, column, split.part_bytes)
        for number, batches in itertools.groupby(parts, itemgetter(0)):
            with parquet_out(path_of(number), schema) as written:
                for _, batch in batches:
                    written.add(batch)
            num_parts = number + 1
        if not num_parts:
            with parquet_out(path_of(0), schema):
                return 1
    return num_parts


def _read_lines(split: Split, local: str, text_field: str, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Read documents from a copy of a split's file on this machine."""
    source = SourceConfig(name=source_name(split.source), kind="jsonl", text_field=text_field)
    for batch in readers.read_pieces(source, [Piece(local, split.start, split.stop)]):
        for row in batch.bad_rows:
            place = split.path + row.place.removeprefix(local)
            tally.add(
                ("read", row.reason, split.source), size_bytes=row.size_bytes, place=place, text=row.shown
            )
        documents = batch.documents
        if local != split.path:  # ids are places where the lines have none
            ids = pc.replace_substring(documents["id"], f"{local}@", f"{split.path}@")
            documents = documents.set_column(0, SCHEMA.field(0), ids)
        yield documents


def _in_parts(
    batches: Iterable[pa.RecordBatch], column: str, part_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut batches where a part has so many bytes of texts, or `MOST_SPLIT_ROWS`; give each its part."""
    number = size = rows = 0
    for batch in batches:
        ends = np.cumsum(text_sizes(texts_of(batch, column)))
        begin = 0
        while begin < len(batch):
            read = int(ends[begin - 1]) if begin else 0
            end = len(batch)
            if part_bytes:
                full = int(np.searchsorted(ends, read + part_bytes - size)) + 1
                end = min(end, full, begin + MOST_SPLIT_ROWS - rows)
            yield number, batch.slice(begin, end - begin)
            size, rows, begin = size + int(ends[end - 1]) - read, rows + end - begin, end
            if part_bytes and (size >= part_bytes or rows >= MOST_SPLIT_ROWS):
                number, size, rows = number + 1, 0, 0


def source_name(given: str) -> str:
    """Turn an input into a name of a source.

    Example:
        >>> source_name("s3://bucket/wiki/*.jsonl.zst")
        's3-bucket-wiki-jsonl.zst'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", given).strip("-._") or "input"


class RowGroups:
    """Gathers batches into row groups of a size that does not depend on how the rows came."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        """Write to `writer`."""
        self._writer = writer
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        if len(batch):
            self._waiting.append(batch)
            self._rows += len(batch)
            self._bytes += batch.nbytes
            if self._rows >= _ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
                self.flush()

    def add_kept(self, batch: pa.RecordBatch, keep: NDArray[np.bool_]) -> None:
        """Append the rows that are to be kept."""
        if keep.all():
            self.add(batch)
            return
        try:
            self.add(batch.filter(pa.array(keep)))
        except pa.ArrowNotImplementedError:  # some layouts (string_view) can be sliced only
            bounds = np.flatnonzero(np.diff(keep.astype(np.int8), prepend=0, append=0))
            for begin, end in bounds.reshape(-1, 2).tolist():
                self.add(batch.slice(begin, end - begin))

    def flush(self) -> None:
        """Write what is waiting."""
        for table in row_groups(self._waiting):
            self._writer.write_table(
                table.replace_schema_metadata(self._writer.schema.metadata), row_group_size=len(table)
            )
        self._waiting, self._rows, self._bytes = [], 0, 0


def row_groups(batches: Sequence[pa.RecordBatch]) -> list[pa.Table]:
    """Divide rows into row groups; one, but where its dictionaries hold more than their indices count."""
    if not batches:
        return []
    table = pa.Table.from_batches(batches)
    if len(batches) == 1 or not any(map(_has_small_dictionary, table.schema.types)):
        return [table]
    try:
        table.unify_dictionaries()
    except pa.ArrowInvalid:
        half = len(batches) // 2
        return row_groups(batches[:half]) + row_groups(batches[half:])
    return [table]


def _has_small_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return bool(kind.index_type.bit_width < 32)
    return any(_has_small_dictionary(kind.field(i).type) for i in range(kind.num_fields))


@contextmanager
def parquet_out(path: str, schema: pa.Schema) -> Iterator[RowGroups]:
    """Give what writes a Parquet file, which is there whole when the block ends without an error."""
    with (
        storage.publish(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        out = RowGroups(writer)
        yield out
        out.flush()
