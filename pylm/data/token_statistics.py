"""What token shards hold: counts and ratios by source and by language."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pylm.files import read_json, write_json

STATISTICS = "statistics.json"

FORMAT = 1
"""Raised when statistics.json changes its meaning."""


@dataclass(frozen=True)
class TokenCounts:
    """Counts of some documents.

    Attributes:
        num_docs: documents.
        num_tokens: ids, one end of text a document included.
        num_bytes: UTF-8 bytes of text.
        num_words: words, as white space separates them, which says little in Chinese or Thai.
    """

    num_docs: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_words: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text a token stands for, ends of text not counted; 0 without tokens."""
        num_text_tokens = self.num_tokens - self.num_docs
        return self.num_bytes / num_text_tokens if num_text_tokens else 0.0

    @property
    def tokens_per_byte(self) -> float:
        """Tokens a byte of text takes, ends of text not counted; 0 without bytes."""
        return (self.num_tokens - self.num_docs) / self.num_bytes if self.num_bytes else 0.0

    @property
    def tokens_per_word(self) -> float:
        """Fertility: tokens a word takes, ends of text not counted; 0 without words."""
        return (self.num_tokens - self.num_docs) / self.num_words if self.num_words else 0.0

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        """Add the counts of other documents."""
        return TokenCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(TokenCounts)))

    def counts(self) -> dict[str, int]:
        """Give the counts alone, which make the same object again."""
        return {f.name: getattr(self, f.name) for f in fields(TokenCounts)}

    def to_dict(self) -> dict[str, int | float]:
        """Give counts and ratios."""
        return {
            **asdict(self),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "tokens_per_byte": round(self.tokens_per_byte, 4),
            "tokens_per_word": round(self.tokens_per_word, 4),
        }


Counts = TypeVar("Counts", bound=TokenCounts)

IdCount = tuple[int, int]
"""An id and how often it occurs."""

_NUM_LISTED = 20
_RARE_BELOW = 100


@dataclass(frozen=True)
class ShardStats(TokenCounts):
    """What tokenizing a source, or all of them, gave.

    Attributes:
        num_used: different ids that occur.
        vocab_size: ids there are.
    """

    num_used: int = 0
    vocab_size: int = 1

    @property
    def num_unused(self) -> int:
        """Ids that never occur."""
        return self.vocab_size - self.num_used

    @property
    def vocab_used(self) -> float:
        """Share of the vocabulary that occurs."""
        return self.num_used / self.vocab_size

    def to_dict(self) -> dict[str, int | float]:
        """Give counts and ratios for a stage's summary."""
        return {
            **super().to_dict(),
            "num_unused": self.num_unused,
            "vocab_used": round(self.vocab_used, 4),
        }


