"""The last stage where documents go as a whole: survivors, what was removed and why, counts, samples."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pylm.data import storage
from pylm.data.dedup.blocks import read_arrays
from pylm.data.dedup.corpus import open_parquet, parquet_out, read_rows, texts_of
from pylm.data.dedup.indexed import Known, Seen, locate, warn_of_copies
from pylm.data.dedup.places import documents_path, removed_path
from pylm.data.dedup.run import SHOWN_CHARACTERS, Run, places_of
from pylm.data.dedup.signing import Part, check_unchanged, load_parts
from pylm.data.dedup.verdicts import INDEXED, REASONS, Verdicts, read_verdicts
from pylm.data.funnel import SAMPLES_PER_REASON, Tally

STEPS = ("exact duplicates", "near duplicates", "in the index")
"""Of the funnel, in the order of `REASONS`."""
_REMOVED = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("kept_file", pa.string()),
        ("kept_row", pa.int64()),
        ("kept_document", pa.int64()),
        ("reason", pa.string()),
        ("similarity", pa.float64()),
    ]
)
_INDEX_COLUMN = pa.field("index_document", pa.int64())
"""Id in the index of what stays, where that is no document of the corpus."""


def remove_documents(
    run: Run, tally: Tally, verdicts: Sequence[str], clusters: Sequence[dict[str, Any]], *, dry_run: bool
) -> dict[str, Any]:
    """Write survivors and what was removed.

    Args:
        run: the deduplication.
        tally: counts what goes.
        verdicts: files with a block a split.
        clusters: as `largest_clusters` gives them; "indexed" where `kept` is an id of the index.
        dry_run: write no survivors.

    Returns:
        For the report: `removed` documents and bytes by reason, and `largest_clusters` with texts.
    """
    shown = sorted({doc for x in clusters for doc in [x["kept"]] * (not x.get("indexed")) + x["removed"]})
    plan_path = storage.join(run.folder, "plan.json")
    storage.write_json(plan_path, {"verdicts": list(verdicts), "shown": shown})
    work = partial(
        _apply,
        out=run.out,
        parts_path=run.parts_path,
        plan_path=plan_path,
        text_column=run.config.text_column,
        dry_run=dry_run,
        known=run.known,
    )
    parts = load_parts(run.parts_path)
    texts: dict[int, str] = {}
    seen: dict[str, Seen] = {}
    for part, counted in zip(parts, run.apply(work, dry_run=dry_run), strict=True):
        tally.merge(counted["tally"])
        texts.update({int(doc): text for doc, text in counted["texts"].items()})
        of_file = seen.setdefault(part.split.path, Seen())
        of_file.total += part.num_docs
        of_file.known += counted["indexed"]
        of_file.places.update(counted["indexed_in"])
    run.warnings += warn_of_copies(seen, "documents")
    removed = {
        reason: {
            "documents": sum(n for key, n in tally.documents.items() if key[0] == step),
            "bytes": sum(n for key, n in tally.sizes.items() if key[0] == step),
        }
        for reason, step in zip(REASONS, STEPS, strict=True)
        if run.known is not None or reason != REASONS[INDEXED]
    }
    return {"removed": removed, "largest_clusters": [_show(parts, run.known, x, texts) for x in clusters]}


def _show(
    parts: Sequence[Part], known: Known | None, cluster: dict[str, Any], texts: dict[int, str]
) -> dict[str, Any]:
    docs = [cluster["kept"]] * (not cluster.get("indexed")) + cluster["removed"]
    files, rows = places_of(parts, np.array(docs, np.int64))
    shown = [
        {"file": file, "row": int(row), "document": doc, "text": texts[doc]}
        for doc, file, row in zip(docs, files.to_pylist(), rows, strict=True)
    ]
    if known is not None and cluster.get("indexed"):
        files, rows = locate(known, np.array([cluster["kept"]], np.int64))
        kept = {"file": files[0].as_py(), "row": rows[0].as_py(), "index_document": cluster["kept"]}
        return {"size": cluster["size"], "kept": kept, "removed": shown}
    return {"size": cluster["size"], "kept": shown[0], "removed": shown[1:]}


@lru_cache(maxsize=2)
def _load_plan(path: str) -> tuple[list[str], NDArray[np.int64]]:
    plan = storage.read_json(path)
    return plan["verdicts"], np.array(plan["shown"], np.int64)


def _apply(
    item: tuple[int, str],
    *,
    out: str,
    parts_path: str,
    plan_path: str,
    text_column: str,
    dry_run: bool,
    known: Known | None,
) -> None:
    """Write a split's survivors, then what went, then the counts, which say that it is done."""
    number, done = item
    parts = load_parts(parts_path)
    part = parts[number]
    paths, shown = _load_plan(plan_path)
    verdicts = read_verdicts(paths, number, part)
    keep = np.ones(part.num_docs, bool)
    keep[verdicts.docs - part.first] = False
    tally, texts = Tally(), {}
    sampled = _first_of_each(verdicts)
    looked_at = np.union1d(shown[(shown >= part.first) & (shown < part.first + part.num_docs)], sampled)
    column = "text" if part.split.kind == "jsonl" else text_column
    check_unchanged(part.split)
    columns = [column] if dry_run else None
    wanted = looked_at - part.first if dry_run else None
    with open_parquet(part.path) as file:
        schema = file.schema_arrow
    rows = read_rows(part.path, part.start, part.stop, columns=columns, wanted=wanted)
    if dry_run:
        for first, batch in rows:
            texts.update(_look(looked_at, part.first + first, batch, column))
    else:
        with parquet_out(documents_path(out, number), schema) as survivors:
            for first, batch in rows:
                texts.update(_look(looked_at, part.first + first, batch, column))
                survivors.add_kept(batch, keep[first : first + len(batch)])
            check_unchanged(part.split)
    kept_files = _write_removed(removed_path(out, number), parts, verdicts, known)
    is_indexed = verdicts.reason == INDEXED
    places = pc.value_counts(kept_files.filter(pa.array(is_indexed)).drop_null()).to_pylist()
    places.sort(key=lambda place: (-place["counts"], place["values"]))
    sizes = read_arrays(part.blocks, -1, "<i8", "<i8")[0]
    for reason, step in enumerate(STEPS):
        chosen = verdicts.docs[verdicts.reason == reason]
        key = (step, step, part.split.source)
        for doc in chosen[:SAMPLES_PER_REASON].tolist():
            size = int(sizes[doc - part.first])
            place = f"{part.split.path}:{part.file_row + doc - part.first + 1}"
            tally.add(key, size_bytes=size, place=place, text=texts[doc])
        more = chosen[SAMPLES_PER_REASON:]
        if len(more):
            tally.documents[key] += len(more)
            tally.sizes[key] += int(sizes[more - part.first].sum())
    counts = {
        "tally": tally.to_dict(),
        "indexed": int(is_indexed.sum()),
        "indexed_in": {place["values"]: place["counts"] for place in places[:1]},
        "texts": {str(doc): texts[doc] for doc in shown.tolist() if doc in texts},
    }
    storage.write_json(done, counts)


