"""Normalizers against Hugging Face tokenizers and against NFC itself."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text._normalizers import NFC_STABLE, NFKC_STABLE, Normalizer, read_normalizer

SPECS: list[dict[str, Any]] = [
    {"type": "NFC"},
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "NFKD"},
    {"type": "Lowercase"},
    {"type": "StripAccents"},
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": r"\1 "},
    {"type": "Replace", "pattern": {"Regex": r"[^\p{L}\s]+"}, "content": ""},
    {"type": "Sequence", "normalizers": []},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]},
    {
        "type": "Sequence",
        "normalizers": [
            {"type": "Sequence", "normalizers": [{"type": "NFKC"}]},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
]

# Assigned long ago: the peer's tables are those of an older Unicode.
TEXTS = st.lists(
    st.sampled_from(
        [
            *"aAzZ\u00df\u0130\u0131\u03a3\u03c3\u03c2 \u00c9\u00e9\u00c5\ufb01\u2460\u00bd\u01c5",
            *"\uac00\uac01\u314f\u65e5e.",
            *"\u0301\u0308\u0323\u20e3\u1100\u1161\u11a8\u0b47\u0b3e\u212b\u0345\u0344\u3000\t\x1c\x85\u2028\u200d",
            *("aa", "  ", "\u0391\u03a3", "\U0001f600"),
        ]
    ),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: json.dumps(spec, ensure_ascii=True)[:60])
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_texts_equal_hugging_face(spec: dict[str, Any], text: str) -> None:
    document = {"version": "1.0", "normalizer": spec, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    peer = tokenizers.Tokenizer.from_str(json.dumps(document)).normalizer
    expected = peer.normalize_str(text)
    assert Normalizer(spec)(text) == expected
    assert Normalizer(spec).normalize_bytes(text.encode()) == expected.encode()


def test_stable_texts_are_in_normal_form() -> None:
    """What the core says is certain, against `unicodedata`, for every code point, alone and in a row."""
    for form, name in ((NFC_STABLE, "NFC"), (NFKC_STABLE, "NFKC")):
        assert _core.is_stable("plain, ÉÅ, 日本語, Привет, 가각".encode(), form)
        for text in ("e\u0301", "\u0301", "\u212b", "\u1161", "\u09be"):
            assert not _core.is_stable(text.encode(), form)
        points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
        stable = [c for c in points if _core.is_stable(c.encode(), form) and unicodedata.category(c) != "Cn"]
        assert len(stable) > 100_000
        row = "".join(stable)
        assert unicodedata.normalize(name, row) == row
        assert unicodedata.normalize(name, "".join(reversed(row))) == row[::-1]
        assert _core.is_stable(b"\xff\xe6\x97", form)
        assert not _core.is_stable(b"\xff\xcc\x81", form)


def test_bytes_that_are_no_utf8_stay() -> None:
    assert (
        Normalizer({"type": "NFC"}).normalize_bytes(b"\xff e\xcc\x81 \xed\xa0\x80")
        == b"\xff \xc3\xa9 \xed\xa0\x80"
    )


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(["the café, THE CAFÉ, a naïve café "] * 9, vocab_size=275)


@pytest.mark.parametrize("spec", SPECS[:12] + SPECS[15:], ids=lambda spec: json.dumps(spec)[:60])
def test_ids_equal_hugging_face_through_the_file(
    trained: Tokenizer, spec: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer(trained._vocabulary, pattern="gpt2", normalizer=Normalizer(spec)).save(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    ours = Tokenizer.load(path)
    texts = ["The CAFE\u0301  is", "", " plain ", "e\u0301", "İΣ ①ﬁ"]
    expected = [peer.encode(text).ids for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in ours.encode_batch(texts)] == expected
    assert [ours.encode_ordinary(text.encode()) for text in texts] == expected
    ours.save(path)
    assert Tokenizer.load(path).fingerprint == ours.fingerprint
    for text in texts:
        assert ours.normalize(text) == peer.normalizer.normalize_str(text)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "BertNormalizer"},
        {"type": "Strip", "strip_left": 1, "strip_right": True},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"},
        {"type": "Prepend"},
        {"type": "Sequence", "normalizers": "NFC"},
        {"type": "Sequence", "normalizers": [None]},
        {},
        "NFC",
    ],
)
def test_other_normalizers_are_named(spec: object) -> None:
    with pytest.raises(InputError, match="unsupported normalizer"):
        read_normalizer(spec)


def test_no_normalizer() -> None:
    assert read_normalizer(None) is None
    assert read_normalizer({"type": "Sequence", "normalizers": []}) is None
