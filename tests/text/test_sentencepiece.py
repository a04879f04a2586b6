"""SentencePiece-style BPE against the `sentencepiece` package, `tokenizers` and the rule itself."""

import gzip
import io
import json
import random
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from binary_form import through_binary
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sentencepiece as oracle
from oracles.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text._character_model import CharacterModel
from pylm.text._sentencepiece_format import read

BYTES: list[Piece] = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
META: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
ALPHABET = [
    *" ▁\t\n\r\xa0aetéQq.,09<>日本語ﬁⅧ\U0001f600\u0301\u200b\ufeff\x00\u3000",
    *("the", "th", " the", "  ", "<sep>", "<s>", "<unk>", "<0x0A>", "a b", "e\u0301", "ス\u3099", "    "),
]
HOSTILE = st.lists(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]), max_size=30).map(
    "".join
)
INVALID = st.lists(
    st.sampled_from([bytes([b]) for b in b"a \xe2\x96\x81\xff\xc3\xa9\xf0\x9f\x98\x80\xed\xa0\xc0"])
)


def _tokenizer(content: bytes, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.model"
    path.write_bytes(content)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama2_path(shared_data: Path) -> Path:
    return shared_data / "tokenizers/llama2/tokenizer.model"


@pytest.fixture(scope="module")
def llama2(llama2_path: Path) -> Tokenizer:
    return Tokenizer.load(llama2_path)


@pytest.fixture(scope="module")
def llama2_saved(llama2: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    llama2.save(folder / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def real_texts(shared_data: Path) -> list[str]:
    paths = [
        "tokenizers/openai/TestPlans.txt",
        "text/wiki_demo.txt",
        "text/c4_demo.jsonl",
        "bpe_reference/german.txt",
    ]
    texts = [(shared_data / p).read_text(encoding="utf-8") for p in paths]
    pages = sorted((shared_data / "html_gold/html").iterdir())[:12]
    texts += [gzip.decompress(page.read_bytes()).decode("utf-8", "replace") for page in pages]
    with gzip.open(shared_data / "lid/udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += list(lines)[::9]
    return texts


# Given by the sentencepiece package, version 0.2.3.
LLAMA2_GOLDEN = {
    "": [],
    " ": [259],
    "Hello world": [15043, 3186],
    " Hello  world ": [29871, 15043, 29871, 3186, 29871],
    "    return x\n\n": [268, 736, 921, 13, 13],
    "\t\r\n": [29871, 12, 30004, 13],
    "na\xefve \xe9t\xe9 \u65e5\u672c\u8a9e": [1055, 30085, 345, 4370, 29871, 30325, 30346, 30968],
    "a▁b": [263, 289],
    "1234567890": [29871, 29896, 29906, 29941, 29946, 29945, 29953, 29955, 29947, 29929, 29900],
    "<s>[INST] don't </s>": [529, 29879, 24566, 25580, 29962, 1016, 29915, 29873, 1533, 29879, 29958],
    "\U0001f600\u200d": [29871, 243, 162, 155, 131, 30722],
    "\x00": [29871, 3],
}


@pytest.mark.parametrize("text", LLAMA2_GOLDEN)
def test_llama2_golden_ids(text: str, llama2: Tokenizer) -> None:
    assert llama2.encode_ordinary(text) == LLAMA2_GOLDEN[text]


def test_llama2_ids_equal_tokenizers_on_real_text(
    llama2: Tokenizer, llama2_saved: tokenizers.Tokenizer, real_texts: list[str]
) -> None:
    batch = llama2.encode_batch(real_texts)
    peers = llama2_saved.encode_batch(real_texts, add_special_tokens=False)
    for index, (text, peer) in enumerate(zip(real_texts, peers, strict=True)):
        assert batch[index].tolist() == peer.ids, index
        assert llama2.decode(batch[index]) == text


def test_llama2_ids_equal_sentencepiece_on_real_text(
    llama2: Tokenizer, llama2_path: Path, real_texts: list[str]
) -> None:
    peer = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(llama2_path))
    texts = real_texts + [" " * n + "x" * (n % 3) + "\n" * (n % 5) for n in range(150)]
    batch = llama2.encode_batch(texts)
    for index, text in enumerate(texts):
        assert batch[index].tolist() == peer.encode(text), index


@given(text=HOSTILE)
@settings(max_examples=400, deadline=None)
def test_llama2_ids_equal_tokenizers_on_hostile_text(
    llama2: Tokenizer, llama2_saved: tokenizers.Tokenizer, text: str
) -> None:
    ids = llama2.encode_ordinary(text)
    assert ids == llama2_saved.encode(
        text.replace("<s>", "s").replace("<unk>", "u"), add_special_tokens=False
    ).ids or ("<s>" in text or "<unk>" in text)
    assert llama2.decode(ids) == llama2_saved.decode(ids, skip_special_tokens=False)
    assert "▁" in text or llama2.decode(ids) == text


@given(content=INVALID.map(b"".join))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_no_utf8_become_replacement_characters(
    llama2: Tokenizer, llama2_path: Path, content: bytes
) -> None:
    peer = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(llama2_path))
    assert llama2.encode_ordinary(content) == peer.encode(content)


def test_every_container_and_number_of_threads_gives_the_same_ids(
    llama2: Tokenizer, real_texts: list[str], tmp_path: Path
) -> None:
    texts = real_texts[:30]
    one = llama2.encode_batch(texts, num_threads=1)
    assert [row.tolist() for row in one] == [llama2.encode_ordinary(text) for text in texts]
    columns = [pa.array(texts), pa.array(texts, pa.large_string()), pa.chunked_array([texts[:3], texts[3:]])]
    (tmp_path / "all").write_bytes("\x01".join(texts).encode())
    for other in (
        llama2.encode_batch(texts, num_threads=3),
        *(llama2.encode_batch(column) for column in columns),
        llama2.encode_files([tmp_path / "all"], separator="\x01"),
    ):
        assert np.array_equal(other.ids, one.ids)
        assert np.array_equal(other.offsets, one.offsets)
    joined = " ".join(texts)  # cut into shares inside
    assert len(joined.encode()) > 1 << 20
    assert llama2.encode_batch([joined], num_threads=2).ids.tolist() == llama2.encode_ordinary(joined)
    ends = llama2.encode_batch(["a", "", "b c"], end_id=2)
    assert [row.tolist() for row in ends] == [[*llama2.encode_ordinary(t), 2] for t in ("a", "", "b c")]


def test_vector_instructions_change_nothing(llama2_path: Path, real_texts: list[str]) -> None:
    model = read(llama2_path, llama2_path.read_bytes()).model
    assert isinstance(model, CharacterModel)
    levels = [model.make_core(simd=simd) for simd in (False, True)]
    assert all(level.cuts_text for level in levels)
    scalar, best = (level.encode_texts(real_texts, end_id=None, num_threads=1) for level in levels)
    assert np.array_equal(scalar[0], best[0])
    # And so does looking for borders at all: words are split nowhere once the vocabulary forbids it.
    vocabulary = _core.Vocabulary([*model.vocabulary.tokens(), b"Z Z"], model.vocabulary.merges())
    whole = replace(model, vocabulary=vocabulary, kinds=np.append(model.kinds, NORMAL).astype(np.uint8))
    assert whole.core.encode_texts(real_texts[:1], end_id=None, num_threads=1)[0].tolist() == (
        best[0][: best[1][1]].tolist()
    )


@pytest.mark.parametrize("unit", ["a", " ", "\U0001f600", "\n", "é", "日本語", "ab ", "▁"])
def test_long_rows(unit: str, llama2: Tokenizer, llama2_saved: tokenizers.Tokenizer) -> None:
    text = unit * (200_000 // len(unit.encode()))
    ids = llama2.encode_ordinary(text)
    assert llama2.decode(ids) == text.replace("▁", " ")
    short = text[:500]
    assert llama2.encode_ordinary(short) == llama2_saved.encode(short, add_special_tokens=False).ids


def test_special_tokens_and_prefixes(llama2: Tokenizer, llama2_saved: tokenizers.Tokenizer) -> None:
    assert llama2.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in ("<s>a", "a<s>b c</s>", "<s> a", " <s>", "<s></s>"):
        ids = llama2.encode(text, allowed_special="all")
        assert ids == llama2_saved.encode(text, add_special_tokens=False).ids
        assert llama2.decode(ids) == llama2_saved.decode(ids, skip_special_tokens=False)
    with pytest.raises(InputError, match="special token '<s>'"):
        llama2.encode("a<s>")


def test_token_bytes(llama2: Tokenizer) -> None:
    assert llama2.token_bytes(15043) == b" Hello"
    assert llama2.token_bytes(3 + 0xE2) == b"\xe2"
    assert llama2.token_bytes(1) == b"<s>"
    assert llama2.decode_bytes([3 + 0xE2, 3 + 0x96]) == b"\xe2\x96"
    with pytest.raises(InputError, match="token id 32000"):
        llama2.token_bytes(32000)


def test_saved_file_loads_with_the_same_ids(llama2: Tokenizer, folder: Path, llama2_saved: Any) -> None:
    again = Tokenizer.load(folder / "tokenizer.json")
    assert again.fingerprint == llama2.fingerprint
    assert again.special_tokens == llama2.special_tokens
    assert again.encode("Hello  wörld\n 日本") == llama2.encode("Hello  wörld\n 日本")


def test_post_processors_put_tokens_around_a_text(llama2: Tokenizer, folder: Path, tmp_path: Path) -> None:
    llama2.save(folder / "plain.json")
    document = json.loads((folder / "plain.json").read_text(encoding="utf-8"))
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    peer = tokenizers.Tokenizer.from_file(str(path))
    ours = Tokenizer.load(path)
    ours.save(tmp_path / "again.json")
    for tokenizer in (ours, Tokenizer.load(tmp_path / "again.json")):
        assert tokenizer.encode("a text", add_special_tokens=True) == peer.encode("a text").ids
        assert tokenizer.encode("a text") == peer.encode("a text", add_special_tokens=False).ids


def test_kind_of_a_model_file_shows_in_its_bytes(
    llama2_path: Path, shared_data: Path, tmp_path: Path
) -> None:
    ranks = Tokenizer.load(shared_data / "tokenizers/llama3/tokenizer.model", pattern="llama3")
    assert ranks.encode("hello world") == [15339, 1917]
    (tmp_path / "tokenizer.model").write_bytes(llama2_path.read_bytes())
    assert Tokenizer.load(tmp_path).encode("hello world") == [22172, 3186]


# Vocabularies at random: ties, pieces of the user, pieces that are not given out, characters without a piece.
LETTERS = "ab▁é日"
SMALL_TEXT = st.text(alphabet="aab▁  é日q\n", max_size=24)
SMALL_PIECES = st.dictionaries(
    st.text(alphabet=LETTERS, min_size=1, max_size=4),
    st.tuples(st.integers(-6, 0).map(float), st.sampled_from([NORMAL] * 6 + [UNUSED, USER_DEFINED])),
    max_size=14,
).map(lambda found: [(text, score, kind) for text, (score, kind) in found.items()])


RUNS: list[Piece] = [("▁" * size, -50.0, NORMAL) for size in range(2, 6)]  # as Llama 2 has them


@given(
    pieces=SMALL_PIECES | SMALL_PIECES.map(lambda pieces: [p for p in pieces if "▁▁" not in p[0]] + RUNS),
    texts=st.lists(SMALL_TEXT, min_size=1, max_size=6),
    byte_fallback=st.booleans(),
    prefix=st.booleans(),
    collapse=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_ids_equal_the_rule_with_any_vocabulary(
    folder: Path, pieces: list[Piece], texts: list[str], byte_fallback: bool, prefix: bool, collapse: bool
) -> None:
    pieces = META + (BYTES if byte_fallback else []) + pieces
    options = {"byte_fallback": byte_fallback, "prefix": prefix, "collapse": collapse}
    tokenizer = _tokenizer(oracle.write_model(pieces, **options), folder)
    expected = [oracle.encode(text, pieces, **options) for text in texts]
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == expected
    assert [tokenizer.encode_ordinary(text) for text in texts] == expected
    mapped = through_binary(tokenizer, folder)
    assert [mapped.encode_ordinary(text) for text in texts] == expected


@given(
    pieces=SMALL_PIECES,
    texts=st.lists(SMALL_TEXT, max_size=5),
    byte_fallback=st.booleans(),
    prefix=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_rule_is_that_of_sentencepiece(
    pieces: list[Piece], texts: list[str], byte_fallback: bool, prefix: bool
) -> None:
    peers = pytest.importorskip("sentencepiece")
    pieces = META + (BYTES if byte_fallback else []) + pieces
    options = {"byte_fallback": byte_fallback, "prefix": prefix}
    peer = peers.SentencePieceProcessor(model_proto=oracle.write_model(pieces, **options))
    for text in texts:
        assert oracle.encode(text, pieces, **options) == peer.encode(text)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("collapse", [False, True])
def test_pieces_of_the_user_see_replacement_characters(prefix: bool, collapse: bool, tmp_path: Path) -> None:
    peers = pytest.importorskip("sentencepiece")
    normal = [(piece, -float(i), NORMAL) for i, piece in enumerate(["▁a", "a", "b", "▁", "ab"])]
    pieces = [*META, *normal, ("a\ufffd", 0.0, USER_DEFINED), ("\ufffd\ufffd", 0.0, USER_DEFINED)]
    content = oracle.write_model(pieces, byte_fallback=False, prefix=prefix, collapse=collapse)
    ours, peer = _tokenizer(content, tmp_path), peers.SentencePieceProcessor(model_proto=content)
    random_ = random.Random(3)
    for _ in range(500):
        text = b"".join(random_.choices([b"a", b"b", b" ", b"\xff", b"\xef\xbf\xbd"], k=random_.randrange(8)))
        assert ours.encode_ordinary(text) == peer.encode(text), text


IDENTITY = {"normalization_rule_name": "identity"}
BYTE_FALLBACK = {"byte_fallback": True, "vocab_size": 700}
TRAINED: dict[str, dict[str, Any]] = {
    "nmt_nfkc": {},
    "nmt_nfkc, bytes": BYTE_FALLBACK,
    "nfkc_cf": {"normalization_rule_name": "nfkc_cf"},
    "identity, bytes": {**IDENTITY, **BYTE_FALLBACK},
    "no prefix": {**IDENTITY, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "spaces kept": {**IDENTITY, **BYTE_FALLBACK, "remove_extra_whitespaces": False},
    "of the user": {
        **IDENTITY,
        **BYTE_FALLBACK,
        "user_defined_symbols": ["<sep>", "the", "日本", "▁▁", "a b", "\n"],
        "remove_extra_whitespaces": False,
    },
    "of the user, nmt_nfkc": {"user_defined_symbols": ["<sep>", "th", "a", "ﬁ", " x"]},
    "across words": {**IDENTITY, "split_by_whitespace": False},
}


@pytest.mark.parametrize("name", TRAINED)
def test_ids_equal_sentencepiece_with_trained_models(name: str, folder: Path) -> None:
    peers = pytest.importorskip("sentencepiece")
    lines = [*Path(__file__).read_text(encoding="utf-8").split("\n"), "été  naïve ﬁ Ⅷ ①", "日本語 テキスト"]
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2}
    peers.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **{**options, **TRAINED[name]}
    )
    peer = peers.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = _tokenizer(model.getvalue(), folder)
    random_ = random.Random(0)
    texts = ["".join(random_.choices(ALPHABET, k=random_.randrange(25))) for _ in range(800)] + lines
    batch = tokenizer.encode_batch(texts)
    mapped = through_binary(tokenizer, folder)
    for index, text in enumerate(texts):
        assert batch[index].tolist() == peer.encode(text) == mapped.encode_ordinary(text), text
        assert mapped.decode(batch[index]) == tokenizer.decode(batch[index])
    try:
        tokenizer.save(folder / "trained.json")
    except InputError:
        return
    saved = tokenizers.Tokenizer.from_file(str(folder / "trained.json"))
    again = Tokenizer.load(folder / "trained.json")
    assert again.fingerprint == tokenizer.fingerprint
    for index, text in enumerate(texts):
        if any(special in text for special in tokenizer.special_tokens):
            continue
        assert batch[index].tolist() == saved.encode(text, add_special_tokens=False).ids, text
        assert batch[index].tolist() == again.encode_ordinary(text), text


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("escape", [False, True])
def test_spaces_are_saved_as_they_are_read(prefix: bool, collapse: bool, escape: bool, folder: Path) -> None:
    peers = pytest.importorskip("sentencepiece")
    texts = [" ", "▁", "a", "b", "ab", " a", "▁a", " ab", "  ", "▁▁", "é"]
    pieces = [META[0], *BYTES, *((text, -float(i), NORMAL) for i, text in enumerate(texts))]
    content = oracle.write_model(pieces, byte_fallback=True, prefix=prefix, collapse=collapse, escape=escape)
    tokenizer = _tokenizer(content, folder)
    tokenizer.save(folder / "saved.json")
    again = Tokenizer.load(folder / "saved.json")
    peer = peers.SentencePieceProcessor(model_proto=content)
    saved = tokenizers.Tokenizer.from_file(str(folder / "saved.json"))
    random_ = random.Random(3)
    for _ in range(400):
        text = "".join(random_.choices(["a", "b", " ", "  ", "▁", "é", "ab", "x"], k=random_.randrange(7)))
        ids = peer.encode(text)
        assert tokenizer.encode_ordinary(text) == ids, text
        assert again.encode_ordinary(text) == ids, text
        assert saved.encode(text, add_special_tokens=False).ids == ids, text


def _json_model(**changes: Any) -> dict[str, Any]:
    pieces = [
        "<unk>",
        "<s>",
        *(p for p, _, _ in BYTES),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "▁ab",
        "▁▁",
        "é",
        "b▁",
        "c",
    ]
    merges = [["▁", "a"], ["a", "b"], ["▁", "ab"], ["▁a", "b"], ["▁", "▁"], ["b", "▁"]]
    vocabulary = {p: i for i, p in enumerate(pieces)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>",
             "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "dropout": None}  # fmt: skip
    special = {"id": 1, "content": "<s>", "special": True, "normalized": False, "single_word": False,
               "lstrip": False, "rstrip": False}  # fmt: skip
    document = {"version": "1.0", "added_tokens": [special], "normalizer": None, "pre_tokenizer": None,
                "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    model.update({k: v for k, v in changes.items() if k in model})
    document.update({k: v for k, v in changes.items() if k in document})
    return document


MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
LLAMA = {"type": "Sequence", "normalizers": [PREPEND, MARKS]}
METASPACE = {"type": "Metaspace", "replacement": "▁"}
JSON_KINDS: dict[str, dict[str, Any]] = {
    "llama": {"normalizer": LLAMA},
    "gemma": {
        "normalizer": MARKS,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
    },
    **{
        f"metaspace {scheme} {split}": {
            "pre_tokenizer": {**METASPACE, "prepend_scheme": scheme, "split": split}
        }
        for scheme in ("first", "always", "never")
        for split in (True, False)
    },
    "ignore merges": {"normalizer": LLAMA, "ignore_merges": True},
    "words, ignore merges": {
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "always", "split": True},
        "ignore_merges": True,
    },
    "words without a prefix, ignore merges": {
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "never", "split": True},
        "ignore_merges": True,
    },
    **{
        f"prefix of the normalizer, metaspace {scheme}": {
            "normalizer": LLAMA,
            "pre_tokenizer": {**METASPACE, "prepend_scheme": scheme, "split": True},
        }
        for scheme in ("first", "always", "never")
    },
    "prefix of the normalizer, one word": {
        "normalizer": LLAMA,
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "never", "split": False},
    },
    "no bytes": {
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "first", "split": False},
        "byte_fallback": False,
    },
    "no bytes, words": {
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "always", "split": True},
        "byte_fallback": False,
    },
    "no bytes, each unknown": {
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "first", "split": True},
        "byte_fallback": False,
        "fuse_unk": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_json_ids_equal_tokenizers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_json_model(**JSON_KINDS[kind])), encoding="utf-8")
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    ours.save(tmp_path / "saved.json")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved.json"))
    mapped = through_binary(ours, tmp_path)
    random_ = random.Random(1)
    parts = [
        "a",
        "b",
        "ab",
        " ",
        " ",
        "  ",
        "▁",
        "é",
        "日",
        "\n",
        "c",
        "<s>",
        "ba",
        "<unk>",
        " <unk>",
        "<0x61>",
    ]
    for _ in range(800):
        text = "".join(random_.choices(parts, k=random_.randrange(12)))
        ids = ours.encode(text, allowed_special="all")
        assert ids == peer.encode(text, add_special_tokens=False).ids, text
        assert ids == saved.encode(text, add_special_tokens=False).ids, text
        assert ids == mapped.encode(text, allowed_special="all"), text
    assert Tokenizer.load(tmp_path / "saved.json").fingerprint == ours.fingerprint


