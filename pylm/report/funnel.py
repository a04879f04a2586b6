"""Read `prepare/funnel.json`: what each step of preparation took in, kept and dropped."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pylm.report.run_folder import Record, number


@dataclass(frozen=True)
class FunnelStep:
    """One step.

    Attributes:
        name: the step.
        num_in, num_out: documents before and after.
        reasons: documents dropped by reason.
        bytes_out: UTF-8 bytes of what was kept; None where not counted.
    """

    name: str
    num_in: int
    num_out: int
    reasons: Mapping[str, int]
    bytes_out: int | None


def read_funnel(record: Record) -> list[FunnelStep]:
    """List the steps in order, the first being what was read; empty where there is no funnel.

    What the first step dropped (rows that could not be read) is counted with the second.
    """
    steps = record.get("steps")
    reasons = _count_reasons(record)
    found: list[FunnelStep] = []
    waiting: Counter[str] = Counter()
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, Mapping) or (num_out := number(step.get("documents"))) is None:
            continue
        name, size = str(step.get("name")), number(step.get("bytes"))
        waiting += reasons.get(name, Counter())
        found.append(
            FunnelStep(
                name=name,
                num_in=found[-1].num_out if found else int(num_out),
                num_out=int(num_out),
                reasons=dict(waiting) if found else {},
                bytes_out=None if size is None else int(size),
            )
        )
        if len(found) > 1:
            waiting = Counter()
    return found


def _count_reasons(record: Record) -> dict[str, Counter[str]]:
    """Add up the drops of all sources by step and reason."""
    drops = record.get("drops")
    reasons: dict[str, Counter[str]] = {}
    for drop in drops if isinstance(drops, list) else []:
        if isinstance(drop, Mapping) and (count := number(drop.get("documents"))) is not None:
            reasons.setdefault(str(drop.get("step")), Counter())[str(drop.get("reason"))] += int(count)
    return reasons
