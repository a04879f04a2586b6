"""Plans against runs: counts exactly or within the range that was said, time within a factor of 4."""

import dataclasses
import gzip
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.data import storage
from pylm.data.dedup import NearDedupConfig, dedup_near
from pylm.data.dedup.plan import NearRates, measure_near, plan_near, predict_near
from pylm.data.dedup.plan.near import STAGES
from pylm.errors import InputError

SMALL = NearDedupConfig(split_bytes=1 << 16, num_partitions=8, verify_bytes=1 << 20)
TIME_FACTOR = 4


def make_texts(num_docs: int, *, seed: int = 0) -> list[str]:
    """A tenth are exact copies, a tenth near copies of others anywhere before."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(num_docs):
        draw = rng.random()
        if texts and draw < 0.1:
            texts.append(rng.choice(texts))
        elif texts and draw < 0.2:
            texts.append(rng.choice(texts) + f" and {rng.randrange(10**6)}")
        else:
            texts.append(" ".join(f"w{rng.randrange(10**5)}" for _ in range(rng.randrange(50, 300))))
    return texts


def write_corpus(folder: Path, texts: Sequence[str], *, num_files: int) -> Path:
    folder.mkdir()
    for number in range(num_files):
        part = list(texts[number::num_files])
        table = pa.table({"id": list(range(len(part))), "text": part})
        pq.write_table(table, folder / f"{number:02d}.parquet", compression="zstd", row_group_size=100)
    return folder


def run(corpus: Path, out: Path, config: NearDedupConfig) -> tuple[dict[str, Any], float, dict[str, int]]:
    """Run and keep all files; give the report, processor time, and sizes of the stages' folders."""

    def execute(work: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]:
        yield from map(work, items)

    start = time.process_time()
    report = dedup_near([str(corpus)], str(out), config, execute=execute, keep_work=True)
    seconds = time.process_time() - start
    sizes: dict[str, int] = {}
    for path in out.rglob("*"):
        if path.is_file():
            sizes[path.parent.name] = sizes.get(path.parent.name, 0) + path.stat().st_size
    return report, seconds, sizes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("plan") / "corpus", make_texts(4000), num_files=8)


@pytest.fixture(scope="module")
def rates(corpus: Path) -> NearRates:
    return measure_near([str(corpus)], SMALL)


def test_a_sample_of_everything_is_the_run(corpus: Path, rates: NearRates, tmp_path: Path) -> None:
    report, seconds, sizes = run(corpus, tmp_path / "out", SMALL)
    assert (
        (rates.documents, rates.text_bytes)
        == (report["documents"], report["bytes"])
        == (4000, report["bytes"])
    )
    assert rates.exact_share == report["removed"]["exact"]["documents"] / 4000
    assert rates.near_share == report["removed"]["near"]["documents"] / 4000
    assert rates.candidate_share == report["compared"]["bytes"] / report["bytes"]
    assert rates.corpus_bytes == sum(path.stat().st_size for path in corpus.iterdir())
    assert rates.input_bytes == pytest.approx(rates.corpus_bytes, rel=0.05)
    assert set(rates.seconds) == set(STAGES)
    plan = predict_near(rates, SMALL, num_workers=1)
    assert plan.documents == pytest.approx(4000, rel=0.05)
    assert plan.alike.low == pytest.approx(rates.candidate_share)
    stages = ("signed", "candidates", "texts", "verdicts")
    disk = (
        sum(sizes[name] for name in stages)
        + (tmp_path / "out").rglob("members.blocks").__next__().stat().st_size
    )
    assert 0.8 * plan.disk_bytes.low <= disk <= 1.2 * plan.disk_bytes.high
    kept = sizes["documents"] + sizes["removed"]
    assert 0.8 * plan.output_bytes.low <= kept <= 1.2 * plan.output_bytes.high
    assert seconds / TIME_FACTOR < 3600 * plan.core_hours.high
    assert seconds * TIME_FACTOR > 3600 * plan.core_hours.low


