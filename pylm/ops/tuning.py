"""Letting kernels be tuned on the GPU at hand."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pylm.errors import InputError
from pylm.ops._library import check_flag

_VARIABLE = "PYLM_AUTOTUNE"


@contextmanager
def autotune(enabled: bool = True) -> Iterator[None]:
    """Time other configurations of the kernels in this block, and take the fastest from then on.

    Without it the ops take the configurations that are in the code, and never wait. In the block the first
    launch of a kernel for a class of shapes compiles and times a few others, which takes seconds, and waits
    for the GPU; the choice is kept in `$XDG_CACHE_HOME/pylm/autotune` (~/.cache), by device, versions of
    torch and triton, kernel and class: sizes by their powers of two, rows by powers of four. What is on disk
    is not timed again. After the block what was found stays in use, and nothing is timed.

    All configurations add up in the same order: results have the same bits with and without. So a GPU may
    choose what another of the same run does not.

    Nothing is timed while a CUDA graph is captured or torch.compile traces; what is known is used. The
    switch is that of the process, as the backward pass runs in threads of its own. `PYLM_AUTOTUNE=1` in the
    environment is a block around everything.

    Args:
        enabled: False keeps the block from timing anything, where a block or the environment around it would.

    Raises:
        InputError: `enabled` is neither True nor False.

    Example:
        >>> with autotune():
        ...     seconds = warmup(dim=64, vocab_size=100, num_tokens=32, device="cpu")
    """
    check_flag("autotune", enabled=enabled)
    state = _state()
    before = state.set(enabled)
    try:
        yield
    finally:
        state.set(before)


def _state() -> Any:
    """Return the switch, from the one kernel module that imports no triton."""
    return importlib.import_module("pylm.kernels._autotune").STATE


def _read_environment() -> None:
    value = os.environ.get(_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{_VARIABLE} must be 0 or 1, got {value!r}; 1 times the kernels, 0 does not")
    if value == "1":
        _state().set(True)


_read_environment()
