"""What a removal of repeated substrings will take, before it is run: time, memory, disk and splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pylm.data.dedup.blocks import read_arrays
from pylm.data.dedup.corpus import MOST_SPLIT_ROWS, ROW_GROUP_BYTES, most_uncut_bytes
from pylm.data.dedup.plan.reckoning import (
    MANY_READS,
    NONE,
    SLOWDOWN,
    Size,
    a_whole,
    check_numbers,
    exactly,
    plan_stages,
    share_of,
    slowdown,
    total,
    warn_of_lines,
    warnings_of,
)
from pylm.data.dedup.plan.report import Plan, Range
from pylm.data.dedup.plan.sample import SAMPLE_BYTES, Rates, run_sample
from pylm.data.dedup.run import LEAST_PARTITIONS, Progress
from pylm.data.dedup.substring_stages import (
    CONTEXT_COPIES,
    KEY_BYTES,
    KEY_RECORD,
    SubstringDedupConfig,
    context_bytes,
    keys_a_byte,
    most_contexts,
)
from pylm.data.dedup.substrings import dedup_substrings
from pylm.errors import InputError

STAGES = ("sign", "copies", "keys", "repeats", "contexts", "compare", "spans", "apply")
"""Of a run, in order, by the first word of what its display names them."""
_BETWEEN_SPLITS = ("repeats", "contexts", "compare")
_MOST_PARTITIONS = 1 << 16
# Bytes of memory, measured on 2026-11-27 as peaks of single tasks; see docs/decisions.md.
_BASE_BYTES = 250 << 20
_SIGN_ROW_BYTES = 60
_COPIES_ROW_BYTES = 80
_KEYS_TEXT_FACTOR, _CONTEXTS_TEXT_FACTOR, _SPANS_TEXT_FACTOR = 2.1, 1.7, 1.8
_BYTES_A_KEY = 25
_PARTITION_FACTOR = 0.6
_APPLY_FACTOR, _APPLY_BYTES = 3.5, 64 << 20
_CHOICE_FACTOR = 0.45
"""Time to choose the anchors again, to divide a level's keys or to send contexts, against that of `keys`."""
_COMPARE_SECONDS_A_BYTE = 5e-9
"""Of contexts, where a sample has too few to tell."""
_TELLING_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SubstringRates(Rates):
    """What `dedup_substrings` took on a sample. Stages `keys` and `repeats` are those of level 0.

    Attributes:
        repeated_share: bytes of texts that went.
        num_keys: of all windows that stand for the first time in their split.
        num_contexts: of these, those whose key another split has too.
        most_contexts: of one key.
        context_bytes: of a context, with what describes it, in the mean.
    """

    likeness: ClassVar[str] = "repeat"

    repeated_share: float
    num_keys: int
    num_contexts: int
    most_contexts: int
    context_bytes: float

    @property
    def found(self) -> str:
        """What went, for people."""
        return f"{100 * self.repeated_share:.1f} % of its text repeats"


def measure_substrings(
    inputs: Sequence[str],
    config: SubstringDedupConfig | None = None,
    *,
    sample_bytes: int = SAMPLE_BYTES,
    folder: str | None = None,
    progress: Progress | None = None,
) -> SubstringRates:
    """Measure the stages of `dedup_substrings` on a sample: places spread evenly over the input.

    Args:
        inputs: files, folders or globs, as `dedup_substrings` takes them.
        config: the recipe; an index takes no part.
        sample_bytes: of the sample, on disk; it takes up to forty times that of temporary disk.
        folder: where temporary files go, local: the kind of disk that the run's would be on; None for that of
            `TMPDIR`.
        progress: called with a stage, finished and all of its items.

    Raises:
        InputError: an input cannot be used, or holds no documents; or the recipe has `against`.
    """
    config = (config or SubstringDedupConfig()).model_copy(update={"index": ""})
    if config.against:
        raise InputError(
            "a plan has no --against: the other texts take what as many of the corpus do, so name them among "
            "the inputs"
        )
    with run_sample(
        dedup_substrings,
        inputs,
        config,
        stages=("keys 0", "repeats 0", *STAGES),
        sample_bytes=sample_bytes,
        folder=folder,
        progress=progress,
        least_files=2,
    ) as (report, work, fields):
        for name in ("seconds", "clock_seconds"):
            times = fields[name]
            fields[name] = {x: times.get(f"{x} 0", times.get(x, 0.0)) for x in STAGES}
        num_keys, num_contexts, largest = _count_keys(work)
        return SubstringRates(
            **fields,
            repeated_share=report["removed_bytes"] / max(fields["text_bytes"], 1),
            num_keys=num_keys,
            num_contexts=num_contexts,
            most_contexts=largest,
            context_bytes=fields["work_bytes"].get("contexts", 0) / max(num_contexts, 1),
        )


