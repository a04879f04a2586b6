import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import overlap

from pylm.data import decontaminate
from pylm.data.decontaminate import OverlapConfig, find_overlaps

PHRASE = st.lists(st.sampled_from(["a", "b", "C", "É", "1"]), max_size=12).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(PHRASE, max_size=6),
    st.lists(PHRASE, max_size=6),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.2, 0.5, 0.99, 1.0]),
)
@example(["a b"], [], 2, 0.0)
@example([], ["a b"], 2, 0.0)
@example(["", "a"], ["", "a"], 1, 0.0)
def test_overlaps(training: list[str], heldout: list[str], ngram: int, max_fraction: float) -> None:
    config = OverlapConfig(ngram=ngram, max_fraction=max_fraction)
    found = find_overlaps(iter(training), heldout, config)
    assert found.dtype == np.bool_
    assert found.tolist() == overlap.find_overlaps(training, heldout, ngram, max_fraction)


def test_formatting_hides_nothing() -> None:
    heldout = ["The quick (brown) fox -- jumps over the LAZY dog."]
    training = ["the quick brown fox jumps over the lazy dog", "the quick brown cat jumps over the lazy dog"]
    assert find_overlaps(training, heldout, OverlapConfig(ngram=5)).tolist() == [True, False]


def test_either_side_counts() -> None:
    config = OverlapConfig(ngram=3, max_fraction=0.2)
    inside = " ".join(f"w{i}" for i in range(10))
    long = " ".join(f"x{i}" for i in range(500))
    assert find_overlaps([f"{long} {inside}"], [inside], config).tolist() == [
        True
    ]  # the held-out one is in it
    assert find_overlaps([inside], [f"{long} {inside}"], config).tolist() == [
        True
    ]  # it is in the held-out one
    assert find_overlaps([f"{long} {inside}"], [f"y {inside} {long[::-1]}"], config).tolist() == [False]


def test_words_that_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(3)
    heldout = [" ".join(random.choices("abcdef", k=30)) for _ in range(3)]
    training = [
        " ".join([*random.choices("abcdef", k=9), *(f"new{random.randrange(99)}" for _ in range(20))])
        for _ in range(50)
    ]
    expected = overlap.find_overlaps(training, heldout, 2, 0.3)
    assert 0 < sum(expected) < 50
    monkeypatch.setattr(decontaminate, "_MAX_WORDS", 10)
    found = find_overlaps(training, heldout, OverlapConfig(ngram=2, max_fraction=0.3))
    assert found.tolist() == expected


def test_real_text(shared_data: Path) -> None:
    paragraphs = re.split(r"\n\s*\n", (shared_data / "bpe_reference" / "corpus.en").read_text("utf-8"))
    texts = [" ".join(paragraphs).split(" ")[i : i + 300] for i in range(0, 9_000, 150)]  # half overlaps half
    documents = [" ".join(words) for words in texts]
    training, heldout = documents[::3] + documents[1::3], documents[2::3]
    for max_fraction in (0.2, 0.6):
        expected = overlap.find_overlaps(training, heldout, 13, max_fraction)
        found = find_overlaps(training, heldout, OverlapConfig(max_fraction=max_fraction))
        assert found.tolist() == expected
