"""Readers of the formats that text comes in: JSON lines, Parquet, plain text, source files.

A reader gives record batches of bounded size and sets bad rows aside, each with a reason and where it stood.
What makes a whole file unusable (a truncated archive, no such column) is an InputError with file and remedy.
"""

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pylm.data.documents import SCHEMA, Piece, SourceConfig, first_line, is_unicode, meta_of, open_parquet
from pylm.errors import InputError

BATCH_BYTES = 32 << 20
MAX_DOCUMENT_BYTES = 256 << 20
"""A longer line or file is set aside, so that no input needs more memory than a few of these."""
MAX_SHOWN = 60
_BLOCK_BYTES = 1 << 20
_BAD_ROW_BYTES = 500  # what a row that was set aside takes in memory, about


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be a document: set aside, counted, shown as a sample."""

    place: str
    reason: str
    shown: str
    size_bytes: int


@dataclass(frozen=True)
class Batch:
    """Documents of one source, and the bad rows that stood between them."""

    documents: pa.RecordBatch
    bad_rows: tuple[BadRow, ...] = ()


EXPECTED = {
    "not_utf8": "expected UTF-8",
    "bad_json": "expected a JSON object",
    "no_text": "expected text, not blank, in the field {field!r}",
    "too_long": f"expected at most {MAX_DOCUMENT_BYTES >> 20} MiB",
    "empty": "expected text",
}
"""What is said of bad rows by reason."""


def read_pieces(source: SourceConfig, pieces: Sequence[Piece]) -> Iterator[Batch]:
    """Read files of a source, or parts of them.

    Args:
        source: kind and field names.
        pieces: of the files that `list_files` gives.

    Yields:
        Batches of at most about 32 MB of text; one longer document is a batch of its own.

    Raises:
        InputError: a file that cannot be used.
    """
    collector = Collector(source.name)
    for piece in pieces:
        match source.kind:
            case "jsonl":
                yield from _read_jsonl(source, piece, collector)
            case "parquet":
                yield from _read_parquet(source, piece)
            case "text":
                yield from _read_text(source, piece.path, collector)
            case _:
                yield from _read_source_file(piece.path, collector)
    yield from collector.flush()


class Collector:
    """Gathers documents and bad rows into batches of bounded size."""

    def __init__(self, source: str) -> None:
        """Start with nothing of the source of that name."""
        self._source = source
        self._start()

    def _start(self) -> None:
        self._columns: dict[str, list[str | None]] = {name: [] for name in SCHEMA.names if name != "source"}
        self._bad_rows: list[BadRow] = []
        self._size_bytes = 0

    def add(
        self,
        *,
        doc_id: str,
        text: str,
        url: str | None = None,
        date: str | None = None,
        meta: str | None = None,
    ) -> Iterator[Batch]:
        """Take a document, whose strings are Unicode; give a batch when it is full."""
        row = {"id": doc_id, "text": text, "url": url, "date": date, "meta": meta}
        for name, value in row.items():
            self._columns[name].append(value)
        yield from self._grow(len(text) + len(meta or ""))

    def set_aside(self, place: str, reason: str, shown: str, size_bytes: int) -> Iterator[Batch]:
        """Take a bad row; give a batch when it is full."""
        self._bad_rows.append(BadRow(place, reason, shown[:MAX_SHOWN], size_bytes))
        yield from self._grow(_BAD_ROW_BYTES)

    def _grow(self, size_bytes: int) -> Iterator[Batch]:
        self._size_bytes += size_bytes
        if self._size_bytes >= BATCH_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[Batch]:
        """Give what is left."""
        num_docs = len(self._columns["id"])
        if num_docs or self._bad_rows:
            columns = {**self._columns, "source": [self._source] * num_docs}
            yield Batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA), tuple(self._bad_rows))
        self._start()


def _open(path: str) -> io.BufferedReader:
    """Open a file, decompressed by its name's ending (.gz, .zst); concatenated streams are read as one."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix)
    if compression is None:
        return Path(path).open("rb")
    return io.BufferedReader(pa.input_stream(path, compression=compression), _BLOCK_BYTES)


def _read_fault(path: str, error: Exception) -> InputError:
    suffix = Path(path).suffix
    if suffix in (".gz", ".zst") and Path(path).is_file():
        return InputError(
            f"{path}: damaged or truncated {suffix[1:]} stream ({first_line(error)}); fetch the file again"
        )
    return InputError(f"{path}: cannot be read ({first_line(error)})")


