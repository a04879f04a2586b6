"""`pylm tokenizer compare` against counts made by hand."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pylm.cli import app
from pylm.errors import InputError
from pylm.text import Tokenizer
from pylm.text.compare import compare, compare_files

TEXTS = {"en": "the cat sat on the mat\n" * 20, "de": "die Katze saß auf der Matte\n" * 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        (folder / f"run-{name}" / "tokenizer").mkdir(parents=True)
        trained = Tokenizer.train([text], vocab_size=270)
        trained.save(folder / f"{name}.json")
        trained.save(folder / f"run-{name}" / "tokenizer" / "tokenizer.json")
    return folder


def test_counts_equal_those_by_hand(folder: Path) -> None:
    rows = compare_files(
        [f"english={folder / 'en.json'}", str(folder / "run-de")],
        [f"en={folder / 'en.txt'}", f"de={folder / 'de.txt'}", f"en={folder / 'en.txt'}"],
    )
    assert [(row.text, row.tokenizer) for row in rows] == [
        (text, name) for text in ("en", "de", "all") for name in ("english", str(folder / "run-de"))
    ]
    english = Tokenizer.load(folder / "en.json")
    ids = english.encode(TEXTS["en"])
    assert rows[0].num_bytes == 2 * len(TEXTS["en"])
    assert rows[0].num_tokens == 2 * len(ids)
    assert rows[0].tokens_per_word == len(ids) / len(TEXTS["en"].split())
    assert rows[0].bytes_per_token == len(TEXTS["en"]) / len(ids)
    assert rows[0].vocabulary_used == len(set(ids)) / english.vocab_size
    assert rows[0].megabytes_per_second > 0
    assert rows[2].num_bytes == len(TEXTS["de"].encode())
    assert rows[4].num_tokens == rows[0].num_tokens + rows[2].num_tokens


def test_the_command_prints_a_table_or_json(folder: Path) -> None:
    arguments = ["tokenizer", "compare", f"a={folder / 'en.json'}", f"b={folder / 'de.json'}"]
    arguments += ["--text", f"en={folder / 'en.txt'}"]
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    lines = table.output.splitlines()
    assert lines[0].split() == [
        "text",
        "tokenizer",
        "bytes",
        "tokens",
        "tokens/word",
        "bytes/token",
        "vocabulary",
        "MB/s",
    ]
    assert [line.split()[:3] for line in lines[1:]] == [["en", "a", "460"], ["en", "b", "460"]]
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert [row["tokenizer"] for row in rows] == ["a", "b"]
    assert rows[0]["num_bytes"] == 460
    assert "tokenizer compare" in CliRunner().invoke(app, ["--help"]).output
    shown = CliRunner().invoke(app, ["tokenizer", "compare", "--help"])
    assert shown.exit_code == 0
    assert "tokens a word" in shown.output
    assert "key=value" in CliRunner().invoke(app, ["tokenizer", "--help"]).output


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    tokenizer, text = str(folder / "en.json"), str(folder / "en.txt")
    with pytest.raises(InputError, match="no text file at"):
        compare_files([tokenizer], [str(tmp_path / "absent")])
    with pytest.raises(InputError, match="no tokenizer at"):
        compare_files([str(tmp_path / "absent")], [text])
    with pytest.raises(InputError, match="two tokenizers are called"):
        compare_files([tokenizer, tokenizer], [text])
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        compare_files([tokenizer], [str(tmp_path / "latin")])
    with pytest.raises(InputError, match="there is no text in x"):
        compare(Tokenizer.load(tokenizer), [""], name="a", label="x")
