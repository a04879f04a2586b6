"""What tokenizer.json files of others hold, against the `tokenizers` library: ids, offsets, decoding."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from binary_form import through_binary

from pylm import _core
from pylm.errors import InputError
from pylm.text import AddedToken, Tokenizer
from pylm.text._byte_alphabet import BYTE_TO_CHAR
from pylm.text._normalizers import read_normalizer
from pylm.text.patterns import PATTERNS, find_splits

GPT2_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
BARE_LEVEL = {**GPT2_LEVEL, "use_regex": False}
MERGES = ["a b", "ab c", "Ġ a", "b c", "Ġ ab", "1 1", "! !", "Ã ©", "Ġ Ġ"]
PARTS = ["a", "b", "c", "ab", "abc", " ", " ", "  ", "\n", "\x04", "\x05", "\x04\x04", "1", "11", "1111", "!",
         "!!", "$", ".", "é", "²", "½", "日", "<x>", "<y>", " <x>", "a\x04b", "_"]  # fmt: skip
SEEDS = range(3)


def _texts(seed: int, parts: Sequence[str] = PARTS) -> list[str]:
    draw = random.Random(seed)
    return ["", *parts, *("".join(draw.choices(parts, k=draw.randrange(1, 12))) for _ in range(500))]


def _added(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    no = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": content, **no, **flags}


def _document(
    *,
    missing: str = "",
    merges: Sequence[str] = MERGES,
    others: Sequence[str] = (),
    added: Sequence[dict[str, Any]] = (),
    pre_tokenizer: object = GPT2_LEVEL,
    **model: Any,
) -> dict[str, Any]:
    """A byte-level file; the characters in `missing` have no token."""
    tokens = [c for b, c in BYTE_TO_CHAR.items() if chr(b) not in missing]
    for merge in merges:
        token = merge.replace(" ", "")
        tokens += [] if token in tokens else [token]
    tokens += [t for t in others if t not in tokens]
    return {
        "version": "1.0",
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": GPT2_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(merges),
            **model,
        },
    }


def _load(document: dict[str, Any], folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))


def _check(ours: Tokenizer, peer: tokenizers.Tokenizer, texts: list[str], folder: Path) -> None:
    """Ids one by one, in a batch and after saving; and what they decode to."""
    expected = [peer.encode(text, add_special_tokens=False).ids for text in texts]
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode(text, allowed_special="all") == ids, text
        assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=False), text
    for num_threads in (1, 2):
        batch = ours.encode_batch(texts, allowed_special="all", num_threads=num_threads)
        assert [ids.tolist() for ids in batch] == expected
    ours.save(folder / "saved.json")
    again = Tokenizer.load(folder / "saved.json")
    saved = tokenizers.Tokenizer.from_file(str(folder / "saved.json"))
    assert again.fingerprint == ours.fingerprint
    for text, ids in zip(texts, expected, strict=True):
        assert saved.encode(text, add_special_tokens=False).ids == ids, text
        assert again.encode(text, allowed_special="all") == ids, text
        assert again.decode(ids) == ours.decode(ids)
    mapped = through_binary(ours, folder)
    for text, ids in zip(texts, expected, strict=True):
        assert mapped.encode(text, allowed_special="all") == ids, text
        assert mapped.decode(ids) == peer.decode(ids, skip_special_tokens=False), text
    batch = mapped.encode_batch(texts, allowed_special="all")
    assert [ids.tolist() for ids in batch] == expected


def _check_offsets(ours: Tokenizer, peer: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text in texts:
        found = ours.encode_with_offsets(text, allowed_special="all")
        expected = peer.encode(text, add_special_tokens=False)
        assert found.ids.tolist() == expected.ids
        assert found.text == text
        for mine, theirs in zip(found.chars.tolist(), expected.offsets, strict=True):
            # A token that is nothing but the new space: `tokenizers` gives it the character behind.
            assert tuple(mine) == theirs or mine[0] == mine[1] == theirs[0], text


MISSING: dict[str, dict[str, Any]] = {
    "dropped": {},
    "unknown": {"others": ["<unk>"], "unk_token": "<unk>"},
    "fused": {"others": ["<unk>"], "unk_token": "<unk>", "fuse_unk": True},
    "added unknown": {
        "others": ["<unk>"], "unk_token": "<unk>", "added": [_added("<unk>", 262, special=True)],
    },
    "an unknown token that is a letter": {"unk_token": "a", "fuse_unk": True},
    "ignore merges": {"ignore_merges": True, "others": ["ĄĄ", "aĄb"]},
}  # fmt: skip
PRE_TOKENIZERS: dict[str, Any] = {
    "gpt2": GPT2_LEVEL,
    "whole": BARE_LEVEL,
    "two": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False},
            BARE_LEVEL,
        ],
    },
}


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_without_a_token(kind: str, pre_tokenizer: str, seed: int, tmp_path: Path) -> None:
    document = _document(missing="\x04\x05²", pre_tokenizer=PRE_TOKENIZERS[pre_tokenizer], **MISSING[kind])
    _check(*_load(document, tmp_path), _texts(seed), tmp_path)


@pytest.mark.parametrize("kind", ["dropped", "unknown", "fused", "added unknown"])
def test_offsets_where_bytes_have_no_token(kind: str, tmp_path: Path) -> None:
    # Without merges: across a dropped byte `tokenizers` counts as if it were not there.
    document = _document(missing="\x04\x05", merges=["Ġ a"], **{**MISSING[kind], "added": []})
    ours, peer = _load(document, tmp_path)
    dropped = kind == "dropped"
    for text in _texts(1):
        if dropped and any(c in text for c in "\x04\x05"):
            continue
        found = ours.encode_with_offsets(text)
        assert [tuple(pair) for pair in found.chars.tolist()] == peer.encode(text).offsets, text
    if dropped:
        found = ours.encode_with_offsets("\x04a\x05 b\x04\x04é\x04")
        contents = ["\x04a\x05 b\x04\x04é\x04"[a:b] for a, b in found.chars.tolist()]
        assert contents == ["a", " ", "b", "é", "é"]


@pytest.mark.parametrize("fuse", [False, True])
def test_offsets_where_the_unknown_token_is_a_letter(fuse: bool, tmp_path: Path) -> None:
    document = _document(
        missing="\x04\x05", merges=[], unk_token="a", fuse_unk=fuse, pre_tokenizer=BARE_LEVEL
    )
    ours, peer = _load(document, tmp_path)
    for text in [*_texts(2), "a\x04", "aa\x04\x05a", "\x04a\x04\x04b", "ba\x05"]:
        found = ours.encode_with_offsets(text)
        assert [tuple(pair) for pair in found.chars.tolist()] == peer.encode(text).offsets, text


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Lowercase"}])
def test_added_tokens_of_the_vocabulary_do_not_make_pieces_of_others(
    normalizer: object, tmp_path: Path
) -> None:
    size = len(_document()["model"]["vocab"])
    words = [_added("b", _document()["model"]["vocab"]["b"]), {**_added("xyz", size), "single_word": True}]
    document = {**_document(added=words, ignore_merges=True), "normalizer": normalizer}
    ours, peer = _load(document, tmp_path)
    _check(ours, peer, ["xyz", "xyz1", "1xyz", "XYZ1", "a xyz b", "axyzb xyz"], tmp_path)
    assert ours.encode("xyz") == [size]
    assert size not in ours.encode("1xyz")


@pytest.mark.parametrize(
    ("flags", "normalizer", "is_refused"),
    [
        ({}, None, False),
        ({}, {"type": "NFC"}, False),
        ({}, {"type": "Lowercase"}, True),
        ({"normalized": True}, {"type": "Lowercase"}, False),
        ({"normalized": True}, {"type": "Prepend", "prepend": " "}, True),
        ({"single_word": True}, None, True),
        ({"content": "xyé"}, None, True),
        ({"content": "xy日", "single_word": True}, None, False),
    ],
)
def test_ids_out_of_order_are_saved_only_where_ids_stay(
    flags: dict[str, Any], normalizer: dict[str, Any] | None, is_refused: bool, tmp_path: Path
) -> None:
    token = AddedToken(**{"content": "xyz", "id": 300, "special": False, **flags})
    ours = Tokenizer(
        _core.Vocabulary([bytes([b]) for b in range(256)], np.zeros((0, 4), np.uint32)),
        pattern="gpt2",
        ignore_merges=True,
        added_tokens=[token],
        normalizer=read_normalizer(normalizer),
    )
    path = tmp_path / "tokenizer.json"
    if is_refused:
        with pytest.raises(InputError, match="has the id 300, which does not count on"):
            ours.save(path)
        return
    ours.save(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    for text in ("xyz", "1xyz", "xyz1", "XYZ", "xyé", "xye\u0301", "xy日", "axy日"):
        assert peer.encode(text, add_special_tokens=False).ids == ours.encode(text), text


def test_tokens_merged_across_dropped_bytes_have_them_within(tmp_path: Path) -> None:
    ours, _ = _load(_document(missing="\x04", pre_tokenizer=BARE_LEVEL), tmp_path)
    found = ours.encode_with_offsets("\x04\x04a\x04bc\x04")
    assert ours.decode(found.ids) == "abc"
    assert found.bytes.tolist() == [[2, 6]]


def test_offsets_of_tokens_merged_from_an_unknown_one_are_refused(tmp_path: Path) -> None:
    ours, _ = _load(_document(missing="\x04", unk_token="a", pre_tokenizer=BARE_LEVEL), tmp_path)
    with pytest.raises(InputError, match=r"offsets of token .* merged from an unknown token"):
        ours.encode_with_offsets("\x04b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unk_token": "<none>"}, "unk_token '<none>' is not in the vocabulary, nor is byte 4"),
        ({"unk_token": 3}, "unk_token 3"),
        ({"byte_fallback": True}, "unsupported byte_fallback.* byte 4"),
        ({"merges": ["a nobody"]}, r"merge 0 \('a', 'nobody'\)"),
        ({"vocab": {"a": 0, "日": 1, "a日": 2}, "merges": ["a 日"]}, "'日' is merged, but is not in the"),
    ],
)
def test_models_that_cannot_be_reproduced_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    document = _document(missing="\x04")
    document["model"].update(changes)
    with pytest.raises(InputError, match=message):
        _load(document, tmp_path)


def test_tokens_beyond_the_alphabet_are_decoded_and_kept(tmp_path: Path) -> None:
    others = ["日本", "a b", "\u200d", "<y>日"]
    document = _document(others=others, added=[_added("<y>日", 268)])
    assert document["model"]["vocab"]["<y>日"] == 268
    ours, peer = _load(document, tmp_path)
    _check(ours, peer, [*_texts(1), *others], tmp_path)
    for token_id in range(ours.vocab_size):
        assert ours.decode([token_id]) == peer.decode([token_id], skip_special_tokens=False)


def test_of_equal_merges_the_last_counts(tmp_path: Path) -> None:
    document = _document(merges=["a b", "b c", "ab c", "a b", "c c", "cc c", "c c"], ignore_merges=False)
    ours, peer = _load(document, tmp_path)
    _check(ours, peer, _texts(1, ["a", "b", "c", "ab", "bc", "ccc"]), tmp_path)
    assert [ours.token_bytes(i) for i in ours.encode("abc")] == [b"a", b"bc"]


@pytest.mark.parametrize("use_regex", [True, False])
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_add_prefix_space(use_regex: bool, normalizer: object, tmp_path: Path) -> None:
    level = {**GPT2_LEVEL, "add_prefix_space": True, "use_regex": use_regex}
    added = [_added("<x>", 265, special=True), _added("<y>", 266, normalized=True, lstrip=True)]
    document = _document(pre_tokenizer=level, added=added, others=["<x>", "<y>"])
    ours, peer = _load(document | {"normalizer": normalizer}, tmp_path)
    assert ours.special_tokens == {"<x>": 265}
    texts = _texts(1)
    _check(ours, peer, texts, tmp_path)
    assert ours.encode("\u00e9") == ours.encode(" \u00e9")
    _check_offsets(ours, peer, texts)


def _split(pattern: dict[str, str], behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


O200K = {"Regex": PATTERNS["o200k"].expression}
SEQUENCES: dict[str, list[dict[str, Any]]] = {
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        GPT2_LEVEL,
        {"type": "Digits", "individual_digits": False},
        _split({"Regex": "[0-9][0-9][0-9]"}),
    ],
    "punctuation": [{"type": "Punctuation", "behavior": "Isolated"}, BARE_LEVEL],
    "digits": [{"type": "Digits", "individual_digits": True}, GPT2_LEVEL],
    "digits of bytes": [BARE_LEVEL, {"type": "Digits", "individual_digits": True}],
    "nested": [{"type": "Sequence", "pretokenizers": [_split({"Regex": r"\d"}), GPT2_LEVEL]}],
    "strings": [_split({"String": "."}), _split({"String": "a b"}), BARE_LEVEL],
    "what is kept of all": [_split(O200K, "Removed", invert=True), BARE_LEVEL],
    "inverted": [_split({"Regex": "[ab]+"}, invert=True), BARE_LEVEL],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_pre_tokenizers(name: str, tmp_path: Path) -> None:
    document = _document(pre_tokenizer={"type": "Sequence", "pretokenizers": SEQUENCES[name]})
    _check(*_load(document, tmp_path), _texts(1, [*PARTS, "12345", "a b", "...", "日2本", "²²"]), tmp_path)


def test_splits_of_bytes_may_lie_within_characters() -> None:
    pattern = find_splits([r"\s+"], [r"\p{N}"])  # the last byte of U+00B2 is a digit in the alphabet
    text = "a²1 é2"
    pieces = pattern.split_bytes(text.encode())
    assert pieces == [b"a\xc2", b"\xb2", b"1", b" ", b"\xc3\xa9", b"2"]
    assert "".join(pattern.split(text)).encode("utf-8", "surrogateescape").decode() == text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "Whitespace"},
        {"type": "Punctuation", "behavior": "Removed"},
        _split({"Regex": "a"}, "Removed", invert=True),
        _split({"Regex": "a"}, "MergedWithNext"),
        _split({"String": ""}),
        _split({"Magic": "a"}),
        {**GPT2_LEVEL, "add_prefix_space": True},
    ],
)
def test_other_pre_tokenizers_are_named(part: dict[str, Any], tmp_path: Path) -> None:
    sequence = {"type": "Sequence", "pretokenizers": [_split({"Regex": "b"}), part, BARE_LEVEL]}
    with pytest.raises(InputError, match=f"unsupported pre-tokenizer.*{part['type']}"):
        _load(_document(pre_tokenizer=sequence), tmp_path)


def test_other_decoders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unsupported decoder.*WordPiece"):
        _load(_document() | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, tmp_path)


# Models of characters.

MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, MARKS]}
TO_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS: dict[str, Any] = {
    "llama": {"type": "Sequence", "decoders": [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]},
    "gemma": {"type": "Sequence", "decoders": [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]},
}
WORDS = ["▁▁", "  ", "<x>", "a", "▁b", "ab ", "é"]
CHARACTER_PARTS = ["a", "b", "ab", " ", " ", "  ", "▁", "▁▁", "é", "日", "\n", "<x>", " <x> ", "\u3000", "_"]


def _characters(normalizer: object, scheme: str | None, decoder: object) -> dict[str, Any]:
    pieces = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "é", "▁b", "<", "x", ">"]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    document = _document(pre_tokenizer=metaspace if scheme else None)
    document["model"] |= {
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": ["▁ a", "a b", "▁ ab", "▁a b", "▁ ▁", "▁ b"],
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return document | {"normalizer": normalizer, "decoder": decoder}


def _draw_added(draw: random.Random, document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    fresh = len(vocabulary)
    for content in draw.sample(WORDS, draw.randrange(1, 5)):
        flags = {flag: draw.random() < 0.4 for flag in ("single_word", "lstrip", "rstrip", "special")}
        token_id = vocabulary.get(content)
        if token_id is None:
            token_id, fresh = fresh, fresh + 1
        document["added_tokens"].append(_added(content, token_id, **flags))


@pytest.mark.parametrize(
    ("normalizer", "scheme", "decoder"),
    [(LLAMA, None, "llama"), (MARKS, None, "gemma"), (MARKS, None, "llama"), (None, "first", "llama"),
     (None, "always", "llama"), (None, "never", "gemma")],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(12))
def test_added_tokens_of_character_models(
    normalizer: object, scheme: str | None, decoder: str, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    document = _characters(normalizer, scheme, DECODERS[decoder])
    _draw_added(draw, document)
    texts = ["".join(draw.choices(CHARACTER_PARTS, k=draw.randrange(10))) for _ in range(200)]
    ours, peer = _load(document, tmp_path)
    _check(ours, peer, texts, tmp_path)
    _check_offsets(ours, peer, texts)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    ("normalizer", "scheme"), [(LLAMA, None), (MARKS, None), (None, "first"), (None, "always")]
)
def test_offsets_of_unknown_characters(
    fuse: bool, normalizer: object, scheme: str | None, tmp_path: Path
) -> None:
    document = _characters(normalizer, scheme, DECODERS["llama"])
    document["model"] |= {"byte_fallback": False, "fuse_unk": fuse}
    _check_offsets(*_load(document, tmp_path), _texts(1, CHARACTER_PARTS))


def test_offsets_of_a_model_that_changes_text_are_refused(tmp_path: Path) -> None:
    collapse = [(r"\A +", ""), (" {2,}", " "), (r"[ ▁]+\z", "")]
    steps = [{"type": "Replace", "pattern": {"Regex": p}, "content": c} for p, c in collapse]
    document = _characters({"type": "Sequence", "normalizers": [*steps, MARKS]}, None, DECODERS["llama"])
    ours, _ = _load(document, tmp_path)
    with pytest.raises(InputError, match="offsets are not known of a SentencePiece model that changes text"):
        ours.encode_with_offsets(" a  b")


@pytest.mark.parametrize("content", ["▁▁", "  ", "a ", "<x>"])
@pytest.mark.parametrize("special", [False, True])
def test_normalized_words_are_found_among_marks(content: str, special: bool, tmp_path: Path) -> None:
    document = _characters(MARKS, None, DECODERS["gemma"])
    token_id = document["model"]["vocab"].get(content, len(document["model"]["vocab"]))
    document["added_tokens"] = [_added(content, token_id, normalized=True, special=special)]
    if special and content != "<x>":
        with pytest.raises(InputError, match=f"unsupported added token {content!r}"):
            _load(document, tmp_path)
        return
    ours, peer = _load(document, tmp_path)
    for text in _texts(1, CHARACTER_PARTS):
        assert ours.encode(text, allowed_special="all") == peer.encode(text).ids, text


@pytest.mark.parametrize(
    ("normalizer", "flags"), [(LLAMA, {}), (MARKS, {"lstrip": True}), (MARKS, {"single_word": True})]
)
def test_normalized_tokens_that_mean_something_else_are_named(
    normalizer: object, flags: dict[str, bool], tmp_path: Path
) -> None:
    document = _characters(normalizer, None, DECODERS["gemma"])
    document["added_tokens"] = [_added("▁▁", 264, normalized=True, **flags)]
    with pytest.raises(InputError, match=r"unsupported added token '▁▁'.*\"normalized\": false"):
        _load(document, tmp_path)


def test_other_decoders_of_characters_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unsupported decoder.*CTC"):
        _load(_characters(LLAMA, None, {"type": "CTC"}), tmp_path)


def test_transformers_wrapper_of_rare_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    document = _document(missing="\x04", added=[_added("<x>", 264, special=True)], others=["<x>", "日本"])
    document["pre_tokenizer"] = {**GPT2_LEVEL, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<x>", "chat_template": "{{ messages[0].content }}<x>"}), encoding="utf-8"
    )
    _load(document, tmp_path)
    ours = Tokenizer.load(tmp_path)
    wrapped = ours.to_transformers()
    for text in _texts(1):
        assert wrapped(text)["input_ids"] == ours.encode(text, allowed_special="all"), text
    assert wrapped.eos_token_id == ours.eos_id == 264
    assert wrapped.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab<x>"
