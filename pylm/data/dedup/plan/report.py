"""Plans of deduplication and how they are shown."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

from pylm.data.dedup.plan.sample import Rates
from pylm.data.dedup.signing import CorpusConfig

GB = 1e9
Recipe = TypeVar("Recipe", bound=CorpusConfig)
_OPTIONS = {
    "split_bytes": "split-mb",
    "num_partitions": "partitions",
    "verify_bytes": "verify-mb",
    "partition_bytes": "partition-mb",
}


class Range(NamedTuple):
    """The least and the most that something may be."""

    low: float
    high: float

    def times(self, low: float, high: float | None = None) -> "Range":
        """Multiply both ends."""
        return Range(self.low * low, self.high * (low if high is None else high))

    def plus(self, other: "Range") -> "Range":
        """Add two."""
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: as the display of a run has it.
        tasks: how many items it has.
        core_hours: of all tasks together.
        hours: by the clock, with the plan's workers.
        task_memory_bytes: of the largest task, process included.
        disk_bytes: of the files that it leaves for later stages.
        small_reads: parts of files that its tasks open.
    """

    name: str
    tasks: Range
    core_hours: Range
    hours: Range
    task_memory_bytes: float
    disk_bytes: Range
    small_reads: Range


@dataclass(frozen=True)
class Plan:
    """What a run over a corpus will take; `str()` gives a table.

    Attributes:
        command: that it is for: "near" or "substring".
        input_bytes: on disk.
        text_bytes: of the texts in it.
        documents: in it.
        alike: share of the texts' bytes that resemble others; of `substring`, that repeat others.
        num_workers: processes at one time.
        worker_memory_bytes: that each may take.
        settings: fields of the recipe that the plan chose, such as `split_bytes`.
        num_splits: that come of it.
        stages: in order.
        hours: of the whole run, by the clock.
        core_hours: of the whole run.
        disk_bytes: temporary, in the result's folder, at the end of the stages.
        output_bytes: of survivors and lists of what went.
        warnings: what stands in the way, or makes the plan uncertain.
        rates: what was measured.
    """

    command: str
    input_bytes: int
    text_bytes: float
    documents: float
    alike: Range
    num_workers: int
    worker_memory_bytes: int
    settings: dict[str, int]
    num_splits: int
    stages: tuple[StagePlan, ...]
    hours: Range
    core_hours: Range
    disk_bytes: Range
    output_bytes: Range
    warnings: tuple[str, ...]
    rates: Rates

    def to_dict(self) -> dict[str, Any]:
        """Give what a JSON file holds; a range is a list of two numbers."""
        return asdict(self)

    def config(self, config: Recipe) -> Recipe:
        """Give the recipe with this plan's settings."""
        return config.model_copy(update=self.settings)

    @property
    def options(self) -> str:
        """What `pylm dedup` is to be told for these settings."""
        values = {
            option: max(1, self.settings[name] >> 20) if option.endswith("mb") else self.settings[name]
            for name, option in _OPTIONS.items()
            if name in self.settings
        }
        return " ".join(f"--{option} {value}" for option, value in values.items())

    def __str__(self) -> str:
        """Give a table for people."""
        rates = self.rates
        speeds = ", ".join(
            f"{x.name} {rates.mb_s(x.name):,.0f}" for x in self.stages if rates.seconds[x.name]
        )
        lines = [
            f"input   {_size(self.input_bytes)} on disk, about {_size(self.text_bytes)} of text, "
            f"{_count(self.documents)} documents",
            f"sample  {rates.input_bytes / 1e6:,.3g} MB on disk, {100 * rates.fraction:.3g} % of the input: "
            f"{rates.found}; of the whole {_percent(self.alike)} of the text may {rates.likeness}",
            f"speed   {speeds} MB of text a second and core",
            f"with    {self.num_workers:,} workers of {self.worker_memory_bytes / GB:,.1f} GB and "
            f"{self.num_splits:,} splits; to run it: pylm dedup {self.command} ... {self.options}",
            f"time    {_span(self.hours)}, {_span(self.core_hours)} of one core",
            f"disk    {_sizes(self.disk_bytes)} temporary, {_sizes(self.output_bytes)} of result",
            "",
            f"{'stage':<8} {'tasks':>18} {'by the clock':>22} {'memory a task':>14} {'temporary disk':>19}",
        ]
        for stage in self.stages:
            tasks = count_range(stage.tasks)
            memory = f"{stage.task_memory_bytes / GB:,.1f} GB"
            disk = _sizes(stage.disk_bytes) if stage.disk_bytes.high else ""
            lines.append(
                f"{stage.name:<8} {tasks:>18} {_span(stage.hours):>22} {memory:>14} {disk:>19}".rstrip()
            )
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _count(number: float) -> str:
    for size, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"


def count_range(numbers: Range) -> str:
    """Give a range of numbers for people."""
    low, high = map(_count, numbers)
    return low if low == high else f"{low} to {high}"


def _percent(share: Range) -> str:
    low, high = (f"{100 * x:.3g}" for x in share)
    return f"{low} %" if low == high else f"{low} to {high} %"


def _size(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.3g} MB"


def _sizes(size: Range) -> str:
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB")) if size.high >= u), (1e6, "MB"))
    low, high = (f"{x / unit:,.3g}" for x in size)
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"


def _span(hours: Range) -> str:
    unit, name = next(
        ((u, n) for u, n in ((24.0, "days"), (1.0, "hours"), (1 / 60, "minutes")) if hours.high >= 2 * u),
        (1 / 3600, "seconds"),
    )
    low, high = (f"{x / unit:,.3g}" for x in hours)
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"