def _read_jsonl(source: SourceConfig, piece: Piece, collector: Collector) -> Iterator[Batch]:
    try:
        for offset, line, size in _lines(piece):
            place = f"{piece.path}@{offset}"
            row = _parse_json(line, source.text_field) if size <= MAX_DOCUMENT_BYTES else "too_long"
            if row is None:
                continue
            if isinstance(row, str):
                shown = line[: 4 * MAX_SHOWN].decode("utf-8", "replace")
                yield from collector.set_aside(place, row, shown, size)
                continue
            doc_id = row.get(source.id_field)
            known = {k: _clean(str(row[k])) for k in ("url", "date") if isinstance(row.get(k), str)}
            used = {source.text_field, source.id_field, *known}
            yield from collector.add(
                doc_id=_clean(str(doc_id)) if doc_id not in (None, "") else place,
                text=str(row[source.text_field]),
                meta=meta_of({k: v for k, v in row.items() if k not in used}),
                **known,
            )
    except (OSError, pa.ArrowException) as error:
        raise _read_fault(piece.path, error) from error


def _lines(piece: Piece) -> Iterator[tuple[int, bytes, int]]:
    """Give the lines that start in a piece: where, the bytes, how many; of one that is too long the head."""
    with _open(piece.path) as file:
        offset = piece.start
        if piece.start:
            file.seek(piece.start - 1)
            offset += _read_line(file)[1] - 1
        while piece.stop is None or offset < piece.stop:
            line, size = _read_line(file)
            if not size:
                return
            yield offset, line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line, size
            offset += size


def _read_line(file: io.BufferedReader) -> tuple[bytes, int]:
    """Read a line and its length, but keep no more of it than a document may have."""
    line = file.readline(MAX_DOCUMENT_BYTES + 1)
    size = len(line)
    while size > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
        rest = file.readline(_BLOCK_BYTES)
        size += len(rest)
        if not rest or rest.endswith(b"\n"):
            break
    return line, size


def line_of(place: str) -> str:
    """Turn the place `FILE@BYTE` of a JSON line into `FILE:LINE`, for people; leave other places."""
    path, _, byte = place.rpartition("@")
    if not path or not byte.isdigit() or not Path(path).is_file():
        return place
    number, left = 1, int(byte)
    with _open(path) as file:
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            number, left = number + block.count(b"\n"), left - len(block)
    return f"{path}:{number}"


def _parse_json(line: bytes, text_field: str) -> dict[str, object] | str | None:
    """Give the object, or the reason why the line is no document; None for a blank line."""
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not_utf8"
    except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, nested without end
        return "bad_json"
    if not isinstance(row, dict):
        return "bad_json"
    text = row.get(text_field)
    if not isinstance(text, str) or not text or text.isspace():
        return "no_text"
    return row if is_unicode(text) else "not_utf8"


def _clean(text: str) -> str:
    """Replace lone surrogates, which JSON's escapes can spell and UTF-8 cannot."""
    return text if is_unicode(text) else text.encode("utf-8", "replace").decode("utf-8")


