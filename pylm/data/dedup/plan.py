"""What a removal of near-duplicates will take, before it is run: time, memory, disk, splits and partitions.

A plan is arithmetic on rates that were measured on a sample (`measure`). It is a range where the sample
cannot say more: of duplicates, a sample shows those whose other copies are in it too.
"""

import math
from collections.abc import Iterable, Sequence

from pylm.data.dedup.corpus import MOST_SPLIT_ROWS
from pylm.data.dedup.measure import SAMPLE_BYTES, STAGES, Rates, measure_near
from pylm.data.dedup.near import NearDedupConfig
from pylm.data.dedup.plan_report import GB, Plan, Range, StagePlan, count_range
from pylm.data.dedup.run import LEAST_PARTITIONS
from pylm.data.executors import count_cores
from pylm.errors import InputError

_MOST_PARTITIONS = 1 << 16
_MANY_READS = 1e8
_SLOWDOWN = 1.5
"""Of cores that all work, and wait for a disk, against processor time of one; more where more was seen."""
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


def plan_near(
    inputs: Sequence[str],
    config: NearDedupConfig | None = None,
    *,
    num_workers: int = 0,
    worker_memory_bytes: int = 4 << 30,
    input_bytes: int | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    folder: str | None = None,
) -> Plan:
    """Say what `dedup_near` will take over an input, from a sample of it.

    Args:
        inputs: files, folders or globs, as `dedup_near` takes them.
        config: the recipe; what it sets of splits, partitions and `verify_bytes` stays.
        num_workers: processes at one time, on all machines; 0 takes this machine's cores.
        worker_memory_bytes: that each may take.
        input_bytes: plan for so much of the same kind, on disk; None for the input's own size.
        sample_bytes: of the sample, on disk.
        folder: where temporary files of the sample go; None for `TMPDIR`.

    Raises:
        InputError: an input cannot be used, or a number is out of range.
    """
    rates = measure_near(inputs, config, sample_bytes=sample_bytes, folder=folder)
    return predict_near(
        rates,
        config,
        num_workers=num_workers,
        worker_memory_bytes=worker_memory_bytes,
        input_bytes=input_bytes,
    )


