"""Tokenizer: encoding against tiktoken and Hugging Face tokenizers, training against the latter.

All encode with the same vocabulary, learnt from the corpus, and must give the same ids before any is timed.
`extra_info` has the bytes of a call.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pylm import Tokenizer
from pylm.text.patterns import PATTERNS

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

VOCAB_SIZE = 8192
SAMPLE_BYTES = 1_000_000
TRAIN_BYTES = 4_000_000
PATTERN = "cl100k"
# tiktoken's own spelling of the pattern: possessive quantifiers keep its engine from backtracking.
TIKTOKEN_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)


def _head(texts: list[str], num_bytes: int) -> list[str]:
    taken, size = [], 0
    for text in texts:
        taken.append(text)
        size += len(text.encode())
        if size >= num_bytes:
            break
    return taken


def _train_peer(texts: list[str]) -> Any:
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[PATTERN].expression), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train_from_iterator(texts, trainer)
    return peer


@pytest.fixture(scope="module")
def train_texts(library_texts: list[str]) -> list[str]:
    return _head(library_texts, TRAIN_BYTES)


@pytest.fixture(scope="module")
def ours(train_texts: list[str]) -> Tokenizer:
    return Tokenizer.train(train_texts, vocab_size=VOCAB_SIZE, pattern=PATTERN)


@pytest.fixture(scope="module")
def encoders(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same vocabulary in the three libraries."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    ours.save(path)
    ranks = {ours.token_bytes(i): i for i in range(ours.vocab_size)}
    peer = tiktoken.Encoding("bench", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return {"pylm": ours, "tiktoken": peer, "tokenizers": tokenizers.Tokenizer.from_file(str(path))}


def _one_by_one(name: str, encoder: Any) -> Callable[[list[str]], list[list[int]]]:
    if name == "tokenizers":
        return lambda texts: [encoder.encode(text, add_special_tokens=False).ids for text in texts]
    return lambda texts: [encoder.encode_ordinary(text) for text in texts]


def _batch(name: str, encoder: Any) -> Callable[[list[str]], list[list[int]]]:
    if name == "pylm":
        return lambda texts: encoder.encode_batch(texts)
    if name == "tiktoken":
        return lambda texts: encoder.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
    return lambda texts: [row.ids for row in encoder.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.mark.benchmark(group="encode one by one")
@pytest.mark.parametrize("name", ["pylm", "tiktoken", "tokenizers"])
def test_encode(name: str, encoders: dict[str, Any], library_texts: list[str], benchmark: Any) -> None:
    texts = _head(library_texts, SAMPLE_BYTES)
    encode = _one_by_one(name, encoders[name])
    assert encode(texts) == _one_by_one("tiktoken", encoders["tiktoken"])(texts)
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in texts)
    benchmark.pedantic(encode, args=(texts,), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="encode a batch on all cores")
@pytest.mark.parametrize("name", ["pylm", "tiktoken", "tokenizers"])
def test_encode_batch(name: str, encoders: dict[str, Any], library_texts: list[str], benchmark: Any) -> None:
    texts = _head(library_texts, 4 * SAMPLE_BYTES)
    encode = _batch(name, encoders[name])
    expected = encoders["tiktoken"].encode_ordinary_batch(texts)
    assert [list(ids) for ids in encode(texts)] == expected
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in texts)
    benchmark.pedantic(encode, args=(texts,), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="train")
@pytest.mark.parametrize("name", ["pylm", "tokenizers"])
def test_train(name: str, ours: Tokenizer, train_texts: list[str], tmp_path: Path, benchmark: Any) -> None:
    def train() -> Any:
        if name == "pylm":
            return Tokenizer.train(train_texts, vocab_size=VOCAB_SIZE, pattern=PATTERN)
        return _train_peer(train_texts)

    trained = train()
    trained.save(str(tmp_path / "trained.json"))
    assert Tokenizer.load(tmp_path / "trained.json", pattern=PATTERN).fingerprint == ours.fingerprint
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in train_texts)
    benchmark.pedantic(train, rounds=3)