def _read_parquet(source: SourceConfig, piece: Piece) -> Iterator[Batch]:
    path = piece.path
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if names.count(source.text_field) != 1:
            has = ", ".join(dict.fromkeys(names)) or "no columns"
            raise InputError(f"{path}: no column {source.text_field!r}; it has {has}; set text_field")
        kind = file.schema_arrow.field(source.text_field).type
        if not _is_text(kind):
            raise InputError(
                f"{path}: the column {source.text_field!r} must hold strings, it holds {kind}; set text_field"
            )
        optional = (source.id_field, "url", "date", "meta", "group")
        wanted = dict.fromkeys((source.text_field, *(x for x in optional if names.count(x) == 1)))
        groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
        sizes = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        row = sum(sizes[i].num_rows for i in range(piece.start))
        num_rows, num_bytes = (
            sum(getattr(sizes[i], x) for i in groups) for x in ("num_rows", "total_byte_size")
        )
        batch_rows = max(1, min(8192, BATCH_BYTES * num_rows // max(num_bytes, 1)))
        try:
            for batch in file.iter_batches(batch_rows, row_groups=list(groups), columns=list(wanted)):
                yield _parquet_batch(source, path, row, batch)
                row += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: not a readable Parquet file ({first_line(error)})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _parquet_batch(source: SourceConfig, path: str, first_row: int, batch: pa.RecordBatch) -> Batch:
    """Turn rows, of which `first_row` come before in the file, into documents."""
    texts = batch[source.text_field].cast(pa.large_string())
    reasons = _text_faults(texts)
    bad_rows = tuple(
        BadRow(
            f"{path}:{first_row + i + 1}",
            reasons[i],
            "",
            texts[i].as_buffer().size if texts[i].is_valid else 0,
        )
        for i in np.flatnonzero(reasons != "").tolist()
    )
    names = set(batch.schema.names)
    places = pa.array([f"{path}:{first_row + i + 1}" for i in range(len(batch))])
    ids = places
    if source.id_field in names:
        given = _strings(path, source.id_field, batch)
        ids = pc.if_else(pc.fill_null(pc.not_equal(given, ""), False), given, places)
    metas = [name for name in ("meta", "group") if name in names]
    rows = batch.select(metas).to_pylist() if metas else [{}] * len(batch)
    columns = {
        "id": ids,
        "text": texts,
        "source": pa.repeat(source.name, len(batch)),
        **{
            k: _strings(path, k, batch) if k in names else pa.nulls(len(batch), pa.string())
            for k in ("url", "date")
        },
        "meta": pa.array([meta_of(row) for row in rows], pa.string()),
    }
    documents = pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
    return Batch(documents.filter(pa.array(reasons == "")), bad_rows)


def _text_faults(texts: pa.Array) -> NDArray[np.object_]:
    """Give the reason why each text is no document, or the empty string."""
    reasons = np.full(len(texts), "", dtype=object)
    try:
        texts.validate(full=True)
        blank = pc.fill_null(pc.or_(pc.utf8_is_space(texts), pc.equal(texts, "")), True)
        reasons[blank.to_numpy(zero_copy_only=False)] = "no_text"
    except pa.ArrowInvalid:  # bytes that are no UTF-8 in some row: look at each
        for index, value in enumerate(texts.cast(pa.large_binary()).to_pylist()):
            try:
                text = (value or b"").decode("utf-8")
                reasons[index] = "" if text and not text.isspace() else "no_text"
            except UnicodeDecodeError:
                reasons[index] = "not_utf8"
    return reasons


def _strings(path: str, name: str, batch: pa.RecordBatch) -> pa.Array:
    """Give a column as strings, what is no UTF-8 in them replaced."""
    column = batch[name]
    try:
        strings = column.cast(pa.string())
    except pa.ArrowNotImplementedError as error:
        raise InputError(
            f"{path}: the column {name!r} must hold strings or numbers, it holds {column.type}"
        ) from error
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        values = strings.cast(pa.binary()).to_pylist()
        return pa.array([None if x is None else x.decode("utf-8", "replace") for x in values], pa.string())
    return strings


def _read_text(source: SourceConfig, path: str, collector: Collector) -> Iterator[Batch]:
    num_documents, size_bytes = 0, 0
    for number, part in enumerate(_parts(path, source.separator), start=1):
        size_bytes += len(part)
        if part and not part.isspace():
            num_documents += 1
            doc_id = f"{path}:{number}" if source.separator else path
            yield from collector.add(doc_id=doc_id, text=part)
    if not num_documents:
        yield from collector.set_aside(path, "empty", "", size_bytes)


def _parts(path: str, separator: str | None) -> Iterator[str]:
    """Cut a text at a separator, block by block."""
    rest, searched = "", 0
    for block in _decoded(path):
        rest += block
        if separator and rest.find(separator, max(0, searched - len(separator) + 1)) >= 0:
            *parts, rest = rest.split(separator)
            yield from parts
        searched = len(rest)
        if searched > MAX_DOCUMENT_BYTES:
            raise InputError(
                f"{path}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB; "
                "set a separator that cuts it"
            )
    yield rest


def _decoded(path: str) -> Iterator[str]:
    """Read a UTF-8 text in blocks, without a byte order mark, its line ends turned into `\\n`.

    Raises:
        InputError: not UTF-8, or a damaged stream.
    """
    decoder, newlines = codecs.getincrementaldecoder("utf-8")(), io.IncrementalNewlineDecoder(None, True)
    offset, block, is_start = 0, b" ", True
    try:
        with _open(path) as file:
            while block:
                block = file.read(_BLOCK_BYTES)
                text = newlines.decode(decoder.decode(block, final=not block), final=not block)
                offset += len(block)
                yield text.removeprefix("\ufeff") if is_start else text
                is_start = is_start and not text
    except UnicodeDecodeError as error:
        place = offset - len(decoder.getstate()[0]) + error.start
        shown = bytes(error.object[error.start : error.start + 4])
        raise InputError(f"{path}: not UTF-8 at byte {place} ({shown!r}); convert it first") from error
    except (OSError, pa.ArrowException) as error:
        raise _read_fault(path, error) from error


def _read_source_file(path: str, collector: Collector) -> Iterator[Batch]:
    try:
        with _open(path) as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
    except (OSError, pa.ArrowException) as error:
        raise _read_fault(path, error) from error
    shown = content[: 4 * MAX_SHOWN].decode("utf-8", "replace")
    if len(content) > MAX_DOCUMENT_BYTES:
        yield from collector.set_aside(path, "too_long", shown, Path(path).stat().st_size)
        return
    try:
        text = content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        yield from collector.set_aside(path, "not_utf8", shown, len(content))
        return
    if not text or text.isspace():
        yield from collector.set_aside(path, "empty", "", len(content))
        return
    yield from collector.add(doc_id=path, text=text)
