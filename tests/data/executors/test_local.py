import functools
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pylm.data.executors import LocalPool, run_local
from pylm.errors import InputError


def work(item: int, *, folder: Path) -> tuple[int, int]:
    """Note the process; fail at 13, die at 99, wait for ever at -1."""
    (folder / f"{item}-{os.getpid()}").touch()
    if item == 13:
        raise InputError(f"item {item}: expected another, got {item}; take 12")
    if item == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == -1:
        signal.pause()
    return item * item, os.getpid()


def processes(folder: Path) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in folder.iterdir()}


def items_done(folder: Path) -> set[int]:
    return {int(path.name.rpartition("-")[0]) for path in folder.iterdir()}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_results_in_order(tmp_path: Path) -> None:
    work_here = functools.partial(work, folder=tmp_path)
    serial = list(run_local(work_here, range(5), num_workers=1))
    assert serial == [(i * i, os.getpid()) for i in range(5)]
    parallel = list(run_local(work_here, range(5), num_workers=2))
    assert [square for square, _ in parallel] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {pid for _, pid in parallel}
    assert not any(map(is_running, {pid for _, pid in parallel}))
    assert list(run_local(work_here, [], num_workers=2)) == []


def test_an_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    results = run_local(functools.partial(work, folder=tmp_path), [1, 13, -1, *range(20, 200)], num_workers=2)
    assert next(results)[0] == 1
    with pytest.raises(InputError, match=r"^item 13: expected another, got 13; take 12$"):
        next(results)
    assert len(items_done(tmp_path)) < 100  # the others were not waited for, nor the one that never ends
    assert not any(map(is_running, processes(tmp_path) - {os.getpid()}))


def test_a_killed_worker_is_said_to_be(tmp_path: Path) -> None:
    results = run_local(functools.partial(work, folder=tmp_path), [99, -1, 3, 4], num_workers=2)
    with pytest.raises(InputError, match="one of 2 worker processes was killed, often for want of memory"):
        next(results)
    assert not any(map(is_running, processes(tmp_path)))


def test_a_caller_that_stops(tmp_path: Path) -> None:
    results = run_local(functools.partial(work, folder=tmp_path), [1, -1, -1], num_workers=2)
    next(results)
    results.close()
    assert not any(map(is_running, processes(tmp_path)))


PROGRAM = """
import functools, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background without
from data_executors_work import work, run_local

if __name__ == "__main__":
    results = run_local(functools.partial(work, folder=Path(sys.argv[1])), [1, 2, -1, -1], num_workers=2)
    print(next(results), next(results), flush=True)
    next(results)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes through Linux's pidfd")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, kill: signal.Signals) -> None:
    module = tmp_path / "module"
    module.mkdir()
    (module / "data_executors_work.py").write_text(Path(__file__).read_text())
    (tmp_path / "program.py").write_text(PROGRAM.format(tests=str(module)))
    folder = tmp_path / "done"
    folder.mkdir()
    command = [sys.executable, str(tmp_path / "program.py"), str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        deadline = time.monotonic() + 60
        while len(list(folder.glob("-1-*"))) < 2 and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
        descriptors = [os.pidfd_open(pid) for pid in processes(folder)]
        assert len(descriptors) == 2
        if kill == signal.SIGINT:
            os.killpg(parent.pid, kill)  # as the terminal does
        else:
            parent.send_signal(kill)
        ended = [bool(select.select([descriptor], [], [], 20)[0]) for descriptor in descriptors]
        if not all(ended):
            os.killpg(parent.pid, signal.SIGKILL)
        _, errors = parent.communicate(timeout=60)
        assert ended == [True, True], "a worker outlives its parent"
        for descriptor in descriptors:
            os.close(descriptor)
        if kill == signal.SIGINT:
            assert errors.count("Traceback") == errors.count("KeyboardInterrupt\n") == 1, errors


def test_a_pool_starts_its_processes_once(tmp_path: Path) -> None:
    work_here = functools.partial(work, folder=tmp_path)
    with LocalPool(2) as pool:
        first = list(pool(work_here, range(2, 8)))
        second = list(pool(work_here, range(20, 26)))
        assert [square for square, _ in first] == [i * i for i in range(2, 8)]
        assert len({pid for _, pid in [*first, *second]}) <= 2
        assert list(pool(work_here, [5])) == [(25, os.getpid())]
        # An error ends the processes, and the next call starts others.
        with pytest.raises(InputError, match=r"^item 13: expected another"):
            list(pool(work_here, [1, 13, -1]))
        assert not any(map(is_running, {pid for _, pid in first}))
        third = list(pool(work_here, range(30, 36)))
        assert not {pid for _, pid in third} & {pid for _, pid in first}
        with pytest.raises(InputError, match="one of 2 worker processes was killed"):
            list(pool(work_here, [99, 3, 4]))
        stopped = pool(work_here, [1, -1, -1])
        next(stopped)
        stopped.close()
        assert [square for square, _ in pool(work_here, [6, 7])] == [36, 49]
    assert not any(map(is_running, processes(tmp_path) - {os.getpid()}))


def test_an_error_of_the_caller_ends_a_pool_at_once(tmp_path: Path) -> None:
    def stop() -> None:
        with LocalPool(2) as pool:
            for _ in pool(functools.partial(work, folder=tmp_path), [1, -1, -1]):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not any(map(is_running, processes(tmp_path) - {os.getpid()}))
