"""Texts with characters replaced and white space collapsed, by the rules of pylm and of other tools."""

import unicodedata
from functools import lru_cache

import numpy as np
import pyarrow as pa
import regex

from pylm import _core
from pylm.errors import InputError
from pylm.text.texts import Texts

# Characters whose fate is listed; beyond lie rare ideographs and tags, whose texts are left to Python.
_NUM_LISTED = 0x20000
_KEEP, _SPACE, _DROP, _DIGIT, _UNKNOWN, _REPLACE = range(6)


def join_words(texts: Texts, scheme: str, num_threads: int) -> _core.NormalizedTexts:
    """Words of every text, joined by one space each.

    Args:
        texts: num_docs texts.
        scheme: "text-dedup" or "datatrove", for words as those tools see them; "folded" for lower case,
            "bare" for lower case without punctuation (Unicode's class P).
        num_threads: 0 uses all cores.

    Returns:
        num_docs texts; nulls stay null.

    Raises:
        TypeError, InputError: as for `exact`, or a column of bytes that are no UTF-8.
    """
    joined = _core.NormalizedTexts(texts, table=_table(scheme), num_threads=num_threads)
    if joined.unknown:
        for index, text in zip(joined.unknown, to_strings(texts, joined.unknown), strict=True):
            joined.set(index, "" if text is None else _WORDS[scheme](text))
    return joined


def join_part_words(parts: _core.TextParts, scheme: str, num_threads: int) -> _core.NormalizedTexts:
    """Words of every line or paragraph, as of texts."""
    joined = parts.normalized(table=_table(scheme), num_threads=num_threads)
    for index in joined.unknown:
        try:
            text = parts[index].decode()
        except UnicodeDecodeError as error:
            raise InputError(f"texts: the binary column holds bytes that are no UTF-8 ({error})") from error
        joined.set(index, _WORDS[scheme](text))
    return joined


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


def _folded_words(text: str) -> str:
    return " ".join(text.lower().split())


def _bare_words(text: str) -> str:
    return _folded_words("".join(char for char in text.lower() if unicodedata.category(char)[0] != "P"))


_WORDS = {
    "text-dedup": _text_dedup_words,
    "datatrove": _datatrove_words,
    "folded": _folded_words,
    "bare": _bare_words,
}


@lru_cache
def _table(scheme: str) -> _core.CharacterTable:
    """What a scheme makes of each character alone, found by asking it."""
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
    if scheme in ("folded", "bare"):
        result = character.lower()
        if scheme == "bare":
            result = "".join(char for char in result if unicodedata.category(char)[0] != "P")
    elif scheme == "text-dedup":
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


def to_strings(texts: Texts, indices: list[int] | None = None) -> list[str | None]:
    """Texts, or some of them, as Python strings.

    Raises:
        TypeError, InputError: as for `exact`, or a column of bytes that are no UTF-8.
    """
    if isinstance(texts, list | tuple):
        if indices is not None:
            return [texts[i] for i in indices]
        _core.exact_duplicates(texts, num_threads=1)  # names the first item that is no text
        return list(texts)
    if hasattr(texts, "__arrow_c_array__"):
        column = pa.chunked_array([pa.array(texts)])
    elif hasattr(texts, "__arrow_c_stream__"):
        column = pa.chunked_array(texts)
    else:
        column = texts
    if indices is None:
        _core.exact_duplicates(column, num_threads=1)
    else:
        if column.type in (pa.string_view(), pa.binary_view()):  # Arrow does not take from these
            column = column.cast(pa.large_string() if column.type == pa.string_view() else pa.large_binary())
        column = column.take(pa.array(indices, pa.int64()))
    try:
        return list(column.cast(pa.large_string()).to_pylist())
    except pa.ArrowInvalid as error:
        raise InputError(f"texts: the binary column holds bytes that are no UTF-8 ({error})") from error
