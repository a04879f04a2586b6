"""Repeated substrings of a corpus in files: from inputs to documents without them and a report.

OUT/documents/SSSSS.parquet  documents of a split without the repeats; emptied ones are left out
OUT/removed/SSSSS.parquet    what was cut: file, row, document, start and end in bytes; with an index, how
                             many of these bytes it has
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm.data import storage
from pylm.data.dedup.adding import report_index
from pylm.data.dedup.blocks import read_arrays
from pylm.data.dedup.corpus import open_parquet, parquet_out, read_rows, texts_of
from pylm.data.dedup.indexed import Seen, warn_of_copies
from pylm.data.dedup.places import documents_path, removed_path
from pylm.data.dedup.run import (
    SHOWN_CHARACTERS,
    Progress,
    Run,
    places_of,
    run_dedup,
)
from pylm.data.dedup.signing import Part, check_unchanged, load_parts
from pylm.data.dedup.substring_stages import SubstringDedupConfig, find_spans
from pylm.data.executors import Executor
from pylm.data.funnel import Tally
from pylm.text import dedup

STEP = "repeated substrings"
NUM_LONGEST = 20
_REMOVED = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
    ]
)
_INDEX_COLUMN = pa.field("index_bytes", pa.int64())


def dedup_substrings(
    inputs: Sequence[str],
    out: str,
    config: SubstringDedupConfig,
    *,
    execute: Executor | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    keep_work: bool = False,
) -> dict[str, Any]:
    """Cut repeated substrings out of a corpus in files as `dedup.substrings` would; else as `dedup_near`.

    Documents of which nothing is left are left out; those that were empty before stay. Copies of whole texts
    are known by hashes of 128 bits, unless there is `against`.

    With `config.index`, what `SubstringIndex.find` finds in the texts goes as well. After that all texts are
    added as they were before they were cut, once, however often this is cut off and called again.
    """

    def work(run: Run, tally: Tally) -> tuple[Sequence[str], dict[str, Any]]:
        settled = config.model_copy(update=run.layout)
        cut = partial(
            _cut,
            out=out,
            parts_path=run.parts_path,
            spans=find_spans(run, settled),
            column=config.text_column,
            dry_run=dry_run,
            has_index=run.known is not None,
        )
        applied = run.apply(cut, dry_run=dry_run)
        for counted in applied:
            tally.merge(counted["tally"])
        longest = [x for counted in applied for x in counted["longest"]]
        longest.sort(key=lambda x: (x["start"] - x["end"], x["document"], x["start"]))
        more: dict[str, Any] = {}
        if wanted is not None:
            seen: dict[str, Seen] = {}
            for part, counted in zip(load_parts(run.parts_path), applied, strict=True):
                of_file = seen.setdefault(part.split.path, Seen())
                of_file.total += part.num_bytes
                of_file.known += counted["index_bytes"]
            run.warnings += warn_of_copies(seen, "bytes")
            found = {x: sum(counted[f"index_{x}"] for counted in applied) for x in ("spans", "bytes")}
            more["index"] = report_index(run, settled, wanted, **found)
        return [STEP], {
            "spans": sum(counted["spans"] for counted in applied),
            "changed_documents": sum(counted["changed"] for counted in applied),
            "emptied_documents": sum(n for key, n in tally.documents.items() if key[0] == STEP),
            "removed_bytes": sum(n for key, n in tally.sizes.items() if key[0] == STEP),
            "longest": longest[:NUM_LONGEST],
            **more,
        }

    config = config.placed()
    wanted = config.wanted(dry_run=dry_run)
    return run_dedup(
        "substring",
        inputs,
        out,
        config,
        work,
        execute=execute,
        progress=progress,
        dry_run=dry_run,
        keep_work=keep_work,
        against=config.against,
        wanted=wanted,
    )


def _cut(
    item: tuple[int, str],
    *,
    out: str,
    parts_path: str,
    spans: Sequence[str],
    column: str,
    dry_run: bool,
    has_index: bool,
) -> None:
    """Write a split's documents without the spans, then the spans, then the counts."""
    number, done = item
    parts = load_parts(parts_path)
    part = parts[number]
    column = "text" if part.split.kind == "jsonl" else column
    rows, start, end = read_arrays(spans[number], 0, "<u4", "<i8", "<i8")
    (in_index,) = read_arrays(spans[number], 1, "<i8")
    docs = rows.astype(np.int64)
    order = np.lexsort((start, docs, start - end))[:NUM_LONGEST]
    check_unchanged(part.split)
    sizes = read_arrays(part.blocks, -1, "<i8", "<i8")[0]
    left = sizes.copy()
    np.subtract.at(left, docs, end - start)
    keep = (left > 0) | (sizes == 0)
    shown: dict[tuple[int, int], str] = {}
    wanted = np.unique(docs[order]) if dry_run else None
    with open_parquet(part.path) as file:
        schema = file.schema_arrow
    batches = read_rows(
        part.path, part.start, part.stop, columns=[column] if dry_run else None, wanted=wanted
    )
    samples = [(int(docs[i]), int(start[i]), int(end[i])) for i in order]
    if dry_run:
        for first, batch in batches:
            shown.update(_show(samples, first, texts_of(batch, column)))
    else:
        with parquet_out(documents_path(out, number), schema) as survivors:
            for first, batch in batches:
                shown.update(_show(samples, first, texts_of(batch, column)))
                here = slice(*np.searchsorted(docs, [first, first + len(batch)]))
                for cut in _without(batch, column, docs[here] - first, start[here], end[here]):
                    survivors.add_kept(cut, keep[first : first + len(cut)])
                    first += len(cut)
            check_unchanged(part.split)
    more = [in_index] if has_index else []
    _write_spans(removed_path(out, number), parts, docs + part.first, [start, end, *more])
    tally = Tally()
    key = (STEP, STEP, part.split.source)
    if len(docs):
        tally.documents[key] = int((~keep).sum())
        tally.sizes[key] = int((end - start).sum())
        tally.samples[key] = [
            (f"{part.split.path}:{part.file_row + doc + 1}", shown[doc, a][:200]) for doc, a, _ in samples[:3]
        ]
    longest = [
        {
            "file": part.split.path,
            "row": part.file_row + doc,
            "document": part.first + doc,
            "start": a,
            "end": b,
            "text": shown[doc, a],
        }
        for doc, a, b in samples
    ]
    counts = {
        "tally": tally.to_dict(),
        "spans": len(docs),
        "changed": len(np.unique(docs)),
        "index_spans": int((in_index > 0).sum()),
        "index_bytes": int(in_index.sum()),
        "longest": longest,
    }
    storage.write_json(done, counts)


