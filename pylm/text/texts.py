"""What every function over a collection of texts accepts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa


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


def arrow_chunks(values: object) -> "list[pa.Array] | None":
    """Give the arrays of an Arrow (chunked) array, or None for anything else; loads no pyarrow itself."""
    if not hasattr(values, "null_count"):
        return None
    return list(values.chunks) if hasattr(values, "chunks") else [values]
