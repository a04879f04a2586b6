"""One task of a Slurm array: `python -m pylm.data.executors.run_task FOLDER INDEX`.

Does the work that FOLDER holds for its item INDEX and leaves the outcome there. The content of FOLDER is
pickle and is run as code: it is refused unless it belongs to the user.
"""

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pylm.data.executors import Failure, Item, Result, attempt
from pylm.errors import InputError
from pylm.files import atomic_path


def write_job(folder: Path, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
    """Write `job.pickle`: where modules are found, then the work and its items."""
    with atomic_path(folder / "job.pickle") as temporary, temporary.open("wb") as file:
        pickle.dump([path or str(Path.cwd()) for path in sys.path], file)
        pickle.dump((work, list(items)), file)


def read_job(folder: Path, *, find_modules: bool = False) -> tuple[Callable[[Any], Any], list[Any]]:
    """Read `job.pickle`.

    Args:
        folder: of the job.
        find_modules: look for modules where the process that wrote it did.

    Returns:
        The work and its items.

    Raises:
        InputError: no such job, or one that belongs to another user.
    """
    path = folder / "job.pickle"
    if not path.is_file():
        raise InputError(f"{path}: no such file; FOLDER is a job folder that run_slurm has written")
    if path.stat().st_uid != os.getuid():
        raise InputError(f"{path}: belongs to another user, whose code it may be; use a folder of your own")
    with path.open("rb") as file:
        places = pickle.load(file)
        if find_modules:
            sys.path += [place for place in places if place not in sys.path]
        work, items = pickle.load(file)
    return work, items


def read_outcome(path: Path) -> Any:
    """Read the result of an item, or its `Failure`."""
    with path.open("rb") as file:
        return pickle.load(file)


def outcome_path(folder: Path, index: int) -> Path:
    """Give the place of the outcome of an item: a pickled result or `Failure`."""
    return folder / "outcomes" / f"{index}.pickle"


def run_task(folder: Path, index: int) -> bool:
    """Do the work for one item and write its outcome; say whether it is a result.

    Raises:
        InputError: no such job or item.
    """
    work, items = read_job(folder, find_modules=True)
    if not 0 <= index < len(items):
        raise InputError(f"INDEX must be one of the job's {len(items)} items, from 0, got {index}")
    outcome = attempt(work, items[index])
    try:
        content = pickle.dumps(outcome)
    except Exception as error:  # pickle raises what the objects do
        outcome = Failure(TypeError(f"the result of item {index} cannot be pickled: {error}"), "")
        content = pickle.dumps(outcome)
    if isinstance(outcome, Failure):
        print(outcome.trace, file=sys.stderr)  # noqa: T201, a log of Slurm's
    with atomic_path(outcome_path(folder, index)) as temporary:
        temporary.write_bytes(content)
    return not isinstance(outcome, Failure)


def main(arguments: Sequence[str]) -> int:
    """Run the task that the arguments name; give the exit code."""
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print("usage: python -m pylm.data.executors.run_task FOLDER INDEX", file=sys.stderr)  # noqa: T201
        return 2
    try:
        return 0 if run_task(Path(arguments[0]), int(arguments[1])) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
