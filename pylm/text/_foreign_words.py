"""Texts as text-dedup and datatrove see them before they cut words."""

import unicodedata
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from pylm import _core
from pylm.errors import InputError
from pylm.text.texts import Texts

# Characters whose fate is listed; beyond lie rare ideographs and tags, whose texts are left to Python.
_NUM_LISTED = 0x20000
_KEEP, _SPACE, _DROP, _DIGIT, _UNKNOWN, _REPLACE = range(6)


def join_words(texts: Texts, scheme: str, num_threads: int) -> pa.Array:
    """Words of every text, joined by one space each, as the tool of the scheme sees them.

    Returns:
        large_binary (num_docs,); nulls become empty.

    Raises:
        TypeError, InputError: as for `exact`, or a column of bytes that are no UTF-8.
    """
    data, offsets, done = _core.normalize(texts, table=_table(scheme), num_threads=num_threads)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    joined = pa.Array.from_buffers(pa.large_binary(), len(done), buffers)
    left = np.flatnonzero(done == 0)
    if not len(left):
        return joined
    normalize = _WORDS[scheme]
    rest = ["" if text is None else normalize(text) for text in _to_strings(texts, left)]
    return pc.replace_with_mask(
        joined, pa.array(done == 0), pa.array(rest, pa.large_string()).cast(pa.large_binary())
    )


# That tool's \w is the one of `regex`, which takes marks for parts of words, not that of `re`.
_NON_WORD = regex.compile(r"\W+")


def _text_dedup_words(text: str) -> str:
    return str(_NON_WORD.sub(" ", text.lower())).strip(" ")


# datatrove's normalisation, a published rule: numbers (with at most one decimal part) become 0, these
# characters become spaces.
_NUMBER = regex.compile("\\p{Nd}+(?:[.,\u060c\u066b\u2396\u2397\u2398]\\p{Nd}+)?")
_DATATROVE_PUNCTUATION = str.maketrans(
    dict.fromkeys(
        "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        "\u00ab\u00b4\u00bb\u2013\u2014\u2019\u201c\u201d\u201e\u2026\u2236\u2501\u25ba\u3001\u3002\u3008\u3009"
        "\u300a\u300b\u300c\u300d\u3010\u3011\uff01\uff05\uff08\uff09\uff0c\uff0e\uff11\uff1a\uff1b\uff1f\uff5e"
        + "".join(map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160)))),
        " ",
    )
)


def _datatrove_words(text: str) -> str:
    text = str(_NUMBER.sub("0", text.lower())).translate(_DATATROVE_PUNCTUATION)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFD", " ".join(text.split()))
        text = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
    return " ".join(text.split())


_WORDS = {"text-dedup": _text_dedup_words, "datatrove": _datatrove_words}


@lru_cache
def _table(scheme: str) -> _core.CharacterTable:
    """What the tool makes of each character alone, found by asking it."""
    actions = np.full(_NUM_LISTED, _UNKNOWN, np.uint32)
    replacements: dict[str, int] = {}
    for point in range(_NUM_LISTED):
        if (
            0xD800 <= point < 0xE000 or point == 0x3A3
        ):  # no character; a capital sigma's lower case depends on others
            continue
        character = chr(point)
        result = _fate(character, scheme)
        if result in _FATES:
            actions[point] = _FATES[result]
        elif result == character:
            actions[point] = _KEEP
        elif result is not None:
            actions[point] = _REPLACE + replacements.setdefault(result, len(replacements))
    return _core.CharacterTable(actions, list(replacements), numbers=scheme == "datatrove")


_FATES = {" ": _SPACE, "": _DROP, "\0digit": _DIGIT}


def _fate(character: str, scheme: str) -> str | None:
    """What stands for a character; None if it cannot be told alone."""
    if scheme == "text-dedup":
        result = str(_NON_WORD.sub(" ", character.lower()))
    else:
        if _NUMBER.fullmatch(character.lower()):
            return "\0digit"
        lowered = character.lower().translate(_DATATROVE_PUNCTUATION)
        decomposed = unicodedata.normalize("NFD", lowered)
        result = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        if any(map(unicodedata.combining, result)):  # marks may change places
            return None
    if result.isspace():
        return " "
    return None if len(result.split()) > 1 or result != result.strip() else result


def _to_strings(texts: Texts, indices: np.ndarray) -> list[str | None]:
    """Some of the texts as Python strings."""
    if isinstance(texts, list | tuple):
        return [texts[i] for i in indices.tolist()]
    column = (
        pa.chunked_array([pa.array(texts)])
        if hasattr(texts, "__arrow_c_array__")
        else pa.chunked_array(texts)
    )
    try:
        return list(column.take(pa.array(indices)).cast(pa.large_string()).to_pylist())
    except pa.ArrowInvalid as error:
        raise InputError(f"texts: the binary column holds bytes that are no UTF-8 ({error})") from error
