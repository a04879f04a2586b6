"""Counting the pieces of a corpus, which is all that training needs of it."""

import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np

from pylm import _core
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text._checks import check_not_packed
from pylm.text.patterns import PretokenPattern, find_pattern
from pylm.text.texts import ArrowArray, ArrowStream, Texts, to_list

TextBatches: TypeAlias = Iterable[str] | Iterable[Path] | Iterable[ArrowArray] | ArrowArray | ArrowStream
"""A corpus: texts (`str`), files of text (`pathlib.Path`), Arrow columns, or one Arrow column."""

BytesProgress: TypeAlias = Callable[[int, int | None], object]
"""Called with the bytes counted and, where it is known, the bytes in all."""

TrainingProgress: TypeAlias = Callable[[Literal["count", "merge"], int, int | None], object]
"""Called with the phase, how far it is, and, where it is known, how far it goes: bytes, then tokens."""

FORMAT = 1
"""Raised when a saved counter changes its meaning."""

_BLOCK_BYTES = 4 << 20  # of a file, for each thread, between two looks at signals and progress
_BATCH_BYTES = 64 << 20  # of texts that are Python objects
_SAVE_INTERVAL_S = 30.0
_MAX_SAVE_SHARE = 0.05  # of the time


def is_arrow(values: object) -> TypeGuard[ArrowArray | ArrowStream]:
    """Whether it is an Arrow column, through the PyCapsule interface."""
    return hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__")