def _count_keys(work: Path) -> tuple[int, int, int]:
    """Count the keys of level 0, those with others in other splits, and the most of one."""
    repeats = sorted(work.glob("*/repeats-0/*.blocks"))
    splits = sorted(work.glob("*/keys-0/*.blocks"))
    num_keys = 0
    for path in splits:
        for partition in range(len(repeats)):
            keys, _, times = read_arrays(str(path), partition, *KEY_RECORD)
            num_keys += len(keys) + int((times.astype(np.int64) - 1).sum())
    counts = [read_arrays(str(path), len(splits) + 1, "<i8")[0] for path in repeats]
    num_shared = sum(int(shared) for _, shared, _ in counts)
    return num_keys, num_shared, max((int(most) for *_, most in counts), default=0)


def plan_substrings(
    inputs: Sequence[str],
    config: SubstringDedupConfig | None = None,
    *,
    num_workers: int = 0,
    worker_memory_bytes: int = 4 << 30,
    input_bytes: int | None = None,
    file_bytes: int | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    folder: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Say what `dedup_substrings` will take over an input, from a sample of it.

    Args:
        inputs: files, folders or globs, as `dedup_substrings` takes them.
        config: the recipe; what it sets of splits, partitions and `partition_bytes` stays.
        num_workers: processes at one time, on all machines; 0 takes this machine's cores.
        worker_memory_bytes: that each may take.
        input_bytes: plan for so much of the same kind, on disk; None for the input's own size.
        file_bytes: mean size of its files, which no split crosses; None for that of the files there.
        sample_bytes: of the sample, on disk.
        folder: where temporary files of the sample go; None for `TMPDIR`.
        progress: called with a stage of the sample's run, finished and all of its items.

    Raises:
        InputError: an input cannot be used, a number is out of range, or the recipe has `against`.
    """
    check_numbers(num_workers, worker_memory_bytes, 2 * _BASE_BYTES, input_bytes, file_bytes)
    rates = measure_substrings(inputs, config, sample_bytes=sample_bytes, folder=folder, progress=progress)
    return predict_substrings(
        rates,
        config,
        num_workers=num_workers,
        worker_memory_bytes=worker_memory_bytes,
        input_bytes=input_bytes,
        file_bytes=file_bytes,
    )


def predict_substrings(
    rates: SubstringRates,
    config: SubstringDedupConfig | None = None,
    *,
    num_workers: int = 0,
    worker_memory_bytes: int = 4 << 30,
    input_bytes: int | None = None,
    file_bytes: int | None = None,
    repeated_share: float | None = None,
    read_seconds: float | None = None,
) -> Plan:
    """Say what `dedup_substrings` will take, from rates that were measured before.

    Args:
        rates: of a sample, with the recipe's `min_bytes`.
        config: as `plan_substrings` takes it.
        num_workers: as there.
        worker_memory_bytes: as there.
        input_bytes: as there.
        file_bytes: as there.
        repeated_share: share of the texts' bytes that repeat, where it is known; None for a range.
        read_seconds: to open a file and read a part of it; None for what was measured on the sample's disk.
            About 0.02 of an object store.

    Raises:
        InputError: a number is out of range.
    """
    config = config or SubstringDedupConfig()
    size = Size.of(
        rates,
        num_workers=num_workers,
        worker_memory=worker_memory_bytes,
        least_memory=2 * _BASE_BYTES,
        input_bytes=input_bytes,
        file_bytes=file_bytes,
        read_seconds=read_seconds,
        shares={"repeated_share": repeated_share},
    )
    scale, documents, text = size.scale, size.documents, size.text
    removed = share_of(rates.repeated_share, rates.documents, scale, repeated_share)
    seen = rates.num_contexts / max(rates.num_keys, 1)
    known = None
    if repeated_share is not None:
        known = min(1.0, seen * repeated_share / max(rates.repeated_share, 1e-9))
    contexts = share_of(seen, rates.num_keys, scale, known).times(rates.num_keys * scale)
    moved = contexts.times(rates.context_bytes or context_bytes(config.min_bytes))
    settings, num_splits = _choose(config, rates, size)
    num_hashes, partition_bytes = settings["num_partitions"], settings["partition_bytes"]
    partitions = _num_partitions(config, text, partition_bytes)
    levels = _levels(config, rates.most_contexts, scale, partition_bytes, num_splits)
    needed = contexts.times(context_bytes(config.min_bytes) * CONTEXT_COPIES / partition_bytes)
    tasks = Range(*(float(math.ceil(x)) for x in needed))
    seconds = _seconds(rates, size, levels, moved)
    if num_splits == 1:  # whose repeats are found in memory
        seconds = {name: value for name, value in seconds.items() if name not in _BETWEEN_SPLITS}
        tasks = NONE

    of_copies = exactly(num_splits * num_hashes)
    of_keys = levels.times(num_splits * partitions)
    mapped = min(settings["split_bytes"], size.counted / num_splits)
    is_cut = _is_cut(rates, settings["split_bytes"])
    group_bytes = ROW_GROUP_BYTES if is_cut else rates.row_group_bytes
    split_text = max(text / num_splits, group_bytes)
    dense = _BYTES_A_KEY * keys_a_byte(config.min_bytes)
    spans = 28 * rates.text_bytes / config.min_bytes
    partition_keys = KEY_BYTES * rates.num_keys * scale / partitions
    stages = plan_stages(
        size,
        seconds,
        tasks={
            "sign": exactly(size.signed(num_splits, is_cut=is_cut)),
            **dict.fromkeys(("contexts", "spans", "apply"), exactly(num_splits)),
            "copies": exactly(num_hashes),
            "keys": levels.times(num_splits),
            "repeats": levels.times(partitions),
            "compare": tasks,
        },
        reads={
            "copies": of_copies,
            "keys": of_copies.plus(Range(levels.low - 1, levels.high - 1).times(num_splits * partitions)),
            "repeats": of_keys,
            "contexts": of_copies.plus(of_keys),
            "compare": tasks.times(num_splits),
            "spans": of_copies.plus(tasks.times(num_splits)),
        },
        memory={
            "sign": _BASE_BYTES + mapped + documents / num_splits * _SIGN_ROW_BYTES,
            "copies": _BASE_BYTES + documents / num_hashes * _COPIES_ROW_BYTES,
            "keys": _BASE_BYTES + (_KEYS_TEXT_FACTOR + dense) * split_text,
            "repeats": _BASE_BYTES + min(_PARTITION_FACTOR * partition_bytes, partition_keys),
            "contexts": _BASE_BYTES + (_CONTEXTS_TEXT_FACTOR + dense) * split_text + moved.high / num_splits,
            "compare": _BASE_BYTES + min(_PARTITION_FACTOR * partition_bytes, moved.high),
            "spans": _BASE_BYTES + _SPANS_TEXT_FACTOR * split_text,
            "apply": _BASE_BYTES
            + mapped
            + max(3 * group_bytes, _APPLY_FACTOR * min(split_text, _APPLY_BYTES)),
        },
        disk={
            "sign": exactly(scale * (rates.left("signed") + rates.left("copied")) + is_cut * size.size),
            "keys": exactly(scale * rates.left("keys-0")),
            "repeats": contexts.times(8),
            "contexts": moved,
            "compare": moved.times(rates.left("compared") / max(rates.left("contexts"), 1)),
            "spans": removed.times(a_whole(rates.left("spans"), rates.repeated_share, spans) * scale),
        },
        rounds={"keys": num_splits, "repeats": partitions},
    )
    left = rates.output_bytes * scale / max(1 - rates.repeated_share, 1e-9)
    return Plan(
        command="substring",
        input_bytes=size.size,
        text_bytes=text,
        documents=documents,
        alike=removed,
        num_workers=size.num_workers,
        worker_memory_bytes=worker_memory_bytes,
        settings=settings,
        num_splits=num_splits,
        stages=stages,
        hours=total(stage.hours for stage in stages),
        core_hours=total(stage.core_hours for stage in stages),
        disk_bytes=total(stage.disk_bytes for stage in stages),
        output_bytes=Range(left * (1 - removed.high), left * (1 - removed.low)),
        warnings=warn_of_lines(rates, config.max_bad_fraction) + warnings_of(stages, size, removed, alone={}),
        rates=rates,
    )


def _seconds(rates: SubstringRates, size: Size, levels: Range, moved: Range) -> dict[str, Range]:
    """Give the time of each stage on one core.

    Args:
        rates: of the sample.
        size: what the plan is for.
        levels: how often keys are made.
        moved: bytes of contexts.
    """
    seconds = {stage: exactly(rates.seconds[stage] * size.scale) for stage in STAGES}
    choice = _CHOICE_FACTOR * rates.seconds["keys"]
    further = Range(levels.low - 1, levels.high - 1)
    seconds["keys"] = seconds["keys"].plus(further.times(choice * size.scale))
    copying, compare = max(rates.seconds["contexts"] - choice, rates.seconds["contexts"] / 4), 0.0
    choice = rates.seconds["contexts"] - copying or choice
    in_sample = rates.num_contexts * rates.context_bytes
    if in_sample > _TELLING_BYTES:
        copying, compare = copying / in_sample, rates.seconds["compare"] / in_sample
    else:
        copying, compare = 0.0, _COMPARE_SECONDS_A_BYTE
    seconds["contexts"] = exactly(choice * size.scale).plus(moved.times(copying))
    seconds["compare"] = moved.times(compare)
    fetched = Range(1, SLOWDOWN).times(size.fetch_seconds)
    reading = dict.fromkeys(("sign", "keys", "contexts", "apply"), fetched)
    reading["spans"] = fetched.times(0, 1)  # of row groups in which something goes
    return {
        stage: seconds[stage].times(1, slowdown(rates, stage)).plus(reading.get(stage, NONE))
        for stage in STAGES
    }


def _levels(
    config: SubstringDedupConfig, seen: int, scale: float, partition_bytes: int, num_splits: int
) -> Range:
    """Say how often keys are made: once more for each level of those that too many contexts have.

    A level parts the windows of a key in four, until they are single ones.
    """
    if num_splits == 1:
        return Range(1.0, 1.0)
    most = most_contexts(config.min_bytes, partition_bytes, num_splits)
    further = max(1, math.ceil(math.log(config.min_bytes // 2 + 1, 4)))
    return Range(1.0 + (seen > most), 1.0 + (further if seen * max(scale, 1.0) > most else 0))


def _num_partitions(config: SubstringDedupConfig, text_bytes: float, partition_bytes: int) -> int:
    num_keys = keys_a_byte(config.min_bytes) * text_bytes
    return math.ceil((num_keys + 1) * KEY_BYTES / partition_bytes)


def _choose(config: SubstringDedupConfig, rates: SubstringRates, size: Size) -> tuple[dict[str, int], int]:
    """Choose what the configuration leaves open, so that tasks fit into memory and files are few.

    Returns:
        `split_bytes`, `num_partitions` and `partition_bytes`; the number of splits.
    """
    given = config.model_fields_set
    room, num_workers = size.worker_memory - _BASE_BYTES, size.num_workers
    hashes = config.num_partitions
    if not hashes:
        hashes = LEAST_PARTITIONS
        while hashes < _MOST_PARTITIONS and size.documents * _COPIES_ROW_BYTES / hashes > room:
            hashes *= 2
    text_ratio = size.text / size.counted
    docs_ratio = size.documents / size.counted
    key_bytes = keys_a_byte(config.min_bytes) * size.text * KEY_BYTES
    partition = config.partition_bytes
    split = config.split_bytes
    has_many = key_bytes / partition * size.counted / max(split, 1) > MANY_READS / 10
    if "partition_bytes" not in given:
        most = int(room / _PARTITION_FACTOR)
        wanted = most if has_many else int(key_bytes / (4 * num_workers))
        partition = max(1 << 20, min(most, max(partition, wanted)) >> 20 << 20)
    if "split_bytes" not in given:
        a_text_byte = _KEYS_TEXT_FACTOR + _BYTES_A_KEY * keys_a_byte(config.min_bytes)
        context = rates.num_keys * (rates.context_bytes or context_bytes(config.min_bytes))
        share = share_of(rates.num_contexts / max(rates.num_keys, 1), rates.num_keys, size.scale).high
        a_text_byte += share * context / max(rates.text_bytes, 1)
        most = int(min(room / (1 + a_text_byte * text_ratio), MOST_SPLIT_ROWS / max(docs_ratio, 1e-12)))
        wanted = most if has_many else int(size.counted / (8 * num_workers))
        split = max(1 << 20, min(most, max(split, wanted)) >> 20 << 20)
    settings = {"split_bytes": split, "num_partitions": hashes, "partition_bytes": partition}
    is_cut = _is_cut(rates, split)
    return settings, size.parts(split) if is_cut else size.splits(split, docs_ratio)


def _is_cut(rates: SubstringRates, split_bytes: int) -> bool:
    """Say whether the largest row groups are copied, in parts."""
    return rates.group_text_bytes > most_uncut_bytes(split_bytes)