def _steps(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def _dropped(end: str) -> list[dict[str, Any]]:
    rules = [(r"\A +", ""), (" {2,}", " "), (end, "")]
    return [{"type": "Replace", "pattern": {"Regex": old}, "content": new} for old, new in rules]


SPACES = _dropped(r" +\z")
SPACES_AND_MARKS = _dropped(r"[ ▁]+\z")
NORMALIZERS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "marks": MARKS,
    "a mark before": LLAMA,
    "a mark before, last": _steps(MARKS, PREPEND),
    "a space before": {"type": "Prepend", "prepend": " "},
    "a space before, marks": _steps({"type": "Prepend", "prepend": " "}, MARKS),
    "spaces dropped": _steps(*SPACES),
    "spaces dropped, a space before": _steps(*SPACES, {"type": "Prepend", "prepend": " "}),
    "spaces dropped, marks": _steps(*SPACES_AND_MARKS, MARKS),
    "spaces dropped, a mark before": _steps(*SPACES_AND_MARKS, PREPEND, MARKS),
}
WITHOUT_MARKS = [NORMALIZERS["spaces dropped"], NORMALIZERS["spaces dropped, a space before"]]
METASPACES: dict[str, dict[str, Any] | None] = {
    f"{scheme} {split}": {**METASPACE, "prepend_scheme": scheme, "split": split}
    for scheme in ("always", "first", "never")
    for split in (True, False)
}


