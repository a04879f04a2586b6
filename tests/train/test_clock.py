"""The time of a stage over attempts that end in every way."""

import os
import signal
import time
from pathlib import Path

import pytest

from pylm.train import clock as clock_module
from pylm.train.clock import StageClock, read_clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    value = [1000.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: value[0])
    return value


def test_attempts_add_up(tmp_path: Path, now: list[float]) -> None:
    assert read_clock(tmp_path) == 0.0

    def interrupted() -> None:
        with StageClock(tmp_path, goes_on=True):
            now[0] += 20.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    now[0] += 500.0  # between two attempts nothing is worked
    assert read_clock(tmp_path) == 20.0
    with StageClock(tmp_path, goes_on=True) as clock:
        now[0] += 3.5
    assert clock.elapsed_s == read_clock(tmp_path) == 23.5
    with StageClock(tmp_path, goes_on=False) as clock:
        now[0] += 1.0
    assert clock.elapsed_s == read_clock(tmp_path) == 1.0
    clock.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_attempt_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "INTERVAL_S", 0.01)
    start_s = time.monotonic()
    for _ in range(2):
        before_s = read_clock(tmp_path)
        child = os.fork()
        if child == 0:
            with StageClock(tmp_path, goes_on=True):
                while read_clock(tmp_path) < before_s + 0.1:
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert before_s + 0.1 <= read_clock(tmp_path) <= time.monotonic() - start_s
    with StageClock(tmp_path, goes_on=True) as clock:
        pass
    assert 0.2 <= clock.elapsed_s <= time.monotonic() - start_s


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"elapsed_s": null}', b"\xff"])
def test_a_damaged_note_is_no_time(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".clock.json").write_bytes(content)
    assert read_clock(tmp_path) == 0.0


def test_a_folder_that_takes_no_note_does_not_end_the_work(tmp_path: Path) -> None:
    with StageClock(tmp_path / "absent", goes_on=True) as clock:
        pass
    assert clock.elapsed_s >= 0.0
    clock.remove()
