"""What a removal of near-duplicates will take, before it is run: time, memory, disk, splits and partitions.

A plan is arithmetic on rates that were measured on a sample. It is a range where the sample cannot say more:
of duplicates, a sample shows those whose other copies are in it too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pylm.data.dedup.corpus import MOST_SPLIT_ROWS
from pylm.data.dedup.near import NearDedupConfig, dedup_near
from pylm.data.dedup.plan.reckoning import (
    MANY_READS,
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

STAGES = ("sign", "match", "connect", "gather", "verify", "apply")
"""Of a run, in order, as its display names them."""
_MOST_PARTITIONS = 1 << 16
_CONNECT_SLOWDOWN = 5
"""Of the table of all documents, once it is larger than a processor's cache."""
_BASE_BYTES = 200 << 20
"""A process that has loaded pylm."""
# Bytes of memory, measured on 2026-11-26 as peaks of single tasks; see docs/decisions.md.
_SIGN_KEY_BYTES = 60
_MATCH_KEY_BYTES = 80
_GATHER_TEXT_FACTOR = 3.3
_VERIFY_TEXT_FACTOR = 1.6
_CANDIDATE_BYTES, _COPY_BYTES = 16, 80
_GATHER_SECONDS_A_BYTE = 8e-9
"""To copy a candidate's text and write it."""
_VERIFY_SECONDS_A_BYTE = 5e-9
"""Where a sample has too few candidates to tell."""


@dataclass(frozen=True, kw_only=True)
class NearRates(Rates):
    """What `dedup_near` took on a sample.

    Attributes:
        bands: of a signature.
        exact_share: documents that went as exact copies.
        near_share: documents that went as near copies.
        candidate_share: bytes of texts that resemble others, exact copies not counted.
        largest_component_bytes: of texts that one task must take together.
    """

    likeness: ClassVar[str] = "resemble another"

    bands: int
    exact_share: float
    near_share: float
    candidate_share: float
    largest_component_bytes: int

    @property
    def found(self) -> str:
        """What went, for people."""
        return f"{100 * self.exact_share:.1f} % exact and {100 * self.near_share:.1f} % near copies"


def measure_near(
    inputs: Sequence[str],
    config: NearDedupConfig | None = None,
    *,
    sample_bytes: int = SAMPLE_BYTES,
    folder: str | None = None,
    progress: Progress | None = None,
) -> NearRates:
    """Measure the stages of `dedup_near` on a sample: places spread evenly over the input.

    Args:
        inputs: files, folders or globs, as `dedup_near` takes them.
        config: the recipe; an index takes no part.
        sample_bytes: of the sample, on disk; it takes about ten times that of temporary disk.
        folder: where temporary files go, local: the kind of disk that the run's would be on; None for that of
            `TMPDIR`.
        progress: called with a stage, finished and all of its items.

    Raises:
        InputError: an input cannot be used, or holds no documents.
    """
    config = (config or NearDedupConfig()).model_copy(update={"index": ""})
    with run_sample(
        dedup_near,
        inputs,
        config,
        stages=STAGES,
        sample_bytes=sample_bytes,
        folder=folder,
        progress=progress,
    ) as (report, _, fields):
        removed, compared = report["removed"], report["compared"]
        return NearRates(
            **fields,
            bands=config.bands[0],
            exact_share=removed["exact"]["documents"] / fields["documents"],
            near_share=removed["near"]["documents"] / fields["documents"],
            candidate_share=compared["bytes"] / max(fields["text_bytes"], 1),
            largest_component_bytes=int(compared["largest_component_bytes"]),
        )


