"""Tokenizers through their binary form."""

from pathlib import Path

from pylm.errors import InputError
from pylm.text import Tokenizer


def through_binary(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Save a tokenizer as `.pylm`, load it, and see that all it says of itself is the same."""
    path = folder / "through.pylm"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert_same(again, tokenizer, folder)
    return again


def assert_same(again: Tokenizer, original: Tokenizer, folder: Path) -> None:
    for name in (
        *("fingerprint", "vocab_size", "special_tokens", "added_tokens", "pattern", "chat_template"),
        *("bos_id", "eos_id", "pad_id", "unk_id"),
    ):
        assert getattr(again, name) == getattr(original, name), name
    assert _saved(again, folder / "saved.pylm") == _saved(original, folder / "saved.pylm")
    assert _saved(again, folder / "saved.json") == _saved(original, folder / "saved.json")
    assert _saved(again, folder / "saved.tiktoken") == _saved(original, folder / "saved.tiktoken")


def _saved(tokenizer: Tokenizer, path: Path) -> bytes | str:
    """What is written, or why not."""
    try:
        tokenizer.save(path)
    except InputError as error:
        return str(error)
    return path.read_bytes()
