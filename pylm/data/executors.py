"""Launchers of the same work over many items: processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pylm.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_local(
    work: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int = 0
) -> Generator[Result, None, None]:
    """Do some work for every item in processes of this machine.

    When a result is an error, or the caller stops or is interrupted, the workers are ended at once.

    Args:
        work: function of a module, or a `partial` of one.
        items: what to give it, one at a time.
        num_workers: processes; 0 takes all cores. One works in this process.

    Yields:
        Results in the order of the items, so that the first error is the same for any number of workers.

    Raises:
        InputError: a worker was killed. Otherwise what `work` raises.
    """
    num_workers = min(num_workers or count_cores(), len(items))
    if num_workers <= 1:
        yield from map(work, items)
        return
    others = set(multiprocessing.active_children())
    # spawn: a forked child of a process with threads may deadlock.
    pool = ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    futures = []
    try:
        with _interrupts_held():
            futures += [pool.submit(work, item) for item in items]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"one of {num_workers} worker processes was killed, often for want of memory; "
            "run the same command again, with fewer workers if need be: what was finished is kept"
        ) from error
    except BaseException:
        if not all(future.done() for future in futures):
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that never see Ctrl-C, not even while they load; here it waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End with the parent, however it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    with contextlib.suppress(OSError):
        parent.join()
    os._exit(1)
