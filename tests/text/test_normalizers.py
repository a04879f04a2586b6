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
from pylm.text._normalizers import Normalizer, read_normalizer

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


ASSIGNED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
"""Characters of Python's version of Unicode, which do not change in later ones."""

# Characters that change, or change what stands beside them, as often as all others together.
HOSTILE = [c for c in ASSIGNED if unicodedata.combining(c) or unicodedata.normalize("NFKD", c) != c] + [
    *map(chr, [*range(0x1100, 0x1200), *range(0xAC00, 0xAC40)]),
    *"\u09c7\u09be\u09d7\u0bc6\u0bbe\u0d46\u0d3e\u1025\u102e\U00011131\U00011127<=>\u226e",
]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms_of_every_character(form: Any) -> None:
    for neighbour in ("", "e", "\u0301", "\u0323", "\u1100", "\uac00"):
        texts = [f"{neighbour}{c}{neighbour}" for c in ASSIGNED]
        expected = [unicodedata.normalize(form, text).encode() for text in texts]
        assert [_core.normalize(text.encode(), form) for text in texts] == expected
    everything = "".join(ASSIGNED)
    for row in (everything, everything[::-1]):
        assert _core.normalize(row.encode(), form) == unicodedata.normalize(form, row).encode()


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(
    text=st.lists(st.one_of(st.sampled_from(HOSTILE), st.sampled_from(ASSIGNED)), max_size=40).map("".join),
)
@settings(max_examples=300, deadline=None)
def test_normal_forms_of_hostile_texts(form: Any, text: str) -> None:
    expected = unicodedata.normalize(form, text)
    assert Normalizer({"type": form})(text) == expected
    assert _core.normalize(text.encode(), form) == expected.encode()


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_one_huge_text_is_cut_where_nothing_joins(trained: Tokenizer, form: Any) -> None:
    """Borders of the parts that are shared out fall on marks, letters of Hangul and damaged bytes."""
    tokenizer = Tokenizer(trained._vocabulary, pattern="gpt2", normalizer=Normalizer({"type": form}))
    plain = Tokenizer(trained._vocabulary, pattern="gpt2")
    marks = "e" + "\u0301\u0323" * 99  # Python takes quadratic time for them
    for unit in (marks, "\u1100\u1161\u11a8", "e\u0301", "caf\u00e9 ", "\u0bc6\u0bbe", "\ufb01"):
        text = unit * ((9 << 17) // len(unit.encode()))
        content = text.encode()
        for shift in (0, 1):
            expected = plain.encode_batch([b"\xff" * shift + unicodedata.normalize(form, text).encode()])
            for threads in (1, 2):
                ids = tokenizer.encode_batch([b"\xff" * shift + content, "x"], num_threads=threads)
                assert ids[0].tolist() == expected[0].tolist()


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
