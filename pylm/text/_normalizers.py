"""Normalizers: what is done to a text before it is cut into tokens, as in Hugging Face's `tokenizers`."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from pylm import _core
from pylm.errors import InputError

# Rust's idea of white space, which is Unicode's: unlike Python's, without U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class Normalizer:
    """One of NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents, or a sequence of them.

    Attributes:
        spec: the entry of a tokenizer.json.
        form: the one normal form that this is; None where it is, or has, another step.
        keeps_ascii: leaves a text of ASCII as it is.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Read the entry `normalizer` of a tokenizer.json.

        Raises:
            InputError: a normalizer of another kind, or a damaged one; names it.
        """
        self.spec = dict(spec)
        parts = _flatten(spec)
        self._steps = [_step(part) for part in parts]
        kinds = {part["type"] for part in parts}
        self.form = next(iter(kinds)) if len(kinds) == 1 and kinds <= {*_UNICODE_FORMS} else None
        self.keeps_ascii = kinds <= {*_UNICODE_FORMS, "StripAccents"}

    def __call__(self, text: str) -> str:
        """Normalize a text. Lone surrogates are left alone."""
        for step in self._steps:
            text = step(text)
        return text

    def normalize_bytes(self, text: bytes) -> bytes:
        """Normalize UTF-8; bytes that are none stay as they are."""
        if self.form is not None:
            return _core.normalize(text, self.form)
        if self.keeps_ascii and text.isascii():
            return text
        return self(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def read_normalizer(spec: object) -> Normalizer | None:
    """Give the normalizer of a tokenizer.json, or None where it has none."""
    if spec is None:
        return None
    if not isinstance(spec, Mapping):
        raise InputError(f"unsupported normalizer: expected an object, got {spec!r}")
    return Normalizer(spec) if _flatten(spec) else None


def _flatten(spec: object) -> list[dict[str, Any]]:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
        raise InputError(f"unsupported normalizer: expected an object with a type, got {spec!r}")
    if spec["type"] != "Sequence":
        return [dict(spec)]
    parts = spec.get("normalizers")
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        raise InputError(f"unsupported normalizer: a sequence without a list of normalizers, {spec!r}")
    return [leaf for part in parts for leaf in _flatten(part)]


def _step(spec: Mapping[str, Any]) -> Callable[[str], str]:
    match spec:
        case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form}:
            return _unicode_form(form)
        case {"type": "Lowercase"}:
            return _lowercase
        case {"type": "StripAccents"}:
            return _strip_accents
        case {"type": "Strip", "strip_left": bool(left), "strip_right": bool(right)}:
            return lambda text: _strip(text, left, right)
        case {"type": "Prepend", "prepend": str(prefix)}:
            return lambda text: prefix + text if text else text
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return lambda text: text.replace(old, new)
        case {"type": "Replace", "pattern": {"Regex": str(expression)}, "content": str(new)}:
            return _replace_pattern(expression, new)
    raise InputError(
        f"unsupported normalizer {str(dict(spec))[:160]}; expected NFC, NFD, NFKC, NFKD, Lowercase, Prepend, "
        "Replace, Strip, StripAccents or a Sequence of them"
    )


def _unicode_form(form: str) -> Callable[[str], str]:
    def normalize(text: str) -> str:
        if text.isascii():
            return text
        return _core.normalize(text.encode("utf-8", "surrogatepass"), form).decode("utf-8", "surrogatepass")

    return normalize


def _lowercase(text: str) -> str:
    # Python looks at the letters around a capital sigma, Rust goes character by character.
    return text.lower() if "\u03a3" not in text else "".join(map(str.lower, text))


def _strip_accents(text: str) -> str:
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c)[0] != "M")


def _strip(text: str, left: bool, right: bool) -> str:
    if left:
        text = text.lstrip(_WHITE_SPACE)
    return text.rstrip(_WHITE_SPACE) if right else text


def _replace_pattern(expression: str, new: str) -> Callable[[str], str]:
    try:
        compiled = regex.compile(expression)
    except (regex.error, re.error) as error:
        raise InputError(
            f"unsupported normalizer: pattern {expression!r} does not compile: {error}"
        ) from error
    return lambda text: compiled.sub(lambda _: new, text)
