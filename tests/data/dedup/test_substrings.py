"""Repeated substrings of a corpus in files, in stages, against `dedup.substrings` on all of its texts."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_corpora import contents, read_all, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import substrings as oracle

from pylm.data.dedup import SubstringDedupConfig, dedup_substrings, substring_stages
from pylm.data.executors import LocalPool
from pylm.errors import InputError
from pylm.text import dedup

ALONE = LocalPool(1)
KEEPS: list[Literal["first", "none"]] = ["first", "none"]
Text = str | None


def write(texts: Sequence[Text], path: Path, group: int) -> None:
    """One file, a split a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(list(texts), pa.string())
    pq.write_table(pa.table({"n": np.arange(len(texts)), "text": column}), path, row_group_size=max(group, 1))


def run(
    texts: Sequence[Text],
    folder: Path,
    group: int,
    *,
    against: Sequence[Text] | None = None,
    execute: Any = ALONE,
    out: str = "out",
    **options: Any,
) -> tuple[list[tuple[int, int, int]], dict[str, Any]]:
    """Spans of the corpus, and the report; a folder is of one corpus."""
    path = folder / f"{group}.parquet"
    if not path.exists():
        write(texts, path, group)
    if against is not None:
        write(against, folder / "against.parquet", group)
        options["against"] = (str(folder / "against.parquet"),)
    config = SubstringDedupConfig(split_bytes=1, **options)
    report = dedup_substrings([str(path)], str(folder / out), config, execute=execute)
    removed = read_all(folder / out / "removed")
    return list(zip(*(removed[x].to_pylist() for x in ("document", "start", "end")), strict=True)), report


def check(
    texts: Sequence[Text],
    folder: Path,
    min_bytes: int,
    *,
    group: int = 2,
    against: Sequence[Text] | None = None,
    keeps: Sequence[str] = KEEPS,
    partition_bytes: Sequence[int] = (1 << 20, 4000),
) -> None:
    """Both rules, few and many partitions."""
    if not texts:
        return
    column = pa.array(list(texts), pa.string())
    other = None if against is None else pa.array(list(against), pa.string())
    for keep in keeps:
        spans = dedup.substrings(column, min_bytes=min_bytes, keep=keep, against=other)  # type: ignore[arg-type]
        for size in partition_bytes:
            found, report = run(
                texts,
                folder / f"{keep}-{size}",
                group,
                against=against,
                min_bytes=min_bytes,
                keep_copies=keep,
                partition_bytes=size,
            )
            assert found == list(
                zip(spans.doc.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True)
            )
            left = [x for x, y in zip(spans.apply(column).to_pylist(), texts, strict=True) if x or not y]
            written = read_all(folder / f"{keep}-{size}" / "out" / "documents")
            assert written["text"].to_pylist() == left
            assert report["left"]["documents"] == len(left)
            assert report["removed_bytes"] == spans.size


def fibonacci(size: int) -> str:
    a, b = "b", "a"
    while len(b) < size:
        a, b = b, b + a
    return b[:size]


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randrange(1, 9))) for _ in range(count))


def licences(count: int) -> list[Text]:
    """One text in all documents, with different words before and behind."""
    rng = random.Random(5)
    licence = words(rng, 60)
    return [f"{words(rng, rng.randrange(4))} {licence} {words(rng, rng.randrange(4))}" for _ in range(count)]


CASES: dict[str, list[Text]] = {
    "empty": ["", "", None, ""],
    "one byte": ["a", "a", "b", "a", ""],
    "short": ["abcdef", None, "xabcde", "", "abcdef"],
    "unary": ["a" * 300],
    "unary texts": ["a" * size for size in (1, 40, 39, 41, 100, 200)],
    "runs": ["a" * 60 + "b" * 70, "c" + "b" * 90 + "a" * 50, "b" * 65, "a" * 20 + "b" * 20],
    "fibonacci": [fibonacci(500), "x" + fibonacci(120), fibonacci(500)[77:], ""],
    "periodic": ["abc" * 70, "bca" * 20, "cab" * 13 + "!" + "abc" * 30, "bc" * 40, "abc" * 9],
    "copies": ["one and the same document, again and again"] * 11,
    "characters": ["é漢\U0001f600é" * 8, "è漢\U0001f601è" * 8, "漢字漢字漢" * 9, "\U0001f600" * 20, "é" * 30],
    "licences": licences(24),
}


@pytest.mark.parametrize("min_bytes", [1, 5, 8, 17, 40])
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, min_bytes: int, tmp_path: Path) -> None:
    check(CASES[name], tmp_path, min_bytes)


