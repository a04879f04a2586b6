"""What deduplications of a corpus share: their folder, their stages, the last of which writes survivors.

    OUT/
        dedup.json              what is made here, and whether it is complete
        documents/SSSSS.parquet survivors of a split, with all columns
        removed/SSSSS.parquet   what went, in favour of what, and why
        report.json funnel.json dropped.jsonl
        work/                   files of the stages, removed at the end

A stage is one function over numbered items. Each item leaves one file, written as a whole, whose presence
says that it is done; names and folders cover all that a file depends on. So a run that was killed goes on
with what is missing, and another recipe never takes a file for its own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from pylm.data import storage
from pylm.data.dedup.corpus import Split, list_splits, local_path, total_bytes
from pylm.data.dedup.indexed import (
    Crawl,
    Known,
    Wanted,
    list_sources,
    open_known,
    place_of,
    require_not_added,
)
from pylm.data.dedup.lease import hold_remote
from pylm.data.dedup.places import (
    documents_path,
    remove_unfinished,
    removed_path,
    require_apart,
    require_empty,
    require_outside,
)
from pylm.data.dedup.priorities import check_kinds, check_values
from pylm.data.dedup.signing import (
    FORMAT,
    CorpusConfig,
    Part,
    load_parts,
    save_parts,
    sign,
)
from pylm.data.executors import Executor, LocalPool, Staged
from pylm.data.funnel import Funnel, FunnelStep, Tally
from pylm.data.readers import EXPECTED, line_of
from pylm.errors import InputError
from pylm.files import lock_folder

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a stage, finished and all of its items."""

PARTITION_BYTES = 2 << 30
LEAST_PARTITIONS = 8
SHOWN_CHARACTERS = 300
"""Of a text, in reports."""

_SMALL_BYTES = 32 << 20
"""Of input on disk, which is done in the time that processes take to start."""
_RESULTS = ("report.json", "funnel.json", "dropped.jsonl")