def _mixed_texts(count: int) -> list[str]:
    random_ = random.Random(2)
    parts = ["a", "b", "ab", " ", " ", "  ", "▁", "é", "日", "\n", "<s>", "<unk>", "<0x41>", "\ufffd"]
    texts = ["", "<unk>", "<0x41>", *parts]
    return texts + ["".join(random_.choices(parts, k=random_.randrange(9))) for _ in range(count)]


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("pre_tokenizer", [None, *METASPACES])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_json_ids_equal_tokenizers_with_both_kinds_of_marks(
    normalizer: str, pre_tokenizer: str | None, ignore_merges: bool, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    document = _json_model(
        normalizer=NORMALIZERS[normalizer],
        pre_tokenizer=METASPACES[pre_tokenizer] if pre_tokenizer else None,
        ignore_merges=ignore_merges,
    )
    vocabulary = document["model"]["vocab"]
    for piece in ("\ufffd", "b\ufffd", "▁\ufffd"):
        vocabulary[piece] = len(vocabulary)
    document["model"]["merges"].append(["b", "\ufffd"])
    path.write_text(json.dumps(document), encoding="utf-8")
    puts_marks = pre_tokenizer is not None and not pre_tokenizer.startswith("never")
    if "dropped" in normalizer and "before" not in normalizer and puts_marks:
        with pytest.raises(InputError, match="unsupported pre-tokenizer"):
            Tokenizer.load(path)
        return
    if NORMALIZERS[normalizer] in WITHOUT_MARKS and pre_tokenizer is not None:  # marks at the end would stay
        with pytest.raises(InputError, match="unsupported normalizer"):
            Tokenizer.load(path)
        return
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    ours.save(tmp_path / "saved.json")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved.json"))
    assert Tokenizer.load(tmp_path / "saved.json").fingerprint == ours.fingerprint
    for text in _mixed_texts(150):
        ids = peer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allowed_special="all") == ids, text
        assert saved.encode(text, add_special_tokens=False).ids == ids, text
    for content in (b"\xff", b"b\xff", b" b\xff", b"a b\xe2\x96", b"\xff\xfe ab"):
        replaced = re.sub(rb"[\x80-\xff]", "\ufffd".encode(), content).decode()
        ids = peer.encode(replaced, add_special_tokens=False).ids
        assert [row.tolist() for row in ours.encode_batch([content])] == [ids], content


