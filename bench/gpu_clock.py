"""When a benchmark began: imported before torch, as the seconds of that import count as well."""

import time

STARTED = time.perf_counter()


class Clock:
    """How much is left of the seconds that a program, or a part of it, was given."""

    def __init__(self, seconds: float, *, since: float | None = None) -> None:
        self._end = (time.perf_counter() if since is None else since) + seconds

    def left(self) -> float:
        """Return the seconds that are left, negative when they are over."""
        return self._end - time.perf_counter()
