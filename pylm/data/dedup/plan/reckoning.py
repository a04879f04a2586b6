"""What plans of all commands share: from rates of a sample to tasks, time and warnings of each stage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pylm.data.dedup.corpus import MOST_SPLIT_ROWS
from pylm.data.dedup.plan.report import GB, Range, StagePlan, count_range
from pylm.data.dedup.plan.sample import Rates
from pylm.data.executors import count_cores
from pylm.errors import InputError

MANY_READS = 1e8
SLOWDOWN = 1.5
"""Of cores that all work, and wait for a disk, against processor time of one; more where more was seen."""
NONE = Range(0.0, 0.0)


@dataclass(frozen=True)
class Size:
    """What a plan is for.

    Attributes:
        size: of the input, bytes on disk.
        scale: that against the sample's.
        documents: about.
        text: bytes of their texts, about.
        files: of the input, about.
        num_workers: processes at one time.
        worker_memory: bytes that each may take.
        read_seconds: to open a file and read a part of it.
        fetch_seconds: to get all of the input once from where it is; 0 for files of this machine.
        piece: bytes on disk of the largest part of a file that no split divides.
        split_ratio: bytes that count for the size of a split, for one on disk.
        reads_whole_files: whether one task reads all of a file first.
    """

    size: int
    scale: float
    documents: float
    text: float
    files: float
    num_workers: int
    worker_memory: int
    read_seconds: float
    fetch_seconds: float
    piece: int
    split_ratio: float
    reads_whole_files: bool

    @property
    def counted(self) -> float:
        """Bytes of the input that count for the size of splits."""
        return self.size * self.split_ratio

    @classmethod
    def of(
        cls,
        rates: Rates,
        *,
        num_workers: int,
        worker_memory: int,
        least_memory: int,
        input_bytes: int | None,
        file_bytes: int | None,
        read_seconds: float | None,
        shares: Mapping[str, float | None],
    ) -> "Size":
        """Scale a sample to an input.

        Raises:
            InputError: a number is out of range.
        """
        check_numbers(num_workers, worker_memory, least_memory, input_bytes, file_bytes)
        for name, share in shares.items():
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {share:g}; 0.2 is 20 %")
        size = rates.corpus_bytes if input_bytes is None else input_bytes
        scale = size / max(rates.input_bytes, 1)
        of_sample = rates.corpus_files * size / max(rates.corpus_bytes, 1)
        return cls(
            size=size,
            scale=scale,
            documents=rates.documents * scale,
            text=rates.text_bytes * scale,
            files=max(1.0, size / file_bytes if file_bytes else of_sample),
            num_workers=num_workers or count_cores(),
            worker_memory=worker_memory,
            read_seconds=rates.read_seconds if read_seconds is None else read_seconds,
            fetch_seconds=size / 1e6 / rates.fetch_mb_s if rates.fetch_mb_s else 0.0,
            piece=rates.piece_bytes,
            split_ratio=rates.split_ratio,
            reads_whole_files=rates.reads_whole_files,
        )

    def splits(self, split_bytes: int, docs_a_byte: float) -> int:
        """Give the number of splits, which count in bytes of that kind; none crosses files."""
        a_file = self.counted / self.files
        split_bytes = max(split_bytes, self.piece)
        by_rows = 0 if self.piece >= a_file else math.ceil(docs_a_byte * a_file / MOST_SPLIT_ROWS)
        return max(1, round(self.files * max(1, math.ceil(a_file / split_bytes), by_rows)))

    def parts(self, part_bytes: int) -> int:
        """Give the number of parts with so many bytes of texts; none crosses files."""
        return max(1, round(self.files * math.ceil(self.text / self.files / part_bytes)))

    def signed(self, num_splits: int, *, is_cut: bool = False) -> int:
        """Give the number of tasks that read the input first.

        Args:
            num_splits: of all other stages.
            is_cut: whether row groups are, each by one task.
        """
        if self.reads_whole_files:
            return min(num_splits, max(1, round(self.files)))
        return min(num_splits, max(1, round(self.size / self.piece))) if is_cut else num_splits


def check_numbers(
    num_workers: int,
    worker_memory: int,
    least_memory: int,
    input_bytes: int | None = None,
    file_bytes: int | None = None,
) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: one is out of range; names it.
    """
    if num_workers < 0:
        raise InputError(f"num_workers must be at least 0, got {num_workers}; 0 takes this machine's cores")
    if worker_memory < least_memory:
        raise InputError(
            f"a worker needs at least {least_memory / GB:.2f} GB of memory, got "
            f"{worker_memory / GB:g} GB; raise worker_memory_bytes, or --worker-memory-gb"
        )
    for name, number in (("input_bytes", input_bytes), ("file_bytes", file_bytes)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")


def a_whole(seen: float, share: float, most: float) -> float:
    """Give the bytes that files would have if all documents were in them.

    Args:
        seen: bytes of a sample's files, heads included.
        share: of its documents, or texts, that are in them.
        most: that they may have, taken where the share says too little.
    """
    return min(most, seen / share) if share > 0 else most


def exactly(number: float) -> Range:
    """Give the range of one number."""
    return Range(float(number), float(number))


def share_of(seen: float, num_docs: int, scale: float, known: float | None = None) -> Range:
    """Give a share of the whole corpus, from that in the sample.

    A share f of a corpus shows of a cluster of c documents one that has another with it with probability
    1 - (1 - f)^(c - 1), which is between f and 1. So the corpus' share is between the sample's and the
    sample's / f. Where it shows nothing, up to three documents in it may have been missed (95 %).
    """
    if known is not None:
        return exactly(known)
    if scale < 1.01:
        return exactly(seen)
    return Range(seen, min(1.0, max(seen, 3 / max(num_docs, 1)) * scale))


def slowdown(rates: Rates, stage: str) -> float:
    """Give how many times its processor time a stage may take by the clock."""
    return max(SLOWDOWN, rates.clock_seconds.get(stage, 0.0) / max(rates.seconds.get(stage, 0.0), 1e-9))


def plan_stages(
    size: Size,
    seconds: Mapping[str, Range],
    tasks: Mapping[str, Range],
    reads: Mapping[str, Range],
    memory: Mapping[str, float],
    disk: Mapping[str, Range],
    *,
    rounds: Mapping[str, int] | None = None,
) -> tuple[StagePlan, ...]:
    """Put stages together.

    Args:
        size: what the plan is for.
        seconds: of each stage, on one core, in order.
        tasks: of each.
        reads: parts of files that a stage's tasks open, where they are many.
        memory: of the largest task of each, bytes.
        disk: bytes that a stage leaves, where it leaves any.
        rounds: tasks of one round, of stages that have several, each of which waits for the one before.
    """
    stages, rounds = [], rounds or {}
    for name, core in seconds.items():
        opened, count = reads.get(name, NONE), tasks[name]
        core = core.plus(opened.times(size.read_seconds))
        of_round = [rounds.get(name, int(n)) for n in count]
        clock = Range(*(x * _waves(n, size.num_workers) for x, n in zip(core, of_round, strict=True)))
        hours = clock.times(1 / 3600)
        left = disk.get(name, NONE)
        stages.append(StagePlan(name, count, core.times(1 / 3600), hours, memory[name], left, opened))
    return tuple(stages)


def _waves(tasks: int, num_workers: int) -> float:
    """Give the share of a stage's work that the clock sees."""
    return math.ceil(tasks / num_workers) / tasks if tasks else 0.0


def total(ranges: Iterable[Range]) -> Range:
    """Add up ranges."""
    result = NONE
    for one in ranges:
        result = result.plus(one)
    return result


def warn_of_lines(rates: Rates, most: float) -> tuple[str, ...]:
    """Say how many of a sample's lines are no documents; a run leaves a share of at most `most` out."""
    if not rates.bad_lines:
        return ()
    num_lines = rates.documents + rates.bad_lines
    result = ", and are left out"
    if rates.bad_lines > most * num_lines:
        result = (
            f", a run leaves out a share of {most:g}: check --text-column, or raise --max-bad-fraction there"
        )
    return (f"{rates.bad_lines:,} of {num_lines:,} lines of the sample are no documents{result}",)


def warnings_of(
    stages: Sequence[StagePlan], size: Size, alike: Range, *, alone: Mapping[str, str]
) -> tuple[str, ...]:
    """Say what stands in the way of a plan, or makes it uncertain.

    Args:
        stages: of the plan.
        size: what it is for.
        alike: share of the text that resembles other.
        alone: what helps where the one task of a stage does not fit, by stage.
    """
    found = []
    for stage in stages:
        if stage.task_memory_bytes > size.worker_memory:
            needs = f"{stage.name} needs {stage.task_memory_bytes / GB:,.1f} GB in one task"
            advice = f", workers have {size.worker_memory / GB:,.1f} GB; run fewer with more memory each"
            found.append(needs + alone.get(stage.name, advice))
        if stage.small_reads.high > MANY_READS:
            found.append(
                f"{stage.name} opens {count_range(stage.small_reads)} parts of files, reckoned at "
                f"{1000 * size.read_seconds:.3g} ms each; larger files of input and workers with more "
                "memory help"
            )
    if alike.high > 2 * alike.low:
        found.append(
            "a sample shows of copies only those that lie in it together, hence the ranges; a larger one "
            "narrows them"
        )
    return tuple(found)
