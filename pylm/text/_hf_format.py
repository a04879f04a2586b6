"""tokenizer.json, as the `tokenizers` library writes it: what all kinds of it share."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pylm import _core
from pylm.errors import InputError
from pylm.text import _hf_bytes, _hf_characters
from pylm.text._added_tokens import FLAGS, AddedToken
from pylm.text._byte_model import ByteModel
from pylm.text._character_model import CharacterModel
from pylm.text._models import Parts
from pylm.text._templates import read_template


def read(path: Path, content: bytes, pattern: str | None = None) -> Parts:
    """Read a tokenizer.json.

    Args:
        path: its name, for messages.
        content: its bytes.
        pattern: takes the place of the one that a byte-level file names.

    Raises:
        InputError: not JSON, a damaged entry, or a feature that no tokenizer here has; names it.
    """
    try:
        model = _core.HfModel(content)
        document = json.loads(model.rest)
        json.dumps(document, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError) as error:
        if (kind := _kind_of_model(content)) not in (None, "BPE"):
            raise InputError(f"{path}: its model is of type {kind}; expected BPE") from error
        hint = "" if "expected a BPE model" in str(error) else "; expected a BPE model with vocab and merges"
        raise InputError(f"{path}: not a tokenizer.json ({error}){hint}") from error
    try:
        added = _read_added_tokens(document.get("added_tokens"), model)
        template = read_template(document.get("post_processor"))
        if _is_of_characters(document):
            return _hf_characters.read(document, model, added, template)
        return _hf_bytes.read(document, model, added, template, pattern)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _kind_of_model(content: bytes) -> str | None:
    """Give the type that a file names, where it can be read at all."""
    try:
        match json.loads(content):
            case {"model": {"type": str(kind)}}:
                return kind
    except (ValueError, RecursionError):
        pass
    return None


def _is_of_characters(document: Mapping[str, Any]) -> bool:
    """Tell whether pieces are made of characters, as SentencePiece has them."""
    switches = json.dumps({k: v for k, v in document.items() if k != "added_tokens"}, ensure_ascii=False)
    if '"type": "ByteLevel"' in switches:
        return False
    return re.search(r'"byte_fallback": true|"type": "Metaspace"|"▁"', switches) is not None


def _read_added_tokens(value: object, model: _core.HfModel) -> list[AddedToken]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"unsupported added_tokens: expected a list, got {str(value)[:160]}")
    added = []
    largest = (1 << 20) + 8 * (len(model) + len(value))
    for entry in value:
        match entry:
            case {"content": str(content), "id": int(token_id)} if (
                not isinstance(token_id, bool)
                and 0 <= token_id <= largest
                and all(isinstance(entry.get(flag), bool | None) for flag in FLAGS)
            ):
                flags = {flag: bool(entry.get(flag)) for flag in FLAGS}
            case _:
                raise InputError(
                    f"unsupported added token: {json.dumps(entry, ensure_ascii=False)[:160]}; expected an "
                    "object with content, id and flags"
                )
        if (known := model.find(content)) is not None and known != token_id:
            raise InputError(f"added token {content!r} has the id {token_id}, but {known} in the vocabulary")
        added.append(AddedToken(content, token_id, **flags))
    return added


def write(parts: Parts) -> dict[str, object]:
    """Give the document for a tokenizer.json.

    Raises:
        InputError: what a tokenizer.json cannot express with the same ids; names it.
    """
    added = list(parts.added_tokens)
    if isinstance(parts.model, CharacterModel):
        added += _hf_characters.user_defined(parts.model)
    added.sort(key=lambda t: t.id)
    document: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": t.id, "content": t.content, **{flag: getattr(t, flag) for flag in FLAGS}} for t in added
        ],
        "normalizer": parts.normalizer.spec if parts.normalizer else None,
        "post_processor": parts.template.to_spec(parts.added_tokens),
    }
    match parts.model:
        case ByteModel() as bytes_:
            return document | _hf_bytes.write(bytes_, added, parts.normalizer)
        case CharacterModel() as characters:
            return document | _hf_characters.write(characters)
    raise AssertionError(f"no tokenizer.json for {type(parts.model).__name__}")
