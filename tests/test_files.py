import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pylm import files
from pylm.errors import InputError
from pylm.files import atomic_path, lock_folder


def test_what_others_write_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = f"{files._HOST}-{os.getpid()}"
    names = {
        f".a.tmp-{files._HOST}-{ended.pid}": False,
        f".a.tmp-{ended.pid}": False,
        f".a.tmp-{own}": False,
        f".a.tmp-{files._HOST}-{os.getppid()}": True,
        f".a.tmp-node-7-{ended.pid}": True,
        f".b.tmp-{files._HOST}-{ended.pid}": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    old = tmp_path / f".a.tmp-node-8-{ended.pid}"
    old.write_text("x")
    os.utime(old, (1e9, 1e9))
    with atomic_path(tmp_path / "a") as temporary:
        assert temporary == tmp_path / f".a.tmp-{own}"
        assert not temporary.exists()
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    left = {name for name, stays in names.items() if stays}
    assert {path.name for path in tmp_path.iterdir()} == {"a", *left}


def test_two_machines_write_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_path(tmp_path / "a") as first:
        first.write_text("first")
        monkeypatch.setattr(files, "_HOST", "another")
        with atomic_path(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
        assert first.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "first"


def write_folder(path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name in ("x", "y"):
            (temporary / name).write_text(content)


def contents(path: Path) -> list[str]:
    return [(path / name).read_text() for name in ("x", "y")]


def test_a_kill_while_the_old_folder_is_removed_leaves_the_new_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", "old")
    child = os.fork()
    if child == 0:

        def remove_a_part(path: Path) -> None:
            (path / "x").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

        files.shutil.rmtree = remove_a_part
        write_folder(tmp_path / "a", "new")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert contents(tmp_path / "a") == ["new", "new"]
    write_folder(tmp_path / "a", "newer")
    assert contents(tmp_path / "a") == ["newer", "newer"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "a", "old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(tmp_path / "a", "new")
    assert contents(tmp_path / "a") == ["old", "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_to_a_folder_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", "old")
    (tmp_path / "a").symlink_to("elsewhere")
    write_folder(tmp_path / "a", "new")
    assert contents(tmp_path / "a") == ["new", "new"]
    assert contents(tmp_path / "elsewhere") == ["old", "old"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "elsewhere"}


def refused(folder: Path, names: list[str]) -> None:
    with lock_folder(folder):
        for name in names:
            (folder / name).write_text("y")
        raise InputError("refused")


def test_a_refused_block_leaves_the_disk_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("x")
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "old", tmp_path / "old" / "new"):
        for expected in ([], ["y"]):
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(InputError, match="refused"):
                refused(folder, expected)
            left = set(tmp_path.rglob("*")) - set(before)
            assert left <= ({folder / "y", *folder.parents, folder} if expected else set())
    with lock_folder(tmp_path / "kept"):
        pass
    with pytest.raises(InputError), lock_folder(tmp_path / "kept"):
        raise InputError("refused")
    assert (tmp_path / "kept" / ".lock").exists(), "it was there before"
    with pytest.raises(KeyError), lock_folder(tmp_path / "fault"):
        raise KeyError
    assert (tmp_path / "fault" / ".lock").exists(), "no refusal"


def test_a_lock_that_was_removed_holds_nobody(tmp_path: Path) -> None:
    """Who waits for the lock file of a refused run, and gets it, must not hold a file without a name."""
    real, opened = files._is_at, []

    def is_at(descriptor: int, path: Path) -> bool:
        opened.append(descriptor)
        if len(opened) == 1:
            path.unlink()
        return real(descriptor, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "_is_at", is_at)
        with (
            lock_folder(tmp_path),
            pytest.raises(InputError, match="in use by another run"),
            lock_folder(tmp_path),
        ):
            pass
    assert len(opened) == 2
