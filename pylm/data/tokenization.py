"""From documents to token shards: reading, encoding and writing at the same time.

Reader threads decode row groups of the Parquet file into batches of some megabytes, encoder threads turn
batches into ids, the calling thread writes them in the order of the file. Bounded queues lie between them.
What is written does not depend on the threads, since the batches and their order do not.
"""

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pylm import _core
from pylm.data.chat import END_OF_TEXT
from pylm.data.executors import count_cores
from pylm.data.shard_writer import (
    Encoded,
    Part,
    Writers,
    id_dtype,
    is_finished,
    resume,
    save_finished,
    save_journal,
)
from pylm.data.shards import DOCUMENT_FIELDS, FORMAT, Shard
from pylm.data.token_statistics import STATISTICS, ShardStats, SplitStats, count_groups
from pylm.errors import InputError

if TYPE_CHECKING:
    from pylm.text import Tokenizer

__all__ = ["tokenize", "write_shards"]

JOURNAL_FORMAT = 1
"""Raised when the same documents and tokenizer give other files or statistics."""

_BATCH_BYTES = 4 << 20  # of text
_BATCH_ROWS = 16384
_QUEUED_BATCHES = 4  # of each reader
_SOURCE_BYTES = 200  # of its name, so that those of its files stay below the 255 of file systems

TokenizeProgress = Callable[[int, int, int], object]
"""Called with documents done, documents in all, and ids so far."""


