"""Work as Ray tasks, on clusters of several node processes on this machine."""

import functools
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_work import items_begun, wait_until_begun, work

from pylm.data.executors import Executor
from pylm.data.executors.ray import run_ray
from pylm.errors import InputError

TESTS = str(Path(__file__).parents[2])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that takes no work and three nodes of one place each."""
    pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'pylm-llm[ray]'")
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", TESTS)
    head = {
        "num_cpus": 0,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "_system_config": {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500},
    }
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def parent_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


@pytest.mark.slow
def test_order_and_errors(cluster: Any, tmp_path: Path) -> None:
    """One cluster for all of it, as starting one takes the most time."""
    here = functools.partial(work, folder=tmp_path)
    execute: Executor = functools.partial(run_ray, num_in_flight=4)
    assert list(execute(here, [])) == []
    numbers = [i for i in range(40) if i not in (13, 14)]
    assert list(run_ray(here, numbers)) == [i * i for i in numbers]
    assert items_begun(tmp_path).count(15) == 2, "its process was lost once"

    results = run_ray(here, [1, 13, *range(1000, 1100)], num_in_flight=4)
    assert next(results) == 1
    with pytest.raises(InputError, match=r"^item 13: expected another, got 13; take 12$") as raised:
        next(results)
    assert "in work" in str(raised.value.__cause__)
    assert sum(item >= 1000 for item in items_begun(tmp_path)) <= 4, "bounded, and not waited for"

    with pytest.raises(RuntimeError, match=r"^UnsendableError: item=14$"):
        list(run_ray(here, [14]))
    with pytest.raises(
        InputError, match=r"^the task of item 1 was lost \(WorkerCrashedError.*want of memory"
    ):
        list(run_ray(here, [2, 99], max_retries=1))
    assert items_begun(tmp_path).count(99) == 2

    results = run_ray(here, [3, 2000])
    assert next(results) == 9
    pid = int(wait_until_begun(tmp_path, 2000).name.split("-")[1])
    results.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), "a caller that stops ends the tasks"


@pytest.mark.slow
def test_a_node_is_killed_in_the_middle(cluster: Any, tmp_path: Path) -> None:
    here = functools.partial(work, folder=tmp_path)
    items = [*range(12), 1000, 1001, 1002, *range(16, 30)]
    results: list[int] = []
    caller = threading.Thread(target=lambda: results.extend(run_ray(here, items)), daemon=True)
    caller.start()
    begun = {item: wait_until_begun(tmp_path, item) for item in (1000, 1001, 1002)}  # one on each node
    raylet = parent_of(int(begun[1001].name.split("-")[1]))
    node = next(
        node
        for node in cluster.list_all_nodes()
        if any(info.process.pid == raylet for info in node.all_processes.get("raylet", []))
    )
    cluster.remove_node(node, allow_graceful=False)
    (tmp_path / "go").touch()
    caller.join(120)
    assert results == [item * item for item in items]
    counts = {item: items_begun(tmp_path).count(item) for item in (1000, 1001, 1002)}
    assert counts == {1000: 1, 1001: 2, 1002: 1}, "only what was lost is done again"


@pytest.mark.slow
def test_a_session_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'pylm-llm[ray]'")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", TESTS)
    assert list(run_ray(functools.partial(work, folder=tmp_path), [1, 2, 3])) == [1, 4, 9]
    assert not ray.is_initialized()


def test_no_such_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'pylm-llm[ray]'")
    with pytest.raises(InputError, match=r"^no Ray cluster at address='auto' .*`ray start --head`"):
        list(run_ray(functools.partial(work, folder=tmp_path), [1], address="auto"))


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"^run_ray needs Ray .*; pip install 'pylm-llm\[ray\]', or run with"
    ):
        list(run_ray(functools.partial(work, folder=tmp_path), [1]))
