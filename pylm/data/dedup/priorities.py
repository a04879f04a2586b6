"""Which of several copies stays: rules over columns, as whole numbers that compare across a corpus.

A rule is `COLUMN` (the largest number or latest date stays), `-COLUMN` (the least or earliest), or
`COLUMN=a,b,c` (rows with the value a before those with b, others last). Rows without a value come last.
"""

import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pylm.data.documents import SCHEMA, first_line, is_unicode
from pylm.errors import InputError

LEAST = np.iinfo(np.int64).min
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_ZONE = r"[0-9:.](Z|[+-][0-9]{2}:?[0-9]{2})$"


@dataclass(frozen=True)
class Priority:
    """A rule, taken apart.

    Attributes:
        column: that decides.
        least_first: whether the least value stays.
        order: values from the most to the least preferred one; empty where numbers or dates decide.
    """

    column: str
    least_first: bool = False
    order: tuple[str, ...] = ()


def parse_priority(rule: str) -> Priority:
    """Read a rule.

    Raises:
        InputError: it names no column, or no values after `=`.

    Example:
        >>> parse_priority("-date")
        Priority(column='date', least_first=True, order=())
    """
    column, equals, values = rule.partition("=")
    least_first = not equals and column.startswith("-")
    column = column.removeprefix("-") if least_first else column
    order = tuple(value.strip() for value in values.split(",")) if equals else ()
    if not column or (equals and not all(order)):
        raise InputError(f"priority must be COLUMN, -COLUMN or COLUMN=VALUE,VALUE, got {rule!r}")
    return Priority(column, least_first, order)


def priority_keys(
    priority: Priority, batch: pa.RecordBatch, place: str
) -> tuple[NDArray[np.int64], str | None]:
    """Turn a column into numbers of which the largest stays.

    Args:
        priority: the rule.
        batch: rows, with the column or with an object in `meta` that has it.
        place: file, for messages.

    Returns:
        int64 (num_rows,), `LEAST` for rows without a value, and what kind of numbers: "integer", "number",
        "date" or "order", which must be one throughout a corpus; None where no row has a value.
        `values_of` says which values of an order they are.

    Raises:
        InputError: values that are neither numbers nor dates.
    """
    if priority.order:
        try:
            column = _names(priority.column, batch)
        except pa.ArrowException as error:
            raise InputError(
                f"{place}: the column {priority.column!r} decides which copy stays by its values and must "
                f"hold strings or numbers, it holds {batch.column(priority.column).type}"
            ) from error
        ranks = pc.index_in(column, pa.array(priority.order, pa.string()))
        keys = -ranks.fill_null(len(priority.order)).to_numpy(zero_copy_only=False).astype(np.int64)
        return keys, "order" if column.null_count < len(column) else None
    column, kind = _comparable(priority.column, _column(priority.column, batch, place), place)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if kind == "number":
        values = column.fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 is 0.0
        valid &= ~np.isnan(values)
        bits = np.ascontiguousarray(values, np.float64).view(np.int64)
        keys = bits ^ ((bits >> 63) & np.iinfo(np.int64).max)
    else:
        keys = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    keys = np.where(valid, np.maximum(~keys if priority.least_first else keys, LEAST + 1), LEAST)
    return keys, kind if valid.any() else None


def values_of(priority: Priority, keys: NDArray[np.int64]) -> list[str]:
    """List the values of an order that occur among some rows' numbers."""
    return [value for rank, value in enumerate(priority.order) if (keys == -rank).any()]


def _names(name: str, batch: pa.RecordBatch) -> pa.Array:
    """Give a column as strings, the same for a value whatever stands beside it: 7, 0.5, 1 for 1.0, true."""
    if _has_column(name, batch):
        return batch.column(name).cast(pa.string())
    values = batch.column("id").to_pylist() if name == "id" else fields_of(name, batch)
    return pa.array([_name_of(value) for value in values], pa.string())


def _name_of(value: object) -> str | None:
    if isinstance(value, bool | float):
        return str(pa.scalar(value).cast(pa.string()).as_py())
    if isinstance(value, str):
        return value if is_unicode(value) else None
    return str(value) if isinstance(value, int) else None


def _has_column(name: str, batch: pa.RecordBatch) -> bool:
    """Whether rows have a column; documents of JSON lines have fields."""
    return name in batch.schema.names and not batch.schema.equals(SCHEMA)


def _column(name: str, batch: pa.RecordBatch, place: str) -> pa.Array:
    if _has_column(name, batch):
        column = batch.column(name)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    values = fields_of(name, batch)
    if any(isinstance(value, str) for value in values):
        strings = [None if value is None else str(value) for value in values]
        return pa.array([x if x is None or is_unicode(x) else "\ufffd" for x in strings], pa.string())
    return pa.array([_as_float(x, name, place) for x in values], pa.float64())


