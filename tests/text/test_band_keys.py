import numpy as np
import pyarrow as pa
import pytest

from pylm import dedup
from pylm.errors import InputError

TEXTS = ["one two three four", "One two, three four!", "one two three five", "", None, "...", "six"]


@pytest.mark.parametrize("scheme", ["fast", "classic", "text-dedup", "datatrove"])
def test_texts_share_a_key_where_their_signatures_agree(scheme: str) -> None:
    texts = pa.array([f"{a} b {c} d {e} f" for a in "xy" for c in "pqr" for e in "stuv"])
    hasher = dedup.MinHasher(num_perm=64, ngram=2, scheme=scheme)
    signatures = hasher.signatures(texts)
    keys, has_shingles = hasher.band_keys(texts, bands=16, rows=4, num_threads=2)
    assert has_shingles.all()
    shared = 0
    for i in range(len(texts)):
        for j in range(i):
            agree = (signatures[i] == signatures[j]).reshape(16, 4).all(1)
            assert (agree == (keys[i] == keys[j])).all()
            shared += agree.sum()
    assert shared > 20


def test_what_has_no_shingles() -> None:
    keys, has_shingles = dedup.MinHasher(ngram=2).band_keys(TEXTS[:1] + TEXTS[1:4], bands=4, rows=2)
    assert has_shingles.tolist() == [True, True, True, False]
    keys, has_shingles = dedup.MinHasher(ngram=2).band_keys(pa.array(TEXTS), bands=4, rows=2)
    assert has_shingles.tolist() == [True, True, True, False, False, False, True]
    assert not keys[~has_shingles].any()
    assert (keys[0] == keys[1]).all()
    assert dedup.MinHasher().band_keys([], bands=4, rows=2)[0].shape == (0, 4)


def test_bands_that_do_not_fit() -> None:
    for bands, rows in [(65, 2), (0, 1), (1, 129)]:
        with pytest.raises(InputError, match="must"):
            dedup.MinHasher(num_perm=128).band_keys(["a"], bands=bands, rows=rows)


def test_hashes_of_texts() -> None:
    texts = pa.array(["A  rose", "a rose", None, "a rose.", "a rose"])
    for options in ({}, {"normalize": True}, {"normalize": True, "punctuation": False}, {"unit": "url"}):
        hashes, present = dedup.hash_texts(texts, **options)
        assert present.tolist() == [True, True, False, True, True]
        first = dedup.exact(texts, **options)
        for i in np.flatnonzero(present):
            for j in np.flatnonzero(present):
                assert (hashes[i] == hashes[j]).all() == (first[i] == first[j])
