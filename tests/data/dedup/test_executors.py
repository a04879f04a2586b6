"""Deduplication of a corpus by Slurm arrays, by Ray tasks and over S3: the files of a run on this machine."""

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import slurm_daemons
from dedup_corpora import contents, make_rows, write_parquet

from pylm.data import storage
from pylm.data.dedup import NearDedupConfig, dedup_near
from pylm.data.executors import Executor
from pylm.data.executors.ray import run_ray
from pylm.data.executors.slurm import run_slurm

CONFIG = NearDedupConfig(split_bytes=1, num_partitions=2, priority=("score",))


def run(folder: Path, name: str, execute: Executor | None = None) -> dict[str, bytes]:
    dedup_near([str(folder / "in")], str(folder / name), CONFIG, execute=execute)
    files = contents(folder / name)
    assert len([path for path in files if path.startswith("documents/")]) > 3
    return files


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(make_rows(1, 20), tmp_path / "in", num_files=3, group=30)
    (tmp_path / "slurm").mkdir()
    slurm_daemons.write_fake(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    execute = functools.partial(run_slurm, folder=tmp_path / "jobs", poll_seconds=0.05)
    assert run(tmp_path, "slurm-out", execute) == run(tmp_path, "out")
    assert list((tmp_path / "jobs").iterdir()) == []


def test_slurm_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    slurm_daemons.write_fake(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    execute = functools.partial(run_slurm, folder=tmp_path / "jobs", poll_seconds=0.05)
    rows = make_rows(1, 20)
    for month, part in enumerate((rows[:30], rows[20:])):
        write_parquet(part, tmp_path / f"in-{month}", num_files=1, group=15)
    found = []
    for name, way in (("here", None), ("there", execute)):
        config = CONFIG.model_copy(update={"index": str(tmp_path / f"{name}-index")})
        for month in (0, 1):
            out = str(tmp_path / f"{name}-{month}")
            report = dedup_near([str(tmp_path / f"in-{month}")], out, config, execute=way)
        index = {k: v for k, v in contents(tmp_path / f"{name}-index").items() if k.endswith(".segment")}
        removed = {k: v for k, v in contents(tmp_path / f"{name}-1").items() if k.startswith("removed")}
        found.append((index, removed, {**report, "config": 0, "index": {**report["index"], "folder": 0}}))
        assert report["removed"]["indexed"]["documents"] > 5
    assert found[0] == found[1]


@pytest.mark.slow
def test_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'pylm-llm[ray]'")
    ray = pytest.importorskip("ray")
    write_parquet(make_rows(1, 20), tmp_path / "in", num_files=3, group=30)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        assert run(tmp_path, "ray-out", run_ray) == run(tmp_path, "out")
    finally:
        ray.shutdown()


def test_s3(tmp_path: Path, s3_store: Any) -> None:
    write_parquet(make_rows(1, 20), tmp_path / "in", num_files=3, group=30)
    local = run(tmp_path, "out")
    for path in (tmp_path / "in").iterdir():
        with storage.publish(f"s3://corpus/in/{path.name}") as temporary:
            temporary.write_bytes(path.read_bytes())
    for _ in range(2):
        report = dedup_near(["s3://corpus/in"], "s3://corpus/out", CONFIG)
    assert report["files"]
    names = [path.rpartition("/")[2] for path in storage.list_files("s3://corpus/out/documents")]
    assert names == [path.partition("/")[2] for path in local if path.startswith("documents/")]
    for name in names:
        assert storage.read_bytes(f"s3://corpus/out/documents/{name}") == local[f"documents/{name}"]
    assert not storage.exists("s3://corpus/out/work")
