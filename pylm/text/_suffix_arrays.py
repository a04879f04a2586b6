"""Suffix arrays of bytes and token ids."""

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._checks import check_array, check_threads

Symbols = bytes | bytearray | memoryview | NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


def suffix_array(data: Symbols, *, num_threads: int = 0) -> NDArray[np.int32] | NDArray[np.int64]:
    """Sort all suffixes of a text or of a sequence of token ids.

    Induced sorting (SA-IS: Nong, Zhang, Chan, DCC 2009), in linear time. Beside data and result it takes less
    than half as much memory as the result for real text, at most twice as much; ids beyond `size` are copied.

    Args:
        data: size symbols: bytes, or a contiguous array (size,) of uint8, uint16 or uint32, read in place; it
            must not change during the call.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        (size,): the starts of the suffixes in their order, the end of `data` before every symbol; int32 for
        fewer than 2^31 symbols, else int64.

    Raises:
        TypeError: `data` is neither bytes nor an array; a str has to be encoded first.
        InputError: the array has another dtype, more than one dimension or gaps.

    Example:
        >>> suffix_array(b"banana").tolist()
        [5, 3, 1, 0, 4, 2]
    """
    symbols = _to_symbols(data)
    return _core.suffix_array(symbols, wide=symbols.size >= 1 << 31, num_threads=check_threads(num_threads))


def lcp_array(
    data: Symbols, suffix_array: NDArray[np.int32] | NDArray[np.int64], *, num_threads: int = 0
) -> NDArray[np.int32] | NDArray[np.int64]:
    """Tell how much neighbours of a suffix array have in common at their beginnings.

    Permuted LCP (Kärkkäinen, Manzini, Puglisi, CPM 2009), in linear time. Beside data and result it takes as
    much memory again as the result.

    Args:
        data: size symbols, as for `suffix_array`.
        suffix_array: int32 or int64 (size,), contiguous: what `suffix_array(data)` returned. That the entries
            lie in the text is checked, that they are its suffixes in order is not.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        (size,), of the dtype of `suffix_array`: at i the number of symbols that the suffixes at i - 1 and i
        share, 0 at 0.

    Raises:
        TypeError: `data` or `suffix_array` has another type.
        InputError: an array has another dtype or shape or gaps.
        ValueError: an entry lies outside of the text; names it.

    Example:
        >>> lcp_array(b"banana", suffix_array(b"banana")).tolist()
        [0, 1, 3, 0, 0, 2]
    """
    symbols = _to_symbols(data)
    check_array("suffix_array", suffix_array, (np.int32, np.int64))
    if suffix_array.size != symbols.size:
        raise InputError(
            f"suffix_array must have one entry a symbol, {symbols.size}, got {suffix_array.size}; "
            "pass what suffix_array(data) returned"
        )
    return _core.lcp_array(symbols, suffix_array, num_threads=check_threads(num_threads))


def _to_symbols(data: Symbols) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]:
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.asarray(memoryview(data))
    check_array("data", data, (np.uint8, np.uint16, np.uint32))
    return data
