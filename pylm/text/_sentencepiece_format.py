"""Vocabularies of SentencePiece: `tokenizer.model`, and tokenizer.json of models made from one."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._templates import Template, read_template

SPACE_MARK = "▁"
"""Stands for a space in pieces."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# How a `save`d tokenizer.json says "drop spaces at both ends and after spaces".
_COLLAPSE = ((r"\A +", ""), (" {2,}", " "), (rf"[ {SPACE_MARK}]+\z", ""))


@dataclass(frozen=True)
class SentencePieceParts:
    """What decides the ids of a SentencePiece-style tokenizer.

    Attributes:
        pieces: text of each id; empty where an id is not in use.
        kinds: uint8, kind of each piece, by the numbers of the format.
        extra_characters: symbols that merge but have no id; theirs follow those of the pieces.
        merges: uint32 (num_merges, 4) rows of left id, right id, merged id, rank.
        special_tokens: text to id.
        byte_fallback: a character without a piece becomes its bytes.
        fuse_unknown: a run of unknown characters is one unknown token.
        prefix: when a space is put before a text.
        prefix_everywhere: whether a text after a special token gets it too.
        space_is_mark: a space is "▁" in pieces.
        collapse_spaces: drop spaces at both ends and after spaces.
        split_words: no merge crosses the border before a space.
        ignore_merges: take a word that is a piece whole.
        charsmap: SentencePiece's compiled rules of normalization; empty for none.
        template: what `add_special_tokens` puts around a text.
    """

    pieces: Sequence[str]
    kinds: NDArray[np.uint8]
    extra_characters: Sequence[str]
    merges: NDArray[np.uint32]
    special_tokens: Mapping[str, int]
    byte_fallback: bool = True
    fuse_unknown: bool = True
    prefix: Literal["never", "always", "unless_space"] = "always"
    prefix_everywhere: bool = True
    space_is_mark: bool = True
    collapse_spaces: bool = False
    split_words: bool = False
    ignore_merges: bool = False
    charsmap: bytes = b""
    template: Template = field(default_factory=Template)

    def encoder(self) -> _core.SentencePieceEncoder:
        """Make the encoder of the core; ValueError where the parts do not fit each other."""
        return _core.SentencePieceEncoder(
            self.pieces,
            self.kinds,
            self.extra_characters,
            self.merges,
            byte_fallback=self.byte_fallback,
            fuse_unknown=self.fuse_unknown,
            prefix=self.prefix,
            space_is_mark=self.space_is_mark,
            collapse_spaces=self.collapse_spaces,
            split_words=self.split_words,
            ignore_merges=self.ignore_merges,
            charsmap=self.charsmap,
        )


def is_for(path: Path) -> bool:
    """Tell whether a file is for this module: a SentencePiece model, or a tokenizer.json like one."""
    content = path.read_bytes()
    if path.suffix == ".model":  # or ranks, lines of base64 and a number
        return not re.match(rb"[\r\n]*[A-Za-z0-9+/]+={0,2} [0-9]+[\r\n]", content)
    if path.suffix != ".json":
        return False
    # The switches stand before the vocabulary, or behind it: no need to look through megabytes of tokens.
    switches = content[: content.find(b'"vocab"')] + content[-4096:]
    if re.search(rb'"type"\s*:\s*"ByteLevel"', switches):
        return False
    return bool(
        re.search(rb'"byte_fallback"\s*:\s*true|"type"\s*:\s*"Metaspace"|"(\xe2\x96\x81|\\u2581)"', switches)
    )


def read(path: Path) -> SentencePieceParts:
    """Read either kind of file that `is_for` tells.

    Raises:
        InputError: as `read_model` and `read_json`.
    """
    return read_model(path) if path.suffix == ".model" else read_json(path)


def read_model(path: Path) -> SentencePieceParts:
    """Read a `tokenizer.model`.

    Raises:
        InputError: damaged data, or a model that is not BPE; names the field or the piece.
    """
    try:
        model = _core.read_sentencepiece_model(path.read_bytes())
        merges, extra = _core.merges_of_scores(model["pieces"], model["kinds"], model["scores"])
    except ValueError as error:
        raise InputError(f"{path}: not a SentencePiece BPE model: {error}") from error
    pieces, kinds = model["pieces"], model["kinds"]
    special = {pieces[i]: int(i) for i in np.flatnonzero((kinds == CONTROL) | (kinds == UNKNOWN))}
    return SentencePieceParts(
        pieces=pieces,
        kinds=kinds,
        extra_characters=extra,
        merges=merges,
        special_tokens=special,
        byte_fallback=model["byte_fallback"],
        prefix="always" if model["add_dummy_prefix"] else "never",
        space_is_mark=model["escape_whitespaces"],
        collapse_spaces=model["remove_extra_whitespaces"],
        charsmap=model["charsmap"],
    )


