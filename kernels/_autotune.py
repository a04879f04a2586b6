"""Which configuration of a kernel is the fastest here: timed once, kept on disk. Off unless asked for.

A start that can be tuned knows other configurations of its kernel beside the checked-in one. They differ in
what work a program takes and in how far ahead it loads, never in the order in which anything is added up, so
all give the same bits, and it does not matter what is chosen, nor when, nor by which of several processes.
"""

import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

# What is slower than this share of the checked-in configuration's time is not worth another kernel.
_SHARE = 0.98
_ROUNDS = 9
# Longer than the host takes for a call, so that what is timed is not the host.
_BUSY_CYCLES = 200_000

Call = Callable[[], object]


class State:
    """Whether anything is tuned in this process: the backward pass runs in threads of its own."""

    def __init__(self) -> None:
        self.is_used = False
        """Starts look for what was chosen; true for ever once anything was to be measured."""
        self.measures = False
        """Starts that find nothing measure."""
        self.epoch = 0
        """What a start found out before another one began is void."""

    def set(self, measures: bool) -> bool:
        """Begin or end to measure; return what it was."""
        before, self.measures = self.measures, measures
        if measures and not before:
            self.is_used, self.epoch = True, self.epoch + 1
        return before


class Choice(NamedTuple):
    """What was found for one kernel and class of shapes."""

    about: dict[str, Any]
    """Kernel, device, versions, dtypes, sizes and configurations; what it is found by."""
    ms: dict[str, float]
    """The median of each configuration that fits the device."""
    name: str
    """The configuration to take."""


STATE = State()
_lock = threading.RLock()
_choices: dict[str, Choice] = {}


def choices() -> list[Choice]:
    """Return what was found in this process or by it on disk."""
    return list(_choices.values())


def forget() -> None:
    """Forget what this process has found; what is on disk stays."""
    _choices.clear()
    STATE.epoch += 1


def describe_device(device: torch.device) -> str:
    """Return the name of a device by which its choices are kept; equal devices share them."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    numbers = properties.major, properties.minor, properties.multi_processor_count
    return f"{properties.name} {'.'.join(map(str, numbers))}"


def may_measure(device: torch.device) -> bool:
    """Return whether this is a moment to wait for the device: no graph is captured, nothing is traced."""
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def choose(
    about: dict[str, Any], calls: Mapping[str, Call], device: torch.device, *, may_measure: bool
) -> str | None:
    """Return which of the calls to prefer: known, from disk, or timed now; the first is the checked-in one.

    Args:
        about: all that the choice depends on, as JSON has it, but for the device and the names of the calls.
        calls: the same work in every configuration.
        device: where it is done, the current device.
        may_measure: that they may be timed; otherwise only what this process knows counts, or None.
    """
    about = {**about, "device": describe_device(device), "torch": torch.__version__, "names": list(calls)}
    key = json.dumps(about, sort_keys=True)
    choice = _choices.get(key)
    if choice is None and may_measure:
        # One at a time: they would slow each other down.
        with _lock:
            choice = _choices.get(key)
            if choice is None:
                choice = _choices[key] = _find(_path(key), about, calls, device)
    return None if choice is None else choice.name


def _find(
    path: Path | None, about: dict[str, Any], calls: Mapping[str, Call], device: torch.device
) -> Choice:
    choice = _read(path, about)
    if choice is None:
        ms = measure(calls, device)
        checked_in, best = next(iter(calls)), min(ms, key=lambda name: ms[name])
        is_better = checked_in not in ms or ms[best] < _SHARE * ms[checked_in]
        choice = Choice(about, ms, best if is_better else checked_in)
        _write(path, choice)
    return choice


def measure(calls: Mapping[str, Call], device: torch.device) -> dict[str, float]:
    """Return the median of each call in milliseconds, one after the other in every round.

    Those that need more than the device has are left out. Between CUDA events, the L2 cache written over
    before each; by the clock of the host where there is no GPU.
    """
    from triton.runtime.errors import OutOfResources

    fitting = {}
    for name, call in calls.items():
        try:
            call()
            call()
        except OutOfResources:
            continue
        fitting[name] = call
    is_cuda = device.type == "cuda"
    times: dict[str, list[float]] = {name: [] for name in fitting}
    size = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    flush = torch.empty(2 * size, dtype=torch.int8, device=device)
    for _ in range(_ROUNDS if is_cuda else 1):
        for name, call in fitting.items():
            times[name].append(_time_on_gpu(call, flush) if is_cuda else _time_on_host(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _time_on_gpu(call: Call, flush: torch.Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(_BUSY_CYCLES)
    begin.record()
    call()
    end.record()
    end.synchronize()
    elapsed_ms: float = begin.elapsed_time(end)
    return elapsed_ms


def _time_on_host(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def folder() -> Path | None:
    """Return where choices are kept: pylm/autotune in `XDG_CACHE_HOME` or ~/.cache; None without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # is to be ignored, says the specification
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "pylm" / "autotune"


def _path(key: str) -> Path | None:
    place = folder()
    return None if place is None else place / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path | None, about: dict[str, Any]) -> Choice | None:
    """Return a choice that was kept; None for a file that is not there, or not of this program."""
    if path is None:
        return None
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or kept.get("about") != about or kept.get("name") not in about["names"]:
        return None
    ms = kept.get("ms")
    is_whole = isinstance(ms, dict) and all(isinstance(value, float) for value in ms.values())
    return Choice(about, ms, kept["name"]) if is_whole else None


def _write(path: Path | None, choice: Choice) -> None:
    """Keep a choice. A file appears whole, and of several processes the last one's stays."""
    try:
        if path is None:
            raise FileNotFoundError("there is no home directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(choice._asdict(), file, indent=1)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        warnings.warn(
            f"pylm.ops.autotune: what was timed is not kept for other processes: {error}; "
            "set XDG_CACHE_HOME to a folder that can be written to",
            stacklevel=2,
        )