@dataclass(frozen=True)
class IdUse:
    """Which ids occur often, seldom and never. At most 20 are listed of each.

    Attributes:
        top: the most frequent ids and their counts, the most frequent first, equals by id.
        rarest: the rarest of the ids that occur, the rarest first, equals by id.
        unused: the first ids that never occur.
        num_once: ids that occur once.
        num_rare: ids that occur at all, but fewer than 100 times.
    """

    top: tuple[IdCount, ...] = ()
    rarest: tuple[IdCount, ...] = ()
    unused: tuple[int, ...] = ()
    num_once: int = 0
    num_rare: int = 0

    @classmethod
    def of(cls, counts_V: NDArray[np.int64]) -> "IdUse":
        """Look at how often each id occurs."""
        used = np.flatnonzero(counts_V)

        def listed(order: NDArray[np.intp]) -> tuple[IdCount, ...]:
            ids = used[order[:_NUM_LISTED]]
            return tuple(zip(ids.tolist(), counts_V[ids].tolist(), strict=True))

        return cls(
            top=listed(np.argsort(-counts_V[used], kind="stable")),
            rarest=listed(np.argsort(counts_V[used], kind="stable")),
            unused=tuple(np.flatnonzero(counts_V == 0)[:_NUM_LISTED].tolist()),
            num_once=int(np.count_nonzero(counts_V == 1)),
            num_rare=int(np.count_nonzero((counts_V > 0) & (counts_V < _RARE_BELOW))),
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "IdUse":
        """Make it from what statistics.json holds."""
        lists = {name: tuple((int(i), int(n)) for i, n in value[name]) for name in ("top", "rarest")}
        unused = tuple(int(i) for i in value["unused"])
        return cls(**lists, unused=unused, num_once=int(value["num_once"]), num_rare=int(value["num_rare"]))


@dataclass(frozen=True)
class SplitStats:
    """What tokenizing one file of documents gave.

    Attributes:
        total: of all documents.
        sources: by source, sorted by name.
        languages: by language, sorted by name, of the documents that say theirs.
        ids: frequent, rare and unused ids of all documents.
    """

    total: ShardStats
    sources: Mapping[str, ShardStats]
    languages: Mapping[str, TokenCounts]
    ids: IdUse

    def save(self, path: Path) -> None:
        """Write a statistics.json."""
        value = {
            "format": FORMAT,
            "total": self.total.to_dict(),
            "sources": {name: s.to_dict() for name, s in self.sources.items()},
            "languages": {name: c.to_dict() for name, c in self.languages.items()},
            "ids": asdict(self.ids),
        }
        write_json(path, value)

    @classmethod
    def load(cls, path: Path) -> "SplitStats | None":
        """Read a statistics.json again; None where there is none of this format."""
        try:
            saved = read_json(path)
            if saved["format"] != FORMAT:
                return None
            return cls(
                _from_dict(ShardStats, saved["total"]),
                {name: _from_dict(ShardStats, value) for name, value in saved["sources"].items()},
                {name: _from_dict(TokenCounts, value) for name, value in saved["languages"].items()},
                IdUse.from_dict(saved["ids"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _from_dict(kind: type[Counts], value: Mapping[str, Any]) -> Counts:
    return kind(**{field.name: int(value[field.name]) for field in fields(kind)})


def count_groups(
    groups_D: NDArray[np.int64],
    names: Sequence[str],
    *,
    tokens_D: NDArray[np.int64],
    bytes_D: NDArray[np.int64],
    words_D: NDArray[np.int64],
) -> dict[str, TokenCounts]:
    """Add up counts of documents (D,) by group; `groups_D` are places in `names`, -1 for none."""
    sums = np.zeros((len(names) + 1, 4), np.int64)
    for column, values_D in enumerate((np.ones_like(groups_D), tokens_D, bytes_D, words_D)):
        np.add.at(sums[:, column], groups_D, values_D)  # -1 falls into the last row
    return {name: TokenCounts(*map(int, row)) for name, row in zip(names, sums[:-1], strict=True)}


def format_table(splits: Mapping[str, SplitStats]) -> str:
    """Show splits in a row each, with rows for sources, where there are several, and languages."""
    rows: list[tuple[str, ...]] = [
        ("", "documents", "tokens", "tokens/word", "bytes/token", "ids used", "unused")
    ]
    for split, stats in splits.items():
        rows.append(_row(split, stats.total))
        if len(stats.sources) > 1:
            rows += [_row(f"  {name}", counts) for name, counts in stats.sources.items()]
        rows += [_row(f"  language {name}", counts) for name, counts in stats.languages.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        shown = [name.ljust(widths[0])]
        shown += [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)


def _row(name: str, counts: TokenCounts) -> tuple[str, ...]:
    used = ("", "")
    if isinstance(counts, ShardStats):
        used = (f"{counts.vocab_used:.1%}", f"{counts.num_unused:,}")
    return (
        name,
        f"{counts.num_docs:,}",
        f"{counts.num_tokens:,}",
        f"{counts.tokens_per_word:.3f}",
        f"{counts.bytes_per_token:.3f}",
        *used,
    )
