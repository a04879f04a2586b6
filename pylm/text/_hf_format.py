"""tokenizer.json: byte-level BPE as the `tokenizers` library writes it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._normalizers import Normalizer, read_normalizer
from pylm.text._templates import Template, read_template
from pylm.text.patterns import PATTERNS, PretokenPattern, find_pattern, find_splits


def _byte_alphabet() -> dict[int, str]:
    """Map bytes to visible characters: itself where printable in Latin-1, else from U+0100 on (GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(0x100 + i) for i, b in enumerate(hidden)}}


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Parts:
    """What a tokenizer.json holds, in pylm's terms; fields as in `Tokenizer`."""

    vocabulary: _core.Vocabulary
    pattern: str | PretokenPattern
    added_tokens: Sequence[AddedToken] = ()
    ignore_merges: bool = False
    normalizer: Normalizer | None = None
    template: Template = field(default_factory=Template)


def read(path: Path) -> Parts:
    """Read a tokenizer.json.

    Raises:
        InputError: not JSON, a damaged entry, or a feature that this tokenizer does not have; names it.
    """
    try:
        model = _core.HfModel(path.read_bytes())
        document = json.loads(model.rest)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a tokenizer.json ({error}); expected a BPE model with vocab and merges"
        ) from error
    try:
        return _to_parts(document, model)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _to_parts(document: Mapping[str, Any], model: _core.HfModel) -> Parts:
    settings = document["model"]
    if settings.get("type", "BPE") != "BPE" or any(
        settings.get(key)
        for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        _unsupported("model", {k: v for k, v in settings.items() if k not in ("vocab", "merges")})
    ignore_merges = settings.get("ignore_merges")
    if not isinstance(ignore_merges, bool | None):
        _unsupported("ignore_merges", ignore_merges)
    pattern = _read_pattern(document.get("pre_tokenizer"))
    added = _read_added_tokens(document.get("added_tokens"), model)
    # Ordinary text must not become a special token, not even as a whole piece. Other words may.
    hidden = [
        t.id for t in added if t.special or not ignore_merges or not set(t.content) <= CHAR_TO_BYTE.keys()
    ]
    return Parts(
        vocabulary=model.vocabulary(byte_level=True, hidden=hidden),
        pattern=pattern,
        added_tokens=added,
        ignore_merges=bool(ignore_merges),
        normalizer=read_normalizer(document.get("normalizer")),
        template=read_template(document.get("post_processor")),
    )


def _unsupported(what: str, value: object) -> NoReturn:
    raise InputError(
        f"unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected byte-level BPE with a known pattern"
    )


def _read_added_tokens(value: object, model: _core.HfModel) -> list[AddedToken]:
    if value is None:
        return []
    if not isinstance(value, list):
        _unsupported("added_tokens", value)
    added = []
    largest = (1 << 20) + 8 * (len(model) + len(value))
    for entry in value:
        match entry:
            case {"content": str(content), "id": int(token_id)} if (
                not isinstance(token_id, bool)
                and 0 <= token_id <= largest
                and all(isinstance(entry.get(flag), bool | None) for flag in _FLAGS)
            ):
                flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
            case _:
                _unsupported("added token", entry)
        if (known := model.find(content)) is not None and known != token_id:
            raise InputError(f"added token {content!r} has the id {token_id}, but {known} in the vocabulary")
        added.append(AddedToken(content, token_id, **flags))
    return added


def _read_pattern(value: object) -> PretokenPattern:
    parts = value.get("pretokenizers", [value]) if isinstance(value, Mapping) else []
    if not isinstance(parts, list):
        _unsupported("pre-tokenizer", value)
    expressions: list[str] = []
    level = None
    for part in parts:
        match part:
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated"} if (
                not part.get("invert")
            ):
                expressions.append(expression)
            case {"type": "Digits"}:
                expressions.append(r"\p{N}" if part.get("individual_digits") else r"\p{N}+")
            case {"type": "ByteLevel"} if part is parts[-1] and not part.get("add_prefix_space"):
                level = part
                if part.get("use_regex", True):
                    expressions.append(PATTERNS["gpt2"].expression)
            case _:
                _unsupported("pre-tokenizer", value)
    if level is None or not expressions:
        _unsupported("pre-tokenizer", value)
    return find_splits(expressions)


def write(parts: Parts) -> dict[str, object]:
    """Give the document for a tokenizer.json."""
    chars = parts.vocabulary.alphabet_tokens()
    vocabulary = {text: i for i, text in enumerate(chars) if text}
    added = sorted(parts.added_tokens, key=lambda t: t.id)
    for token in added:
        if vocabulary.get(token.content, token.id) != token.id:
            raise InputError(
                f"added token {token.content!r} has the id {token.id}, but {vocabulary[token.content]} in "
                "the vocabulary; a tokenizer.json cannot say so"
            )
    # Ids that do not count on from the vocabulary must be in it: readers do not take them from elsewhere.
    if [t.id for t in added] != list(range(len(vocabulary), len(vocabulary) + len(added))):
        vocabulary |= {token.content: token.id for token in added}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in find_pattern(parts.pattern).expressions
    ]
    merges = parts.vocabulary.merges()
    if len(merges) > 1 and (merges[1:, 3] == merges[:-1, 3]).any():  # several pairs make one token
        merges = parts.vocabulary.canonical_merges()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": t.id, "content": t.content, **{flag: getattr(t, flag) for flag in _FLAGS}} for t in added
        ],
        "normalizer": parts.normalizer.spec if parts.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": parts.template.to_spec(parts.added_tokens),
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
            "merges": [[chars[left], chars[right]] for left, right, _, _ in merges.tolist()],
        },
    }
