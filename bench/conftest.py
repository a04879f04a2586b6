"""The corpus of the benchmarks, and what a result says about the machine."""

import importlib.metadata
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

PEERS = ("tiktoken", "tokenizers", "datasketch", "torch", "numpy", "pyarrow")


@pytest.fixture(scope="session")
def library_texts() -> list[str]:
    """The standard library of the running Python, without its tests: a file a text, sorted by path.

    Real text that every machine has (about 13 MB); figures of two machines compare only where they run
    the same Python, whose version is in the results.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    files = (p for p in sorted(root.rglob("*.py")) if left_out.isdisjoint(p.relative_to(root).parts))
    texts = []
    for path in files:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, PermissionError):
            continue  # a few modules declare another encoding
    return texts


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the versions of what is compared and the state of the checkout."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    machine_info["versions"] = versions
    machine_info["num_threads"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    machine_info["checkout"] = done.stdout.strip() or "no git"
