"""Plans of `substring` against runs: counts exactly or in the range that was said, time by a factor of 4."""

import gzip
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.data.dedup import SubstringDedupConfig, dedup_substrings
from pylm.data.dedup.plan import (
    Plan,
    StagePlan,
    SubstringRates,
    measure_substrings,
    plan_substrings,
    predict_substrings,
)
from pylm.data.dedup.plan.substrings import STAGES
from pylm.errors import InputError

SMALL = SubstringDedupConfig(min_bytes=40, split_bytes=1 << 20, partition_bytes=1 << 20)
TIME_FACTOR = 4


def make_texts(num_docs: int, *, seed: int = 0) -> list[str]:
    """A tenth are exact copies, a fifth hold a stretch of another text, all have the same head and foot."""
    rng = random.Random(seed)
    texts: list[str] = []
    for number in range(num_docs):
        words = " ".join(f"w{rng.randrange(10**5)}" for _ in range(rng.randrange(50, 300)))
        if texts and rng.random() < 0.1:
            texts.append(rng.choice(texts))
            continue
        if texts and rng.random() < 0.2:
            other = rng.choice(texts)
            start = rng.randrange(len(other) // 2)
            words += f" {number} {other[start : start + 150]}"
        texts.append(
            f"Skip to the content of this page, number {number}. {words} (all rights reserved {number})"
        )
    return texts


def write_corpus(folder: Path, texts: Sequence[str], *, num_files: int, row_group_size: int = 50) -> Path:
    folder.mkdir()
    for number in range(num_files):
        table = pa.table({"text": list(texts[number::num_files])})
        path = folder / f"{number:02d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=row_group_size)
    return folder


def run(
    corpus: Path, out: Path, config: SubstringDedupConfig
) -> tuple[dict[str, Any], float, dict[str, int], dict[str, int]]:
    """Run and keep all files; give the report, processor time, and sizes and numbers of files by folder."""

    def execute(work: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]:
        yield from map(work, items)

    start = time.process_time()
    report = dedup_substrings([str(corpus)], str(out), config, execute=execute, keep_work=True)
    seconds = time.process_time() - start
    sizes: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for path in out.rglob("*"):
        if path.is_file():
            name = path.parent.name
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
            numbers[name] = numbers.get(name, 0) + 1
    return report, seconds, sizes, numbers


def stages_of(plan: Plan) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan.stages}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("plan") / "corpus", make_texts(4000), num_files=8)


@pytest.fixture(scope="module")
def rates(corpus: Path) -> SubstringRates:
    return measure_substrings([str(corpus)], SMALL)


def test_a_sample_of_everything_is_the_run(corpus: Path, rates: SubstringRates, tmp_path: Path) -> None:
    report, seconds, sizes, numbers = run(corpus, tmp_path / "out", SMALL)
    assert (rates.documents, rates.text_bytes) == (4000, report["bytes"])
    assert rates.repeated_share == report["removed_bytes"] / report["bytes"] > 0.1
    assert tuple(rates.seconds) == STAGES
    plan = predict_substrings(rates, SMALL, num_workers=1)
    assert plan.num_splits == len(report["files"])
    stages = stages_of(plan)
    for name, folder in (
        ("copies", "copies"),
        ("keys", "keys-"),
        ("repeats", "repeats-"),
        ("contexts", "contexts"),
        ("compare", "compared"),
        ("spans", "spans"),
        ("apply", "applied"),
    ):
        made = sum(count for x, count in numbers.items() if x.startswith(folder))
        low, high = stages[name].tasks
        assert 0.7 * low - 1 <= made <= 1.3 * high + 1, name
    # Splits of 1/16 of the sample and of a file share different parts of their keys.
    for name in ("keys-0", "contexts", "spans"):
        planned = stages[name.partition("-")[0]].disk_bytes
        assert 0.6 * planned.low <= sizes[name] <= 1.6 * planned.high, name
    kept = sizes["documents"] + sizes["removed"]
    assert 0.7 * plan.output_bytes.low <= kept <= 1.3 * plan.output_bytes.high
    assert seconds / TIME_FACTOR < 3600 * plan.core_hours.high
    assert seconds * TIME_FACTOR > 3600 * plan.core_hours.low


