"""Decoding: against joining the tokens' bytes, Python's own UTF-8 decoder, and Hugging Face tokenizers."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text._added_tokens import AddedToken


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    corpus = ["the cat sat on the mat, the end 日本 日本 😀 a-very-long-token-of-many-bytes"] * 9
    trained = Tokenizer.train(corpus, vocab_size=330)
    first = trained.vocab_size
    added = [
        AddedToken("<|end|>", first + 2),
        AddedToken("<think>", first, special=False),
        AddedToken("日本語", first + 5),
    ]
    return Tokenizer(trained._vocabulary, pattern="cl100k", added_tokens=added)


@pytest.fixture(scope="module")
def table(small: Tokenizer) -> dict[int, bytes]:
    tokens = dict(enumerate(small._vocabulary.tokens())) | {
        t.id: t.content.encode() for t in small.added_tokens
    }
    return {i: token for i, token in tokens.items() if token}


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_text_is_that_of_the_joined_bytes(
    small: Tokenizer, table: dict[int, bytes], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.sampled_from(sorted(table)), max_size=30))
    skip = data.draw(st.booleans())
    special = set(small.special_tokens.values())
    content = b"".join(table[i] for i in ids if not (skip and i in special))
    assert small.decode_bytes(ids, skip_special_tokens=skip) == content
    assert small.decode(np.array(ids, np.uint32), skip_special_tokens=skip) == content.decode(
        "utf-8", "replace"
    )
    assert small.decode(iter(ids), skip_special_tokens=skip, errors="ignore") == content.decode(
        "utf-8", "ignore"
    )
    try:
        expected = content.decode()
    except UnicodeDecodeError:
        with pytest.raises(InputError, match="no UTF-8"):
            small.decode(ids, skip_special_tokens=skip, errors="strict")
    else:
        assert small.decode(ids, skip_special_tokens=skip, errors="strict") == expected
    rows = [ids[:a] for a in range(0, len(ids) + 1, 7)]
    expected_rows = [small.decode(row, skip_special_tokens=skip) for row in rows]
    assert small.decode_batch(rows, skip_special_tokens=skip, num_threads=2) == expected_rows


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_gives_the_same_text_in_whole_characters(
    small: Tokenizer, table: dict[int, bytes], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.sampled_from(sorted(table)), max_size=30))
    ids += small.encode(data.draw(st.text(max_size=10)))
    skip = data.draw(st.booleans())
    for errors in ("replace", "ignore"):
        stream = small.stream(skip_special_tokens=skip, errors=errors)
        parts = [stream.push(token_id) for token_id in ids]
        assert "".join([*parts, stream.flush()]) == small.decode(ids, skip_special_tokens=skip, errors=errors)
        assert stream.flush() == ""
    valid = small.encode("a日😀é <|end|>", allowed_special="all")
    stream = small.stream(errors="strict")
    assert "\ufffd" not in "".join(map(stream.push, valid))
    stream.push(table_id(table, b"\xe6"))
    with pytest.raises(InputError, match="no UTF-8"):
        stream.flush()
    # After an error a new text begins.
    assert "".join(map(stream.push, valid)) + stream.flush() == small.decode(valid)
    for first in (b"\xe6", b"\x80"):
        with pytest.raises(InputError, match="no UTF-8"):
            [stream.push(table_id(table, token)) for token in (first, b"a")]
        assert "".join(map(stream.push, valid)) + stream.flush() == small.decode(valid)
    with pytest.raises(InputError, match="errors must be one of 'replace', 'strict', 'ignore', got 'none'"):
        small.stream(errors="none")  # type: ignore[arg-type]


def table_id(table: dict[int, bytes], token: bytes) -> int:
    return next(i for i, known in table.items() if known == token)


def test_texts_equal_hugging_face(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    random = np.random.default_rng(5)
    size = len(small._vocabulary)
    for _ in range(200):
        ids = random.integers(0, size, 12).tolist()
        ids[3] = small.special_tokens["<|end|>"]
        for skip in (True, False):
            assert small.decode(ids, skip_special_tokens=skip) == peer.decode(ids, skip_special_tokens=skip)


def test_a_batch_round_trips(small: Tokenizer) -> None:
    texts = ["the cat", "", "日本 😀", "x" * 100, *(f"text {i}" for i in range(200))]
    batch = small.encode_batch(texts)
    assert small.decode_batch(batch) == texts
    assert small.decode_batch([]) == []
    assert small.decode([]) == ""
    assert small.decode(np.zeros(0, np.int64)) == ""


def test_unknown_ids_are_named(small: Tokenizer) -> None:
    hole = small.vocab_size - 2
    for bad in (hole, small.vocab_size, 1 << 31):
        with pytest.raises(InputError, match=f"token id {bad} is not in the vocabulary"):
            small.decode([65, bad])
        with pytest.raises(InputError, match=f"token id {bad} is not in the vocabulary"):
            small.decode_batch([[65], [bad]])
        with pytest.raises(InputError, match=f"token id {bad}"):
            small.stream().push(bad)
    for bad in (-1, 1 << 32):
        with pytest.raises(InputError, match=f"token id {bad} is not"):
            small.decode([bad])
        with pytest.raises(InputError, match=f"token id {bad} is not"):
            small.decode(np.array([bad], np.int64))
    with pytest.raises(InputError, match="whole numbers"):
        small.decode([0.5])  # type: ignore[list-item]
    with pytest.raises(InputError, match="one dimension"):
        small.decode(np.zeros((2, 2), np.uint32))


def test_offsets_of_a_batch_are_checked(small: Tokenizer) -> None:
    decoder = small._decoder
    for offsets in ([0, 4], [2, 1], [-1, 1]):
        with pytest.raises(ValueError, match="offsets must rise"):
            decoder.decode_batch(np.zeros(3, np.uint32), np.array(offsets), skip_special=False, num_threads=1)
    assert isinstance(decoder, _core.TokenDecoder)
