"""`pylm tokenizer train` and `convert` against the functions that they call."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from pylm import cli
from pylm.text import Tokenizer

TEXTS = ["the cat sat on the mat, " * 20, "a rose is a rose is a rose\n" * 20]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.txt" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_text(text)
    return paths


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    code = cli.call(lambda: cli.app([str(x) for x in ("tokenizer", *arguments)], standalone_mode=False))
    shown = capsys.readouterr()
    return code or 0, shown.out + shown.err


def test_train(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--vocab-size", 270, "--pattern", "gpt2", "--special-token", "<|end|>", "--min-frequency", 3]
    code, shown = run(capsys, "train", *files, "--out", tmp_path / "out.json", *options)
    assert (code, shown) == (0, f"{tmp_path / 'out.json'}: 270 ids\n")
    expected = Tokenizer.train(
        files, vocab_size=270, pattern="gpt2", special_tokens=["<|end|>"], min_frequency=3
    )
    assert Tokenizer.load(tmp_path / "out.json").fingerprint == expected.fingerprint


def test_train_by_lines_and_go_on(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = tmp_path / "counts"
    options = ["--vocab-size", 280, "--pattern", "gpt2", "--separator", r"\n", "--counts", counts]
    for name in ("first", "second"):
        code, shown = run(capsys, "train", *files, "--out", tmp_path / name, *options)
        assert code == 0
        assert re.search(r": 27\d ids \(\d+ fewer than asked: no other pair occurs 2 times\)", shown), (
            "little text"
        )
    expected = Tokenizer.train(files, vocab_size=280, pattern="gpt2", separator="\n")
    for name in ("first", "second"):
        assert Tokenizer.load(tmp_path / name).fingerprint == expected.fingerprint


def test_what_cannot_be_trained_on(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, empty = tmp_path / "a.gz", tmp_path / "empty"
    packed.write_bytes(gzip.compress(b"some text"))
    empty.touch()
    out = ["--out", tmp_path / "x.json"]
    for arguments, message in (
        ([packed], "a.gz: holds gzip, expected text; unpack it first"),
        ([empty], "empty: holds no text"),
        ([tmp_path / "absent"], "absent: no such file"),
        ([tmp_path], ": a folder, expected a file"),
        ([*files, "--pattern", "cl100"], "unknown pattern 'cl100'; did you mean 'cl100k'?"),
    ):
        code, shown = run(capsys, "train", *arguments, *out)
        assert (code, message in shown) == (2, True), shown
    assert not (tmp_path / "x.json").exists()


def test_convert_keeps_ids(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, ranks = tmp_path / "a.json", tmp_path / "a.tiktoken"
    trained = Tokenizer.train(files, vocab_size=270, pattern="gpt2", special_tokens=["<|end|>"])
    trained.save(source)
    code, shown = run(capsys, "convert", source, tmp_path / "b.json", "--pattern", "cl100k")
    assert code == 2
    assert "its texts are cut by 'gpt2', and --pattern cl100k would give other ids" in shown
    assert run(capsys, "convert", source, tmp_path / "b.json", "--pattern", "gpt2")[0] == 0
    code, shown = run(capsys, "convert", source, ranks)
    assert code == 0
    assert "a rank file holds neither pattern (gpt2) nor special tokens (1)" in shown
    code, shown = run(capsys, "convert", ranks, tmp_path / "c.json")
    assert code == 2
    assert "--pattern" in shown
    assert run(capsys, "convert", ranks, tmp_path / "c.json", "--pattern", "gpt2")[0] == 0
    text = TEXTS[0] + TEXTS[1]
    ids = [Tokenizer.load(tmp_path / name).encode(text) for name in ("b.json", "c.json")]
    assert ids[0] == ids[1] == trained.encode(text)