def test_what_a_sample_says_of_the_whole(corpus: Path, tmp_path: Path) -> None:
    report, _, sizes = run(corpus, tmp_path / "out", SMALL)
    sample = measure_near([str(corpus)], SMALL, sample_bytes=500_000)
    assert 0.1 < sample.fraction < 0.7
    plan = predict_near(sample, SMALL, num_workers=1)
    assert plan.documents == pytest.approx(4000, rel=0.1)
    assert plan.text_bytes == pytest.approx(report["bytes"], rel=0.1)
    share = report["compared"]["bytes"] / report["bytes"]
    assert plan.alike.low < share < plan.alike.high
    assert sample.candidate_share < 0.9 * share, "a sample shows fewer copies"
    stage = {stage.name: stage for stage in plan.stages}
    assert 0.8 * sizes["signed"] < stage["sign"].disk_bytes.low == stage["sign"].disk_bytes.high
    assert stage["sign"].disk_bytes.high < 1.25 * sizes["signed"]
    assert stage["gather"].disk_bytes.low < sizes["texts"] < 1.1 * stage["gather"].disk_bytes.high
    left = sizes["documents"] + sizes["removed"]
    assert 0.9 * plan.output_bytes.low < left < 1.1 * plan.output_bytes.high
    assert any("a sample shows of copies only" in warning for warning in plan.warnings)
    known = predict_near(sample, SMALL, num_workers=1, candidate_share=share, copy_share=0.1)
    assert known.alike == (share, share)
    assert not any("a sample shows" in warning for warning in known.warnings)


def test_work_grows_with_the_input(rates: NearRates) -> None:
    one = predict_near(rates, SMALL, num_workers=4, input_bytes=10**10, candidate_share=0.2, copy_share=0.1)
    ten = predict_near(rates, SMALL, num_workers=4, input_bytes=10**11, candidate_share=0.2, copy_share=0.1)
    for small, large in zip(one.stages, ten.stages, strict=True):
        assert large.disk_bytes.high == pytest.approx(10 * small.disk_bytes.high)
        assert large.core_hours.low >= 9.9 * small.core_hours.low
    assert ten.documents == pytest.approx(10 * one.documents)
    many = predict_near(
        rates, SMALL, num_workers=400, input_bytes=10**11, candidate_share=0.2, copy_share=0.1
    )
    assert many.core_hours == ten.core_hours
    clock = {stage.name: stage.hours.low for stage in many.stages}
    for stage in ten.stages:
        if stage.name in ("sign", "gather", "apply"):
            assert clock[stage.name] == pytest.approx(stage.hours.low / 100, rel=0.01)
    assert clock["connect"] == ten.stages[2].hours.low, "one task, however many workers"
    assert clock["match"] == pytest.approx(ten.stages[1].hours.low / 2), "8 partitions are 8 tasks"


@pytest.mark.parametrize("size", [10**9, 10**12, 10**14])
@pytest.mark.parametrize("memory", [1 << 30, 16 << 30])
def test_tasks_fit_into_memory(rates: NearRates, size: int, memory: int) -> None:
    plan = predict_near(
        rates,
        num_workers=64,
        worker_memory_bytes=memory,
        input_bytes=size,
        file_bytes=1 << 30,
        copy_share=0.1,
    )
    needs = {stage.name: stage.task_memory_bytes for stage in plan.stages}
    for name in ("sign", "gather", "verify", "apply"):
        assert needs[name] <= memory
    assert needs["match"] <= memory or plan.settings["num_partitions"] == 1 << 16
    assert plan.settings["num_partitions"] >= 64
    assert plan.settings["num_partitions"] & (plan.settings["num_partitions"] - 1) == 0
    said = {warning.split()[0] for warning in plan.warnings if " in one task" in warning}
    assert said == {name for name, need in needs.items() if need > memory}
    # Nine bytes a document, seventeen where 32 bits do not number them: more than a table of them has.
    assert needs["connect"] > plan.documents * (9 if plan.documents < 1 << 32 else 17)