@pytest.mark.parametrize(
    "normalizer",
    [
        _steps(PREPEND, PREPEND, MARKS),
        _steps(MARKS, {"type": "Prepend", "prepend": " "}),
        {"type": "Prepend", "prepend": "x"},
        _steps(MARKS, *SPACES_AND_MARKS),
        _steps(*SPACES, MARKS),
        _steps(*SPACES_AND_MARKS),
        _steps(*SPACES_AND_MARKS[1:], MARKS),
        _steps(PREPEND, *SPACES_AND_MARKS, MARKS),
        PREPEND,
    ],
)
def test_normalizers_whose_steps_mean_something_else_are_refused(
    normalizer: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_json_model(normalizer=normalizer)), encoding="utf-8")
    with pytest.raises(InputError, match="unsupported normalizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize("scheme", ["always", "never"])
def test_words_see_replacement_characters(scheme: str, tmp_path: Path) -> None:
    """`tokenizers` takes text alone, so its side of bytes that are no UTF-8 is U+FFFD."""
    document = _json_model(
        pre_tokenizer={**METASPACE, "prepend_scheme": scheme, "split": True}, ignore_merges=True
    )
    vocabulary = document["model"]["vocab"]
    for piece in ("\ufffd", "a\ufffd", "▁\ufffdb", "\ufffd\ufffd"):
        vocabulary[piece] = len(vocabulary)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    random_ = random.Random(2)
    for _ in range(800):
        content = b"".join(
            random_.choices([b"a", b"b", b" ", b"\xff", b"\xef\xbf\xbd"], k=random_.randrange(7))
        )
        text = content.replace(b"\xff", b"\xef\xbf\xbd").decode()
        assert ours.encode_ordinary(content) == peer.encode(text, add_special_tokens=False).ids, content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "unsupported normalizer"),
        *[({"normalizer": damaged}, "unsupported normalizer") for damaged in (
            [1], "NFC", {}, {"type": "Sequence", "normalizers": [None]}, {"type": "Sequence"},
            {"type": "Replace", "pattern": "x", "content": "y"},
        )],
        ({"pre_tokenizer": {"type": "Whitespace"}}, "unsupported pre-tokenizer"),
        ({"pre_tokenizer": ["▁"]}, "unsupported pre-tokenizer"),
        ({"merges": [["a", "x"]]}, r"merge 0 \('a', 'x'\)"),
        ({"unk_token": "<none>"}, "unk_token '<none>'"),
        ({"unk_token": "a"}, "unsupported unk_token 'a'"),
        ({"unk_token": "ab"}, "unsupported unk_token 'ab'"),
        ({"unk_token": 5}, "unk_token 5 is not in the vocabulary"),
        ({"unk_token": ["a"]}, "unk_token \\['a'\\] is not in the vocabulary"),
        ({"dropout": 0.5}, "unsupported model"),
        ({"type": "Unigram"}, "unsupported model"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_reproduced_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_json_model(**changes)), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Tokenizer.load(path)


