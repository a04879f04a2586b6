"""Launchers of the same work over many items: their type, what they share, and processes of this machine.

`run_local` is here, `run_ray` in `ray_executor.py`, `run_slurm` in `slurm_executor.py`. All give the results
in the order of the items, and raise the first error in that order as the work raised it, so that a stage does
not depend on which of them runs it.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pylm.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Does some work for every item: `run_local`, `run_ray`, `run_slurm`, or a `partial` of one.

    Items and results are small and picklable (paths, numbers); data go through storage. An executor may do
    the work of an item again (its machine was lost), so the work publishes what it writes as a whole.
    """

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterable[Result]:
        """Give the results in the order of the items."""


@dataclass(frozen=True)
class Failure:
    """An error that the work raised on another machine.

    Attributes:
        error: as it was raised; a RuntimeError with its text where it cannot be carried over.
        trace: its traceback as text.
    """

    error: Exception
    trace: str

    def throw(self) -> None:
        """Raise the error, with its traceback as the cause."""
        raise self.error from RuntimeError(f"on another machine:\n{self.trace}")


def attempt(work: Callable[[Item], Result], item: Item) -> Result | Failure:
    """Do the work for an item on another machine; give its error, if any, in a form that can be sent back."""
    try:
        return work(item)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__qualname__}: {error}")
        return Failure(error, trace)


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
