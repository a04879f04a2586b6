"""The command line: bad input gets one line and exit code 2, and leaves nothing half-written."""

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylm import __version__
from pylm.cli import app, call
from pylm.errors import InputError
from pylm.recipe import Recipe

MINI = str(Path(__file__).parent / "mini.toml")
TEXT = "def add(a, b):\n    return a + b\n"


def run(*arguments: str) -> int:
    """Run a command in this process, as `main` does."""
    try:
        return call(lambda: app(list(arguments), standalone_mode=True))
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused(out: Path, capsys: pytest.CaptureFixture[str], *overrides: str, command: str = "prepare") -> str:
    """Run a stage that must fail; give its one line."""
    assert run(command, MINI, f"out={out}", *overrides) == 2
    errors = [
        line for line in capsys.readouterr().err.splitlines() if not line.endswith(("starts", "goes on"))
    ]
    assert len(errors) == 1, errors
    assert errors[0].startswith("pylm: ")
    left = {x.name for x in out.rglob("*") if x.is_file()} if out.exists() else set()
    assert not {name for name in left if ".tmp" in name or name in ("train.parquet", "heldout.parquet")}, left
    return errors[0].removeprefix("pylm: ")


def source(kind: str, *paths: Path, **options: object) -> str:
    value = {"name": "given", "kind": kind, "paths": [str(path) for path in paths], **options}
    pairs = ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items())
    return f"prepare.sources=[{{ {pairs} }}]"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pylm {__version__}\n"
    assert run("--help") == 0
    commands = (
        "run", "prepare", "tokenizer", "tokenize", "synthesize", "pretrain", "sft", "dpo", "rlvr", "eval",
        "generate", "chat", "report",
    )  # fmt: skip
    shown = capsys.readouterr().out
    for name in commands:
        assert f" {name} " in shown
        assert run(name, "--help") == 0
        assert "Usage:" in capsys.readouterr().out