@pytest.mark.parametrize("keep", KEEPS)
def test_copies_of_whole_texts_send_nothing(keep: Literal["first", "none"], tmp_path: Path) -> None:
    rng = random.Random(3)
    once: list[Text] = [words(rng, 80) for _ in range(12)]
    texts = [
        *once,
        None,
        *once[::-1],
        "short",
        *[f"{x} more" for x in once[:2] if x],
        *once,
        "short",
        once[4],
    ]
    check(texts, tmp_path, 30, group=5, keeps=[keep])
    report = {}
    for name, corpus in (("once", once + texts[26:28]), ("many", texts)):
        config = SubstringDedupConfig(split_bytes=1, min_bytes=30, keep_copies=keep)
        write(corpus, tmp_path / name / "in.parquet", 5)
        out = tmp_path / name / "out"
        dedup_substrings(
            [str(tmp_path / name / "in.parquet")], str(out), config, execute=ALONE, keep_work=True
        )
        report[name] = sum(path.stat().st_size for path in out.glob("work/*/contexts/*"))
    assert report["many"] < 1.2 * report["once"]


@pytest.mark.parametrize("min_bytes", [1, 8, 17])
@pytest.mark.parametrize("name", CASES)
def test_against(name: str, min_bytes: int, tmp_path: Path) -> None:
    others = [*CASES["characters"], *CASES["unary texts"][:3], *licences(3), *CASES["periodic"][2:4]]
    check(CASES[name], tmp_path, min_bytes, against=others, keeps=["first"])


@st.composite
def collections(draw: st.DrawFn, symbols: str, max_texts: int = 8) -> list[Text]:
    """Texts of few symbols, and of repeated parts of those before."""
    texts: list[Text] = []
    all_before = ""
    for _ in range(draw(st.integers(1, max_texts))):
        text = "".join(draw(st.lists(st.sampled_from(symbols), max_size=30)))
        for start, size, copies in draw(
            st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(1, 4)), max_size=3)
        ):
            text += all_before[start : start + size] * copies
        all_before += text
        texts.append(draw(st.sampled_from([text, text, text, text, None])))
    return texts


