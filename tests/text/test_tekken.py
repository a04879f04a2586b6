"""Mistral's tekken.json, against tiktoken on the same ranks."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text.patterns import PATTERNS

NUM_SPECIAL = 30


@pytest.fixture(scope="module")
def tokens() -> list[bytes]:
    corpus = Path(__file__).read_text(encoding="utf-8").split("\n")
    trained = Tokenizer.train(corpus, vocab_size=400, pattern="tekken", initial_alphabet=bytes(range(256)))
    # Ranks begin with the bytes in order.
    learnt = [trained.token_bytes(i) for i in range(trained.vocab_size)]
    return [bytes([b]) for b in range(256)] + [token for token in learnt if len(token) > 1]


@pytest.fixture
def document(tokens: list[bytes]) -> dict[str, Any]:
    return {
        "config": {
            "pattern": PATTERNS["tekken"].expression,
            "num_vocab_tokens": len(tokens) + 2,
            "default_vocab_size": len(tokens) + NUM_SPECIAL,
            "default_num_special_tokens": NUM_SPECIAL,
            "version": "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate([*tokens, b"past the end", b"and this"])
        ],
    }


def _write(document: dict[str, Any], folder: Path) -> Path:
    path = folder / "tekken_1.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_ids_equal_tiktoken(tokens: list[bytes], document: dict[str, Any], tmp_path: Path) -> None:
    ours = Tokenizer.load(_write(document, tmp_path))
    ranks = {token: i for i, token in enumerate(tokens)}
    peer = tiktoken.Encoding(
        "x", pat_str=PATTERNS["tekken"].expression, mergeable_ranks=ranks, special_tokens={}
    )
    assert ours.pattern == "tekken"
    assert ours.vocab_size == len(tokens) + NUM_SPECIAL
    texts = [
        *Path(__file__).read_text(encoding="utf-8").split("\n"),
        "Größe 日本 😀 12345",
        "\x00\x01",
        "past the end",
    ]
    for text in texts:
        expected = [i + NUM_SPECIAL for i in peer.encode_ordinary(text)]
        assert ours.encode_ordinary(text) == expected
        assert ours.decode(expected) == text
    batch = ours.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [ours.encode_ordinary(text) for text in texts]
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 11)
    assert ours.special_tokens["[TOOL_CONTENT]"] == 19
    assert ours.special_tokens["<SPECIAL_29>"] == 29
    assert ours.encode("a<s>", allowed_special="all") == [*ours.encode("a"), 1]
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [again.encode_ordinary(text) for text in texts] == [ours.encode_ordinary(text) for text in texts]


def test_own_special_tokens_and_folders(document: dict[str, Any], tmp_path: Path) -> None:
    document["config"]["version"] = "v13"
    document["special_tokens"] = [
        {"rank": 1, "token_str": "<s>", "is_control": True},
        {"rank": 0, "token_str": "<null>", "is_control": True},
    ]
    _write(document, tmp_path).rename(tmp_path / "tekken.json")
    ours = Tokenizer.load(tmp_path)
    assert ours.special_tokens == {
        "<null>": 0,
        "<s>": 1,
        **{f"<SPECIAL_{i}>": i for i in range(2, NUM_SPECIAL)},
    }
    assert (ours.bos_id, ours.eos_id) == (1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(config={}), "not a tekken.json; expected config"),
        (lambda d: d["config"].update(default_vocab_size=10_000), "not a tekken.json; expected config"),
        (
            lambda d: d["config"].update(default_vocab_size=2**40 + 256, default_num_special_tokens=2**40),
            r"default_num_special_tokens \(at most 65536\)",
        ),
        (lambda d: d["config"].update(version="v11"), "no special_tokens, which version 'v11' must have"),
        (lambda d: d["config"].update(pattern="("), "pattern '\\('"),
        (lambda d: d["vocab"].pop(3), "vocab entry 3 must have rank 3"),
        (lambda d: d["vocab"][5].update(token_bytes="AA=="), "has the ids 0 and 5"),
        (lambda d: d["vocab"][5].update(token_bytes="A A"), "entry 5 must have rank 5 and token_bytes in"),
        (lambda d: d["vocab"][5].update(token_bytes=None), "vocab entry 5 must have rank 5"),
        (lambda d: d.update(special_tokens={}), "special_tokens must be a list of at most 30"),
        (lambda d: d.update(special_tokens=[{"rank": 31, "token_str": "x"}]), "rank of its own, below 30"),
        (lambda d: d.update(special_tokens=[{"rank": 1, "token_str": "x"}]), "'x' has the rank of one"),
        (lambda d: d.update(special_tokens=[{"rank": 0}]), "expected token_str"),
        (lambda d: d.update(special_tokens=[{"rank": 0, "token_str": "\ud800"}]), "0 .* lone surrogates"),
    ],
)  # fmt: skip
def test_damaged_entries_are_named(
    document: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(document)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(_write(document, tmp_path))
    (tmp_path / "tekken_2.json").write_bytes(b"{")
    with pytest.raises(InputError, match="not JSON"):
        Tokenizer.load(tmp_path / "tekken_2.json")


def test_models_of_sentencepiece_may_have_a_version_behind_their_name(
    shared_data: Path, tmp_path: Path
) -> None:
    original = shared_data / "tokenizers/llama2/tokenizer.model"
    copy = tmp_path / "mistral.model.v3"
    copy.write_bytes(original.read_bytes())
    assert Tokenizer.load(copy).fingerprint == Tokenizer.load(original).fingerprint
