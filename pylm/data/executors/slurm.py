"""Launcher of the same work over many items: arrays of Slurm jobs.

FOLDER/NAME-NUMBER/       one call of run_slurm; gone when all its results were given
    job.pickle            the work and its items
    arrays/ID.json        a submitted array: the item of each of its tasks
    outcomes/INDEX.pickle result or error of an item
    logs/ID_TASK.log      what a task printed
"""

import functools
import itertools
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pylm.data.executors import Failure, Item, Result, run_task
from pylm.errors import InputError
from pylm.files import read_json, write_json

_ARRAY_TASKS = 1000
"""Tasks of one array, at most: Slurm's own limit (`MaxArraySize`) is 1,001 unless a site has changed it."""
_CONTACT_SECONDS = 1800
"""How long Slurm may not answer before that is an error: controllers are restarted now and then."""
_LOG_BYTES = 2000


def run_slurm(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    folder: str | Path,
    partition: str | None = None,
    time_limit: str | None = None,
    mem: str | None = None,
    cpus: int = 1,
    options: Mapping[str, str] | None = None,
    setup: Sequence[str] = (),
    python: str = sys.executable,
    num_parallel: int = 0,
    num_queued: int = _ARRAY_TASKS,
    max_attempts: int = 3,
    poll_seconds: float = 10.0,
    grace_seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[Result, None, None]:
    """Do some work for every item as tasks of Slurm arrays.

    When a result is an error, or the caller stops or is interrupted, the tasks are cancelled. When this
    process is killed, they go on; the same call finds them, waits for what is still queued and submits only
    what is missing. So the work and an item must say all that the result depends on (of a file its size and
    time of change): for equal ones, a result of the call that was cut off is taken.

    Args:
        work: function of a module, or a `partial` of one, that compares equal when called again.
        items: what to give it, one at a time; they compare too.
        folder: where job folders go: local to this process and the nodes (a shared file system), and
            writable by nobody else, since what is in it is run.
        partition: sbatch's `--partition`.
        time_limit: sbatch's `--time` of one task ("02:00:00").
        mem: sbatch's `--mem` of one task ("8G").
        cpus: sbatch's `--cpus-per-task`.
        options: other long options of sbatch, without dashes: `{"account": "x", "constraint": "ssd"}`.
        setup: lines of shell before the work (`module load ...`, `export ...`).
        python: interpreter on the nodes, with pylm.
        num_parallel: tasks that run at one time, at most, of one array; 0 leaves that to Slurm.
        num_queued: tasks that are submitted and not done at one time, at most (`MaxSubmitJobs` of a site).
        max_attempts: times that a task may end without an outcome (killed for memory or time, node lost).
        poll_seconds: how often to look for outcomes and to ask Slurm for its queue.
        grace_seconds: how long after a task has left the queue its outcome may come to be seen.
        progress: called with done and all items: once at the start, then whenever there are more.

    Yields:
        Results in the order of the items.

    Raises:
        InputError: Slurm is not here or refuses the job, or a task ended too often without an outcome.
            Otherwise what `work` raises.
    """
    if not items:
        return
    if absent := [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]:
        raise InputError(f"run_slurm needs {absent[0]} on the PATH; run on a node that may submit jobs")
    if _function_of(work).__module__ == "__main__":
        raise InputError(
            f"{_name_of(work)} is of the script that was started; tasks import it, so move it to a module"
        )
    job, needed = _open_job(Path(folder).absolute(), work, items)
    flags = {
        "job-name": _name_of(work),
        "partition": partition,
        "time": time_limit,
        "mem": mem,
        "cpus-per-task": str(cpus),
        **(options or {}),
    }
    submit = functools.partial(
        _submit, job, flags=flags, setup=setup, python=python, num_parallel=num_parallel
    )
    queue = _Queue(job, needed, num_queued, max_attempts, grace_seconds, submit)
    try:
        queue.start()
        seen = -1
        for place, index in enumerate(needed):
            while index not in queue.done:
                queue.update()
                if progress is not None and (num_done := queue.count_done()) > seen:
                    seen = num_done
                    progress(seen, len(items))
                if index not in queue.done:
                    time.sleep(poll_seconds)
            outcome = run_task.read_outcome(run_task.outcome_path(job, index))
            if isinstance(outcome, Failure):
                outcome.throw()
            if place + 1 == len(items):
                queue.cancel()
                shutil.rmtree(job)
            yield outcome
    except BaseException:
        queue.cancel()
        raise


@dataclass(frozen=True)
class SlurmStages:
    """An executor for stages that need different things of Slurm: `run_slurm` with options for each.

    Attributes:
        folder: as for `run_slurm`.
        options: long options of sbatch for all stages, without dashes.
        by_stage: others, by the first word of a stage's name; they come before `options`.

    Example:
        >>> execute = SlurmStages("/shared/jobs", {"mem": "8G"}, {"connect": {"mem": "40G"}})
        >>> execute.for_stage("connect").keywords["options"]
        {'mem': '40G'}
    """

    folder: str | Path
    options: Mapping[str, str] = field(default_factory=dict)
    by_stage: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __call__(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Generator[Result, None, None]:
        """Do some work with the options for all stages."""
        return run_slurm(work, items, folder=self.folder, options=self.options)

    def for_stage(self, name: str) -> "functools.partial[Generator[Any, None, None]]":
        """Give the executor of a stage."""
        options = {**self.options, **self.by_stage.get(name.partition(" ")[0], {})}
        return functools.partial(run_slurm, folder=self.folder, options=options)


def _function_of(work: Callable[..., Any]) -> Any:
    while isinstance(work, functools.partial):
        work = work.func
    return work


def _name_of(work: Callable[..., Any]) -> str:
    function = _function_of(work)
    name = str(getattr(function, "__name__", type(function).__name__))
    return "".join(x if x.isalnum() else "_" for x in name).strip("_") or "work"


def _same_work(one: Any, other: Any) -> bool:
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        same_values = (one.args, one.keywords) == (other.args, other.keywords)
        return same_values and _same_work(one.func, other.func)
    return bool(one == other)


def _open_job(
    folder: Path, work: Callable[[Item], Result], items: Sequence[Item]
) -> tuple[Path, Sequence[int]]:
    """Find the folder of the same work for these items and perhaps more, or make a new one.

    Returns:
        The folder, and where the items are among its own.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name, number = _name_of(work), 0
    while (job := folder / f"{name}-{number}").exists():
        number += 1
        if (job / "job.pickle").exists():
            try:
                had_work, had_items = run_task.read_job(job)
            except (AttributeError, ImportError):  # of other code, which has gone
                continue
            if _same_work(had_work, work) and (places := _places_of(items, had_items)) is not None:
                return job, places
    for part in ("arrays", "outcomes", "logs"):
        (job / part).mkdir(parents=True, mode=0o700)
    run_task.write_job(job, work, items)
    return job, range(len(items))


def _places_of(items: Sequence[Any], among: Sequence[Any]) -> Sequence[int] | None:
    """Give the place of every item, None where one is not there."""
    if list(items) == among:
        return range(len(items))
    try:
        places = {item: place for place, item in enumerate(among)}
        return [places[item] for item in items]
    except (KeyError, TypeError):  # not there, or not hashable
        return None


@dataclass
class _Queue:
    """What is done, submitted and missing of a job."""

    job: Path
    needed: Sequence[int]
    num_queued: int
    max_attempts: int
    grace_seconds: float
    submit: Callable[[Sequence[int]], str]
    done: set[int] = field(default_factory=set)
    _tasks: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Of each item that was submitted and not lost, its last array and the number of its task there."""
    _failed: set[int] = field(default_factory=set)
    _attempts: Counter[int] = field(default_factory=Counter)
    _gone_since: dict[int, float] = field(default_factory=dict)
    _answered: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Take up what an earlier call has left: outcomes, except errors, and arrays."""
        for path in self.job.glob("outcomes/*.pickle"):
            if isinstance(run_task.read_outcome(path), Failure):
                path.unlink()
        for path in sorted(self.job.glob("arrays/*.json"), key=lambda path: int(path.stem)):
            self._note(path.stem, read_json(path))
        self._look()

    def update(self) -> None:
        """Look for outcomes, see what was lost, submit what is missing."""
        self._look()
        queued = self._ask()
        if queued is None:
            return
        self._look()  # what ended between the look and the answer
        now = time.monotonic()
        gone = [i for i, task in self._tasks.items() if i not in self.done and task not in queued]
        self._gone_since = {i: self._gone_since.get(i, now) for i in gone}
        for index, since in sorted(self._gone_since.items()):
            if now - since >= self.grace_seconds:
                self._attempts[index] += 1
                if self._attempts[index] >= self.max_attempts:
                    raise InputError(self._fault(index))
                del self._tasks[index], self._gone_since[index]
        before_failure = itertools.takewhile(lambda i: i not in self._failed, self.needed)
        missing = [i for i in before_failure if i not in self.done and i not in self._tasks]
        room = self.num_queued - len(self._tasks.keys() - self.done)
        # Many small arrays would be a burden for Slurm.
        if missing and room >= min(len(missing), max(1, self.num_queued // 2)):
            for start in range(0, min(room, len(missing)), _ARRAY_TASKS):
                indices = missing[start : min(start + _ARRAY_TASKS, room)]
                self._note(self.submit(indices), indices)

    def count_done(self) -> int:
        """Count the items with an outcome."""
        return sum(index in self.done for index in self.needed)

    def cancel(self) -> None:
        """End the tasks that are queued or run."""
        if arrays := self._arrays():
            subprocess.run(["scancel", *arrays], check=False, capture_output=True)

    def _note(self, array: str, indices: Sequence[int]) -> None:
        self._tasks |= {index: (array, number) for number, index in enumerate(indices)}

    def _arrays(self) -> list[str]:
        return sorted({array for index, (array, _) in self._tasks.items() if index not in self.done})

    def _look(self) -> None:
        for path in self.job.glob("outcomes/*.pickle"):
            if path.name[0] != "." and (index := int(path.stem)) not in self.done:
                self.done.add(index)
                if isinstance(run_task.read_outcome(path), Failure):
                    self._failed.add(index)

    def _ask(self) -> set[tuple[str, int]] | None:
        """Give the tasks that are in Slurm's queue; None when it does not answer."""
        found = set()
        for array in self._arrays():
            command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"]
            asked = subprocess.run(command, check=False, capture_output=True, text=True)
            if asked.returncode != 0 and "Invalid job id" not in asked.stderr:
                if time.monotonic() - self._answered < _CONTACT_SECONDS:
                    return None
                raise InputError(
                    f"squeue fails ({asked.stderr.strip()}); run the same command again when Slurm answers: "
                    "what was finished is kept"
                )
            numbers = [line.strip().partition("_")[2] for line in asked.stdout.splitlines()]
            found |= {(array, int(number)) for number in numbers if number.isdigit()}
        self._answered = time.monotonic()
        return found

    def _fault(self, index: int) -> str:
        """Say why a task is given up, with the end of its last log."""
        array, number = self._tasks[index]
        log = self.job / "logs" / f"{array}_{number}.log"
        shown = ""
        if log.exists():
            lines = log.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace").strip().splitlines()
            shown = f"; {log} ends with: {' / '.join(lines[-3:])}"
        return (
            f"the task of item {index} ended {self._attempts[index]} times without an outcome, often for "
            f"want of memory or time{shown}; run the same command again with more mem or time_limit: "
            "what was finished is kept"
        )


def _submit(
    job: Path,
    indices: Sequence[int],
    *,
    flags: Mapping[str, str | None],
    setup: Sequence[str],
    python: str,
    num_parallel: int,
) -> str:
    """Submit an array with one task an item; give its id."""
    limit = f"%{num_parallel}" if num_parallel else ""
    command = [
        "sbatch",
        "--parsable",
        f"--array=0-{len(indices) - 1}{limit}",
        f"--output={job / 'logs' / '%A_%a.log'}",
        *(f"--{name}={value}" for name, value in flags.items() if value is not None),
    ]
    script = "\n".join(
        [
            "#!/bin/bash",
            *setup,
            f"items=({' '.join(map(str, indices))})",
            f"exec {shlex.quote(python)} -m pylm.data.executors.run_task {shlex.quote(str(job))} "
            '"${items[$SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    )
    done = subprocess.run(command, input=script, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(
            f"sbatch refuses the job ({' '.join(done.stderr.split())}); "
            "check partition, time_limit, mem, cpus and options"
        )
    array = done.stdout.strip().partition(";")[0]
    write_json(job / "arrays" / f"{array}.json", list(indices))
    return array
