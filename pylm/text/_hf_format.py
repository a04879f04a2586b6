"""tokenizer.json: byte-level BPE as the `tokenizers` library writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.text.patterns import PATTERNS, PretokenPattern, find_pattern, find_splits


def _byte_alphabet() -> dict[int, str]:
    """Map bytes to visible characters: itself where printable in Latin-1, else from U+0100 on (GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(0x100 + i) for i, b in enumerate(hidden)}}


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}


@dataclass(frozen=True)
class Parts:
    """What a tokenizer.json holds, in pylm's terms; fields as in `Tokenizer`."""

    tokens: list[bytes]
    merges: NDArray[np.uint32]
    pattern: str | PretokenPattern
    special_tokens: Mapping[str, int]
    ignore_merges: bool
    normalizer: Literal["NFC"] | None


def read(path: Path) -> Parts:
    """Read a tokenizer.json.

    Raises:
        InputError: not JSON, a damaged entry, or a feature that this tokenizer does not have; names it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        vocabulary, merge_list = model["vocab"], model["merges"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a tokenizer.json ({error}); expected a BPE model with vocab and merges"
        ) from error
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        _unsupported(path, "model", {k: v for k, v in model.items() if k not in ("vocab", "merges")})
    special = {x["content"]: int(x["id"]) for x in document.get("added_tokens", [])}
    for token in document.get("added_tokens", []):
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            _unsupported(path, "added token", token)
    size = 1 + max((int(i) for i in vocabulary.values()), default=-1)
    tokens = [b""] * size
    for text, token_id in vocabulary.items():
        if text not in special:
            tokens[int(token_id)] = _to_bytes(path, text)
    return Parts(
        tokens=tokens,
        merges=_read_merges(path, merge_list, vocabulary),
        pattern=_read_pattern(path, document.get("pre_tokenizer")),
        special_tokens=special,
        ignore_merges=bool(model.get("ignore_merges")),
        normalizer=_read_normalizer(path, document.get("normalizer")),
    )


def _unsupported(path: Path, what: str, value: object) -> NoReturn:
    raise InputError(
        f"{path}: unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected byte-level BPE with a known pattern"
    )


def _to_bytes(path: Path, text: str) -> bytes:
    try:
        return bytes(CHAR_TO_BYTE[c] for c in text)
    except KeyError as error:
        raise InputError(f"{path}: vocabulary entry {text!r} is not in the byte-level alphabet") from error


def _read_merges(path: Path, merges: list[Any], vocabulary: Mapping[str, int]) -> NDArray[np.uint32]:
    rows = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            left, right = pair
            rows.append((vocabulary[left], vocabulary[right], vocabulary[left + right], rank))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: merge {rank} ({merge!r}) does not join two tokens to a third"
            ) from error
    return np.array(rows, dtype=np.uint32).reshape(-1, 4)


def _read_normalizer(path: Path, value: Mapping[str, Any] | None) -> Literal["NFC"] | None:
    if value is None:
        return None
    if value.get("type") != "NFC":
        _unsupported(path, "normalizer", value)
    return "NFC"


def _read_pattern(path: Path, value: Mapping[str, Any] | None) -> PretokenPattern:
    parts = value.get("pretokenizers", [value]) if value else []
    expressions: list[str] = []
    for part in parts:
        match part:
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated"} if (
                not part.get("invert")
            ):
                expressions.append(expression)
            case {"type": "Digits"}:
                expressions.append(r"\p{N}" if part.get("individual_digits") else r"\p{N}+")
            case {"type": "ByteLevel"} if part is parts[-1] and not part.get("add_prefix_space"):
                if part.get("use_regex", True):
                    expressions.append(PATTERNS["gpt2"].expression)
            case _:
                _unsupported(path, "pre-tokenizer", value)
    if not parts or parts[-1]["type"] != "ByteLevel" or not expressions:
        _unsupported(path, "pre-tokenizer", value)
    return find_splits(expressions)


def write(parts: Parts) -> dict[str, object]:
    """Give the document for a tokenizer.json."""
    chars = ["".join(BYTE_TO_CHAR[b] for b in token) for token in parts.tokens]
    vocabulary = {text: i for i, text in enumerate(chars) if text} | dict(parts.special_tokens)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in find_pattern(parts.pattern).expressions
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, token_id in sorted(parts.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": parts.normalizer} if parts.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": parts.ignore_merges,
            "vocab": vocabulary,
            "merges": _canonical_merges(parts, chars),
        },
    }


def _canonical_merges(parts: Parts, chars: list[str]) -> list[list[str]]:
    """List one merge a token, in order of rank.

    A rank file allows every pair whose bytes concatenate to a token. Of those, the one is listed that the
    tokens of lower rank leave of the token's own bytes; a token that they cannot make (its parts stop
    earlier) is reached only as a whole piece, through `ignore_merges`.
    """
    by_rank: dict[int, list[tuple[int, int, int]]] = {}
    for left, right, merged, rank in parts.merges.tolist():
        by_rank.setdefault(rank, []).append((left, right, merged))
    if all(len(pairs) == 1 for pairs in by_rank.values()):
        return [[chars[by_rank[rank][0][0]], chars[by_rank[rank][0][1]]] for rank in sorted(by_rank)]
    ranks = {token: rank for rank, pairs in by_rank.items() for token in (parts.tokens[pairs[0][2]],)}
    ids = {token: i for i, token in enumerate(parts.tokens) if token}
    merges = []
    for rank in sorted(by_rank):
        pieces = _merge_below(parts.tokens[by_rank[rank][0][2]], ranks, rank)
        if len(pieces) == 2:
            merges.append([chars[ids[piece]] for piece in pieces])
    return merges


def _merge_below(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """Merge the bytes of a token by all ranks below `limit`."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 1:
        best = min(range(len(pieces) - 1), key=lambda i: ranks.get(pieces[i] + pieces[i + 1], limit))
        if ranks.get(pieces[best] + pieces[best + 1], limit) >= limit:
            break
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces
