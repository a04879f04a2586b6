"""Ctrl-C ends calls of the C++ core that would take hours, and not only what comes after them."""

import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest

from pylm.text import dedup, signals


class StopError(Exception):
    """What the handler raises, so that a test cannot take another interrupt for its own."""


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Call a function, and deliver SIGINT a quarter of a second later."""

    def stop(*_: object) -> None:
        raise StopError

    timer = threading.Timer(0.25, signal.raise_signal, [signal.SIGINT])

    def run(function: Callable[[], object]) -> None:
        timer.start()
        function()

    before = signal.signal(signal.SIGINT, stop)
    yield run
    timer.join()
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def terabytes() -> pa.Array:
    """Two million texts, which all lie in the same two megabytes."""
    data = (b"One more sentence of a text that goes on and on; number %d.\n" * 35_000)[: 2 << 20]
    views = np.zeros((2_000_000, 4), "<i4")  # size, first four bytes, buffer, offset
    views[:, 0] = len(data) - np.arange(len(views)) % (1 << 20)
    views[:, 1] = np.frombuffer(data[:4], "<i4")
    buffers = [None, pa.py_buffer(views), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string_view(), len(views), buffers)


CALLS: dict[str, Callable[[pa.Array, int], object]] = {
    "exact": lambda texts, threads: dedup.exact(texts, num_threads=threads),
    "near": lambda texts, threads: dedup.near(texts, num_threads=threads),
    "hash_texts": lambda texts, threads: dedup.hash_texts(texts, num_threads=threads),
    "signals": lambda texts, threads: signals.compute(texts, num_threads=threads),
}


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_long_calls_end(
    call: Callable[[pa.Array, int], object],
    num_threads: int,
    terabytes: pa.Array,
    interrupted: Callable[[Callable[[], object]], None],
) -> None:
    with pytest.raises(StopError):
        interrupted(lambda: call(terabytes, num_threads))
    assert dedup.exact(["a b", "c", "a b"]).tolist() == [0, 1, 0], "what comes after is not"


def test_calls_in_other_threads_go_on(interrupted: Callable[[Callable[[], object]], None]) -> None:
    """Python hands signals to the main thread alone."""
    text = b"".join(b"line %d\n" % i for i in range(1_000_000))
    found: list[bool] = []
    worker = threading.Thread(target=lambda: found.append(len(dedup.suffix_array(text)) == len(text)))

    def start_and_wait() -> None:
        worker.start()
        while True:
            time.sleep(0.01)

    with pytest.raises(StopError):
        interrupted(start_and_wait)
    worker.join()
    assert found == [True]
