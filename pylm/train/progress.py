"""Live progress: a bar on a terminal, one line every ten seconds in a log."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

LOG_INTERVAL_S = 10.0


class Progress:
    """Show how far a stage is, with the values that matter."""

    def __init__(self, total: int, description: str, *, start: int = 0, enabled: bool = True) -> None:
        """Prepare a display of `total` steps, of which `start` are done.

        `enabled=False` (ranks other than 0) shows nothing.
        """
        self.total = total
        self._step = start
        self._shown: dict[str, float | int | str] = {}
        self.description = description
        self.enabled = enabled
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._last_line_s = time.monotonic()
        if enabled and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, shown="")

    def update(self, step: int, **shown: float | int | str) -> None:
        """Move to `step` finished steps and show `shown` (floats with four digits)."""
        self._step, self._shown = step, shown
        self._show(shown)

    def update_within(self, **shown: float | int | str) -> None:
        """Show how far the step at work is, before what the step before has shown."""
        self._show({**shown, **self._shown})

    def _show(self, shown: Mapping[str, float | int | str]) -> None:
        is_due = time.monotonic() - self._last_line_s >= LOG_INTERVAL_S
        if not self.enabled or (self._bar is None and not is_due):
            return
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, total=self.total, shown=text)
        else:
            self._last_line_s = time.monotonic()
            sys.stderr.write(f"{self.description} {self._step}/{self.total}  {text}\n")
            sys.stderr.flush()

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
