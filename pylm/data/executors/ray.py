"""Launcher of the same work over many items: tasks of a Ray cluster."""

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from pylm.data.executors import Failure, Item, Result, attempt
from pylm.errors import InputError


def run_ray(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    address: str | None = None,
    cpus: float = 1.0,
    memory_bytes: int | None = None,
    num_in_flight: int = 0,
    max_retries: int = 5,
    runtime_env: Mapping[str, Any] | None = None,
) -> Generator[Result, None, None]:
    """Do some work for every item as tasks of a Ray cluster.

    A task whose node or process is lost is done again elsewhere. When a result is an error, or the caller
    stops or is interrupted, the tasks that run are ended at once.

    Args:
        work: function of a module that the nodes have installed (pylm too), or a `partial` of one.
        items: what to give it, one at a time.
        address: of the cluster, as `ray.init` takes it; by default the session that is open, else the one
            that `RAY_ADDRESS` names, else a new one on this machine, which ends with the work.
        cpus: cores that a task takes.
        memory_bytes: memory that a task takes, for Ray to place no more tasks on a node than it holds.
        num_in_flight: tasks that are submitted and not done at one time, at most; 0 takes two for each place
            of the cluster and 16 more, so that a cluster which grows by demand does.
        max_retries: times that a task is done again after its node or process was lost. Ray does not count
            those that its memory monitor ends.
        runtime_env: what Ray prepares on the nodes (`{"working_dir": ".", "pip": [...]}`).

    Yields:
        Results in the order of the items.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or a task was lost too often. Otherwise
            what `work` raises.
    """
    ray = _import_ray()
    if not items:
        return
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster at address={address!r} ({error}); start one with `ray start --head`, "
                "or give the address that it printed"
            ) from error
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "max_retries": max_retries,
        "scheduling_strategy": "SPREAD",
        "name": _name_of(work),
        **({"memory": memory_bytes} if memory_bytes else {}),
        **({"runtime_env": dict(runtime_env)} if runtime_env else {}),
    }
    try:
        task = ray.remote(attempt).options(**options)
        yield from _run(ray, task, work, items, cpus, num_in_flight)
    finally:
        if ours:
            ray.shutdown()


def _run(
    ray: Any,
    task: Any,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    cpus: float,
    num_in_flight: int,
) -> Generator[Result, None, None]:
    """Keep a bounded number of tasks in flight and give their results in order."""
    shared = ray.put(work)
    running: dict[Any, int] = {}
    done: dict[int, Result | Failure] = {}
    submitted, failed = 0, False
    try:
        for number in range(len(items)):
            while number not in done:
                room = num_in_flight or _places(ray, cpus)
                while not failed and submitted < len(items) and len(running) < room:
                    running[task.remote(shared, items[submitted])] = submitted
                    submitted += 1
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    index = running.pop(reference)
                    done[index] = outcome = _result_of(ray, reference, index)
                    failed = failed or isinstance(outcome, Failure)
            outcome = done.pop(number)
            if isinstance(outcome, Failure):
                outcome.throw()
            else:
                yield outcome
    finally:
        for reference in running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True)


def _places(ray: Any, cpus: float) -> int:
    slots = float(ray.cluster_resources().get("CPU", 1.0)) / max(cpus, 0.01)
    return 2 * math.ceil(slots) + 16


def _result_of(ray: Any, reference: Any, index: int) -> Any:
    """Give a result; a task that was lost too often is a failure in its place."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # Ray itself failed around the work: arguments, imports
        return Failure(error.cause if isinstance(error.cause, Exception) else error, str(error))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        lost = InputError(
            f"the task of item {index} was lost ({type(error).__name__}: {reason}), often for want of memory "
            "or because its node went away; run the same command again with memory_bytes set to what a task "
            "takes, or a higher max_retries: what was finished is kept"
        )
        return Failure(lost, str(error))


def _name_of(work: Callable[[Any], Any]) -> str:
    inner = getattr(work, "func", work)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions  # a folder of that name can be imported too, but holds none
    except ImportError as error:
        raise InputError(
            f"run_ray needs Ray ({error}); pip install 'pylm-llm[ray]', or run with local processes"
        ) from error
    return ray