def read_json(path: Path) -> SentencePieceParts:
    """Read a tokenizer.json.

    Raises:
        InputError: not JSON, a damaged entry, or a feature that these tokenizers do not have; names it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        vocabulary, merge_list = model["vocab"], model["merges"]
        size = 1 + max([*vocabulary.values(), *(t["id"] for t in document.get("added_tokens") or [])])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a tokenizer.json ({error}); expected a BPE model with vocab and merges"
        ) from error
    affixes = [model.get("dropout"), model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")]
    if model.get("type", "BPE") != "BPE" or any(affixes):
        _unsupported(path, "model", {k: v for k, v in model.items() if k not in ("vocab", "merges")})
    if size > 1 << 24 or min(vocabulary.values(), default=0) < 0:
        raise InputError(f"{path}: ids must lie in [0, {1 << 24}), got up to {size - 1}")
    normalizer = _read_normalizer(path, document.get("normalizer"))
    metaspace = _read_pre_tokenizer(path, document.get("pre_tokenizer"), normalizer["space_is_mark"])
    pieces = [""] * size
    kinds = np.full(size, NORMAL, np.uint8)
    for text, i in vocabulary.items():
        pieces[i] = text
        if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kinds[i] = BYTE
    if (unknown := model.get("unk_token")) is not None:
        if unknown not in vocabulary:
            raise InputError(f"{path}: unk_token {unknown!r} is not in the vocabulary")
        kinds[vocabulary[unknown]] = UNKNOWN
    options = {**normalizer, **metaspace}
    special = {}
    for token in document.get("added_tokens") or []:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            _unsupported(path, "added token", token)
        if not token.get("special") and options["prefix"] == "never":
            pieces[token["id"]], kinds[token["id"]] = token["content"], USER_DEFINED
        else:
            special[token["content"]] = int(token["id"])
    return SentencePieceParts(
        pieces=pieces,
        kinds=kinds,
        extra_characters=(),
        merges=_read_merges(path, merge_list, vocabulary),
        special_tokens=special,
        byte_fallback=bool(model.get("byte_fallback")),
        fuse_unknown=bool(model.get("fuse_unk")),
        ignore_merges=bool(model.get("ignore_merges")),
        template=_read_template(path, document.get("post_processor")),
        **options,
    )


def _read_template(path: Path, spec: object) -> Template:
    try:
        return read_template(spec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _unsupported(path: Path, what: str, value: object) -> NoReturn:
    raise InputError(
        f"{path}: unsupported {what}: {json.dumps(value, ensure_ascii=False)[:160]}; "
        "expected BPE over characters, as SentencePiece makes it"
    )


def _read_merges(path: Path, merges: Sequence[Any], vocabulary: Mapping[str, int]) -> NDArray[np.uint32]:
    rows = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            left, right = pair
            rows[left, right] = (vocabulary[left], vocabulary[right], vocabulary[left + right], rank)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: merge {rank} ({merge!r}) does not join two tokens to a third"
            ) from error
    return np.array(list(rows.values()), dtype=np.uint32).reshape(-1, 4)


def _read_normalizer(path: Path, value: Mapping[str, Any] | None) -> dict[str, Any]:
    steps = [value] if value and value.get("type") != "Sequence" else (value or {}).get("normalizers", [])
    prefix, marks, collapse, charsmap = "never", False, [], b""
    for step in steps:
        pattern = step.get("pattern", {})
        match step.get("type"):
            case "Prepend" if step.get("prepend") == SPACE_MARK:
                prefix = "always"
            case "Replace" if pattern == {"String": " "} and step.get("content") == SPACE_MARK:
                marks = True
            case "Replace" if (pattern.get("Regex"), step.get("content")) in _COLLAPSE and prefix == "never":
                collapse.append((pattern["Regex"], step["content"]))
            case _:
                _unsupported(path, "normalizer", value)
    if (collapse and tuple(collapse) != _COLLAPSE) or (prefix == "always" and not marks):
        _unsupported(path, "normalizer", value)
    return {
        "prefix": prefix,
        "prefix_everywhere": True,
        "space_is_mark": marks,
        "collapse_spaces": bool(collapse),
        "charsmap": charsmap,
    }


def _read_pre_tokenizer(path: Path, value: Mapping[str, Any] | None, marks: bool) -> dict[str, Any]:
    """Give what a pre-tokenizer changes of the normalizer's options."""
    if value is None:
        return {}
    if value.get("type") == "Split":
        # Gemma's: no space is left for it to find.
        if marks and value.get("pattern") == {"String": " "} and not value.get("invert"):
            return {}
        _unsupported(path, "pre-tokenizer", value)
    scheme = value.get("prepend_scheme") or ("always" if value.get("add_prefix_space", True) else "never")
    known = value.get("type") == "Metaspace" and value.get("replacement", SPACE_MARK) == SPACE_MARK
    if not known or scheme not in ("always", "first", "never"):
        _unsupported(path, "pre-tokenizer", value)
    return {
        "prefix": "never" if scheme == "never" else "unless_space",
        "prefix_everywhere": scheme != "first",
        "space_is_mark": True,
        "split_words": bool(value.get("split", True)),
    }


