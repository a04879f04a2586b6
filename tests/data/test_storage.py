import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pylm.data import storage
from pylm.errors import InputError


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that does not exist yet, of each kind of path."""
    if request.param == "memory":
        root = f"memory://{uuid.uuid4().hex}"
        yield f"{root}/run"
        storage.remove_folder(root)
    else:
        yield f"{'file://' if request.param == 'file' else ''}{tmp_path}/run"


def put(path: str, content: bytes) -> None:
    with storage.publish(path) as temporary:
        temporary.write_bytes(content)


@pytest.mark.parametrize(
    ("folder", "names", "joined"),
    [
        ("/a/b", ("c", "d.json"), "/a/b/c/d.json"),
        ("runs/x/", ("y",), "runs/x/y"),
        ("s3://bucket", ("key",), "s3://bucket/key"),
        ("s3://bucket/a/", ("b/", "c"), "s3://bucket/a/b/c"),
        ("memory://", ("x",), "memory://x"),
        ("file:///a", ("b",), "/a/b"),
    ],
)
def test_join(folder: str, names: tuple[str, ...], joined: str) -> None:
    assert storage.join(folder, *names) == joined


def test_what_is_published_is_read(folder: str) -> None:
    path = storage.join(folder, "deep", "a.bin")
    assert not storage.exists(path)
    assert storage.list_files(folder) == []
    content = bytes(range(256)) * 50
    put(path, content)
    assert storage.exists(path)
    assert storage.exists(folder)
    assert storage.size(path) == len(content)
    assert storage.read_bytes(path) == content
    for start, length in [(0, 10), (300, 1000), (12_790, 100), (12_800, 5), (20_000, 5), (7, 0)]:
        assert storage.read_bytes(path, start, length) == content[start : start + length]
    assert storage.read_bytes(path, 12_000) == content[12_000:]
    with storage.fetch(path) as local:
        assert local.read_bytes() == content
    with storage.open_input(path) as file, storage.open_input(path) as other:
        assert file.seek(-10, io.SEEK_END) == 12_790
        assert other.read(3) == content[:3]
        assert file.read() == content[-10:]
        file.seek(1000)
        assert file.read(5) == content[1000:1005]


def test_listing(folder: str) -> None:
    for name in ("b.json", "a.json", "c.parquet", ".a.json.tmp-7", "below/d.json"):
        put(storage.join(folder, name), b"x")
    names = [storage.join(folder, name) for name in ("a.json", "b.json", "c.parquet")]
    assert storage.list_files(folder) == names
    assert storage.list_files(folder + "/", suffix=".json") == names[:2]
    assert storage.list_files(storage.join(folder, "below")) == [storage.join(folder, "below", "d.json")]
    put(storage.join(folder, "d.json"), b"")  # seen at once: listings are not kept
    assert storage.list_files(folder, suffix=".json") == [*names[:2], storage.join(folder, "d.json")]
    storage.remove(names[0])
    storage.remove(names[0])
    assert not storage.exists(names[0])
    storage.remove_folder(folder)
    storage.remove_folder(folder)
    assert storage.list_files(folder) == []
    assert not storage.exists(names[1])


def test_a_writer_that_fails_leaves_the_old_file(folder: str) -> None:
    path = storage.join(folder, "a.txt")
    put(path, b"old")
    with pytest.raises(ZeroDivisionError), storage.publish(path) as temporary:
        temporary.write_bytes(bytes(1 // (temporary.write_bytes(b"new") - 3)))
    assert storage.read_bytes(path) == b"old"
    put(path, b"new")
    assert storage.read_bytes(path) == b"new"
    assert storage.list_files(folder) == [path]
    fs, root = fsspec.core.url_to_fs(folder)
    assert [Path(entry["name"]).name for entry in fs.ls(root, detail=True)] == ["a.txt"]


def test_an_upload_that_fails_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"memory://{uuid.uuid4().hex}/a.txt"
    put(path, b"old")
    memory = fsspec.filesystem("memory")

    def cut_off(self: object, local: str, name: str, **_: object) -> None:
        memory.pipe_file(name, b"ne")
        raise OSError("connection lost")

    monkeypatch.setattr(type(memory), "put_file", cut_off)
    with pytest.raises(InputError, match=rf"^{path}: connection lost; check the credentials"):
        put(path, b"new")
    assert storage.read_bytes(path) == b"old"
    assert storage.list_files(path.rpartition("/")[0]) == [path]


@pytest.mark.parametrize("raises", [True, False])
def test_stores_whose_rename_does_not_replace(raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"memory://{uuid.uuid4().hex}/a.txt"
    kind = type(fsspec.filesystem("memory"))
    move = kind.mv

    def refuse(self: Any, source: str, target: str, **options: Any) -> None:
        if not self.exists(target):
            move(self, source, target, **options)
        elif raises:
            raise FileExistsError(target)

    monkeypatch.setattr(kind, "mv", refuse)
    for content in (b"old", b"new", b"newer"):
        put(path, content)
        assert storage.read_bytes(path) == content
    fs, folder = fsspec.core.url_to_fs(path.rpartition("/")[0])
    assert [entry["name"].rpartition("/")[2] for entry in fs.ls(folder)] == ["a.txt"]

    def fail(self: Any, source: str, target: str, **options: Any) -> None:
        if ".tmp-" in source:
            raise OSError("connection lost")
        move(self, source, target, **options)

    monkeypatch.setattr(kind, "mv", fail)
    with pytest.raises(InputError, match="connection lost"):
        put(path, b"lost")
    assert storage.read_bytes(path) == b"newer"
    assert [entry["name"].rpartition("/")[2] for entry in fs.ls(folder)] == ["a.txt"]


def test_what_a_killed_writer_moved_aside_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"memory://{uuid.uuid4().hex}"
    kind = type(fsspec.filesystem("memory"))
    move = kind.mv

    moved = 0

    def die(self: Any, source: str, target: str, **options: Any) -> None:
        nonlocal moved
        if self.exists(target) or moved:
            raise OSError("gone")
        move(self, source, target, **options)
        moved += 1

    put(f"{folder}/a.txt", b"old")
    put(f"{folder}/b.txt", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(kind, "mv", die)
        with pytest.raises(InputError, match="gone"):
            put(f"{folder}/a.txt", b"new")
    assert not storage.exists(f"{folder}/a.txt")
    fs, root = fsspec.core.url_to_fs(folder)
    fs.pipe_file(f"{root}/.b.txt.old-{uuid.uuid4().hex}", b"older")
    storage.put_back(folder)
    assert storage.read_bytes(f"{folder}/a.txt") == storage.read_bytes(f"{folder}/b.txt") == b"old"
    assert sorted(entry["name"].rpartition("/")[2] for entry in fs.ls(root)) == ["a.txt", "b.txt"]
    storage.put_back(f"{folder}/none")


def test_json(folder: str) -> None:
    path = storage.join(folder, "a.json")
    value = {"name": "ÄÖ", "numbers": [1, 2.5, None]}
    storage.write_json(path, value)
    assert storage.read_json(path) == value
    assert json.loads(storage.read_bytes(path)) == value
    put(path, b"{")
    with pytest.raises(InputError, match=r"a\.json: expected JSON \(Expecting property name"):
        storage.read_json(path)


def test_parquet_reads_columns(folder: str) -> None:
    path = storage.join(folder, "a.parquet")
    table = pa.table({"id": list(range(1000)), "text": [f"text {i}" for i in range(1000)]})
    with storage.publish(path) as temporary:
        pq.write_table(table, temporary, row_group_size=100)
    with storage.open_input(path) as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_group(3, columns=["text"]) == table.select(["text"]).slice(300, 100)


def test_missing_files(folder: str) -> None:
    path = storage.join(folder, "missing")
    for act in (storage.size, storage.read_bytes, storage.open_input, storage.read_json):
        with pytest.raises(InputError, match=r"run/missing: no such file.*; check the path$"):
            act(path)
    with pytest.raises(InputError, match=r"run/missing: no such file"), storage.fetch(path):
        pass


def test_protocols_without_driver() -> None:
    with pytest.raises(InputError, match=r"^nowhere://a/b: no protocol 'nowhere' is known to fsspec; check"):
        storage.exists("nowhere://a/b")


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(InputError, match=r"^s3://b/k: no driver for s3:// .*; pip install 'pylm-llm\[s3\]'$"):
        storage.read_bytes("s3://b/k")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match="a file stands where a folder should"):
        storage.list_files(str(tmp_path / "a"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_access(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(InputError, match=r"no access .*; check its owner and mode"):
        storage.read_bytes(str(tmp_path / "a"))