def test_help_of_tokenize(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenize", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("tokens/statistics.json", "tokens/heldout/", "goes on where it was", "num_threads=N"):
        assert part in shown


def test_every_field_of_a_recipe_is_explained() -> None:
    def models(model: type, seen: set[type]) -> Iterator[type]:
        if model in seen or not hasattr(model, "model_fields"):
            return
        seen.add(model)
        yield model
        for field in model.model_fields.values():
            parts = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for part in parts:
                if isinstance(part, type):
                    yield from models(part, seen)

    found = list(models(Recipe, set()))
    assert len(found) > 15
    for model in found:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"


def test_unknown_commands_and_options_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretain", MINI) == 2
    assert run("pretrain", MINI, "--redoo") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_key(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(out, capsys, "pretrain.num_stepz=3")
    assert line.endswith("unknown key pretrain.num_stepz; did you mean 'num_steps'?")
    assert not out.exists()


def test_missing_recipe_and_missing_path(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "no-such.toml") == 2
    assert "no recipe at no-such.toml" in capsys.readouterr().err
    line = refused(out, capsys, source("text", out.parent / "absent.txt"))
    assert line == f"source given: nothing at '{out.parent / 'absent.txt'}'; give a file, a folder or a glob"


def test_empty_corpus(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out.parent / "empty.jsonl").write_text("\n\n")
    assert "the sources hold no documents" in refused(
        out, capsys, source("jsonl", out.parent / "empty.jsonl")
    )
    (out.parent / "docs").mkdir()
    assert "no files in" in refused(out, capsys, source("files", out.parent / "docs"))


def test_a_text_that_is_not_utf8(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "latin1.txt"
    path.write_bytes("caf\xe9\n".encode("latin-1"))
    assert refused(out, capsys, source("text", path)).startswith(f"{path}: not UTF-8 at byte 3")


def test_a_truncated_gzip(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(9999)))[:-900])
    line = refused(out, capsys, source("jsonl", path))
    assert line.startswith(f"{path}: ")
    assert "truncated" in line


def test_a_line_without_text(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"body": "bad"}\n')
    line = refused(out, capsys, source("jsonl", path))
    assert line.startswith(f"{path}:2: expected ")


def test_all_documents_dropped(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "short.txt"
    path.write_text("too short")
    line = refused(out, capsys, source("text", path, filters=["gopher_quality"]))
    assert "every document was" in line
    assert json.loads((out / "prepare/dropped.jsonl").read_text())["reason"] == "gopher_quality/num_words"


def test_stages_out_of_order(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(out, capsys, source("text", Path(MINI)), command="tokenizer")
    assert line == "tokenizer needs the output of prepare: run `pylm prepare` on this recipe first"


def test_tokenize_counts_and_names_what_is_wrong(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out.parent / "rows.jsonl"
    texts = [f"The {i}th row of text, with {i * 7} words.\n" * 3 for i in range(200)]
    rows = [{"text": text, "language": ("en", "de")[i % 2]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [MINI, f"out={out}", source("jsonl", path), "prepare.dedup.threshold=1", "num_threads=2"]
    for command in ("prepare", "tokenizer", "tokenize"):
        assert run(command, *given) == 0
    table = capsys.readouterr().err.splitlines()[-7:-1]
    languages = [f"  language {name} " for name in ("de", "en")]
    starts = ["train ", *languages, "heldout ", *languages]
    assert all(line.startswith(start) for line, start in zip(table, starts, strict=True)), table
    counts = [json.loads((out / "tokens" / x / "statistics.json").read_text()) for x in ("", "heldout")]
    assert sum(count["total"]["num_words"] for count in counts) == sum(len(text.split()) for text in texts)
    shown = [int(table[i].split()[1].replace(",", "")) for i in (0, 3)]
    assert shown == [count["total"]["num_docs"] for count in counts]
    assert run("tokenize", *given) == 0
    assert capsys.readouterr().err == "tokenize: complete (--redo runs it again)\n"
    documents = out / "prepare" / "heldout.parquet"
    documents.write_bytes(documents.read_bytes()[:-9])
    before = (out / "tokens" / "statistics.json").read_bytes()
    assert run("tokenize", *given, "--redo") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"pylm: {documents}: not a readable Parquet file: ")
    assert (out / "tokens" / "statistics.json").read_bytes() == before


def test_a_stage_that_the_recipe_lacks(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = out.parent / "short.toml"
    recipe.write_text(Path(MINI).read_text().split("[dpo]")[0])
    assert run("dpo", str(recipe), f"out={out}") == 2
    assert "the recipe has no [dpo] table; add one to run this stage" in capsys.readouterr().err


def test_models_and_reports_that_are_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["report", str(out)], ["generate", str(out), "x"], ["chat", str(out)]):
        assert run(*command) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"pylm: {out}: ")
        assert line.count("\n") == 1


def test_a_full_disk(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mounted = out.parent / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mounted)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = out.parent / "big.jsonl"
        rows = ({"text": os.urandom(500).hex()} for _ in range(2000))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = refused(mounted / "run", capsys, source("jsonl", path))
        assert line.startswith("the disk is full")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines"), 2, "pylm: two lines\n"),
        (
            KeyboardInterrupt(),
            130,
            "pylm: interrupted; the same command goes on from what was finished or last saved\n",
        ),
        (OSError(errno.ENOSPC, "x", "a.bin"), 2, "pylm: the disk is full at a.bin; make room and run"),
        (PermissionError(errno.EACCES, "x", "/a"), 2, "pylm: /a: Permission denied\n"),
    ],
)
def test_what_users_can_mend_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise error

    assert call(action) == code
    assert capsys.readouterr().err.startswith(line)


def test_faults_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0)


def test_the_module_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pylm", "run", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "pylm: no recipe at nowhere; give the path of a TOML file, or one of: quickstart\n"
