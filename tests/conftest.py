"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

# A shell makes what it starts in the background ignore Ctrl-C; tests and their children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Test processes that run side by side share the cores; this must be set before torch is loaded.
if num_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data beside the checkout; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found at {SHARED_DATA}")
    return SHARED_DATA