def test_what_a_sample_says_of_the_whole(corpus: Path, tmp_path: Path) -> None:
    report, _, sizes, _ = run(corpus, tmp_path / "out", SMALL)
    sample = measure_substrings([str(corpus)], SMALL, sample_bytes=700_000)
    assert 0.1 < sample.fraction < 0.7
    plan = predict_substrings(sample, SMALL, num_workers=1)
    assert plan.documents == pytest.approx(4000, rel=0.1)
    share = report["removed_bytes"] / report["bytes"]
    assert plan.alike.low < share < plan.alike.high
    stages = stages_of(plan)
    assert stages["keys"].disk_bytes.low == pytest.approx(sizes["keys-0"], rel=0.3)
    assert 0.8 * stages["contexts"].disk_bytes.low < sizes["contexts"] < stages["contexts"].disk_bytes.high
    assert any("a sample shows of copies only" in warning for warning in plan.warnings)
    known = predict_substrings(sample, SMALL, num_workers=1, repeated_share=share)
    assert known.alike == (share, share)
    assert not any("a sample shows" in warning for warning in known.warnings)
    assert stages["contexts"].disk_bytes.low <= stages_of(known)["contexts"].disk_bytes.low


def test_keys_that_many_share_are_divided(corpus: Path, rates: SubstringRates, tmp_path: Path) -> None:
    """The head that all texts begin with has a context in most."""
    assert rates.most_contexts > 2500
    for partition_bytes in (1 << 18, 1 << 26):
        config = SMALL.model_copy(update={"partition_bytes": partition_bytes})
        _, _, _, numbers = run(corpus, tmp_path / f"{partition_bytes}", config)
        levels = sum(name.startswith("keys-") for name in numbers)
        stage = stages_of(predict_substrings(rates, config, num_workers=1))["keys"]
        assert stage.tasks.low <= levels * numbers["keys-0"] <= stage.tasks.high
        assert stage.tasks.high == numbers["keys-0"] or levels > 1
    # A hundred times the corpus may have a hundred times the contexts.
    stage = stages_of(predict_substrings(rates, config, input_bytes=100 * rates.corpus_bytes))["keys"]
    assert stage.tasks.high > stage.tasks.low


def test_one_split_is_done_in_memory(corpus: Path, rates: SubstringRates, tmp_path: Path) -> None:
    table = pa.concat_tables([pq.read_table(path) for path in sorted(corpus.iterdir())])
    pq.write_table(table, tmp_path / "all.parquet", compression="zstd")
    plan = plan_substrings([str(tmp_path / "all.parquet")], SubstringDedupConfig(min_bytes=40))
    assert plan.num_splits == 1
    stages = stages_of(plan)
    assert set(stages) == set(STAGES) - {"repeats", "contexts", "compare"}
    assert stages["keys"].tasks == (1, 1)
    config = plan.config(SubstringDedupConfig(min_bytes=40))
    _, _, _, numbers = run(tmp_path / "all.parquet", tmp_path / "out", config)
    assert "contexts" not in numbers
    more = predict_substrings(plan.rates, config, input_bytes=10**12, file_bytes=1 << 30)  # type: ignore[arg-type]
    assert stages_of(more)["contexts"].disk_bytes.low > 0, "the sample was cut in two"
    shared = plan.rates.num_contexts / plan.rates.num_keys  # type: ignore[attr-defined]
    assert 0.5 < shared / (rates.num_contexts / rates.num_keys) < 2


