"""Runs that want the same folder of a store at the same time."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from dedup_corpora import make_rows, write_parquet

from pylm.data import storage
from pylm.data.dedup import ExactDedupConfig, dedup_exact, lease
from pylm.data.executors import LocalPool
from pylm.errors import InputError
from pylm.files import name_processes

OUT, LEASE = "memory://leased", "memory://leased/.lease.json"
ALONE = LocalPool(1)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "SLOW_SECONDS", math.inf)
    yield
    storage.remove_folder(OUT)


def run(folder: Path, progress: Any = None) -> dict[str, Any]:
    if not (folder / "in").exists():
        write_parquet(make_rows(1, 5), folder / "in", num_files=1, group=40)
    return dedup_exact([str(folder / "in")], OUT, ExactDedupConfig(), execute=ALONE, progress=progress)


def write(**changes: Any) -> None:
    about = {"owner": "x", "host": "elsewhere", "process": 7, "since": 0.0, "heartbeat": time.time()}
    storage.write_json(LEASE, {**about, **changes})


def test_one_run_at_a_time(tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == 0:
            with pytest.raises(InputError, match=f"in use by another run .process {os.getpid()} on"):
                run(tmp_path)

    report = run(tmp_path, progress)
    assert not storage.exists(LEASE)
    assert run(tmp_path) == report


def test_leases_of_others(tmp_path: Path) -> None:
    write(heartbeat=time.time() - 100)
    with pytest.raises(
        InputError, match=r"process 7 on elsewhere, last sign of life 10\d s ago.*remove memory:"
    ):
        run(tmp_path)
    write(heartbeat=time.time() + 100)  # its clock is ahead
    with pytest.raises(InputError, match="last sign of life 0 s ago"):
        run(tmp_path)
    write(heartbeat=time.time() - lease.EXPIRES_SECONDS - 1)
    run(tmp_path)
    assert not storage.exists(LEASE)
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    write(host=socket.gethostname(), process=int(ended.stdout), processes="another container's")
    with pytest.raises(InputError, match="in use by another run"):
        run(tmp_path)
    write(host=socket.gethostname(), process=int(ended.stdout), processes=name_processes())
    run(tmp_path)
    write()
    storage.remove(LEASE)
    run(tmp_path)
    for other in ({"owner": "another program"}, [1], None, {"heartbeat": "now"}):
        storage.write_json(LEASE, other)
        with pytest.raises(InputError, match=r"\.lease\.json: not a lease of this program; remove it"):
            run(tmp_path)


def test_a_slow_store_lets_others_look_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SLOW_SECONDS", 0.0)
    waited: list[float] = []

    def overwritten(seconds: float) -> None:
        waited.append(seconds)
        if seconds != lease.REPLACE_SECONDS:
            write()

    monkeypatch.setattr(lease.time, "sleep", overwritten)
    with pytest.raises(InputError, match="another run has taken this folder"):
        run(tmp_path)
    assert waited == [lease.REPLACE_SECONDS, lease.HEARTBEAT_SECONDS + lease.SETTLE_SECONDS]
    assert storage.exists(LEASE)


@pytest.fixture
def take_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give what takes the folder and returns when its holder has seen that."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    looked = threading.Event()

    def look(self: lease._Lease) -> None:
        lease_look(self)
        if self.lost is not None:
            looked.set()

    lease_look = lease._Lease._look
    monkeypatch.setattr(lease._Lease, "_look", look)

    def take() -> None:
        write()
        while not looked.wait(0.02):  # a beat that was under way may have come after it
            write()

    return take


def test_a_folder_that_was_taken(tmp_path: Path, take_over: Callable[[], None]) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == 0:
            take_over()

    with pytest.raises(InputError, match=r"another run has taken this folder .process 7 on elsewhere"):
        run(tmp_path, progress)
    assert json.loads(storage.read_bytes(LEASE))["owner"] == "x"  # it is the other one's to end


@pytest.mark.parametrize("is_lost", [False, True])
def test_who_lost_the_folder_removes_nothing(
    tmp_path: Path, take_over: Callable[[], None], is_lost: bool
) -> None:
    def refuse(*_: Any) -> None:
        if is_lost:
            take_over()
        raise InputError("a worker refuses its input")

    write_parquet(make_rows(1, 5), tmp_path / "in", num_files=1, group=40)
    with pytest.raises(InputError, match="another run has taken" if is_lost else "refuses its input"):
        dedup_exact([str(tmp_path / "in")], OUT, ExactDedupConfig(), execute=refuse)
    assert storage.exists(f"{OUT}/dedup.json") == is_lost


def test_of_two_at_the_same_time_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: seconds == lease.REPLACE_SECONDS or write())
    with pytest.raises(InputError, match="another run has taken this folder"):
        run(tmp_path)
    assert fsspec.filesystem("memory").find("/leased") == ["/leased/.lease.json"]


def test_the_lease_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with lease.hold_remote(OUT) as check:
        first = storage.read_json(LEASE)
        deadline = time.monotonic() + 60
        while storage.read_json(LEASE)["heartbeat"] == first["heartbeat"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert storage.read_json(LEASE)["heartbeat"] > first["heartbeat"]
        check()
    assert not storage.exists(LEASE)


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder gives up before others may take the folder, and what the work raised is not hidden."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 0.2)
    real, broken = storage.write_json, threading.Event()

    def write_json(path: str, value: Any) -> None:
        if broken.is_set() and path == LEASE:
            raise OSError("no space left for temporary files")
        real(path, value)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "match" and done == 0:
            broken.set()
            time.sleep(0.5)

    monkeypatch.setattr(storage, "write_json", write_json)
    with pytest.raises(InputError, match="the lease could not be kept alive for"):
        run(tmp_path, progress)
    broken.clear()
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 300.0)

    def fail() -> None:
        with lease.hold_remote(OUT):
            monkeypatch.setattr(storage, "exists", broken_exists)
            raise OSError("the real error")

    def broken_exists(path: str) -> bool:
        raise InputError("the store is down")

    storage.remove(LEASE)
    with monkeypatch.context(), pytest.raises(OSError, match="the real error"):
        fail()
    monkeypatch.undo()
