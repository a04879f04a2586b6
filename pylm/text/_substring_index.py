"""Stretches of texts that repeat texts that were seen before, by an index on disk."""

from pathlib import Path
from typing import Literal, get_args

from pylm import _core
from pylm.errors import InputError
from pylm.text import _index_folder as index_folder
from pylm.text._checks import check_bool, check_int, check_threads
from pylm.text._disk_index import DiskIndex
from pylm.text._substrings import Spans
from pylm.text.texts import Texts

HashBits = Literal[64, 128]


class SubstringIndex(DiskIndex[_core.SubstringIndex]):
    """Windows of old texts on disk, by which new texts are searched for what repeats, without the old texts.

    A window is `min_bytes` successive bytes of one text. The index keeps hashes of the windows that begin at
    anchors: places that a text chooses by its own bytes, at least one of any `gap` successive places at which
    windows begin, in the mean every (gap + 1) / 2, and the first and the last of these places. `find`,
    compared with `substrings(texts, against=old, min_bytes=min_bytes)`, which needs the old texts:

    - Gives nothing else: every byte of a span lies in a window that occurs in an old text, but for windows
      whose hashes are equal. Among n windows in the index one has the hash of a given new one with a
      probability of n / 2^64, or n / 2^128 with `hash_bits=128`. So 10^9 new ones meet 10^9 old ones 0.05
      times, or 3e-21.
    - Finds every stretch of min_bytes + gap - 1 bytes or more that an old and a new text share, but for up to
      gap - 1 bytes at its beginning and at its end. Nothing is missing at a beginning that is the beginning
      of both texts, nor at an end that is the end of both; so a text that equals an old one goes in full,
      from min_bytes on. Where an end would cut a character it moves inward by up to 3 bytes more.
    - Finds shorter stretches only where an anchor falls into them.

    With `gap=1` the spans are those of `substrings`, in 8 bytes a byte of text that does not repeat. With 32
    the index takes about half of the text, with 100 a sixth.

    Repeats within the old texts are kept once. The folder, readers, writers and files are as of `NearIndex`.

    Example:
        >>> index = SubstringIndex.create(folder / "seen", min_bytes=20, gap=4)
        >>> index.add(["All rights reserved. No part may be copied."])
        >>> new = ["A story. All rights reserved. No part may be copied."]
        >>> index.find(new).apply(new).to_pylist()
        ['A story. ']
    """

    _kind = "substring"

    def __init__(self, folder: str | Path, *, check: bool = True, num_threads: int = 0) -> None:
        """Open an index that `create` made; arguments and errors as for `NearIndex`."""
        check_bool("check", check)
        num_threads = check_threads(num_threads)
        self.folder = Path(folder)
        self.refresh()
        if check:
            self.check(num_threads=num_threads)

    @classmethod
    def create(
        cls, folder: str | Path, *, min_bytes: int = 100, gap: int = 32, hash_bits: HashBits = 64
    ) -> "SubstringIndex":
        """Make an empty index and open it.

        Args:
            folder: where no index is yet; it is created.
            min_bytes: size of a window, at least 1 and less than 2^31.
            gap: distance of anchors at most, 1 to `min_bytes`.
            hash_bits: 64 or 128, of a window.

        Raises:
            InputError: there is an index already, or an argument is outside of its range.
        """
        check_int("min_bytes", min_bytes, 1, (1 << 31) - 1)
        check_int("gap", gap, 1, min_bytes)
        if hash_bits not in get_args(HashBits):
            raise InputError(f"hash_bits must be 64 or 128, got {hash_bits!r}")
        parameters = {"min_bytes": int(min_bytes), "gap": int(gap), "hash_bits": int(hash_bits)}
        index_folder.create(Path(folder), cls._kind, parameters)
        return cls(folder)

    @property
    def num_windows(self) -> int:
        """Different windows that are kept."""
        return self._core.num_windows

    def __repr__(self) -> str:
        """What is in the index."""
        return self._describe(f"{self.num_windows:,} windows of {self.num_texts:,} texts")

    def find(self, texts: Texts, *, num_threads: int = 0) -> Spans:
        """Find what repeats old texts, as said above; repeats among the texts stay.

        Args:
            texts: num_docs texts; nulls have no windows.
            num_threads: 0 uses all cores; the result does not depend on it.

        Returns:
            The spans, to be cut out or written down.

        Raises:
            TypeError, InputError: as for `substrings`; a damaged file of the index.
        """
        num_docs, doc, start, end = self._core.find(texts, num_threads=check_threads(num_threads))
        return Spans(doc, start, end, num_docs, "byte")

    def add(self, texts: Texts, *, num_threads: int = 0) -> None:
        """Put the windows of texts into the index.

        All of it is on disk when the call returns, and nothing of it if it does not.

        Args:
            texts: num_docs texts; nulls have no windows.
            num_threads: 0 uses all cores; the files do not depend on it.

        Raises:
            TypeError, InputError: as for `substrings`; another process is writing to the index; a damaged
                file of the index.
            OSError: the folder cannot be written to.
        """
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, self._kind):
            self.refresh()
            with index_folder.new_file(self.folder, self._manifest) as path:
                num_docs, num_windows = self._core.add(texts, path=str(path), num_threads=num_threads)
            index_folder.commit(self.folder, self._manifest, num_texts=num_docs, is_empty=num_windows == 0)
            self.refresh()
            self._merge_equals(num_threads)

    def _open(self, manifest: index_folder.Manifest, paths: list[str]) -> _core.SubstringIndex:
        given = manifest.parameters
        try:
            self.min_bytes, self.gap = int(given["min_bytes"]), int(given["gap"])
            self.hash_bits = int(given["hash_bits"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.folder}: the manifest lacks parameters of an index ({error!r})"
            ) from error
        return _core.SubstringIndex(
            paths,
            fingerprint=manifest.fingerprint,
            length=self.min_bytes,
            gap=self.gap,
            wide=self.hash_bits == 128,
        )
