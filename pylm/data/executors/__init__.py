"""Launchers of the same work over many items: their type, what they share, and processes of this machine.

`run_local` is here, `run_ray` in `ray.py`, `run_slurm` in `slurm.py`. All give the results
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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar, runtime_checkable

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


@runtime_checkable
class Staged(Protocol):
    """Gives each stage an executor of its own, by the stage's name."""

    def for_stage(self, name: str) -> Executor:
        """Give the executor of a stage."""


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
    with LocalPool(min(num_workers or count_cores(), len(items))) as pool:
        yield from pool(work, items)


class LocalPool:
    """Processes of this machine for many calls, an `Executor`: `run_local` without their start each time.

    They start when there is work for them, and end with the `with` block, with an error, or with a caller
    that stops; the next call starts new ones.
    """

    def __init__(self, num_workers: int = 0) -> None:
        """Name the number of processes; 0 takes all cores, one works in this process."""
        self.num_workers = num_workers or count_cores()
        self._pool: ProcessPoolExecutor | None = None
        self._workers: set[BaseProcess] = set()

    def __enter__(self) -> "LocalPool":
        """Start nothing yet."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End the processes, after an error at once."""
        if error is not None:
            self._terminate()
        self._shut()

    def __call__(
        self, work: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Generator[Result, None, None]:
        """Do some work for every item, as `run_local` does."""
        if min(self.num_workers, len(items)) <= 1:
            yield from map(work, items)
            return
        if self._pool is None:
            # spawn: a forked child of a process with threads may deadlock.
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )
        others = set(multiprocessing.active_children())
        futures: list[Future[Result]] = []
        try:
            try:
                with _interrupts_held():
                    futures += [self._pool.submit(work, item) for item in items]
            finally:
                self._workers |= set(multiprocessing.active_children()) - others
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            self._shut()
            raise InputError(
                f"one of {self.num_workers} worker processes was killed, often for want of memory; "
                "run the same command again, with fewer workers if need be: what was finished is kept. In a "
                "script of your own the call must stand below `if __name__ == '__main__':`"
            ) from error
        except BaseException:
            if not all(future.done() for future in futures):
                self._terminate()
            self._shut()
            raise

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.terminate()

    def _shut(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._workers = set()


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
