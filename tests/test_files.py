import os
import subprocess
import sys
from pathlib import Path

import pytest

from pylm import files
from pylm.files import atomic_path


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
