"""Storage over S3, against moto's server on this machine."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import post

from pylm.data import storage
from pylm.errors import InputError

s3fs = pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")


def content_of(s3_store: Any, key: str) -> bytes:
    return bytes(s3_store.get_object(Bucket="corpus", Key=key)["Body"].read())


def test_files(s3_store: Any) -> None:
    folder = "s3://corpus/runs/a"
    assert storage.list_files(folder) == []
    content = bytes(range(256)) * 100
    for name in ("b.bin", "a.bin", "c.json", "below/d.bin"):
        with storage.publish(storage.join(folder, name)) as temporary:
            temporary.write_bytes(content)
    path = f"{folder}/a.bin"
    assert content_of(s3_store, "runs/a/a.bin") == content
    assert storage.list_files(folder, suffix=".bin") == [path, f"{folder}/b.bin"]
    assert storage.list_files("s3://corpus") == []
    assert storage.exists(path)
    assert storage.exists(folder)
    assert not storage.exists(f"{folder}/x")
    assert storage.size(path) == len(content)
    for start, length in [(0, 10), (300, 1000), (25_590, 100), (25_600, 5), (90_000, 5), (7, 0)]:
        assert storage.read_bytes(path, start, length) == content[start : start + length]
    with storage.fetch(path) as local:
        assert local.read_bytes() == content
    storage.write_json(f"{folder}/e.json", {"a": [1]})
    assert (
        storage.read_json(f"{folder}/e.json")
        == json.loads(content_of(s3_store, "runs/a/e.json"))
        == {"a": [1]}
    )
    s3_store.put_object(Bucket="corpus", Key="runs/a/f.bin", Body=b"by another machine")
    assert storage.list_files(folder, suffix=".bin")[-1] == f"{folder}/f.bin"
    assert storage.read_bytes(f"{folder}/f.bin") == b"by another machine"
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)
    storage.remove_folder(folder)
    assert "Contents" not in s3_store.list_objects_v2(Bucket="corpus")


def test_parquet_fetches_what_is_read(s3_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "s3://corpus/a.parquet"
    noise = [os.urandom(1 << 20) for _ in range(30)]
    table = pa.table({"id": list(range(30)), "noise": noise, "text": [f"text {i}" for i in range(30)]})
    with storage.publish(path) as temporary:
        pq.write_table(table, temporary, row_group_size=10)
    fetched = []
    fetch_range = s3fs.core._fetch_range

    def counted(fs: Any, bucket: str, key: str, version: Any, start: int, end: int, **kwargs: Any) -> Any:
        fetched.append(end - start)
        return fetch_range(fs, bucket, key, version, start, end, **kwargs)

    monkeypatch.setattr(s3fs.core, "_fetch_range", counted)
    with storage.open_input(path) as file:
        assert pq.ParquetFile(file).read_row_group(1, columns=["text"]) == table.select(["text"]).slice(
            10, 10
        )
    assert 0 < sum(fetched) < 16 << 20, "of 31 MB, the footer and one column"


def test_lines(s3_store: Any) -> None:
    lines = [b"line %d\n" % i for i in range(100_000)]
    s3_store.put_object(Bucket="corpus", Key="lines", Body=b"".join(lines))
    with storage.open_input("s3://corpus/lines") as file:
        assert list(file) == lines


PROGRAM = """
import sys
from pylm.data import storage

with storage.publish("s3://corpus/large") as temporary:
    temporary.write_bytes(b"new" * (40 << 20))
"""


def test_a_writer_killed_during_the_upload(s3_store: Any, s3_server: str) -> None:
    """120 MB go up in parts; before the last one nothing of them is seen."""
    s3_store.put_object(Bucket="corpus", Key="large", Body=b"old")
    with PausingProxy(s3_server, pause_after=20 << 20) as proxy:
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.url}
        with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment) as writer:
            assert proxy.paused.wait(60)
            assert s3_store.list_multipart_uploads(Bucket="corpus")["Uploads"]
            assert content_of(s3_store, "large") == b"old"
            writer.send_signal(signal.SIGKILL)
            writer.wait(60)
    assert content_of(s3_store, "large") == b"old"
    assert storage.list_files("s3://corpus") == ["s3://corpus/large"]
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
    assert content_of(s3_store, "large") == b"new" * (40 << 20)


class PausingProxy:
    """Passes bytes on to a server, until so many of them have gone up."""

    def __init__(self, target: str, *, pause_after: int) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._left = pause_after
        self.paused = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "PausingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._target)
            threading.Thread(target=self._up, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._down, args=(upstream, client), daemon=True).start()

    def _up(self, client: socket.socket, upstream: socket.socket) -> None:
        while block := client.recv(1 << 16):
            self._left -= len(block)
            if self._left < 0:
                self.paused.set()
                return  # the connection stays open and silent
            upstream.sendall(block)

    def _down(self, upstream: socket.socket, client: socket.socket) -> None:
        while block := upstream.recv(1 << 16):
            client.sendall(block)


def test_an_endless_reader_never_sees_a_part(s3_store: Any) -> None:
    path, seen, stop = "s3://corpus/a", set(), threading.Event()
    with storage.publish(path) as temporary:
        temporary.write_bytes(bytes(1 << 20))

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.read_bytes(path))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 6):
        with storage.publish(path) as temporary:
            temporary.write_bytes(bytes([value]) * (1 << 20))
    stop.set()
    reader.join()
    assert {(len(content), len(set(content))) for content in seen} == {(1 << 20, 1)}


def test_a_bucket_that_does_not_exist(s3_store: Any) -> None:
    for act in (storage.list_files, storage.read_bytes, storage.size, storage.open_input):
        with pytest.raises(
            InputError, match=r"^s3://nowhere/a: no such file, folder or bucket; check the path$"
        ):
            act("s3://nowhere/a")
    with pytest.raises(InputError, match=r"^s3://nowhere/a: no such file, folder or bucket; check the path$"):
        storage.write_json("s3://nowhere/a", 1)
    assert not storage.exists("s3://nowhere/a")


def test_wrong_credentials(s3_store: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_store.put_object(Bucket="corpus", Key="a", Body=b"1")
    users = boto3.client("iam", endpoint_url=s3_server)
    users.create_user(UserName="reader")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    users.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(policy))
    key = users.create_access_key(UserName="reader")["AccessKey"]
    post(f"{s3_server}/moto-api/reset-auth", b"0")
    acts = (storage.read_bytes, storage.size, storage.list_files, storage.exists, storage.read_json)
    for act in (*acts, functools.partial(storage.write_json, value=1)):
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(
            InputError, match=r"^s3://corpus/a: no access \(.*set AWS_ACCESS_KEY_ID and AWS_SECRET"
        ):
            act("s3://corpus/a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    s3fs.S3FileSystem.clear_instance_cache()
    assert storage.read_bytes("s3://corpus/a") == b"1"


def test_no_server(s3_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^s3://corpus/a: .*127\.0\.0\.1.*AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://corpus/a")
    assert time.monotonic() - start < 60


def test_a_download_goes_when_it_was_used(
    s3_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_json("s3://corpus/a", 1)
    assert not list(tmp_path.iterdir())
    with storage.fetch("s3://corpus/a") as local:
        assert local.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
