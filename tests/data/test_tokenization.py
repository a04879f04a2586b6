"""Tokenizing a file of documents: the same bytes whatever the threads and kills, counts, refusals."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles.bytes_tokenizer import BytesTokenizer

from pylm import _core
from pylm.data import shard_writer, tokenization
from pylm.data.chat import END_OF_TEXT, SPECIAL_TOKENS
from pylm.data.documents import SCHEMA
from pylm.data.shards import Shard, open_shards
from pylm.data.token_statistics import STATISTICS, SplitStats, format_table
from pylm.data.tokenization import tokenize, write_shards
from pylm.errors import InputError
from pylm.text import Tokenizer

FINISHED = ".finished.json"

Row = dict[str, str | None]

SPACES = ["\t", "\n", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2000", "\u200a", "\u2028", "\u3000"]


def make_rows(num_docs: int = 90, *, mixed: bool = True) -> list[Row]:
    rng = np.random.default_rng(3)
    words = ["the", "naïve", "café", "def", "(x)", "🙂", "漢字", "long" * 9, "\u200b", "don\u2019t", *SPACES]
    rows: list[Row] = []
    for i in range(num_docs):
        text = " ".join(rng.choice(words, int(rng.integers(0, 60)))) if i % 17 else ""
        source = "code" if (i % 3 == 0 if mixed else i < num_docs // 3) else "web"
        language = (None, "en", "fr")[i % 3] if source == "web" else None
        metas = [None, "{}", json.dumps({"note": '"language"'}), json.dumps({"language": 7})]
        meta = json.dumps({"language": language}) if language else metas[i % 4]
        url = f"http://x/{i}" if i % 2 else None
        rows.append({"id": f"d{i}", "text": text, "source": source, "url": url, "date": None, "meta": meta})
    return rows


def write_documents(path: Path, rows: list[Row], *, group_size: int = 20) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group_size, compression="zstd")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [row["text"] or "" for row in make_rows()]
    return Tokenizer.train(texts, vocab_size=400, special_tokens=SPECIAL_TOKENS)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_BATCH_BYTES", 2000)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (STATISTICS, FINISHED)}


def brute_force(rows: list[Row], tokenizer: Tokenizer) -> dict[str, object]:
    ids = [tokenizer.encode_ordinary(row["text"] or "") for row in rows]
    num_bytes = sum(len((row["text"] or "").encode()) for row in rows)
    num_words = sum(len((row["text"] or "").split()) for row in rows)
    num_text_tokens = sum(map(len, ids))
    used = {i for one in ids for i in one} | ({tokenizer.special_tokens[END_OF_TEXT]} if rows else set())
    return {
        "num_docs": len(rows),
        "num_tokens": num_text_tokens + len(rows),
        "num_bytes": num_bytes,
        "num_words": num_words,
        "bytes_per_token": round(num_bytes / num_text_tokens, 4),
        "tokens_per_byte": round(num_text_tokens / num_bytes, 4),
        "tokens_per_word": round(num_text_tokens / num_words, 4),
        "num_used": len(used),
        "vocab_size": tokenizer.vocab_size,
        "num_unused": tokenizer.vocab_size - len(used),
        "vocab_used": round(len(used) / tokenizer.vocab_size, 4),
    }


def brute_force_ids(rows: list[Row], tokenizer: Tokenizer) -> dict[str, object]:
    counts = Counter(i for row in rows for i in tokenizer.encode_ordinary(row["text"] or ""))
    counts[tokenizer.special_tokens[END_OF_TEXT]] += len(rows)
    return {
        "top": [list(item) for item in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]],
        "rarest": [list(item) for item in sorted(counts.items(), key=lambda item: (item[1], item[0]))[:20]],
        "unused": [i for i in range(tokenizer.vocab_size) if i not in counts][:20],
        "num_once": sum(count == 1 for count in counts.values()),
        "num_rare": sum(count < 100 for count in counts.values()),
    }


@pytest.mark.parametrize("mixed", [False, True])
def test_statistics_equal_a_plain_count(tmp_path: Path, tokenizer: Tokenizer, mixed: bool) -> None:
    rows = make_rows(mixed=mixed)
    stats = tokenize(write_documents(tmp_path / "d.parquet", rows), tokenizer, tmp_path / "t")
    saved = json.loads((tmp_path / "t" / STATISTICS).read_text(encoding="utf-8"))
    assert saved["total"] == stats.total.to_dict() == brute_force(rows, tokenizer)
    for source in ("code", "web"):
        expected = brute_force([row for row in rows if row["source"] == source], tokenizer)
        assert saved["sources"][source] == stats.sources[source].to_dict() == expected
    assert saved["ids"] == brute_force_ids(rows, tokenizer)
    assert 0 < saved["ids"]["num_once"] < saved["ids"]["num_rare"] < saved["total"]["num_used"]
    assert list(saved["languages"]) == ["en", "fr"]
    for language, counts in saved["languages"].items():
        chosen = [row for row in rows if row["meta"] == json.dumps({"language": language})]
        assert len(chosen) > 5
        assert counts.items() <= brute_force(chosen, tokenizer).items()
        assert "num_used" not in counts
    for name, shard in open_shards(tmp_path / "t").items():
        texts = [row["text"] for row in rows if row["source"] == name]
        eos = shard.meta.eos_id
        assert shard.tokens.tolist() == [i for t in texts for i in [*tokenizer.encode_ordinary(t or ""), eos]]
        ids = [document.id for document in shard.documents(range(len(texts)))]
        assert ids == [row["id"] for row in rows if row["source"] == name]
        shard.check_content()


def test_a_language_column_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = make_rows(30)
    languages = pa.array([("de", "en", None)[i % 3] for i in range(30)]).dictionary_encode()
    table = pa.Table.from_pylist(rows, SCHEMA).append_column("language", languages)
    pq.write_table(table, tmp_path / "d.parquet")
    stats = tokenize(tmp_path / "d.parquet", tokenizer, tmp_path / "t")
    assert {name: counts.num_docs for name, counts in stats.languages.items()} == {"de": 10, "en": 10}


def test_words_are_those_of_split() -> None:
    rng = np.random.default_rng(5)
    characters = [
        *SPACES,
        " ",
        "a",
        "b",
        "\x1b",
        "\x7f",
        "\x84",
        "¡",
        "\u167f",
        "\u200b",
        "\u3001",
        "ж",
        "🙂",
        "語",
    ]
    for _ in range(300):
        kinds = rng.choice(characters, int(rng.integers(1, len(characters))))
        texts = ["".join(rng.choice(kinds, int(rng.integers(0, 200)))) for _ in range(4)]
        assert _core.count_words(texts).tolist() == [len(text.split()) for text in texts]


def test_every_white_space_is_one() -> None:
    points = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    counts = _core.count_words([f"abcdefgh{chr(i)}ijklmnop" for i in points])
    assert [i for i, n in zip(points, counts, strict=True) if n == 2] == [
        i for i in points if chr(i).isspace()
    ]


@pytest.mark.parametrize("vocab_size", [400, 1 << 16, (1 << 16) + 1])
def test_gathered_ids(vocab_size: int) -> None:
    rng = np.random.default_rng(6)
    ids = rng.integers(0, vocab_size, 1000).astype(np.uint32)
    offsets = np.sort(np.concatenate([[0, 1000], rng.integers(0, 1000, 40)]))
    docs = np.flatnonzero(rng.random(41) < 0.4)
    narrow = vocab_size <= 1 << 16
    out, counts = _core.gather_ids(ids, offsets, docs, vocab_size=vocab_size, narrow=narrow)
    expected = np.concatenate([ids[offsets[d] : offsets[d + 1]] for d in docs])
    assert out.dtype == (np.uint16 if narrow else np.uint32)
    assert out.tolist() == expected.tolist()
    assert counts.tolist() == np.bincount(expected, minlength=vocab_size).tolist()
    for bad_docs, bad_size in (([41], vocab_size), ([-1], vocab_size), ([0], int(ids[0]))):
        with pytest.raises(ValueError, match=r"offsets|vocabulary"):
            _core.gather_ids(ids, offsets, np.array(bad_docs), vocab_size=bad_size, narrow=False)
    with pytest.raises(ValueError, match="uint16"):
        _core.gather_ids(ids, offsets, docs, vocab_size=(1 << 16) + 1, narrow=True)


def test_threads_do_not_show(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows(300), group_size=7)
    first = tokenize(path, tokenizer, tmp_path / "1", num_threads=1)
    assert tokenize(path, tokenizer, tmp_path / "3", num_threads=3) == first
    monkeypatch.setattr(tokenization, "_BATCH_BYTES", 100)  # as if every batch were a long document
    assert tokenize(path, tokenizer, tmp_path / "2", num_threads=2) == first
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    statistics = [(tmp_path / n / STATISTICS).read_bytes() for n in "123"]
    assert statistics[0] == statistics[1] == statistics[2]
    assert set(content(tmp_path / "1")) == {
        f"{source}.{kind}"
        for source in ("code", "web")
        for kind in ("tokens", "offsets.npy", "docs.parquet", "meta.json")
    }


def test_progress_and_memory_of_queues(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, written, most = 0, 0, 0
    plain = tokenization._DocumentFile._batches

    def counted(*arguments: object) -> Iterator[pa.RecordBatch]:
        nonlocal read, most
        for batch in plain(*arguments):  # type: ignore[arg-type]
            read += len(batch)
            most = max(most, read - written)
            yield batch

    def show(done: int, total: int, num_tokens: int) -> None:
        nonlocal written
        assert done > written
        assert total == 400
        assert num_tokens >= done
        written = done

    monkeypatch.setattr(tokenization, "_BATCH_ROWS", 1)
    monkeypatch.setattr(tokenization._DocumentFile, "_batches", counted)
    path = write_documents(tmp_path / "d.parquet", make_rows(400), group_size=100)
    tokenize(path, tokenizer, tmp_path / "t", num_threads=2, progress=show)
    assert written == 400
    # A queue of the reader and what it holds, those that wait for an encoder or the writer, the one in hand.
    assert most <= tokenization._QUEUED_BATCHES + 1 + 3 + 2 + 2


KILLED = """
import os, signal, sys
from pathlib import Path
from pylm.data import tokenization
from pylm.text import Tokenizer
tokenization._BATCH_BYTES = 2000
left = int(sys.argv[4])
place = sys.argv[5]
plain = getattr(tokenization, place) if place == "save_journal" else getattr(tokenization.Writers, place)
def killing(*arguments):
    global left
    result = plain(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(tokenization if place == "save_journal" else tokenization.Writers, place, killing)
tokenization.tokenize(Path(sys.argv[1]), Tokenizer.load(sys.argv[2]), Path(sys.argv[3]), num_threads=2)
"""


@pytest.mark.parametrize(
    ("place", "count", "num_done"),
    [
        ("write", 1, None),
        ("save_journal", 1, 20),
        ("write", 4, 20),
        ("save_journal", 3, 60),
        ("end_group", 5, 80),
        ("finish", 1, 90),
        ("publish", 1, 90),
    ],
)
def test_a_killed_call_is_gone_on_with(
    tmp_path: Path, tokenizer: Tokenizer, place: str, count: int, num_done: int | None
) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows())
    tokenizer.save(tmp_path / "tokenizer.json")
    expected = tokenize(path, tokenizer, tmp_path / "whole")
    out = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "tokenizer.json"), str(out)]
    ended = subprocess.run([*command, str(count), place], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (out / STATISTICS).exists()
    assert not (out / FINISHED).exists()
    if place != "publish":
        assert not list(out.glob("*.meta.json"))
    notes: list[str] = []
    shown: list[int] = []
    stats = tokenize(
        path, tokenizer, out, note=notes.append, progress=lambda done, total, tokens: shown.append(done)
    )
    wanted = [] if num_done is None else [f"{out}: goes on after {num_done} of 90 documents"]
    assert notes == wanted
    assert all(done > (num_done or 0) for done in shown)
    assert stats == expected
    assert content(out) == content(tmp_path / "whole")
    assert (out / STATISTICS).read_bytes() == (tmp_path / "whole" / STATISTICS).read_bytes()


@pytest.fixture
def cut(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tokenizing has ended after three of five row groups, as after a full disk."""
    path = write_documents(tmp_path / "d.parquet", make_rows())
    with monkeypatch.context() as patch:
        plain = tokenization.save_journal

        def failing(folder: Path, writers: shard_writer.Writers, key: str, num_groups: int) -> None:
            plain(folder, writers, key, num_groups)
            if num_groups == 3:
                raise OSError(28, "No space left on device")

        patch.setattr(tokenization, "save_journal", failing)
        with pytest.raises(OSError, match="No space"):
            tokenize(path, tokenizer, tmp_path / "cut")
    return tmp_path / "cut"


def finish(cut: Path, tokenizer: Tokenizer) -> list[str]:
    """Go on; compare with an unbroken call; give the notes."""
    notes: list[str] = []
    path = cut.parent / "d.parquet"
    assert tokenize(path, tokenizer, cut, note=notes.append) == tokenize(
        path, tokenizer, cut.parent / "whole"
    )
    assert content(cut) == content(cut.parent / "whole")
    return [note.removeprefix(f"{cut}: ") for note in notes]


def test_a_full_disk_loses_nothing(cut: Path, tokenizer: Tokenizer) -> None:
    assert {p.suffix for p in cut.iterdir()} == {".part", ".json"}
    assert finish(cut, tokenizer) == ["goes on after 60 of 90 documents"]


@pytest.mark.parametrize("kind", ["flip", "short", "lengths", "gone", "journal", "no journal"])
def test_damaged_parts_are_done_again(cut: Path, tokenizer: Tokenizer, kind: str) -> None:
    tokens, lengths, journal = (cut / n for n in (".web.tokens.part", ".web.lengths.part", ".tokenize.json"))
    if kind == "flip":
        changed = bytearray(tokens.read_bytes())
        changed[8] ^= 1
        tokens.write_bytes(changed)
    elif kind == "short":
        os.truncate(tokens, 10)
    elif kind == "lengths":
        lengths.write_bytes(b"\1" * lengths.stat().st_size)
    elif kind == "gone":
        tokens.unlink()
    elif kind == "journal":
        journal.write_text("{", encoding="utf-8")
    else:
        journal.unlink()
    expected = [] if kind == "no journal" else ["what an earlier call left is damaged; starts over"]
    assert finish(cut, tokenizer) == expected


def test_an_id_beyond_the_vocabulary_is_damage(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Counting up to it would take 32 GiB.
    path = write_documents(tmp_path / "d.parquet", make_rows(40))
    monkeypatch.setattr(shard_writer, "id_dtype", lambda _: np.dtype("<u4"))
    monkeypatch.setattr(tokenization, "id_dtype", lambda _: np.dtype("<u4"))
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.Writers, "finish", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            tokenize(path, tokenizer, tmp_path / "t")
    part = tmp_path / "t" / ".web.tokens.part"
    part.write_bytes(b"\xff" * 4 + part.read_bytes()[4:])
    notes: list[str] = []
    assert tokenize(path, tokenizer, tmp_path / "t", note=notes.append).total.num_docs == 40
    assert notes == [f"{tmp_path / 't'}: what an earlier call left is damaged; starts over"]


def raise_interrupt(writers: shard_writer.Writers) -> None:
    raise KeyboardInterrupt


def test_what_follows_the_journal_is_cut_off(cut: Path, tokenizer: Tokenizer) -> None:
    for kind in ("tokens", "lengths"):
        with (cut / f".code.{kind}.part").open("ab") as file:
            file.write(b"half a row group")
    assert finish(cut, tokenizer) == ["goes on after 60 of 90 documents"]


def test_another_tokenizer_or_input_starts_over(cut: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer.train(["other text"] * 9, vocab_size=270, special_tokens=SPECIAL_TOKENS)
    changed = "documents or tokenizer have changed; starts over"
    assert finish(cut, other) == [changed]
    Shard.open(cut, "web").check_tokenizer(other)


def test_a_changed_input_starts_over(cut: Path, tokenizer: Tokenizer) -> None:
    write_documents(cut.parent / "d.parquet", make_rows(70))
    assert finish(cut, tokenizer) == ["documents or tokenizer have changed; starts over"]


def test_finished_shards_are_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, out = write_documents(tmp_path / "d.parquet", make_rows()), tmp_path / "t"
    stats = tokenize(path, tokenizer, out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    notes: list[str] = []
    assert tokenize(path, tokenizer, out, note=notes.append) == stats
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert notes == [f"{out}: complete"]
    (out / "web.docs.parquet").unlink()  # not whole any more
    assert tokenize(path, tokenizer, out) == stats
    assert (out / "web.docs.parquet").exists()
    write_documents(path, make_rows(33))
    assert tokenize(path, tokenizer, out).total.num_docs == 33


def with_column(name: str, column: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist(make_rows(3), SCHEMA)
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": ["a"], "text": ["b"]}), r"columns source, url are missing"),
        (with_column("text", pa.array([1, 2, 3])), "column text must be of strings, got int64"),
        (with_column("text", pa.array([b"a", b"b", b"c"])), "column text must be of strings, got binary"),
        (with_column("source", pa.array([1, 2, 3])), "column source must be of strings, got int64"),
        (with_column("id", pa.nulls(3)), "column id must be of strings, got null"),
        (
            with_column("text", pa.array(["a", None, None])),
            "2 documents of source web have no text, the first is 'd1'; drop them before",
        ),
        (with_column("source", pa.array(["a", None, "b"])), "document 'd1' has no source"),
        (with_column("source", pa.array(["a", "b", "a/b"])), "source 'a/b' cannot name a file"),
        (with_column("source", pa.array(["a", "b", "é" * 101])), r"source 'é{40}'\.\.\. has 202 bytes"),
        (
            pa.Table.from_pylist(make_rows(3), SCHEMA).append_column("text", pa.nulls(3, pa.string())),
            "2 columns are named text, expected one",
        ),
        (
            with_column("text", pa.nulls(3, pa.string())).set_column(
                0, "id", pa.array([b"a\xff", b"b", b"c"]).view(pa.string())
            ),
            r"1 documents of source code have no text, the first is 'a\\\\xff'; drop them before",
        ),
        (pa.Table.from_pylist([], SCHEMA), "no documents to tokenize; loosen the filters"),
    ],
)
def test_refusals(tmp_path: Path, tokenizer: Tokenizer, table: pa.Table, message: str) -> None:
    good = write_documents(tmp_path / "good.parquet", make_rows())
    tokenize(good, tokenizer, tmp_path / "t")
    before = {p.name: p.read_bytes() for p in (tmp_path / "t").iterdir()}
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=message) as caught:
        tokenize(tmp_path / "d.parquet", tokenizer, tmp_path / "t")
    assert str(caught.value).startswith(f"{tmp_path / 'd.parquet'}: ")
    assert {p.name: p.read_bytes() for p in (tmp_path / "t").iterdir()} == before


def test_null_urls_and_other_layouts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = make_rows(12)
    plain = tokenize(write_documents(tmp_path / "a.parquet", rows), tokenizer, tmp_path / "a")
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.set_column(0, "id", table["id"].cast(pa.large_string()))
    table = table.set_column(1, "text", table["text"].cast(pa.string()).combine_chunks().dictionary_encode())
    table = table.set_column(2, "source", table["source"].combine_chunks().dictionary_encode())
    pq.write_table(table.set_column(3, "url", pa.nulls(12)), tmp_path / "b.parquet")
    assert tokenize(tmp_path / "b.parquet", tokenizer, tmp_path / "b") == plain
    for name in ("web.tokens", "web.offsets.npy", "web.meta.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_views_and_names_that_are_no_utf8(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = make_rows(12)
    plain = tokenize(write_documents(tmp_path / "a.parquet", rows), tokenizer, tmp_path / "a")
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table.set_column(1, "text", table["text"].cast(pa.string_view())), tmp_path / "b.parquet")
    assert tokenize(tmp_path / "b.parquet", tokenizer, tmp_path / "b") == plain
    wrong = pa.array([b"web"] * 11 + [b"\xff"]).view(pa.string())
    pq.write_table(table.set_column(2, "source", wrong), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet: a source or language is not UTF-8: b'\\xff'"):
        tokenize(tmp_path / "c.parquet", tokenizer, tmp_path / "c")


def test_a_damaged_row_group_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows())
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    changed = bytearray(path.read_bytes())
    changed[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(changed)
    with pytest.raises(InputError) as caught:
        tokenize(path, tokenizer, tmp_path / "t", num_threads=2)
    assert str(caught.value).startswith(f"{path}: row group 2 of 5: not a readable Parquet file: ")
    assert list((tmp_path / "t").iterdir()) == []
    assert [x.name for x in threading.enumerate() if x.name.startswith(("read", "encode"))] == []
    os.truncate(path, 1000)
    with pytest.raises(InputError, match=r"d\.parquet: not a readable Parquet file"):
        tokenize(path, tokenizer, tmp_path / "t")


def test_a_page_that_arrow_skips_is_noticed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows())
    changed = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    assert changed[place : place + 2] == b"\x15\x00"  # type of the page: data
    changed[place + 1] = 20  # none that there is
    path.write_bytes(changed)
    assert len(pq.read_table(path, columns=["text"])) == 70
    with pytest.raises(InputError, match=r"d\.parquet: row group 2 of 5: 0 documents, expected 20"):
        tokenize(path, tokenizer, tmp_path / "t")


@pytest.mark.parametrize(
    "meta", ['{"language": "\\ud800"}', '{"language": "en", "x": ' + "[" * 100_000, '{"language": "en"']
)
def test_metas_that_say_no_language(tmp_path: Path, tokenizer: Tokenizer, meta: str) -> None:
    rows: list[Row] = [{**row, "meta": meta} for row in make_rows(3)]
    stats = tokenize(write_documents(tmp_path / "d.parquet", rows), tokenizer, tmp_path / "t")
    assert stats.languages == {}
    assert stats.total.num_docs == 3


def test_shards_of_vanished_sources_are_removed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, rows, out = tmp_path / "d.parquet", make_rows(), tmp_path / "t"
    tokenize(write_documents(path, rows), tokenizer, out)
    (out / "notes.tokens").write_text("somebody's")
    web = [row for row in rows if row["source"] == "web"]
    stats = tokenize(write_documents(path, web), tokenizer, out)
    assert list(open_shards(out)) == list(stats.sources) == ["web"]
    assert [p.name for p in out.glob("code.*")] == []
    assert (out / "notes.tokens").exists()
    statistics = json.loads((out / STATISTICS).read_text(encoding="utf-8"))
    statistics["sources"]["../d"] = statistics["sources"]["web"]
    (out / STATISTICS).write_text(json.dumps(statistics), encoding="utf-8")
    (tmp_path / "d.tokens").write_text("not in the folder")
    tokenize(write_documents(path, rows[:40]), tokenizer, out)
    assert (tmp_path / "d.tokens").exists()


def test_threads_cannot_be_negative(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows(5))
    with pytest.raises(InputError, match="num_threads must be at least 0, got -1"):
        tokenize(path, tokenizer, tmp_path / "t", num_threads=-1)
    with pytest.raises(InputError, match="num_threads must be at least 0, got -1"):
        write_shards([], tokenizer, tmp_path / "t", num_threads=-1)


def test_an_empty_file_where_it_is_allowed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_documents(tmp_path / "d.parquet", [])
    stats = tokenize(path, tokenizer, tmp_path / "t", allow_empty=True)
    assert stats.total.num_docs == stats.total.num_used == 0
    assert stats.total.tokens_per_word == stats.total.bytes_per_token == 0.0
    assert tokenize(path, tokenizer, tmp_path / "t", allow_empty=True) == stats
    assert {p.name for p in (tmp_path / "t").iterdir()} == {STATISTICS, FINISHED}


def test_words_of_bytes_tokenizer_match_write_shards(tmp_path: Path) -> None:
    rows = make_rows(40)
    table = pa.Table.from_pylist(rows, SCHEMA)
    tokenizer = BytesTokenizer(SPECIAL_TOKENS)
    direct = write_shards(table.to_batches(max_chunksize=7), tokenizer, tmp_path / "a")
    stats = tokenize(write_documents(tmp_path / "d.parquet", rows), tokenizer, tmp_path / "b")
    assert direct == stats.sources


def test_statistics_that_cannot_be_read_are_not_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_documents(tmp_path / "d.parquet", make_rows(5))
    stats = tokenize(path, tokenizer, tmp_path / "t")
    file = tmp_path / "t" / STATISTICS
    assert SplitStats.load(file) == stats
    for bad in ("", "{", "[]", json.dumps({"format": 1}), json.dumps({"format": 0})):
        file.write_text(bad, encoding="utf-8")
        assert SplitStats.load(file) is None
        assert tokenize(path, tokenizer, tmp_path / "t") == stats
    assert SplitStats.load(file) == stats


def test_the_table(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = make_rows()
    stats = tokenize(write_documents(tmp_path / "d.parquet", rows), tokenizer, tmp_path / "t")
    lines = format_table({"train": stats}).splitlines()
    assert lines[0].split() == [
        "documents", "tokens", "tokens/word", "bytes/token", "ids", "used", "unused",
    ]  # fmt: skip
    expected = brute_force(rows, tokenizer)
    assert lines[1].split() == [
        "train", "90", f"{expected['num_tokens']:,}", f"{stats.total.tokens_per_word:.3f}",
        f"{stats.total.bytes_per_token:.3f}", f"{stats.total.vocab_used:.1%}", str(expected["num_unused"]),
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[2:]] == ["code", "web", "language", "language"]
