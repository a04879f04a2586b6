"""How tokenizers differ on the same texts: tokens a word, bytes a token, use of the vocabulary, speed."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from pylm.errors import InputError
from pylm.text._checks import check_not_packed
from pylm.text.tokenizer import Tokenizer

_REPEATS = 3


@dataclass(frozen=True)
class Comparison:
    """One tokenizer on the texts of one label.

    Attributes:
        tokenizer: its name.
        text: the label of the texts.
        num_bytes: of all texts, in UTF-8.
        num_tokens: of all texts.
        tokens_per_word: fertility; words are what white space separates, so it says little where a language
            does without.
        bytes_per_token: how much text a token stands for.
        vocabulary_used: share of the ids that occur, 0 to 1.
        megabytes_per_second: of encoding, the best of three.
    """

    tokenizer: str
    text: str
    num_bytes: int
    num_tokens: int
    tokens_per_word: float
    bytes_per_token: float
    vocabulary_used: float
    megabytes_per_second: float


def compare(
    tokenizer: Tokenizer, texts: Sequence[str], *, name: str, label: str, num_threads: int = 1
) -> Comparison:
    """Encode texts and count.

    Args:
        tokenizer: what encodes them; special tokens in the texts are ordinary text.
        texts: at least one that is not empty.
        name: what the tokenizer is called.
        label: what the texts are called.
        num_threads: threads that encode; 0 takes all cores.

    Raises:
        InputError: the texts are all empty.
    """
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes == 0:
        raise InputError(f"there is no text in {label}")
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        ids = tokenizer.encode_batch(list(texts), num_threads=num_threads).ids
        seconds.append(time.perf_counter() - start)
    num_words = sum(len(text.split()) for text in texts)
    return Comparison(
        tokenizer=name,
        text=label,
        num_bytes=num_bytes,
        num_tokens=len(ids),
        tokens_per_word=len(ids) / max(1, num_words),
        bytes_per_token=num_bytes / len(ids),
        vocabulary_used=len(np.unique(ids)) / tokenizer.vocab_size,
        megabytes_per_second=num_bytes / 1e6 / max(min(seconds), 1e-9),
    )


def compare_files(
    tokenizers: Sequence[str], texts: Sequence[str], *, num_threads: int = 1
) -> list[Comparison]:
    """Compare tokenizers on files.

    Args:
        tokenizers: paths, or NAME=PATH; what `Tokenizer.load` takes, or the folder of a run.
        texts: paths of UTF-8 files, or LABEL=PATH; files of one label are taken together.
        num_threads: threads that encode; 0 takes all cores.

    Returns:
        A row for each label and tokenizer; where there are several labels, also for all texts.

    Raises:
        InputError: a file that is not there, damaged, empty or not UTF-8; a name given twice.
    """
    loaded: dict[str, Tokenizer] = {}
    for argument in tokenizers:
        name, path = _split_name(argument)
        if name in loaded:
            raise InputError(f"two tokenizers are called {name!r}; give NAME=PATH")
        run = path / "tokenizer" / "tokenizer.json"
        loaded[name] = Tokenizer.load(run if run.is_file() else path)
    labelled: dict[str, list[str]] = {}
    for argument in texts:
        label, path = _split_name(argument)
        labelled.setdefault(label, []).append(_read_text(path))
    if len(labelled) > 1:
        labelled["all"] = [text for group in list(labelled.values()) for text in group]
    return [
        compare(tokenizer, group, name=name, label=label, num_threads=num_threads)
        for label, group in labelled.items()
        for name, tokenizer in loaded.items()
    ]


def _split_name(argument: str) -> tuple[str, Path]:
    name, equals, path = argument.partition("=")
    if equals and name and path and not Path(argument).exists():
        return name, Path(path)
    return argument, Path(argument)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"no text file at {path}")
    check_not_packed(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error


def format_json(rows: Sequence[Comparison]) -> str:
    """Give the rows as a JSON array of objects."""
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)


def format_table(rows: Sequence[Comparison]) -> str:
    """Give the rows as a table for a terminal."""
    heads = ("text", "tokenizer", "bytes", "tokens", "tokens/word", "bytes/token", "vocabulary", "MB/s")
    lines = [heads] + [
        (
            row.text,
            row.tokenizer,
            f"{row.num_bytes:,}",
            f"{row.num_tokens:,}",
            f"{row.tokens_per_word:.3f}",
            f"{row.bytes_per_token:.3f}",
            f"{row.vocabulary_used:.1%}",
            f"{row.megabytes_per_second:.0f}",
        )
        for row in rows
    ]
    assert len(heads) == len(fields(Comparison))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
