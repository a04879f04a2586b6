"""Equal texts, lines, paragraphs and addresses."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text._checks import check_choice, check_int, check_threads
from pylm.text._normalization import join_part_words, join_words, to_strings
from pylm.text._urls import normalize_url
from pylm.text.texts import Texts

Unit = Literal["document", "url"]
PartUnit = Literal["line", "paragraph"]
Keys = Texts | _core.NormalizedTexts

_BLOOM_VERSION = 2
_VISITING = threading.Lock()


def exact(
    texts: Texts,
    *,
    unit: Unit = "document",
    normalize: bool = False,
    punctuation: bool = True,
    num_threads: int = 0,
) -> NDArray[np.int64]:
    """Find texts that are equal.

    Hashes find candidates, bytes decide, so that nothing is taken for equal that is not.

    Args:
        texts: num_docs texts; nulls of an Arrow column equal nothing, not even each other.
        unit: "document"; or "url" for addresses, compared as `normalize_url` gives them.
        normalize: compare texts in lower case, with white space collapsed and cut off at both ends.
        punctuation: False leaves out punctuation (Unicode's class P) from normalised texts.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        int64 (num_docs,): for every text the index of the first equal one, its own where it is the first.

    Raises:
        TypeError: `texts` is no list of str and no Arrow column, or an item is no str; names the index.
        InputError: the column holds no text, a str holds a lone surrogate, options contradict each other, or
            texts to normalise are no UTF-8.

    Example:
        >>> exact(["a", "b", "a"]).tolist()
        [0, 1, 0]
        >>> exact(["A  rose.", "a rose"], normalize=True, punctuation=False).tolist()
        [0, 0]
    """
    num_threads = check_threads(num_threads)
    keys = _make_keys(texts, _check_options(unit, normalize, punctuation), num_threads)
    return _core.exact_duplicates(keys, num_threads=num_threads)


def hash_texts(
    texts: Texts,
    *,
    unit: Unit = "document",
    normalize: bool = False,
    punctuation: bool = True,
    num_threads: int = 0,
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash what `exact` compares to 128 bits, for equal texts that lie in different places.

    Args:
        texts: num_docs texts.
        unit: as for `exact`.
        normalize: as for `exact`.
        punctuation: as for `exact`.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        uint64 (num_docs, 2), and bool (num_docs,), False for nulls, whose hashes are 0 and stand for nothing.

    Raises:
        TypeError, InputError: as for `exact`.

    Example:
        >>> hashes, _ = hash_texts(["A  rose", "a rose", "a nose"], normalize=True)
        >>> bool((hashes[0] == hashes[1]).all()), bool((hashes[0] == hashes[2]).all())
        (True, False)
    """
    num_threads = check_threads(num_threads)
    keys = _make_keys(texts, _check_options(unit, normalize, punctuation), num_threads)
    hashes, null = _core.hash128(keys, num_threads=num_threads)
    return hashes, null == 0


@dataclass(frozen=True)
class PartDuplicates:
    """Equal lines or paragraphs of texts, num_parts of them, in order.

    Attributes:
        doc: int64 (num_parts,); index of the text.
        start: int64 (num_parts,); first byte in the text.
        end: int64 (num_parts,); one past the last byte, without the end of the line.
        first: int64 (num_parts,); index of the first equal part, its own where it is the first.
    """

    doc: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def keep(self) -> NDArray[np.bool_]:
        """bool (num_parts,); False for parts that repeat one before."""
        return np.asarray(self.first == np.arange(len(self.first)), bool)


def exact_parts(
    texts: Texts,
    *,
    unit: PartUnit = "line",
    normalize: bool = False,
    punctuation: bool = True,
    num_threads: int = 0,
) -> PartDuplicates:
    """Find lines or paragraphs that occur before, in the same text or in another.

    Args:
        texts: num_docs texts; nulls have no parts.
        unit: "line", or "paragraph": lines up to a blank one. Blank lines belong to no part.
        normalize: as for `exact`.
        punctuation: as for `exact`.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        Every part, its place, and the first one that equals it.

    Raises:
        TypeError, InputError: as for `exact`.

    Example:
        >>> exact_parts(["menu\\none", "menu\\ntwo"]).keep.tolist()
        [True, True, False, True]
    """
    check_choice("unit", unit, get_args(PartUnit))
    num_threads = check_threads(num_threads)
    scheme = _check_options("document", normalize, punctuation)
    parts = _core.TextParts(texts, paragraphs=unit == "paragraph")
    keys = parts if scheme is None else join_part_words(parts, scheme, num_threads)
    return PartDuplicates(*parts.places(), _core.exact_duplicates(keys, num_threads=num_threads))


@dataclass(frozen=True)
class BatchDuplicates:
    """Equal texts of a stream of num_docs texts.

    Attributes:
        num_docs: texts that were read.
        duplicate: int64 (num_duplicates,), ascending; positions of texts that repeat one before.
        first: int64 (num_duplicates,); position of the first equal text.
    """

    num_docs: int
    duplicate: NDArray[np.int64]
    first: NDArray[np.int64]


_RECORD = np.dtype([("low", "<u8"), ("high", "<u8"), ("position", "<i8")])


def exact_batches(
    batches: Iterable[Texts],
    *,
    unit: Unit = "document",
    normalize: bool = False,
    punctuation: bool = True,
    folder: str | Path | None = None,
    num_partitions: int = 64,
    num_threads: int = 0,
) -> BatchDuplicates:
    """Find equal texts in a stream that does not fit into memory.

    Of every text a hash of 128 bits and its position, 24 bytes, go to a file by the hash's first bits; then
    one file after another is sorted. No text is kept, so two texts count as equal when their hashes are: of
    10^12 different texts any two with a probability of 1.5e-15. In memory are one batch, one partition a few
    times over, and the result.

    Args:
        batches: texts, as for `exact`, in batches of any size, read once.
        unit: as for `exact`.
        normalize: as for `exact`.
        punctuation: as for `exact`.
        folder: where the files go until the end; None for a temporary folder of the system.
        num_partitions: files, 1 to 4096.
        num_threads: 0 uses all cores; the result does not depend on it.

    Raises:
        TypeError, InputError: as for `exact`.
        OSError: the folder cannot be written to.

    Example:
        >>> found = exact_batches(iter([["a", "b"], ["b", "c"]]))
        >>> found.duplicate.tolist(), found.first.tolist()
        ([2], [1])
    """
    num_threads = check_threads(num_threads)
    check_int("num_partitions", num_partitions, 1, 4096)
    scheme = _check_options(unit, normalize, punctuation)
    with TemporaryDirectory(dir=folder, prefix="pylm-exact-") as place:
        files = [Path(place) / f"{partition}.hashes" for partition in range(num_partitions)]
        num_docs = num_spilled = 0
        for batch in batches:
            hashes, null = _core.hash128(_make_keys(batch, scheme, num_threads), num_threads=num_threads)
            records = np.empty(len(hashes), _RECORD)
            records["low"], records["high"] = hashes[:, 0], hashes[:, 1]
            records["position"] = np.arange(num_docs, num_docs + len(hashes))
            num_docs += len(hashes)
            num_spilled += int((null == 0).sum())
            _spill(records[null == 0], files)
        if sum(file.stat().st_size for file in files if file.exists()) != num_spilled * _RECORD.itemsize:
            raise OSError(f"{place}: not all records are there; is the disk full?")
        found = [_repeats(np.fromfile(file, _RECORD)) for file in files if file.exists()]
    rows = np.concatenate([np.zeros((0, 2), np.int64), *found])
    rows = rows[np.argsort(rows[:, 0])]
    return BatchDuplicates(num_docs, rows[:, 0].copy(), rows[:, 1].copy())


def _spill(records: NDArray[np.void], files: list[Path]) -> None:
    """Append records to the files of their partitions."""
    partition = (records["high"] >> np.uint64(32)) * np.uint64(len(files)) >> np.uint64(32)
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(len(files) + 1))
    for file, begin, end in zip(files, bounds[:-1], bounds[1:], strict=True):
        if begin < end:
            with file.open("ab") as out:
                out.write(records[order[begin:end]].tobytes())  # tofile hides a full disk


