"""Starts that are tuned, on a GPU that is not there, by a clock that is told what to say.

Run by `test_starts.py`, through the plugin `oracles.fake_gpu`.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from oracles.fake_gpu import Launch, launches_of
from torch import Tensor
from triton.runtime.errors import OutOfResources

from pylm import ops
from pylm.kernels import _autotune, moe_experts, rms_norm, rope, swiglu

FORM = "silu", 1.0, None, 0.0
CHECKED_IN = "checked in"


class Clock:
    """Takes the place of `measure`: notes what is timed, and says that one configuration is the fastest."""

    def __init__(self) -> None:
        self.timed: list[list[str]] = []
        self.best, self.ms = "(512, 4096, 4)", 0.5

    def __call__(self, calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
        self.timed.append(list(calls))
        for call in calls.values():
            with contextlib.suppress(OutOfResources):
                call()
        return {name: self.ms if name == self.best else 1.0 for name in calls}


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    told = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_autotune, "measure", told)
    _autotune.forget()
    yield told
    _autotune.forget()


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def rows(num_rows: int, dim: int) -> Tensor:
    """Return rows that are no run of elements."""
    return bf16(num_rows, dim + 16)[:, :dim]


def launch(x: Tensor) -> Launch:
    """Return the launch of the work itself, after those that were timed."""
    return launches_of(lambda: swiglu.forward(x, x, *FORM, False))[-1]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "pylm" / "autotune").glob("*"))


def test_nothing_is_timed_unless_asked_for(clock: Clock, tmp_path: Path) -> None:
    x = rows(40, 1024)
    checked_in = launch(x)
    with ops.autotune(False):
        assert launch(x).function == checked_in.function
    assert not clock.timed
    assert not files(tmp_path)


def test_the_fastest_is_taken_from_then_on(clock: Clock, tmp_path: Path) -> None:
    x = rows(40, 1024)
    checked_in = launch(x)
    with ops.autotune():
        launches = launches_of(lambda: swiglu.forward(x, x, *FORM, False))
        assert len(clock.timed) == 1
        assert clock.timed[0][0] == CHECKED_IN
        # What was timed, and then the work itself.
        assert len(launches) == len(clock.timed[0]) + 1
        chosen = launches[-1]
        assert launch(x).function == chosen.function
    assert chosen.function != checked_in.function
    # 4 rows of 1,024 columns a program, and 8 of 512.
    assert (checked_in.grid, chosen.grid) == ((10, 1, 1), (2 * 5, 1, 1))
    assert launch(x).function == chosen.function
    assert launch(rows(50, 1024)).function == chosen.function
    with ops.autotune():
        assert launch(rows(33, 1024)).function == chosen.function
        assert len(clock.timed) == 1
        launch(rows(1000, 1024))
        assert len(clock.timed) == 2
        launch(rows(40, 4096))
        assert len(clock.timed) == 3
    assert len(files(tmp_path)) == 3


def test_rows_of_another_class_take_what_is_checked_in_after_the_block(clock: Clock) -> None:
    x = rows(7, 2048)
    before = launch(rows(7000, 2048))
    with ops.autotune():
        chosen = launch(x)
    assert launch(rows(7000, 2048)).function == before.function != chosen.function
    assert len(clock.timed) == 1


def test_other_strides_of_a_class_take_what_is_known(clock: Clock) -> None:
    with ops.autotune():
        chosen = launch(rows(40, 768))
    wide = bf16(40, 1520)[:, :768]  # rows as far apart in powers of two
    narrow = bf16(40, 800)[:, :768]
    assert launch(narrow).function == chosen.function
    assert launch(wide).function != chosen.function
    assert len(clock.timed) == 1


def test_what_is_on_disk_is_not_timed_again(clock: Clock, tmp_path: Path) -> None:
    x = rows(40, 1024)
    with ops.autotune():
        chosen = launch(x)
    (path,) = files(tmp_path)
    kept = json.loads(path.read_text())
    assert kept["name"] == clock.best
    assert kept["ms"][clock.best] == 0.5
    assert kept["about"]["kernel"] == "swiglu._forward_kernel"
    _autotune.forget()
    with ops.autotune():
        assert launch(x).function == chosen.function
    assert len(clock.timed) == 1
    assert [choice.name for choice in _autotune.choices()] == [clock.best]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"name": "(512, 4096, 4)"}', "name", "ms", "about"],
)
def test_a_damaged_file_is_timed_and_written_again(damage: str, clock: Clock, tmp_path: Path) -> None:
    x = rows(40, 1024)
    with ops.autotune():
        chosen = launch(x)
    (path,) = files(tmp_path)
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps({**whole, damage: "other"}) if damage.isalpha() and damage in whole else damage
    )
    _autotune.forget()
    with ops.autotune():
        assert launch(x).function == chosen.function
    assert len(clock.timed) == 2
    assert json.loads(path.read_text()) == whole
    assert files(tmp_path) == [path]


def test_another_device_or_version_is_timed_on_its_own(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows(40, 1024)
    with ops.autotune():
        launch(x)
    for target, name, value in (
        (_autotune, "describe_device", lambda device: "another"),
        (torch, "__version__", "9.9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            with ops.autotune():
                launch(x)
    assert len(clock.timed) == len(files(tmp_path)) == 3


def test_a_gain_within_the_noise_is_none(clock: Clock) -> None:
    x = rows(40, 1024)
    checked_in = launch(x)
    clock.ms = 0.99
    with ops.autotune():
        assert launch(x).function == checked_in.function
    assert _autotune.choices()[0].name == CHECKED_IN


def test_nothing_is_timed_while_a_graph_is_captured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(40, 1024)
    checked_in = launch(x)
    with ops.autotune():
        with monkeypatch.context() as patch:
            patch.setattr(_autotune, "may_measure", lambda device: False)
            assert launch(x).function == checked_in.function
            assert not clock.timed
        chosen = launch(x)
        assert len(clock.timed) == 1
        with monkeypatch.context() as patch:
            patch.setattr(_autotune, "may_measure", lambda device: False)
            assert launch(x).function == chosen.function != checked_in.function


def test_a_folder_that_cannot_be_written_to_is_said(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "pylm").write_text("a file")
    x = rows(40, 1024)
    with ops.autotune(), pytest.warns(UserWarning, match="set XDG_CACHE_HOME to a folder"):
        chosen = launch(x)
    assert launch(x).function == chosen.function


def test_a_relative_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert _autotune.folder() == tmp_path / ".cache/pylm/autotune"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert _autotune.folder() == Path("/elsewhere/pylm/autotune")


def test_what_does_not_fit_the_device_is_left_out() -> None:
    def too_large() -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    device = torch.device("cpu")
    assert set(_autotune.measure({"a": lambda: None, "b": too_large, "c": int}, device)) == {"a", "c"}


def test_a_checked_in_one_that_does_not_fit_gives_way(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_autotune, "measure", lambda calls, device: {"b": 2.0, "c": 1.0})
    calls = {"a": int, "b": int, "c": int}
    assert _autotune.choose({}, calls, torch.device("cpu"), may_measure=True) == "c"


def test_a_file_appears_whole(clock: Clock, tmp_path: Path) -> None:
    about = {"names": ["a"], "filler": "x" * 100_000}
    choice = _autotune.Choice(about, {"a": 1.0}, "a")
    path, broken, stop = tmp_path / "choice.json", [], threading.Event()
    _autotune._write(path, choice)

    def read() -> None:
        while not stop.is_set():
            if _autotune._read(path, about) != choice:
                broken.append(path.read_text())

    def write() -> None:
        for _ in range(30):
            _autotune._write(path, choice)

    threads = [threading.Thread(target=target) for target in (read, write, write)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert not broken
    assert list(tmp_path.glob("*")) == [path]


def test_threads_time_once(clock: Clock) -> None:
    x = rows(40, 1024)
    swiglu.forward(x, x, *FORM, False)
    with ops.autotune():
        threads = [threading.Thread(target=lambda: swiglu.forward(x, x, *FORM, False)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(clock.timed) == 1


def test_blocks_within_blocks(clock: Clock) -> None:
    with ops.autotune():
        with ops.autotune(False):
            launch(rows(40, 640))
            assert not clock.timed
        launch(rows(40, 640))
        assert len(clock.timed) == 1
    assert not _autotune.STATE.measures


def test_every_kernel_that_is_tuned(clock: Clock) -> None:
    """Each of them launches every configuration, and another one than is checked in where it is the best."""
    x, q, cos = bf16(24, 64), bf16(1, 24, 4, 64), torch.empty(24, 32)
    order, offsets = torch.zeros(48, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    weights = bf16(5, 64, 64), bf16(5, 64, 32)
    given = x, torch.empty(24, 2), order, offsets, *weights
    with ops.autotune():
        swiglu.forward(x, x, *FORM, False)
        swiglu.backward(x, x, x, x, *FORM)
        swiglu.packed_forward(x, False, *FORM, False)
        swiglu.packed_backward(x[:, :32], x, x, False, *FORM)
        rms_norm.backward(x, None, x, bf16(64), torch.empty(24), 0.0, True)
        rope.rotate(q, q, cos, cos, None, False, False)
        moe_experts.forward(*given, True)
        moe_experts.backward(x, *given, bf16(48, 64), [True] * 4)
    assert {choice.about["kernel"] for choice in _autotune.choices()} == {
        "swiglu._forward_kernel",
        "swiglu._backward_kernel",
        "swiglu._run_forward_kernel",
        "swiglu._run_backward_kernel",
        "rms_norm._backward_kernel",
        "rope._rope_kernel",
        "moe_experts._gate_up_kernel",
        "moe_experts._grad_hidden_kernel",
        "_grouped._rows_kernel",
        "_grouped._grad_weight_kernel",
        "_grouped._combine_kernel",
    }
    for timed in clock.timed:
        assert len(timed) == len(set(timed)) > 3