def test_work_grows_with_the_input(rates: SubstringRates) -> None:
    def plan(size: int, num_workers: int) -> Plan:
        return predict_substrings(
            rates, SMALL, num_workers=num_workers, input_bytes=size, repeated_share=0.3, read_seconds=0.0
        )

    one, ten, many = plan(10**10, 4), plan(10**11, 4), plan(10**11, 400)
    for small, large in zip(one.stages, ten.stages, strict=True):
        assert large.disk_bytes.high == pytest.approx(10 * small.disk_bytes.high)
        assert large.core_hours.low >= 9.9 * small.core_hours.low
    assert many.core_hours == ten.core_hours
    clock = stages_of(many)
    for stage in ten.stages:
        if stage.name != "copies":
            assert clock[stage.name].hours.low == pytest.approx(stage.hours.low / 100, rel=0.01)


def test_ranges_are_in_order(rates: SubstringRates) -> None:
    sizes, numbers, shares = (10**6, 10**9, 10**12, 10**14), (1, 64, 4096), (None, 0.0, 0.3, 1.0)
    for size, num_workers, memory, share in itertools.product(sizes, numbers, (1, 4, 64), shares):
        plan = predict_substrings(
            rates,
            num_workers=num_workers,
            worker_memory_bytes=memory << 30,
            input_bytes=size,
            file_bytes=1 << 30,
            repeated_share=share,
        )
        ranges = [plan.hours, plan.core_hours, plan.disk_bytes, plan.output_bytes, plan.alike]
        for stage in plan.stages:
            ranges += [stage.tasks, stage.hours, stage.core_hours, stage.disk_bytes, stage.small_reads]
            assert stage.hours.low <= stage.core_hours.low
        assert all(0 <= low <= high for low, high in ranges), (size, num_workers, memory, share)


@pytest.mark.parametrize("size", [10**9, 10**12, 10**14])
@pytest.mark.parametrize("memory", [1 << 30, 16 << 30])
def test_tasks_fit_into_memory(rates: SubstringRates, size: int, memory: int) -> None:
    plan = predict_substrings(
        rates,
        SubstringDedupConfig(min_bytes=40),
        num_workers=64,
        worker_memory_bytes=memory,
        input_bytes=size,
        file_bytes=1 << 30,
    )
    for stage in plan.stages:
        assert stage.task_memory_bytes <= memory, stage.name
    assert not any("in one task" in warning for warning in plan.warnings)


def test_the_plan_is_followed(corpus: Path, rates: SubstringRates, tmp_path: Path) -> None:
    config = SubstringDedupConfig(min_bytes=40)
    plan = predict_substrings(rates, config, num_workers=2)
    planned, *_ = run(corpus, tmp_path / "planned", plan.config(config))
    small, *_ = run(corpus, tmp_path / "small", SMALL)
    assert planned["longest"] == small["longest"]
    assert planned["removed_bytes"] == small["removed_bytes"]
    assert len(planned["files"]) == plan.num_splits
    given = SubstringDedupConfig(split_bytes=1 << 28, num_partitions=100, partition_bytes=12345678)
    stays = predict_substrings(rates, given, num_workers=64, input_bytes=10**13, file_bytes=1 << 30)
    assert stays.settings == {name: getattr(given, name) for name in stays.settings}


def test_what_is_shown(rates: SubstringRates) -> None:
    plan = predict_substrings(rates, num_workers=64, input_bytes=10**12, file_bytes=1 << 30)
    table = str(plan)
    for text in ("1,000.0 GB on disk", "64 workers of 4.3 GB", *STAGES, "of its text repeats"):
        assert text in table
    names = {"split-mb": "split_bytes", "partition-mb": "partition_bytes"}
    sizes = {name: f"--{name} {plan.settings[field] >> 20}" for name, field in names.items()}
    options = f"{sizes['split-mb']} --partitions {plan.settings['num_partitions']} {sizes['partition-mb']}"
    assert f"pylm dedup substring ... {options}\n" in table
    saved = json.loads(json.dumps(plan.to_dict()))
    again = SubstringRates(**saved["rates"])
    assert predict_substrings(again, num_workers=64, input_bytes=10**12, file_bytes=1 << 30) == plan


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_one_file(suffix: str, tmp_path: Path) -> None:
    texts = make_texts(600)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, compression="lz4")
    else:
        packed = {".gz": gzip.compress, ".zst": lambda x: pa.compress(x, "zstd", asbytes=True)}
        path.write_bytes(packed.get(path.suffix, bytes)(rows))
    rates = measure_substrings([str(path)], SMALL)
    assert rates.documents == 600
    assert rates.corpus_files == 1
    assert rates.input_bytes == pytest.approx(path.stat().st_size, rel=0.2)
    assert 500 < rates.num_contexts < rates.num_keys
    assert rates.seconds["compare"] > 0


