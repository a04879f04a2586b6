"""Fixtures shared by all tests."""

import signal
import sys
from pathlib import Path

import pytest

# A shell makes what it starts in the background ignore Ctrl-C; tests and their children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An editable install puts this checkout on the path, where kernels/ looks to transformers like the package of
# that name, which it would import.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data beside the checkout; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found at {SHARED_DATA}")
    return SHARED_DATA
