import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles.bytes_tokenizer import BytesTokenizer

from pylm.data import vocabulary
from pylm.data.chat import END_OF_TEXT, SPECIAL_TOKENS
from pylm.data.shards import DocumentRef, Shard, open_shards
from pylm.data.tokenization import tokenize, write_shards
from pylm.data.vocabulary import TokenizerConfig, sample_texts, train_tokenizer
from pylm.errors import InputError

Document = tuple[str, str, str, str | None]

DOCUMENTS: list[Document] = [
    ("d0", "hello", "web", "http://a"),
    ("d1", "", "web", None),
    ("d2", "def f(): pass\n", "code", None),
    ("d3", "naïve 🙂", "web", "http://b"),
    ("d4", f"quotes {END_OF_TEXT} in its text", "web", None),
    ("d5", "x", "code", None),
]


def batches(documents: Sequence[Document], size: int = 4) -> list[pa.RecordBatch]:
    fields = ("id", "text", "source", "url")
    schema = pa.schema([(field, pa.string()) for field in fields])
    rows = [dict(zip(fields, document, strict=True)) for document in documents]
    return [pa.RecordBatch.from_pylist(rows[i : i + size], schema) for i in range(0, len(rows), size)]


def write_parquet(path: Path, documents: Sequence[Document]) -> Path:
    pq.write_table(pa.Table.from_batches(batches(documents)), path)
    return path


@pytest.fixture
def tokenizer() -> BytesTokenizer:
    return BytesTokenizer(SPECIAL_TOKENS)


def expected_ids(documents: Sequence[Document], source: str, eos_id: int) -> list[int]:
    return [i for _, text, s, _ in documents if s == source for i in (*text.encode(), eos_id)]


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("num_unused", [0, 65_536 - 261, 65_536 - 260])
def test_shards_hold_the_documents(tmp_path: Path, size: int, num_unused: int) -> None:
    tokenizer = BytesTokenizer(SPECIAL_TOKENS, num_unused=num_unused)
    eos_id = tokenizer.special_tokens[END_OF_TEXT]
    stats = write_shards(batches(DOCUMENTS, size), tokenizer, tmp_path)
    assert list(stats) == ["code", "web"]
    for source in stats:
        shard = Shard.open(tmp_path, source)
        wanted = [d for d in DOCUMENTS if d[2] == source]
        assert shard.tokens.tolist() == expected_ids(DOCUMENTS, source, eos_id)
        assert shard.tokens.dtype == ("<u4" if num_unused == 65_536 - 260 else "<u2")
        assert np.diff(shard.offsets).tolist() == [len(d[1].encode()) + 1 for d in wanted]
        assert shard.documents(range(len(wanted))) == [DocumentRef(d[0], d[2], d[3]) for d in wanted]
        shard.check_tokenizer(tokenizer)
        shard.check_content()