def fields_of(name: str, batch: pa.RecordBatch) -> list[Any]:
    """Give a field of JSON lines as they had it, from the documents that they have become.

    Args:
        name: of the field.
        batch: documents, with the columns of `documents.SCHEMA`.

    Returns:
        Values of JSON; None where a line has none. An id that is a number is a string here, or a number where
        all are.
    """
    metas = batch.column("meta").to_pylist()
    values = [json.loads(meta).get(name) if meta else None for meta in metas]
    if name in ("url", "date"):  # strings have a column of their own
        strings = batch.column(name).to_pylist()
        values = [value if string is None else string for value, string in zip(values, strings, strict=True)]
    elif name == "id":
        values = batch.column(name).to_pylist()
        with contextlib.suppress(ValueError):
            values = [int(value) if _INTEGER.fullmatch(value) else float(value) for value in values]
    return values


def _as_float(value: object, name: str, place: str) -> float | None:
    """Turn a number of JSON into a float, infinite where it is too large for one.

    Raises:
        InputError: an integer that none equals, which would count as equal to others.
    """
    if isinstance(value, int):
        try:
            number = float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        if number != value:
            raise InputError(
                f"{place}: the field {name!r} decides which copy stays and holds {value}; integers beyond "
                "2^53 are not told apart in JSON lines: write Parquet, where a column of int64 holds them"
            )
        return number
    return value if isinstance(value, float) else None


def _comparable(name: str, column: pa.Array, place: str) -> tuple[pa.Array, str]:
    kind = column.type
    try:
        if pa.types.is_null(kind):
            return column.cast(pa.int64()), "integer"
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return column.cast(pa.int64()), "integer"
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return column.cast(pa.float64()), "number"
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            zone = kind.tz if pa.types.is_timestamp(kind) else None
            return column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()), "date"
        if kind in (pa.string(), pa.large_string(), pa.string_view()):
            return _dates(column.cast(pa.string())), "date"
    except pa.ArrowException as error:
        raise InputError(
            f"{place}: the column {name!r} decides which copy stays and must hold numbers or dates such as "
            f"2024-05-31 or 2024-05-31T12:00:00Z ({first_line(error)}); for names write {name}=FIRST,SECOND"
        ) from error
    raise InputError(
        f"{place}: the column {name!r} decides which copy stays and must hold numbers or dates, "
        f"it holds {kind}"
    )


def _dates(column: pa.Array) -> pa.Array:
    """Microseconds of dates and times as ISO 8601 writes them, those without a zone taken for UTC."""
    column = pc.if_else(pc.equal(column, ""), None, column)
    zoned = pc.match_substring_regex(column, _ZONE)
    plain = pc.if_else(zoned, None, column).cast(pa.timestamp("us")).cast(pa.int64())
    other = pc.if_else(zoned, column, None).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return pc.coalesce(plain, other)


def preference(keys: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Order documents from the most preferred one on.

    Args:
        keys: (num_docs, num_rules), the first rule before the second; the largest stays.
        ids: (num_docs,) places in the corpus; of equal ones the first stays.
    """
    return np.lexsort([ids, *(~keys[:, rule] for rule in reversed(range(keys.shape[1])))])


def check_kinds(
    rules: Sequence[Priority], kinds: Sequence[Sequence[str | None]], places: Sequence[str]
) -> None:
    """Refuse a corpus in which a rule's numbers do not compare: integers in one file and dates in another.

    Args:
        rules: of the corpus.
        kinds: of every rule for every split.
        places: file of every split.

    Raises:
        InputError: names two files.
    """
    for number, rule in enumerate(rules):
        seen: dict[str, str] = {}
        for kind, place in zip((row[number] for row in kinds), places, strict=True):
            if kind is not None:
                seen.setdefault(kind, place)
        if len(seen) > 1:
            (one, first), (other, second) = list(seen.items())[:2]
            raise InputError(
                f"{second}: the column {rule.column!r} holds {other}s, in {first} it holds {one}s; "
                "cast one of them to the type of the other"
            )


def check_values(
    rules: Sequence[Priority],
    kinds: Sequence[Sequence[str | None]],
    values: Sequence[Sequence[Sequence[str]]],
    *,
    has_columns: bool,
) -> list[str]:
    """Say which rules, or which of their values, decide nothing because no document has them.

    Args:
        rules: of the corpus.
        kinds: of every rule for every split, as `priority_keys` gives them.
        values: of an order, that occur in every split.
        has_columns: whether some files have columns, of which it is known that they are there.

    Raises:
        InputError: no document has such a field.
    """
    found = []
    for number, rule in enumerate(rules):
        if all(row[number] is None for row in kinds):
            if not has_columns:
                raise InputError(
                    f"no document has a field {rule.column!r}, which --priority names; check its spelling"
                )
            found.append(f"the column {rule.column!r} of --priority has no values, and decides nothing")
        elif missing := set(rule.order).difference(*(row[number] for row in values)):
            names = ", ".join(repr(value) for value in rule.order if value in missing)
            found.append(
                f"no document has {names} as {rule.column!r}: check the values of "
                f"--priority {rule.column}={','.join(rule.order)}"
            )
    return found
