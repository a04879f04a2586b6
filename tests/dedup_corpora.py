"""Corpora with planted copies, in files, and how results are compared: for the tests of deduplication."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def make_rows(seed: int, num_families: int = 40) -> list[Row]:
    """Families of originals, edited and exact copies and chains, strangers, texts without words, nulls."""
    rng = random.Random(seed)
    rows: list[Row] = []

    def add(text: str | None) -> None:
        rows.append({"text": text})

    for family in range(num_families):
        words = [f"w{family}x{rng.randrange(200)}" for _ in range(rng.choice([3, 12, 60, 120]))]
        for _ in range(rng.randrange(1, 6)):
            edited = list(words)
            for _ in range(rng.choice([0, 0, 1, 2, 4])):
                edited[rng.randrange(len(edited))] = rng.choice(["other", "words", "here"])
            add(rng.choice([" ", "  ", ", "]).join(edited))
            if rng.random() < 0.3:
                add(rows[rng.randrange(len(rows))]["text"])
        if rng.random() < 0.3:  # a chain: each like the next, the ends unlike
            for start in range(0, 30, 3):
                add(" ".join(f"c{family}y{i}" for i in range(start, start + 40)))
        if rng.random() < 0.2:
            add(rng.choice([None, "", "...", " ", "!!", "é" * rng.randrange(1, 4)]))
    rng.shuffle(rows)
    for number, row in enumerate(rows):
        row["id"] = f"d{number}"
        row["date"] = rng.choice([None, f"2024-0{rng.randrange(1, 9)}-1{rng.randrange(9)}"])
        row["score"] = rng.choice([None, float("nan"), -0.0, 0.0, -1.5, rng.random()])
        row["site"] = rng.choice(["wiki", "books", "web", None])
        page = rng.randrange(30)
        row["url"] = rng.choice([None, f"https://www.a.org/{page}/", f"a.org/{page}#x"])
    return rows


def ranks_of(rows: list[Row], priority: tuple[str, ...], keep: str) -> np.ndarray | None:
    """The rules said again in plain Python: a number a row, of which the largest stays."""

    def key(row: Row) -> tuple[Any, ...]:
        parts: list[Any] = []
        for rule in priority:
            match rule:
                case "score" | "-score":
                    value = row["score"]
                    known = value is not None and value == value
                    parts.append((known, 0 if not known else value if rule == "score" else -value))
                case "date" | "-date":
                    day = row["date"] and int(row["date"].replace("-", ""))
                    parts.append((day is not None, 0 if day is None else day if rule == "date" else -day))
                case _:
                    order = rule.partition("=")[2].split(",")
                    parts.append(-(order.index(row["site"]) if row["site"] in order else len(order)))
        if keep == "longest":
            parts.append(len((row["text"] or "").encode()))
        return tuple(parts)

    if not priority and keep == "first":
        return None
    keys = [key(row) for row in rows]
    places = {value: place for place, value in enumerate(sorted(set(keys)))}
    return np.array([places[value] for value in keys])


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("nested", pa.struct([("n", pa.int32()), ("tags", pa.list_(pa.string()))])),
        ("text", pa.string()),
        ("date", pa.string()),
        ("score", pa.float64()),
        ("site", pa.dictionary(pa.int8(), pa.string())),
        ("url", pa.string()),
    ],
    metadata={"note": "kept"},
)


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows with a nested column besides, as Parquet has them."""
    rows = [{**row, "nested": {"n": i, "tags": ["a"] * (i % 3)}} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_parquet(rows: Sequence[Row], folder: Path, *, num_files: int, group: int) -> pa.Table:
    """Write rows into files of row groups of a size; give the whole table."""
    folder.mkdir(parents=True)
    table = to_table(rows)
    size = -(-len(rows) // num_files)
    for number in range(num_files):
        part = table.slice(number * size, size)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=group)
    return read_all(folder)


def write_jsonl(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON lines; NaN is left out."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            known = {k: v for k, v in row.items() if v is not None and v == v}
            file.write(json.dumps(known) + "\n")


def read_all(folder: Path) -> pa.Table:
    """Read the Parquet files of a folder in the order of their names."""
    return pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(folder.glob("*.parquet"))])


def same(one: pa.Table, other: pa.Table) -> bool:
    """Compare tables, NaN with NaN too."""
    return one.schema.equals(other.schema, check_metadata=True) and repr(one.to_pylist()) == repr(
        other.to_pylist()
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