def predict_near(
    rates: Rates,
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
        file_bytes: mean size of the input's files, which no split crosses; None for that of the sample's.
        candidate_share: share of the texts' bytes that resemble others, where it is known; None for a range.
        copy_share: share of the documents that are exact copies of others, where it is known.
        read_seconds: to open a file and read a part of it; None for what was measured on the sample's disk.
            About 0.02 of an object store.

    Raises:
        InputError: a number is out of range.
    """
    config = config or NearDedupConfig()
    num_workers = num_workers or count_cores()
    _check(num_workers, worker_memory_bytes, candidate_share=candidate_share, copy_share=copy_share)
    size = rates.corpus_bytes if input_bytes is None else input_bytes
    scale = size / max(rates.input_bytes, 1)
    documents, text = rates.documents * scale, rates.text_bytes * scale
    share = _share(rates.candidate_share, rates.documents, scale, candidate_share)
    copies = _share(rates.exact_share, rates.documents, scale, copy_share)
    near = share.times(rates.near_share / max(rates.candidate_share, 1e-9))
    removed = Range(min(1.0, copies.low + near.low), min(1.0, copies.high + near.high))
    candidates = Range(text * share.low, text * share.high)
    files = max(
        1.0, size / file_bytes if file_bytes else rates.corpus_files * size / max(rates.corpus_bytes, 1)
    )
    chosen = _choose(config, rates, size, files, documents, candidates, num_workers, worker_memory_bytes)
    split_bytes, num_splits, partitions, verify_bytes = chosen
    tasks = Range(*(max(8.0, math.ceil(x / verify_bytes)) if x else 0.0 for x in candidates))
    read_s = rates.read_seconds if read_seconds is None else read_seconds
    keys = documents * rates.bands
    docs_a_split = min(MOST_SPLIT_ROWS, documents / num_splits)
    mapped = min(split_bytes, size / num_splits)
    num_copies = documents * copies.high
    near_docs = documents * share.high

    fetch = size / 1e6 / rates.fetch_mb_s if rates.fetch_mb_s else 0.0
    gather_copy = rates.candidate_share * rates.text_bytes * _GATHER_SECONDS_A_BYTE
    gather_read = max(rates.seconds["gather"] - gather_copy, rates.seconds["gather"] / 4) * scale
    verify_rate = rates.seconds["verify"] / max(rates.candidate_share * rates.text_bytes, 1)
    factor = {
        stage: max(_SLOWDOWN, rates.clock_seconds[stage] / max(rates.seconds[stage], 1e-9))
        for stage in STAGES
    }
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
        seconds[stage] = seconds[stage].plus(Range(fetch, fetch * _SLOWDOWN))
    reads = {
        "match": Range(2.0, 2.0).times(partitions * num_splits),
        "verify": tasks.times(num_splits),
        "apply": tasks.times(num_splits),
    }
    number = {
        "match": Range(partitions, partitions),
        "connect": Range(1, 1),
        "verify": tasks,
        **{x: Range(num_splits, num_splits) for x in ("sign", "gather", "apply")},
    }
    pairs = rates.work_bytes["candidates"] / max(rates.candidate_share, 1e-9) * scale
    verdicts = rates.work_bytes["verdicts"] / max(rates.exact_share + rates.near_share, 1e-9) * scale
    once = scale * (rates.work_bytes["signed"] + rates.work_bytes["jsonl"])
    disk = {
        "sign": Range(once, once),
        "match": share.times(pairs),
        "connect": Range(8.0, 8.0).times(documents * share.low, documents * share.high),
        "gather": candidates,
        "verify": removed.times(verdicts),
    }
    memory = {
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
    }
    stages = []
    for name, core in seconds.items():
        opened = reads.get(name, Range(0, 0))
        core = core.plus(opened.times(read_s))
        count = number[name]
        clock = Range(*(x * _waves(int(n), num_workers) for x, n in zip(core, count, strict=True)))
        stages.append(
            StagePlan(
                name,
                count,
                core.times(1 / 3600),
                clock.times(1 / 3600),
                memory[name],
                disk.get(name, Range(0, 0)),
                opened,
            )
        )
    left = rates.output_bytes * scale
    kept = 1 - rates.exact_share - rates.near_share
    return Plan(
        input_bytes=size,
        text_bytes=text,
        documents=documents,
        candidates=share,
        num_workers=num_workers,
        worker_memory_bytes=worker_memory_bytes,
        split_bytes=split_bytes,
        num_partitions=partitions,
        verify_bytes=verify_bytes,
        num_splits=num_splits,
        stages=tuple(stages),
        hours=_sum(stage.hours for stage in stages),
        core_hours=_sum(stage.core_hours for stage in stages),
        disk_bytes=_sum(stage.disk_bytes for stage in stages),
        output_bytes=Range(left * (1 - removed.high) / max(kept, 1e-9), left),
        warnings=tuple(_warnings(stages, worker_memory_bytes, share, read_s)),
        rates=rates,
    )


def _check(num_workers: int, worker_memory_bytes: int, **shares: float | None) -> None:
    if num_workers < 1:
        raise InputError(f"num_workers must be at least 0, got {num_workers}; 0 takes this machine's cores")
    if worker_memory_bytes < 2 * _BASE_BYTES:
        raise InputError(
            f"a worker needs at least {2 * _BASE_BYTES / 1e9:.2f} GB of memory, got "
            f"{worker_memory_bytes / 1e9:g} GB; raise worker_memory_bytes, or --worker-memory-gb"
        )
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name} must be between 0 and 1, got {share:g}; 0.2 is 20 %")


def _share(seen: float, num_docs: int, scale: float, known: float | None) -> Range:
    """Give a share of the whole corpus, from that in the sample.

    A share f of a corpus shows of a cluster of c documents one that has another with it with probability
    1 - (1 - f)^(c - 1), which is between f and 1. So the corpus' share is between the sample's and the
    sample's / f. Where it shows nothing, up to three documents in it may have been missed (95 %).
    """
    if known is not None:
        return Range(known, known)
    if scale < 1.01:
        return Range(seen, seen)
    return Range(seen, min(1.0, max(seen, 3 / max(num_docs, 1)) * scale))


def _choose(
    config: NearDedupConfig,
    rates: Rates,
    size: int,
    files: float,
    documents: float,
    candidates: Range,
    num_workers: int,
    memory: int,
) -> tuple[int, int, int, int]:
    """Choose what the configuration leaves open, so that tasks fit into memory and files are few.

    Returns:
        `split_bytes`, the number of splits, `num_partitions`, `verify_bytes`.
    """
    given = config.model_fields_set
    room = memory - _BASE_BYTES
    partitions = config.num_partitions
    if not partitions:
        partitions = LEAST_PARTITIONS
        key_bytes = documents * rates.bands * _MATCH_KEY_BYTES
        while partitions < _MOST_PARTITIONS and (partitions < num_workers or key_bytes / partitions > room):
            partitions *= 2
    text_ratio = rates.text_bytes / max(rates.input_bytes, 1)
    docs_ratio = rates.documents / max(rates.input_bytes, 1)
    share = candidates.high / max(text_ratio * size, 1)
    split = config.split_bytes
    if "split_bytes" not in given:
        a_byte = 1 + max(docs_ratio * rates.bands * _SIGN_KEY_BYTES, _GATHER_TEXT_FACTOR * text_ratio * share)
        most = int(min(room / a_byte, MOST_SPLIT_ROWS / max(docs_ratio, 1e-12)))
        wanted = size // (8 * num_workers)
        if partitions * size / max(split, 1) > _MANY_READS:
            wanted = most
        split = max(1 << 20, min(most, max(split, wanted)) >> 20 << 20)
    a_file = size / files
    by_rows = math.ceil(docs_ratio * a_file / MOST_SPLIT_ROWS)
    num_splits = max(1, round(files * max(1, math.ceil(a_file / split), by_rows)))
    verify = config.verify_bytes
    if "verify_bytes" not in given:
        most = int(room / _VERIFY_TEXT_FACTOR)
        wanted = int(candidates.high / (4 * num_workers))
        if candidates.high / verify * num_splits > _MANY_READS:
            wanted = most
        verify = max(1 << 20, min(most, max(verify, wanted)) >> 20 << 20)
    return split, num_splits, partitions, verify


def _waves(tasks: int, num_workers: int) -> float:
    """Give the share of a stage's work that the clock sees."""
    return math.ceil(tasks / num_workers) / tasks if tasks else 0.0


def _sum(ranges: Iterable[Range]) -> Range:
    total = Range(0.0, 0.0)
    for one in ranges:
        total = total.plus(one)
    return total


def _warnings(stages: Sequence[StagePlan], memory: int, share: Range, read_s: float) -> list[str]:
    found = []
    for stage in stages:
        if stage.task_memory_bytes > memory:
            needs = f"{stage.name} needs {stage.task_memory_bytes / GB:,.1f} GB in one task"
            if stage.name == "connect":
                found.append(
                    f"{needs}; it is one task: give it a machine with that much, or remove duplicates from "
                    "parts of the corpus (one crawl each)"
                )
            else:
                found.append(f"{needs}, workers have {memory / GB:,.1f} GB; run fewer with more memory each")
        if stage.small_reads.high > _MANY_READS:
            found.append(
                f"{stage.name} opens {count_range(stage.small_reads)} parts of files, reckoned at "
                f"{1000 * read_s:.3g} ms each; larger files of input and workers with more memory help"
            )
    if share.high > 2 * share.low:
        found.append(
            "a sample shows of copies only those that lie in it together, hence the ranges; a larger one "
            "narrows them"
        )
    return found
