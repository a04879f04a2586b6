"""Byte-level BPE in a tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._byte_alphabet import CHAR_TO_BYTE
from pylm.text._byte_model import ByteModel
from pylm.text._models import Parts
from pylm.text._normalizers import read_normalizer
from pylm.text._templates import Template
from pylm.text.patterns import PATTERNS, PretokenPattern, find_splits


def read(
    document: Mapping[str, Any],
    model: _core.HfModel,
    added: Sequence[AddedToken],
    template: Template,
    pattern: str | None,
) -> Parts:
    """Read all but the vocabulary, which is `model`; errors as in `_hf_format.read`."""
    settings = document["model"]
    if settings.get("type", "BPE") != "BPE" or any(
        settings.get(key)
        for key in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        _unsupported("model", {k: v for k, v in settings.items() if k not in ("vocab", "merges")})
    ignore_merges = settings.get("ignore_merges")
    if not isinstance(ignore_merges, bool | None):
        _unsupported("ignore_merges", ignore_merges)
    own_pattern = _read_pattern(document.get("pre_tokenizer"))
    # Ordinary text must not become a special token, not even as a whole piece. Other words may.
    hidden = [
        t.id for t in added if t.special or not ignore_merges or not set(t.content) <= CHAR_TO_BYTE.keys()
    ]
    vocabulary = model.vocabulary(byte_level=True, hidden=hidden)
    return Parts(
        ByteModel(vocabulary, pattern or own_pattern, ignore_merges=bool(ignore_merges)),
        added_tokens=added,
        normalizer=read_normalizer(document.get("normalizer")),
        template=template,
    )


def _unsupported(what: str, value: object) -> NoReturn:
    raise InputError(
        f"unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected byte-level BPE with a known pattern"
    )


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


def write(model: ByteModel, added: Sequence[AddedToken]) -> dict[str, object]:
    """Give the entries of a tokenizer.json that are the model's; `added` in the order of ids."""
    chars = model.vocabulary.alphabet_tokens()
    vocabulary = {text: i for i, text in enumerate(chars) if text}
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
        for expression in model.pretoken.expressions
    ]
    merges = model.vocabulary.merges()
    if len(merges) > 1 and (merges[1:, 3] == merges[:-1, 3]).any():  # several pairs make one token
        merges = model.vocabulary.canonical_merges()
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": model.ignore_merges,
            "vocab": vocabulary,
            "merges": [[chars[left], chars[right]] for left, right, _, _ in merges.tolist()],
        },
    }
