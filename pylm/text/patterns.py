"""The pre-tokenization patterns by name: for the machines in C++, and as regular expressions for others."""

import difflib
import functools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._byte_alphabet import BYTE_TO_CHAR, CHAR_TO_BYTE

_log = logging.getLogger(__name__)

_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
_HF_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PretokenPattern:
    r"""One way of cutting text into pieces.

    Attributes:
        name: key in `PATTERNS`; of a custom pattern its expression, or "custom" if there are several.
        expressions: for Oniguruma and the `regex` package, as `tokenizer.json` carries them: each cuts what
            the one before has left, and what an expression does not match is a piece too.
        byte_expressions: cut what those have left, seeing each byte as its character in GPT-2's alphabet. A
            piece may then end within a character.
        has_machine: whether the C++ core knows the pattern.

    Example:
        >>> find_pattern("cl100k").split("It's 2026!")
        ['It', "'s", ' ', '202', '6', '!']
        >>> find_pattern(r"\w+|\W").split("a custom one")
        ['a', ' ', 'custom', ' ', 'one']
    """

    name: str
    expressions: tuple[str, ...]
    has_machine: bool = True
    byte_expressions: tuple[str, ...] = ()

    @property
    def expression(self) -> str:
        """The only expression, or all as groups of one. The latter is for reading; cutting takes each."""
        return self.expressions[0] if len(self.expressions) == 1 else "|".join(self.expressions)

    def machine(self) -> _core.Pattern | None:
        """Give the machine, or None for a custom pattern: its pieces come from `split`."""
        return _core.Pattern(self.name) if self.has_machine else None

    def split(self, text: str) -> list[str]:
        """Cut text by the regular expressions: slowly, with the machine's pieces.

        Args:
            text: any string. A byte that is no UTF-8 stands as the surrogate that Python's `surrogateescape`
                gives it.

        Returns:
            The pieces, none empty, which concatenate to the text.
        """
        pieces = _cut_all(self.expressions, [text] if text else [])
        return [part for piece in pieces for part in self._cut_bytes(piece)]

    def _cut_bytes(self, piece: str) -> list[str]:
        if not self.byte_expressions:
            return [piece]
        chars = "".join(map(BYTE_TO_CHAR.__getitem__, piece.encode("utf-8", "surrogateescape")))
        parts = _cut_all(self.byte_expressions, [chars])
        return [bytes(map(CHAR_TO_BYTE.__getitem__, p)).decode("utf-8", "surrogateescape") for p in parts]

    def split_bytes(self, text: bytes) -> list[bytes]:
        """Cut bytes, which need not be UTF-8, as `split` does."""
        pieces = self.split(text.decode("utf-8", "surrogateescape"))
        return [piece.encode("utf-8", "surrogateescape") for piece in pieces]

    def split_all(self, texts: Iterable[str | bytes]) -> tuple[list[bytes], NDArray[np.int64]]:
        """Cut many texts.

        Returns:
            The pieces of all texts, and where each text's begin, with their number at the end.

        Raises:
            InputError: a text holds lone surrogates; names its index.
            TypeError: an element is neither str nor bytes.
        """
        pieces: list[bytes] = []
        borders = [0]
        for index, text in enumerate(texts):
            if not isinstance(text, str | bytes):
                raise TypeError(f"texts[{index}] must be str or bytes, got {type(text).__name__}")
            try:
                content = text.encode() if isinstance(text, str) else text
            except UnicodeEncodeError as error:
                raise InputError(
                    f"texts[{index}] holds lone surrogates, which no UTF-8 can express"
                ) from error
            pieces += self.split_bytes(content)
            borders.append(len(pieces))
        return pieces, np.array(borders, np.int64)


@functools.lru_cache(maxsize=256)
def _compile(expression: str) -> "regex.Pattern[str]":
    # Version 1 of the package's syntax has what Oniguruma and Rust write as [a&&b]; it folds "ss" and the
    # like in full, which they do not. Version 0 takes every other set as they do.
    flags = regex.VERSION1 if "&&" in expression else regex.VERSION0
    try:
        return regex.compile(expression, flags)
    except regex.error as error:
        raise InputError(
            f"pattern {expression[:120]!r} is neither one of {', '.join(PATTERNS)} nor a regular "
            f"expression: {error}"
        ) from error


def _cut_all(expressions: Iterable[str], pieces: list[str]) -> list[str]:
    for expression in expressions:
        compiled = _compile(expression)
        pieces = [part for piece in pieces for part in _cut(compiled, piece)]
    return pieces


def _cut(compiled: "regex.Pattern[str]", text: str) -> list[str]:
    """Give matches and what lies between them."""
    pieces = []
    end = 0
    for match in compiled.finditer(text):
        start, match_end = match.span()
        if start > end:
            pieces.append(text[end:start])
        if match_end > start:
            pieces.append(text[start:match_end])
        end = max(end, match_end)
    if end < len(text):
        pieces.append(text[end:])
    return pieces