def write(parts: SentencePieceParts) -> dict[str, object]:
    """Give the document for a tokenizer.json.

    Raises:
        InputError: a feature that tokenizer.json cannot express with the same ids; names it.
    """
    kinds = np.asarray(parts.kinds)
    user_defined = np.flatnonzero(kinds == USER_DEFINED)
    reasons = {
        "rules of normalization (precompiled_charsmap)": bool(parts.charsmap),
        "pieces of type UNUSED": bool((kinds == UNUSED).any()),
        f"pieces of characters without a piece ({parts.extra_characters[:3]})": bool(parts.extra_characters),
        "user-defined pieces together with a space before texts": bool(len(user_defined))
        and parts.prefix != "never",
        "user-defined pieces together with the removal of spaces": bool(len(user_defined))
        and parts.collapse_spaces,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"tokenizer.json cannot express {reason}; keep the tokenizer.model instead")
    unknown = np.flatnonzero(kinds == UNKNOWN)
    added = [(i, text, True) for text, i in parts.special_tokens.items()]
    added += [(i, parts.pieces[i], False) for i in user_defined.tolist()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": not special,
                "special": special,
            }
            for i, text, special in sorted(added)
        ],
        "normalizer": _write_normalizer(parts),
        "pre_tokenizer": _write_pre_tokenizer(parts),
        "post_processor": parts.template.to_spec(
            [AddedToken(text, token_id) for text, token_id in parts.special_tokens.items()]
        ),
        "decoder": _write_decoder(parts),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": parts.pieces[int(unknown[0])] if len(unknown) else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": parts.fuse_unknown,
            "byte_fallback": parts.byte_fallback,
            "ignore_merges": parts.ignore_merges,
            "vocab": {text: i for i, text in enumerate(parts.pieces) if text},
            "merges": [
                [parts.pieces[row[0]], parts.pieces[row[1]]]
                for row in parts.merges[order_of_merges(parts)].tolist()
            ],
        },
    }


def order_of_merges(parts: SentencePieceParts) -> NDArray[np.intp]:
    """Give the places of the merges by rank.

    SentencePiece merges pieces of equal score from left to right, `tokenizers` one merge after the other.
    With the longest result first, a run of one character grows from its left end in both: such runs (of
    spaces) are the pieces that have equal scores in practice.
    """
    sizes = np.array([len(text) for text in (*parts.pieces, *parts.extra_characters)])
    left, _, merged, rank = parts.merges.T
    return np.lexsort((sizes[left], -sizes[merged], rank))


def _write_normalizer(parts: SentencePieceParts) -> dict[str, object] | None:
    steps: list[dict[str, object]] = []
    if parts.collapse_spaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
            for pattern, content in _COLLAPSE
        ]
    if parts.prefix == "always":
        steps.append({"type": "Prepend", "prepend": SPACE_MARK})
    if parts.space_is_mark and not _uses_metaspace(parts):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _uses_metaspace(parts: SentencePieceParts) -> bool:
    return parts.split_words or parts.prefix == "unless_space"


def _write_pre_tokenizer(parts: SentencePieceParts) -> dict[str, object] | None:
    if not _uses_metaspace(parts):
        return None
    scheme = "never" if parts.prefix == "never" else "always" if parts.prefix_everywhere else "first"
    return {
        "type": "Metaspace",
        "replacement": SPACE_MARK,
        "prepend_scheme": scheme,
        "split": parts.split_words,
    }


def _write_decoder(parts: SentencePieceParts) -> dict[str, object]:
    steps: list[dict[str, object]] = []
    if parts.space_is_mark:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if parts.prefix != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
