"""Work for the tests of executors, in a module that processes of other machines can import."""

import os
import signal
import time
from pathlib import Path

from pylm.errors import InputError


class UnsendableError(Exception):
    """An error that no pickle carries over: it needs two arguments."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name}={value}")


def work(item: int, *, folder: Path) -> int:
    """Square an item and note that it was begun.

    13 and 14 fail, 15 ends the process the first time, 99 always; from 1000 on a file named `go` is
    waited for.
    """
    (folder / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if item == 13:
        raise InputError(f"item {item}: expected another, got {item}; take 12")
    if item == 14:
        raise UnsendableError("item", item)
    if item == 99 or (item == 15 and items_begun(folder).count(15) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    while item >= 1000 and not (folder / "go").exists():
        time.sleep(0.02)
    return item * item


def items_begun(folder: Path) -> list[int]:
    """List the items of which the work was begun, as often as it was."""
    return [int(path.name.partition("-")[0]) for path in folder.iterdir() if "-" in path.name]


def wait_until_begun(folder: Path, item: int) -> Path:
    """Wait until the work of an item was begun; give the note of it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := list(folder.glob(f"{item}-*")):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"item {item} was never begun")
