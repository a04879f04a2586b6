"""How stages are started: what is listed, what is counted, what is said."""

import dataclasses
from pathlib import Path

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


def test_the_time_of_a_stage_is_that_of_all_its_attempts(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    ends: list[type[BaseException] | None] = [KeyboardInterrupt, MemoryError, None, None]

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