def _first_of_each(verdicts: Verdicts) -> NDArray[np.int64]:
    """Give the documents whose texts show what goes for which reason."""
    samples = [verdicts.docs[verdicts.reason == x][:SAMPLES_PER_REASON] for x in range(len(REASONS))]
    return np.concatenate(samples)


def _look(docs: NDArray[np.int64], first: int, batch: pa.RecordBatch, column: str) -> dict[int, str]:
    """Give the beginnings of some documents' texts."""
    here = docs[slice(*np.searchsorted(docs, [first, first + len(batch)]))]
    if not len(here):
        return {}
    texts = texts_of(batch, column).take(pa.array(here - first)).cast(pa.large_binary()).to_pylist()
    heads = ((text or b"").decode("utf-8", "replace")[:SHOWN_CHARACTERS] for text in texts)
    return dict(zip(here.tolist(), heads, strict=True))


def _write_removed(path: str, parts: Sequence[Part], verdicts: Verdicts, known: Known | None) -> pa.Array:
    """Write what went, and give the files of what stays in its place."""
    files, rows = places_of(parts, verdicts.docs)
    reasons = pa.array(REASONS).take(pa.array(verdicts.reason))
    kept, schema, more = _places_of_kept(parts, verdicts, known), _REMOVED, []
    if known is not None:
        schema = _REMOVED.append(_INDEX_COLUMN)
        more = [pa.array(verdicts.kept, mask=verdicts.reason != INDEXED)]
    columns = [files, rows, verdicts.docs, *kept, reasons, verdicts.similarity, *more]
    batch = pa.RecordBatch.from_arrays(
        [x if isinstance(x, pa.Array) else pa.array(x) for x in columns], schema=schema
    )
    with parquet_out(path, schema) as out:
        out.add(batch)
    return batch["kept_file"]


def _places_of_kept(parts: Sequence[Part], verdicts: Verdicts, known: Known | None) -> list[Any]:
    """Give the files, rows and numbers of what stays; no numbers of documents of an index."""
    is_indexed = verdicts.reason == INDEXED
    if known is None or not is_indexed.any():
        return [*places_of(parts, verdicts.kept), verdicts.kept]
    files, rows = places_of(parts, np.where(is_indexed, 0, verdicts.kept))
    other_files, other_rows = locate(known, verdicts.kept)
    choose = pa.array(is_indexed)
    return [
        pc.if_else(choose, other_files, files),
        pc.if_else(choose, other_rows, pa.array(rows)),
        pa.array(verdicts.kept, mask=is_indexed),
    ]
