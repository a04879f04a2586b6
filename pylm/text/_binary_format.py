"""pylm's own file, `.pylm`: a tokenizer with all its tables, ready to use.

The file is that of csrc/tokenizer/section_file.hpp; what has no table is described here, in JSON.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import FLAGS, AddedToken
from pylm.text._byte_model import ByteModel, MissingBytes
from pylm.text._character_model import CharacterModel
from pylm.text._hf_config import TokenizerConfig
from pylm.text._models import Model, Parts
from pylm.text._normalizers import read_normalizer
from pylm.text._templates import Template
from pylm.text.patterns import PATTERNS, PretokenPattern, find_splits

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SUFFIX = ".pylm"
MAGIC_BYTES = 8

_SWITCHES = (
    "byte_fallback", "fuse_unknown", "prefix", "prefix_everywhere", "space_is_mark", "collapse_spaces",
    "split_words", "ignore_merges", "drop_lead",
)  # fmt: skip


def is_binary(path: Path) -> bool:
    """Tell a file by its first bytes, or where they are damaged by its name."""
    with path.open("rb") as file:
        return path.suffix == SUFFIX or _core.TokenizerFile.is_one(file.read(MAGIC_BYTES))


def open_file(path: Path) -> _core.TokenizerFile:
    """Map a file and look at every byte of it.

    Raises:
        InputError: no such file, one of another version, or a damaged one; names it and the reason.
    """
    try:
        return _core.TokenizerFile(os.fsencode(path))
    except ValueError as error:
        raise InputError(_message(path, error)) from error


def of_buffer(content: "ReadableBuffer") -> _core.TokenizerFile:
    """Take the bytes that `write` gave, which are not copied; errors as in `open_file`."""
    try:
        return _core.TokenizerFile.of_buffer(content)
    except ValueError as error:
        raise InputError(_message("the bytes", error)) from error


def read(
    name: str | Path, file: _core.TokenizerFile, pattern: str | None = None
) -> tuple[Parts, TokenizerConfig]:
    """Give what a file holds; it stays mapped as long as a part is in use.

    Args:
        name: of the file, for messages.
        file: the file.
        pattern: takes the place of its own.

    Raises:
        InputError: parts that do not fit each other; names the file and the reason.
    """
    try:
        document = json.loads(file.description)
        if b"\\ud" in file.description.lower():
            json.dumps(document, ensure_ascii=False).encode()  # refuses lone surrogates
        template = document["template"]
        parts = Parts(
            _read_model(document, file, pattern),
            added_tokens=[_read_added(*row) for row in document["added_tokens"]],
            normalizer=read_normalizer(document["normalizer"]),
            template=Template(
                tuple(map(_read_id, template["before"])),
                tuple(map(_read_id, template["after"])),
                None if template["spec"] is None else _expect(template["spec"], dict),
            ),
        )
        if parts.template.spec is None and not (
            {*parts.template.before, *parts.template.after} <= {token.id for token in parts.added_tokens}
        ):
            raise InputError("its template has ids of no added token")
        roles = {role: _expect(text, str, type(None)) for role, text in document["config"].items()}
        return parts, TokenizerConfig(**roles)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(_message(name, error)) from error


def _expect(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise InputError(f"its description has {value!r}, expected {' or '.join(t.__name__ for t in types)}")
    return value


def _read_id(value: object) -> int:
    token_id: int = _expect(value, int)
    if not 0 <= token_id < 1 << 32:
        raise InputError(f"its description has the id {token_id}, which is none")
    return token_id


def _read_added(content: object, token_id: object, *flags: object) -> AddedToken:
    return AddedToken(_expect(content, str), _read_id(token_id), *(_expect(flag, bool) for flag in flags))


def _message(name: str | Path, error: Exception) -> str:
    return (
        f"{name}: not a {SUFFIX} file that can be read: {str(error) or type(error).__name__}; save it again "
        "from the file that it was made of"
    )


def _read_model(document: Mapping[str, Any], file: _core.TokenizerFile, pattern: str | None) -> Model:
    match document["model"]:
        case "bytes":
            return _read_bytes(document, file, pattern)
        case "characters":
            return _read_characters(document, file)
    raise InputError(f"its model is {document['model']!r}, which this pylm does not have")


def _read_bytes(document: Mapping[str, Any], file: _core.TokenizerFile, pattern: str | None) -> ByteModel:
    missing = document["missing"]
    return ByteModel(
        _core.Vocabulary.of_file(file),
        pattern or _read_pattern(document["pattern"]),
        ignore_merges=_expect(document["ignore_merges"], bool),
        missing=None if missing is None else _read_missing(**missing),
        prefix_space=_expect(document["prefix_space"], bool),
        unreachable=[(_read_id(token_id), _expect(text, str)) for token_id, text in document["unreachable"]],
        file=file,
    )


def _read_missing(unknown: object, fuse: object) -> MissingBytes:
    return MissingBytes(None if unknown is None else _read_id(unknown), _expect(fuse, bool))


def _read_pattern(value: Mapping[str, Any]) -> PretokenPattern:
    pattern = PretokenPattern(
        _expect(value["name"], str),
        tuple(_expect(expression, str) for expression in value["expressions"]),
        _expect(value["has_machine"], bool),
        tuple(_expect(expression, str) for expression in value["byte_expressions"]),
    )
    if not pattern.has_machine:
        find_splits(pattern.expressions, pattern.byte_expressions)
    elif PATTERNS.get(pattern.name) != pattern:
        raise InputError(f"its pattern {pattern.name!r} is none of this pylm: {', '.join(PATTERNS)}")
    return pattern


def _read_characters(document: Mapping[str, Any], file: _core.TokenizerFile) -> CharacterModel:
    return CharacterModel(
        vocabulary=_core.Vocabulary.of_file(file),
        kinds=file.kinds,
        extra_characters=document["extra_characters"],
        charsmap=file.charsmap,
        file=file,
        **{name: document["switches"][name] for name in _SWITCHES},
    )


def write(parts: Parts, config: TokenizerConfig, decoder: _core.TokenDecoder) -> bytes:
    """Give the bytes of a file; `decoder` is that of the parts."""
    template = parts.template
    document: dict[str, object] = {
        "added_tokens": [
            [t.content, t.id, *(getattr(t, flag) for flag in FLAGS)] for t in parts.added_tokens
        ],
        "normalizer": parts.normalizer.spec if parts.normalizer else None,
        "template": {"before": template.before, "after": template.after, "spec": template.spec},
        "config": vars(config),
    }
    match parts.model:
        case ByteModel() as bytes_:
            pattern = bytes_.pretoken
            document |= {
                "model": "bytes",
                "pattern": vars(pattern),
                "ignore_merges": bytes_.ignore_merges,
                "missing": vars(bytes_.missing) if bytes_.missing else None,
                "prefix_space": bytes_.prefix_space,
                "unreachable": bytes_.unreachable,
            }
            description = json.dumps(document).encode()
            return _core.write_tokenizer_file(description, bytes_.vocabulary, bytes_.core, decoder)
        case CharacterModel() as characters:
            document |= {
                "model": "characters",
                "extra_characters": list(characters.extra_characters),
                "switches": {name: getattr(characters, name) for name in _SWITCHES},
            }
            return _core.write_tokenizer_file(
                json.dumps(document).encode(),
                characters.vocabulary,
                characters.core,
                decoder,
                kinds=characters.kinds,
                charsmap=characters.charsmap,
            )
    raise AssertionError(f"no binary form for {type(parts.model).__name__}")
