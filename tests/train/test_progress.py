"""The display on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from pylm.train import progress as progress_module
from pylm.train.progress import LOG_INTERVAL_S, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_when_the_interval_has_passed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(40, "pretrain") as progress:
        for step in range(1, 41):
            clock[0] += 1.0
            progress.update(step, loss=1 / 3, lr=1e-5, tokens_per_s=123456, note="x")
    lines = capsys.readouterr().err.splitlines()
    assert LOG_INTERVAL_S == 10
    assert lines == [
        f"pretrain {step}/40  loss 0.3333  lr 1e-05  tokens_per_s 123456  note x" for step in (10, 20, 30, 40)
    ]


def test_a_log_gets_lines_within_a_long_step(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(40, "rlvr", start=2) as progress:
        for done in range(1, 31):
            clock[0] += 1.0
            progress.update_within(samples=f"{done}/30")
        progress.update(3, reward=0.5)  # within the interval
        for done in range(1, 11):
            clock[0] += 1.0
            progress.update_within(samples=f"{done}/30")
    assert capsys.readouterr().err.splitlines() == [
        "rlvr 2/40  samples 10/30",
        "rlvr 2/40  samples 20/30",
        "rlvr 2/40  samples 30/30",
        "rlvr 3/40  samples 10/30  reward 0.5",
    ]


def test_a_bar_shows_what_happens_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        progress_module, "Console", lambda stderr: Console(file=file, force_terminal=True, width=100)
    )
    with Progress(8, "rlvr", start=5) as progress:
        progress.update_within(samples="7/30")
    assert "5/8" in file.getvalue()
    assert "samples 7/30" in file.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        progress_module, "Console", lambda stderr: Console(file=file, force_terminal=True, width=100)
    )
    with Progress(8, "sft") as progress:
        progress.update(3, loss=2.0)
        progress.update(8, loss=0.123456)
    shown = file.getvalue()
    assert "sft" in shown
    assert "8/8" in shown
    assert "loss 0.1235" in shown
    assert "━" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_an_error_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        progress_module, "Console", lambda stderr: Console(file=file, force_terminal=True, width=100)
    )

    def interrupted() -> None:
        with Progress(8, "dpo") as progress:
            progress.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.getvalue().rstrip().endswith("\x1b[?25h")
    assert "1/8" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_show_nothing(
    terminal: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        progress_module, "Console", lambda stderr: Console(file=file, force_terminal=terminal)
    )
    with Progress(4, "pretrain", enabled=False) as progress:
        clock[0] += 100
        progress.update(1, loss=1.0)
    assert file.getvalue() == capsys.readouterr().err == ""
