"""Options that commands of `pylm dedup` share, and what they do with them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer


class Keep(StrEnum):
    """Which of several copies stays."""

    first = "first"
    longest = "longest"


class KeepCopies(StrEnum):
    """Which occurrences of a repeated stretch stay."""

    first = "first"
    none = "none"


class Unit(StrEnum):
    """What is compared for equality."""

    document = "document"
    url = "url"


class Engine(StrEnum):
    """What runs the stages' tasks."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


class Shingle(StrEnum):
    """What shingles are made of."""

    word = "word"
    char = "char"


InputsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders or globs: .parquet, .jsonl (.gz, .zst); local or URLs such as s3://."
    ),
]
OutOption = Annotated[
    str, typer.Option("--out", "-o", help="Folder for documents/, removed/ and report.json; empty at first.")
]
TextColumnOption = Annotated[str, typer.Option(help="Column, or field of JSON lines, that holds the text.")]
KeepOption = Annotated[
    Keep, typer.Option(help="Which copy stays: the first in the order of the inputs, or the longest.")
]
PriorityOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Decides before --keep, may be repeated: COLUMN (the largest or latest stays), -COLUMN "
        "(the least), COLUMN=a,b,c (a before b before c before others)."
    ),
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes; 0 takes all cores, or one for small inputs.")
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--executor",
        help="Processes of this machine, tasks of a Ray cluster (RAY_ADDRESS names one), or Slurm arrays.",
    ),
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE of sbatch, may be repeated, for --executor slurm: mem=8G, time=02:00:00; "
        "STAGE:NAME=VALUE for one stage (the first word of its bar): connect:mem=40G."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Find and report, but write no documents.")]
KeepWorkOption = Annotated[
    bool, typer.Option("--keep-work", help="Keep work/, so that a later call with more inputs is faster.")
]
PartitionsOption = Annotated[
    int, typer.Option(min=0, help="Parts that keys are sorted in; more take less memory each. 0 chooses.")
]
SplitOption = Annotated[int, typer.Option("--split-mb", min=1, help="Size on disk of what a worker takes.")]
BadOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of JSON lines that may be no documents.")
]
MinBytesOption = Annotated[int, typer.Option(min=1, help="Least length of a repeated stretch.")]
KeepCopiesOption = Annotated[
    KeepCopies, typer.Option(help="Which occurrences stay: the first in the corpus, or none.")
]
IndexOption = Annotated[
    str,
    typer.Option(
        "--index",
        help="Folder of an index of earlier crawls, on a file system that all workers see; made where there "
        "is none. What it has goes too, and what is new is added. To take a crawl out, make a new one of the "
        "others.",
    ),
]
NoAddOption = Annotated[bool, typer.Option("--no-add", help="Leave the index as it is.")]


_OPTIONS = {
    "num_partitions": "partitions",
    "split_bytes": "split-mb",
    "verify_bytes": "verify-mb",
    "partition_bytes": "partition-mb",
    "keep_copies": "keep",
}
"""Options that are not called as the fields of the recipes are."""


def configure(kind: Any, **options: object) -> Any:
    """Make a configuration; say in one line what is wrong with an option."""
    from pydantic import ValidationError

    from pylm.errors import InputError

    try:
        config = kind(**options)
    except ValidationError as error:
        fault = error.errors()[0]
        field = str(fault["loc"][0])
        name = _OPTIONS.get(field, field.replace("_", "-"))
        raise InputError(f"--{name}: {fault['msg'].lower()}, got {fault['input']!r}") from error
    config.rules  # noqa: B018 - says what is wrong with the priorities
    return config


@contextmanager
def bars(command: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give what shows a bar for every stage, one after the other."""
    from pylm.train.progress import Progress as Bar

    with ExitStack() as stack:
        shown: dict[str, Bar] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                stack.close()
                shown[stage] = stack.enter_context(Bar(total, f"dedup {command}: {stage}"))
            shown[stage].update(done)

        yield progress
