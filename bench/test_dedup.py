"""Near-duplicates against datasketch: the same shingles, bands and check, hence the same texts kept.

The corpus is the standard library, cut into blocks, with edited copies of every fourth block. Candidates
are found by chance in both, so a few decisions near the threshold may differ.
"""

import random
import re
from typing import Any

import numpy as np
import pytest

from pylm import dedup

datasketch = pytest.importorskip("datasketch")

BLOCK_CHARS = 3000
NUM_BLOCKS = 1500
THRESHOLD = 0.8
NUM_PERM = 128
NGRAM = 5


@pytest.fixture(scope="module")
def blocks(library_texts: list[str]) -> list[str]:
    """ASCII blocks of real text, followed by edited copies."""
    joined = "\n".join(text for text in library_texts if text.isascii())
    plain = [joined[i * BLOCK_CHARS : (i + 1) * BLOCK_CHARS] for i in range(NUM_BLOCKS)]
    draw = random.Random(0)
    copies = []
    for text in plain[::4]:
        words = text.split(" ")
        for _ in range(draw.randrange(12)):
            words[draw.randrange(len(words))] = "edited"
        copies.append(" ".join(words))
    return plain + copies


def shingles(text: str) -> set[bytes]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    if not words:
        return set()
    return {" ".join(words[i : i + NGRAM]).encode() for i in range(max(1, len(words) - NGRAM + 1))}


def keep_by_datasketch(texts: list[str]) -> np.ndarray:
    """Keep a text unless a kept one that shares a band resembles it."""
    bands, rows = dedup.optimal_bands(THRESHOLD, NUM_PERM, false_negative_weight=0.9)
    index = datasketch.MinHashLSH(num_perm=NUM_PERM, params=(bands, rows))
    sets, keep = [], np.ones(len(texts), bool)
    for i, text in enumerate(texts):
        sets.append(shingles(text))
        if not sets[i]:
            continue
        signature = datasketch.MinHash(num_perm=NUM_PERM)
        signature.update_batch(list(sets[i]))
        for j in index.query(signature):
            if len(sets[i] & sets[j]) >= THRESHOLD * len(sets[i] | sets[j]):
                keep[i] = False
                break
        if keep[i]:
            index.insert(i, signature)
    return keep


def keep_by_pylm(texts: list[str], num_threads: int) -> np.ndarray:
    return dedup.near(
        texts, threshold=THRESHOLD, num_perm=NUM_PERM, ngram=NGRAM, num_threads=num_threads
    ).keep


@pytest.fixture(scope="module")
def expected(blocks: list[str]) -> np.ndarray:
    return keep_by_datasketch(blocks)


@pytest.mark.benchmark(group="near-duplicates")
@pytest.mark.parametrize("name", ["pylm, one thread", "pylm, all cores", "datasketch"])
def test_near(name: str, blocks: list[str], expected: np.ndarray, benchmark: Any) -> None:
    actual = keep_by_pylm(blocks, 0)
    assert 100 < np.count_nonzero(~expected) < len(blocks) // 4
    # At similarity 0.8 the bands miss one pair in eight, in either library another one.
    assert np.count_nonzero(actual != expected) <= 0.05 * np.count_nonzero(~expected)
    benchmark.extra_info["bytes"] = sum(len(text) for text in blocks)
    if name == "datasketch":
        benchmark.pedantic(keep_by_datasketch, args=(blocks,), rounds=3)
    else:
        benchmark.pedantic(keep_by_pylm, args=(blocks, int("one" in name)), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="signatures")
@pytest.mark.parametrize("name", ["pylm", "datasketch"])
def test_signatures(name: str, blocks: list[str], benchmark: Any) -> None:
    """Signatures only, on one thread; the estimates of both must be near the true similarity."""
    texts = blocks[:NUM_BLOCKS:4] + blocks[NUM_BLOCKS:]
    hasher = dedup.MinHasher(num_perm=NUM_PERM, ngram=NGRAM)

    def by_pylm() -> np.ndarray:
        return hasher.signatures(texts, num_threads=1)

    def by_datasketch() -> np.ndarray:
        batches = [list(shingles(text)) for text in texts]
        return np.stack([m.digest() for m in datasketch.MinHash.bulk(batches, num_perm=NUM_PERM)])

    run = by_pylm if name == "pylm" else by_datasketch
    signatures, half = run(), len(texts) // 2
    sets = [shingles(text) for text in texts]
    truth = np.array([len(a & b) / len(a | b) for a, b in zip(sets[:half], sets[half:], strict=True)])
    estimate = (signatures[:half] == signatures[half:]).mean(1)
    # The standard error of a pair is at most 0.5 / sqrt(128) = 0.044; of the mean of 375 pairs 0.0023.
    assert abs(float((estimate - truth).mean())) < 0.01
    assert float(np.abs(estimate - truth).max()) < 5 * 0.044
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
