"""Live progress: a bar on a terminal, one line every ten seconds in a log."""

import sys
import time
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

    def __init__(self, total: int, description: str, *, enabled: bool = True) -> None:
        """Prepare a display of `total` steps; `enabled=False` (ranks other than 0) shows nothing."""
        self.total = total
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
            self._task = self._bar.add_task(description, total=total, shown="")

    def update(self, step: int, **shown: float | int | str) -> None:
        """Move to `step` finished steps and show `shown` (floats with four digits)."""
        if not self.enabled:
            return
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=self.total, shown=text)
        elif time.monotonic() - self._last_line_s >= LOG_INTERVAL_S:
            self._last_line_s = time.monotonic()
            sys.stderr.write(f"{self.description} {step}/{self.total}  {text}\n")
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
