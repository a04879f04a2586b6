"""MinHash signatures against the formulas in plain integers, bit by bit, and their statistics."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dedup as oracle

from pylm import _core
from pylm.errors import InputError
from pylm.text import _minhash, _normalization, dedup
from pylm.text.token_array import TokenArray

SCHEMES = ["fast", "classic", "datatrove", "text-dedup"]
KINDS = [*((s, "word") for s in SCHEMES), *((s, u) for s in ("fast", "classic") for u in ("char", "token"))]

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
        bits=hasher.bits,
    )


def _as_tokens(texts: list[str]) -> list[np.ndarray]:
    return [np.array([ord(char) for char in text], np.uint32) for text in texts]


@pytest.mark.parametrize(("scheme", "unit"), KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(TEXTS, max_size=4),
    ngram=st.integers(1, 6),
    num_perm=st.integers(1, 12),
    bits=st.sampled_from([32, 64]),
)
def test_signatures_follow_the_formulas(
    scheme: dedup.Scheme, unit: dedup.Unit, texts: list[str], ngram: int, num_perm: int, bits: int
) -> None:
    bits = {"datatrove": 64, "text-dedup": 32}.get(scheme, bits)
    hasher = dedup.MinHasher(scheme=scheme, unit=unit, ngram=ngram, num_perm=num_perm, seed=7, bits=bits)
    found = hasher.signatures(_as_tokens(texts) if unit == "token" else texts)
    assert found.shape == (len(texts), num_perm)
    assert found.dtype == (np.uint64 if bits == 64 else np.uint32)
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
    given = _as_tokens(texts) if unit == "token" else texts
    assert hasher.signatures(given).tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("num_perm", [255, 256, 300, 600])
def test_bins_of_several_rounds(num_perm: int, bits: int) -> None:
    draw = random.Random(num_perm)
    texts = [" ".join(str(draw.randrange(10**9)) for _ in range(n)) for n in (1, 5, 60, 250)]
    hasher = dedup.MinHasher(num_perm=num_perm, bits=bits, ngram=2)
    assert hasher.signatures(texts).tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize("letter", ["x", "é", "เ", "语", "\U0001d4b3"])
@pytest.mark.parametrize("before", ["", "ab ", "c" * 700 + " "])
def test_runs_as_long_as_a_block(letter: str, before: str) -> None:
    """Runs without a border end before, at and behind the 4,096th byte, at the text's end and before more."""
    hasher = dedup.MinHasher(ngram=2, num_perm=16)
    size = len(letter.encode())
    lengths = {n // size for n in range(4090 - len(before), 4102)} | {
        4096 // size - 1,
        4096 // size,
        8192 // size,
    }
    texts = [before + letter * n + after for n in sorted(lengths) for after in ("", " ", " y", "\n\n", "é z")]
    assert hasher.signatures(texts).tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize("level", _core.simd_levels())
@pytest.mark.parametrize(("scheme", "unit"), KINDS)
def test_levels_do_not_matter(scheme: dedup.Scheme, unit: dedup.Unit, level: str) -> None:
    """Runs that begin and end everywhere in a window and a block, and texts that end there."""
    draw = random.Random(3)
    texts = ["".join(draw.choices(ALPHABET, k=size)) for size in (0, 1, 15, 16, 17, 63, 64, 65, 300)]
    texts += ["".join(draw.choices("abC1 -", k=size)) for size in (4095, 4096, 4097, 9000)]
    texts += ["x" * 5000, "é" * 3000, " ".join(("y" * 4090, "z" * 4200, "é" * 4000))]
    texts += ["a" * before + " " + "b" * size for before in (0, 4090) for size in range(1, 20)]
    for num_perm in (1, 15, 40):
        hasher = dedup.MinHasher(scheme=scheme, unit=unit, ngram=2, num_perm=num_perm, seed=5)
        given = hasher._prepare(_as_tokens(texts) if unit == "token" else texts, 1)
        multipliers, increments = [], []
        if scheme in ("datatrove", "text-dedup"):
            multipliers, increments = _minhash._permutations(5, num_perm)
        forced = _core.MinHasher(
            scheme=scheme,
            num_perm=num_perm,
            ngram=2,
            unit=unit,
            seed=5,
            wide=False,
            multipliers=multipliers,
            increments=increments,
            level=level,
        )
        assert (
            forced.signatures(given, num_threads=1) == hasher._core.signatures(given, num_threads=1)
        ).all()


