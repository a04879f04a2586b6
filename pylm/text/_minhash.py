"""MinHash signatures, in pylm's own schemes and those of other tools."""

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._checks import check_choice, check_int, check_threads
from pylm.text._normalization import join_words
from pylm.text._token_bytes import Tokens, to_id_bytes
from pylm.text.texts import Texts

Unit = Literal["word", "char", "token"]
Scheme = Literal["fast", "classic", "datatrove", "text-dedup"]

_MERSENNE_61 = (1 << 61) - 1


class MinHasher:
    """Turns texts into MinHash signatures; equal values of two signatures estimate the Jaccard similarity.

    The schemes:

    - `fast`: one permutation hashing, with hashes of their own for values that no shingle reaches, after the
      fast similarity sketch (Dahlgaard, Knudsen, Thorup, FOCS 2017): constant work a shingle, unbiased.
    - `classic`: one Carter-Wegman hash for every value (Broder 1997). Slow; for comparison.
    - `text-dedup`: the values of the text-dedup tool, uint32: lower case, split at what is no word character,
      XXH3, `seed` drawing the permutations. Texts under 5 words have no shingles.
    - `datatrove`: the values of the datatrove tool, uint64: its text normalisation, XXH64. Words are split at
      white space, where that tool runs spaCy, which also parts contractions and units; so signatures agree
      for texts without those. Its usual setting is `num_perm=112` (14 bands of 8), `seed=1`.

    `fast` and `classic` have values of 32 or 64 bits. They compare words (runs of letters, marks and digits
    of any script in lower case; in Han, kana, Thai and other scripts without spaces every character is a
    word), characters (lower case, white space collapsed) or ids of tokens. A text shorter than `ngram` words
    is one single shingle; a text without words has none.
    """

    def __init__(
        self,
        *,
        num_perm: int = 128,
        ngram: int = 5,
        unit: Unit = "word",
        seed: int = 42,
        scheme: Scheme = "fast",
        bits: int | None = None,
    ) -> None:
        """Fix the parameters.

        Args:
            num_perm: values a signature; the standard error of the estimate is at most 0.5 / sqrt(num_perm).
            ngram: words, characters or tokens a shingle.
            unit: what shingles are made of; the schemes of other tools know words only. With "token", texts
                are a `TokenArray`, or a list of arrays of ids (1-D, integers from 0 to 2^32 - 1).
            seed: of the random functions, 0 <= seed < 2^64 (2^32 for the schemes of other tools).
            scheme: see above.
            bits: 32 or 64 a value; None for 64 with `datatrove` and 32 with all others. 32 suffice for texts
                of millions of shingles: different minima agree with a probability of shingles / 2^32.

        Raises:
            InputError: a value outside its range.
        """
        check_choice("unit", unit, get_args(Unit))
        check_choice("scheme", scheme, get_args(Scheme))
        check_int("num_perm", num_perm, 1, 1 << 20)
        check_int("ngram", ngram, 1, 1 << 20)
        foreign = scheme in ("datatrove", "text-dedup")
        check_int("seed", seed, 0, (1 << 32 if foreign else 1 << 64) - 1)
        if foreign and unit != "word":
            raise InputError(f"scheme={scheme!r} hashes words, got unit={unit!r}; use scheme='fast'")
        fixed = {"datatrove": 64, "text-dedup": 32}.get(scheme)
        if bits is None:
            bits = fixed or 32
        _check_bits(bits, scheme, fixed)
        self.bits = bits
        self.num_perm = num_perm
        self.ngram = ngram
        self.unit: Unit = unit
        self.seed = seed
        self.scheme: Scheme = scheme
        multipliers, increments = _permutations(seed, num_perm) if foreign else ([], [])
        self._core = _core.MinHasher(
            scheme=scheme,
            num_perm=num_perm,
            ngram=ngram,
            unit=unit,
            seed=seed,
            wide=bits == 64,
            multipliers=multipliers,
            increments=increments,
        )

    def signatures(
        self, texts: Texts | Tokens, *, num_threads: int = 0
    ) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """Hash every text.

        Args:
            texts: num_docs texts; ids with `unit="token"`.
            num_threads: 0 uses all cores; the result does not depend on it.

        Returns:
            (num_docs, num_perm) uint32, or uint64 with `bits=64`. Rows of nulls and of texts without shingles
            hold the largest value of the type throughout.

        Raises:
            TypeError, InputError: as for `exact`; ids of another type or outside their range.
        """
        num_threads = check_threads(num_threads)
        return self._core.signatures(self._prepare(texts, num_threads), num_threads=num_threads)

    def band_keys(
        self, texts: Texts | Tokens, *, bands: int, rows: int, num_threads: int = 0
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Hash the bands of every text's signature, as `near` does: texts that share a key are candidates.

        Args:
            texts: num_docs texts; ids with `unit="token"`.
            bands: number of bands.
            rows: values a band; bands * rows <= num_perm.
            num_threads: 0 uses all cores; the result does not depend on it.

        Returns:
            keys uint64 (num_docs, bands), and bool (num_docs,), whether a text has shingles; keys of nulls
            and of texts without shingles are 0 and stand for nothing.

        Raises:
            TypeError, InputError: as for `exact`, or bands and rows that do not fit.

        Example:
            >>> keys, _ = MinHasher(ngram=2).band_keys(["one two three", "One two three!"], bands=16, rows=8)
            >>> keys.shape, bool((keys[0] == keys[1]).all())
            ((2, 16), True)
        """
        num_threads = check_threads(num_threads)
        check_int("bands", bands, 1, self.num_perm)
        check_int("rows", rows, 1, self.num_perm)
        if bands * rows > self.num_perm:
            raise InputError(f"bands * rows must be at most num_perm={self.num_perm}, got {bands} * {rows}")
        prepared = self._prepare(texts, num_threads)
        keys, has_shingles = self._core.band_keys(prepared, bands=bands, rows=rows, num_threads=num_threads)
        return keys, has_shingles.astype(bool)

    def _prepare(self, texts: Texts | Tokens, num_threads: int) -> Texts | _core.NormalizedTexts:
        """What the core cuts into shingles."""
        if self.unit == "token":
            return to_id_bytes(texts)
        if self.scheme in ("fast", "classic"):
            return cast(Texts, texts)
        return join_words(cast(Texts, texts), self.scheme, num_threads)


def _check_bits(bits: int, scheme: str, fixed: int | None) -> None:
    check_int("bits", bits, 32, 64)
    if bits not in (32, 64) or fixed not in (None, bits):
        raise InputError(f"bits must be {fixed or '32 or 64'} with scheme={scheme!r}, got {bits}")


def _permutations(seed: int, num_perm: int) -> tuple[list[int], list[int]]:
    """Multipliers and increments as text-dedup and datatrove draw them; NumPy keeps this stream frozen."""
    random = np.random.RandomState(seed)
    multipliers = random.randint(1, _MERSENNE_61, size=num_perm, dtype=np.uint64)
    increments = random.randint(0, _MERSENNE_61, size=num_perm, dtype=np.uint64)
    return multipliers.tolist(), increments.tolist()
