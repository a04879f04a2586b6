"""The funnel: what each step of a preparation left, and what it dropped for which reason.

The counts add up: what is left after a step is what the step before left less the step's drops, for
documents and for bytes. (Rows that the reader set aside are counted as read, and dropped by `read`; the
first step that lists what is left after them is `filter`.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

STEPS = ("read", "filter", "exact duplicates", "near duplicates", "held out", "held-out overlap")
"""Of a preparation."""
_ORDER = (*STEPS[:4], "in the index", "repeated substrings", *STEPS[4:])

SAMPLES_PER_REASON = 3
SAMPLE_CHARACTERS = 200
SHOWN_REASONS = 3

Key = tuple[str, str, str]
"""Step, reason, source."""


@dataclass(frozen=True)
class Drop:
    """Documents that one step dropped for one reason."""

    step: str
    reason: str
    source: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class FunnelStep:
    """What is left after a step."""

    name: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class Funnel:
    """Counts of a preparation: `steps` in order, each with what it left, and `drops` with their reasons."""

    steps: tuple[FunnelStep, ...]
    drops: tuple[Drop, ...]

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Give the content of funnel.json."""
        return {"steps": [asdict(x) for x in self.steps], "drops": [asdict(x) for x in self.drops]}


@dataclass
class Tally:
    """Counts and samples of drops."""

    documents: Counter[Key] = field(default_factory=Counter)
    sizes: Counter[Key] = field(default_factory=Counter)
    samples: dict[Key, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, key: Key, *, size_bytes: int, place: str, text: str) -> None:
        """Count one drop; keep the first few of each kind as samples."""
        self.documents[key] += 1
        self.sizes[key] += size_bytes
        samples = self.samples.setdefault(key, [])
        if len(samples) < SAMPLES_PER_REASON:
            samples.append((place, text[:SAMPLE_CHARACTERS]))

    def add_documents(self, step: str, reasons: Iterable[str], documents: pa.Table) -> None:
        """Count documents that a step dropped, each with its reason."""
        sizes = pc.binary_length(documents["text"]).to_pylist()
        ids, sources = documents["id"].to_pylist(), documents["source"].to_pylist()
        for index, reason in enumerate(reasons):
            key = (step, reason, sources[index])
            is_sample = len(self.samples.get(key, ())) < SAMPLES_PER_REASON
            text = documents["text"][index].as_py() if is_sample else ""
            self.add(key, size_bytes=sizes[index], place=ids[index], text=text)

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists for JSON."""
        rows = [
            [*key, self.documents[key], self.sizes[key], self.samples[key]] for key in sorted(self.documents)
        ]
        return {"drops": rows}

    def merge(self, saved: Mapping[str, Any]) -> None:
        """Add what `to_dict` gave; samples come after those that are there."""
        for step, reason, source, documents, size, samples in saved["drops"]:
            key = (step, reason, source)
            self.documents[key] += documents
            self.sizes[key] += size
            known = self.samples.setdefault(key, [])
            known += [(place, text) for place, text in samples[: SAMPLES_PER_REASON - len(known)]]

    def keys(self) -> list[Key]:
        """List what was counted in the order of the steps."""
        return sorted(self.documents, key=lambda key: (_ORDER.index(key[0]), *key))

    def drops(self) -> tuple[Drop, ...]:
        """List all drops in the order of the steps."""
        return tuple(Drop(*key, self.documents[key], self.sizes[key]) for key in self.keys())

    def sample_rows(self) -> Sequence[dict[str, str]]:
        """List the samples in the order of the steps, as dropped.jsonl has them."""
        return [
            {"step": key[0], "reason": key[1], "source": key[2], "id": place, "text": text}
            for key in self.keys()
            for place, text in self.samples[key]
        ]


def format_funnel(funnel: Funnel) -> str:
    """Show a row for each step: what it removed, with the most frequent reasons, and what it left.

    What could not be read is counted with the first step after reading.
    """
    table: list[tuple[str, ...]] = [("", "removed", "share", "left", "megabytes", "")]
    num_before = funnel.steps[0].documents if funnel.steps else 0
    waiting: Counter[str] = Counter()
    for place, step in enumerate(funnel.steps):
        for drop in funnel.drops:
            if drop.step == step.name:
                waiting[drop.reason] += drop.documents
        removed, share, reasons = "", "", ""
        if place:
            num_removed = num_before - step.documents
            removed, share = f"{num_removed:,}", f"{num_removed / num_before:.1%}" if num_before else ""
            named = [f"{reason} {count:,}" for reason, count in waiting.most_common() if reason != step.name]
            reasons = ", ".join(named[:SHOWN_REASONS]) + (", ..." if len(named) > SHOWN_REASONS else "")
            waiting.clear()
        table.append((step.name, removed, share, f"{step.documents:,}", f"{step.bytes / 1e6:.2f}", reasons))
        num_before = step.documents
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells, reasons in table:
        shown = [name.ljust(widths[0])]
        shown += [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)]
        lines.append("  ".join([*shown, reasons]).rstrip())
    return "\n".join(lines)
