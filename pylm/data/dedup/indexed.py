"""An index of earlier crawls in the place of their texts: whether it fits, what it was when a run began.

    INDEX/                  a `NearIndex` or `SubstringIndex`
        crawls/00000.json   a crawl that was added, in their order: ids of its texts, its files, who added it

A crawl is compared with the index as it was before the crawl, its state, and is added after that. A rerun has
to know which of both it finds. So the crawl is written down before its first text is added, and whatever
compares looks whether the index still is in that state. How much of a crawl was added, the index itself says:
its number of texts grows with each batch, in one step with what makes them found.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from pylm.data import storage
from pylm.data.dedup.corpus import Split, local_path
from pylm.data.dedup.signing import CorpusConfig, Part
from pylm.errors import InputError
from pylm.files import lock_folder, read_json, write_json
from pylm.text import _index_folder as index_folder
from pylm.text import dedup

Kind = Literal["near", "substring"]
BATCH_BYTES = 256 << 20
_MOST_KNOWN = 0.9
_SHOWN_FILES = 3


class IndexedConfig(CorpusConfig):
    """Which index of earlier crawls takes part."""

    allowed = (*CorpusConfig.allowed, "index", "index_bits", "index_gap")
    index: str = ""
    """Folder of an index on a file system that all workers see; made where there is none. The corpus is
    compared with it too, and what is new in the corpus is added. "" for none. A crawl is not taken out again:
    make a new index of the others."""
    index_add: bool = True
    """False leaves the index as it is, which must be there then."""
    index_batch_bytes: int = Field(default=BATCH_BYTES, ge=1)
    """Bytes of text that are added to the index at a time. It decides its files, not what they find."""

    def placed(self) -> Self:
        """Name the index by a path that does not depend on where a command was started."""
        return self.model_copy(update={"index": absolute(self.index)}) if self.index else self


@dataclass(frozen=True)
class Crawl:
    """What an index knows of a crawl.

    Attributes:
        fingerprint: of the run that added it.
        state: of the index before.
        first: id of its first text; the others follow in the order of the corpus.
        num_texts: how many were added, duplicates included.
        out: folder of the run's result.
        inputs: as the user named them.
        sources: its files as they were: path, and what `corpus.state_of` says.
        is_complete: whether all of it is in the index.
        files: of its splits, the number of the first document, the path, and that document's row there.
    """

    fingerprint: str
    state: str
    first: int
    num_texts: int
    out: str
    inputs: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    is_complete: bool
    files: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Known:
    """The index as a run sees it.

    Attributes:
        folder: its absolute path.
        kind: of index.
        state: before the crawl was added.
        num_texts: that were given to it before.
    """

    folder: str
    kind: Kind
    state: str
    num_texts: int


@dataclass(frozen=True)
class Wanted:
    """The index that a command asks for.

    Attributes:
        folder: its absolute path.
        kind: of index.
        adds: whether it will be added to.
        parameters: that it must have, by their names in its manifest.
        options: of the command, by names of parameters.
        create: makes an empty one.
    """

    folder: str
    kind: Kind
    adds: bool
    parameters: Mapping[str, Any]
    options: Mapping[str, str]
    create: Callable[[], object]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs from adding to the index, make it where there is none, and look whether it fits.

        Raises:
            InputError: it does not, there is none and nothing is to be added, or another run adds to it.
        """
        folder = Path(self.folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: a file stands there, expected the folder of an index")
        with ExitStack() as stack:
            if self.adds:
                stack.enter_context(_lock(folder, "another run adds to this index; wait for its end"))
            is_new = not (folder / "index.json").exists()
            if is_new:
                if not self.adds:
                    raise InputError(
                        f"{folder}: holds no index, and nothing is to be added; check the path, or run "
                        "without --no-add and --dry-run, which makes one"
                    )
                if strangers := [x for x in folder.iterdir() if x.name not in (".lock", "lock", "crawls")]:
                    raise InputError(f"{folder}: holds other files ({strangers[0].name}) and no index")
                self.create()
            try:
                self._check(index_folder.read(folder, self.kind).parameters)
                yield
            except InputError:
                if is_new and not read_crawls(self.folder):
                    index_folder.remove_empty(folder)
                raise

    def _check(self, parameters: Mapping[str, Any]) -> None:
        for name, expected in self.parameters.items():
            if parameters.get(name) != expected:
                option = self.options.get(name)
                has = parameters.get(name)
                remedy = f"give --{option} {has}, or " if option else ""
                raise InputError(
                    f"{self.folder}: the index was made with {name}={has!r}, and here it is {expected!r}; "
                    f"{remedy}name another folder with --index"
                )


def absolute(folder: str) -> str:
    """Give the path by which all workers open an index.

    Raises:
        InputError: it is a URL.
    """
    if not storage.is_local(folder):
        raise InputError(
            f"{folder}: an index is mapped into memory and must lie on a file system; give a folder that "
            "this machine and all workers see"
        )
    return str(local_path(folder).resolve())


@contextmanager
def _lock(folder: Path, problem: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except InputError as error:
            raise InputError(f"{folder}: {problem} ({error})") from error
        yield


def state_of_index(folder: str, kind: Kind) -> tuple[str, int]:
    """Give a hash of the manifest, and the number of texts that were given to the index."""
    manifest = index_folder.read(Path(folder), kind)
    return xxhash.xxh3_128_hexdigest(repr(asdict(manifest)).encode()), manifest.num_texts


def list_sources(splits: Sequence[Split]) -> tuple[tuple[str, str], ...]:
    """Give path and state of each of a corpus's files, once."""
    return tuple(dict.fromkeys((place_of(split.path), split.state) for split in splits))


def _list_added(crawl: Crawl, sources: Sequence[tuple[str, str]]) -> list[str]:
    """List those of some files that a crawl had; local ones of the same size count, whatever their time."""

    def content(path: str, state: str) -> tuple[str, str]:
        return path, state.partition("-")[0] if storage.is_local(path) else state

    added = {content(*source) for source in crawl.sources}
    return [source[0] for source in sources if content(*source) in added]


def read_crawls(folder: str) -> list[Crawl]:
    """List what was added to an index by commands, oldest first."""
    crawls = []
    for path in sorted((Path(folder) / "crawls").glob("*.json")):
        about = read_json(path)
        files = tuple((int(first), str(name), int(row)) for first, name, row in about.pop("files"))
        sources = tuple((str(place), str(state)) for place, state in about.pop("sources"))
        inputs = tuple(about.pop("inputs"))
        crawls.append(Crawl(**about, inputs=inputs, sources=sources, files=files))
    return crawls


def _write_crawl(folder: str, number: int, crawl: Crawl) -> None:
    write_json(Path(folder) / "crawls" / f"{number:05d}.json", asdict(crawl))


def open_known(
    wanted: Wanted, sources: Sequence[tuple[str, str]], out: str, fingerprint: Callable[[str], str]
) -> tuple[Known, Crawl | None]:
    """Say which state of an index a crawl is compared with, and what the index has of the crawl.

    Args:
        wanted: the index.
        sources: files of the crawl, as `list_sources` gives them.
        out: folder of the result.
        fingerprint: of the run, for a state of the index.

    Raises:
        InputError: another run added some of these files, or was cut off while it added others.
    """
    folder = wanted.folder
    crawls = read_crawls(folder)
    for crawl in crawls:
        if (crawl.fingerprint, crawl.out) == (fingerprint(crawl.state), place_of(out)):
            return Known(folder, wanted.kind, crawl.state, crawl.first), crawl
    unfinished = (
        "run that command again as it was, with the same options and unchanged files, which goes on; "
        "where that is not possible, go back to a copy of the index"
    )
    for crawl in crawls:
        if not (added := _list_added(crawl, sources)):
            continue
        what = added[0] + (f" and {len(added) - 1:,} more of these files" if len(added) > 1 else "")
        raise InputError(
            f"{folder}: {what} went into the index with the run into {crawl.out}, and all of it would be "
            + ("found there; leave it out, or name another index" if crawl.is_complete else "")
            + ("" if crawl.is_complete else f"found there. That run was cut off: {unfinished}")
        )
    for crawl in crawls:
        if not crawl.is_complete:
            raise InputError(
                f"{folder}: a part of {', '.join(crawl.inputs)} was added when the run into {crawl.out} was "
                f"cut off; first {unfinished}"
            )
    state, num_texts = state_of_index(folder, wanted.kind)
    return Known(folder, wanted.kind, state, num_texts), None


def place_of(out: str) -> str:
    """Give the folder of a result by a name that does not depend on where a command was started."""
    return str(local_path(out).resolve()) if storage.is_local(out) else out


def require_not_added(out: str, marker: Mapping[str, Any]) -> None:
    """Refuse to clear a result whose texts are in an index: a rerun would find them there.

    Args:
        out: folder of the result.
        marker: what its dedup.json says.

    Raises:
        InputError: they are.
    """
    folder = marker["config"].get("index")
    for crawl in read_crawls(folder) if folder else ():
        if (crawl.fingerprint, crawl.out) == (marker["fingerprint"], place_of(out)):
            raise InputError(
                f"{out}: holds what is left of {', '.join(crawl.inputs)}, which is in the index {folder} and "
                "could not be found again once it is cleared; choose another folder, or remove this one "
                "yourself"
            )


@lru_cache(maxsize=2)
def _open(known: Known) -> "dedup.NearIndex | dedup.SubstringIndex":
    if not (Path(known.folder) / "index.json").exists():
        raise InputError(
            f"{known.folder}: a worker does not see the index; it must lie on a file system that all share"
        )
    kind = dedup.NearIndex if known.kind == "near" else dedup.SubstringIndex
    index = kind(known.folder, check=False)
    state, num_texts = state_of_index(known.folder, known.kind)
    if state != known.state:
        raise InputError(
            f"{known.folder}: the index has changed since the run began ({known.num_texts} texts then, "
            f"{num_texts} now); where another program adds to it, run the same command again. Where this "
            "very corpus was added and files of its result or of work/ are missing since, they cannot be "
            "made again, as the index would find all of it: go back to a copy of the index"
        )
    return index


def open_near(known: Known) -> dedup.NearIndex:
    """Open an index of near-duplicates in the state that a run began with.

    Raises:
        InputError: it has changed since, or is not to be seen.
    """
    index = _open(known)
    assert isinstance(index, dedup.NearIndex), "the command checks the kind"
    return index


def open_substring(known: Known) -> dedup.SubstringIndex:
    """Open an index of substrings; as `open_near`."""
    index = _open(known)
    assert isinstance(index, dedup.SubstringIndex), "the command checks the kind"
    return index


def check_index(_: int, *, known: Known, done: str) -> None:
    """Compare an index's files with their checksums, and write a file that says so."""
    _open(known).check()
    storage.write_json(done, {"state": known.state})


def locate(known: Known, ids: NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
    """Give the files of documents of an index, and their rows there; nulls where no command added them."""
    files = np.full(len(ids), -1)
    rows = np.zeros(len(ids), np.int64)
    names: list[str] = []
    for crawl in read_crawls(known.folder):
        docs = ids - crawl.first
        here = np.flatnonzero((docs >= 0) & (docs < crawl.num_texts))
        firsts = np.array([first for first, _, _ in crawl.files])
        split = np.searchsorted(firsts, docs[here], side="right") - 1
        rows[here] = docs[here] - firsts[split] + np.array([row for _, _, row in crawl.files])[split]
        files[here] = split + len(names)
        names += [path for _, path, _ in crawl.files]
    unknown = files < 0
    used, index = np.unique(files[~unknown], return_inverse=True)
    places = np.zeros(len(ids), np.int32)
    places[~unknown] = index
    found = pa.DictionaryArray.from_arrays(
        pa.array(places, mask=unknown), pa.array([names[i] for i in used], pa.string())
    )
    return found.dictionary_decode(), pa.array(rows, mask=unknown)


@dataclass
class Seen:
    """What an index has of a file.

    Attributes:
        total: documents of the file, or bytes.
        known: of these, that the index has.
        places: files of earlier crawls, and how many of these documents stand for each.
    """

    total: int = 0
    known: int = 0
    places: Counter[str] = field(default_factory=Counter)


def warn_of_copies(seen: Mapping[str, Seen], unit: Literal["documents", "bytes"]) -> list[str]:
    """Say which files of a crawl an index has nearly all of: it knows no file by another name."""
    copies = {path: x for path, x in seen.items() if x.known > _MOST_KNOWN * x.total}
    found = []
    for path, x in list(copies.items())[:_SHOWN_FILES]:
        where = f", most of them those of {x.places.most_common(1)[0][0]}" if x.places else ""
        found.append(
            f"{path}: {100 * x.known / x.total:.1f} % of its {unit} are in the index already{where}; if it "
            "is a copy of what was added before, leave it out: it changes nothing but the size of the index"
        )
    if len(copies) > _SHOWN_FILES:
        found.append(f"so it is with {len(copies) - _SHOWN_FILES:,} more of {len(seen):,} files")
    return found


@contextmanager
def adding(known: Known, crawl: Crawl, parts: Sequence[Part]) -> Iterator[None]:
    """Write a crawl down, unless an earlier call has, and that it is complete when the block ends.

    Raises:
        InputError: another process adds the crawl, or the index is not in the state that it was in before.
    """
    folder = Path(known.folder)
    with _lock(folder / "crawls", "the crawl is being added by another process; wait for its end"):
        crawls = read_crawls(known.folder)
        runs = [(other.fingerprint, other.out) for other in crawls]
        run = crawl.fingerprint, crawl.out
        number = runs.index(run) if run in runs else len(crawls)
        if number == len(crawls):
            _open.cache_clear()
            _open(known)
            crawl = Crawl(
                **{
                    **asdict(crawl),
                    "num_texts": sum(part.num_docs for part in parts),
                    "files": tuple((part.first, part.split.path, part.file_row) for part in parts),
                }
            )
            _write_crawl(known.folder, number, crawl)
        yield
        crawl = read_crawls(known.folder)[number]
        _write_crawl(known.folder, number, Crawl(**{**asdict(crawl), "is_complete": True}))
