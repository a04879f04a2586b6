"""Byte-level BPE in a tokenizer.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import regex

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._byte_alphabet import BYTE_TO_CHAR, CHAR_TO_BYTE
from pylm.text._byte_model import ByteModel, MissingBytes
from pylm.text._models import Parts
from pylm.text._normalizers import Normalizer, read_normalizer
from pylm.text._templates import Template
from pylm.text.patterns import PATTERNS, PretokenPattern, find_splits

_log = logging.getLogger(__name__)

_WHOLE = r"[\s\S]+"
# Rust's `is_ascii_punctuation` has symbols too.
_PUNCTUATION = r"[\p{P}$+<=>^`|~]"
_NO_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# These match every character, so that what "Removed" with "invert" takes away is nothing.
_COMPLETE = frozenset(p.expression for p in PATTERNS.values() if len(p.expressions) == 1)


def read(
    document: Mapping[str, Any],
    model: _core.HfModel,
    added: Sequence[AddedToken],
    template: Template,
    pattern: str | None,
) -> Parts:
    """Read all but the vocabulary, which is `model`; errors as in `_hf_format.read`."""
    settings = document["model"]
    affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if settings.get("type", "BPE") != "BPE" or any(settings.get(key) for key in affixes):
        _unsupported("model", {k: v for k, v in settings.items() if k not in ("vocab", "merges")})
    ignore_merges = settings.get("ignore_merges")
    if not isinstance(ignore_merges, bool | None):
        _unsupported("ignore_merges", ignore_merges)
    own_pattern, prefix_space = _read_pre_tokenizer(document.get("pre_tokenizer"))
    _check_decoder(document.get("decoder"))
    # Ordinary text must not become a special token, not even as a whole piece. Other words may.
    hidden = [
        t.id for t in added if t.special or not ignore_merges or not set(t.content) <= CHAR_TO_BYTE.keys()
    ]
    vocabulary = model.vocabulary(byte_level=True, hidden=hidden)
    added_ids = {t.id for t in added}
    return Parts(
        ByteModel(
            vocabulary,
            pattern or own_pattern,
            ignore_merges=bool(ignore_merges),
            missing=_read_missing(settings, model),
            prefix_space=prefix_space,
            unreachable=[(i, text) for i, text in model.beyond_alphabet(vocabulary) if i not in added_ids],
        ),
        added_tokens=added,
        normalizer=read_normalizer(document.get("normalizer")),
        template=template,
    )


def _unsupported(what: str, value: object) -> NoReturn:
    raise InputError(
        f"unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected byte-level BPE with a known pattern"
    )


def _read_missing(settings: Mapping[str, Any], model: _core.HfModel) -> MissingBytes | None:
    missing = sorted(byte for byte, char in BYTE_TO_CHAR.items() if model.find(char) is None)
    if not missing:
        return None
    if settings.get("byte_fallback"):
        _unsupported("byte_fallback", f"with no token for byte {missing[0]}")
    text = settings.get("unk_token")
    unknown = None
    if text is not None:
        unknown = model.find(text) if isinstance(text, str) else None
        if unknown is None:
            raise InputError(f"unk_token {text!r} is not in the vocabulary, nor is byte {missing[0]}")
    if in_text := [byte for byte in missing if byte not in _NO_UTF8]:
        _log.warning(
            "the vocabulary has no token for %d bytes (%s); in text they %s",
            len(in_text),
            ", ".join(f"0x{byte:02X}" for byte in in_text[:8]) + (", ..." if len(in_text) > 8 else ""),
            "are dropped" if unknown is None else f"become {text!r}",
        )
    return MissingBytes(unknown, bool(settings.get("fuse_unk")))


def _flatten(value: object) -> list[Any]:
    """Give the pre-tokenizers of a sequence of them, which may hold others."""
    match value:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [leaf for part in parts for leaf in _flatten(part)]
    return [value]


def _read_pre_tokenizer(value: object) -> tuple[PretokenPattern, bool]:
    """Give the pattern, and whether a space is put before text."""
    before: list[str] = []
    after: list[str] = []
    has_level = prefix_space = False
    for part in _flatten(value):
        if (expression := _read_split(part)) is not None:
            (after if has_level else before).append(expression)
            continue
        match part:
            case {"type": "ByteLevel"} if not has_level:
                has_level = True
                # Behind other cuts each piece would get a space.
                prefix_space = bool(part.get("add_prefix_space"))
                if prefix_space and before:
                    _unsupported("pre-tokenizer", value)
                if part.get("use_regex", True):
                    before.append(PATTERNS["gpt2"].expression)
            case _:
                _unsupported("pre-tokenizer", value)
    if not has_level:
        _unsupported("pre-tokenizer", value)
    return find_splits(before or [_WHOLE], after), prefix_space


def _read_split(part: Any) -> str | None:
    """Give the expression whose matches, and what lies between them, a pre-tokenizer makes pieces of."""
    match part:
        case {"type": "Split", "pattern": pattern, "behavior": str(behavior)}:
            match pattern:
                case {"Regex": str(expression)}:
                    pass
                case {"String": str(text)} if text:
                    expression = regex.escape(text, special_only=True)
                case _:
                    return None
            is_removed = behavior == "Removed" and part.get("invert") and expression in _COMPLETE
            return expression if behavior == "Isolated" or is_removed else None
        case {"type": "Digits"}:
            return r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
        case {"type": "Punctuation"}:
            behavior = part.get("behavior", "Isolated")
            return {"Isolated": _PUNCTUATION, "Contiguous": _PUNCTUATION + "+"}.get(behavior)
    return None


def _check_decoder(value: object) -> None:
    match value:
        case None | {"type": "ByteLevel"}:
            return
        case {"type": "Sequence", "decoders": [*parts]} if all(
            isinstance(part, Mapping) and part.get("type") in ("ByteLevel", "Fuse") for part in parts
        ):
            return
    _unsupported("decoder", value)


def _byte_level(*, add_prefix_space: bool = False, use_regex: bool = False) -> dict[str, object]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _write_pre_tokenizer(model: ByteModel) -> dict[str, object]:
    expressions = model.pretoken.expressions
    before, after = (
        [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
            for expression in side
        ]
        for side in (expressions, model.pretoken.byte_expressions)
    )
    level = _byte_level()
    if model.prefix_space:
        if expressions not in ((_WHOLE,), PATTERNS["gpt2"].expressions):
            raise InputError(
                f"a space before texts that are cut by {model.pattern!r}: a tokenizer.json cannot say so"
            )
        before = []
        level = _byte_level(add_prefix_space=True, use_regex=expressions != (_WHOLE,))
    return {"type": "Sequence", "pretokenizers": [*before, level, *after]}


def _is_always_found(token: AddedToken, normalizer: Normalizer | None) -> bool:
    if token.single_word or not token.content.isascii():
        return False
    if normalizer is None:
        return True
    if token.normalized:
        return normalizer(token.content) == token.content
    return normalizer.form == "NFC"  # others may make its text of another


def write(model: ByteModel, added: Sequence[AddedToken], normalizer: Normalizer | None) -> dict[str, object]:
    """Give the entries of a tokenizer.json that are the model's; `added` in the order of ids.

    Raises:
        InputError: an added token whose id a tokenizer.json cannot express with the same ids; names it.
    """
    chars = model.vocabulary.alphabet_tokens()
    vocabulary = {text: i for i, text in enumerate(chars) if text}
    vocabulary |= {text: i for i, text in model.unreachable}
    for token in added:
        if vocabulary.get(token.content, token.id) != token.id:
            raise InputError(
                f"added token {token.content!r} has the id {token.id}, but {vocabulary[token.content]} in "
                "the vocabulary; a tokenizer.json cannot say so"
            )
    missing = model.missing or MissingBytes()
    # Ids that do not count on from the vocabulary must be in it: readers do not take them from elsewhere.
    others = [t for t in added if t.content not in vocabulary]
    in_order = list(range(len(vocabulary), len(vocabulary) + len(others)))
    if [t.id for t in others] != in_order or missing.unknown in in_order:
        for token in others if model.ignore_merges else ():
            # As a piece it would be taken whole where it is not recognised.
            if set(token.content) <= CHAR_TO_BYTE.keys() and not _is_always_found(token, normalizer):
                raise InputError(
                    f"added token {token.content!r} has the id {token.id}, which does not count on from the "
                    "vocabulary; a tokenizer.json with ignore_merges cannot say so"
                )
        vocabulary |= {token.content: token.id for token in others}
    merges = model.vocabulary.merges()
    if len(merges) > 1 and (merges[1:, 3] == merges[:-1, 3]).any():  # several pairs make one token
        merges = model.vocabulary.canonical_merges()
    return {
        "pre_tokenizer": _write_pre_tokenizer(model),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((text for text, i in vocabulary.items() if i == missing.unknown), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": missing.fuse,
            "byte_fallback": False,
            "ignore_merges": model.ignore_merges,
            "vocab": vocabulary,
            "merges": [[chars[left], chars[right]] for left, right, _, _ in merges.tolist()],
        },
    }
