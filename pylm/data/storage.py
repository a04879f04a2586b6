"""Files of a run that may lie on this machine or in an object store: whole or not there, read in parts.

A path is a string: a local one ("/data/x", "runs/x") or a URL of a file system that fsspec knows
("s3://bucket/key", "memory://x"). Credentials and endpoints are those of the driver: environment variables,
its own files, or fsspec's configuration.
"""

import contextlib
import errno
import io
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from pylm.data.documents import first_line
from pylm.errors import InputError
from pylm.files import atomic_path

_ASIDE = re.compile(r"\.(.+)\.old-[0-9a-f]{32}")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}
"""Show an object when its upload is complete, never a part of it."""
_READ_AHEAD_BYTES = 4 << 20
_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), "
    "and AWS_ENDPOINT_URL for a store that is not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_CONNECTION_STRING",
}
_PACKAGES = {"s3": "pip install 'pylm-llm[s3]'", "gs": "pip install gcsfs", "az": "pip install adlfs"}
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}


def is_local(path: str) -> bool:
    """Say whether a path is one of this machine's file system."""
    return "://" not in path or _protocol(path) in ("file", "local")


def join(folder: str, *names: str) -> str:
    """Join a folder and names below it; of a URL the separator is `/` everywhere."""
    if is_local(folder):
        return str(Path(_local(folder), *names))
    root = folder if folder.endswith("://") else folder.rstrip("/") + "/"
    return root + "/".join(name.strip("/") for name in names)


def exists(path: str) -> bool:
    """Say whether a file or folder is there.

    Raises:
        InputError: the store cannot be asked (no driver, no access).
    """
    if is_local(path):
        return _local(path).exists()
    with _faults_named(path):
        fs, name = _open_store(path)
        return bool(fs.exists(name))


def size(path: str) -> int:
    """Give a file's size in bytes.

    Raises:
        InputError: no such file, or no access.
    """
    with _faults_named(path):
        if is_local(path):
            return _local(path).stat().st_size
        fs, name = _open_store(path)
        return int(fs.info(name)["size"])


def list_files(folder: str, *, suffix: str = "") -> list[str]:
    """List the files that lie directly in a folder.

    Args:
        folder: need not exist; of an object store, its bucket must.
        suffix: how their names end.

    Returns:
        Paths that begin with `folder`, sorted; without hidden ones, so nothing that is still being written.

    Raises:
        InputError: the folder is a file, there is no such bucket, or no access.
    """
    with _faults_named(folder):
        if is_local(folder):
            place = _local(folder)
            names = [path.name for path in place.iterdir() if path.is_file()] if place.exists() else []
        else:
            names = _list_names(folder)
    return [join(folder, name) for name in sorted(names) if name.endswith(suffix) and name[0] != "."]


def list_tree(folder: str) -> list[str]:
    """List the files of a store in a folder and those below it.

    Returns:
        Paths that begin with `folder`, sorted; without hidden files and folders.

    Raises:
        InputError: as `list_files`.
    """
    list_files(folder)  # which says what is wrong with the store
    with _faults_named(folder):
        fs, root = _open_store(folder)
        root = root.rstrip("/")
        names = [name[len(root) :].lstrip("/") for name in fs.find(root)]
    return [join(folder, name) for name in sorted(names) if not f"/{name}".count("/.")]


def _list_names(folder: str) -> list[str]:
    fs, root = _open_store(folder)
    try:
        entries = fs.ls(root, detail=True)
    except FileNotFoundError:
        bucket = root.lstrip("/").partition("/")[0]
        if _protocol(folder) in _OBJECT_STORES and not fs.exists(bucket):
            raise
        return []
    prefix = root.strip("/") + "/" if root.strip("/") else ""
    names = [entry["name"].strip("/") for entry in entries if entry["type"] == "file"]
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix) and name != prefix]


@contextmanager
def publish(path: str) -> Iterator[Path]:
    """Give a local path to write a file to, which becomes `path` when the block ends without an error.

    A reader of `path` sees the old content, the new content, or nothing; never a part, whenever the writer
    is killed. Parent folders are created.

    Args:
        path: where the file goes. What a store other than this machine gets is written to the temporary
            folder (`TMPDIR`) first.

    Yields:
        A path that does not exist yet.

    Raises:
        InputError: no driver for the store, or no access.
    """
    if is_local(path):
        with atomic_path(_local(path)) as temporary:
            yield temporary
        return
    with _faults_named(path):
        fs, name = _open_store(path)
    with tempfile.TemporaryDirectory(prefix="pylm-") as folder:
        temporary = Path(folder) / Path(name).name
        yield temporary
        with _faults_named(path):
            if _protocol(path) in _OBJECT_STORES:
                fs.put_file(str(temporary), name)
                return
            parent, _, last = name.rpartition("/")
            fs.makedirs(parent, exist_ok=True)
            hidden = f"{parent}/.{last}.tmp-{uuid.uuid4().hex}"
            try:
                fs.put_file(str(temporary), hidden)
                _rename(fs, hidden, name)
            except BaseException:
                with contextlib.suppress(OSError):
                    fs.rm_file(hidden)
                raise


