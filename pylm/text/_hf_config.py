"""What lies beside a tokenizer.json in a Hugging Face folder: roles of special tokens, the chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylm.errors import InputError

ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class TokenizerConfig:
    """Roles of tokens, by their text, and how conversations are laid out.

    Attributes:
        bos_token: begins a text.
        eos_token: ends a text.
        pad_token: fills up a row of a batch.
        unk_token: stands for what has no token.
        chat_template: Jinja source, as `transformers` takes it.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None


def read_config(folder: Path) -> TokenizerConfig:
    """Read tokenizer_config.json, special_tokens_map.json and chat_template.jinja, those that there are.

    Raises:
        InputError: a damaged file; names it.
    """
    tokens: dict[str, str | None] = {}
    template = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one counts
        document = _read_json(folder / name)
        for role in ROLES:
            if (text := _token_text(document.get(f"{role}_token"), folder / name, role)) is not None:
                tokens[f"{role}_token"] = text
        template = _template_text(document.get("chat_template"), folder / name) or template
    if (path := folder / "chat_template.jinja").is_file():
        template = path.read_text(encoding="utf-8")
    return TokenizerConfig(**tokens, chat_template=template)


def write_config(config: TokenizerConfig) -> dict[str, object]:
    """Give the document for a tokenizer_config.json."""
    document: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    document |= {f"{role}_token": getattr(config, f"{role}_token") for role in ROLES}
    document["clean_up_tokenization_spaces"] = False
    if config.chat_template is not None:
        document["chat_template"] = config.chat_template
    return document


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object, got {str(document)[:40]!r}")
    return document


def _token_text(value: object, path: Path, role: str) -> str | None:
    match value:
        case None:
            return None
        case str(text) | {"content": str(text)}:
            return text
    raise InputError(f"{path}: {role}_token must be a text or an object with a content, got {value!r}")


def _template_text(value: object, path: Path) -> str | None:
    match value:
        case None:
            return None
        case str(text):
            return text
        case list(named) if all(isinstance(x, dict) and isinstance(x.get("template"), str) for x in named):
            return next((str(x["template"]) for x in named if x.get("name") == "default"), None)
    raise InputError(f"{path}: chat_template must be a text or a list of named ones, got {str(value)[:80]!r}")
