"""`pylm dedup plan`: what a deduplication will take."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pylm.commands.dedup_options import (
    InputsArgument,
    KeepCopies,
    KeepCopiesOption,
    MinBytesOption,
    Shingle,
    TextColumnOption,
    bars,
    configure,
)

if TYPE_CHECKING:
    from pylm.data.dedup.plan import Plan

app = typer.Typer(
    help="Say what a command will take before it is run: time, memory, disk, splits and partitions. Measures "
    "a sample of the inputs on this machine.",
    no_args_is_help=True,
)

PlannedWorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes at one time, on all machines; 0: this one's cores.")
]
WorkerMemoryOption = Annotated[float, typer.Option("--worker-memory-gb", help="That each may take.")]
InputSizeOption = Annotated[
    float | None, typer.Option(help="Plan for so much of the same kind, on disk; else for the inputs.")
]
FileSizeOption = Annotated[
    int | None,
    typer.Option(
        "--file-mb", min=1, help="With --input-gb: mean size of its files; else that of the inputs'."
    ),
]
SampleOption = Annotated[
    int, typer.Option("--sample-mb", min=1, help="Size on disk of what is measured; more narrows ranges.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("near")
def plan_near_command(
    inputs: InputsArgument,
    text_column: TextColumnOption = "text",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity from which documents go.")] = 0.8,
    ngram: Annotated[int, typer.Option(min=1, help="Words, or characters, of a shingle.")] = 5,
    unit: Annotated[Shingle, typer.Option(help="What shingles are made of.")] = Shingle.word,
    num_perm: Annotated[int, typer.Option(min=2, help="Numbers of a signature.")] = 128,
    workers: PlannedWorkersOption = 0,
    worker_memory: WorkerMemoryOption = 4.0,
    input_gb: InputSizeOption = None,
    file_mb: FileSizeOption = None,
    sample_mb: SampleOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Say what `near` will take before it is run: time, memory, disk, splits and partitions."""
    from pylm.data.dedup import NearDedupConfig
    from pylm.data.dedup.plan import plan_near

    config = configure(
        NearDedupConfig,
        text_column=text_column,
        threshold=threshold,
        ngram=ngram,
        unit=unit.value,
        num_perm=num_perm,
    )
    _plan(plan_near, inputs, config, workers, worker_memory, input_gb, file_mb, sample_mb, as_json=as_json)


@app.command("substring")
def plan_substring_command(
    inputs: InputsArgument,
    text_column: TextColumnOption = "text",
    min_bytes: MinBytesOption = 100,
    keep: KeepCopiesOption = KeepCopies.first,
    workers: PlannedWorkersOption = 0,
    worker_memory: WorkerMemoryOption = 4.0,
    input_gb: InputSizeOption = None,
    file_mb: FileSizeOption = None,
    sample_mb: SampleOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Say what `substring` will take before it is run: time, memory, disk, splits and partitions."""
    from pylm.data.dedup import SubstringDedupConfig
    from pylm.data.dedup.plan import plan_substrings

    config = configure(
        SubstringDedupConfig, text_column=text_column, min_bytes=min_bytes, keep_copies=keep.value
    )
    _plan(
        plan_substrings, inputs, config, workers, worker_memory, input_gb, file_mb, sample_mb, as_json=as_json
    )


def _plan(
    plan: Callable[..., "Plan"],
    inputs: list[str],
    config: object,
    num_workers: int,
    worker_memory_gb: float,
    input_gb: float | None,
    file_mb: int | None,
    sample_mb: int,
    *,
    as_json: bool,
) -> None:
    import json

    from pylm.errors import InputError

    for option, number in (("--input-gb", input_gb), ("--worker-memory-gb", worker_memory_gb)):
        if number is not None and not 0 < number < float("inf"):
            raise InputError(f"{option} must be positive, got {number:g}")
    if file_mb is not None and input_gb is None:
        raise InputError("--file-mb is about the files of --input-gb; add that, or leave it out")
    with bars("plan") as progress:
        planned = plan(
            inputs,
            config,
            num_workers=num_workers,
            worker_memory_bytes=round(worker_memory_gb * 1e9),
            input_bytes=None if input_gb is None else round(input_gb * 1e9),
            file_bytes=None if file_mb is None else file_mb << 20,
            sample_bytes=sample_mb << 20,
            progress=progress,
        )
    typer.echo(json.dumps(planned.to_dict(), indent=1) if as_json else str(planned))
