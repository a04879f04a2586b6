"""The command line: one command for the whole run, one for every stage."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from pylm import __version__
from pylm.commands import dedup, tokenizer
from pylm.errors import InputError

INPUT_ERROR = 2
INTERRUPTED = 130
_PATH_ERRORS = (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class _InterruptError(Exception):
    """Carries Ctrl-C past typer, which would end without a word."""


_TOKENIZER_COMMANDS: dict[str, Callable[..., None]] = {
    "tokenizer train": tokenizer.train,
    "tokenizer compare": tokenizer.compare,
    "tokenizer convert": tokenizer.convert,
}


class _Commands(typer.core.TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # `pylm tokenizer RECIPE` is a stage; the others are about files.
        if (name := " ".join(args[:2])) in _TOKENIZER_COMMANDS:
            args = [name, *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptError from error


app = typer.Typer(
    name="pylm",
    cls=_Commands,
    help="Raw text to an aligned chat model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dedup.app, name="dedup")

RecipeArgument = Annotated[
    str, typer.Argument(help="Path of a recipe (TOML), or the name of a shipped one: quickstart.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Fields of the recipe as key=value: pretrain.num_steps=100 out=/data/run"),
]
RedoOption = Annotated[bool, typer.Option("--redo", help="Run again what is complete.")]
ModelArgument = Annotated[
    Path, typer.Argument(help="Folder of a run (its last model is taken) or of a model.")
]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")]
TopPOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from this share of the mass.")]
SeedOption = Annotated[int, typer.Option(help="Decides the samples.")]
TemplateOption = Annotated[
    str | None, typer.Option(help="Chat template, pylm or chatml; the one that the model was saved with.")
]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"pylm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run_command(
    recipe: RecipeArgument, overrides: OverridesArgument = None, redo: RedoOption = False
) -> None:
    """Run every stage of a recipe; skip what is complete, go on with what was cut off."""
    from pylm.stages import run_stages

    run_stages(recipe, overrides or [], redo=redo)


def _stage_command(name: str, summary: str) -> None:
    def command(
        recipe: RecipeArgument, overrides: OverridesArgument = None, redo: RedoOption = False
    ) -> None:
        from pylm.stages import run_stages

        run_stages(recipe, overrides or [], only=name, redo=redo)

    command.__doc__ = summary
    app.command(name)(command)


_STAGE_COMMANDS = {
    "prepare": "Read documents, filter, deduplicate, hold some out; count every drop.",
    "tokenizer": (
        "Train the byte-level BPE tokenizer on the prepared documents. `pylm tokenizer train` trains on any "
        "text files, `compare` and `convert` are about tokenizers of any origin; see the --help of each."
    ),
    "tokenize": (
        "Turn prepared documents into token shards; count by source and language.\n\n"
        "Reads prepare/ and the run's tokenizer. Writes tokens/SOURCE.tokens with offsets, documents and a "
        "description, tokens/statistics.json, and the same of the held-out documents below tokens/heldout/. "
        "Shows tokens a word, bytes a token and the use of the vocabulary.\n\n"
        "A call that was killed goes on where it was. Finished shards are made again only when documents or "
        "tokenizer have changed, or with --redo. num_threads=N sets how many threads encode; the files do "
        "not depend on it."
    ),
    "synthesize": "Make instruction, preference and verifiable rows from the documents.",
    "pretrain": "Pretrain the model. Under torchrun: sharded over all ranks.",
    "sft": "Tune the pretrained model on instructions.",
    "dpo": "Tune the instructed model on preferences.",
    "rlvr": "Reinforce the model on prompts whose answers can be verified.",
    "eval": "Measure every stage's model on held-out documents and rows.",
}
for _name, _summary in _STAGE_COMMANDS.items():
    _stage_command(_name, _summary)


for _name, _command in _TOKENIZER_COMMANDS.items():
    app.command(_name)(_command)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; RUN/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from pylm.report import write_report

    typer.echo(f"report: {write_report(run, out)}")


@app.command("generate")
def generate_command(
    model: ModelArgument,
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue, or messages with --chat.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at the most.")] = 128,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Answer each prompt as a user's message.")] = False,
    template: TemplateOption = None,
) -> None:
    """Continue texts, or answer messages with --chat."""
    from pylm.conversation import Sampling, answer_messages, continue_texts, open_speaker

    speaker = open_speaker(model, template=template)
    complete = answer_messages if chat else continue_texts
    for text in complete(speaker, prompts, Sampling(max_new_tokens, temperature, top_p, seed)):
        typer.echo(text)


@app.command("chat")
def chat_command(
    model: ModelArgument,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at the most.")] = 128,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    system: Annotated[str | None, typer.Option(help="A system message to start with.")] = None,
    template: TemplateOption = None,
) -> None:
    """Talk to a model; an empty line or Ctrl-D ends it."""
    from pylm.conversation import Sampling, open_speaker, talk

    speaker = open_speaker(model, template=template)
    talk(speaker, Sampling(max_new_tokens, temperature, top_p, seed), system=system)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pylm: {' '.join(message.split())}\n")
    return code


def call(action: Callable[[], object]) -> int:
    """Run `action` and turn what the user can mend into one line and an exit code.

    Returns:
        0, or 2 for bad input, a full disk or a missing permission, or 130 after Ctrl-C. Anything else
        is a fault of pylm and keeps its traceback.
    """
    try:
        action()
    except InputError as error:
        return _fail(str(error), INPUT_ERROR)
    except (KeyboardInterrupt, _InterruptError):
        return _fail(
            "interrupted; the same command goes on from what was finished or last saved", INTERRUPTED
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" at {error.filename}" if error.filename else ""
            return _fail(f"the disk is full{place}; make room and run the same command again", INPUT_ERROR)
        if error.errno in _PATH_ERRORS:
            return _fail(f"{error.filename}: {os.strerror(error.errno or 0)}", INPUT_ERROR)
        raise
    return 0


def main() -> None:
    """Enter from the shell."""
    sys.exit(call(lambda: app(standalone_mode=True)))
