"""MinHash signatures against the formulas in plain integers, bit by bit, and their statistics."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dedup as oracle

from pylm.errors import InputError
from pylm.text import dedup

SCHEMES = ["fast", "classic", "datatrove", "text-dedup"]
KINDS = [*((scheme, "word") for scheme in SCHEMES), ("fast", "char"), ("classic", "char")]

# Letters of several cases and scripts, with and without spaces between words; numbers, marks, joiners, quotes
# and separators on which the schemes differ.
ALPHABET = (
    "aabcxyzABCZ0195    \t\n\r\x0b\x1c\x1f\x85\xa0\u2003\u3000_-.,;:'\"!?()[]{}@#%&*/\\|~`^<>=+$"
    "\u2019\u2014\u2026"
    "éÉßẞſıİïÅå\u0301\u0308\u0391Σ\u03c3ςЖжЁёדא\u0645\u0631\u0660\u0669\u066bक\u0915\u093fท\u0e31漢字かな한글\u200b\u200c"
    "\u200d\uff21\uff41\uff11½Ⅷ²ﬁ𐐀𐐨😀🇩🇪"
)
TEXTS = st.text(alphabet=st.sampled_from(ALPHABET), max_size=80)


def _expected(text: str, hasher: dedup.MinHasher) -> list[int]:
    random_state = np.random.RandomState(hasher.seed % 2**32)
    permutations = [
        random_state.randint(low, oracle.PRIME, size=hasher.num_perm, dtype=np.uint64).tolist()
        for low in (1, 0)
    ]
    return oracle.signature(
        text,
        hasher.scheme,
        unit=hasher.unit,
        ngram=hasher.ngram,
        num_perm=hasher.num_perm,
        seed=hasher.seed,
        permutations=(permutations[0], permutations[1]),
    )


@pytest.mark.parametrize(("scheme", "unit"), KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, max_size=4), ngram=st.integers(1, 6), num_perm=st.integers(1, 12))
def test_signatures_follow_the_formulas(
    scheme: dedup.Scheme, unit: dedup.Unit, texts: list[str], ngram: int, num_perm: int
) -> None:
    hasher = dedup.MinHasher(scheme=scheme, unit=unit, ngram=ngram, num_perm=num_perm, seed=7)
    found = hasher.signatures(texts)
    assert found.shape == (len(texts), num_perm)
    assert found.dtype == (np.uint64 if scheme == "datatrove" else np.uint32)
    assert found.tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize(("scheme", "unit"), KINDS)
@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**64 - 1])
def test_long_texts_and_every_seed(scheme: dedup.Scheme, unit: dedup.Unit, seed: int) -> None:
    if seed >= 2**32 and scheme in ("datatrove", "text-dedup"):
        with pytest.raises(InputError, match="seed must lie in"):
            dedup.MinHasher(scheme=scheme, seed=seed)
        return
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefgXYZ", k=draw.randint(1, 20))) for _ in range(40)]
    texts = [" ".join(draw.choices(vocabulary, k=num_words)) for num_words in (1, 4, 5, 6, 60, 400)]
    texts.append("same word " * 600)  # many shingles, few of them distinct
    hasher = dedup.MinHasher(scheme=scheme, unit=unit, num_perm=16, seed=seed)
    assert hasher.signatures(texts).tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize("scheme", ["datatrove", "text-dedup"])
def test_hashes_of_every_length(scheme: dedup.Scheme) -> None:
    """Every branch of XXH64 and XXH3: joined shingles of 9 to 1,100 bytes, and single words below."""
    texts = ["a b c d " + "e" * size for size in [*range(1, 300), 511, 512, 1024, 1025, 1092]]
    for hasher in (
        dedup.MinHasher(scheme=scheme, num_perm=1, seed=1),
        dedup.MinHasher(scheme=scheme, num_perm=1, seed=1, ngram=1),
    ):
        assert hasher.signatures(texts).tolist() == [_expected(text, hasher) for text in texts]


def test_published_values() -> None:
    """What datatrove 0.10.1 and text-dedup 0.4.1 (its repository) gave."""
    text = "The quick brown fox jumps over the lazy dog near the river bank while children watch happily"
    datatrove = dedup.MinHasher(scheme="datatrove", num_perm=112, seed=1).signatures([text])[0]
    assert datatrove[:3].tolist() == [85330943174081874, 53782044765694948, 285742329127442222]
    text_dedup = dedup.MinHasher(scheme="text-dedup", num_perm=240, seed=42).signatures([text])[0]
    assert text_dedup[:3].tolist() == [157826567, 42216907, 138418912]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.8])
def test_estimates_are_unbiased(scheme: dedup.Scheme, similarity: float) -> None:
    """The mean error of 600 estimates lies within 3 standard errors, their spread near the theory's."""
    num_pairs, num_words, num_perm = 600, 40, 64
    common = round(2 * num_words * similarity / (1 + similarity))
    true = common / (2 * num_words - common)
    draw = random.Random(11)
    errors = []
    for seed in range(6):
        words = [
            ["".join(draw.choices("abcdefghij", k=10)) for _ in range(2 * num_words)] for _ in range(100)
        ]
        left = [" ".join(row[:num_words]) for row in words]
        right = [" ".join(row[num_words - common : 2 * num_words - common]) for row in words]
        hasher = dedup.MinHasher(scheme=scheme, ngram=1, num_perm=num_perm, seed=seed)
        errors.append((hasher.signatures(left) == hasher.signatures(right)).mean(axis=1) - true)
    error = np.concatenate(errors)
    assert len(error) == num_pairs
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(num_pairs)
    assert error.std() < 1.15 * np.sqrt(true * (1 - true) / num_perm)


