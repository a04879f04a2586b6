"""Hold a folder of an object store for one run: stores have no locks, so this is a lease that is kept alive.

    OUT/.lease.json     who holds the folder, and when it last said so

The holder writes the file anew every half minute. One that has said nothing for five minutes is gone; one of
this machine and its processes whose process has ended is, too. A holder that could not write for four minutes
ends by itself, before others may take the folder. Whoever takes a folder looks a second later whether the
lease is still its own: of two that write at the same time the last one stays, and the other sees it; where
the store was slow, it looks after the other's next sign of life. Clocks of the machines must agree to within
a few minutes.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pylm.data import storage
from pylm.errors import InputError
from pylm.files import is_running, name_processes

HEARTBEAT_SECONDS = 30.0
EXPIRES_SECONDS = 300.0
SETTLE_SECONDS = 1.0
SLOW_SECONDS = 0.5
REPLACE_SECONDS = 0.2


@contextmanager
def hold_remote(folder: str) -> Iterator[Callable[[], None]]:
    """Hold a folder of a store until the block ends.

    Yields:
        What raises InputError once another run has taken the folder, for the holder to call now and then.

    Raises:
        InputError: another run holds it; names the run, and says how to end a lease that nobody holds.
    """
    lease = _Lease(folder)
    lease.take()
    stop = threading.Event()
    beat = threading.Thread(target=lease.keep, args=(stop,), daemon=True)
    beat.start()
    try:
        storage.put_back(folder)
        yield lease.check
    finally:
        stop.set()
        beat.join()
        lease.release()


class _Lease:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = storage.join(folder, ".lease.json")
        self.owner = uuid.uuid4().hex
        self.since = time.time()
        self.lost: dict[str, Any] | None = None
        self.written = time.monotonic()

    def take(self) -> None:
        began = time.monotonic()
        found = self._read()
        if found is None:
            # It may just be written anew, in two steps, on a store whose rename does not replace.
            time.sleep(REPLACE_SECONDS)
            found = self._read()
        if found is not None and not _is_gone(found):
            raise InputError(
                f"{self.folder}: in use by another run ({_describe(found)}); wait for it, or choose another "
                f"folder. Should that run be dead, its lease ends {EXPIRES_SECONDS / 60:.0f} minutes after "
                f"its last sign of life; to end it now, remove {self.path}"
            )
        self._write()
        is_slow = time.monotonic() - began > SLOW_SECONDS
        # Another run may then have looked and begun in between: it is to notice before this one begins.
        time.sleep(HEARTBEAT_SECONDS + SETTLE_SECONDS if is_slow else SETTLE_SECONDS)
        self._look()
        self.check()

    def keep(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                self._look()
                if self.lost is None:
                    self._write()
            except Exception:  # the store does not answer: `check` says so, unless it answers next time
                continue

    def check(self) -> None:
        if self.lost is not None:
            raise InputError(
                f"{self.folder}: another run has taken this folder ({_describe(self.lost)}); wait for its "
                "end and run the same command again"
            )
        silent_s = time.monotonic() - self.written
        if silent_s > EXPIRES_SECONDS - 2 * HEARTBEAT_SECONDS:
            raise InputError(
                f"{self.folder}: the lease could not be kept alive for {silent_s:.0f} s, and another run may "
                "take the folder; see whether the store answers, and run the same command again"
            )

    def release(self) -> None:
        with contextlib.suppress(
            Exception
        ):  # it would hide what the block raised, and a lease ends by itself
            found = self._read()
            if found is not None and found["owner"] == self.owner:
                storage.remove(self.path)

    def _look(self) -> None:
        found = self._read()
        if found is None or found["owner"] != self.owner:
            self.lost = found or {"heartbeat": 0.0}

    def _read(self) -> dict[str, Any] | None:
        try:
            found = storage.read_json(self.path)
        except InputError:
            if storage.exists(self.path):
                raise
            return None
        if not isinstance(found, dict) or not isinstance(found.get("heartbeat"), int | float):
            raise InputError(f"{self.path}: not a lease of this program; remove it")
        return {"owner": None, "host": "unknown", "process": 0, **found}

    def _write(self) -> None:
        about = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "processes": name_processes(),
            "process": os.getpid(),
            "since": self.since,
            "heartbeat": time.time(),
        }
        storage.write_json(self.path, about)
        self.written = time.monotonic()


def _is_gone(lease: dict[str, Any]) -> bool:
    if time.time() - lease["heartbeat"] > EXPIRES_SECONDS:
        return True
    return lease.get("processes") == name_processes() and not is_running(lease["process"])


def _describe(lease: dict[str, Any]) -> str:
    if not lease["heartbeat"]:
        return "its lease was removed"
    age = max(0.0, time.time() - lease["heartbeat"])
    return f"process {lease['process']} on {lease['host']}, last sign of life {age:.0f} s ago"