def test_what_the_configuration_says_stays(rates: NearRates) -> None:
    config = NearDedupConfig(split_bytes=1 << 28, num_partitions=100, verify_bytes=12345678)
    plan = predict_near(rates, config, num_workers=64, input_bytes=10**13, file_bytes=1 << 30)
    assert (plan.settings["split_bytes"], plan.settings["num_partitions"], plan.settings["verify_bytes"]) == (
        1 << 28,
        100,
        12345678,
    )
    assert plan.num_splits == pytest.approx(4 * 10**13 / (1 << 30), abs=4)


def test_the_plan_is_followed(corpus: Path, rates: NearRates, tmp_path: Path) -> None:
    plan = predict_near(rates, num_workers=2)
    config = plan.config(NearDedupConfig())
    assert (config.split_bytes, config.num_partitions) == (
        plan.settings["split_bytes"],
        plan.settings["num_partitions"],
    )
    planned, _, _ = run(corpus, tmp_path / "planned", config)
    small, _, _ = run(corpus, tmp_path / "small", SMALL)
    assert planned["removed"] == small["removed"]
    assert len(planned["files"]) == plan.num_splits


def test_what_is_shown(rates: NearRates) -> None:
    plan = predict_near(rates, num_workers=64, input_bytes=10**12, file_bytes=1 << 30)
    table = str(plan)
    for text in (
        "1,000.0 GB on disk",
        "64 workers of 4.3 GB",
        *STAGES,
        "by the clock",
        "warning: connect needs",
    ):
        assert text in table
    sizes = f"--split-mb {plan.settings['split_bytes'] >> 20} --partitions {plan.settings['num_partitions']} "
    sizes += f"--verify-mb {plan.settings['verify_bytes'] >> 20}"
    assert f"{plan.num_splits:,} splits; to run it: pylm dedup near ... {sizes}\n" in table
    assert (plan.settings["split_bytes"] | plan.settings["verify_bytes"]) % (1 << 20) == 0, (
        "the options say exactly that"
    )
    saved = json.loads(json.dumps(plan.to_dict()))
    assert saved["hours"] == list(plan.hours)
    assert [stage["name"] for stage in saved["stages"]] == list(STAGES)
    assert (
        predict_near(NearRates(**saved["rates"]), num_workers=64, input_bytes=10**12, file_bytes=1 << 30)
        == plan
    )


def test_json_lines(tmp_path: Path) -> None:
    texts = make_texts(600)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(rows, "zstd", asbytes=True))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        rates = measure_near([str(tmp_path / name)], SMALL)
        assert rates.documents == 600, name
        assert rates.work_bytes["copied"] > 0
        assert rates.row_group_bytes == 0
    plan = plan_near([str(tmp_path / "a.jsonl")], SMALL, num_workers=1, sample_bytes=100_000)
    assert plan.documents == pytest.approx(600, rel=0.2)
    assert 0.1 < plan.rates.fraction < 0.2


def test_errors_name_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("no json\n" * 9)
    with pytest.raises(InputError) as raised:
        plan_near([str(tmp_path / "in")], SMALL)
    assert str(raised.value) == (
        f"a sample of {tmp_path / 'in' / 'a.jsonl'}:1: expected a JSON object, got 'no json\\n' "
        "(none is a document)"
    )
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps({"text": "a", "n": "x"}) + "\n")
    with pytest.raises(
        InputError, match=f"^a sample of {tmp_path / 'in' / 'b.jsonl'}: the column 'n' decides"
    ):
        plan_near([str(tmp_path / "in")], SMALL.model_copy(update={"priority": ("n",)}))


