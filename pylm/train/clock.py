"""The time that a stage has taken, over all of its attempts: a kill ends an attempt, not the count."""

import contextlib
import json
import threading
import time
from pathlib import Path

_FILE = ".clock.json"
INTERVAL_S = 1.0
"""Between two notes of the time; a killed attempt loses less than this of it."""


class StageClock:
    """Counts seconds from where the attempts before have come to, and notes them in the stage's folder.

    Use it as a context manager around the work. A thread writes the note and does not sync it to the disk: it
    outlives the process, and a crash of the machine takes some seconds of a figure.
    """

    def __init__(self, folder: Path, *, goes_on: bool) -> None:
        """Prepare the clock of one attempt.

        Args:
            folder: of the stage.
            goes_on: whether earlier attempts at the same work count.
        """
        self._folder = folder
        self._before_s = read_clock(folder) if goes_on else 0.0
        self._start_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds of this attempt and those before."""
        return self._before_s + time.monotonic() - self._start_s

    def __enter__(self) -> "StageClock":
        self._start_s = time.monotonic()
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._note()

    def remove(self) -> None:
        """Remove the note of a stage that is complete."""
        (self._folder / _FILE).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            self._note()

    def _note(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is the work's to report
            temporary = self._folder / f"{_FILE}.part"
            temporary.write_text(json.dumps({"elapsed_s": round(self.elapsed_s, 3)}), encoding="utf-8")
            temporary.replace(self._folder / _FILE)


def read_clock(folder: Path) -> float:
    """Read the seconds that the attempts at an unfinished stage have taken; 0 where nothing is noted."""
    try:
        return float(json.loads((folder / _FILE).read_text(encoding="utf-8"))["elapsed_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