def test_statistics(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    stats = write_shards(batches(DOCUMENTS), tokenizer, tmp_path)["web"]
    texts = [text.encode() for _, text, source, _ in DOCUMENTS if source == "web"]
    assert stats.num_docs == 4
    assert stats.num_bytes == sum(map(len, texts))
    assert stats.num_tokens == stats.num_bytes + 4
    assert stats.num_used == len(set(b"".join(texts))) + 1
    assert stats.bytes_per_token == stats.tokens_per_byte == 1.0
    assert stats.to_dict()["vocab_used"] == round(stats.num_used / tokenizer.vocab_size, 4)


def test_empty_documents_have_ratios(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    stats = write_shards(batches([("d", "", "web", None)]), tokenizer, tmp_path)["web"]
    assert (stats.bytes_per_token, stats.tokens_per_byte) == (0.0, 0.0)
    assert write_shards([], tokenizer, tmp_path) == {}


def test_the_same_bytes_again(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    write_shards(batches(DOCUMENTS, 4), tokenizer, tmp_path / "a")
    write_shards(batches(DOCUMENTS, 1), tokenizer, tmp_path / "b")
    for name in ("web.tokens", "web.offsets.npy", "web.meta.json", "code.tokens"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_documents_between(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    shard = Shard.open(tmp_path, "web")
    owner = [d for d in range(4) for _ in range(shard.offsets[d], shard.offsets[d + 1])]
    for start in range(len(owner)):
        for stop in range(start, len(owner) + 1):
            between = shard.documents_between(start, stop)
            assert list(between) == sorted(set(owner[start:stop]))


def test_documents_come_from_their_row_groups(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    documents = [(f"d{i}", "x", "web", None) for i in range(50)]
    write_shards(batches(documents, 7), tokenizer, tmp_path)
    found = Shard.open(tmp_path, "web").documents([49, 0, 20, 20, 7])
    assert [document.id for document in found] == ["d49", "d0", "d20", "d20", "d7"]


def test_a_failure_publishes_nothing(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = [("d", "text", "web", None), ("e", None, "web", None)]
    with pytest.raises(InputError, match="1 documents of source web have no text"):
        write_shards(batches(broken, 1), tokenizer, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("source", ["a/b", "", ".hidden", "a\\b", None])
def test_bad_sources(tmp_path: Path, tokenizer: BytesTokenizer, source: str | None) -> None:
    with pytest.raises(InputError, match="source"):
        write_shards(batches([("d", "text", source, None)]), tokenizer, tmp_path)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_without_end_of_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("lacks <|endoftext|>")):
        write_shards(batches(DOCUMENTS), BytesTokenizer(["<pad>"]), tmp_path)


def test_another_tokenizer_is_noticed(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    shard = Shard.open(tmp_path, "web")
    shard.check_tokenizer(BytesTokenizer(SPECIAL_TOKENS))
    for other in (BytesTokenizer(SPECIAL_TOKENS[::-1]), BytesTokenizer(SPECIAL_TOKENS, num_unused=1)):
        with pytest.raises(InputError, match=r"made by tokenizer .*; run the tokenize stage again"):
            shard.check_tokenizer(other)


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "web.tokens", 10)


def damage_offsets(folder: Path) -> None:
    offsets = np.load(folder / "web.offsets.npy")
    np.save(folder / "web.offsets.npy", offsets[:-1])


def damage_offsets_order(folder: Path) -> None:
    offsets = np.load(folder / "web.offsets.npy")
    offsets[1:-1] = offsets[1:-1][::-1].copy()
    np.save(folder / "web.offsets.npy", offsets)


def damage_offsets_content(folder: Path) -> None:
    (folder / "web.offsets.npy").write_bytes(b"no array")


def damage_meta(folder: Path) -> None:
    (folder / "web.meta.json").write_text("{", encoding="utf-8")


def change_meta(folder: Path, **values: object) -> None:
    path = folder / "web.meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**meta, **values}), encoding="utf-8")


def damage_dtype(folder: Path) -> None:
    change_meta(folder, dtype="uint32")


def damage_format(folder: Path) -> None:
    change_meta(folder, format=99)


def damage_key(folder: Path) -> None:
    change_meta(folder, surprise=1)


def damage_missing(folder: Path) -> None:
    (folder / "web.docs.parquet").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, r"web.tokens: 10 bytes, expected \d+ \(\d+ ids of uint16\)"),
        (damage_offsets, "web.offsets.npy: expected 5 rising int64"),
        (damage_offsets_order, "web.offsets.npy: expected 5 rising int64"),
        (damage_offsets_content, "web.offsets.npy: not readable"),
        (damage_meta, "web.meta.json: not a shard's description"),
        (damage_dtype, r"web.tokens: \d+ bytes, expected"),
        (damage_format, "web.meta.json: format 99, expected 1"),
        (damage_key, "web.meta.json: not a shard's description"),
        (damage_missing, "web.docs.parquet: no such file"),
    ],
)
def test_damage_is_noticed(
    tmp_path: Path, tokenizer: BytesTokenizer, damage: Callable[[Path], None], message: str
) -> None:
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=f"{message}.*run the tokenize stage again"):
        Shard.open(tmp_path, "web")


def test_changed_content_is_noticed(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    content = bytearray((tmp_path / "web.tokens").read_bytes())
    content[4] ^= 1
    (tmp_path / "web.tokens").write_bytes(content)
    with pytest.raises(InputError, match="content has changed"):
        Shard.open(tmp_path, "web").check_content()


def test_open_shards(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    with pytest.raises(InputError, match="no token shards; run the tokenize stage"):
        open_shards(tmp_path)
    write_shards(batches(DOCUMENTS), tokenizer, tmp_path)
    assert list(open_shards(tmp_path)) == ["code", "web"]
    assert list(open_shards(tmp_path, ["web"])) == ["web"]
    with pytest.raises(InputError, match="no token shard 'books'; there are: code, web"):
        open_shards(tmp_path, ["books"])


def test_tokenize_reads_parquet(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    path = write_parquet(tmp_path / "train.parquet", DOCUMENTS)
    stats = tokenize(path, tokenizer, tmp_path / "tokens").sources
    assert {name: s.num_docs for name, s in stats.items()} == {"code": 2, "web": 4}
    web = Shard.open(tmp_path / "tokens", "web")
    assert web.tokens.tolist() == expected_ids(DOCUMENTS, "web", web.meta.eos_id)


def test_tokenize_refuses(tmp_path: Path, tokenizer: BytesTokenizer) -> None:
    with pytest.raises(InputError, match="no such file; run the prepare stage"):
        tokenize(tmp_path / "none.parquet", tokenizer, tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        tokenize(tmp_path / "bad.parquet", tokenizer, tmp_path)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "columns.parquet")
    with pytest.raises(InputError, match="columns source, url are missing"):
        tokenize(tmp_path / "columns.parquet", tokenizer, tmp_path)
    pq.write_table(pa.table(batches(DOCUMENTS)[0].to_pydict()).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match=r"empty.parquet: no documents to tokenize"):
        tokenize(tmp_path / "empty.parquet", tokenizer, tmp_path)


def sampled_ids(path: Path, **options: int) -> list[str]:
    by_text = {row["text"]: row["id"] for row in pq.read_table(path).to_pylist()}
    return [by_text[text] for text in sample_texts(path, **options)]


def test_sample_texts(tmp_path: Path) -> None:
    documents = [(f"d{i}", f"{i:03d}" * (1 + i % 7), "web", None) for i in range(200)]
    path = write_parquet(tmp_path / "a.parquet", documents)
    backwards = write_parquet(tmp_path / "b.parquet", documents[::-1])
    total = sum(len(text) for _, text, _, _ in documents)
    assert list(sample_texts(path, max_bytes=total, seed=0)) == [text for _, text, _, _ in documents]
    half = list(sample_texts(path, max_bytes=total // 2, seed=0))
    assert total // 2 - 21 < sum(map(len, half)) <= total // 2
    chosen = sampled_ids(path, max_bytes=total // 2, seed=0)
    assert chosen == sorted(chosen, key=lambda name: int(name[1:]))
    assert set(chosen) == set(sampled_ids(backwards, max_bytes=total // 2, seed=0))
    assert set(chosen) != set(sampled_ids(path, max_bytes=total // 2, seed=1))
    assert set(chosen) > set(sampled_ids(path, max_bytes=total // 4, seed=0))
    assert len(list(sample_texts(path, max_bytes=1, seed=0))) == 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two sources: this project's own code and prose about it."""
    documents: list[Document] = []
    root = Path(__file__).resolve().parents[2]
    for path in sorted((root / "pylm" / "data").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        documents += [(f"{path.name}-{i}", part, "code", None) for i, part in enumerate(text.split("\n\n"))]
    documents += [(f"{i}", f"The {i}th naïve café costs {i * 7} €.", "prose", None) for i in range(200)]
    return write_parquet(tmp_path_factory.mktemp("prepare") / "train.parquet", documents)


def test_real_tokenizer_from_documents_to_shards_and_back(prepared: Path, tmp_path: Path) -> None:
    from pylm.text import Tokenizer

    out = tmp_path / "tokenizer" / "tokenizer.json"
    config = TokenizerConfig(vocab_size=600)
    trained = train_tokenizer(config, prepared, out, seed=0)
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer.json"]
    tokenizer = Tokenizer.load(out)
    assert tokenizer.vocab_size == trained.vocab_size == 600
    assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
    stats = tokenize(prepared, tokenizer, tmp_path / "tokens").sources
    rows = pq.read_table(prepared).to_pylist()
    for name, shard in open_shards(tmp_path / "tokens").items():
        shard.check_tokenizer(trained)
        texts = [row["text"] for row in rows if row["source"] == name]
        ends = shard.offsets[1:] - 1
        assert (shard.tokens[ends] == tokenizer.special_tokens[END_OF_TEXT]).all()
        pieces = [shard.tokens[a:b] for a, b in zip(shard.offsets[:-1], ends, strict=True)]
        assert [tokenizer.decode(piece.tolist()) for piece in pieces] == texts
        assert stats[name].bytes_per_token == sum(len(t.encode()) for t in texts) / sum(map(len, pieces))
        assert stats[name].num_used == len(np.unique(shard.tokens))


def test_tokenizer_does_not_depend_on_threads_or_order(prepared: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=400, max_bytes=20_000)
    first = train_tokenizer(config, prepared, tmp_path / "a.json", seed=0, num_threads=1)
    second = train_tokenizer(config, prepared, tmp_path / "b.json", seed=0, num_threads=2)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert first.fingerprint == second.fingerprint
    other = train_tokenizer(config, prepared, tmp_path / "c.json", seed=1)
    assert other.fingerprint != first.fingerprint


def test_tokenizer_needs_its_end_of_text(prepared: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=300, special_tokens=("<pad>",))
    with pytest.raises(InputError, match=re.escape("tokenizer.special_tokens must hold <|endoftext|>")):
        train_tokenizer(config, prepared, tmp_path / "tokenizer.json", seed=0)


def test_counting_for_a_tokenizer_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents: list[Document] = [
        (f"d{i}", f"word{i % 97} and number {i}", "web", None) for i in range(20_000)
    ]
    path = write_parquet(tmp_path / "train.parquet", documents)
    config = TokenizerConfig(vocab_size=500, max_token_length=6)
    whole = train_tokenizer(config, path, tmp_path / "whole.json", seed=0)
    assert max(len(whole.token_bytes(i)) for i in range(len(SPECIAL_TOKENS), 500)) < 6
    monkeypatch.setattr(vocabulary, "SAVE_INTERVAL_S", -1.0)
    counted: list[int] = []

    def stop(phase: str, done: int, total: int | None) -> None:
        if phase == "count":
            counted.append(done)
            assert total == sum(len(text) for _, text, _, _ in documents)
            if len(counted) == 3:
                raise KeyboardInterrupt

    out = tmp_path / "tokenizer.json"
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(config, path, out, seed=0, progress=stop)
    assert (tmp_path / "counts.npz").exists()
    resumed = train_tokenizer(config, path, out, seed=0, progress=stop)
    # The third column was counted but not saved.
    assert counted[3] == counted[2]
    assert counted[-1] == sum(len(text) for _, text, _, _ in documents)
    assert resumed.fingerprint == whole.fingerprint
    assert not (tmp_path / "counts.npz").exists()
