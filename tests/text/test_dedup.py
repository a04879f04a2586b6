"""Exact and near-duplicates against all pairs of texts."""

import csv
import random
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dedup as oracle

from pylm.errors import InputError
from pylm.text import dedup

SCHEMES = ["fast", "classic", "datatrove", "text-dedup"]

# Few words, so that texts share shingles.
SMALL_TEXTS = st.lists(
    st.none()
    | st.lists(st.sampled_from(["a", "b", "c", "D", "é", "漢"]), max_size=10).map(" ".join)
    | st.sampled_from(["", "...", "a b c d a b", "A b, c d a b!"]),
    max_size=14,
)


def _sets(texts: Sequence[str | None], scheme: str, ngram: int, unit: str = "word") -> list[set[Hashable]]:
    return [set(oracle.shingles(text or "", scheme, unit, ngram)) for text in texts]


def _corpus(seed: int, size: int) -> list[str]:
    """Texts of a few families, some changed in one word or more, some copied."""
    draw = random.Random(seed)
    families = [["".join(draw.choices("abcdef", k=4)) for _ in range(30)] for _ in range(max(1, size // 8))]
    texts = []
    for _ in range(size):
        words = list(draw.choice(families))
        for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
            words[draw.randrange(len(words))] = "".join(draw.choices("uvwxyz", k=5))
        texts.append(" ".join(words))
    return texts


def _shares_band(texts: Sequence[str | None], bands: int, rows: int, **options: object) -> oracle.Linked:
    """Whether two texts agree on all values of a band; signatures have tests of their own."""
    signatures = dedup.MinHasher(**options).signatures(pa.array(texts, pa.string()))  # type: ignore[arg-type]
    blocks = signatures[:, : bands * rows].reshape(len(texts), bands, rows)
    return lambda i, j: bool((blocks[i] == blocks[j]).all(axis=1).any())


def _check(found: dedup.NearDuplicates, cluster: list[int], similarity: dict[int, float]) -> None:
    assert found.cluster.tolist() == cluster
    assert found.keep.tolist() == [i == kept for i, kept in enumerate(cluster)]
    removed = [i for i, kept in enumerate(cluster) if i != kept]
    assert found.pairs.tolist() == [[cluster[i], i] for i in removed]
    assert found.similarity.tolist() == [similarity[i] for i in removed]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(texts=st.lists(st.none() | st.text(alphabet="abA \u00e9\0", max_size=3), max_size=20))
def test_exact_finds_the_first_equal(texts: list[str | None]) -> None:
    for num_threads in (1, 3):
        found = dedup.exact(pa.array(texts, pa.string()), num_threads=num_threads)
        assert found.dtype == np.int64
        assert found.tolist() == oracle.exact(texts)


def test_exact_compares_bytes() -> None:
    assert dedup.exact([]).tolist() == []
    assert dedup.exact(["é", "e\u0301", "É", "é", "", "\0", ""]).tolist() == [0, 1, 2, 0, 4, 5, 4]
    lengths = [*range(300), *range(300)]  # every branch of the hash
    assert dedup.exact(["x" * n for n in lengths]).tolist() == [*range(300), *range(300)]
    draw = random.Random(0)
    many = [str(draw.randrange(2000)) for _ in range(5000)]
    first = {text: i for i, text in reversed(list(enumerate(many)))}
    assert dedup.exact(many).tolist() == [first[text] for text in many]


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    texts=SMALL_TEXTS,
    threshold=st.sampled_from([0.3, 0.4, 0.5, 2 / 3, 0.75, 0.8, 1.0]),
    ngram=st.integers(1, 3),
    keep=st.sampled_from(["first", "longest"]),
)
def test_near_equals_all_pairs(
    scheme: dedup.Scheme, texts: list[str | None], threshold: float, ngram: int, keep: dedup.Keep
) -> None:
    """With one row a band every pair over the threshold is a candidate: P(miss) = 0.7^256 at most."""
    found = dedup.near(
        pa.array(texts, pa.string()),
        threshold=threshold,
        ngram=ngram,
        keep=keep,
        scheme=scheme,
        num_perm=256,
        bands=256,
        rows=1,
    )
    sets = _sets(texts, scheme, ngram)
    expected = oracle.near(texts, sets, threshold=threshold, linked=lambda i, j: True, keep=keep)
    _check(found, *expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("keep", ["first", "longest"])
@pytest.mark.parametrize(("bands", "rows"), [(9, 4), (4, 9), (20, 2)])
@pytest.mark.parametrize("verify", [True, False])
def test_near_with_bands(scheme: dedup.Scheme, keep: dedup.Keep, bands: int, rows: int, verify: bool) -> None:
    texts: list[str | None] = [*_corpus(bands, 120), None, "", "...", None]
    random.Random(1).shuffle(texts)
    found = dedup.near(
        pa.array(texts, pa.string()),
        threshold=0.6,
        ngram=2,
        num_perm=40,
        seed=3,
        scheme=scheme,
        keep=keep,
        verify=verify,
        bands=bands,
        rows=rows,
    )
    linked = _shares_band(texts, bands, rows, num_perm=40, ngram=2, seed=3, scheme=scheme)
    sets = _sets(texts, scheme, 2)
    cluster, similarity = oracle.near(texts, sets, threshold=0.6, linked=linked, verify=verify, keep=keep)
    if not verify:
        rows_of = dedup.MinHasher(num_perm=40, ngram=2, seed=3, scheme=scheme).signatures(
            pa.array(texts, pa.string())
        )
        similarity = {i: float((rows_of[i] == rows_of[kept]).mean()) for i, kept in enumerate(cluster)}
    _check(found, cluster, similarity)
    assert 10 < len(found.pairs) < 115  # the corpus asks the question
    assert (found.bands, found.rows) == (bands, rows)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.75, 0.8])
@pytest.mark.parametrize("keep", ["first", "longest"])
def test_templates(threshold: float, keep: dedup.Keep) -> None:
    """Hundreds of texts that share most of their words, and none of them what they were filled in with."""
    draw = random.Random(7)
    template = [f"w{i}" for i in range(60)]
    texts = []
    for i in range(400):
        words = list(template[: draw.choice([60, 60, 60, 50])])
        for place in draw.sample(range(len(words)), draw.choice([3, 6, 8, 9])):
            words[place] = f"x{draw.randrange(100_000)}"
        texts.append(" ".join(words))
        if i % 40 == 0:
            texts.append(" ".join(["once", *words[:-1]]))  # one that resembles another one
    draw.shuffle(texts)
    bands, rows = 20, 4
    options = {"num_perm": 80, "ngram": 1, "seed": 5}
    found = dedup.near(texts, threshold=threshold, keep=keep, bands=bands, rows=rows, **options)
    linked = _shares_band(texts, bands, rows, **options)
    _check(found, *oracle.near(texts, _sets(texts, "fast", 1), threshold=threshold, linked=linked, keep=keep))
    assert len(found.pairs) >= 10


def test_verification_breaks_chains() -> None:
    """A ~ B ~ C, but A and C are strangers: C is no duplicate of the A that is kept."""
    words = [f"w{i}" for i in range(26)]
    a, b, c = (" ".join(words[start : start + 20]) for start in (0, 3, 6))
    options = {"threshold": 0.7, "ngram": 1, "num_perm": 256, "bands": 64, "rows": 4}
    sets = _sets([a, b, c], "fast", 1)
    assert oracle.jaccard(sets[0], sets[1]) == oracle.jaccard(sets[1], sets[2]) > 0.7 > 0.6
    assert oracle.jaccard(sets[0], sets[2]) < 0.7
    assert dedup.near([a, b, c], verify=False, **options).cluster.tolist() == [0, 0, 0]
    assert dedup.near([a, b, c], **options).cluster.tolist() == [0, 0, 2]
    assert dedup.near([b, a, c], **options).cluster.tolist() == [0, 0, 0]
    assert dedup.near([a, c, b], **options).cluster.tolist() == [0, 1, 0]


@pytest.mark.parametrize("scheme", ["fast", "classic"])
def test_characters(scheme: dedup.Scheme) -> None:
    texts = [
        "abcdefgh",
        "ABC  DEFGH",
        "abc defgh ",
        "abcdefgX",
        "",
        " ",
        "漢字かな交じり文",
        "漢字かな交じり字",
    ]
    found = dedup.near(
        texts, threshold=0.5, ngram=3, unit="char", scheme=scheme, num_perm=256, bands=256, rows=1
    )
    sets = _sets(texts, scheme, 3, "char")
    _check(found, *oracle.near(texts, sets, threshold=0.5, linked=lambda i, j: True))
    assert found.cluster.tolist() == [0, 1, 1, 0, 4, 5, 6, 6]


@pytest.mark.parametrize("threshold", [0.01, 0.5, 1.0])
def test_words_of_any_script(threshold: float) -> None:
    groups = [
        ["Straße nach Köln", "STRASSE nach Köln", "straße NACH köln!"],
        ["Где мой дом?", "где МОЙ дом", "где твой дом"],
        ["漢字、かな", "漢字かな", "漢字。かな。"],
        ["ภาษาไทย ง่าย", "ภาษาไทยง่าย"],
        ["naïve café", "NAÏVE CAFÉ", "naive cafe"],
    ]
    texts = [text for group in groups for text in group]
    found = dedup.near(texts, threshold=threshold, ngram=2, num_perm=512, bands=512, rows=1)
    _check(found, *oracle.near(texts, _sets(texts, "fast", 2), threshold=threshold, linked=lambda i, j: True))
    if threshold == 1.0:
        assert found.cluster.tolist() == [0, 1, 0, 3, 3, 5, 6, 6, 6, 9, 9, 11, 11, 13]


def test_nothing_to_compare() -> None:
    for texts in ([], [""], ["one text"], ["", "", "...", "..."], pa.nulls(3, pa.string())):
        found = dedup.near(texts)
        assert found.cluster.tolist() == list(range(len(texts)))
        assert found.keep.all()
        assert found.pairs.shape == (0, 2)
        assert found.similarity.shape == (0,)
    short = dedup.near(["a b", "A, b", "a c"], scheme="text-dedup")  # under five words: kept
    assert short.keep.all()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ["int", "float", "date", "rank"])
