"""Added tokens against Hugging Face tokenizers and tiktoken."""

import base64
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import tiktoken
import tokenizers
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text._added_tokens import AddedToken
from pylm.text._normalizers import Normalizer
from pylm.text.patterns import PATTERNS

Build = Callable[..., tuple[Tokenizer, tokenizers.Tokenizer]]

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@pytest.fixture(scope="module")
def bytes_only() -> _core.Vocabulary:
    trained = Tokenizer.train(["the cat sat on the mat, the end"] * 9, vocab_size=270)
    return trained._vocabulary


@pytest.fixture(scope="module")
def build(bytes_only: _core.Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Make a tokenizer with these added tokens, and the peer that loads its file."""
    path = tmp_path_factory.mktemp("added") / "tokenizer.json"

    def make(
        added: list[AddedToken], normalizer: dict[str, object] | None = None
    ) -> tuple[Tokenizer, tokenizers.Tokenizer]:
        ours = Tokenizer(
            bytes_only,
            pattern="cl100k",
            added_tokens=added,
            normalizer=Normalizer(normalizer) if normalizer else None,
        )
        ours.save(path)
        again = Tokenizer.load(path)
        assert again.fingerprint == ours.fingerprint
        assert set(again.added_tokens) == set(added)
        return again, tokenizers.Tokenizer.from_file(str(path))

    return make


# The vocabulary's own: an added token of the same name has the same id.
TAKEN = {"b": 65, "<": 27, "at": 256, "cat": 260}
# Contents that begin, end and lie inside each other, of letters, white space and beyond ASCII.
CONTENTS = [
    "<a>",
    "<a><b>",
    "b",
    "<",
    "  ",
    "\n",
    "cat",
    "éé",
    "the cat",
    "at",
    "_x",
    "日本",
    "<a> ",
    "e\u0301",
]
ALPHABET = [
    *CONTENTS,
    " ",
    "\u3000",
    "\xa0",
    "x",
    "_",
    "1",
    "\u0301",
    "\u200d",
    "É",
    "the",
    ">",
    "\x1c",
    "é",
    "éé",
]


@st.composite
def vocabularies(draw: st.DrawFn) -> list[AddedToken]:
    contents = draw(st.lists(st.sampled_from(CONTENTS), unique=True, min_size=1, max_size=6))
    return [
        AddedToken(content, TAKEN.get(content, 300 + i), **{flag: draw(st.booleans()) for flag in FLAGS})
        for i, content in enumerate(contents)
    ]


def ids_of(peer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    """The peer's ids; an example is left out where tokens strip each other's text, at which it panics."""
    try:
        return [peer.encode(text, add_special_tokens=False).ids for text in texts]
    except BaseException as error:  # a Rust panic is no Exception
        if "AddedVocabulary bad split" not in str(error):
            raise
        reject()


@given(data=st.data(), added=vocabularies())
@settings(max_examples=150, deadline=None)
def test_ids_equal_hugging_face(build: Build, data: st.DataObject, added: list[AddedToken]) -> None:
    normalizer = data.draw(st.sampled_from([None, {"type": "NFC"}, {"type": "Lowercase"}, {"type": "NFD"}]))
    ours, peer = build(added, normalizer)
    texts = data.draw(st.lists(st.lists(st.sampled_from(ALPHABET), max_size=9).map("".join), max_size=8))
    expected = ids_of(peer, texts)
    assert [ours.encode(text, allowed_special="all") for text in texts] == expected
    for container in (texts, pa.array(texts, pa.string()), [t.encode() for t in texts]):
        batch = ours.encode_batch(container, allowed_special="all", num_threads=2)
        assert [ids.tolist() for ids in batch] == expected
    # Only words that are not special. A special token would hide others that overlap it from `tokenizers`.
    words = [token for token in added if not token.special]
    ours, peer = build(words, normalizer)
    expected = ids_of(peer, texts)
    assert [ours.encode_ordinary(text) for text in texts] == expected
    assert [ids.tolist() for ids in ours.encode_batch(texts, end_id=7)] == [[*ids, 7] for ids in expected]


def test_a_token_may_lose_its_white_space_to_the_one_before(build: Build) -> None:
    for lstrip in (False, True):
        spaces = AddedToken("  ", 301, lstrip=lstrip, special=False)
        ours, peer = build([AddedToken("<a>", 300, rstrip=True, special=False), spaces])
        for text in ("<a>  ", "<a>  b", "  <a>  <a>"):
            assert ours.encode(text) == peer.encode(text).ids
            assert ours.encode_batch([text])[0].tolist() == peer.encode(text).ids


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_offsets_equal_hugging_face(build: Build, data: st.DataObject) -> None:
    added = [
        AddedToken("<a>", 300, lstrip=True, rstrip=True),
        AddedToken("cat", 260, single_word=True, special=False),
    ]
    ours, peer = build(added)
    peer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    alphabet = ["<a>", "cat", " ", "the", "日本", "😀", "é", "\u3000", "x\n"]
    text = data.draw(st.lists(st.sampled_from(alphabet), max_size=12).map("".join))
    got = ours.encode_with_offsets(text, allowed_special="all")
    expected = peer.encode(text)
    assert got.ids.tolist() == expected.ids
    assert got.text == text
    assert [tuple(pair) for pair in got.chars.tolist()] == expected.offsets
    content = text.encode()
    assert b"".join(content[a:b] for a, b in got.bytes.tolist()) == content


def test_offsets_of_cut_characters_and_normalized_text(build: Build) -> None:
    ours, _ = build([AddedToken("<a>", 300)], {"type": "NFC"})
    got = ours.encode_with_offsets("😀e\u0301<a>e\u0301", allowed_special="all")
    assert got.text == "😀é<a>é"
    assert got.chars.tolist() == [[0, 1]] * 4 + [[1, 2]] * 2 + [[2, 5]] + [[5, 6]] * 2
    assert got.bytes.tolist() == [[i, i + 1] for i in range(6)] + [[6, 9], [9, 10], [10, 11]]
    empty = ours.encode_with_offsets("")
    assert empty.ids.tolist() == []
    assert empty.chars.shape == (0, 2)


def test_special_tokens_as_tiktoken_has_them(shared_data: Path) -> None:
    path = shared_data / "tokenizers/openai/cl100k_base.tiktoken"
    ours = Tokenizer.load(path)
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    peer = tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS["cl100k"].expression.replace(r"\z", "$"),
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens=ours.special_tokens,
    )
    names = sorted(ours.special_tokens)
    texts = [
        "".join(parts)
        for parts in zip(names, ["", " a", "<|", "<|endoftext|", "\n"], reversed(names), strict=True)
    ]
    texts += ["<|endoftext|><|endoftext|>", "plain", "<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>"]
    for allowed in ("all", set(), {"<|endoftext|>"}, {"<|fim_prefix|>", "<|fim_middle|>"}):
        expected = [peer.encode(t, allowed_special=allowed, disallowed_special=()) for t in texts]
        got = [ours.encode(t, allowed_special=allowed, disallowed_special=()) for t in texts]
        assert got == expected
        assert [x.tolist() for x in ours.encode_batch(texts, allowed_special=allowed)] == expected
        for text in texts:
            outcomes = []
            for encode in (ours.encode, peer.encode):
                try:
                    outcomes.append(encode(text, allowed_special=allowed))
                except ValueError:
                    outcomes.append(None)
            assert outcomes[0] == outcomes[1]


def test_refusals_name_token_place_and_way_on(build: Build) -> None:
    added = [
        AddedToken("<s>", 300),
        AddedToken("<w>", 301, special=False),
        AddedToken("<n>", 302, normalized=True),
    ]
    ours, _ = build(added)
    with pytest.raises(InputError, match=r"'<s>' at character 2; pass allowed_special=\{'<s>'\}.*=\(\)"):
        ours.encode("éé<s>")
    with pytest.raises(InputError, match=r"'<n>' at character 0"):
        ours.encode("<n>", allowed_special={"<s>"})
    with pytest.raises(InputError, match=r"texts\[1\] holds the special token '<s>' at byte 4"):
        ours.encode_batch(["a", "éé<s>"], disallowed_special="all")
    with pytest.raises(InputError, match="disallowed_special has '<w>', which is no special token"):
        ours.encode("a", disallowed_special={"<w>"})
    with pytest.raises(TypeError, match="'all' or a collection"):
        ours.encode("a", allowed_special="<s>")
    assert ours.encode("<w>") == [301]
    assert ours.encode_ordinary("<w><s>") == [301, *ours.encode("<s>", disallowed_special=())]
    assert ours.encode("<s><n>", allowed_special={"<s>"}, disallowed_special=())[0] == 300


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([AddedToken("", 300)], "300 has no text"),
        ([AddedToken("a", 300), AddedToken("b", 300)], r"'a' \(300\) and 'b' \(300\) clash"),
        ([AddedToken("a", 300), AddedToken("a", 301)], r"'a' \(300\) and 'a' \(301\) clash"),
        ([AddedToken("a", 1 << 30)], "too large for a vocabulary"),
    ],
)
def test_impossible_sets_are_refused(
    bytes_only: _core.Vocabulary, added: list[AddedToken], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Tokenizer(bytes_only, pattern="cl100k", added_tokens=added)


def test_long_texts_are_searched_alike(bytes_only: _core.Vocabulary) -> None:
    """Long runs without a token, with one to many first bytes, at every distance."""
    for contents in (
        ["<a>"],
        ["<a>", "[b]"],
        ["<a>", "[b]", "{c}", "|d|"],
        ["<a>", "[b]", "{c}", "|d|", "~e~"],
    ):
        ours = Tokenizer(
            bytes_only,
            pattern="gpt2",
            added_tokens=[AddedToken(c, 300 + i) for i, c in enumerate(contents)],
        )
        for gap in range(70):
            text = ("x" * gap).join(["", *contents, *contents, "<", "[b", ""])
            got = ours.encode_with_offsets(text, allowed_special="all")
            found = [(text[a:b]) for i, (a, b) in zip(got.ids, got.bytes, strict=True) if i >= 300]
            assert found == contents * 2


def test_files_know_added_words(build: Build, tmp_path: Path) -> None:
    ours, peer = build([AddedToken("<w>", 300, special=False, rstrip=True)], {"type": "NFC"})
    texts = ["a<w>  e\u0301", "", "plain"]
    (tmp_path / "x").write_text("\0".join(texts), encoding="utf-8")
    got = [ids.tolist() for ids in ours.encode_files([tmp_path / "x"], separator="\0")]
    assert got == [peer.encode(text).ids for text in texts]


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_tokens_that_are_white_space_take_linear_time(flags: dict[str, bool]) -> None:
    """A run of a million was looked through for each of its tokens: minutes and more."""
    trained = Tokenizer.train(["low lower"], vocab_size=258, pattern="gpt2")
    token = AddedToken("\n", 300, special=False, **flags)
    ours = Tokenizer(trained._vocabulary, pattern="gpt2", added_tokens=[token])
    for run in ("\n" * 1_000_000, " \n\t" * 300_000):
        ids = ours.encode_batch([f"a{run}b"])[0].tolist()
        short = ours.encode_batch([f"a{run[:30]}b"])[0].tolist()
        assert ids[0] == short[0]
        assert ids[-1] == short[-1]
        count = 1 if len(flags) == 2 else run.count("\n")
        assert ids.count(300) == count
        assert short.count(300) == (1 if len(flags) == 2 else run[:30].count("\n"))