@pytest.mark.parametrize("num_words", [1, 3, 20, 2000])
def test_fast_estimates_texts_of_every_size(num_words: int) -> None:
    """Short texts fill the bins in many rounds, long ones in one or two; both are unbiased."""
    draw = random.Random(5)
    num_pairs = 300 if num_words < 2000 else 40
    left, right = [], []
    for _ in range(num_pairs):
        own = [["".join(draw.choices("abcdefghij", k=12)) for _ in range(num_words)] for _ in range(3)]
        left.append(" ".join(own[0] + own[1]))
        right.append(" ".join(own[0] + own[2]))
    hasher = dedup.MinHasher(ngram=1, num_perm=128)
    error = (hasher.signatures(left) == hasher.signatures(right)).mean(axis=1) - 1 / 3
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(num_pairs)
    assert error.std() < 1.15 * np.sqrt(1 / 3 * 2 / 3 / 128)


def test_texts_without_shingles() -> None:
    for scheme, texts in {
        "fast": ["", " \n", "...", "\u00a9"],
        "classic": ["", " \n", "...", "\u00a9"],
        "text-dedup": ["", "one two three four", "a, b, c, d"],
        "datatrove": ["", "one two three four", "..."],
    }.items():
        rows = dedup.MinHasher(scheme=scheme, num_perm=4).signatures(texts)
        assert (rows == np.iinfo(rows.dtype).max).all(), scheme
    assert dedup.MinHasher().signatures([]).shape == (0, 128)


@pytest.mark.parametrize(
    ("threshold", "num_perm", "expected"),
    [(0.7, 240, (24, 10)), (0.7, 256, (25, 10)), (0.8, 128, (9, 13)), (0.5, 1, (1, 1)), (1.0, 2, (1, 2))],
)
def test_bands_are_those_of_other_tools(threshold: float, num_perm: int, expected: tuple[int, int]) -> None:
    assert dedup.optimal_bands(threshold, num_perm) == expected


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("threshold", [0.2, 0.55, 0.9])
def test_bands_minimise_the_areas(threshold: float, weight: float) -> None:
    """Against the same areas as plain sums over a fine grid."""
    num_perm = 24
    grid = (np.arange(20_000) + 0.5) / 20_000

    def error(bands: int, rows: int) -> float:
        match = 1 - (1 - grid**rows) ** bands
        below = grid < threshold
        return float((1 - weight) * match[below].sum() + weight * (1 - match[~below]).sum())

    every = [(b, r) for b in range(1, num_perm + 1) for r in range(1, num_perm // b + 1)]
    best = min(every, key=lambda pair: error(*pair))
    assert dedup.optimal_bands(threshold, num_perm, false_negative_weight=weight) == best


def test_match_probability() -> None:
    assert round(dedup.match_probability(0.75, 14, 8), 2) == 0.77
    assert round(dedup.match_probability(0.8, 14, 8), 2) == 0.92
    assert dedup.match_probability(0.0, 5, 2) == 0
    assert dedup.match_probability(1.0, 5, 2) == 1
    # Signatures agree on a band as often as the formula says.
    draw = random.Random(3)
    hasher = dedup.MinHasher(ngram=1, num_perm=20)
    hits = []
    for _ in range(400):
        words = ["".join(draw.choices("abcdefghij", k=10)) for _ in range(30)]
        rows = hasher.signatures([" ".join(words[:20]), " ".join(words[10:])]).reshape(2, 5, 4)  # J = 1/3
        hits.append((rows[0] == rows[1]).all(axis=1).any())
    expected = dedup.match_probability(1 / 3, 5, 4)
    assert abs(np.mean(hits) - expected) < 3 * np.sqrt(expected * (1 - expected) / 400)
