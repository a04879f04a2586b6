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
    """List the steps in order, the first being what was read; empty where there is no funnel."""
    steps = record.get("steps")
    found: list[FunnelStep] = []
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, Mapping) or (num_out := number(step.get("documents"))) is None:
            continue
        dropped = step.get("dropped")
        reasons = {
            str(reason): int(count)
            for reason, value in (dropped.items() if isinstance(dropped, Mapping) else ())
            if (count := number(value)) is not None
        }
        size = number(step.get("bytes"))
        found.append(
            FunnelStep(
                name=str(step.get("name")),
                num_in=found[-1].num_out if found else int(num_out),
                num_out=int(num_out),
                reasons=reasons,
                bytes_out=None if size is None else int(size),
            )
        )
    return found
