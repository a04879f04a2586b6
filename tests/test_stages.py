"""How stages are started: what is listed, what is counted, what is said."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pylm import stages
from pylm.data import pipeline
from pylm.files import read_json
from pylm.report.run_folder import read_run
from pylm.train import clock as clock_module

MINI = str(Path(__file__).parent / "mini.toml")
TEXT = "def add(a, b):\n    '''Add {} to a number, and give the sum of both.'''\n    return a + b + {}\n"


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(60):
        (sources / f"{number}.py").write_text(TEXT.format(number, number * number) * 3, encoding="utf-8")
    return [
        f"out={tmp_path / 'run'}", f"prepare.sources.0.paths=['{sources}']", "prepare.sources.0.filters=[]",
        "prepare.dedup.near=false", "tokenizer.vocab_size=270",
    ]  # fmt: skip


def test_a_call_lists_the_sources_once(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prepare", "tokenizer"):
        stages.run_stages(MINI, overrides, only=name)
    calls = []
    list_files = pipeline.list_files
    monkeypatch.setattr(pipeline, "list_files", lambda source: calls.append(1) or list_files(source))
    stages.run_stages(MINI, overrides, only="tokenize")
    assert len(calls) == 1


def test_files_that_change_between_two_calls_are_noticed(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run_stages(MINI, overrides, only="prepare")
    (tmp_path / "sources" / "more.py").write_text(TEXT.format("x", "x"), encoding="utf-8")
    with pytest.raises(stages.InputError, match="from files that have changed since"):
        stages.run_stages(MINI, overrides, only="tokenizer")
    stages.run_stages(MINI, overrides, only="prepare")
    assert "prepare: starts" in capsys.readouterr().err


def test_prepare_shows_what_each_step_removed(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out overlap too: 60 files share most of their words, 20 none."""
    sources = tmp_path / "sources"
    for number in range(20):
        words = " ".join(f"word_{number}_{place}" for place in range(50))
        (sources / f"apart_{number}.py").write_text(f"{words}\n", encoding="utf-8")
    (sources / "empty.py").touch()
    (sources / "copy.py").write_bytes((sources / "1.py").read_bytes())
    overrides = [*overrides, "prepare.overlap.ngram=3"]
    stages.run_stages(MINI, overrides, only="prepare")
    rows = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().err.splitlines()[1:-1]}
    folder = tmp_path / "run" / "prepare"
    heldout, train = (pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("heldout", "train"))
    assert rows.pop("") == ["removed", "share", "left", "megabytes"]
    assert {name: cells[:-1] for name, cells in rows.items() if name != "filter"} == {
        "read": ["82"],
        "exact duplicates": ["1", "1.2%", "80"],
        "near duplicates": ["0", "0.0%", "80"],
        "held out": [str(heldout), f"{heldout / 80:.1%}", str(80 - heldout)],
        "held-out overlap": [str(80 - heldout - train), f"{1 - train / (80 - heldout):.1%}", str(train)],
    }
    assert rows["filter"] == ["1", "1.2%", "81", "0.03", "empty", "1"]
    assert 0 < train < 80 - heldout


def test_the_time_of_a_stage_is_that_of_all_its_attempts(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    ends: list[type[BaseException] | None] = [KeyboardInterrupt, MemoryError, None, None, KeyboardInterrupt]

    def work(run: stages.Run) -> dict[str, object]:
        now[0] += 100.0
        if (error := ends.pop(0)) is not None:
            raise error
        return {"funnel": {}}

    monkeypatch.setattr(clock_module.time, "monotonic", lambda: now[0])
    monkeypatch.setitem(stages.STAGES, "prepare", dataclasses.replace(stages.STAGES["prepare"], work=work))
    for error, elapsed_s in ((KeyboardInterrupt, 100.0), (MemoryError, 200.0)):
        with pytest.raises(error):
            stages.run_stages(MINI, overrides, only="prepare")
        assert read_run(tmp_path / "run").elapsed_s == elapsed_s  # also in a report on what is not complete
        now[0] += 1e6
    stages.run_stages(MINI, overrides, only="prepare")
    assert read_json(tmp_path / "run" / "prepare" / "stage.json")["elapsed_s"] == 300.0
    assert read_run(tmp_path / "run").elapsed_s == 300.0
    assert "prepare: complete in 300.0 s, in 3 attempts\n" in capsys.readouterr().err
    assert [x.name for x in (tmp_path / "run" / "prepare").iterdir()] == ["stage.json"]
    stages.run_stages(MINI, overrides, only="prepare", redo=True)  # other work, another time
    assert read_json(tmp_path / "run" / "prepare" / "stage.json")["elapsed_s"] == 100.0
    assert "prepare: complete in 100.0 s\n" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):  # what was complete is kept, its time does not count here
        stages.run_stages(MINI, [*overrides, "seed=4"], only="prepare")
    assert (tmp_path / "run" / ".prepare.previous" / "stage.json").is_file()
    assert read_run(tmp_path / "run").elapsed_s == 100.0
    assert list(read_run(tmp_path / "run").stages) == ["prepare"]