class WordCounter:
    """How often each piece occurs in a corpus. Memory grows with different pieces, not with the corpus.

    Use it from one thread at a time; it uses several itself.

    Attributes:
        pattern: name of the pre-tokenization.
        pretoken: the pre-tokenization.
        note: JSON values of the caller's that are saved with the counts, such as how far counting has come.
    """

    def __init__(self, pattern: str | PretokenPattern = "cl100k") -> None:
        """Start with nothing counted.

        Args:
            pattern: pre-tokenization: a key of `PATTERNS`, or a regular expression, which is slower.

        Raises:
            InputError: no such pattern.

        Example:
            >>> counter = WordCounter("gpt2")
            >>> counter.add(["a rose is a rose"])
            >>> counter.counts()
            {b' a': 1, b' is': 1, b' rose': 2, b'a': 1}
        """
        self.pretoken = find_pattern(pattern)
        self.pattern = self.pretoken.name
        self.note: dict[str, object] = {}
        self._core = _core.WordCounter(self.pretoken.machine() or _core.Pattern("whole"))
        self._files: dict[str, dict[str, Any]] = {}
        self._is_whole = True

    def __len__(self) -> int:
        """Number of different pieces."""
        return self._core.num_words()

    def __repr__(self) -> str:
        return f"WordCounter(pattern={self.pattern!r}, {len(self)} different pieces)"

    def add(self, texts: Texts, *, num_threads: int = 0) -> None:
        """Count the pieces of texts.

        Args:
            texts: list of str, or an Arrow column of strings or binary, read in place; nulls count as empty.
            num_threads: 0 takes all cores; the counts do not depend on it.

        Raises:
            InputError: a text holds lone surrogates; names its index.
            TypeError: an element is no str.
        """
        pieces = texts if self.pretoken.has_machine else self.pretoken.split_all(to_list(texts))[0]
        with self._changing():
            self._core.add(pieces, num_threads=num_threads)

    def add_batches(
        self,
        corpus: TextBatches,
        *,
        separator: str | bytes | None = None,
        keep_separator: bool = False,
        num_threads: int = 0,
        progress: BytesProgress | None = None,
    ) -> int:
        """Count a corpus of any kind, a bounded part of it in memory at a time.

        Args:
            corpus: texts, `pathlib.Path`s of text files, Arrow columns, or one Arrow column.
            separator: texts in files end here, as in `add_files`.
            keep_separator: the separator belongs to the text before it.
            num_threads: 0 takes all cores.
            progress: called now and then.

        Returns:
            How many texts, files or columns there were.
        """
        if isinstance(corpus, str | bytes | Path):
            raise TypeError("corpus must be an iterable of texts or paths, got a single one; pass [text]")
        if not isinstance(corpus, Iterable) and not is_arrow(corpus):
            raise TypeError(f"corpus must be an iterable of texts or paths, got {type(corpus).__name__}")
        if is_arrow(corpus):
            self.add(corpus, num_threads=num_threads)
            return len(corpus) if isinstance(corpus, Sized) else 1
        num_items = num_bytes = size = 0
        batch: list[str] = []

        def flush() -> None:
            nonlocal num_bytes, size
            if batch:
                self.add(batch, num_threads=num_threads)
            num_bytes += size
            size = 0
            batch.clear()
            if progress is not None:
                progress(num_bytes, None)

        assert isinstance(corpus, Iterable)
        for item in corpus:
            num_items += 1
            if isinstance(item, Path):
                self.add_files(
                    [item], separator=separator, keep_separator=keep_separator, num_threads=num_threads
                )
                size += item.stat().st_size
            elif isinstance(item, str):
                batch.append(item)
                size += len(item)
            else:
                self.add(item, num_threads=num_threads)
                size += getattr(item, "nbytes", 0)
            if size >= _BATCH_BYTES:
                flush()
        flush()
        return num_items

    def add_files(
        self,
        paths: Iterable[str | Path],
        *,
        separator: str | bytes | None = None,
        keep_separator: bool = False,
        num_threads: int = 0,
        save_to: Path | None = None,
        progress: BytesProgress | None = None,
    ) -> None:
        """Count the pieces of files, block by block.

        A counter knows how far it has come in each file, also after `save` and `load`, and goes on there: so
        the same call on a loaded counter ends what was cut off.

        Args:
            paths: files; their bytes need not be UTF-8.
            separator: a text ends here; without it a file is one text.
            keep_separator: the separator belongs to the text before it. With `separator="\\n"` that is how
                Hugging Face's `train(files)` and gigabpe read.
            num_threads: 0 takes all cores; the counts do not depend on it.
            save_to: save the counter here every half minute, or more seldom where saving takes long, and
                at the end.
            progress: called after every block.

        Raises:
            InputError: a file cannot be read, is compressed, or has changed since a part of it was counted.
        """
        mark = separator.encode() if isinstance(separator, str) else separator or b""
        todo = [self._entry(Path(path), mark, keep_separator) for path in paths]
        total = sum(entry["size"] for entry in todo)
        done = sum(entry["offset"] for entry in todo)
        block = _BLOCK_BYTES * min(num_threads or os.cpu_count() or 1, 16)
        saved_s, pause_s = time.monotonic(), _SAVE_INTERVAL_S
        for entry in todo:
            if not self.pretoken.has_machine and entry["offset"] < entry["size"]:
                self._add_custom(entry, mark, keep_separator)
                done += entry["size"]
            while entry["offset"] < entry["size"]:
                with self._changing():
                    try:
                        offset = self._core.add_file(
                            entry["path"],
                            offset=entry["offset"],
                            max_bytes=block,
                            separator=mark,
                            keep_separator=keep_separator,
                            num_threads=num_threads,
                        )
                    except RuntimeError as error:
                        raise InputError(str(error)) from error
                    if offset <= entry["offset"] or offset > entry["size"]:
                        raise InputError(f"{entry['path']}: changed while it was read")
                    done += offset - entry["offset"]
                    entry["offset"] = offset
                if progress is not None:
                    progress(done, total)
                if save_to is not None and time.monotonic() - saved_s > pause_s:
                    start_s = time.monotonic()
                    self.save(save_to)
                    saved_s = time.monotonic()
                    pause_s = max(_SAVE_INTERVAL_S, (saved_s - start_s) / _MAX_SAVE_SHARE)
        if save_to is not None:
            self.save(save_to)

    def counts(self) -> dict[bytes, int]:
        """Give all pieces with their counts, sorted by bytes."""
        data, offsets, counts = self._core.words()
        content, ends = data.tobytes(), offsets.tolist()
        return {content[ends[i] : ends[i + 1]]: count for i, count in enumerate(counts.tolist())}

    def files(self) -> set[Path]:
        """Name the files that it has counted, or begun to."""
        return {Path(path) for path in self._files}

    def byte_counts(self) -> list[int]:
        """Give how often each of the 256 bytes occurs."""
        return self._core.byte_counts()

    def core(self) -> _core.WordCounter:
        """Give the counts to what learns from them.

        Raises:
            InputError: counting was interrupted, so that the counts mean nothing.
        """
        self._check_whole()
        return self._core

    def save(self, path: str | Path) -> None:
        """Write the counts, the note and what is known of files, atomically. The same counts, the same file.

        Raises:
            InputError: counting was interrupted in the middle of a block, so that the counts mean nothing;
                or the pattern is a regular expression of one's own.
        """
        self._check_whole()
        if not self.pretoken.has_machine:
            raise InputError("counts of a pattern of one's own cannot be saved; pass the counter itself on")
        data, offsets, counts = self._core.words()
        about = {
            "format": FORMAT,
            "pattern": self.pattern,
            "note": self.note,
            "files": [*self._files.values()],
        }
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                data=data,
                offsets=offsets,
                counts=counts,
            )

    @classmethod
    def load(cls, path: str | Path) -> "WordCounter":
        """Read what `save` has written.

        Raises:
            InputError: no such file, or not a saved counter.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                if not isinstance(about, Mapping) or about.get("format") != FORMAT:
                    raise InputError(f"{path}: saved by another version; remove it and count again")
                counter = cls(about["pattern"])
                counter._core.add_words(arrays["data"], arrays["offsets"], arrays["counts"])
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a saved WordCounter; remove it and count again") from error
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        counter.note = about["note"]
        counter._files = {entry["path"]: entry for entry in about["files"]}
        return counter

    def _add_custom(self, entry: dict[str, Any], mark: bytes, keep_separator: bool) -> None:
        """Count a whole file by a pattern that no machine knows."""
        content = Path(entry["path"]).read_bytes()
        texts = content.split(mark) if mark else [content]
        if keep_separator:
            texts[:-1] = [text + mark for text in texts[:-1]]
        pieces, _ = self.pretoken.split_all(texts)
        with self._changing():
            self._core.add(pieces, num_threads=1)
            entry["offset"] = entry["size"]

    def _entry(self, path: Path, mark: bytes, keep_separator: bool) -> dict[str, Any]:
        """Give what is known of a file, or begin with it."""
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        if path.is_dir():
            raise InputError(f"{path}: a folder, expected a file")
        check_not_packed(path)
        fresh: dict[str, Any] = {
            "path": str(path.absolute()),
            "size": status.st_size,
            "changed_ns": status.st_mtime_ns,
            "separator": mark.decode("latin-1"),
            "keep_separator": keep_separator,
            "offset": 0,
        }
        known = self._files.setdefault(fresh["path"], fresh)
        if differing := [key for key in fresh if key != "offset" and fresh[key] != known[key]]:
            raise InputError(
                f"{path}: counted before with {differing[0]} {known[differing[0]]!r}, now it is "
                f"{fresh[differing[0]]!r}; count anew: without the saved counts, or with a new counter"
            )
        return known

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Remember when a change does not come to its end."""
        self._check_whole()
        self._is_whole = False
        yield
        self._is_whole = True

    def _check_whole(self) -> None:
        if not self._is_whole:
            raise InputError(
                "counting was interrupted or failed in the middle of a text; load the last saved counter, or "
                "start with a new one"
            )
