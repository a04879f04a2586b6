"""Rule sets over quality signals: pure functions from documents to reasons for dropping them.

Thresholds of the sets for prose are those of their sources as datatrove applies them; `code` follows what
The Stack and StarCoder do with source files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.text import signals


@dataclass(frozen=True)
class Rule:
    """Bounds of one signal; a document outside is dropped for the reason `SET/SIGNAL`."""

    signal: str
    at_least: float = -np.inf
    at_most: float = np.inf

    def fails(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which documents (num_docs,) are out of bounds; a value that is not a number is within."""
        return (values < self.at_least) | (values > self.at_most)


RULES: dict[str, tuple[Rule, ...]] = {
    # Rae et al., 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", A.1.1.
    "gopher_quality": (
        Rule("num_words", at_least=50, at_most=100_000),
        Rule("mean_word_length", at_least=3, at_most=10),
        Rule("hash_word_ratio", at_most=0.1),
        Rule("ellipsis_word_ratio", at_most=0.1),
        Rule("bullet_line_ratio", at_most=0.9),
        Rule("ellipsis_line_ratio", at_most=0.3),
        Rule("alpha_word_ratio", at_least=0.8),
        Rule("num_stop_words", at_least=2),
    ),
    "gopher_repetition": (
        Rule("duplicate_line_ratio", at_most=0.3),
        Rule("duplicate_paragraph_ratio", at_most=0.3),
        Rule("duplicate_line_char_ratio", at_most=0.2),
        Rule("duplicate_paragraph_char_ratio", at_most=0.2),
        *(Rule(f"top_{n}gram_char_ratio", at_most=x) for n, x in ((2, 0.20), (3, 0.18), (4, 0.16))),
        *(
            Rule(f"duplicate_{n}gram_char_ratio", at_most=x)
            for n, x in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
        ),
    ),
    # Penedo et al., 2024, "The FineWeb Datasets", section 3.6.
    "fineweb": (
        Rule("line_punctuation_ratio", at_least=0.12),
        Rule("short_line_ratio", at_most=0.67),
        Rule("duplicate_nonblank_line_char_ratio", at_most=0.01),
        Rule("newline_word_ratio", at_most=0.3),
    ),
    # Kocetkov et al., 2022, "The Stack", section 3; Li et al., 2023, "StarCoder", section 3.
    "code": (
        Rule("num_chars", at_least=100, at_most=1_000_000),
        Rule("max_line_length", at_most=1000),
        Rule("mean_line_length", at_most=100),
        Rule("alphanumeric_ratio", at_least=0.25),
    ),
}
"""Rules of each set, in the order in which reasons are given."""


def drop_reasons(documents: pa.RecordBatch, names: Sequence[str]) -> pa.StringArray:
    """Say why each document fails some rule sets.

    Args:
        documents: with the column `text`.
        names: keys of `RULES`.

    Returns:
        One string a document: the first rule that it breaks, as `SET/SIGNAL`; null where it passes all.

    Raises:
        InputError: a name that is no rule set.
    """
    if unknown := [name for name in names if name not in RULES]:
        raise InputError(f"no filter {unknown[0]!r}; there are {', '.join(RULES)}")
    rules = [(name, rule) for name in names for rule in RULES[name]]
    reasons = np.full(len(documents), None, dtype=object)
    passes = np.full(len(documents), True)
    if rules and len(documents):
        wanted = tuple(dict.fromkeys(rule.signal for _, rule in rules))
        values = signals.compute(documents["text"], names=wanted)
        for name, rule in rules:
            numbers = values[rule.signal].to_numpy(zero_copy_only=False).astype(np.float64)
            fails = passes & rule.fails(numbers)
            reasons[fails] = f"{name}/{rule.signal}"
            passes &= ~fails
    return pa.array(reasons, pa.string())