def test_tokens() -> None:
    ids = [np.array([7, 8, 9], np.uint32), [7, 8, 9], np.array([], np.int64), [], np.array([2**32 - 1])]
    hasher = dedup.MinHasher(unit="token", ngram=2, num_perm=8)
    rows = hasher.signatures(ids)
    flat = np.array([0, 7, 8, 9, 7, 8, 9, 2**32 - 1], np.uint32)
    array = TokenArray(flat, np.array([1, 4, 7, 7, 7, 8]))
    assert (hasher.signatures(array) == rows).all()
    assert (rows[0] == rows[1]).all()
    assert (rows[2:4] == 2**32 - 1).all()
    found = dedup.near(array, unit="token", ngram=2)
    assert found.cluster.tolist() == [0, 0, 2, 3, 4]
    assert dedup.near(ids, unit="token", ngram=2).cluster.tolist() == [0, 0, 2, 3, 4]
    for bad, error, message in (
        ("abc", TypeError, "must be a TokenArray or a list of arrays of ids, got str"),
        (["abc"], InputError, r"texts\[0\] must be a 1-D array of ids"),
        ([[1], [0.5]], InputError, r"texts\[1\] must be a 1-D array of ids, got float64"),
        ([[[1]]], InputError, r"of shape \(1, 1\)"),
        ([[-1]], InputError, r"outside of 0 to 2\^32 - 1"),
        ([[2**32]], InputError, r"outside of 0 to 2\^32 - 1"),
        (TokenArray(flat, np.array([0, 9])), InputError, "offsets must rise"),
        (TokenArray(flat, np.array([3, 2])), InputError, "offsets must rise"),
    ):
        with pytest.raises(error, match=message):
            hasher.signatures(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "bits", "message"),
    [
        ("fast", 16, r"bits must lie in \[32, 64\], got 16"),
        ("fast", 48, "bits must be 32 or 64"),
        ("datatrove", 32, "bits must be 64 with scheme='datatrove'"),
        ("text-dedup", 64, "bits must be 32 with scheme='text-dedup'"),
    ],
)
def test_bits_are_checked(scheme: dedup.Scheme, bits: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dedup.MinHasher(scheme=scheme, bits=bits)


@pytest.mark.parametrize("scheme", ["datatrove", "text-dedup"])
def test_hashes_of_every_length(scheme: dedup.Scheme) -> None:
    """Every branch of XXH64 and XXH3: joined shingles of 9 to 1,100 bytes, and single words below."""
    texts = ["a b c d " + "e" * size for size in [*range(1, 300), 511, 512, 1024, 1025, 1092]]
    for hasher in (
        dedup.MinHasher(scheme=scheme, num_perm=1, seed=1),
        dedup.MinHasher(scheme=scheme, num_perm=1, seed=1, ngram=1),
    ):
        assert hasher.signatures(texts).tolist() == [_expected(text, hasher) for text in texts]


@pytest.mark.parametrize("scheme", ["datatrove", "text-dedup"])
def test_words_of_every_character(scheme: str) -> None:
    """Alone, between letters, and between digits."""
    points = [point for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    points = [*points[:0x3400], *points[0x3400::7]]  # ideographs by sample
    texts = [f"aB{chr(point)}C {chr(point)} 1{chr(point)}2.5" for point in points]
    split = {"datatrove": oracle.datatrove_words, "text-dedup": oracle.text_dedup_words}[scheme]
    joined = _normalization.join_words([*texts, "x y z"], scheme, 0)
    assert 0 < len(joined.unknown) < len(points) // 2
    pad = " v w x y z" if scheme == "text-dedup" else ""  # its oracle drops short texts
    for text, found in zip(texts, joined, strict=False):  # __getitem__ until IndexError
        expected = " ".join(split(text + pad))
        assert found.decode() + pad == expected, text


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
