"""`pylm dedup`: duplicates of a corpus in files, from the command line."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylm.commands import dedup_plan
from pylm.commands.dedup_options import (
    BadOption,
    DryRunOption,
    Engine,
    EngineOption,
    IndexOption,
    InputsArgument,
    Keep,
    KeepCopies,
    KeepCopiesOption,
    KeepOption,
    KeepWorkOption,
    MinBytesOption,
    NoAddOption,
    OutOption,
    PartitionsOption,
    PriorityOption,
    SbatchOption,
    Shingle,
    SplitOption,
    TextColumnOption,
    Unit,
    WorkersOption,
    bars,
    configure,
)

if TYPE_CHECKING:
    from pylm.data.executors import Executor

_SHOWN_CLUSTERS = 3
_SHOWN_CHARACTERS = 100
_BAR = 40
_STAGES = {
    "near": ("sign", "check", "match", "connect", "gather", "verify", "apply", "order", "add"),
    "exact": ("sign", "match", "apply"),
    "substring": (
        *("sign", "check", "find", "copies", "keys", "repeats", "contexts", "compare", "spans", "apply"),
        "add",
    ),
}
"""First words of the stages' names, in their order; `check`, `find`, `order` and `add` are of an index."""

app = typer.Typer(
    help="Remove duplicates from a corpus of Parquet files or JSON lines.", no_args_is_help=True
)
app.add_typer(dedup_plan.app, name="plan")


@app.command("near")
def near_command(
    inputs: InputsArgument,
    out: OutOption,
    text_column: TextColumnOption = "text",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity from which documents go.")] = 0.8,
    ngram: Annotated[int, typer.Option(min=1, help="Words, or characters, of a shingle.")] = 5,
    unit: Annotated[Shingle, typer.Option(help="What shingles are made of.")] = Shingle.word,
    num_perm: Annotated[int, typer.Option(min=2, help="Numbers of a signature.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the signatures.")] = 42,
    keep: KeepOption = Keep.first,
    priority: PriorityOption = None,
    index: IndexOption = "",
    no_add: NoAddOption = False,
    index_bits: Annotated[
        int | None,
        typer.Option(
            help="Of a shingle in a new index: 64, 32 (half as large), or 0 (a tenth; similarities are "
            "estimates). [default: 64]"
        ),
    ] = None,
    workers: WorkersOption = 0,
    executor: EngineOption = Engine.local,
    sbatch: SbatchOption = None,
    dry_run: DryRunOption = False,
    keep_work: KeepWorkOption = False,
    partitions: PartitionsOption = 0,
    split_mb: SplitOption = 128,
    verify_mb: Annotated[
        int, typer.Option(min=1, help="Text of a task that compares documents which resemble each other.")
    ] = 512,
    max_bad_fraction: BadOption = 0.01,
) -> None:
    """Remove documents that are nearly the same as one that stays.

    Compares sets of n-grams of words: MinHash finds candidates, the texts decide. A worker needs memory for
    one split or one partition, however large the corpus; one task, `connect`, for a table of all documents.

    With --index, next month's crawl is compared with itself and with all crawls before, without their texts.

    A call that was killed goes on where it was. The result does not depend on --workers and --partitions.
    """
    from pylm.data.dedup import NearDedupConfig, dedup_near

    _require_index(index, {"no-add": no_add, "index-bits": index_bits is not None})

    config = configure(
        NearDedupConfig,
        text_column=text_column,
        threshold=threshold,
        ngram=ngram,
        unit=unit.value,
        num_perm=num_perm,
        seed=seed,
        index=index,
        index_add=not no_add,
        index_bits=index_bits,
        keep=keep.value,
        priority=tuple(priority or ()),
        num_partitions=partitions,
        split_bytes=split_mb << 20,
        verify_bytes=verify_mb << 20,
        max_bad_fraction=max_bad_fraction,
    )

    engine = _engine("near", executor, workers, sbatch, out)
    _run("near", dedup_near, inputs, out, config, engine, dry_run=dry_run, keep_work=keep_work)


