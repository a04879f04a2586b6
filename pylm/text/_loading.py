"""Files to tokenizers: what a file is, and the reader for it."""

from collections.abc import Mapping
from pathlib import Path

from pylm.errors import InputError
from pylm.text import _binary_format, _hf_format, _rank_format, _sentencepiece_format, _tekken_format
from pylm.text._added_tokens import AddedToken
from pylm.text._byte_model import ByteModel
from pylm.text._hf_config import TokenizerConfig, read_config
from pylm.text._models import Parts
from pylm.text.patterns import PATTERNS


def load(
    path: Path, pattern: str | None, special_tokens: Mapping[str, int] | None
) -> tuple[Parts, TokenizerConfig]:
    """Read a file, or a folder with one; arguments and errors as in `Tokenizer.load`."""
    config = TokenizerConfig()
    if path.is_dir():
        config = read_config(path)
        names = ("tokenizer.json", "tokenizer.model", "tekken.json", "tokenizer.pylm")
        path = path / next((name for name in names if (path / name).exists()), names[0])
    if not path.is_file():
        raise InputError(
            f"no tokenizer at {path}; expected a tokenizer.json, a tokenizer.model, a tekken.json, "
            "a .tiktoken file, a .pylm file or a folder"
        )
    if _binary_format.is_binary(path):
        parts, roles = _binary_format.read(path, _binary_format.open_file(path), pattern)
        return parts, roles if config == TokenizerConfig() else config
    content = path.read_bytes()
    if _tekken_format.is_tekken(path):
        parts, roles = _tekken_format.read(path, content, pattern)
        return parts, roles if config == TokenizerConfig() else config
    if path.suffix == ".json":
        return _hf_format.read(path, content, pattern), config
    if path.suffix == ".tiktoken" or _rank_format.is_rank_file(content):
        return _from_ranks(path, content, pattern, special_tokens), config
    if ".model" in path.suffixes:  # Mistral's have their version behind it
        return _sentencepiece_format.read(path, content), config
    return _hf_format.read(path, content, pattern), config


def _from_ranks(
    path: Path, content: bytes, pattern: str | None, special_tokens: Mapping[str, int] | None
) -> Parts:
    known = _rank_format.find_known(content) if pattern is None or special_tokens is None else None
    if pattern is None:
        if known is None:
            raise InputError(
                f"{path}: a rank file does not name its pattern, and this one is none of "
                f"{', '.join(k.name for k in _rank_format.KNOWN)}; give pattern=, one of "
                f"{', '.join(PATTERNS)}"
            )
        pattern = known.pattern
    if special_tokens is None:
        special_tokens = known.special_tokens if known else {}
    vocabulary = _rank_format.read(path, content)
    try:
        model = ByteModel(vocabulary, pattern, ignore_merges=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Parts(model, [AddedToken(text, token_id) for text, token_id in special_tokens.items()])
