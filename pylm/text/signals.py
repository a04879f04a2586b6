"""Quality signals of documents: figures that filter rules compare with thresholds.

>>> from pylm import signals
>>> batch = signals.compute(["One line. \\n" * 3], names=["num_words", "duplicate_line_ratio"])
>>> batch["num_words"].to_pylist()
[6]
"""

import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pylm import _core
from pylm.errors import InputError
from pylm.text.texts import Texts

__all__ = ["NAMES", "compute"]

NAMES: tuple[str, ...] = tuple(_core.signal_names())
"""Names of all signals, counts first. docs/signals.md defines each."""


def compute(texts: Texts, *, names: Sequence[str] | None = None, num_threads: int = 0) -> pa.RecordBatch:
    """Compute quality signals of every text in one pass.

    Args:
        texts: num_docs texts; bytes that are no UTF-8 count as one character each.
        names: signals to compute, of `NAMES`, in the order of the columns; None for all.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        num_docs rows, one column a name: int64 for counts, float64 for ratios and means. The ratio of
        something to nothing (words of an empty text) is 0. A null text has nulls.

    Raises:
        TypeError: `texts` is no list of str and no Arrow column, or an item is no str; names the index.
        InputError: unknown name, with the nearest known; the column holds no text; a lone surrogate.

    Example:
        >>> compute(["A text of five words."], names=["num_words", "mean_word_length"]).to_pylist()
        [{'num_words': 5, 'mean_word_length': 3.2}]
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got the str {names!r}; pass [{names!r}]")
    wanted = list(NAMES if names is None else names)
    for name in wanted:
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0)
            raise InputError(f"no signal is named {name!r}; the nearest known one is {near[0]!r}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"names must differ, got {next(n for n in wanted if wanted.count(n) > 1)!r} twice")
    if not isinstance(num_threads, int | np.integer) or isinstance(num_threads, bool):
        raise TypeError(f"num_threads must be an int, got {type(num_threads).__name__}")
    if not 0 <= num_threads <= 1 << 16:
        raise InputError(f"num_threads must lie in [0, {1 << 16}], got {num_threads}")
    columns, null = _core.compute_signals(texts, names=wanted, num_threads=num_threads)
    mask = null.astype(bool) if null.any() else None
    return pa.RecordBatch.from_arrays([pa.array(column, mask=mask) for column in columns], names=wanted)