def test_over_a_store(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with storage.publish(f"memory://plan/{name}.parquet") as temporary:
            pq.write_table(pa.table({"text": make_texts(200)}), temporary)
    plan = plan_near(["memory://plan"], SMALL, num_workers=1)
    storage.remove_folder("memory://plan")
    assert plan.documents == pytest.approx(400, rel=0.05)
    assert plan.rates.fetch_mb_s is not None
    assert plan.rates.exact_share > 0.4


def test_bad_numbers(corpus: Path, rates: NearRates, tmp_path: Path) -> None:
    for options, message in (
        ({"num_workers": -1}, r"^num_workers must be at least 0, got -1; 0 takes this machine's cores$"),
        (
            {"worker_memory_bytes": 4},
            r"^a worker needs at least .* GB of memory, got 4e-09 GB; raise worker_memory_bytes",
        ),
        ({"candidate_share": 20.0}, r"^candidate_share must be between 0 and 1, got 20; 0\.2 is 20 %$"),
        ({"copy_share": -1.0}, r"^copy_share must be between 0 and 1, got -1"),
    ):
        with pytest.raises(InputError, match=message):
            predict_near(rates, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^sample_bytes must be at least 1, got 0"):
        measure_near([str(corpus)], sample_bytes=0)
    with pytest.raises(InputError, match="nothing there; give a file"):
        plan_near([str(tmp_path / "nowhere")])


def test_a_sample_without_copies(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [" ".join(f"w{rng.randrange(10**6)}" for _ in range(40)) for _ in range(300)]
    rates = measure_near([str(write_corpus(tmp_path / "corpus", texts, num_files=1))], SMALL)
    assert rates.candidate_share == 0
    plan = predict_near(rates, num_workers=1)
    assert plan.alike == (0, 0)
    more = predict_near(dataclasses.replace(rates, corpus_bytes=10 * rates.corpus_bytes), num_workers=1)
    assert more.alike.low == 0
    assert 0.05 < more.alike.high < 0.15, "three of 300 may have been missed"


def test_a_sample_of_lines_has_each_once(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [{"text": " ".join(f"w{rng.randrange(10**6)}" for _ in range(60))} for _ in range(3000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for sample_bytes in (1 << 28, 400_000):
        rates = measure_near([str(tmp_path / "a.jsonl")], SMALL, sample_bytes=sample_bytes)
        assert rates.exact_share == 0
        assert rates.documents / 3000 == pytest.approx(rates.fraction, rel=0.1)
    plan = predict_near(rates, SMALL, input_bytes=10**12, file_bytes=1 << 30)
    assert plan.disk_bytes.high < 10 * plan.text_bytes


def test_compressed_lines(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(1000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows, 1))
    rates = measure_near([str(tmp_path / "a.jsonl.gz")], SMALL)
    assert (rates.documents, rates.fraction) == (1000, 1)
    plan = predict_near(rates, SMALL)
    report, _, _ = run(tmp_path / "a.jsonl.gz", tmp_path / "out", SMALL)
    assert plan.num_splits == len(report["files"]) == math.ceil(report["bytes"] / (1 << 16))
    config = SMALL.model_copy(update={"split_bytes": int(report["bytes"] / 4.5)})
    plan = predict_near(rates, config)
    report, _, _ = run(tmp_path / "a.jsonl.gz", tmp_path / "parts", config)
    assert plan.num_splits == len(report["files"]) == 5
    assert {stage.name: stage.tasks.high for stage in plan.stages}["sign"] == 1
    for name, content in (("lines/a.jsonl", rows), ("packed/a.jsonl.gz", gzip.compress(rows, 1))):
        with storage.publish(f"memory://plan-{name}") as temporary:
            temporary.write_bytes(content)
        folder = f"memory://plan-{name.partition('/')[0]}"
        of_store = predict_near(measure_near([folder], config), config)
        assert [x.tasks for x in of_store.stages] == [x.tasks for x in plan.stages]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows)[:-2000])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz: cannot be read"):
        measure_near([str(tmp_path / "b.jsonl.gz")], SMALL)


def test_lines_that_are_no_documents(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in make_texts(200)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows[:100], "no json", *rows[100:], "nor this"]))
    plan = plan_near([str(tmp_path / "a.jsonl")], SMALL)
    assert plan.rates.bad_lines == 2
    assert plan.warnings[0] == "2 of 202 lines of the sample are no documents, and are left out"
    strict = SMALL.model_copy(update={"max_bad_fraction": 0.005})
    assert "a run leaves out a share of 0.005" in predict_near(plan.rates, strict).warnings[0]
    wrong = SMALL.model_copy(update={"text_column": "content"})
    with pytest.raises(
        InputError, match=r"a sample of .*a\.jsonl.*in the field 'content'.*none is a document"
    ):
        plan_near([str(tmp_path / "a.jsonl")], wrong)
