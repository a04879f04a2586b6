"""Files that are never half-written: everything pylm leaves on disk goes through here."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pylm.errors import InputError

_STALE_SECONDS = 24 * 3600


def name_processes() -> str:
    """Name what numbers of processes are unique in: a machine since it was started, or a container there.

    Containers may share the name of their host, and have processes of their own.
    """
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return host
    return f"{host}.{zlib.crc32(space.encode()):08x}"


_HOST = name_processes()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block ends without an error.

    Works for files and for folders (a folder that is replaced is moved aside, then removed). A reader sees
    the old content, the new content, or for a moment nothing; never a part. Writers of the same path on
    several machines do not disturb each other, the last one stays. What a killed process leaves behind is
    named `.NAME.tmp-HOST-PID` or `.NAME.tmp-old.tmp-HOST-PID` and is removed by the next writer of the same
    path on that machine or in that container, or elsewhere after a day.

    Args:
        path: the final place; its parent is created.

    Yields:
        A path that does not exist yet, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        if _is_stale(stale):
            _remove(stale)
    temporary = path.parent / f".{path.name}.tmp-{_HOST}-{os.getpid()}"
    old = path.parent / f".{path.name}.tmp-old.tmp-{_HOST}-{os.getpid()}"
    try:
        yield temporary
        if temporary.is_dir():
            for child in temporary.rglob("*"):
                _sync(child)
        _sync(temporary)
        if temporary.is_dir() and path.exists():  # to remove it takes long enough for a kill to leave a part
            path.rename(old)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)
        _remove(temporary)
        raise
    _remove(old)


def _is_stale(temporary: Path) -> bool:
    """Say whether nobody writes to a temporary path any more."""
    host, _, pid = temporary.name.rpartition(".tmp-")[2].rpartition("-")
    if host not in (_HOST, "") or not pid.isdigit():
        with contextlib.suppress(FileNotFoundError):
            return time.time() - temporary.stat().st_mtime > _STALE_SECONDS
        return False
    return int(pid) == os.getpid() or not is_running(int(pid))


def is_running(pid: int) -> bool:
    """Say whether a process of this machine, or of this container, is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created, for this process alone; the lock ends with the process.

    A block that is refused with an InputError leaves neither the lock nor an empty folder that were not there
    before.

    Raises:
        InputError: a file stands there, or another process holds it.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: a file stands there, expected a folder for the run") from error
    while True:
        is_new = not lock.exists()
        with lock.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise InputError(
                    f"{folder}: in use by another run (process {file.read().strip() or 'unknown'}); "
                    "wait for it, or choose another folder"
                ) from error
            if not _is_at(file.fileno(), lock):  # removed by a run that was refused in between
                continue
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            except InputError:
                if is_new:
                    lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    for place in missing:
                        place.rmdir()
                raise
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