def _show(
    samples: Sequence[tuple[int, int, int]], first: int, texts: pa.LargeStringArray
) -> dict[tuple[int, int], str]:
    """Give the beginnings of the spans that lie in a batch."""
    shown = {}
    for doc, start, end in samples:
        if first <= doc < first + len(texts):
            content = texts[doc - first].as_buffer()[start:end]
            shown[doc, start] = bytes(content)[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")[
                :SHOWN_CHARACTERS
            ]
    return shown


def _without(
    batch: pa.RecordBatch,
    column: str,
    docs: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> list[pa.RecordBatch]:
    if not len(docs):
        return [batch]
    spans = dedup.Spans(docs, start.copy(), end.copy(), len(batch))
    place = batch.schema.get_field_index(column)
    cut = spans.apply(texts_of(batch, column), num_threads=1)
    field = batch.schema.field(place)
    columns = _encode(cut, field.type) if pa.types.is_dictionary(field.type) else [cut.cast(field.type)]
    firsts = itertools.accumulate(map(len, columns), initial=0)
    return [batch.slice(i, len(x)).set_column(place, field, x) for i, x in zip(firsts, columns, strict=False)]


def _encode(texts: pa.Array, kind: pa.DictionaryType) -> list[pa.Array]:
    """Give texts in as many arrays as it takes for a dictionary's indices to count them."""
    try:
        return [texts.cast(kind.value_type).dictionary_encode().cast(kind)]
    except pa.ArrowInvalid:
        half = len(texts) // 2
        return _encode(texts[:half], kind) + _encode(texts[half:], kind)


def _write_spans(
    path: str, parts: Sequence[Part], docs: NDArray[np.int64], numbers: Sequence[NDArray[np.int64]]
) -> None:
    """Write where spans are: starts, ends, and how many bytes of them an index has where there is one."""
    schema = _REMOVED if len(numbers) == 2 else _REMOVED.append(_INDEX_COLUMN)
    files, rows = places_of(parts, docs)
    columns = [files, *(pa.array(x) for x in (rows, docs, *numbers))]
    with parquet_out(path, schema) as out:
        out.add(pa.RecordBatch.from_arrays(columns, schema=schema))