def _rename(fs: Any, hidden: str, name: str) -> None:
    """Give a file its name, on stores too that refuse, or do nothing, where that is taken (HDFS).

    There the file that has the name is moved aside first; `put_back` knows it.
    """
    try:
        fs.mv(hidden, name)
    except Exception:
        if not (fs.exists(hidden) and fs.exists(name)):
            raise
    if not fs.exists(hidden):
        return
    parent, _, last = name.rpartition("/")
    aside = f"{parent}/.{last}.old-{uuid.uuid4().hex}"
    fs.mv(name, aside)
    try:
        fs.mv(hidden, name)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.mv(aside, name)
        raise
    fs.rm_file(aside)


def put_back(folder: str) -> None:
    """Give the files of a folder, which nobody else writes to now, what a killed writer had moved aside.

    Raises:
        InputError: no driver for the store, or no access.
    """
    if is_local(folder) or _protocol(folder) in _OBJECT_STORES:
        return  # where a rename replaces
    with _faults_named(folder):
        fs, root = _open_store(folder)
        if not fs.exists(root):
            return
        for path in fs.ls(root, detail=False):
            if found := _ASIDE.fullmatch(path.rpartition("/")[2]):
                name = f"{root.rstrip('/')}/{found[1]}"
                if fs.exists(name):
                    fs.rm_file(path)
                else:
                    fs.mv(path, name)


@contextmanager
def fetch(path: str) -> Iterator[Path]:
    """Give a local path with a file's content: the file itself, or a copy that lasts until the block ends.

    Raises:
        InputError: no such file, no driver, or no access.
    """
    if is_local(path):
        with _faults_named(path):
            _local(path).stat()
        yield _local(path)
        return
    with tempfile.TemporaryDirectory(prefix="pylm-") as folder:
        with _faults_named(path):
            fs, name = _open_store(path)
            copy = Path(folder) / Path(name).name
            fs.get_file(name, str(copy))
        yield copy


def open_input(path: str) -> BinaryIO:
    """Open a file for reading at any place; of an object store, only what is read is fetched.

    Returns:
        A seekable file, as `pyarrow.parquet.ParquetFile` takes it.

    Raises:
        InputError: no such file, no driver, or no access.
    """
    with _faults_named(path):
        if is_local(path):
            return _local(path).open("rb")
        fs, name = _open_store(path)
        if _protocol(path) == "memory":  # its files are one object each, with one position
            return io.BytesIO(fs.cat_file(name))
        return cast(BinaryIO, fs.open(name, "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead"))


def read_bytes(path: str, start: int = 0, length: int | None = None) -> bytes:
    """Read a file, or what there is of `length` bytes from byte `start`.

    Raises:
        InputError: no such file, no driver, or no access.
    """
    with _faults_named(path):
        if is_local(path):
            with _local(path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        fs, name = _open_store(path)
        if not start and length is None:
            return bytes(fs.cat_file(name))
        if length == 0:
            return b""
        try:
            return bytes(fs.cat_file(name, start=start, end=None if length is None else start + length))
        except Exception:  # each store refuses a range behind the end in its own way
            if fs.info(name)["size"] <= start:
                return b""
            raise


def write_json(path: str, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with publish(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str) -> Any:
    """Read one JSON file.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected JSON ({error}); remove it to have it written again") from error


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with _faults_named(path):
        if is_local(path):
            _local(path).unlink(missing_ok=True)
            return
        fs, name = _open_store(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(name)


def remove_folder(path: str) -> None:
    """Remove a folder and all that is in it, if it is there."""
    with _faults_named(path):
        if is_local(path):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(_local(path))
            return
        fs, name = _open_store(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm(name, recursive=True)


def _protocol(path: str) -> str:
    return path.partition("://")[0]


def _local(path: str) -> Path:
    return Path(path.partition("://")[2] if "://" in path else path)


def _open_store(path: str) -> tuple[Any, str]:
    """Give the file system of a URL and the name in it.

    Listings are not kept: other machines write to the same store.
    """
    if _protocol(path) not in fsspec.available_protocols():
        raise InputError(f"{path}: no protocol {_protocol(path)!r} is known to fsspec; check the path")
    fs, name = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return fs, name


@contextmanager
def _faults_named(path: str) -> Iterator[None]:
    """Turn what a file system or driver raises into an error that names the path and the remedy."""
    kind = _ALIASES.get(_protocol(path), _protocol(path))
    remedy = _REMEDIES.get(kind, "check the credentials of its driver")
    if is_local(path):
        remedy = "check its owner and mode"
    try:
        yield
    except FileNotFoundError as error:
        what = "no such file" if is_local(path) else "no such file, folder or bucket"
        raise InputError(f"{path}: {what}; check the path") from error
    except PermissionError as error:
        raise InputError(f"{path}: no access ({first_line(error)}); {remedy}") from error
    except ImportError as error:
        how = _PACKAGES.get(kind, "install the package that it names")
        raise InputError(f"{path}: no driver for {kind}:// ({first_line(error)}); {how}") from error
    except OSError as error:
        raise InputError(f"{path}: {first_line(error)}; {_remedy_of(error, remedy)}") from error
    except Exception as error:
        if isinstance(error, InputError):
            raise
        # Drivers have errors of their own (botocore's NoCredentialsError, EndpointConnectionError).
        if is_local(path):
            raise
        raise InputError(f"{path}: {first_line(error)}; {remedy}") from error


def _remedy_of(error: OSError, otherwise: str) -> str:
    match error.errno:
        case errno.ENOSPC:
            return f"free some space, or set TMPDIR to a larger disk than {tempfile.gettempdir()}"
        case errno.ENOTDIR | errno.EISDIR:
            return "a file stands where a folder should, or the other way round; choose another path"
        case _:
            return otherwise
