"""SentencePiece-style encoding: the vocabulary of Llama 2 in all libraries that read it, ids compared first.

`extra_info` has the bytes of a call. Caches are as a second call finds them; "cold" loads the model anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pylm import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
MODEL = Path(__file__).resolve().parents[2] / "shared/data/tokenizers/llama2/tokenizer.model"
SAMPLE_BYTES = 4_000_000


def _load(name: str, num_threads: int, folder: Path) -> Callable[[list[str]], list[list[int]]]:
    if name == "pylm":
        ours = Tokenizer.load(MODEL)
        return lambda texts: ours.encode_batch(texts, num_threads=num_threads)  # type: ignore[return-value]
    if name == "gigatoken":
        theirs = pytest.importorskip("gigatoken").Tokenizer.from_sentencepiece(MODEL)
        return lambda texts: theirs.encode_batch(texts, parallel=num_threads != 1)
    if name == "tokenizers":
        Tokenizer.load(MODEL).save(folder / "tokenizer.json")
        peer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda texts: [row.ids for row in peer.encode_batch_fast(texts, add_special_tokens=False)]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    return lambda texts: processor.encode(texts, num_threads=num_threads or -1)


@pytest.fixture(scope="module")
def texts(library_texts: list[str]) -> list[str]:
    if not MODEL.is_file():
        pytest.skip(f"no model at {MODEL}")
    taken, size = [], 0
    for text in library_texts:
        taken.append(text)
        size += len(text.encode())
        if size >= SAMPLE_BYTES:
            break
    return taken


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = sentencepiece.SentencePieceProcessor(model_file=str(MODEL)).encode(texts)
    return ids


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", ["pylm", "gigatoken", "sentencepiece", "tokenizers"])
def test_encode_batch(
    name: str, num_threads: int, texts: list[str], expected: list[list[int]], tmp_path: Path, benchmark: Any
) -> None:
    benchmark.group = f"SentencePiece encode, {num_threads} threads"
    if name == "tokenizers" and num_threads == 1:
        pytest.skip("its threads are set by an environment variable")
    encode = _load(name, num_threads, tmp_path)
    for row, peer in zip(encode(texts), expected, strict=True):
        assert np.array_equal(np.asarray(row), peer)
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in texts)
    benchmark.pedantic(encode, args=(texts,), rounds=3 if name in ("sentencepiece", "tokenizers") else 9)


@pytest.mark.benchmark(group="SentencePiece encode, cold, 1 thread")
@pytest.mark.parametrize("name", ["pylm", "gigatoken"])
def test_encode_batch_cold(name: str, texts: list[str], tmp_path: Path, benchmark: Any) -> None:
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in texts)
    benchmark.pedantic(
        lambda encode: encode(texts), setup=lambda: ((_load(name, 1, tmp_path),), {}), rounds=7
    )