def test_odd_corpora(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [" ".join(f"w{rng.randrange(10**6)}" for _ in range(40)) for _ in range(300)]
    for name, content, share in (
        ("different", texts, 0.0),
        ("equal", texts[:1] * 300, 299 / 300),
        ("short", ["a"] * 300, 299 / 300),
        ("one", texts[:1], 0.0),
        ("empty", ["", *texts[:1]], 0.0),
    ):
        corpus = write_corpus(tmp_path / name, content, num_files=1)
        rates = measure_substrings([str(corpus)], SMALL)
        if name != "short":
            assert rates.repeated_share == pytest.approx(share)
        plan = predict_substrings(rates, SMALL, num_workers=1)
        assert plan.alike == (rates.repeated_share,) * 2
        assert "stage" in str(plan)
        assert predict_substrings(rates, input_bytes=10**12, file_bytes=1 << 30).hours.high > 0
        more = predict_substrings(rates, SMALL, num_workers=1, input_bytes=10 * rates.corpus_bytes)
        assert more.alike.low <= more.alike.high <= 1


def test_bad_calls(corpus: Path, rates: SubstringRates) -> None:
    with pytest.raises(InputError, match=r"^a plan has no --against"):
        plan_substrings([str(corpus)], SMALL.model_copy(update={"against": ("x",)}))
    for options, message in (
        ({"num_workers": -1}, r"^num_workers must be at least 0, got -1"),
        ({"worker_memory_bytes": 4}, r"^a worker needs at least .* GB of memory, got 4e-09 GB"),
        ({"repeated_share": 20.0}, r"^repeated_share must be between 0 and 1, got 20; 0\.2 is 20 %$"),
    ):
        with pytest.raises(InputError, match=message):
            predict_substrings(rates, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^sample_bytes must be at least 1, got 0"):
        measure_substrings([str(corpus)], sample_bytes=0)


def test_progress(corpus: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    measure_substrings([str(corpus)], SMALL, progress=lambda *step: seen.append(step))
    assert [name for name, done, total in seen if done == total][-1] == "apply"


def test_large_row_groups_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "in", make_texts(2000), num_files=1, row_group_size=1000)
    config = SMALL.model_copy(update={"split_bytes": 1 << 16})
    rates = measure_substrings([str(corpus)], config)
    assert rates.group_text_bytes == pytest.approx(rates.text_bytes / 2, rel=0.2)
    plans = {}
    for is_cut in (False, True):
        if is_cut:
            monkeypatch.setattr("pylm.data.dedup.corpus._LEAST_CUT_BYTES", 1)
        plans[is_cut] = predict_substrings(rates, config)
        report, _, _, _ = run(corpus, tmp_path / str(is_cut), config)
        assert plans[is_cut].num_splits == pytest.approx(len(report["files"]), rel=0.1)
    assert plans[True].num_splits > 2 * plans[False].num_splits
    signing = {name: plan.stages[0].tasks.high for name, plan in plans.items()}
    assert signing == {True: 2, False: plans[False].num_splits}
    memory = [{x.name: x.task_memory_bytes for x in plans[is_cut].stages} for is_cut in (True, False)]
    assert memory[0]["sign"] <= memory[1]["sign"]
    assert plans[True].disk_bytes.low > plans[False].disk_bytes.low
