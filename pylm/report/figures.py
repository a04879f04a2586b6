"""Figures that several sections quote, read from a run's evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass

from pylm.eval.compare import Estimate, bootstrap_ratio_difference, paired_difference
from pylm.report.run_folder import TRAINED, Record, RunFolder, child, number


@dataclass(frozen=True)
class Metric:
    """One line of the evaluation.

    Attributes:
        name: what is measured.
        note: on what, in small print.
        key: its name in `eval/STAGE.json`.
        is_share: whether it is a share (else bits per byte).
    """

    name: str
    note: str
    key: str
    is_share: bool = True


METRICS = (
    Metric("Bits per byte", "held-out documents; less is better", "bits_per_byte", is_share=False),
    Metric("Asked format", "held-out instructions", "format"),
    Metric("Right answer", "held-out instructions", "exact_match"),
    Metric("Arithmetic right", "held-out problems", "arithmetic"),
    Metric("Better answer likelier", "held-out pairs, no reference", "preference"),
)
BITS, FORMAT, EXACT, ARITHMETIC, PREFERENCE = METRICS


def read_estimate(record: Record) -> Estimate | None:
    """Read a figure with its interval."""
    value = number(record.get("value"))
    if value is None:
        return None
    low, high = number(record.get("low")), number(record.get("high"))
    return Estimate(value, value if low is None else low, value if high is None else high)


def estimate_of(run: RunFolder, stage: str, metric: Metric) -> Estimate | None:
    """Return a metric of a stage, or None where it was not measured."""
    return read_estimate(child(run.evaluations.get(stage, {}), metric.key))


def count_of(run: RunFolder, stage: str, metric: Metric) -> int | None:
    """Return the number of items behind a share."""
    total = number(child(run.evaluations.get(stage, {}), metric.key).get("num_total"))
    return None if total is None else int(total)


def change_of(run: RunFolder, before: str, after: str, metric: Metric) -> Estimate | None:
    """Bound the change of a metric between two stages over the items that both have."""
    first, second = (child(run.evaluations.get(stage, {}), metric.key) for stage in (before, after))
    if not metric.is_share:
        return _change_of_bits(first, second)
    outcomes = []
    for record in (first, second):
        value = record.get("outcomes")
        if not isinstance(value, str):
            return None
        outcomes.append([character == "1" for character in value])
    if len(outcomes[0]) != len(outcomes[1]) or not outcomes[0]:
        return None
    return paired_difference(outcomes[0], outcomes[1])


def _change_of_bits(first: Record, second: Record) -> Estimate | None:
    before, after = _documents(first), _documents(second)
    common = [key for key in after if key in before and after[key][1] == before[key][1] > 0]
    if not common:
        return None
    return bootstrap_ratio_difference(
        [before[key][0] for key in common],
        [after[key][0] for key in common],
        [after[key][1] for key in common],
    )


def _documents(record: Record) -> dict[str, tuple[float, float]]:
    documents = record.get("documents")
    found = {}
    for document in documents if isinstance(documents, list) else []:
        if isinstance(document, Mapping):
            bits, num_bytes = number(document.get("bits")), number(document.get("num_bytes"))
            if bits is not None and num_bytes is not None:
                found[str(document.get("id"))] = (bits, num_bytes)
    return found


def evaluated_stages(run: RunFolder) -> list[str]:
    """List the stages that have an evaluation, in order."""
    return [stage for stage in TRAINED if stage in run.evaluations]


def stage_before(run: RunFolder, stage: str) -> str | None:
    """Return the evaluated stage before `stage`."""
    earlier = [name for name in evaluated_stages(run) if TRAINED.index(name) < TRAINED.index(stage)]
    return earlier[-1] if earlier else None


def arithmetic_baseline(run: RunFolder, stage: str) -> str | None:
    """Return the stage that a gain in arithmetic counts from: SFT if evaluated, else the one before."""
    earlier = evaluated_stages(run)
    earlier = earlier[: earlier.index(stage)] if stage in earlier else []
    return "sft" if "sft" in earlier else stage_before(run, stage)


def last_value(run: RunFolder, stage: str, names: tuple[str, ...]) -> float | None:
    """Return the last recorded value of the first of `names` that a stage's metrics have."""
    for name in names:
        for record in reversed(run.metrics.get(stage, ())):
            value = number(record.get(name))
            if value is not None:
                return value
    return None
