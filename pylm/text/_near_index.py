"""Near-duplicates of texts that were seen before, by an index on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text import _index_folder as index_folder
from pylm.text._checks import check_array, check_bool, check_choice, check_threads, check_threshold
from pylm.text._disk_index import DiskIndex
from pylm.text._minhash import MinHasher, Scheme, Unit
from pylm.text._near import Keep, choose_bands, to_ranks
from pylm.text._token_bytes import Tokens
from pylm.text.texts import Texts

ShingleBits = Literal[0, 32, 64]


@dataclass(frozen=True)
class Matches:
    """Documents of an index that num_docs texts duplicate.

    Attributes:
        document: int64 (num_docs,); id of the document, -1 where there is none.
        similarity: float64 (num_docs,); Jaccard similarity of the two, 0 where there is none.
    """

    document: NDArray[np.int64]
    similarity: NDArray[np.float64]


@dataclass(frozen=True)
class IndexDuplicates:
    """Near-duplicates of num_docs texts, in an index and among each other.

    Attributes: keep: bool (num_docs,); False for texts that duplicate a document of the index or a kept text.
        document: int64 (num_docs,); id of the document of the index that stands for this text, -1 where none
        does. cluster: int64 (num_docs,); index of the kept text that stands for this one, its own where it is
        kept,
            -1 where a document of the index does.
        similarity: float64 (num_docs,); Jaccard similarity with what stands for the text, 1 for kept ones.
        bands: number of bands of the signature that were compared.
        rows: values a band.
    """

    keep: NDArray[np.bool_]
    document: NDArray[np.int64]
    cluster: NDArray[np.int64]
    similarity: NDArray[np.float64]
    bands: int
    rows: int


class NearIndex(DiskIndex[_core.NearIndex]):
    """Documents on disk against which new texts are deduplicated without the old texts.

    What `near` does with texts at once, this does with one batch after another: `add` finds what is kept of a
    batch, after all batches before, and keeps what makes it found again. With `shingle_bits=64` the results
    are those of `near` over all texts in the order in which they were added, to the last bit. With 32
    shingles are compared by half of their hash: two documents of n different shingles seem to share one more
    with a probability of n^2 / 2^32. With 0 there are signatures in their place, and the similarity with a
    document of the index is an estimate with a standard error of sqrt(s (1 - s) / num_perm) at similarity s,
    0.035 at 0.8 and 128 values; similarities among the texts of a batch stay true. A text that equals one of
    the index, or one that a document of the index stands for, is found by a hash of 128 bits. Texts without
    words, and nulls, duplicate nothing and are kept, but not in the index.

    Documents are known by their ids: numbers of the caller, or the place of the text among all that were
    added.

    The folder holds files that are written once, a manifest that names them, and a lock. Files are mapped, so
    that an index may be larger than the memory, and belong to a local file system. Anyone may read while one
    adds, and sees the index as it was when it was opened, or `refresh` was called. A process that is killed
    while it adds leaves the index as it was. Files are merged as they become many.

    Example:
        >>> index = NearIndex.create(folder / "seen", threshold=0.8)
        >>> index.add(["the quick brown fox jumps", "the lazy dog"]).keep.tolist()
        [True, True]
        >>> index.deduplicate(["The quick brown fox jumps!", "a new text", "A new text."]).keep.tolist()
        [False, True, False]
    """

    _kind = "near"

    def __init__(self, folder: str | Path, *, check: bool = True, num_threads: int = 0) -> None:
        """Open an index that `create` made.

        Args: folder: of the index. check: read all files and compare them with their checksums; otherwise
            damage to their middle is found
                only where it leads out of a file.
            num_threads: to check with; 0 uses all cores.

        Raises:
            InputError: there is no such index, or a file is missing, cut off or damaged; names it.
        """
        check_bool("check", check)
        num_threads = check_threads(num_threads)
        self.folder = Path(folder)
        self.refresh()
        given = self._manifest.parameters
        try:
            self.threshold: float = float(given["threshold"])
            self.bands: int = int(given["bands"])
            self.rows: int = int(given["rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise _no_parameters(self.folder, error) from error
        if check:
            self.check(num_threads=num_threads)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        threshold: float = 0.8,
        num_perm: int = 128,
        ngram: int = 5,
        unit: Unit = "word",
        seed: int = 42,
        scheme: Scheme = "fast",
        bits: int | None = None,
        bands: int | None = None,
        rows: int | None = None,
        false_negative_weight: float | None = None,
        shingle_bits: ShingleBits = 64,
    ) -> "NearIndex":
        """Make an empty index and open it.

        Args:
            folder: where no index is yet; it is created.
            threshold: as for `near`.
            num_perm: as for `near`.
            ngram: as for `near`.
            unit: as for `near`.
            seed: as for `near`.
            scheme: as for `near`.
            bits: of a value of the signatures, as for `MinHasher`.
            bands: as for `near`.
            rows: as for `near`.
            false_negative_weight: as for `near`; None for 0.9.
            shingle_bits: what documents are verified by: 64 or 32 bits a different shingle, which take 8 or 4
                bytes each, or 0 for their signatures, which take num_perm * 4 (or 8) bytes a document.

        Raises:
            InputError: there is an index already, or an argument is outside of its range.
        """
        hasher = MinHasher(num_perm=num_perm, ngram=ngram, unit=unit, seed=seed, scheme=scheme, bits=bits)
        check_threshold(threshold)
        if shingle_bits not in get_args(ShingleBits) or isinstance(shingle_bits, bool):
            raise InputError(f"shingle_bits must be 0, 32 or 64, got {shingle_bits!r}")
        bands, rows = choose_bands(threshold, num_perm, bands, rows, false_negative_weight, verify=True)
        parameters = {
            "threshold": float(threshold),
            "num_perm": num_perm,
            "ngram": ngram,
            "unit": unit,
            "seed": int(seed),
            "scheme": scheme,
            "bits": hasher.bits,
            "bands": bands,
            "rows": rows,
            "shingle_bits": int(shingle_bits),
        }
        index_folder.create(Path(folder), cls._kind, parameters)
        return cls(folder)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._core)

    def __repr__(self) -> str:
        """What is in the index."""
        return self._describe(f"{len(self):,} documents of {self.num_texts:,} texts")

    def query(self, texts: Texts | Tokens, *, num_threads: int = 0) -> Matches:
        """Find the first document of the index that each text duplicates.

        A text is compared with the documents that share a band with it, or that stand for a text that does.

        Args:
            texts: num_docs texts; ids with `unit="token"`.
            num_threads: 0 uses all cores; the result does not depend on it.

        Raises:
            TypeError, InputError: as for `near`; a damaged file of the index.

        Example:
            >>> index = NearIndex.create(folder / "seen")
            >>> _ = index.add(["the quick brown fox jumps"], ids=[17])
            >>> index.query(["The quick brown fox jumps!", "a new text"]).document.tolist()
            [17, -1]
        """
        _, document, similarity = self._find(texts, num_threads, among=False)
        return Matches(document, np.where(document >= 0, similarity, 0.0))

    def find_keys(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the documents that `query` would compare with a text, for stages that join keys of their own.

        Args:
            keys: uint64 (num_keys,), as `index.hasher.band_keys` gives with bands and rows of the index. In
                ascending order the files are read from their beginning to their end.

        Returns:
            int64 (num_found,) twice: index of a key, ascending, and id of a document that has the key, or
            stands for a text that does.

        Example:
            >>> index = NearIndex.create(folder / "seen")
            >>> _ = index.add(["the quick brown fox jumps"], ids=[17])
            >>> keys, _ = index.hasher.band_keys(["a new text"], bands=index.bands, rows=index.rows)
            >>> index.find_keys(keys.ravel())[1].tolist()
            []
        """
        check_array("keys", keys, (np.uint64,))
        return self._core.find_keys(keys)

    def deduplicate(
        self,
        texts: Texts | Tokens,
        *,
        keep: Keep = "first",
        priority: Sequence[Any] | NDArray[Any] | None = None,
        num_threads: int = 0,
    ) -> IndexDuplicates:
        """Find texts that are nearly the same as a document of the index or as a text that is kept.

        As if the texts followed those that were added before, in one call of `near`: every text is compared
        with documents of the index first, and the new texts among each other as there. The index stays as it
        is.

        Args:
            texts: num_docs texts; ids with `unit="token"`.
            keep: which new text of a cluster stays, as for `near`; documents of the index come before all.
            priority: in place of `keep`, as for `near`.
            num_threads: 0 uses all cores; the result does not depend on it.

        Raises:
            TypeError, InputError: as for `near`; a damaged file of the index.
        """
        return self._result(*self._find(texts, num_threads, among=True, keep=keep, priority=priority))

    def add(
        self,
        texts: Texts | Tokens,
        *,
        ids: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        keep: Keep = "first",
        priority: Sequence[Any] | NDArray[Any] | None = None,
        num_threads: int = 0,
    ) -> IndexDuplicates:
        """Deduplicate texts, put those that stay into the index, and note for whom they stand.

        All of it is on disk when the call returns, and nothing of it if it does not. Afterwards `num_texts`
        has grown by num_docs, duplicates included.

        Args:
            texts: num_docs texts; ids with `unit="token"`.
            ids: int (num_docs,), 0 or more; of the texts, by which documents are known later. None for their
                places among all texts that were added: `num_texts`, and so on.
            keep: as for `deduplicate`.
            priority: as for `deduplicate`.
            num_threads: 0 uses all cores; files and results do not depend on it.

        Returns:
            What `deduplicate` gives.

        Raises:
            TypeError, InputError: as for `near`; ids that do not fit; another process is writing to the
                index; a damaged file of the index.
            OSError: the folder cannot be written to.
        """
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, self._kind):
            self.refresh()
            source, normalized = self._prepare(texts, num_threads)
            with index_folder.new_file(self.folder, self._manifest) as path:
                found, num_docs, is_empty = self._core.add(
                    self.hasher._core,
                    source,
                    normalized=normalized,
                    **self._options(keep, priority),
                    ids=None if ids is None else _to_ids(ids),
                    first_id=self.num_texts,
                    path=str(path),
                    num_threads=num_threads,
                )
            index_folder.commit(self.folder, self._manifest, num_texts=num_docs, is_empty=is_empty)
            self.refresh()
            self._merge_equals(num_threads)
        return self._result(*found)

    def _open(self, manifest: index_folder.Manifest, paths: list[str]) -> _core.NearIndex:
        given = manifest.parameters
        try:
            self.hasher = MinHasher(
                **{name: given[name] for name in ("num_perm", "ngram", "unit", "seed", "scheme", "bits")}
            )
            shingle_bits = int(given["shingle_bits"])
        except (KeyError, TypeError, ValueError) as error:
            raise _no_parameters(self.folder, error) from error
        return _core.NearIndex(
            paths,
            fingerprint=manifest.fingerprint,
            shingle_bits=shingle_bits,
            low_shingles=self.hasher.scheme == "text-dedup",
            num_perm=self.hasher.num_perm,
            wide=self.hasher.bits == 64,
        )

    def _prepare(self, texts: Texts | Tokens, num_threads: int) -> tuple[Texts, _core.NormalizedTexts | None]:
        prepared = self.hasher._prepare(texts, num_threads)
        if isinstance(prepared, _core.NormalizedTexts):
            return cast(Texts, texts), prepared
        return prepared, None

    def _options(self, keep: Keep, priority: Sequence[Any] | NDArray[Any] | None) -> dict[str, Any]:
        check_choice("keep", keep, get_args(Keep))
        return {
            "threshold": self.threshold,
            "bands": self.bands,
            "rows": self.rows,
            "keep": keep,
            "priority": None if priority is None else to_ranks(priority),
        }

    def _find(
        self,
        texts: Texts | Tokens,
        num_threads: int,
        *,
        among: bool,
        keep: Keep = "first",
        priority: Sequence[Any] | NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        num_threads = check_threads(num_threads)
        options = self._options(keep, priority)
        source, normalized = self._prepare(texts, num_threads)
        return self._core.find(
            self.hasher._core,
            source,
            normalized=normalized,
            **options,
            among=among,
            num_threads=num_threads,
        )

    def _result(
        self, cluster: NDArray[np.int64], document: NDArray[np.int64], similarity: NDArray[np.float64]
    ) -> IndexDuplicates:
        kept = cluster == np.arange(len(cluster))
        return IndexDuplicates(kept, document, cluster, similarity, self.bands, self.rows)


def _no_parameters(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: the manifest lacks parameters, or has others than an index has ({error!r})")


def _to_ids(ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    values = np.asarray(ids)
    if values.size == 0:
        values = np.zeros(values.shape, np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"ids must be whole numbers of one dimension, got {values.dtype} of shape {values.shape}"
        )
    if len(values) and (values.min() < 0 or values.max() >= 1 << 63):
        raise InputError(f"ids must lie in [0, 2^63), got {values.min()} to {values.max()}")
    return values.astype(np.int64)
