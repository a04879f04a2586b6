"""Mistral's `tekken.json`: ranks with their pattern, behind the ids of the special tokens."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from pylm import _core
from pylm.errors import InputError
from pylm.text import _rank_format
from pylm.text._added_tokens import AddedToken
from pylm.text._byte_model import ByteModel
from pylm.text._hf_config import TokenizerConfig
from pylm.text._models import Parts

# Files up to version 7 may leave these out.
_EARLY_SPECIAL_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_MAX_SPECIAL_TOKENS = 1 << 16  # files have 1000
_EARLY_VERSIONS = ("v1", "v2", "v3", "v7")
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def is_tekken(path: Path) -> bool:
    """Tell by its name whether a file is one, as Mistral's own library does."""
    return path.suffix == ".json" and "tekken" in path.name


def read(path: Path, content: bytes, pattern: str | None = None) -> tuple[Parts, TokenizerConfig]:
    """Read a `tekken.json`.

    Args:
        path: its name, for messages.
        content: its bytes.
        pattern: takes the place of its own.

    Raises:
        InputError: not JSON or a damaged entry; names it.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    match document:
        case {
            "config": {
                "pattern": str(own_pattern),
                "default_vocab_size": int(size),
                "default_num_special_tokens": int(num_special),
                **config,
            },
            "vocab": list(entries),
        } if 0 <= num_special <= min(size, _MAX_SPECIAL_TOKENS) and size - num_special <= len(entries):
            pass
        case _:
            raise InputError(
                f"{path}: not a tekken.json; expected config with pattern, default_vocab_size and "
                f"default_num_special_tokens (at most {_MAX_SPECIAL_TOKENS}), and a vocab of as many entries"
            )
    special = _read_special_tokens(path, document.get("special_tokens"), config.get("version"), num_special)
    ranks = b"".join(_rank_line(path, i, entry) for i, entry in enumerate(entries[: size - num_special]))
    vocabulary = _rank_format.read(path, ranks)
    tokens = [b""] * num_special + vocabulary.tokens()
    merges = vocabulary.merges() + np.uint32(num_special)
    try:
        shifted = _core.Vocabulary(tokens, merges)
        model = ByteModel(shifted, pattern or own_pattern, ignore_merges=True)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    texts = {token.content for token in special}
    return Parts(model, special), TokenizerConfig(
        **{role: text for role, text in _ROLES.items() if text in texts}
    )


def _rank_line(path: Path, index: int, entry: Any) -> bytes:
    match entry:
        case {"rank": int(rank), "token_bytes": str(token)} if rank == index and _is_base64(token):
            return f"{token} {rank}\n".encode()
    raise InputError(
        f"{path}: vocab entry {index} must have rank {index} and token_bytes in base64, got "
        f"{str(entry)[:120]}"
    )


def _is_base64(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True) != b""
    except ValueError:
        return False


def _read_special_tokens(path: Path, value: Any, version: Any, count: int) -> list[AddedToken]:
    if value is None:
        if version not in _EARLY_VERSIONS:
            raise InputError(f"{path}: no special_tokens, which version {version!r} must have")
        value = [{"rank": i, "token_str": text} for i, text in enumerate(_EARLY_SPECIAL_TOKENS)]
    if not isinstance(value, list) or len(value) > count:
        raise InputError(f"{path}: special_tokens must be a list of at most {count}, got {str(value)[:120]}")
    texts: dict[int, str] = {}
    for entry in value:
        match entry:
            case {"rank": int(rank), "token_str": str(text)} if 0 <= rank < count and rank not in texts:
                texts[rank] = text
            case _:
                raise InputError(
                    f"{path}: special token {str(entry)[:120]}: expected token_str and a rank of its own, "
                    f"below {count}"
                )
    fillers = {i: f"<SPECIAL_{i}>" for i in range(len(value), count)}
    if clash := texts.keys() & fillers.keys():
        raise InputError(f"{path}: special token {texts[min(clash)]!r} has the rank of one that is filled in")
    return [AddedToken(text, rank) for rank, text in sorted({**texts, **fillers}.items())]