@dataclass
class Run:
    """A deduplication of a corpus into a folder.

    Attributes:
        command: "near", "exact" or "substring".
        out: the folder.
        inputs: as the user named them.
        config: the recipe.
        splits: of the corpus.
        execute: does the stages' work.
        progress: called with a stage, finished and all of its items.
        against: other texts that the corpus is compared with, named as the inputs are.
        sources: splits of these.
        check_held: raises InputError once another run has taken the folder.
        known: the index that the corpus is compared with, if there is one.
        layout: fields of the recipe that an earlier call decided, and which the result does not depend on.
        warnings: what the user should look at.
    """

    command: str
    out: str
    inputs: Sequence[str]
    config: CorpusConfig
    splits: Sequence[Split]
    execute: Executor
    progress: Progress
    against: Sequence[str] = ()
    sources: Sequence[Split] = ()
    check_held: Callable[[], None] = lambda: None
    known: Known | None = field(init=False, default=None)
    layout: dict[str, Any] = field(init=False, default_factory=dict)
    warnings: list[str] = field(init=False, default_factory=list)
    _is_old: bool = field(init=False, default=False)

    @property
    def num_partitions(self) -> int:
        """Those of the recipe, or a power of two: a growing corpus mostly keeps what was signed."""
        if self.config.num_partitions:
            return self.config.num_partitions
        num_partitions, size = LEAST_PARTITIONS, self._size
        while num_partitions * PARTITION_BYTES < size:
            num_partitions *= 2
        return num_partitions

    @cached_property
    def _size(self) -> int:
        return total_bytes(self.splits)

    @property
    def work(self) -> str:
        """Folder of the stages' files."""
        return storage.join(self.out, "work")

    def fingerprint(self, state: str = "") -> str:
        """Hash all that the result depends on; `state` is that of an index, its parameters included."""
        names = [split.name(FORMAT) for split in [*self.splits, *self.sources]]
        sources = [split.source for split in [*self.splits, *self.sources]]
        recipe = self.config.model_dump_json(exclude={*self.config.layout, *self.config.allowed})
        return _hash((FORMAT, self.command, recipe, names, sources, state))

    def begin(self, wanted: Wanted | None = None, *, dry_run: bool = False) -> bool:
        """Take possession of the folder; say whether it holds the complete result already.

        Results of another recipe stay until there is something to put in their place (`apply`); files of its
        stages that this one shares are kept.

        Args:
            wanted: the index that the corpus is compared with.
            dry_run: whether no documents are written, so that none may go either.

        Raises:
            InputError: the folder holds something else, a result of another command, or one that an index
                says is there; or the index has the corpus already.
        """
        state, crawl = "", None
        if wanted is not None:
            sources = list_sources(self.splits)
            self.known, crawl = open_known(wanted, sources, self.out, self.fingerprint)
            state = self.known.state
        marker, fingerprint = storage.join(self.out, "dedup.json"), self.fingerprint(state)
        self._fingerprint = fingerprint
        known = storage.read_json(marker) if storage.exists(marker) else {}
        is_same = known.get("fingerprint") == fingerprint and known["status"] != "clearing"
        if is_same and crawl is not None:
            # What was compared before the crawl was added cannot be compared again.
            self.layout = {name: known["config"][name] for name in self.config.layout}
            self.config = self.config.model_copy(update=self.layout)
        self.signing = self.config.signing(self.num_partitions, self.work)
        layout = [self.num_partitions, *(getattr(self.config, name) for name in self.config.layout)]
        self.folder = storage.join(self.work, _hash((fingerprint, layout)))
        self.parts_path = storage.join(self.folder, "parts.json")
        self.sources_path = storage.join(self.folder, "sources.json") if self.sources else ""
        if not known:
            require_empty(self.out)
        if is_same:
            is_added = crawl is not None and crawl.is_complete
            missing = wanted is not None and wanted.adds and not is_added
            if known["status"] == "complete" and not missing and self._has_results():
                return True
            self._mark("running")
            return False
        if known and known["command"] != self.command:
            raise InputError(
                f"{self.out}: holds a result of `pylm dedup {known['command']}`; choose another folder, or "
                "remove this one yourself"
            )
        if known:
            require_not_added(self.out, known)
        if dry_run and storage.list_files(storage.join(self.out, "documents")):
            raise InputError(
                f"{self.out}: holds documents of another recipe, which a dry run would take away; choose "
                "another folder"
            )
        self._is_old = bool(known)
        if not known:
            self._mark("running")
        return False

    def reopen(self) -> None:
        """Say that a complete report becomes a result."""
        self._mark("running")

    def _clear(self) -> None:
        """Remove the results of another recipe, and outcomes of jobs that made them."""
        if self._is_old:
            self._mark("clearing")
            for name in _RESULTS:
                storage.remove(storage.join(self.out, name))
            for name in ("documents", "removed", "work/slurm"):
                storage.remove_folder(storage.join(self.out, *name.split("/")))
            self._mark("running")
        self._is_old = False

    def finish(self, *, keep_work: bool) -> None:
        """Say that the result is complete, and remove the files of the stages."""
        for name in ("documents", "removed"):
            remove_unfinished(storage.join(self.out, name))
        self._mark("complete")
        if not keep_work:
            storage.remove_folder(self.work)

    def _mark(self, status: str) -> None:
        about = {
            "status": status,
            "command": self.command,
            "fingerprint": self._fingerprint,
            "inputs": list(self.inputs),
            "config": self.config.model_dump(mode="json"),
        }
        storage.write_json(storage.join(self.out, "dedup.json"), about)

    def crawl(self, known: Known) -> Crawl:
        """Describe the corpus for the index that it is about to be added to."""
        return Crawl(
            fingerprint=self._fingerprint,
            state=known.state,
            first=known.num_texts,
            num_texts=0,
            out=place_of(self.out),
            inputs=tuple(self.inputs),
            sources=list_sources(self.splits),
            is_complete=False,
            files=(),
        )

    def _has_results(self) -> bool:
        report = storage.join(self.out, "report.json")
        if not storage.exists(report):
            return False
        files = storage.read_json(report)["files"]
        return all(
            {storage.join(self.out, x[name]) for x in files}
            <= set(storage.list_files(storage.join(self.out, name)))
            for name in ("documents", "removed")
        )

    def stage(
        self,
        name: str,
        work: Callable[[Any], object],
        outputs: Sequence[str],
        items: Sequence[Any] | None = None,
    ) -> None:
        """Do the work of the items whose file is not there yet.

        Args:
            name: for the display.
            work: a module's function, or a `partial` of one; writes the file of an item.
            outputs: the file of every item.
            items: 0, 1, ... where None.
        """
        folders = dict.fromkeys(path.rpartition("/")[0] for path in outputs)
        there = {path for folder in folders for path in storage.list_files(folder)}
        numbered = range(len(outputs)) if items is None else items
        waiting = [item for item, path in zip(numbered, outputs, strict=True) if path not in there]
        done = len(outputs) - len(waiting)
        self.progress(name, done, len(outputs))
        self.check_held()
        execute = self.execute.for_stage(name) if isinstance(self.execute, Staged) else self.execute
        for _ in execute(work, waiting):
            self.check_held()
            done += 1
            self.progress(name, done, len(outputs))

    def sign(self) -> Tally:
        """Sign all splits and number their documents.

        Returns:
            The lines of the corpus that were no documents.

        Raises:
            InputError: no documents, too many such lines, or priorities that do not compare.
        """
        signing, splits = self.signing, [*self.splits, *self.sources]
        done = [signing.done(split) for split in splits]
        self.stage("sign", partial(sign, signing=signing), done, splits)
        counts = [storage.read_json(path) for path in done]
        rules, kinds = self.config.rules, [x["kinds"] for x in counts]
        check_kinds(rules, kinds, [split.path for split in splits])
        has_columns = any(split.kind == "parquet" for split in splits)
        self.warnings += check_values(rules, kinds, [x["values"] for x in counts], has_columns=has_columns)
        tally = self._number(self.splits, counts[: len(self.splits)], self.parts_path, self.inputs)
        if self.sources:
            self._number(self.sources, counts[len(self.splits) :], self.sources_path, self.against)
        return tally

    def _number(
        self, splits: Sequence[Split], counts: Sequence[dict[str, Any]], path: str, inputs: Sequence[str]
    ) -> Tally:
        tally = Tally()
        for counted in counts:
            tally.merge(counted["tally"])
        self._check_bad_rows(splits, counts, tally)
        parts: list[Part] = []
        first, file_row = 0, {split.path: 0 for split in splits}
        for split, counted in zip(splits, counts, strict=True):
            start, stop = (0, None) if split.is_copied else (split.start, split.stop)
            for number, counts_of_part in enumerate(counted["parts"]):
                num_docs = counts_of_part["documents"]
                part = Part(
                    split=split,
                    blocks=self.signing.blocks(split, number),
                    path=self.signing.documents(split, number),
                    start=start,
                    stop=stop,
                    first=first,
                    num_docs=num_docs,
                    num_bytes=counts_of_part["bytes"],
                    num_compared=counts_of_part["compared"],
                    file_row=file_row[split.path],
                )
                parts.append(part)
                first, file_row[split.path] = first + num_docs, part.file_row + num_docs
        if not first:
            fault = self._say_bad_rows(tally, list(tally.documents), "none is a document")
            raise InputError(fault or f"{', '.join(inputs)}: no documents; check the inputs")
        if not storage.exists(path):
            save_parts(path, parts)
        return tally

    def _check_bad_rows(
        self, splits: Sequence[Split], counts: Sequence[dict[str, Any]], tally: Tally
    ) -> None:
        """Refuse an input of which too many lines are no documents."""
        for source in dict.fromkeys(split.source for split in splits):
            num_docs = sum(
                part["documents"]
                for counted, split in zip(counts, splits, strict=True)
                if split.source == source
                for part in counted["parts"]
            )
            bad = [key for key in tally.documents if key[2] == source]
            num_bad = sum(tally.documents[key] for key in bad)
            most = self.config.max_bad_fraction
            if num_bad > most * (num_docs + num_bad):
                why = (
                    f"{num_bad} of {num_docs + num_bad} lines of {source} are no documents, and a share of "
                    f"{most:g} may be left out; --max-bad-fraction raises that"
                )
                raise InputError(self._say_bad_rows(tally, bad, why))

    def _say_bad_rows(self, tally: Tally, keys: Sequence[tuple[str, str, str]], why: str) -> str:
        """Show one of the most frequent lines that are no documents; "" where there are none."""
        if not keys:
            return ""
        key = min(keys, key=lambda key: -tally.documents[key])
        place, shown = tally.samples[key][0]
        expected = EXPECTED[key[1]].format(field=self.config.text_column)
        return f"{line_of(place)}: {expected}, got {shown!r} ({why})"

    def apply(self, work: Callable[[tuple[int, str]], None], *, dry_run: bool) -> list[dict[str, Any]]:
        """Do the last stage.

        Args:
            work: gets a part's number and the path of a JSON file, and writes that file last, the part's
                documents before.
            dry_run: whether it writes no documents.

        Returns:
            What is in the JSON file of every part.
        """
        self.check_held()
        self._clear()
        folder = storage.join(self.folder, "found" if dry_run else "applied")
        outputs = [storage.join(folder, f"{i:05d}.json") for i in range(len(load_parts(self.parts_path)))]
        names = ("removed",) if dry_run else ("documents", "removed")
        there = {path for name in names for path in storage.list_files(storage.join(self.out, name))}
        for number, path in enumerate(outputs):
            written = {removed_path(self.out, number)}
            if not dry_run:
                written.add(documents_path(self.out, number))
            if not written <= there:
                storage.remove(path)
        self.stage("apply", work, outputs, list(enumerate(outputs)))
        return [storage.read_json(path) for path in outputs]


