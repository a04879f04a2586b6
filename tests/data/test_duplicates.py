import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from oracles import near_duplicates

from pylm.data.duplicates import DedupConfig, find_duplicates


def make_texts(seed: int) -> list[str]:
    """Families of texts far from each other: copies, copies with one word changed, and strangers."""
    rng = random.Random(seed)
    texts = []
    for family in range(12):
        words = [f"w{family}x{rng.randrange(1000)}" for _ in range(400)]
        texts.append(" ".join(words))
        for _ in range(rng.randrange(4)):
            changed = list(words)
            changed[rng.randrange(400)] = "other"
            texts.append(" ".join(rng.choice([words, changed])))
        half = words[:200] + [f"h{rng.randrange(1000)}" for _ in range(200)]
        texts.append(" ".join(half))  # similarity of a third
    rng.shuffle(texts)
    return [*texts, "", "", "one", "one", "Two."]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_chunks", [1, 7])
def test_copies_and_near_copies(seed: int, num_chunks: int) -> None:
    texts = make_texts(seed)
    bounds = np.linspace(0, len(texts), num_chunks + 1).astype(int)
    column = pa.chunked_array([texts[a:b] for a, b in itertools.pairwise(bounds)], pa.large_string())
    exact = [text in texts[:i] for i, text in enumerate(texts)]
    rest = [i for i in range(len(texts)) if not exact[i]]
    near = np.zeros(len(texts), dtype=bool)
    near[rest] = near_duplicates.near_duplicates([texts[i] for i in rest], 5, 0.8)
    assert sum(exact) > 5
    assert near.sum() > 3
    for num_threads in (1, 2):
        found = find_duplicates(column, DedupConfig(), num_threads=num_threads)
        assert found.exact.tolist() == exact
        assert found.near.tolist() == near.tolist()


def test_steps_that_are_off() -> None:
    texts = make_texts(0)
    column = pa.chunked_array([texts], pa.large_string())
    found = find_duplicates(column, DedupConfig(exact=False))
    assert not found.exact.any()
    expected = near_duplicates.near_duplicates(texts, 5, 0.8)
    assert found.near.tolist() == expected
    found = find_duplicates(column, DedupConfig(near=False))
    assert found.exact.tolist() == [text in texts[:i] for i, text in enumerate(texts)]
    assert not found.near.any()
    found = find_duplicates(column, DedupConfig(near=False, exact=False))
    assert not found.exact.any()


def test_none() -> None:
    found = find_duplicates(pa.chunked_array([], pa.large_string()), DedupConfig())
    assert found.exact.tolist() == found.near.tolist() == []