@app.command("exact")
def exact_command(
    inputs: InputsArgument,
    out: OutOption,
    text_column: TextColumnOption = "text",
    unit: Annotated[Unit, typer.Option(help="Compare texts, or addresses.")] = Unit.document,
    url_column: Annotated[str, typer.Option(help="Column with addresses, for --unit url.")] = "url",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Compare in lower case with white space collapsed.")
    ] = False,
    punctuation: Annotated[
        bool, typer.Option("--punctuation/--no-punctuation", help="Whether it counts with --normalize.")
    ] = True,
    keep: KeepOption = Keep.first,
    priority: PriorityOption = None,
    workers: WorkersOption = 0,
    executor: EngineOption = Engine.local,
    sbatch: SbatchOption = None,
    dry_run: DryRunOption = False,
    keep_work: KeepWorkOption = False,
    partitions: PartitionsOption = 0,
    split_mb: SplitOption = 128,
    max_bad_fraction: BadOption = 0.01,
) -> None:
    """Remove documents whose text, normalised text or address equals that of one that stays.

    Hashes of 128 bits are compared, 28 bytes a document. Resumes and scales as `near`.
    """
    from pylm.data.dedup import ExactDedupConfig, dedup_exact

    config = configure(
        ExactDedupConfig,
        text_column=text_column,
        unit=unit.value,
        url_column=url_column,
        normalize=normalize,
        punctuation=punctuation,
        keep=keep.value,
        priority=tuple(priority or ()),
        num_partitions=partitions,
        split_bytes=split_mb << 20,
        max_bad_fraction=max_bad_fraction,
    )

    engine = _engine("exact", executor, workers, sbatch, out)
    _run("exact", dedup_exact, inputs, out, config, engine, dry_run=dry_run, keep_work=keep_work)


@app.command("substring")
def substring_command(
    inputs: InputsArgument,
    out: OutOption,
    text_column: TextColumnOption = "text",
    min_bytes: MinBytesOption = 100,
    keep: KeepCopiesOption = KeepCopies.first,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Files, folders or globs of other texts, may be repeated: cut what occurs in these; what "
            "repeats in the corpus alone stays."
        ),
    ] = None,
    index: IndexOption = "",
    no_add: NoAddOption = False,
    index_gap: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a new index, which surely finds stretches of --min-bytes + gap - 1 bytes: 8 takes 1.6 "
            "times the text, 32 half of it, 100 a seventh. [default: 32]",
        ),
    ] = None,
    workers: WorkersOption = 0,
    executor: EngineOption = Engine.local,
    sbatch: SbatchOption = None,
    dry_run: DryRunOption = False,
    keep_work: KeepWorkOption = False,
    partitions: PartitionsOption = 0,
    split_mb: SplitOption = 128,
    partition_mb: Annotated[
        int, typer.Option(min=1, help="Memory of a worker that compares parts of all splits.")
    ] = 256,
    max_bad_fraction: BadOption = 0.01,
) -> None:
    """Cut stretches out of texts that occur more than once in the corpus.

    Documents of which nothing is left are left out. A worker needs memory for one split, or for a part of
    what several splits share, however large the corpus.

    With --index, what repeats crawls before goes as well, without their texts.

    A call that was killed goes on where it was. The result does not depend on --workers, --split-mb and
    --partition-mb, but for the files that documents are in.
    """
    from pylm.data.dedup import SubstringDedupConfig, dedup_substrings

    _require_index(index, {"no-add": no_add, "index-gap": index_gap is not None})
    config = configure(
        SubstringDedupConfig,
        text_column=text_column,
        min_bytes=min_bytes,
        keep_copies=keep.value,
        against=tuple(against or ()),
        index=index,
        index_add=not no_add,
        index_gap=index_gap,
        num_partitions=partitions,
        partition_bytes=partition_mb << 20,
        split_bytes=split_mb << 20,
        max_bad_fraction=max_bad_fraction,
    )

    engine = _engine("substring", executor, workers, sbatch, out)
    _run("substring", dedup_substrings, inputs, out, config, engine, dry_run=dry_run, keep_work=keep_work)


def _require_index(index: str, given: Mapping[str, bool]) -> None:
    from pylm.errors import InputError

    for option, is_given in given.items():
        if is_given and not index:
            raise InputError(f"--{option} is about an index; name its folder with --index")


@contextmanager
def _engine(
    command: str, kind: Engine, num_workers: int, sbatch: list[str] | None, out: str
) -> "Iterator[Executor | None]":
    """Open what runs the tasks of all stages; None lets the command choose."""
    from pylm.data.executors import LocalPool
    from pylm.errors import InputError

    options: dict[str, str] = {}
    by_stage: dict[str, dict[str, str]] = {}
    for option in sbatch or ():
        name, _, value = option.partition("=")
        stage, colon, own = name.partition(":")
        if kind is not Engine.slurm:
            raise InputError(f"--sbatch {option} is about --executor slurm; add that, or leave it out")
        if not value or not (own if colon else name):
            raise InputError(f"--sbatch takes NAME=VALUE, or STAGE:NAME=VALUE for one stage, got {option!r}")
        if colon and stage not in _STAGES[command]:
            known = ", ".join(_STAGES[command])
            raise InputError(f"--sbatch {option}: no stage {stage!r}; those of {command} are {known}")
        (by_stage.setdefault(stage, {}) if colon else options)[own if colon else name] = value
    if num_workers and kind is not Engine.local:
        raise InputError("--workers counts processes of this machine; the cluster decides with --executor")
    if kind is Engine.local and not num_workers:
        yield None
    elif kind is Engine.local:
        with LocalPool(num_workers) as pool:
            yield pool
    elif kind is Engine.ray:
        from pylm.data.executors.ray import run_ray

        yield run_ray
    else:
        from pylm.data import storage
        from pylm.data.executors.slurm import SlurmStages

        if "://" in out:
            raise InputError("--executor slurm needs --out on a file system that all nodes share")
        yield SlurmStages(storage.join(out, "work", "slurm"), options, by_stage)