def test_priority(kind: str, verify: bool) -> None:
    """The largest of a cluster stays, as if the texts had come in that order."""
    texts: list[str | None] = [*_corpus(8, 150), None, "", None]
    random.Random(2).shuffle(texts)
    draw = np.random.default_rng(5)
    priority = {
        "int": draw.integers(-5, 5, len(texts)),
        "float": draw.random(len(texts)).astype(np.float32),
        "date": np.datetime64("2020-01-01") + draw.integers(0, 30, len(texts)),
        "rank": [int(i) % 3 for i in range(len(texts))],
    }[kind]
    values = np.asarray(priority)
    order = sorted(range(len(texts)), key=lambda i: (-values[i].astype(float), i))
    options = {"threshold": 0.6, "ngram": 2, "bands": 40, "rows": 3}
    found = dedup.near(
        pa.array(texts, pa.string()), priority=priority, verify=verify, num_threads=3, **options
    )
    linked = _shares_band(texts, 40, 3, num_perm=128, ngram=2)
    expected, similarity = oracle.near(
        texts, _sets(texts, "fast", 2), threshold=0.6, linked=linked, verify=verify, preference=order
    )
    assert found.cluster.tolist() == expected
    if verify:
        removed = found.pairs[:, 1].tolist()
        assert found.similarity.tolist() == [similarity[i] for i in removed]
    assert len(found.pairs) > 10
    assert (values[found.pairs[:, 0]] >= values[found.pairs[:, 1]]).all()
    copies = dedup.near(["a b", "c d", "a b", "a b"], priority=[1, 1, 3, 2])
    assert copies.cluster.tolist() == [2, 1, 2, 2]