def _hash(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(repr(content).encode("utf-8", "surrogateescape"))


def places_of(parts: Sequence[Part], docs: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.int64]]:
    """Give the file of documents, and their rows in it (of JSON lines, among its documents)."""
    firsts = np.array([part.first for part in parts])
    number = np.searchsorted(firsts, docs, side="right") - 1
    rows = docs - firsts[number] + np.array([part.file_row for part in parts])[number]
    used, index = np.unique(number, return_inverse=True)
    files = pa.DictionaryArray.from_arrays(
        pa.array(index.astype(np.int32)), pa.array([parts[i].split.path for i in used], pa.string())
    )
    return files.dictionary_decode(), rows


def run_dedup(
    command: str,
    inputs: Sequence[str],
    out: str,
    config: CorpusConfig,
    work: Callable[[Run, Tally], tuple[Sequence[str], dict[str, Any]]],
    *,
    execute: Executor | None,
    progress: Progress | None,
    dry_run: bool,
    keep_work: bool,
    against: Sequence[str] = (),
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Run all stages of a deduplication and report.

    Args:
        command: its name.
        inputs: as the user named them.
        out: folder for the result.
        config: the recipe.
        work: does all stages but the signing; counts what goes in the tally, by steps of the funnel; gives
            the names of those steps and what is to be reported.
        execute: does the work of a stage's items; None for the cores of this machine, or for this process
            where the input is small.
        progress: called with a stage, finished and all of its items.
        dry_run: whether no documents are written.
        keep_work: keep the files of the stages.
        against: other texts, named as the inputs are, that the corpus is compared with.
        wanted: the index that it is compared with.

    Returns:
        What report.json says.

    Raises:
        InputError, OSError: as `near.dedup_near`.
    """
    if not inputs:
        raise InputError("no inputs; give files, folders or globs of Parquet or JSON lines")
    if not out:
        raise InputError("out must name a folder")
    warnings: list[str] = []
    listed = partial(
        list_splits,
        columns=config.columns(),
        split_bytes=config.split_bytes,
        cut_groups=config.cuts_groups,
        warn=warnings.append,
    )
    splits, sources = listed(inputs), listed(against)
    require_outside(out, [*inputs, *against], [*splits, *sources])
    if wanted is not None:
        require_apart(wanted.folder, out, [*splits, *sources])
    with (
        _hold(out) as check,
        _leave_nothing(out, check),
        wanted.hold() if wanted else nullcontext(),
        LocalPool(1 if total_bytes([*splits, *sources]) < _SMALL_BYTES else 0) as pool,
    ):
        told = progress or _no_progress
        run = Run(command, out, inputs, config, splits, execute or pool, told, against, sources, check)
        run.warnings += warnings
        report_path = storage.join(out, "report.json")
        if run.begin(wanted, dry_run=dry_run):
            report: dict[str, Any] = storage.read_json(report_path)
            if report["dry_run"] <= dry_run:
                if not (keep_work or dry_run):
                    storage.remove_folder(run.work)  # where the end was cut off
                return report
            run.reopen()
        tally = run.sign()
        steps, found = work(run, tally)
        parts = load_parts(run.parts_path)
        funnel = _funnel(steps, parts, tally)
        storage.write_json(storage.join(out, "funnel.json"), funnel.to_dict())
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in tally.sample_rows())
        with storage.publish(storage.join(out, "dropped.jsonl")) as temporary:
            temporary.write_text(lines, encoding="utf-8")
        report = {
            "command": command,
            "dry_run": dry_run,
            "inputs": list(inputs),
            "config": config.model_dump(mode="json"),
            "documents": sum(part.num_docs for part in parts),
            "bytes": sum(part.num_bytes for part in parts),
            "bad_lines": sum(number for key, number in tally.documents.items() if key[0] == "read"),
            "left": {"documents": funnel.steps[-1].documents, "bytes": funnel.steps[-1].bytes},
            **found,
            "warnings": run.warnings,
            "files": [] if dry_run else [_describe(number, part) for number, part in enumerate(parts)],
        }
        storage.write_json(report_path, report)
        run.finish(keep_work=keep_work or dry_run)
        return report


@contextmanager
def _hold(out: str) -> Iterator[Callable[[], None]]:
    """Hold a folder for this process alone; give what raises InputError where it was lost."""
    if not storage.is_local(out):
        with hold_remote(out) as check:
            yield check
        return
    with lock_folder(local_path(out)):
        yield lambda: None


@contextmanager
def _leave_nothing(out: str, check_held: Callable[[], None]) -> Iterator[None]:
    """Where a run is refused before it has signed anything, remove what it wrote until then."""
    marker, work = storage.join(out, "dedup.json"), storage.join(out, "work")
    is_new = not storage.exists(marker)
    try:
        yield
    except InputError:
        is_ours = is_new and storage.exists(marker)  # which is written to an empty folder only
        if is_ours and not storage.list_files(storage.join(work, "signed")):
            check_held()  # else it is that of the run that has taken the folder
            storage.remove(marker)
            storage.remove_folder(work)
        raise


def _no_progress(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _funnel(steps: Sequence[str], parts: Sequence[Part], tally: Tally) -> Funnel:
    def dropped(step: str) -> tuple[int, int]:
        keys = [key for key in tally.documents if key[0] == step]
        return sum(tally.documents[key] for key in keys), sum(tally.sizes[key] for key in keys)

    documents, size = sum(part.num_docs for part in parts), sum(part.num_bytes for part in parts)
    bad, bad_size = dropped("read")
    left = [FunnelStep("read", documents + bad, size + bad_size)]
    for step in steps:
        number, bytes_dropped = dropped(step)
        documents, size = documents - number, size - bytes_dropped
        left.append(FunnelStep(step, documents, size))
    return Funnel(tuple(left), tally.drops())


def _describe(number: int, part: Part) -> dict[str, Any]:
    """Name the files of a split."""
    return {
        "input": part.split.path,
        "first_row": part.file_row,
        "num_rows": part.num_docs,
        "documents": documents_path("", number),
        "removed": removed_path("", number),
    }
