"""The switch of tuning: a block, the environment, and nothing on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pylm import ops
from pylm.errors import InputError
from pylm.kernels._autotune import STATE, choices


def test_a_block_measures_and_gives_back_what_was() -> None:
    assert not STATE.measures
    with ops.autotune():
        assert STATE.measures
        with ops.autotune(False):
            assert not STATE.measures
        assert STATE.measures
    assert not STATE.measures
    with pytest.raises(RuntimeError, match="inside"), ops.autotune():
        raise RuntimeError("inside")
    assert not STATE.measures


def test_a_cpu_times_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ops.autotune():
        ops.warmup(dim=8, hidden_dim=8, vocab_size=5, num_tokens=3, dtype=torch.float32, device="cpu")
    assert not choices()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("enabled", [1, None, "yes"])
def test_refuses_what_is_no_flag(enabled: object) -> None:
    with pytest.raises(InputError, match="enabled must be True or False"), ops.autotune(enabled):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("value", ["", "0", "1", "yes"])
def test_the_environment(value: str) -> None:
    code = (
        "import pylm.ops, sys, pylm.kernels._autotune as a; print(a.STATE.measures, 'triton' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYLM_AUTOTUNE": value},
        capture_output=True,
        text=True,
        check=False,
    )
    if value == "yes":
        assert done.returncode == 1
        assert "PYLM_AUTOTUNE must be 0 or 1, got 'yes'" in done.stderr
    else:
        assert done.stdout.split() == [str(value == "1"), "False"]