def _run(
    command: str,
    dedup: Callable[..., dict[str, Any]],
    inputs: Sequence[str],
    out: str,
    config: object,
    engine: "AbstractContextManager[Executor | None]",
    **options: bool,
) -> None:
    """Run with a bar for every stage, and print what a user looks at first."""
    started_s, has_begun = time.monotonic(), False
    with engine as execute, bars(command) as show:

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal has_begun
            has_begun = True
            show(stage, done, total)

        report = dedup(inputs, out, config, execute=execute, progress=progress, **options)
    for warning in report["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    if not has_begun:
        typer.echo(_nothing_to_do(report, out))
        return
    typer.echo(f"dedup {command}: {time.monotonic() - started_s:.1f} s", err=True)
    _show(report, out)


def _nothing_to_do(report: dict[str, Any], out: str) -> str:
    added = f", and {report['index']['folder']} has its texts" if report.get("index", {}).get("added") else ""
    return (
        f"nothing to do: {out} holds the complete result of this command{added} "
        f"({report['documents']:,} documents read, {report['left']['documents']:,} left); "
        f"report: {out}/report.json"
    )


def _show(report: dict[str, Any], out: str) -> None:
    """Print a report's main numbers."""
    documents, size, left = report["documents"], report["bytes"], report["left"]
    rows = [("read", documents, size)]
    rows += [
        (f"{reason} duplicates", -counts["documents"], -counts["bytes"])
        for reason, counts in report.get("removed", {}).items()
        if counts["documents"] or reason == report["command"]
    ]
    if "spans" in report:
        rows.append(("repeated substrings", -report["emptied_documents"], -report["removed_bytes"]))
    rows.append(("left", left["documents"], left["bytes"]))
    unit, shown = (1e6, "MB") if size >= 1e7 else (1e3, "kB")
    lines = [
        f"{name:<20}{number:>14,}{_percent(number, documents):>9}{x / unit:>13,.1f} {shown}"
        f"{_percent(x, size):>9}"
        for name, number, x in rows
    ]
    if report["bad_lines"]:
        lines.append(f"{'lines left out':<20}{report['bad_lines']:>14,}  (no documents; see dropped.jsonl)")
    lines += _histogram(report.get("similarities", []))
    for cluster in report.get("largest_clusters", [])[:_SHOWN_CLUSTERS]:
        kept = cluster["kept"]
        if "index_document" in kept:
            place, text = f"document {kept['index_document']:,} of the index", cluster["removed"][0]["text"]
        else:
            place, text = f"{kept['file']} row {kept['row']:,}", kept["text"]
        lines.append(f"{cluster['size']:,} alike: {place}: {_head(text)}")
    for span in report.get("longest", [])[:_SHOWN_CLUSTERS]:
        place = f"{span['file']} row {span['row']:,}"
        lines.append(f"{span['end'] - span['start']:,} bytes of {place}: {_head(span['text'])}")
    if "index" in report:
        index = report["index"]
        cut = f", {index['bytes']:,} bytes cut for them" if "bytes" in index else ""
        lines.append(f"{index['folder']}: {index['texts']:,} texts before{cut}, {index['added']:,} added")
    what = "dry run, no documents written" if report["dry_run"] else f"{out}/documents"
    lines.append(f"{what}; report: {out}/report.json")
    typer.echo("\n".join(lines))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _head(text: str) -> str:
    return " ".join(text.split())[:_SHOWN_CHARACTERS]


def _histogram(bins: Sequence[dict[str, Any]]) -> list[str]:
    """Draw the similarities in steps of 0.05."""
    steps: dict[int, int] = {}
    for entry in bins:
        step = min(19, round(entry["from"] * 100) // 5)
        steps[step] = steps.get(step, 0) + entry["documents"]
    most = max(steps.values(), default=0)
    return [
        f"similarity {step / 20:.2f}-{(step + 1) / 20:.2f}  {number:>12,}  {'#' * -(-_BAR * number // most)}"
        for step, number in sorted(steps.items())
    ]
