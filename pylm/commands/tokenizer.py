"""`pylm tokenizer train`, `compare` and `convert`: tokenizers of any origin, from the command line."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

_RANKS = ".tiktoken"


def train(
    files: Annotated[list[Path], typer.Argument(help="Text files; a file is one text, or see --separator.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="What to write: a .json file (tokenizer.json), a .pylm file, or a folder."
        ),
    ],
    vocab_size: Annotated[
        int, typer.Option(min=256, help="Ids in all: special tokens, 256 bytes, merges.")
    ] = 32_768,
    pattern: Annotated[
        str,
        typer.Option(help="Pre-tokenization: gpt2, cl100k, o200k, ..., or a regular expression (slower)."),
    ] = "cl100k",
    special_token: Annotated[
        list[str] | None, typer.Option(help="Gets one of the first ids; may be repeated.")
    ] = None,
    min_frequency: Annotated[int, typer.Option(min=0, help="Pairs seen less often are not merged.")] = 2,
    separator: Annotated[
        str, typer.Option(help=r"Texts in files end here, and it belongs to none; \n, \t, \0 are understood.")
    ] = "",
    counts: Annotated[
        Path | None,
        typer.Option(help="File for what was counted: a call that was cut off goes on from it."),
    ] = None,
    num_threads: Annotated[int, typer.Option(min=0, help="0 takes all cores; decides no id.")] = 0,
) -> None:
    """Train a byte-level BPE tokenizer on text files: the merges of Hugging Face's trainer.

    In a run, `pylm tokenizer RECIPE` trains on the prepared documents instead.
    """
    from pylm.text import Tokenizer
    from pylm.train.progress import Progress

    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\0", "\0")):
        separator = separator.replace(written, meant)
    with ExitStack() as stack:
        shown: dict[str, Progress] = {}

        def progress(phase: str, done: int, total: int | None) -> None:
            if phase not in shown:
                stack.close()
                shown[phase] = stack.enter_context(Progress(total or 0, f"tokenizer train: {phase}"))
            shown[phase].update(done)

        tokenizer = Tokenizer.train(
            files,
            vocab_size=vocab_size,
            pattern=pattern,
            special_tokens=special_token or (),
            min_frequency=min_frequency,
            separator=separator or None,
            counts=counts,
            progress=progress,
            num_threads=num_threads,
        )
    tokenizer.save(out)
    short = vocab_size - tokenizer.vocab_size
    note = f" ({short:,} fewer than asked: no other pair occurs {min_frequency} times)" if short else ""
    typer.echo(f"{out}: {tokenizer.vocab_size:,} ids{note}")


def compare(
    tokenizers: Annotated[
        list[str],
        typer.Argument(
            help="A tokenizer.json, a rank file, a .pylm file, a model folder or a run; NAME=PATH to name it."
        ),
    ],
    text: Annotated[
        list[str],
        typer.Option("--text", "-t", help="A file to encode; LABEL=FILE puts files of a language together."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
    num_threads: Annotated[int, typer.Option(min=0, help="Threads that encode; 0 takes all cores.")] = 1,
) -> None:
    """Compare tokenizers on texts: tokens a word, bytes a token, use of the vocabulary, speed."""
    from pylm.text.compare import compare_files, format_json, format_table

    rows = compare_files(tokenizers, text, num_threads=num_threads)
    typer.echo(format_json(rows) if as_json else format_table(rows))


def convert(
    source: Annotated[
        Path, typer.Argument(help="A tokenizer.json, a rank file, a .pylm file, a model folder or a run.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="What to write: a .pylm file (loads at once), a .json file (tokenizer.json), a .tiktoken "
            "file (ranks), or a folder (tokenizer.json and tokenizer_config.json): an existing one, or a "
            "name without an ending."
        ),
    ],
    pattern: Annotated[
        str | None, typer.Option(help="Pre-tokenization of a rank file that is not known, which needs it.")
    ] = None,
) -> None:
    """Write a tokenizer in another form, with the same ids."""
    from pylm.errors import InputError
    from pylm.text import Tokenizer
    from pylm.text.patterns import find_pattern

    run = source / "tokenizer" / "tokenizer.json"
    path = run if run.is_file() else source
    if pattern is None:
        tokenizer = Tokenizer.load(path)
    else:
        find_pattern(pattern)
        try:
            own = Tokenizer.load(path).pattern
        except InputError:  # a rank file that is not known, or a fault that the second try names
            own = pattern
        if own != pattern:
            raise InputError(
                f"{path}: its texts are cut by {own!r}, and --pattern {pattern} would give other ids; leave "
                "it out"
            )
        tokenizer = Tokenizer.load(path, pattern=pattern)
    tokenizer.save(target)
    note = ""
    if target.suffix == _RANKS:
        special = len(tokenizer.special_tokens)
        note = (
            f"; a rank file holds neither pattern ({tokenizer.pattern}) nor special tokens ({special:,}): "
            "give them when it is loaded"
        )
    typer.echo(f"{target}: {tokenizer.vocab_size:,} ids{note}")
