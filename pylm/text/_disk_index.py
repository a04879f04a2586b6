"""What the indexes on disk have in common: a folder of files that grows and is merged."""

from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from pylm.text import _index_folder as index_folder
from pylm.text._checks import check_threads


class Files(Protocol):
    """The open files of an index."""

    @property
    def num_bytes(self) -> int:
        """Size of the files."""

    def check(self, *, num_threads: int) -> None:
        """Compare them with their checksums."""

    def merge(self, path: str, begin: int, end: int, *, num_threads: int) -> None:
        """Write files [begin, end) as one."""


Core = TypeVar("Core", bound=Files)


class DiskIndex(Generic[Core]):
    """An index in a folder, as `_index_folder` describes it.

    Attributes:
        folder: of the index.
    """

    _kind: ClassVar[str]
    folder: Path
    _manifest: index_folder.Manifest
    _core: Core

    @property
    def num_texts(self) -> int:
        """Texts that were given to `add`, kept or not."""
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
        self._manifest, self._core = index_folder.load(self.folder, self._kind, self._open)

    def check(self, *, num_threads: int = 0) -> None:
        """Read all files and compare them with their checksums.

        Raises:
            InputError: a file is damaged; names it.
        """
        self._core.check(num_threads=check_threads(num_threads))

    def merge(self, *, num_threads: int = 0) -> None:
        """Merge all files into one, which makes queries a little faster; `add` keeps them few anyway.

        Raises:
            InputError: another process is writing to the index; a file is damaged.
            OSError: the folder cannot be written to.
        """
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, self._kind):
            self.refresh()
            if self.num_files > 1:
                self._merge(0, self.num_files, num_threads)

    def finish_merges(self, *, num_threads: int = 0) -> None:
        """Merge files of one size, as `add` does at its end, where that was cut off; errors as of `merge`."""
        num_threads = check_threads(num_threads)
        with index_folder.writing(self.folder, self._kind):
            self.refresh()
            self._merge_equals(num_threads)

    def _merge_equals(self, num_threads: int) -> None:
        while (files := index_folder.find_merge(self._manifest)) is not None:
            self._merge(*files, num_threads)

    def _merge(self, begin: int, end: int, num_threads: int) -> None:
        with index_folder.new_file(self.folder, self._manifest) as path:
            self._core.merge(str(path), begin, end, num_threads=num_threads)
        index_folder.commit_merge(self.folder, self._manifest, begin, end)
        self.refresh()

    def _open(self, manifest: index_folder.Manifest, paths: list[str]) -> Core:
        """Open files, and take the parameters of the manifest."""
        raise NotImplementedError

    def _describe(self, content: str) -> str:
        """Say where the index is, what is in it, and how it was made."""
        parameters = ", ".join(f"{name}={value!r}" for name, value in self._manifest.parameters.items())
        size = f"{self.num_bytes / 1e6:,.1f} MB in {self.num_files} files"
        return f"{type(self).__name__}({str(self.folder)!r}: {content}, {size}; {parameters})"
