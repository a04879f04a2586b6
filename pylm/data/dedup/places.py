"""Where the files of a deduplication's result are, and what may not lie in what: inputs, result, index."""

from collections.abc import Sequence
from fnmatch import fnmatch

from pylm.data import storage
from pylm.data.dedup.corpus import Split, local_path
from pylm.errors import InputError


def remove_unfinished(folder: str) -> None:
    """Remove what killed writers left in a folder of this machine."""
    if storage.is_local(folder):
        for path in local_path(folder).glob(".*.tmp-*"):
            path.unlink(missing_ok=True)


def documents_path(out: str, number: int) -> str:
    """Give the path of a split's survivors."""
    return storage.join(out, "documents", f"{number:05d}.parquet")


def removed_path(out: str, number: int) -> str:
    """Give the path of what a split lost."""
    return storage.join(out, "removed", f"{number:05d}.parquet")


def require_empty(out: str) -> None:
    """Refuse a folder for a result in which other files are.

    Raises:
        InputError: it holds some, or is a file.
    """
    if storage.is_local(out):
        place = local_path(out)
        if place.exists() and not place.is_dir():
            raise InputError(f"{out}: a file stands there, expected a folder for the result")
        names = [path.name for path in place.iterdir() if path.name[0] != "."] if place.exists() else []
    else:
        names = storage.list_tree(out)
    if names:
        raise InputError(
            f"{out}: holds other files ({sorted(names)[0]}); choose an empty folder, or one with a result of "
            "this command"
        )


def require_outside(out: str, inputs: Sequence[str], splits: Sequence[Split]) -> None:
    """Refuse inputs in the folder of the result, which may be cleared, and a result among the inputs."""
    for given in inputs:
        if storage.is_local(given) and storage.is_local(out):
            place = local_path(given)
            inside = place.is_dir() and place.resolve() in local_path(out).resolve().parents
            if not place.exists():  # a glob, which would match the result
                inside = fnmatch(str(local_path(out).absolute()), str(place.absolute()))
        else:
            inside = out.startswith(storage.join(given, "x")[:-1])
        if inside:
            raise InputError(
                f"{out}: lies in the input {given}, and would be read as a part of it next time; "
                "choose another folder with --out"
            )
    for path in dict.fromkeys(split.path for split in splits):
        if storage.is_local(path) and storage.is_local(out):
            inside = local_path(out).resolve() in local_path(path).resolve().parents
        else:
            inside = path.startswith(storage.join(out, "x")[:-1])
        if inside:
            raise InputError(f"{path}: lies in the folder of the result, {out}; choose another folder")


def require_apart(index: str, out: str, splits: Sequence[Split]) -> None:
    """Refuse an index in the folder of the result or among the inputs, and the other way round."""
    folder = local_path(index)
    places = [local_path(x.path).resolve() for x in splits if storage.is_local(x.path)]
    result = [local_path(out).resolve()] if storage.is_local(out) else []
    for place in [*places, *result]:
        if folder in (place, *place.parents) or (place in result and place in folder.parents):
            raise InputError(f"{index}: the index needs a folder apart from {place}; choose another one")
