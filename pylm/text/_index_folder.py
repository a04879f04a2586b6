"""Folders of indexes that grow: a manifest, files that are written once, and a lock for the one that writes.

The manifest says which files are the index. A file is complete on disk before the manifest names it, and the
manifest is replaced whole, so a reader sees the index before an addition or after it, and a writer that is
killed leaves it as it was. Files that no manifest names are removed by the next writer.
"""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from pylm.errors import InputError
from pylm.files import atomic_path, read_json, write_json

VERSION = 1
_MANIFEST, _LOCK, _SUFFIX = "index.json", "lock", ".segment"
# Files of one size, in powers of _FANOUT, are merged when there are so many.
_FANOUT = 4
_LEAST_BYTES = 1 << 16

Core = TypeVar("Core")


@dataclass(frozen=True)
class Segment:
    """A file of an index."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an index consists of.

    Attributes:
        kind: of index.
        parameters: that it was made with.
        num_texts: that were given to it.
        next_file: number of the next file.
        segments: its files, oldest first.
        version: of the format.
    """

    kind: str
    parameters: dict[str, Any]
    num_texts: int = 0
    next_file: int = 0
    segments: tuple[Segment, ...] = field(default=())
    version: int = VERSION

    @property
    def fingerprint(self) -> int:
        """Of kind, version and parameters, 64 bits."""
        about = json.dumps([self.kind, self.version, self.parameters], sort_keys=True)
        return xxhash.xxh3_64_intdigest(about.encode())


def create(folder: Path, kind: str, parameters: dict[str, Any]) -> None:
    """Write the manifest of an empty index; raise InputError where one is already."""
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if (folder / _MANIFEST).exists():
            raise InputError(f"{folder} holds an index already; open it, or create the new one elsewhere")
        _write(folder, Manifest(kind, parameters))


def remove_empty(folder: Path) -> None:
    """Remove an index to which nothing was added, but not its folder."""
    if read_json(folder / _MANIFEST)["next_file"] == 0:
        (folder / _MANIFEST).unlink()
        (folder / _LOCK).unlink()


def read(folder: Path, kind: str) -> Manifest:
    """Read the manifest; raise InputError where there is none, or one of another kind or version."""
    path = folder / _MANIFEST
    try:
        about = read_json(path)
        segments = tuple(Segment(str(s["name"]), int(s["num_bytes"])) for s in about.pop("segments"))
        manifest = Manifest(**about, segments=segments)
        if not isinstance(manifest.parameters, dict) or not isinstance(manifest.num_texts, int):
            raise TypeError("parameters and num_texts")
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no index; make one with create()") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected the manifest of an index, got {error!r}") from error
    if manifest.kind != kind:
        raise InputError(f"{folder} holds an index of kind {manifest.kind!r}, expected {kind!r}")
    if manifest.version != VERSION:
        raise InputError(f"{path}: version {manifest.version!r} of the format, and this is version {VERSION}")
    return manifest


def load(folder: Path, kind: str, open_files: Callable[[Manifest, list[str]], Core]) -> tuple[Manifest, Core]:
    """Read the manifest and open its files, anew where a writer has merged them in between."""
    manifest = read(folder, kind)
    while True:
        try:
            return manifest, open_files(manifest, [str(folder / s.name) for s in manifest.segments])
        except FileNotFoundError as error:
            again = read(folder, kind)
            if again == manifest:
                raise InputError(
                    f"{error.filename}: missing from the index; restore it, or build the index again"
                ) from error
            manifest = again


@contextmanager
def writing(folder: Path, kind: str) -> Iterator[Manifest]:
    """Hold the lock, without what killed writers have left; give the manifest.

    Raises:
        InputError: another process, or thread, holds the lock.
    """
    with _lock(folder):
        manifest = read(folder, kind)
        named = {segment.name for segment in manifest.segments}
        for path in folder.iterdir():
            is_file = path.suffix == _SUFFIX or f"{_SUFFIX}.tmp-" in path.name
            if is_file and path.name not in named:
                path.unlink()
        yield manifest


@contextmanager
def new_file(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Give a path to write the next file to; it is in its place, and on disk, when the block ends."""
    with atomic_path(_next_path(folder, manifest)) as temporary:
        yield temporary


def commit(folder: Path, manifest: Manifest, *, num_texts: int, is_empty: bool) -> Manifest:
    """Publish the file that was written, unless it is empty, and the number of texts behind it."""
    path = _next_path(folder, manifest)
    segments = manifest.segments
    if is_empty:
        path.unlink()
    else:
        segments += (Segment(path.name, path.stat().st_size),)
    manifest = replace(
        manifest,
        segments=segments,
        num_texts=manifest.num_texts + num_texts,
        next_file=manifest.next_file + 1,
    )
    _write(folder, manifest)
    return manifest


def commit_merge(folder: Path, manifest: Manifest, begin: int, end: int) -> Manifest:
    """Publish the file that was written in place of files [begin, end), which are removed."""
    path = _next_path(folder, manifest)
    merged = manifest.segments[begin:end]
    segments = (
        *manifest.segments[:begin],
        Segment(path.name, path.stat().st_size),
        *manifest.segments[end:],
    )
    manifest = replace(manifest, segments=segments, next_file=manifest.next_file + 1)
    _write(folder, manifest)
    for segment in merged:  # those who have it open keep it
        (folder / segment.name).unlink(missing_ok=True)
    return manifest


def find_merge(manifest: Manifest) -> tuple[int, int] | None:
    """The last files that are no larger than the last one, by powers of 4, if there are 4 or more.

    So an index of n bytes has at most about 3 log4(n) files, and a byte is written log4(n) times.
    """
    tiers = [_tier(segment) for segment in manifest.segments]
    begin = len(tiers)
    while begin > 0 and tiers[begin - 1] <= tiers[-1]:
        begin -= 1
    return (begin, len(tiers)) if len(tiers) - begin >= _FANOUT else None


def _tier(segment: Segment) -> int:
    tier, size = 0, _LEAST_BYTES
    while segment.num_bytes > size:
        tier, size = tier + 1, size * _FANOUT
    return tier


def _next_path(folder: Path, manifest: Manifest) -> Path:
    return folder / f"{manifest.next_file:08d}{_SUFFIX}"


def _write(folder: Path, manifest: Manifest) -> None:
    write_json(folder / _MANIFEST, asdict(manifest))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """The system lets go of the lock when its process ends, however that comes."""
    with (folder / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder} is being written to by another process; wait for its end") from error
        yield
