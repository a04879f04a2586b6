"""Rank files (`.tiktoken`): a line a token, base64 of its bytes, a space, its rank."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pylm import _core
from pylm.errors import InputError

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n?")


@dataclass(frozen=True)
class KnownRanks:
    """What a published rank file does not say about itself.

    Attributes:
        name: its name.
        size: its bytes.
        xxh3_128: hash of its bytes; they are told apart, not vouched for.
        pattern: its pre-tokenization, a key of `PATTERNS`.
        special_tokens: text to id.
    """

    name: str
    size: int
    xxh3_128: str
    pattern: str
    special_tokens: Mapping[str, int]


def _llama3_special_tokens() -> dict[str, int]:
    named = {
        0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id",
    }  # fmt: skip
    reserved = [i for i in range(256) if i not in named]
    names = named | {i: f"reserved_special_token_{n}" for n, i in enumerate(reserved)}
    return {f"<|{names[i]}|>": 128_000 + i for i in range(256)}


_ENDOFTEXT = "<|endoftext|>"

KNOWN = (
    KnownRanks(
        "r50k_base", 835_554, "aa5ef69a716d8a563cb2fbe95939bd2d", "gpt2",
        {_ENDOFTEXT: 50_256},
    ),
    KnownRanks(
        "p50k_base", 836_186, "1bfe2eadd49e9688f2d3fa62565e6e17", "gpt2",
        {_ENDOFTEXT: 50_256},
    ),
    KnownRanks(
        "cl100k_base", 1_681_126, "7cdb781bb5d59657aa5d7bf38900641a", "cl100k",
        {
            _ENDOFTEXT: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276,
        },
    ),
    KnownRanks(
        "o200k_base", 3_613_922, "dee5d4ced09a2db672a095e82ca109d6", "o200k",
        {_ENDOFTEXT: 199_999, "<|endofprompt|>": 200_018},
    ),
    KnownRanks(
        "Llama 3", 2_183_982, "22e6ee98364f2a1fe7339703bb9e9d7b", "llama3",
        _llama3_special_tokens(),
    ),
)  # fmt: skip
"""The files that OpenAI and Meta publish, recognised by their bytes."""


def is_rank_file(content: bytes) -> bool:
    """Say whether a file's first line is one of a rank file."""
    end = content.find(b"\n") + 1
    return _LINE.fullmatch(content[: min(end or len(content), 10_000)]) is not None


def find_known(content: bytes) -> KnownRanks | None:
    """Recognise a published rank file by its bytes."""
    for known in KNOWN:
        if known.size == len(content) and xxhash.xxh3_128_hexdigest(content) == known.xxh3_128:
            return known
    return None


def read(path: Path, content: bytes) -> _core.Vocabulary:
    """Give the tokens and all pairs that make one; `path` is for messages.

    Raises:
        InputError: a damaged line, a rank or token given twice, or no line; names it.
    """
    try:
        return _core.Vocabulary.from_rank_file(content)
    except ValueError as error:
        message = re.sub(r"^line (\d+): ", r"\1: ", str(error))
        raise InputError(f"{path}:{message}" if message != str(error) else f"{path}: {error}") from error


def write(vocabulary: _core.Vocabulary, *, ignore_merges: bool) -> bytes:
    """Give the rank file of a vocabulary.

    A rank file allows every pair that makes a token, in the order of ids, and takes a piece that is a token
    whole. So it stands for listed merges only where their order is that of the ids, and where every token is
    made by the pair that its own bytes come to.

    Raises:
        InputError: no rank file gives the same ids; says why.
    """
    merges, ranked = vocabulary.merges(), vocabulary.rank_merges()
    if not np.array_equal(merges, ranked):
        listed = merges[:, [0, 1, 2]]
        if (np.diff(merges[:, 2].astype(np.int64)) <= 0).any():
            raise InputError("a rank file needs merges in the order of their ids; save a tokenizer.json")
        made = _core.Vocabulary(vocabulary.tokens(), ranked).canonical_merges()[:, [0, 1, 2]]
        if not np.array_equal(listed, made):
            raise InputError(
                "a rank file would merge other pairs than this tokenizer's merges; save a tokenizer.json"
            )
    if not ignore_merges:
        made_ids = set(vocabulary.canonical_merges()[:, 2].tolist())
        for i, token in enumerate(vocabulary.tokens()):
            if len(token) > 1 and i not in made_ids:
                raise InputError(
                    f"token {i} ({token!r}) is not made by any merge, but a rank file would use it; save a "
                    "tokenizer.json"
                )
    return vocabulary.rank_file()
