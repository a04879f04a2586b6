"""Random tokenizers, as `.pylm` files too, against themselves and Hugging Face on hostile texts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pylm.errors import InputError
from pylm.text import Tokenizer

PARTS = [
    *("a", "b", "ab", " ", "  ", "\t", "\n", "é", "e\u0301", "ﬁ", "日本", "語", "\U0001f600", "<s>", "<t>"),
    *(
        " x ",
        "xyz",
        "W",
        "w",
        "1",
        "23",
        "_",
        "\u00a0",
        "\u3000",
        "▁",
        "İ",
        "Σ",
        "\u0bbe",
        "\0",
        "'s",
        "<0xE2>",
    ),
]
NORMALIZERS: list[dict[str, Any] | None] = [
    None,
    {"type": "NFC"},
    {"type": "NFKC"},
    {"type": "NFD"},
    {"type": "Lowercase"},
    {"type": "Prepend", "prepend": "x"},
    {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"},
    {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def _text(draw: random.Random) -> str:
    return "".join(draw.choices(PARTS, k=draw.randrange(14)))


def _added(draw: random.Random, words: list[str], vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    """Words with flags; those of the vocabulary keep their ids and are not special: text may come to them."""
    added, next_id = [], len(vocabulary)
    for word in draw.sample(words, draw.randrange(len(words))):
        known = vocabulary.get(word)
        flags = {flag: draw.random() < 0.3 for flag in FLAGS}
        special = known is None and draw.random() < 0.5
        added.append({"id": next_id if known is None else known, "content": word, "special": special} | flags)
        next_id += known is None
    return added


def _template(token: dict[str, Any]) -> dict[str, Any]:
    name = token["content"]
    parts = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token["id"]], "tokens": [name]}},
    }


def _byte_level(draw: random.Random, folder: Path) -> dict[str, Any]:
    pattern = draw.choice(["gpt2", "cl100k", "qwen2", "o200k", r"\w+|\W+"])
    corpus = [_text(draw) for _ in range(200)]
    size = 261 + draw.randrange(90)
    Tokenizer.train(corpus, vocab_size=size, pattern=pattern, min_frequency=1).save(folder / "trained.json")
    document: dict[str, Any] = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    model = document["model"]
    model["ignore_merges"] = draw.random() < 0.6
    if draw.random() < 0.3:  # tokens that no merge arrives at
        draw.shuffle(model["merges"])
        del model["merges"][len(model["merges"]) * 3 // 4 :]
    document["normalizer"] = draw.choice(NORMALIZERS)
    # "é" alone is also how the byte-level alphabet writes a byte.
    words = ["<s>", "<t>", " x", "ab", "W", "ﬁ", "日本", "x ", "\n"]
    document["added_tokens"] = _added(draw, words, model["vocab"])
    if document["added_tokens"] and draw.random() < 0.5:
        document["post_processor"] = _template(document["added_tokens"][0])
    return document


def _sentencepiece(draw: random.Random, _: Path) -> dict[str, Any]:
    byte_fallback, has_prefix = draw.random() < 0.6, draw.random() < 0.5
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256 if byte_fallback else 0))]
    alphabet = [*"▁abxyzé12Ww日本es<>t0"]
    pool = draw.sample(alphabet, draw.randrange(8, len(alphabet)))
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *pool])}
    merges = []
    for _round in range(draw.randrange(3, 40)):
        pair = [draw.choice(pool), draw.choice(pool)]
        if len(piece := "".join(pair)) <= 8 and piece not in vocabulary:
            vocabulary[piece] = len(vocabulary)
            pool.append(piece)
            merges.append(pair)
    prepend = [{"type": "Prepend", "prepend": "▁"}] if has_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    replaces = [
        {"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in ((" ", "▁"), ("▁", " "))
    ]
    unknown = {"id": 0, "content": "<unk>", "special": True} | dict.fromkeys(FLAGS, False)
    words = _added(draw, ["<s>", "<t>", "xyz", "ab", "W", "  "], vocabulary)
    return {
        "added_tokens": [unknown, *(word | {"normalized": False} for word in words)],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replaces[0]]},
        "decoder": {
            "type": "Sequence",
            "decoders": [replaces[1], {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": draw.random() < 0.5,
            "byte_fallback": byte_fallback,
            "ignore_merges": draw.random() < 0.5,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _offsets(tokenizer: Tokenizer, text: str, **options: Any) -> list[Any]:
    try:
        found = tokenizer.encode_with_offsets(text, **options)
    except InputError as error:
        return [str(error)]
    starts = [begin for begin, _ in found.bytes.tolist()]
    assert starts == sorted(starts)
    assert all(0 <= begin <= end <= len(found.text.encode()) for begin, end in found.bytes.tolist())
    return [found.ids.tolist(), found.bytes.tolist(), found.chars.tolist(), found.text]


def _check(again: Tokenizer, original: Tokenizer, peer: tokenizers.Tokenizer, draw: random.Random) -> None:
    assert again.fingerprint == original.fingerprint
    assert again.added_tokens == original.added_tokens
    texts = [_text(draw) for _ in range(25)]
    for allowed in ((), "all"):
        options: dict[str, Any] = {"allowed_special": allowed, "disallowed_special": ()}
        batches = [one.encode_batch(texts, allowed_special=allowed) for one in (original, again)]
        assert batches[0].ids.tolist() == batches[1].ids.tolist()
        assert batches[0].offsets.tolist() == batches[1].offsets.tolist()
        for text, row in zip(texts, batches[0], strict=True):
            ids = original.encode(text, **options)
            assert again.encode(text, **options) == ids == row.tolist()
            places = _offsets(original, text, **options)
            assert _offsets(again, text, **options) == places
            assert len(places) == 1 or places[0] == ids
            for skip in (False, True):
                decoded = original.decode(ids, skip_special_tokens=skip)
                stream = again.stream(skip_special_tokens=skip)
                assert again.decode(ids, skip_special_tokens=skip) == decoded
                assert "".join([*map(stream.push, ids), stream.flush()]) == decoded
            if allowed == "all":
                assert ids == peer.encode(text, add_special_tokens=False).ids
                whole = again.encode(text, allowed_special="all", add_special_tokens=True)
                assert whole == peer.encode(text).ids


@pytest.mark.parametrize("kind", [_byte_level, _sentencepiece])
def test_random_tokenizers_come_back(kind: Any, tmp_path: Path) -> None:
    draw = random.Random(17)
    checked = 0
    for _ in range(30):
        document = kind(draw, tmp_path)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        normalize = peer.normalizer.normalize_str if document["normalizer"] else str
        contents = [normalize(token["content"]) for token in document["added_tokens"]]
        if (
            len(set(contents)) < len(contents) or "" in contents
        ):  # which of them counts is left to chance there
            continue
        original = Tokenizer.load(tmp_path / "tokenizer.json")
        original.save(tmp_path / "x.pylm")
        _check(Tokenizer.load(tmp_path / "x.pylm"), original, peer, draw)
        checked += 1
    assert checked > 15