@pytest.mark.parametrize("num_bytes", [0, 255])
def test_offsets_where_characters_are_dropped(num_bytes: int, tmp_path: Path) -> None:
    document = _json_model(unk_token=None, normalizer=MARKS, byte_fallback=num_bytes > 0)
    gone = {"<0xE6>"} if num_bytes else {piece for piece, _, _ in BYTES}
    document["model"]["vocab"] = {t: i for i, t in enumerate(document["model"]["vocab"]) if t not in gone}
    document["added_tokens"] = []
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("日", "日a日", "a日b", "日日ab 日a", "é日 日日"):
        found = ours.encode_with_offsets(text)
        assert found.ids.tolist() == peer.encode(text).ids
        parts = [text[begin:end].replace("日", "").replace(" ", "▁") for begin, end in found.chars.tolist()]
        assert parts == [peer.id_to_token(i) for i in found.ids.tolist()]


SMALL: list[Piece] = [*META, ("a", -1.0, NORMAL), ("▁a", -2.0, NORMAL), ("▁", -3.0, NORMAL)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pieces: there are none|model_type is UNIGRAM"),
        (oracle.write_model(SMALL, byte_fallback=False, model_type=1), "model_type is UNIGRAM; expected BPE"),
        (oracle.write_model(SMALL, byte_fallback=False, suffix=True), "treat_whitespace_as_suffix"),
        (oracle.write_model(SMALL, byte_fallback=True), "byte_fallback is on, but byte 0 has no piece"),
        (
            oracle.write_model([*SMALL, ("a", -9.0, NORMAL)], byte_fallback=False),
            r"piece 6 \(a\): occurs twice",
        ),
        (oracle.write_model([*SMALL, ("", -9.0, NORMAL)], byte_fallback=False), "piece 6: the text is empty"),
        (oracle.write_model([*SMALL, ("b", -9.0, 7)], byte_fallback=False), "piece 6: unknown type 7"),
        (oracle.write_model([*SMALL, ("b", float("nan"), 1)], byte_fallback=False), "score is not finite"),
        (oracle.write_model(SMALL[1:], byte_fallback=False), "none is of type UNKNOWN"),
        (oracle.write_model([*SMALL, ("<0x4>", 0.0, BYTE)], byte_fallback=True), r"written <0x00> to <0xFF>"),
        (b"\x0a\x03\x0a\x01\xff", "piece 0: the text is not UTF-8"),
        (b"\x0a\xff\xff\xff\xff\x0f", "field 1 has a length of"),
        (b"\x0a\x06\x0a\x7f" + b"a" * 4, "piece 0: field 1 has a length of 127"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x08\x01", "pieces has the wire type 0"),
        (b"\x0a" + b"\x80" * 11, "more than ten bytes"),
        (b"\x02", "field number 0"),
    ],
)
def test_damaged_models_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _tokenizer(content, tmp_path)


