"""Work as Slurm arrays: against Slurm's own daemons, and against programs that behave like its commands."""

import ast
import functools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm_daemons
from executor_work import items_begun, wait_until_begun, work

from pylm.data.executors import Executor, run_task
from pylm.data.executors.slurm import run_slurm
from pylm.errors import InputError

TESTS = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Site:
    """A place with Slurm: where job folders and notes of the work go."""

    jobs: Path
    notes: Path

    @property
    def execute(self) -> "functools.partial[Iterator[int]]":
        return functools.partial(run_slurm, folder=self.jobs, poll_seconds=0.1, grace_seconds=0.5)

    @property
    def work(self) -> "functools.partial[int]":
        return functools.partial(work, folder=self.notes)


@pytest.fixture(params=["fake", "real"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("slurm", "notes"):
        (tmp_path / name).mkdir()
    place = Site(tmp_path / "jobs", tmp_path / "notes")
    if request.param == "fake":
        slurm_daemons.write_fake(tmp_path / "slurm")
        monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
        yield place
        return
    if not slurm_daemons.has_slurm():
        pytest.skip("Slurm is not installed: apt install slurm-wlm munge")
    with slurm_daemons.running_slurm(tmp_path / "slurm") as config:
        monkeypatch.setenv("SLURM_CONF", str(config))
        yield place


def test_results_in_order(site: Site) -> None:
    seen: list[tuple[int, int]] = []
    execute: Executor = functools.partial(site.execute, progress=lambda *counts: seen.append(counts))
    assert list(execute(site.work, [])) == []
    assert list(execute(site.work, range(6))) == [0, 1, 4, 9, 16, 25]
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert seen == sorted(set(seen))
    assert list(site.jobs.iterdir()) == [], "a job folder goes with its last result"
    assert sorted(items_begun(site.notes)) == [*range(6)]
    assert list(execute(site.work, range(6))) == [0, 1, 4, 9, 16, 25]
    assert len(items_begun(site.notes)) == 12, "what was finished before is not taken for a new call's"


def test_an_error_arrives_as_it_was_raised(site: Site) -> None:
    results = site.execute(site.work, [1, 13, 2000])
    assert next(results) == 1
    with pytest.raises(InputError, match=r"^item 13: expected another, got 13; take 12$") as raised:
        next(results)
    assert "in work" in str(raised.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^UnsendableError: item=14$"):
        list(site.execute(site.work, [14]))
    with pytest.raises(TypeError, match=r"^the result of item 0 cannot be pickled: "):
        list(site.execute(functools.partial(open, mode="rb"), [os.devnull]))


def test_a_task_that_is_killed_is_submitted_again(site: Site) -> None:
    assert list(site.execute(site.work, [1, 15, 2])) == [1, 225, 4]
    assert sorted(items_begun(site.notes)) == [1, 2, 15, 15], "only what is missing"


def test_a_task_that_is_always_killed(site: Site) -> None:
    setup = ["echo node ready"]
    with pytest.raises(
        InputError, match=r"^the task of item 1 ended 2 times without an outcome.*more mem or"
    ):
        list(site.execute(site.work, [1, 99], max_attempts=2, setup=setup))
    assert items_begun(site.notes).count(99) == 2
    log = next(site.jobs.glob("*/logs/*_1.log"))
    assert "node ready" in log.read_text()


def test_a_caller_that_stops(site: Site) -> None:
    results = site.execute(site.work, [3, 2000])
    assert next(results) == 9
    pid = int(wait_until_begun(site.notes, 2000).name.split("-")[1])
    descriptor = os.pidfd_open(pid)
    results.close()
    assert select.select([descriptor], [], [], 30)[0], "its tasks are cancelled"
    os.close(descriptor)


def test_a_call_for_what_is_left_finds_its_tasks(site: Site) -> None:
    """As stages do when they are started again: they ask only for what has no file yet."""
    numbers = [1, 2, 1000, 3]
    program = PROGRAM.format(tests=TESTS, items=numbers)
    command = [sys.executable, "-c", program, str(site.jobs), str(site.notes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "1 4\n"
        wait_until_begun(site.notes, 1000)
        wait_until_begun(site.notes, 3)
        caller.send_signal(signal.SIGKILL)
    (site.notes / "go").touch()
    assert list(site.execute(site.work, [3, 1000])) == [9, 1_000_000]
    assert sorted(items_begun(site.notes)) == [1, 2, 3, 1000]
    assert list(site.jobs.iterdir()) == []


PROGRAM = """
import functools, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from executor_work import work
from pylm.data.executors.slurm import run_slurm

jobs, notes = map(Path, sys.argv[1:])
results = run_slurm(functools.partial(work, folder=notes), {items}, folder=jobs, poll_seconds=0.1,
                    num_queued=8, grace_seconds=0.5)
print(next(results), next(results), flush=True)
print(next(results), flush=True)
"""


def test_the_caller_is_killed_and_started_again(site: Site) -> None:
    program = PROGRAM.format(tests=TESTS, items=[1, 2, 1000])
    command = [sys.executable, "-c", program, str(site.jobs), str(site.notes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "1 4\n"
        wait_until_begun(site.notes, 1000)
        caller.send_signal(signal.SIGKILL)
    (site.notes / "go").touch()
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert again.stdout == "1 4\n1000000\n"
    assert sorted(items_begun(site.notes)) == [1, 2, 1000], "nothing is done twice"
    assert list(site.jobs.iterdir()) == []


def test_a_refused_job(site: Site) -> None:
    with pytest.raises(
        InputError, match=r"^sbatch refuses the job \(sbatch: error: .*partition.*check partition"
    ):
        list(site.execute(site.work, [1], partition="none"))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in ("slurm", "notes"):
        (tmp_path / name).mkdir()
    slurm_daemons.write_fake(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    return Site(tmp_path / "jobs", tmp_path / "notes")


def calls_of(fake: Site, name: str) -> list[list[str]]:
    lines = (fake.notes.parent / "slurm" / "state" / "calls").read_text().splitlines()
    calls = [ast.literal_eval(line) for line in lines]
    return [call[1:] for call in calls if call[0] == name]


def test_options_reach_sbatch(fake: Site) -> None:
    options = {"account": "corpus", "constraint": "ssd"}
    execute = functools.partial(
        fake.execute,
        partition="main",
        time_limit="01:00:00",
        mem="2G",
        cpus=3,
        options=options,
        num_parallel=1,
    )
    assert list(execute(fake.work, [1, 2])) == [1, 4]
    (call,) = calls_of(fake, "sbatch")
    wanted = {
        *(
            "--parsable",
            "--array=0-1%1",
            "--job-name=work",
            "--partition=main",
            "--time=01:00:00",
            "--mem=2G",
        ),
        *("--cpus-per-task=3", "--account=corpus", "--constraint=ssd"),
    }
    assert wanted < set(call)
    assert [x for x in call if x not in wanted] == [f"--output={fake.jobs}/work-0/logs/%A_%a.log"]


def test_no_more_tasks_than_may_be_queued(fake: Site) -> None:
    assert list(fake.execute(fake.work, range(10), num_queued=4)) == [i * i for i in range(10)]
    sizes = [int(call[1].removeprefix("--array=0-")) + 1 for call in calls_of(fake, "sbatch")]
    assert max(sizes) <= 4
    assert min(sizes[:-1]) >= 2, "not one by one, but for the rest"
    assert sum(sizes) == 10


def test_only_what_is_missing_is_done_after_an_error(fake: Site) -> None:
    numbers = [1, 2, 13]
    for _ in range(2):
        with pytest.raises(InputError, match="item 13"):
            list(fake.execute(fake.work, numbers))
    assert sorted(items_begun(fake.notes)) == [1, 2, 13, 13]
    assert list(fake.execute(fake.work, [1, 3])) == [1, 9], "another call has a folder of its own"
    assert [path.name for path in fake.jobs.iterdir()] == ["work-0"]
    assert list(fake.execute(fake.work, [2, 1])) == [4, 1], "a call for a part finds it"
    assert sorted(items_begun(fake.notes)) == [1, 1, 2, 3, 13, 13]
    assert list(fake.jobs.iterdir()) == []


def test_a_controller_that_does_not_answer(fake: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    down = fake.notes.parent / "slurm" / "state" / "down"
    results = fake.execute(fake.work, [1, 1000])
    assert next(results) == 1
    down.touch()
    wait_until_begun(fake.notes, 1000)
    (fake.notes / "go").touch()
    assert next(results) == 1_000_000, "outcomes are seen all the same"
    down.unlink()
    (fake.notes / "go").unlink()
    monkeypatch.setattr("pylm.data.executors.slurm._CONTACT_SECONDS", 0.2)
    results = fake.execute(fake.work, [2, 2000])
    assert next(results) == 4
    down.touch()
    with pytest.raises(
        InputError, match=r"^squeue fails \(squeue: error: Unable to contact slurm controller"
    ):
        next(results)
    (fake.notes / "go").touch()


def test_bad_calls(fake: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def script_work(item: int) -> int:
        return item

    script_work.__module__ = "__main__"
    with pytest.raises(InputError, match=r"^script_work is of the script that was started; .* to a module$"):
        list(fake.execute(script_work, [1]))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"^run_slurm needs sbatch on the PATH"):
        list(fake.execute(fake.work, [1]))


def test_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_task.main([]) == run_task.main(["folder", "-1"]) == 2
    assert "usage: python -m pylm.data.executors.run_task FOLDER INDEX" in capsys.readouterr().err
    assert run_task.main([str(tmp_path), "0"]) == 2
    assert "job.pickle: no such file; FOLDER is a job folder" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    run_task.write_job(tmp_path, functools.partial(work, folder=tmp_path / "notes"), [5, 13])
    assert run_task.main([str(tmp_path), "2"]) == 2
    assert "INDEX must be one of the job's 2 items, from 0, got 2" in capsys.readouterr().err
    assert run_task.main([str(tmp_path), "0"]) == 0
    assert run_task.read_outcome(run_task.outcome_path(tmp_path, 0)) == 25
    assert run_task.main([str(tmp_path), "1"]) == 1
    assert "item 13: expected another" in capsys.readouterr().err
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert run_task.main([str(tmp_path), "0"]) == 2
    assert "belongs to another user" in capsys.readouterr().err
