"""SentencePiece-style BPE in a tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._character_model import (
    BYTE,
    NORMAL,
    SPACE_MARK,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    CharacterModel,
)
from pylm.text._models import Parts
from pylm.text._templates import Template


def _collapse(space_is_mark: bool) -> list[tuple[str, str]]:
    """Say "drop spaces at both ends and after spaces" as a `save`d tokenizer.json does."""
    return [(r"\A +", ""), (" {2,}", " "), (rf"[ {SPACE_MARK}]+\z" if space_is_mark else r" +\z", "")]


def read(
    document: Mapping[str, Any], model: _core.HfModel, added: Sequence[AddedToken], template: Template
) -> Parts:
    """Read all but the vocabulary, which is `model`; errors as in `_hf_format.read`."""
    settings = document["model"]
    affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if settings.get("type", "BPE") != "BPE" or any(settings.get(key) for key in affixes):
        _unsupported("model", {k: v for k, v in settings.items() if k not in ("vocab", "merges")})
    normalizer = _read_normalizer(document.get("normalizer"))
    options = {**normalizer, **_read_pre_tokenizer(document.get("pre_tokenizer"), normalizer)}
    collapse = options.pop("collapse")
    if collapse and collapse != _collapse(options["space_is_mark"]):
        _unsupported("normalizer", document["normalizer"])
    vocabulary = model.vocabulary(byte_level=False, hidden=[])
    kinds = np.full(len(vocabulary), NORMAL, np.uint8)
    if settings.get("byte_fallback"):
        for byte in range(256):
            if (found := model.find(f"<0x{byte:02X}>")) is not None:
                kinds[found] = BYTE
    if (unknown := settings.get("unk_token")) is not None:
        if not isinstance(unknown, str) or (found := model.find(unknown)) is None:
            raise InputError(f"unk_token {unknown!r} is not in the vocabulary")
        if len(unknown) == 1 or found in vocabulary.merges()[:, :3]:
            raise InputError(f"unsupported unk_token {unknown!r}: text comes to it")
        kinds[found] = UNKNOWN
    words = []
    for token in added:
        if not _is_user_defined(token, normalizer):
            words.append(token)
            continue
        content = token.content.replace(" ", SPACE_MARK).encode()
        if token.id >= len(vocabulary) or vocabulary.token(token.id) != content:
            tokens = vocabulary.tokens()
            tokens += [b""] * (token.id + 1 - len(tokens))
            tokens[token.id] = content
            kinds = np.append(kinds, np.full(len(tokens) - len(kinds), NORMAL, np.uint8))
            vocabulary = _core.Vocabulary(tokens, vocabulary.merges())
        kinds[token.id] = USER_DEFINED
    made = CharacterModel(
        vocabulary=vocabulary,
        kinds=kinds,
        byte_fallback=bool(settings.get("byte_fallback")),
        fuse_unknown=bool(settings.get("fuse_unk")),
        ignore_merges=bool(settings.get("ignore_merges")),
        drop_lead=_read_decoder(document.get("decoder")),
        **options,
    )
    return Parts(made, words, template=template)


def _is_user_defined(token: AddedToken, normalizer: Mapping[str, Any]) -> bool:
    """Tell whether an added token is found where the normalizer has put marks for spaces.

    Raises:
        InputError: the normalizer changes what the token means to something that no model here has.
    """
    if not token.normalized or not (normalizer["space_is_mark"] or normalizer["collapse_spaces"]):
        return False
    strips = token.lstrip or token.rstrip
    if not strips and normalizer["prefix"] == "never" and not normalizer["collapse_spaces"]:
        if not token.special and not token.single_word:
            return True
        if not {" ", SPACE_MARK} & set(token.content):
            return False  # the same in the text as given
    raise InputError(
        f"unsupported added token {token.content!r}: it is looked for in the text as normalized, where "
        'spaces are "▁" and may have been put before; expected "normalized": false'
    )


def _unsupported(what: str, value: object) -> NoReturn:
    raise InputError(
        f"unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected BPE over characters, as SentencePiece makes it"
    )


def _read_normalizer(value: object) -> dict[str, Any]:
    match value:
        case {"type": "Sequence", "normalizers": list(steps)}:
            pass
        case _:
            steps = [] if value is None else [value]
    before, marks, collapse = "", False, []
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": str(mark)} if not before and (
                mark == SPACE_MARK or (mark == " " and not marks)
            ):
                before = mark
            case {"type": "Replace", "pattern": {"String": " "}, "content": str(mark)} if mark == SPACE_MARK:
                marks = True
            case {"type": "Replace", "pattern": {"Regex": str(old)}, "content": str(new)} if (
                not before and not marks
            ):
                collapse.append((old, new))
            case _:
                _unsupported("normalizer", value)
    if before == SPACE_MARK and not marks:
        _unsupported("normalizer", value)
    return {
        "prefix": "always" if before else "never",
        "prefix_everywhere": True,
        "space_is_mark": marks,
        "collapse_spaces": bool(collapse),
        "collapse": collapse,
    }


def _read_pre_tokenizer(value: object, normalizer: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a pre-tokenizer changes of the normalizer's options."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _unsupported("pre-tokenizer", value)
    if value.get("type") == "Split":
        # Gemma's: no space is left for it to find.
        if (
            normalizer["space_is_mark"]
            and value.get("pattern") == {"String": " "}
            and not value.get("invert")
        ):
            return {}
        _unsupported("pre-tokenizer", value)
    scheme = _metaspace_scheme(value)
    known = value.get("type") == "Metaspace" and value.get("replacement", SPACE_MARK) == SPACE_MARK
    if not known or scheme not in ("always", "first", "never"):
        _unsupported("pre-tokenizer", value)
    options = {"space_is_mark": True, "split_words": bool(value.get("split", True))}
    if normalizer["prefix"] == "always":  # no text is left that would get a second one
        return options
    if normalizer["collapse_spaces"] and scheme != "never":
        _unsupported("pre-tokenizer", value)
    prefix = "never" if scheme == "never" else "unless_space"
    return {**options, "prefix": prefix, "prefix_everywhere": scheme != "first"}


def _read_decoder(value: Any) -> bool | None:
    """Tell whether decoding takes a space at the beginning away; None where nothing is said."""
    if value is None:
        return None
    steps: list[Any] = [value]
    if isinstance(value, Mapping) and value.get("type") == "Sequence":
        steps = list(value.get("decoders") or [])
    drops = False
    for step in steps:
        match step:
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": " "} if old == SPACE_MARK:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                drops = drops or start == 1
            case {"type": "Metaspace"} if step.get("replacement", SPACE_MARK) == SPACE_MARK:
                drops = drops or _metaspace_scheme(step) != "never"
            case _:
                _unsupported("decoder", value)
    return drops


def _metaspace_scheme(value: Mapping[str, Any]) -> str:
    scheme = value.get("prepend_scheme")
    return str(scheme or ("always" if value.get("add_prefix_space", True) else "never"))


def user_defined(model: CharacterModel) -> list[AddedToken]:
    """Give the pieces of the user as added tokens."""
    ids = np.flatnonzero(model.kinds == USER_DEFINED).tolist()
    return [AddedToken(model.vocabulary.token(i).decode(), i, normalized=True, special=False) for i in ids]


def write(model: CharacterModel) -> dict[str, object]:
    """Give the entries of a tokenizer.json that are the model's.

    Raises:
        InputError: a feature that tokenizer.json cannot express with the same ids; names it.
    """
    has_user_defined = bool((model.kinds == USER_DEFINED).any())
    reasons = {
        "rules of normalization (precompiled_charsmap)": bool(model.charsmap),
        "pieces of type UNUSED": bool((model.kinds == UNUSED).any()),
        f"pieces of characters without a piece ({list(model.extra_characters[:3])})": bool(
            model.extra_characters
        ),
        "user-defined pieces together with a space before texts": has_user_defined
        and model.prefix != "never",
        "user-defined pieces together with the removal of spaces": has_user_defined and model.collapse_spaces,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"tokenizer.json cannot express {reason}; keep the tokenizer.model instead")
    pieces = model.pieces()
    unknown = np.flatnonzero(model.kinds == UNKNOWN)
    return {
        "normalizer": _write_normalizer(model),
        "pre_tokenizer": _write_pre_tokenizer(model),
        "decoder": _write_decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[int(unknown[0])] if len(unknown) else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": model.fuse_unknown,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": model.ignore_merges,
            "vocab": {text: i for i, text in enumerate(pieces) if text},
            "merges": [
                [pieces[row[0]], pieces[row[1]]]
                for row in model.vocabulary.merges()[model.order_of_merges()].tolist()
            ],
        },
    }


def _write_normalizer(model: CharacterModel) -> dict[str, object] | None:
    steps: list[dict[str, object]] = []
    if model.collapse_spaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
            for pattern, content in _collapse(model.space_is_mark)
        ]
    if model.prefix == "always":
        steps.append({"type": "Prepend", "prepend": SPACE_MARK if model.space_is_mark else " "})
    if model.space_is_mark and (model.prefix == "always" or not _uses_metaspace(model)):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _uses_metaspace(model: CharacterModel) -> bool:
    return model.split_words or model.prefix == "unless_space"


def _write_pre_tokenizer(model: CharacterModel) -> dict[str, object] | None:
    if not _uses_metaspace(model):
        return None
    scheme = "never" if model.prefix != "unless_space" else "always" if model.prefix_everywhere else "first"
    return {
        "type": "Metaspace",
        "replacement": SPACE_MARK,
        "prepend_scheme": scheme,
        "split": model.split_words,
    }


def _write_decoder(model: CharacterModel) -> dict[str, object]:
    steps: list[dict[str, object]] = []
    if model.space_is_mark:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.lead:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
