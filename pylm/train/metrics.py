"""Metrics as JSON lines: one object a step, never two lines for one step, also after a kill."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from pylm.errors import InputError
from pylm.files import atomic_path

MetricValue = float | int | bool | str | None


class Metrics:
    """Append-only log of a run.

    Lines are flushed one by one. A resumed run first cuts what lies at or past the step that it goes
    on with (and a half-written last line), so the file reads as if the run had never been broken.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        """Open the log, keeping the records of steps before `resume_step`.

        Args:
            path: the file.
            resume_step: first step that will be written.
            enabled: False on ranks other than 0, which write nothing.
        """
        self._file = None
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [x for x in read_metrics(path) if int(x["step"] or 0) < resume_step] if path.exists() else []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(_line(x) for x in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **values: MetricValue) -> None:
        """Append the record of one step."""
        if self._file is not None:
            self._file.write(_line({"step": step, **values}))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(record: Mapping[str, MetricValue]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite) + "\n"


def read_metrics(path: Path) -> list[dict[str, float | int | bool | str | None]]:
    """Read a metrics file; a half-written last line (a killed process) is left out.

    Raises:
        InputError: a line, other than a half-written last one, is not a JSON object with a step.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            if number == len(lines):
                break
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise InputError(
                f"{path}:{number}: expected a JSON object with a step, got {str(line[:60])[1:]}; "
                "restore the file or remove it"
            )
        records.append(record)
    return records
