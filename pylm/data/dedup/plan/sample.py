"""Rates of a deduplication, measured on a sample of a corpus: what a plan is made from.

The sample goes through the very stages of a run, one at a time in this process, so that nothing is estimated
that can be seen.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pylm.data import storage
from pylm.data.dedup.blocks import read_block
from pylm.data.dedup.corpus import (
    Split,
    group_text_bytes,
    list_splits,
    open_parquet,
    read_rows,
    row_groups,
    total_bytes,
)
from pylm.data.dedup.run import Progress
from pylm.data.dedup.signing import CorpusConfig
from pylm.data.documents import first_line
from pylm.data.executors import Executor, Item, Result
from pylm.errors import InputError

SAMPLE_BYTES = 256 << 20
_SAMPLE_PLACES = 16
_FETCH_BYTES = 16 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a sample of a corpus took, whatever the command.

    Attributes:
        input_bytes: of the sample, on disk.
        corpus_bytes: of the whole input, on disk.
        corpus_files: of the whole input.
        documents: of the sample.
        text_bytes: of their texts.
        row_group_bytes: of the largest row group, decoded; 0 for JSON lines.
        seconds: of processor time, by stage.
        clock_seconds: by the clock: more, where a disk or other processes were waited for.
        work_bytes: files of the stages, by their folder.
        output_bytes: of survivors and lists of what went.
        read_seconds: to open a file of a stage and read one block.
        fetch_mb_s: at which one process gets the input from a store; None for files of this machine.
        piece_bytes: on disk of the largest row group, which no split divides.
        group_text_bytes: of the texts of the one with most.
        bad_lines: of the sample, that are no documents.
        split_ratio: bytes that count for the size of a split, for one on disk: of texts where lines are
            compressed or in a store, else on disk.
        reads_whole_files: whether one task reads all of a file first, as it does there.
    """

    likeness: ClassVar[str]
    """What a share of the text may do with the rest of it, to be read after "may"."""

    input_bytes: int
    corpus_bytes: int
    corpus_files: int
    documents: int
    text_bytes: int
    row_group_bytes: int
    seconds: dict[str, float]
    clock_seconds: dict[str, float]
    work_bytes: dict[str, int]
    output_bytes: int
    read_seconds: float
    fetch_mb_s: float | None = None
    piece_bytes: int = 0
    group_text_bytes: int = 0
    bad_lines: int = 0
    split_ratio: float = 1.0
    reads_whole_files: bool = False

    @property
    def found(self) -> str:
        """What went, for people."""
        raise NotImplementedError

    @property
    def fraction(self) -> float:
        """Share of the input that was looked at."""
        return min(1.0, self.input_bytes / max(self.corpus_bytes, 1))

    def left(self, folder: str) -> int:
        """Give the bytes of the stages' files in a folder."""
        return self.work_bytes.get(folder, 0)

    def mb_s(self, stage: str) -> float:
        """Give the speed of a stage in megabytes of all texts a second and core."""
        return self.text_bytes / 1e6 / max(self.seconds[stage], 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Give what a JSON file holds; the class, called with it, reads it."""
        return asdict(self)


class Dedup(Protocol):
    """`dedup_near` and its like."""

    def __call__(
        self,
        inputs: Sequence[str],
        out: str,
        config: Any,
        /,
        *,
        execute: Executor,
        progress: Progress | None,
        keep_work: bool,
    ) -> dict[str, Any]:
        """Run all stages and report."""


@contextmanager
def run_sample(
    dedup: Dedup,
    inputs: Sequence[str],
    config: CorpusConfig,
    *,
    stages: Sequence[str],
    sample_bytes: int,
    folder: str | None,
    progress: Progress | None,
    least_files: int = 1,
) -> Iterator[tuple[dict[str, Any], Path, dict[str, Any]]]:
    """Run a deduplication on a sample: places spread evenly over the input.

    Args:
        dedup: runs it.
        inputs: files, folders or globs, as it takes them.
        config: the recipe.
        stages: whose times are wanted, 0 where they do not take place.
        sample_bytes: of the sample, on disk.
        folder: where temporary files go, local; None for that of `TMPDIR`.
        progress: called with a stage, finished and all of its items.
        least_files: of the sample; one that came to fewer is cut in two.

    Yields:
        The report, the folder of the stages' files, and fields of `Rates`.

    Raises:
        InputError: an input cannot be used, or holds no documents.
    """
    # Lines that are no documents are the run's to judge: a sample may have more of them than the corpus.
    config = config.model_copy(update={"max_bad_fraction": 1.0})
    if sample_bytes < 1:
        raise InputError(f"sample_bytes must be at least 1, got {sample_bytes}; 256 MiB is usual")
    cut = max(1, sample_bytes // _SAMPLE_PLACES)
    splits = list_splits(inputs, columns=config.columns(), split_bytes=cut)
    corpus_bytes = total_bytes(splits)
    places, limit = len(splits), 1 << 62  # all of them
    if corpus_bytes > sample_bytes:
        places = min(places, max(_SAMPLE_PLACES, sample_bytes * len(splits) // corpus_bytes))
        limit = max(1, sample_bytes // places)
    chosen = [splits[i * len(splits) // places] for i in range(places)]
    with TemporaryDirectory(prefix="pylm-plan-", dir=folder) as temporary:
        sample = Path(temporary) / "sample"
        sample.mkdir()
        copied = [
            _copy(split, sample / f"{i:05d}", limit, config.text_column) for i, split in enumerate(chosen)
        ]
        if len(chosen) < least_files:
            for path in list(sample.iterdir()):
                _halve(path)
        timer = _Timer(dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0))
        out = Path(temporary) / "out"
        with _names_of_inputs(sample, inputs, chosen):
            report = dedup([str(sample)], str(out), config, execute=timer, progress=progress, keep_work=True)
        work = out / "work"
        work_bytes: dict[str, int] = {}
        for path in work.rglob("*"):
            if path.is_file():
                name = path.parent.name
                work_bytes[name] = work_bytes.get(name, 0) + path.stat().st_size
        taken = [x.taken_bytes for x in copied]
        of_whole_files = sum(size for split, size in zip(chosen, taken, strict=True) if split.part_bytes)
        reads_whole_files = of_whole_files > sum(taken) / 2
        fields = {
            "input_bytes": max(1, min(corpus_bytes, round(sum(taken)))),
            "corpus_bytes": corpus_bytes,
            "corpus_files": len({split.path for split in splits}),
            "documents": int(report["documents"]),
            "text_bytes": int(report["bytes"]),
            "row_group_bytes": max(x.row_group_bytes for x in copied),
            "piece_bytes": max(x.piece_bytes for x in copied),
            "group_text_bytes": max(x.group_text_bytes for x in copied),
            "bad_lines": int(report["bad_lines"]),
            "split_ratio": report["bytes"] / max(sum(taken), 1) if reads_whole_files else 1.0,
            "reads_whole_files": reads_whole_files,
            "seconds": timer.seconds,
            "clock_seconds": timer.clock_seconds,
            "work_bytes": work_bytes,
            "output_bytes": sum(
                path.stat().st_size for name in ("documents", "removed") for path in (out / name).iterdir()
            ),
            "read_seconds": _time_read(work / "signed"),
            "fetch_mb_s": _time_fetch(chosen[0].path),
        }
        yield report, work, fields


@contextmanager
def _names_of_inputs(sample: Path, inputs: Sequence[str], splits: Sequence[Split]) -> Iterator[None]:
    """Name in an error what was sampled in the place of the sample's files."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for number, split in enumerate(splits):
            for path in sample.glob(f"{number:05d}[.-]*"):
                message = message.replace(str(path), f"a sample of {split.path}")
        raise InputError(message.replace(str(sample), ", ".join(inputs))) from error


@dataclass
class _Timer:
    """An executor of this process that adds up the time of each stage."""

    seconds: dict[str, float]
    clock_seconds: dict[str, float]

    def for_stage(self, name: str) -> Executor:
        """Give what does a stage's work, one item after another."""
        return partial(self._work, name=name)

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Do the work of a stage without a name."""
        return self._work(work, items, name="")

    def _work(self, work: Callable[[Item], Result], items: Sequence[Item], name: str) -> Iterator[Result]:
        for item in items:
            start, start_clock = time.process_time(), time.perf_counter()
            result = work(item)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            self.clock_seconds[name] = self.clock_seconds.get(name, 0.0) + time.perf_counter() - start_clock
            yield result


@dataclass(frozen=True)
class _Copied:
    """What was copied of a split: bytes on disk that it takes there; sizes of row groups, as in `Rates`."""

    taken_bytes: float
    row_group_bytes: int = 0
    piece_bytes: int = 0
    group_text_bytes: int = 0


def _copy(split: Split, path: Path, limit_bytes: int, text_column: str) -> _Copied:
    """Copy about so many bytes of a split."""
    size = storage.size(split.path)
    if split.kind == "jsonl":
        return _Copied(_copy_lines(split, path, limit_bytes))
    with open_parquet(split.path) as file:
        schema = file.schema_arrow
        stop = file.num_row_groups if split.stop is None else split.stop
        groups = [file.metadata.row_group(i) for i in range(split.start, stop)]
        all_rows = max(1, file.metadata.num_rows)
    if not groups:
        return _Copied(0.0)
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    stored = sum(column.total_compressed_size for column in columns)
    num_rows = max(1, sum(group.num_rows for group in groups))
    wanted = max(1, num_rows * limit_bytes // max(stored, 1))
    codec = columns[0].compression.lower() if columns else "none"
    largest = max(group.num_rows for group in groups)
    # Row groups as large as the input's: what a stage holds in memory depends on them.
    waiting: list[pa.RecordBatch] = []
    taken = 0
    with pq.ParquetWriter(path.with_suffix(".parquet"), schema, compression=_known(codec)) as writer:

        def flush() -> None:
            for table in row_groups(waiting):
                writer.write_table(table, row_group_size=largest)
            waiting.clear()

        for first, batch in read_rows(split.path, split.start, split.stop):
            if first >= wanted:
                break
            waiting.append(batch.slice(0, wanted - first))
            taken += len(waiting[-1])
            if sum(map(len, waiting)) >= largest:
                flush()
        flush()
    return _Copied(
        size * taken / all_rows,
        max(int(group.total_byte_size) for group in groups),
        max(sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups),
        max(group_text_bytes(group, text_column) for group in groups),
    )


def _halve(path: Path) -> None:
    """Put the second half of a sample's rows, or lines, in a file of their own."""
    second = path.with_name(f"{path.name.partition('.')[0]}-2.{path.name.partition('.')[2]}")
    if path.suffix == ".parquet":
        with open_parquet(str(path)) as file:
            groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
            table = pa.concat_tables([file.schema_arrow.empty_table(), *groups])
            codec = _codec_of(file)
            most = max((file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)), default=1)
        half = (len(table) + 1) // 2
        size = max(1, min(most, half))
        for target, rows in ((second, table.slice(half)), (path, table.slice(0, half))):
            with pq.ParquetWriter(target, table.schema, compression=codec) as writer:
                for first in range(0, len(rows), size):
                    for group in row_groups(rows.slice(first, size).to_batches()):
                        writer.write_table(group, row_group_size=len(group))
        return
    packed = _CODECS.get(path.suffix)
    with pa.input_stream(path, compression=packed) as stream:
        content = stream.read()
    half = content.find(b"\n", len(content) // 2) + 1 or len(content)
    for target, lines in ((second, content[half:]), (path, content[:half])):
        with pa.output_stream(target, compression=packed) as stream:
            stream.write(lines)


def _codec_of(file: pq.ParquetFile) -> str:
    has_columns = file.num_row_groups and file.metadata.num_columns
    return _known(file.metadata.row_group(0).column(0).compression.lower() if has_columns else "none")


def _known(codec: str) -> str:
    return codec if codec in ("snappy", "gzip", "brotli", "zstd", "lz4") else "none"


def _copy_lines(split: Split, path: Path, limit_bytes: int) -> float:
    """Copy lines from the beginning of a split on, compressed as they were; give the bytes that were read."""
    try:
        return _copy_open_lines(split, path, limit_bytes)
    except OSError as error:
        raise InputError(
            f"{split.path}: cannot be read ({first_line(error)}); fetch or write it again"
        ) from error


def _copy_open_lines(split: Split, path: Path, limit_bytes: int) -> float:
    suffix = Path(split.path).suffix
    codec = _CODECS.get(suffix)
    target = path.with_suffix(f".jsonl{suffix}" if codec else ".jsonl")
    with ExitStack() as stack:
        stream: Any = stack.enter_context(storage.open_input(split.path))
        if split.start:
            stream.seek(split.start - 1)
            stream.readline()
        source = (
            stack.enter_context(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec))
            if codec
            else stream
        )
        raw = stack.enter_context(target.open("wb"))
        sink = stack.enter_context(pa.CompressedOutputStream(pa.PythonFile(raw), codec)) if codec else raw
        begin = stream.tell()
        rest, taken, step = b"", False, max(1, min(1 << 20, limit_bytes // 4))
        # What a decompressor has read ahead is not copied yet.
        while (raw.tell() if codec else stream.tell() - begin) < limit_bytes or not taken:
            left = step if split.stop is None else split.stop - stream.tell()
            block = source.read(min(step, left)) if left > 0 else b""
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if not block and left <= 0 and rest:  # the line that the end of the split cuts is its own
                rest += source.readline()
            sink.write(lines + newline if block else rest)
            taken = taken or bool(newline)
            if not block:
                break
        return float(stream.tell() - begin)


def _time_read(folder: Path) -> float:
    paths = sorted(folder.glob("*.blocks"))
    start = time.perf_counter()
    for path in paths:
        read_block(str(path), 0)
    return (time.perf_counter() - start) / max(len(paths), 1)


def _time_fetch(path: str) -> float | None:
    if storage.is_local(path):
        return None
    start = time.perf_counter()
    size = len(storage.read_bytes(path, 0, _FETCH_BYTES))
    return size / 1e6 / max(time.perf_counter() - start, 1e-9)
