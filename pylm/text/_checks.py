"""Checks of arguments that functions share."""

from pathlib import Path

import numpy as np

from pylm.errors import InputError

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\3\4": "zip",
    b"PAR1": "Parquet",
}


def check_not_packed(path: Path) -> None:
    """Refuse a file of text that is none: what its bytes say is of no use."""
    if not path.is_file():  # what is read from a pipe is gone
        return
    with path.open("rb") as file:
        start = file.read(8)
    for mark, kind in _PACKED.items():
        if start.startswith(mark):
            raise InputError(f"{path}: holds {kind}, expected text; unpack it first")


def check_array(name: str, array: object, dtypes: tuple[type[np.generic], ...]) -> None:
    if not isinstance(array, np.ndarray):
        hint = "; encode it first" if isinstance(array, str) else ""
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}{hint}")
    if array.dtype not in dtypes:
        raise InputError(f"{name} must have dtype {', '.join(t.__name__ for t in dtypes)}, got {array.dtype}")
    if array.ndim != 1 or not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            f"{name} must be a contiguous array of one dimension, got shape {array.shape} with strides "
            f"{array.strides}; pass numpy.ascontiguousarray({name}).ravel()"
        )


def check_int(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise InputError(f"{name} must lie in [{least}, {most}], got {value}")


def check_threads(num_threads: int) -> int:
    check_int("num_threads", num_threads, 0, 1 << 16)
    return num_threads


def check_threshold(threshold: object) -> None:
    if not isinstance(threshold, int | float | np.integer | np.floating) or isinstance(threshold, bool):
        raise TypeError(f"threshold must be a float, got {type(threshold).__name__}")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must lie in (0, 1], got {threshold}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
