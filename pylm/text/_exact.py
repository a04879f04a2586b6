"""Equal texts."""

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.text._checks import check_threads
from pylm.text.texts import Texts


def exact(texts: Texts, *, num_threads: int = 0) -> NDArray[np.int64]:
    """Find texts that are equal byte by byte.

    Args:
        texts: num_docs texts; nulls of an Arrow column equal nothing, not even each other.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        int64 (num_docs,): for every text the index of the first equal one, its own where it is the first.

    Raises:
        TypeError: `texts` is no list of str and no Arrow column, or an item is no str; names the index.
        InputError: the column holds no text, or a str holds a lone surrogate.

    Example:
        >>> exact(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    return _core.exact_duplicates(texts, num_threads=check_threads(num_threads))
