"""Read `prepare/funnel.json`: what each step of preparation took in, kept and dropped."""

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
    """List the steps in order; empty where there is no funnel."""
    steps = record.get("steps")
    found = []
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, Mapping):
            continue
        num_in, num_out = number(step.get("documents_in")), number(step.get("documents_out"))
        if num_in is None or num_out is None:
            continue
        dropped = step.get("dropped")
        reasons = {
            str(reason): int(count)
            for reason, value in (dropped.items() if isinstance(dropped, Mapping) else ())
            if (count := number(value)) is not None
        }
        size = number(step.get("bytes_out"))
        found.append(
            FunnelStep(
                str(step.get("step")), int(num_in), int(num_out), reasons, None if size is None else int(size)
            )
        )
    return found