def tokenize(
    documents_parquet: Path,
    tokenizer: "Tokenizer",
    out: Path,
    *,
    num_threads: int = 0,
    progress: TokenizeProgress | None = None,
    note: Callable[[str], object] | None = None,
    allow_empty: bool = False,
) -> SplitStats:
    """Turn a Parquet file of documents into token shards, one for each source, and `statistics.json`.

    A call that was killed goes on behind the last row group that it had written. Shards that this tokenizer
    has already made of this file, known by size and time of change, are left as they are; others of the same
    names are replaced, and those of sources that an earlier call found and this one did not are removed.

    Memory: some batches of 4 MiB of text a thread, or one of single documents that are larger; the compressed
    columns of one row group a reader; 8 bytes a document at the end.

    Args:
        documents_parquet: documents with the columns `id`, `text`, `source`, `url`; languages are counted
            where a column `language` or the JSON object in `meta` says them.
        tokenizer: has `<|endoftext|>`. Its special tokens' texts inside a document are ordinary text.
        out: folder of the shards.
        num_threads: threads that encode; 0 takes all cores. As many read, count and copy beside them. The
            files do not depend on it.
        progress: called after each batch.
        note: called with a line about what is gone on with, kept or done again.
        allow_empty: without documents, write statistics only.

    Returns:
        Statistics, as `statistics.json` holds them.

    Raises:
        InputError: the file is missing, damaged or without documents, a column is missing or of another type,
            or as `write_shards`; names the file. What was there before stays, nothing else is left.
    """
    _require_end_of_text(tokenizer)
    num_threads = _count_threads(num_threads)
    file = _DocumentFile(documents_parquet)
    if file.num_documents == 0 and not allow_empty:
        raise InputError(f"{documents_parquet}: no documents to tokenize; loosen the filters")
    say = note or (lambda line: None)
    key = _key(documents_parquet, tokenizer)
    if (finished := _load_finished(out, key)) is not None:
        say(f"{out}: complete")
        return finished
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = Writers(out, tokenizer, stack)
        try:
            num_done = resume(
                out, writers, key, tokenizer=tokenizer, read_references=file.read_references,
                num_documents=file.num_documents, note=say,
            )  # fmt: skip
            groups = range(num_done, file.num_groups)
            with (
                closing(_read_ahead(file.read, groups, num_readers=(num_threads + 1) // 2)) as batches,
                closing(_encode_all(batches, tokenizer, num_threads)) as results,
            ):
                for encoded in results:
                    if encoded is not None:
                        writers.write(encoded)
                        if progress is not None:
                            progress(writers.num_docs, file.num_documents, writers.num_tokens)
                        continue
                    num_done += 1
                    writers.end_group()
                    save_journal(out, writers, key, num_done)
        except InputError as error:
            writers.discard()
            raise InputError(f"{documents_parquet}: {error}") from error
        writers.remove_vanished()
        metas = writers.finish()
    statistics = writers.publish(metas)
    statistics.save(out / STATISTICS)
    save_finished(out, key)
    writers.discard()
    return statistics


def write_shards(
    documents: Iterable[pa.RecordBatch], tokenizer: "Tokenizer", folder: Path, *, num_threads: int = 0
) -> dict[str, ShardStats]:
    """Encode documents and write one shard for each source.

    Memory does not grow with the documents, but for 8 bytes each. Nothing is published before the last
    document is encoded; shards of the same names are replaced.

    Args:
        documents: batches with the columns `id`, `text`, `source`, `url`; sources may be mixed.
        tokenizer: has `<|endoftext|>`. Its special tokens' texts inside a document are ordinary text.
        folder: where the shards go.
        num_threads: threads that encode; 0 takes all cores. The files do not depend on it.

    Returns:
        Statistics by source, sorted by name.

    Raises:
        InputError: a document without text or source, or a source that cannot be a file's name.
    """
    _require_end_of_text(tokenizer)
    num_threads = _count_threads(num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = Writers(folder, tokenizer, stack)
        stack.callback(writers.discard)
        batches = (item for batch in documents for item in (batch, None))
        with closing(_encode_all(batches, tokenizer, num_threads)) as results:
            for encoded in results:
                if encoded is not None:
                    writers.write(encoded)
                else:
                    writers.end_group()
        metas = writers.finish()
    return dict(writers.publish(metas).sources)


def _require_end_of_text(tokenizer: "Tokenizer") -> None:
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(f"the tokenizer lacks {END_OF_TEXT}, which ends every document; train it with that")


def _count_threads(num_threads: int) -> int:
    if num_threads < 0:
        raise InputError(f"num_threads must be at least 0, got {num_threads}; 0 takes all cores")
    return num_threads or count_cores()


def _key(documents_parquet: Path, tokenizer: "Tokenizer") -> str:
    """Hash all that the files depend on."""
    status = documents_parquet.stat()
    parts = (JOURNAL_FORMAT, FORMAT, tokenizer.fingerprint, status.st_size, status.st_mtime_ns)
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())


def _load_finished(folder: Path, key: str) -> SplitStats | None:
    statistics = SplitStats.load(folder / STATISTICS) if is_finished(folder, key) else None
    if statistics is None:
        return None
    try:
        for name in statistics.sources:
            Shard.open(folder, name)
    except InputError:
        return None
    return statistics


class _DocumentFile:
    """A Parquet file of documents, checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the prepare stage first")
        try:
            with pq.ParquetFile(path) as file:
                self._metadata = file.metadata
                schema = file.schema_arrow
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(f"{path}: ", error) from error
        if missing := {"text", *DOCUMENT_FIELDS} - set(schema.names):
            raise InputError(f"{path}: columns {', '.join(sorted(missing))} are missing; is it of documents?")
        for name in ("id", "text", "source", "url"):
            if (count := schema.names.count(name)) > 1:
                raise InputError(f"{path}: {count} columns are named {name}, expected one")
            kind = schema.field(name).type
            if not _is_string(kind) and not (name == "url" and pa.types.is_null(kind)):
                raise InputError(f"{path}: column {name} must be of strings, got {kind}")
        self._columns = ["text", *DOCUMENT_FIELDS]
        for name in ("language", "meta"):
            if name in schema.names and _is_string(schema.field(name).type):
                self._columns.append(name)
                break
        self._text_place = next(
            i for i in range(self._metadata.num_columns) if self._metadata.schema.column(i).path == "text"
        )

    @property
    def num_documents(self) -> int:
        return int(self._metadata.num_rows)

    @property
    def num_groups(self) -> int:
        return int(self._metadata.num_row_groups)

    def read(self, group: int) -> Iterator[pa.RecordBatch]:
        """Read a row group in batches of about _BATCH_BYTES of text."""
        metadata = self._metadata.row_group(group)
        num_bytes = max(1, metadata.column(self._text_place).total_uncompressed_size)
        num_rows = min(_BATCH_ROWS, max(1, metadata.num_rows * _BATCH_BYTES // num_bytes))
        return self._batches(group, self._columns, num_rows)

    def read_references(self, group: int) -> Iterator[pa.RecordBatch]:
        """Read what NAME.docs.parquet has of a row group."""
        return map(_references, self._batches(group, list(DOCUMENT_FIELDS), _BATCH_ROWS))

    def _batches(self, group: int, columns: list[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        place = f"row group {group} of {self.num_groups}: "
        expected, found = self._metadata.row_group(group).num_rows, 0
        try:
            with pq.ParquetFile(self.path, metadata=self._metadata) as file:
                for batch in file.iter_batches(
                    batch_size=num_rows, row_groups=[group], columns=columns, use_threads=False
                ):
                    found += len(batch)
                    yield batch
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(place, error) from error
        if found != expected:  # Arrow takes some damaged pages for the end of the group.
            raise InputError(
                f"{place}{found} documents, expected {expected}; the file is damaged: "
                f"run the prepare stage again"
            )


def _unreadable(place: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{place}not a readable Parquet file: {reason}; run the prepare stage again")


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _read_ahead(
    read: Callable[[int], Iterator[pa.RecordBatch]], groups: Iterable[int], *, num_readers: int
) -> Generator[pa.RecordBatch | None, None, None]:
    """Read row groups on threads, some batches ahead; give batches in order, None behind each group."""
    stopped = threading.Event()

    def put(batches: "queue.Queue[Any]", item: object) -> bool:
        while not stopped.is_set():
            try:
                batches.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run(group: int, batches: "queue.Queue[Any]") -> None:
        try:
            for batch in read(group):
                if not put(batches, batch):
                    return
            put(batches, None)
        except BaseException as error:
            put(batches, error)

    waiting: deque[queue.Queue[Any]] = deque()
    rest = iter(groups)
    with ThreadPoolExecutor(num_readers, thread_name_prefix="read") as pool:
        try:
            while True:
                while len(waiting) < num_readers and (group := next(rest, None)) is not None:
                    batches: queue.Queue[Any] = queue.Queue(_QUEUED_BATCHES)
                    pool.submit(run, group, batches)
                    waiting.append(batches)
                if not waiting:
                    return
                item = waiting[0].get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    waiting.popleft()
                yield item
        finally:
            stopped.set()


def _encode_all(
    batches: Iterable[pa.RecordBatch | None], tokenizer: "Tokenizer", num_threads: int
) -> Generator[Encoded | None, None, None]:
    """Encode batches on threads; give results in order, and the None between them."""
    pending: deque[Future[Encoded] | None] = deque()

    def ready(limit: int) -> Iterator[Encoded | None]:
        while pending and (len(pending) > limit or pending[0] is None or pending[0].done()):
            first = pending.popleft()
            yield None if first is None else first.result()

    # Half as many more, so that counting and copying hold up no thread that may encode.
    num_workers = num_threads + (num_threads + 1) // 2
    encoding = threading.Semaphore(num_threads)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="encode") as pool:
        try:
            for batch in batches:
                if batch is None:
                    pending.append(None)
                else:
                    # A batch that one long document has made large occupies all threads.
                    threads = num_threads if batch.nbytes > 4 * _BATCH_BYTES else 1
                    pending.append(pool.submit(_encode, batch, tokenizer, threads, encoding))
                yield from ready(num_workers + 2)
            yield from ready(0)
        except BaseException:
            for future in pending:
                if future is not None:
                    future.cancel()
            raise


def _encode(
    batch: pa.RecordBatch, tokenizer: "Tokenizer", num_threads: int, encoding: threading.Semaphore
) -> Encoded:
    texts = _plain(batch["text"])
    codes_D, sources = _codes(batch["source"])
    _check_documents(batch, texts, codes_D, sources)
    words_D = _core.count_words(texts)  # first, as the reader has just had the text in a cache
    end_id = tokenizer.special_tokens[END_OF_TEXT]
    with encoding:
        encoded = tokenizer.encode_batch(texts, end_id=end_id, num_threads=num_threads)
    ids, offsets = np.asarray(encoded.ids), np.asarray(encoded.offsets)
    tokens_D = np.diff(offsets)
    bytes_D = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    sizes = {"tokens_D": tokens_D, "bytes_D": bytes_D, "words_D": words_D}
    counts = count_groups(codes_D, sources, **sizes)
    parts = {}
    for code, source in enumerate(sources):
        docs = np.flatnonzero(codes_D == code)
        out, ids_V = _core.gather_ids(
            ids, offsets, docs, vocab_size=tokenizer.vocab_size, narrow=id_dtype(tokenizer).itemsize == 2
        )
        parts[source] = Part(out, tokens_D[docs], ids_V, counts[source])
    languages = count_groups(*_languages(batch), **sizes)
    return Encoded(parts, languages, _references(batch))


def _plain(column: pa.Array) -> pa.Array:
    """Give a column of strings without a dictionary or views, which not every kernel of Arrow takes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _references(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [_plain(batch[field]).cast(pa.string()) for field in DOCUMENT_FIELDS]
    return pa.record_batch(columns, names=list(DOCUMENT_FIELDS))


def _codes(column: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Number the values in the order of their first appearance, -1 for null."""
    encoded = _plain(column).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    try:
        return codes, encoded.dictionary.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"a source or language is not UTF-8: {error.object!r}") from error


def _languages(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], list[str]]:
    if "language" in batch.schema.names:
        return _codes(batch["language"])
    if "meta" not in batch.schema.names or batch["meta"].null_count == len(batch):
        return np.full(len(batch), -1), []
    # Only an object that may say it is worth parsing.
    metas = _plain(batch["meta"])
    says_D = pc.fill_null(pc.match_substring(metas, '"language"'), False)
    found: list[str | None] = [None] * len(batch)
    for i in np.flatnonzero(says_D.to_numpy(zero_copy_only=False)):
        found[i] = _language_of(metas[int(i)])
    return _codes(pa.array(found, pa.string()))


def _language_of(meta: pa.Scalar) -> str | None:
    try:
        value = json.loads(meta.as_py())
        language = value.get("language") if isinstance(value, dict) else None
        if not isinstance(language, str):
            return None
        language.encode()  # JSON may name lone surrogates
    except (ValueError, RecursionError):
        return None
    return language


def _check_documents(
    batch: pa.RecordBatch, texts: pa.Array, codes_D: NDArray[np.int64], sources: Sequence[str]
) -> None:
    if (codes_D < 0).any():
        doc = _show_id(batch, int(np.argmin(codes_D)))
        raise InputError(f"document {doc} has no source; every document needs one")
    for source in sources:
        if not source or source.startswith(".") or any(c in source for c in '/\\:*?"<>|\0'):
            raise InputError(f"source {source!r} cannot name a file; use letters, digits, '.', '_' and '-'")
        if (num_bytes := len(source.encode())) > _SOURCE_BYTES:
            raise InputError(
                f"source {source[:40]!r}... has {num_bytes} bytes and cannot name a file; "
                f"use at most {_SOURCE_BYTES}"
            )
    if texts.null_count:
        is_null_D = texts.is_null().to_numpy(zero_copy_only=False)
        first = int(np.argmax(is_null_D))
        source = sources[codes_D[first]]
        number = int((is_null_D & (codes_D == codes_D[first])).sum())
        raise InputError(
            f"{number} documents of source {source} have no text, the first is "
            f"{_show_id(batch, first)}; drop them before"
        )


def _show_id(batch: pa.RecordBatch, row: int) -> str:
    value = _plain(batch["id"])[row]
    return repr(value.as_buffer().to_pybytes().decode(errors="backslashreplace") if value.is_valid else None)