def _cl100k_like(
    contractions: str, digits: str, trailing: str = "", word: str = r"\p{L}", other: str = r"\s\p{L}\p{N}"
) -> tuple[str]:
    return (
        contractions + r"|[^\r\n\p{L}\p{N}]?" + word + r"+|" + digits + rf"| ?[^{other}]+[\r\n]*|" + trailing
        + _SPACE,
    )  # fmt: skip


def _o200k_like(contractions: str, digits: str) -> tuple[str]:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    prefix = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{prefix}{upper}*{lower}+{contractions}|{prefix}{upper}+{lower}*{contractions}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE,
    )


_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)

PATTERNS = {
    pattern.name: pattern
    for pattern in (
        PretokenPattern("gpt2", (_GPT2,)),
        PretokenPattern("starcoder", (r"\p{N}", _GPT2)),
        PretokenPattern("cl100k", _cl100k_like(_CONTRACTIONS, r"\p{N}{1,3}", r"\s+\z|")),
        PretokenPattern("llama3", _cl100k_like(_HF_CONTRACTIONS, r"\p{N}{1,3}")),
        PretokenPattern("qwen2", _cl100k_like(_HF_CONTRACTIONS, r"\p{N}")),
        PretokenPattern(
            "qwen35",
            _cl100k_like(_HF_CONTRACTIONS, r"\p{N}", word=r"[\p{L}\p{M}]", other=r"\s\p{L}\p{M}\p{N}"),
        ),
        PretokenPattern("o200k", _o200k_like(f"{_HF_CONTRACTIONS}?", r"\p{N}{1,3}")),
        PretokenPattern("tekken", _o200k_like("", r"\p{N}")),
        PretokenPattern("deepseek3", _DEEPSEEK3),
    )
}
"""`gpt2` is also r50k, p50k, GPT-NeoX and plain byte-level; `starcoder`, also of SmolLM, cuts digits out one
by one first; `cl100k` is GPT-4's; `llama3` is cl100k as Llama 3 writes it, which differs at white space with
newlines at the end of a text; `qwen2`, also of Qwen 3, is that with single digits, `qwen35` keeps marks with
letters; `o200k`, also o200k_harmony, looks at case and keeps contractions with words; `tekken` is Mistral's;
`deepseek3` is that of DeepSeek V3 and R1."""


def find_pattern(name: str | PretokenPattern) -> PretokenPattern:
    r"""Look a pattern up, or make a custom one of a regular expression.

    Args:
        name: a key of `PATTERNS`; anything with characters that names do not have is an expression. The
            expression of a known pattern gives that one. A pattern is given back.

    Raises:
        InputError: no such name, with the nearest; or no regular expression.

    Example:
        >>> find_pattern(r"\p{L}+|\P{L}+").machine() is None
        True
    """
    if isinstance(name, PretokenPattern):
        return name
    if name in PATTERNS:
        return PATTERNS[name]
    if re.fullmatch(r"[\w.-]*", name):
        near = difflib.get_close_matches(name, PATTERNS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(PATTERNS)}"
        raise InputError(f"unknown pattern {name!r}; {hint} (a regular expression has other characters too)")
    return find_splits((name,))


_noted: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
"""Custom patterns that were noted in the log."""


def find_splits(expressions: Sequence[str], byte_expressions: Sequence[str] = ()) -> PretokenPattern:
    """Find the pattern of one or more expressions, each of which cuts what the one before has left.

    Those in `byte_expressions` come last, and see each byte as its character in GPT-2's alphabet.

    A custom pattern is noted in the log, once: the machines are 10 to 100 times as fast.

    Raises:
        InputError: an expression that the `regex` package does not take.
    """
    wanted = tuple(expressions)
    for pattern in PATTERNS.values():
        if pattern.expressions == wanted and not byte_expressions:
            return pattern
    for expression in (*wanted, *byte_expressions):
        _compile(expression)
    name = wanted[0] if len(wanted) == 1 and not byte_expressions else "custom"
    if (wanted, tuple(byte_expressions)) not in _noted:
        _noted.add((wanted, tuple(byte_expressions)))
        shown = " and ".join(map(repr, (*wanted, *byte_expressions)))
        _log.warning("%s is none of pylm's own patterns: text is cut by the regex package, slowly", shown)
    return PretokenPattern(name, wanted, has_machine=False, byte_expressions=tuple(byte_expressions))


def split(pattern: str | PretokenPattern, text: str) -> list[str]:
    """Cut text by a pattern's regular expressions; see `PretokenPattern.split`."""
    return find_pattern(pattern).split(text)