def test_damage_at_random_is_refused_or_loads(tmp_path: Path) -> None:
    whole = oracle.write_model(SMALL, byte_fallback=False)
    # With rules of normalization: a size, units, texts.
    blob = struct.pack("<3I", 8, 5 << 10, 0x41) + b"x\0"
    whole += b"\x1a" + bytes([len(blob) + 2]) + b"\x12" + bytes([len(blob)]) + blob
    random_ = random.Random(0)
    cases = [whole[:n] for n in range(len(whole))]
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(random_.randrange(1, 4)):
            damaged[random_.randrange(len(damaged))] = random_.randrange(256)
        cases.append(bytes(damaged))
    num_loaded = 0
    for content in cases:
        try:
            tokenizer = _tokenizer(content, tmp_path)
        except InputError:
            continue
        tokenizer.encode_ordinary("a ▁a Aé\x00 b")
        num_loaded += 1
    assert 0 < num_loaded < len(cases)


def test_what_a_json_cannot_express_is_not_saved(tmp_path: Path) -> None:
    pieces = [*SMALL, ("b", -4.0, USER_DEFINED)]
    tokenizer = _tokenizer(oracle.write_model(pieces, byte_fallback=False), tmp_path)
    with pytest.raises(InputError, match="user-defined pieces together with a space before texts"):
        tokenizer.save(tmp_path / "tokenizer.json")
    pieces = [*SMALL, ("aa", -4.0, UNUSED)]
    tokenizer = _tokenizer(oracle.write_model(pieces, byte_fallback=False), tmp_path)
    with pytest.raises(InputError, match="UNUSED"):
        tokenizer.save(tmp_path / "tokenizer.json")


def test_stories_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    """The 512 pieces of a tiny model, whose golden ids spell its golden text."""
    content = (shared_data / "tinyllm/tok512.bin").read_bytes()
    pieces: list[Piece] = []
    place = 4
    while place < len(content):
        score, size = struct.unpack_from("<fi", content, place)
        text = content[place + 8 : place + 8 + size].decode()
        place += 8 + size
        kind = BYTE if 3 <= len(pieces) < 259 else NORMAL
        pieces.append((text.replace(" ", "▁"), score, kind))
    for i, name in enumerate(("<unk>", "<s>", "</s>")):
        pieces[i] = (name, 0.0, UNKNOWN if i == 0 else CONTROL)
    tokenizer = _tokenizer(oracle.write_model(pieces, byte_fallback=True), tmp_path)
    golden = json.loads((shared_data / "tinyllm/stories260K_golden.json").read_text(encoding="utf-8"))
    ids = [i for i in golden["greedy_ids"] if i > 2]
    text = tokenizer.decode(ids)
    assert text.strip() == golden["text"].strip()
    assert oracle.encode(text, pieces, byte_fallback=True) == tokenizer.encode_ordinary(text)
