"""The pre-tokenization patterns by name: for the machine in C++, and as regular expressions for others."""

import difflib
from dataclasses import dataclass

from pylm import _core
from pylm.errors import InputError

_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
_HF_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


@dataclass(frozen=True)
class PretokenPattern:
    """One way of cutting text into pieces.

    Attributes:
        name: key in `PATTERNS`.
        expression: the pattern for Oniguruma and the `regex` package; `tokenizer.json` carries it.
        gpt2: whether the machine takes GPT-2's alternatives.
        max_digits: most digits of a piece; unused for GPT-2.
        trailing_space_whole: white space at the end of a text is one piece.
    """

    name: str
    expression: str
    gpt2: bool = False
    max_digits: int = 3
    trailing_space_whole: bool = True

    def machine(self) -> _core.Pattern:
        """Give the machine's settings."""
        return _core.Pattern(
            gpt2=self.gpt2, max_digits=self.max_digits, trailing_space_whole=self.trailing_space_whole
        )


def _cl100k_like(contractions: str, digits: str, trailing: str) -> str:
    return (
        contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + trailing
        + r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        PretokenPattern(
            "gpt2", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", gpt2=True
        ),
        PretokenPattern("cl100k", _cl100k_like(_CONTRACTIONS, r"\p{N}{1,3}", r"\s+\z|")),
        PretokenPattern(
            "llama3", _cl100k_like(_HF_CONTRACTIONS, r"\p{N}{1,3}", ""), trailing_space_whole=False
        ),
        PretokenPattern(
            "qwen2", _cl100k_like(_HF_CONTRACTIONS, r"\p{N}", ""), max_digits=1, trailing_space_whole=False
        ),
    )
}
"""`gpt2` is r50k/p50k; `cl100k` is GPT-4's; `llama3` is cl100k as Llama 3 writes it, which differs at white
space with newlines at the end of a text; `qwen2` is that with single digits."""


def find_pattern(name: str) -> PretokenPattern:
    """Look a pattern up.

    Raises:
        InputError: no such pattern; names the nearest.
    """
    if name not in PATTERNS:
        near = difflib.get_close_matches(name, PATTERNS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(PATTERNS)}"
        raise InputError(f"unknown pattern {name!r}; {hint}")
    return PATTERNS[name]