@pytest.mark.parametrize(
    ("priority", "message"),
    [
        ([1], "priority must hold one value for each of 2 texts, got 1"),
        (["x", "y"], "priority must be numbers or datetime64 of one dimension, got <U1"),
        ([[1], [2]], r"of shape \(2, 1\)"),
        ([1.0, float("nan")], r"priority\[1\] is nan; give texts without one the least value"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), r"priority\[1\] is NaT"),
    ],
)
def test_bad_priorities_are_named(priority: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dedup.near(["a b", "c d"], priority=priority)  # type: ignore[arg-type]


def test_a_large_component() -> None:
    """More texts than are verified at once, on any number of threads."""
    words = [f"w{i}" for i in range(60)]
    draw = random.Random(6)
    texts = []
    for i in range(1500):
        changed = list(words)
        for _ in range(draw.randrange(6)):
            changed[draw.randrange(60)] = f"x{i}"
        texts.append(" ".join(changed))
    options = {"threshold": 0.75, "ngram": 1, "bands": 64, "rows": 2}
    one = dedup.near(texts, num_threads=1, **options)
    assert len(one.pairs) > 1000
    sets = _sets(texts, "fast", 1)
    for kept, removed in one.pairs[::10].tolist():
        assert oracle.jaccard(sets[kept], sets[removed]) >= 0.75
    for num_threads in (2, 3, 8):
        other = dedup.near(texts, num_threads=num_threads, **options)
        assert (other.cluster == one.cluster).all()
        assert (other.similarity == one.similarity).all()


def test_many_copies() -> None:
    """Pairs of 20,000 texts would be 200 million; equal ones, and ones equal in words, are seen once."""
    text = " ".join(f"word{i}" for i in range(100))
    assert not dedup.near([text] * 100_000).cluster.any()
    assert not dedup.near([f"{text} ." if i % 2 else f"{text} !" for i in range(100_000)]).cluster.any()
    cased = [text[:i].upper() + text[i:] + "!" * (i % 5) for i in range(400)] * 50
    for verify in (True, False):
        found = dedup.near(cased, threshold=1.0, verify=verify)
        assert not found.cluster.any()
        assert (found.similarity == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("verify", [True, False])
def test_threads_do_not_matter(scheme: dedup.Scheme, verify: bool) -> None:
    texts = _corpus(9, 1500)
    one = dedup.near(texts, threshold=0.7, ngram=3, scheme=scheme, verify=verify, num_threads=1)
    assert len(one.pairs) > 500
    for num_threads in (0, 2, 3, 8):
        other = dedup.near(
            texts, threshold=0.7, ngram=3, scheme=scheme, verify=verify, num_threads=num_threads
        )
        assert other.cluster.tolist() == one.cluster.tolist()
        assert other.similarity.tolist() == one.similarity.tolist()
        assert dedup.exact(texts, num_threads=num_threads).tolist() == oracle.exact(texts)
    hasher = dedup.MinHasher(scheme=scheme)
    rows = hasher.signatures(texts, num_threads=1)
    assert (hasher.signatures(texts, num_threads=3) == rows).all()


def _unaligned(texts: list[str]) -> pa.Array:
    """The same column with offsets that start at an odd address."""
    offsets, data = pa.array(texts, pa.string()).buffers()[1:]
    shifted = pa.py_buffer(b"\0" + offsets.to_pybytes())[1:]
    return pa.Array.from_buffers(pa.string(), len(texts), [None, shifted, data])


@pytest.mark.parametrize("scheme", ["fast", "text-dedup"])
def test_every_container_gives_the_same(scheme: dedup.Scheme) -> None:
    texts = [*_corpus(4, 30), "", "ein längerer Text mit Umlauten wie äöü und mehr", ""]
    lists = [texts, tuple(texts)]
    plain = pa.array(texts, pa.string())
    columns = [
        plain,
        *(plain.cast(kind) for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())),
        pa.array([text.encode() for text in texts], pa.binary_view()),
        pa.array(["before", *texts, "after"]).slice(1, len(texts)),
        pa.array(["before", *texts, "after"], pa.string_view()).slice(1, len(texts)),
        pa.chunked_array([plain.slice(0, 7), pa.array([], pa.string()), plain.slice(7)]),
        pa.table({"text": plain})["text"],
        _unaligned(texts),
    ]
    hasher = dedup.MinHasher(scheme=scheme, num_perm=16, ngram=2)
    expected = dedup.near(texts, threshold=0.6, ngram=2, scheme=scheme)
    for column in [*lists, *columns]:
        assert dedup.exact(column).tolist() == oracle.exact(texts)
        assert (hasher.signatures(column) == hasher.signatures(texts)).all()
        found = dedup.near(column, threshold=0.6, ngram=2, scheme=scheme)
        assert found.cluster.tolist() == expected.cluster.tolist()
        assert found.similarity.tolist() == expected.similarity.tolist()
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        with_nulls = pa.array([None, *texts, None], kind)
        for column in (with_nulls, with_nulls.slice(1), pa.chunked_array([with_nulls, with_nulls])):
            items = column.to_pylist()
            assert dedup.exact(column).tolist() == oracle.exact(items)
            rows = hasher.signatures(column)
            assert (rows[[i for i, item in enumerate(items) if item is None]] == 2**32 - 1).all()
            kept = dedup.near(column, threshold=0.6, ngram=2, scheme=scheme).keep
            assert all(kept[i] for i, item in enumerate(items) if item is None)


def test_no_chunks_and_invalid_bytes() -> None:
    assert dedup.exact(pa.chunked_array([], pa.string())).tolist() == []
    assert dedup.near(pa.chunked_array([], pa.string())).cluster.tolist() == []
    column = pa.array([b"\xff\xfe a", b"\xff a", b"\xff\xfe a", b"\xc3", b"a\xe2\x82"], pa.binary())
    assert dedup.exact(column).tolist() == [0, 1, 0, 3, 4]
    # Invalid bytes only separate words.
    assert dedup.near(column).cluster.tolist() == [0, 0, 0, 3, 0]
    with pytest.raises(InputError, match="bytes that are no UTF-8"):
        dedup.near(column, scheme="datatrove")


@pytest.mark.parametrize("scheme", ["fast", "datatrove"])
@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("abc", TypeError, r"texts must be a list of str or an Arrow string array, got str; pass \[text\]"),
        (3, TypeError, "texts must be a list of str or an Arrow string array, got int"),
        (["a", 3], TypeError, r"texts\[1\] must be str, got int"),
        (
            ["a", None],
            TypeError,
            r"texts\[1\] must be str, got NoneType; a pyarrow string array may hold nulls",
        ),
        (["a", b"b"], TypeError, r"texts\[1\] must be str, got bytes"),
        (["a", "b\ud800"], InputError, r"texts\[1\] holds a lone surrogate.*errors='replace'"),
        (pa.array([1]), InputError, "expected an Arrow string or binary array, got Arrow format 'l'"),
        (pa.array(["a"]).dictionary_encode(), InputError, "dictionary-encoded values; cast to string"),
        (pa.table({"text": ["a"]}), InputError, "a table or struct.*pass its text column"),
        (pa.chunked_array([[1.5]]), InputError, "got Arrow format 'g'"),
    ],
)
def test_bad_texts_are_named(
    scheme: dedup.Scheme, texts: object, error: type[Exception], message: str
) -> None:
    for call in (
        dedup.exact,
        dedup.MinHasher(scheme=scheme).signatures,
        lambda values: dedup.near(values, scheme=scheme),
    ):
        with pytest.raises(error, match=message):
            call(texts)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.0}, InputError, r"threshold must lie in \(0, 1\], got 0.0"),
        ({"threshold": 1.01}, InputError, "threshold must lie in"),
        ({"threshold": float("nan")}, InputError, "threshold must lie in"),
        ({"threshold": "0.8"}, TypeError, "threshold must be a float, got str"),
        ({"num_perm": 0}, InputError, r"num_perm must lie in \[1, 1048576\], got 0"),
        ({"num_perm": 1.5}, TypeError, "num_perm must be an int, got float"),
        ({"ngram": 0}, InputError, "ngram must lie in"),
        ({"seed": -1}, InputError, "seed must lie in"),
        ({"unit": "line"}, InputError, "unit must be one of 'word', 'char', 'token', got 'line'"),
        (
            {"scheme": "best"},
            InputError,
            "scheme must be one of 'fast', 'classic', 'datatrove', 'text-dedup'",
        ),
        ({"scheme": "datatrove", "unit": "char"}, InputError, "hashes words.*use scheme='fast'"),
        ({"keep": "last"}, InputError, "keep must be one of 'first', 'longest', got 'last'"),
        ({"num_threads": -1}, InputError, "num_threads must lie in"),
        ({"bands": 4}, InputError, "bands and rows are given together"),
        (
            {"bands": 4, "rows": 4, "false_negative_weight": 0.5},
            InputError,
            "false_negative_weight chooses bands and rows",
        ),
        ({"false_negative_weight": 1.5}, InputError, r"false_negative_weight must lie in \[0, 1\]"),
        ({"bands": 64, "rows": 3}, InputError, r"bands \* rows must be at most num_perm=128, got 64 \* 3"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dedup.near(["a"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5])
def test_plagiarised_answers(shared_data: Path, threshold: float) -> None:
    """Answers copied from an article and changed more or less: the verdict of all pairs, real overlap."""
    folder = shared_data / "neardup" / "clough_stevenson"
    with (folder / "file_information.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: row["Category"] != "orig")
    texts = [(folder / row["File"]).read_text(encoding="cp1252", errors="replace") for row in rows]
    found = dedup.near(texts, threshold=threshold, ngram=3, num_perm=512, bands=512, rows=1)
    sets = _sets(texts, "fast", 3)
    _check(found, *oracle.near(texts, sets, threshold=threshold, linked=lambda i, j: True))
    groups = {
        kind: [i for i, r in enumerate(rows) if r["Category"] == kind] for kind in ("orig", "cut", "non")
    }
    assert found.keep[groups["orig"]].all()
    if threshold == 0.1:
        assert (~found.keep[groups["cut"]]).mean() > 0.8
        assert found.keep[groups["non"]].mean() > 0.9  # written without the article, on the same question


def test_licences_and_repeated_lines(shared_data: Path) -> None:
    folder = shared_data / "cs336_a4" / "documents_with_fuzzy_duplicates"
    names = ["pytorch_license.txt", "rails_mit_license.txt", "react_mit_license.txt"]
    licences = [(folder / name).read_text(encoding="utf-8") for name in names]
    assert dedup.near(licences, threshold=0.8, num_perm=512, ngram=5).cluster.tolist() == [0, 1, 1]

    # The course's exercise: a line that occurs more than once anywhere goes, every copy of it.
    folder = shared_data / "cs336_a4" / "documents_with_line_duplicates"
    documents = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    lines = [line for document in documents for line in document.splitlines(keepends=True)]
    first = dedup.exact(lines)
    unique = np.bincount(first, minlength=len(lines))[first] == 1
    kept = iter(unique.tolist())
    cleaned = ["".join(line for line in text.splitlines(keepends=True) if next(kept)) for text in documents]
    expected = [
        path.read_text() for path in sorted((folder.parent / "documents_line_deduplicated").iterdir())
    ]
    assert cleaned == expected
