"""What every function over a collection of texts accepts."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias


class ArrowArray(Protocol):
    """An Arrow array of any library, exported through the PyCapsule interface (pyarrow.Array, ...)."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """Return the capsules `arrow_schema` and `arrow_array`."""
        ...


class ArrowStream(Protocol):
    """Arrow arrays one after another (pyarrow.ChunkedArray, polars.Series, ...)."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the capsule `arrow_array_stream`."""
        ...


Texts: TypeAlias = Sequence[str] | ArrowArray | ArrowStream
"""A list (or tuple) of str, or an Arrow column of strings or binary: plain, large or view layout, with nulls,
sliced or in chunks. Arrow columns are read in place, without a copy."""


def to_list(texts: Any) -> Any:
    """Give Python objects, None of an Arrow column as the empty text."""
    for name in ("to_pylist", "to_list", "tolist"):  # pyarrow, polars and pandas, NumPy
        if hasattr(texts, name):
            return [t if t is not None else "" for t in getattr(texts, name)()]
    return texts if isinstance(texts, list | tuple) else list(texts)