def _repeats(records: NDArray[np.void]) -> NDArray[np.int64]:
    """(num_duplicates, 2): positions of records whose hash occurs before, and of the first with it."""
    order = np.lexsort((records["position"], records["low"], records["high"]))
    low, high, position = (records[name][order] for name in ("low", "high", "position"))
    new = np.ones(len(records), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    first = position[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return np.stack([position[~new], first[~new]], axis=1)


class BloomFilter:
    """Remembers texts in a fixed amount of memory, and at times takes a new text for one that it has seen.

    1.44 * log2(1 / error_rate) bits a text (Bloom 1970), 3.6 bytes at one error in a million. A text that was
    seen is always recognised. A new one is taken for seen with a probability that rises up to `error_rate`
    when `capacity` different texts are in, and beyond it after that. Threads may share a filter.
    """

    def __init__(
        self,
        capacity: int,
        error_rate: float = 1e-6,
        *,
        unit: Unit = "document",
        normalize: bool = False,
        punctuation: bool = True,
    ) -> None:
        """Reserve the memory.

        Args:
            capacity: different texts to come, 1 to 2^40.
            error_rate: at capacity, 1e-15 to 0.5.
            unit: as for `exact`.
            normalize: as for `exact`.
            punctuation: as for `exact`.

        Raises:
            InputError: a value outside its range.
        """
        check_int("capacity", capacity, 1, 1 << 40)
        if not 1e-15 <= error_rate <= 0.5:
            raise InputError(f"error_rate must lie in [1e-15, 0.5], got {error_rate}")
        self._scheme = _check_options(unit, normalize, punctuation)
        self.capacity = capacity
        self.error_rate = float(error_rate)
        self.num_hashes = max(1, round(-np.log2(error_rate)))
        self._words = np.zeros(_num_words(capacity, error_rate), np.uint64)

    @property
    def size_bytes(self) -> int:
        """Memory of the bits."""
        return int(self._words.nbytes)

    def seen(self, texts: Texts, *, num_threads: int = 0) -> NDArray[np.bool_]:
        """Tell which texts were seen before, in earlier calls or earlier in this one, and remember all.

        Args:
            texts: num_docs texts; nulls are never seen.
            num_threads: for hashing; 0 uses all cores.

        Returns:
            bool (num_docs,).

        Raises:
            TypeError, InputError: as for `exact`.

        Example:
            >>> BloomFilter(1000).seen(["a", "b", "a"]).tolist()
            [False, False, True]
        """
        return self._visit(texts, num_threads, add=True)

    def contains(self, texts: Texts, *, num_threads: int = 0) -> NDArray[np.bool_]:
        """Tell which texts were seen before, and remember none; otherwise as `seen`."""
        return self._visit(texts, num_threads, add=False)

    def _visit(self, texts: Texts, num_threads: int, *, add: bool) -> NDArray[np.bool_]:
        num_threads = check_threads(num_threads)
        hashes, null = _core.hash128(_make_keys(texts, self._scheme, num_threads), num_threads=num_threads)
        member = np.zeros(len(null), bool)
        present = null == 0
        with _VISITING:  # two threads would undo each other's bits
            visited = _core.visit_bloom(self._words, self.num_hashes, hashes[present], add=add)
        member[present] = visited.astype(bool)
        return member

    def save(self, path: str | Path) -> None:
        """Write the filter to a file, which is replaced whole or not at all; its folder is created."""
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as out:
            np.savez(
                out,
                version=np.int64(_BLOOM_VERSION),
                words=self._words,
                capacity=np.int64(self.capacity),
                error_rate=np.float64(self.error_rate),
                scheme=np.array(self._scheme or ""),
            )

    @classmethod
    def load(cls, path: str | Path) -> "BloomFilter":
        """Read a filter that `save` wrote.

        Raises:
            InputError: the file is no such filter.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                version, scheme = int(stored["version"]), str(stored["scheme"])
                capacity, error_rate = int(stored["capacity"]), float(stored["error_rate"])
                words = stored["words"]
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # whatever a zip file, its members and their headers can be wrong in
            raise InputError(f"{path} is no filter that BloomFilter.save wrote ({error})") from error
        known = version == _BLOOM_VERSION and scheme in ("", "url", "folded", "bare")
        known = known and 1 <= capacity <= 1 << 40 and 1e-15 <= error_rate <= 0.5
        if not known or words.dtype != np.uint64 or words.shape != (_num_words(capacity, error_rate),):
            raise InputError(f"{path} is a filter of another version, or damaged; build it again")
        loaded = cls(1, error_rate)
        loaded.capacity, loaded._words, loaded._scheme = capacity, words, scheme or None
        return loaded


def _num_words(capacity: int, error_rate: float) -> int:
    """Number of 64-bit words with as many bits as the capacity needs."""
    return max(1, int(np.ceil(-capacity * np.log(error_rate) / np.log(2) ** 2 / 64)))


def _check_options(unit: Unit, normalize: bool, punctuation: bool) -> str | None:
    """Name of the normalisation."""
    check_choice("unit", unit, get_args(Unit))
    if unit == "url":
        if normalize or not punctuation:
            raise InputError("addresses have rules of their own; leave out normalize and punctuation")
        return "url"
    if not punctuation and not normalize:
        raise InputError("punctuation=False leaves it out of normalised texts; add normalize=True")
    if not normalize:
        return None
    return "folded" if punctuation else "bare"


def _make_keys(texts: Texts, scheme: str | None, num_threads: int) -> Keys:
    """What is compared."""
    if scheme is None:
        return texts
    if scheme != "url":
        return join_words(texts, scheme, num_threads)
    strings = to_strings(texts)
    urls = [None if url is None else normalize_url(url) for url in strings]
    return cast(Texts, pa.array(urls, pa.large_string()))
