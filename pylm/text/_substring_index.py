"""Stretches of texts that repeat texts that were seen before, by an index on disk."""

from pathlib import Path
from typing import Literal, get_args

from pylm import _core
from pylm.errors import InputError
from pylm.text import _index_folder as index_folder
from pylm.text._checks import check_bool, check_int, check_threads
from pylm.text._substrings import Spans
from pylm.text.texts import Texts

HashBits = Literal[64, 128]

_KIND = "substring"


class SubstringIndex:
    """Windows of old texts on disk, by which new texts are searched for what repeats, without the old texts.

    A window is `min_bytes` successive bytes of one text. The index keeps hashes of the windows at anchors:
    places that the text itself chooses, at least one in any `gap` successive places, in the mean one in (gap
    + 1) / 2, and the first and the last window of every text. What `find` gives, compared with
    `substrings(texts, against=old, min_bytes=min_bytes)`, which needs the old texts:

    - nothing else: every byte in a span lies in a window that occurs in an old text, but for equal hashes of
      different windows. With n windows in the index a new one has a hash of theirs with a probability of n /
      2^64, or n / 2^128 with `hash_bits=128`; one of 10^9 new ones against 10^9 old ones with 0.05 in all, or
      3e-21.
    - of every stretch that an old and a new text share all but at most gap - 1 bytes at either end, and an
      end that is the beginning or the end of both texts in full, if the stretch has min_bytes + gap - 1 bytes
      or more. In places where a character is cut the end moves inward by up to 3 bytes more.
    - shorter stretches, of min_bytes or more, only where an anchor falls into them, or where they begin or
      end both texts.

    So `gap=1` finds all, and takes 8 bytes a byte of text; 32 takes about 0.5; `gap=min_bytes` 0.16 of 100.

    Repeats within the old texts are kept once. The folder, readers, writers and files are as of `NearIndex`.

    Example:
        >>> index = SubstringIndex.create(folder / "seen", min_bytes=20, gap=4)
        >>> index.add(["All rights reserved. No part may be copied."])
        >>> new = ["A story. All rights reserved. No part may be copied."]
        >>> index.find(new).apply(new).to_pylist()
        ['A story. ']
    """

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
        index_folder.create(Path(folder), _KIND, parameters)
        return cls(folder)

    @property
    def num_windows(self) -> int:
        """Different windows that are kept."""
        return self._core.num_windows

    @property
    def num_texts(self) -> int:
        """Texts that were added."""
        return self._manifest.num_texts

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._core.num_bytes

    @property
    def num_files(self) -> int:
        """Number of files, without manifest and lock."""
        return len(self._manifest.segments)

    def refresh(self) -> None:
        """See what others have added since the index was opened."""
        self._manifest, self._core = index_folder.load(self.folder, _KIND, self._open)

    def check(self, *, num_threads: int = 0) -> None:
        """Read all files and compare them with their checksums.

        Raises:
            InputError: a file is damaged; names it.
        """
        self._core.check(num_threads=check_threads(num_threads))

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

        Raises: TypeError, InputError: as for `substrings`; another process is writing to the index; a damaged
            file. OSError: the folder cannot be written to.
        """
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, _KIND):
            self.refresh()
            with index_folder.new_file(self.folder, self._manifest) as path:
                num_docs, num_windows = self._core.add(texts, path=str(path), num_threads=num_threads)
            index_folder.commit(self.folder, self._manifest, num_texts=num_docs, is_empty=num_windows == 0)
            self.refresh()
            while (files := index_folder.find_merge(self._manifest)) is not None:
                self._merge(*files, num_threads)

    def merge(self, *, num_threads: int = 0) -> None:
        """Merge all files into one, as `NearIndex.merge` does."""
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, _KIND):
            self.refresh()
            if self.num_files > 1:
                self._merge(0, self.num_files, num_threads)

    def _merge(self, begin: int, end: int, num_threads: int) -> None:
        with index_folder.new_file(self.folder, self._manifest) as path:
            self._core.merge(str(path), begin, end, num_threads=num_threads)
        index_folder.commit_merge(self.folder, self._manifest, begin, end)
        self.refresh()

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