def plan_near(
    inputs: Sequence[str],
    config: NearDedupConfig | None = None,
    *,
    num_workers: int = 0,
    worker_memory_bytes: int = 4 << 30,
    input_bytes: int | None = None,
    file_bytes: int | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    folder: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Say what `dedup_near` will take over an input, from a sample of it.

    Args:
        inputs: files, folders or globs, as `dedup_near` takes them.
        config: the recipe; what it sets of splits, partitions and `verify_bytes` stays.
        num_workers: processes at one time, on all machines; 0 takes this machine's cores.
        worker_memory_bytes: that each may take.
        input_bytes: plan for so much of the same kind, on disk; None for the input's own size.
        file_bytes: mean size of its files, which no split crosses; None for that of the files there.
        sample_bytes: of the sample, on disk.
        folder: where temporary files of the sample go; None for `TMPDIR`.
        progress: called with a stage of the sample's run, finished and all of its items.

    Raises:
        InputError: an input cannot be used, or a number is out of range.
    """
    check_numbers(num_workers, worker_memory_bytes, 2 * _BASE_BYTES, input_bytes, file_bytes)
    rates = measure_near(inputs, config, sample_bytes=sample_bytes, folder=folder, progress=progress)
    return predict_near(
        rates,
        config,
        num_workers=num_workers,
        worker_memory_bytes=worker_memory_bytes,
        input_bytes=input_bytes,
        file_bytes=file_bytes,
    )


def predict_near(
    rates: NearRates,
    config: NearDedupConfig | None = None,
    *,
    num_workers: int = 0,
    worker_memory_bytes: int = 4 << 30,
    input_bytes: int | None = None,
    file_bytes: int | None = None,
    candidate_share: float | None = None,
    copy_share: float | None = None,
    read_seconds: float | None = None,
) -> Plan:
    """Say what `dedup_near` will take, from rates that were measured before.

    Args:
        rates: of a sample.
        config: as `plan_near` takes it.
        num_workers: as there.
        worker_memory_bytes: as there.
        input_bytes: as there.
        file_bytes: as there.
        candidate_share: share of the texts' bytes that resemble others, where it is known; None for a range.
        copy_share: share of the documents that are exact copies of others, where it is known.
        read_seconds: to open a file and read a part of it; None for what was measured on the sample's disk.
            About 0.02 of an object store.

    Raises:
        InputError: a number is out of range.
    """
    config = config or NearDedupConfig()
    size = Size.of(
        rates,
        num_workers=num_workers,
        worker_memory=worker_memory_bytes,
        least_memory=2 * _BASE_BYTES,
        input_bytes=input_bytes,
        file_bytes=file_bytes,
        read_seconds=read_seconds,
        shares={"candidate_share": candidate_share, "copy_share": copy_share},
    )
    scale, documents, text = size.scale, size.documents, size.text
    share = share_of(rates.candidate_share, rates.documents, scale, candidate_share)
    copies = share_of(rates.exact_share, rates.documents, scale, copy_share)
    near = share.times(rates.near_share / max(rates.candidate_share, 1e-9))
    removed = Range(min(1.0, copies.low + near.low), min(1.0, copies.high + near.high))
    candidates = Range(text * share.low, text * share.high)
    settings, num_splits = _choose(config, rates, size, candidates)
    partitions, verify_bytes = settings["num_partitions"], settings["verify_bytes"]
    tasks = Range(*(max(8.0, math.ceil(x / verify_bytes)) if x else 0.0 for x in candidates))
    keys = documents * rates.bands
    docs_a_split = min(MOST_SPLIT_ROWS, documents / num_splits)
    mapped = min(settings["split_bytes"], size.counted / num_splits)
    num_copies = documents * copies.high
    near_docs = documents * share.high

    gather_copy = rates.candidate_share * rates.text_bytes * _GATHER_SECONDS_A_BYTE
    gather_read = max(rates.seconds["gather"] - gather_copy, rates.seconds["gather"] / 4) * scale
    compared = rates.candidate_share * rates.text_bytes
    verify_rate = rates.seconds["verify"] / compared if compared > 1 << 20 else _VERIFY_SECONDS_A_BYTE
    factor = {stage: slowdown(rates, stage) for stage in STAGES}
    factor["connect"] = max(factor["connect"], _CONNECT_SLOWDOWN)
    seconds = {
        stage: Range(rates.seconds[stage] * scale, rates.seconds[stage] * scale * factor[stage])
        for stage in STAGES
    }
    seconds["gather"] = Range(*(gather_read + x * _GATHER_SECONDS_A_BYTE for x in candidates)).times(
        1, factor["gather"]
    )
    seconds["verify"] = candidates.times(verify_rate, verify_rate * factor["verify"])
    for stage in ("sign", "gather", "apply"):
        seconds[stage] = seconds[stage].plus(Range(1, SLOWDOWN).times(size.fetch_seconds))
    pairs = (
        a_whole(rates.left("candidates"), rates.candidate_share, 16 * rates.bands * rates.documents) * scale
    )
    gone = rates.exact_share + rates.near_share
    verdicts = a_whole(rates.left("verdicts"), gone, 32 * rates.documents) * scale
    stages = plan_stages(
        size,
        seconds,
        tasks={
            "sign": exactly(size.signed(num_splits)),
            **dict.fromkeys(("gather", "apply"), exactly(num_splits)),
            "match": exactly(partitions),
            "connect": exactly(1),
            "verify": tasks,
        },
        reads={
            "match": exactly(2 * partitions * num_splits),
            "verify": tasks.times(num_splits),
            "apply": tasks.times(num_splits),
        },
        memory={
            "sign": _BASE_BYTES + docs_a_split * rates.bands * _SIGN_KEY_BYTES + mapped,
            "match": _BASE_BYTES + keys / partitions * _MATCH_KEY_BYTES,
            "connect": _BASE_BYTES
            + documents * (9 if documents < 1 << 32 else 17)
            + near_docs * _CANDIDATE_BYTES
            + num_copies * _COPY_BYTES,
            "gather": _BASE_BYTES + mapped + _GATHER_TEXT_FACTOR * text / num_splits * share.high,
            "verify": _BASE_BYTES
            + _VERIFY_TEXT_FACTOR * max(candidates.high / max(tasks.high, 1), rates.largest_component_bytes),
            "apply": _BASE_BYTES + mapped + 3 * rates.row_group_bytes,
        },
        disk={
            "sign": exactly(scale * (rates.left("signed") + rates.left("copied"))),
            "match": share.times(pairs),
            "connect": share.times(8 * documents),
            "gather": candidates,
            "verify": removed.times(verdicts),
        },
    )
    left = rates.output_bytes * scale / max(1 - rates.exact_share - rates.near_share, 1e-9)
    alone = {
        "connect": "; it is one task: give it a machine with that much, or remove duplicates from parts of "
        "the corpus (one crawl each)"
    }
    return Plan(
        command="near",
        input_bytes=size.size,
        text_bytes=text,
        documents=documents,
        alike=share,
        num_workers=size.num_workers,
        worker_memory_bytes=worker_memory_bytes,
        settings=settings,
        num_splits=num_splits,
        stages=stages,
        hours=total(stage.hours for stage in stages),
        core_hours=total(stage.core_hours for stage in stages),
        disk_bytes=total(stage.disk_bytes for stage in stages),
        output_bytes=Range(left * (1 - removed.high), left * (1 - removed.low)),
        warnings=warn_of_lines(rates, config.max_bad_fraction)
        + warnings_of(stages, size, share, alone=alone),
        rates=rates,
    )


def _choose(
    config: NearDedupConfig, rates: NearRates, size: Size, candidates: Range
) -> tuple[dict[str, int], int]:
    """Choose what the configuration leaves open, so that tasks fit into memory and files are few.

    Returns:
        `split_bytes`, `num_partitions` and `verify_bytes`; the number of splits.
    """
    given = config.model_fields_set
    room, num_workers = size.worker_memory - _BASE_BYTES, size.num_workers
    partitions = config.num_partitions
    if not partitions:
        partitions = LEAST_PARTITIONS
        key_bytes = size.documents * rates.bands * _MATCH_KEY_BYTES
        while partitions < _MOST_PARTITIONS and (partitions < num_workers or key_bytes / partitions > room):
            partitions *= 2
    text_ratio = size.text / size.counted
    docs_ratio = size.documents / size.counted
    share = candidates.high / max(size.text, 1)
    split = config.split_bytes
    if "split_bytes" not in given:
        a_byte = 1 + max(docs_ratio * rates.bands * _SIGN_KEY_BYTES, _GATHER_TEXT_FACTOR * text_ratio * share)
        most = int(min(room / a_byte, MOST_SPLIT_ROWS / max(docs_ratio, 1e-12)))
        wanted = int(size.counted / (8 * num_workers))
        if partitions * size.counted / max(split, 1) > MANY_READS:
            wanted = most
        split = max(1 << 20, min(most, max(split, wanted)) >> 20 << 20)
    num_splits = size.splits(split, docs_ratio)
    verify = config.verify_bytes
    if "verify_bytes" not in given:
        most = int(room / _VERIFY_TEXT_FACTOR)
        wanted = int(candidates.high / (4 * num_workers))
        if candidates.high / verify * num_splits > MANY_READS:
            wanted = most
        verify = max(1 << 20, min(most, max(verify, wanted)) >> 20 << 20)
    settings = {"split_bytes": split, "num_partitions": partitions, "verify_bytes": verify}
    return settings, num_splits
