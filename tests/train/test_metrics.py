"""The metrics file after kills and resumes."""

from pathlib import Path

import pytest

from pylm.errors import InputError
from pylm.train.metrics import Metrics, read_metrics


def test_resume_cuts_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in range(7):
            metrics.write(step, loss=float(step))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')
    with Metrics(path, resume_step=4) as metrics:
        for step in range(4, 9):
            metrics.write(step, loss=step + 0.5)
    records = read_metrics(path)
    assert [r["step"] for r in records] == list(range(9))
    assert [r["loss"] for r in records] == [0, 1, 2, 3, 4.5, 5.5, 6.5, 7.5, 8.5]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write(0, loss=float("nan"))
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 0, "loss": None}]


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[1]", b"7", b'{"loss": 1}', b'{"step": "a"}', b'{"step": "\xff"}']
)
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"m\.jsonl:2: expected a JSON object with a step, got"):
        read_metrics(path)


def test_a_log_cut_off_at_any_byte_reads_as_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        for step in range(3):
            metrics.write(step, note="Größe")
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        num_whole = data[:size].count(b"\n") + (data[size : size + 1] == b"\n")
        assert [r["step"] for r in read_metrics(path)] == list(range(num_whole))
        with Metrics(path, resume_step=1):
            pass
        assert path.read_bytes() == (data[: data.index(b"\n") + 1] if num_whole else b"")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl", enabled=False) as metrics:
        metrics.write(0, loss=1.0)
    assert not (tmp_path / "m.jsonl").exists()