@pytest.mark.parametrize("symbols", ["a", "ab", "abc", "aé漢\U0001f600"])
@given(data=st.data(), min_bytes=st.integers(1, 40), group=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_random(
    symbols: str,
    data: st.DataObject,
    min_bytes: int,
    group: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    texts = data.draw(collections(symbols))
    against = data.draw(st.none() | collections(symbols, 4))
    folder = tmp_path_factory.mktemp("random")
    check(texts, folder, min_bytes, group=group, against=against, partition_bytes=(400,))


def test_the_oracle_agrees(tmp_path: Path) -> None:
    texts = CASES["licences"][:6] + CASES["periodic"]
    encoded = [x.encode() if x is not None else None for x in texts]
    for keep in KEEPS:
        found, _ = run(texts, tmp_path / keep, 3, min_bytes=20, keep_copies=keep, partition_bytes=2000)
        assert found == oracle.on_characters(oracle.spans(encoded, 20, keep=keep), encoded)


def test_neither_splits_nor_partitions_nor_workers_matter(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [*licences(30), *(words(rng, 80) for _ in range(30)), *licences(20)]
    rng.shuffle(texts)
    expected = None
    for group, size in [(200, 1 << 20), (9, 1 << 20), (9, 5000), (1, 5000)]:
        out = f"out-{group}-{size}"
        found, report = run(texts, tmp_path, group, min_bytes=50, partition_bytes=size, out=out)
        longest = [{k: v for k, v in x.items() if k != "file"} for x in report["longest"]]
        seen = [found, report["spans"], report["removed_bytes"], report["left"], longest]
        expected = expected or seen
        assert seen == expected
    assert expected is not None
    assert expected[0]
    by_workers = []
    for workers in (1, 2, 3, 8):
        out = f"workers-{workers}"
        with LocalPool(workers) as execute:
            run(texts, tmp_path, 9, min_bytes=50, partition_bytes=5000, execute=execute, out=out)
        by_workers.append(contents(tmp_path / out))
    assert by_workers[1:] == by_workers[:1] * 3


def test_frequent_keys_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparing task gets more than its share, though one text stands in every document."""
    texts = licences(400)
    sizes: list[int] = []
    real = substring_stages._core.repeated_windows

    class Core:
        def __getattr__(self, name: str) -> Any:
            return getattr(real_core, name)

        def repeated_windows(self, column: Any, *args: Any, **options: Any) -> Any:
            if column.type == pa.large_binary():
                sizes.append(sum(len(x) for x in column.to_pylist()))
            return real(column, *args, **options)

    real_core = substring_stages._core
    monkeypatch.setattr(substring_stages, "_core", Core())
    expected = dedup.substrings(pa.array(texts), min_bytes=100)
    found, _ = run(texts, tmp_path, 100, min_bytes=100, partition_bytes=100_000)
    assert found == list(
        zip(expected.doc.tolist(), expected.start.tolist(), expected.end.tolist(), strict=True)
    )
    assert len(sizes) > 1
    assert max(sizes) < 100_000 / 2 * 1.5


def test_json_lines_and_columns(tmp_path: Path) -> None:
    texts = [x for x in licences(12) if x]
    rows = [{"text": x, "id": str(i), "url": f"https://a.org/{i}"} for i, x in enumerate(texts)]
    (tmp_path / "in").mkdir()
    write_jsonl(rows[:7], tmp_path / "in" / "a.jsonl")
    write_jsonl(rows[7:], tmp_path / "in" / "b.jsonl")
    write_jsonl(rows[:2], tmp_path / "old.jsonl")
    config = SubstringDedupConfig(min_bytes=60, split_bytes=1000)
    dedup_substrings([str(tmp_path / "in")], str(tmp_path / "out"), config, execute=ALONE)
    left = read_all(tmp_path / "out" / "documents")
    expected = dedup.substrings(texts, min_bytes=60).apply(texts).to_pylist()
    assert left["text"].to_pylist() == [x for x in expected if x]
    assert left["url"].to_pylist() == [rows[i]["url"] for i, x in enumerate(expected) if x]
    config = config.model_copy(update={"against": (str(tmp_path / "old.jsonl"),)})
    dedup_substrings([str(tmp_path / "in")], str(tmp_path / "clean"), config, execute=ALONE)
    spans = dedup.substrings(texts, min_bytes=60, against=texts[:2])
    left = read_all(tmp_path / "clean" / "documents")
    assert left["text"].to_pylist() == [x for x in spans.apply(texts).to_pylist() if x]


def test_texts_to_compare_with_that_change(tmp_path: Path) -> None:
    texts = licences(6)
    _, first = run(texts, tmp_path, 2, against=["nothing like it"], min_bytes=60)
    _, second = run(texts, tmp_path, 2, against=texts[:1], min_bytes=60)
    assert (first["spans"], second["spans"] > 0) == (0, True)
    with pytest.raises(InputError, match="no documents; check the inputs"):
        run(texts, tmp_path, 2, against=[], min_bytes=60)


@pytest.mark.parametrize("keep", KEEPS)
def test_real_text(keep: Literal["first", "none"], tmp_path: Path, shared_data: Path) -> None:
    texts = real_texts(shared_data / "neardup", 2_000_000)
    spans = dedup.substrings(texts, min_bytes=50, keep=keep)
    assert len(spans) > 100
    found, report = run(
        texts, tmp_path, len(texts) // 7, min_bytes=50, keep_copies=keep, partition_bytes=200_000
    )
    assert found == list(zip(spans.doc.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True))
    assert report["left"]["bytes"] == sum(len(x.encode()) for x in texts) - spans.size


def real_texts(folder: Path, size: int) -> list[str]:
    texts: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and sum(map(len, texts)) < size:
            content = path.read_text(encoding="utf-8", errors="replace")
            texts += [content[i : i + 4000] for i in range(0, len(content), 4000)]
    return texts


KEYS = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30)


@given(KEYS, KEYS.filter(len))
def test_found_keys(keys: list[int], wanted: list[int]) -> None:
    found = substring_stages.find_in(np.array(keys, np.uint64), np.sort(np.array(wanted, np.uint64)))
    assert found.tolist() == [i for i, key in enumerate(keys) if key in wanted]


WINDOWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 9)), max_size=12)


@given(WINDOWS)
def test_joined_windows(windows: list[tuple[int, int, int]]) -> None:
    runs = [np.array([x], np.int64) for x in zip(*((r, a, a + n) for r, a, n in windows), strict=True)]
    arrays = [x[0] for x in runs] if windows else [np.zeros(0, np.int64)] * 3
    row, begin, end = substring_stages.join_windows([arrays])
    covered = sorted({(r, i) for r, a, n in windows for i in range(a, a + n)})
    spread = [(r, i) for r, a, b in zip(row, begin, end, strict=True) for i in range(a, b)]
    assert spread == covered
    assert all(r != s or b < a for r, b, s, a in zip(row, end, row[1:], begin[1:], strict=False))
