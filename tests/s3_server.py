"""An S3 server of moto's on this machine, as fixtures."""

import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    moto_server = pytest.importorskip(
        "moto.server", reason="moto is not installed: pip install 'pylm-llm[s3-test]'"
    )
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store with one bucket, named as a user would: by the environment. Gives boto3's client."""
    boto3 = pytest.importorskip("boto3")
    s3fs = pytest.importorskip("s3fs")
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    post(f"{s3_server}/moto-api/reset")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="corpus")
    yield client
    post(f"{s3_server}/moto-api/reset-auth", b"inf")
    s3fs.S3FileSystem.clear_instance_cache()


def post(url: str, content: bytes = b"") -> None:
    request = urllib.request.Request(url, content, {"Content-Type": "text/plain"}, method="POST")
    with urllib.request.urlopen(request, timeout=10):
        pass
