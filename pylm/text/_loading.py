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

_EXPECTED = "a tokenizer.json, a tokenizer.model, a tekken.json, a .tiktoken file, a .pylm file"


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
        pair = [path.with_name(name) for name in ("vocab.json", "merges.txt")]
        has_pair = all(file.is_file() for file in pair)
        hint = "; vocab.json and merges.txt become one by the save_pretrained of transformers"
        raise InputError(f"no tokenizer at {path}; expected {_EXPECTED} or a folder" + hint * has_pair)
    if _binary_format.is_binary(path):
        parts, roles = _binary_format.read(path, _binary_format.open_file(path), pattern)
        return parts, roles if config == TokenizerConfig() else config
    content = path.read_bytes()
    is_ranks = path.suffix == ".tiktoken" or (path.suffix != ".json" and _rank_format.is_rank_file(content))
    if special_tokens is not None and not is_ranks:
        raise InputError(f"{path}: special_tokens= is for rank files, which do not hold them; leave it out")
    if _tekken_format.is_tekken(path):
        parts, roles = _tekken_format.read(path, content, pattern)
        return parts, roles if config == TokenizerConfig() else config
    if path.suffix == ".json":
        return _hf_format.read(path, content, pattern), config
    if is_ranks:
        return _from_ranks(path, content, pattern, special_tokens), config
    if ".model" in path.suffixes:  # Mistral's have their version behind it
        if pattern is not None:
            raise InputError(f"{path}: a model of SentencePiece has no pattern; leave pattern= out")
        return _sentencepiece_format.read(path, content), config
    if not content.lstrip().startswith(b"{"):
        raise InputError(
            f"{path}: neither JSON nor ranks; expected {_EXPECTED}. A vocab.json with its merges.txt "
            "becomes a tokenizer.json by the save_pretrained of transformers"
        )
    return _hf_format.read(path, content, pattern), config


def _from_ranks(
    path: Path, content: bytes, pattern: str | None, special_tokens: Mapping[str, int] | None
) -> Parts:
    known = _rank_format.find_known(content) if pattern is None or special_tokens is None else None
    vocabulary = _rank_format.read(path, content)
    if pattern is None:
        if known is None:
            raise InputError(
                f"{path}: a rank file does not name its pattern, and this one is none of "
                f"{', '.join(k.name for k in _rank_format.KNOWN)}; give pattern= (or --pattern), "
                f"one of {', '.join(PATTERNS)}"
            )
        pattern = known.pattern
    if special_tokens is None:
        special_tokens = known.special_tokens if known else {}
    try:
        model = ByteModel(vocabulary, pattern, ignore_merges=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Parts(model, [AddedToken(text, token_id) for text, token_id in special_tokens.items()])
