"""The tokenizer over characters: SentencePiece-style BPE behind the public class."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import regex
import xxhash

from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text import _sentencepiece_format as sentencepiece_format
from pylm.text._sentencepiece_format import BYTE, CONTROL, NORMAL, SPACE_MARK, SentencePieceParts
from pylm.text.patterns import PretokenPattern
from pylm.text.tokenizer import Tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A `Tokenizer` whose model merges characters; what `Tokenizer.load` gives for such files."""

    def __init__(self, parts: SentencePieceParts) -> None:
        """Assemble a tokenizer of the parts of a file.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        self.pattern = "sentencepiece"
        self._pretoken = PretokenPattern(self.pattern, ())  # the core cuts text by the vocabulary
        self._parts = parts
        self._normalizer = None
        self._special = dict(parts.special_tokens)
        self._special_by_id = {v: k for k, v in self._special.items()}
        self._vocab_size = max(len(parts.pieces), *(i + 1 for i in self._special.values()), 0)
        try:
            self._core = self._sentencepiece = parts.encoder()
        except ValueError as error:
            raise InputError(str(error)) from error
        names = sorted(self._special, key=len, reverse=True)
        self._special_pattern = regex.compile("|".join(map(regex.escape, names))) if names else None

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides ids: equal for tokenizers that give equal ids."""
        digest = xxhash.xxh3_128()
        parts = self._parts
        # As a saved file has them: without ranks of their own, and no kind for what is not found in text.
        merges = parts.merges[sentencepiece_format.order_of_merges(parts)][:, :3]
        kinds = np.where(parts.kinds == CONTROL, NORMAL, parts.kinds)
        switches = {f.name: getattr(parts, f.name) for f in fields(parts) if f.type in ("bool", bool)}
        for part in (
            json.dumps([switches, parts.prefix, sorted(self._special.items())]).encode(),
            json.dumps([list(parts.pieces), list(parts.extra_characters)]).encode(),
            kinds.astype(np.uint8).tobytes(),
            np.ascontiguousarray(merges).tobytes(),
            parts.charsmap,
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes, special tokens into their text; without the space put before a text."""
        content = super().decode_bytes(ids)
        return content.removeprefix(b" ") if self._parts.prefix != "never" else content

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes of one id; a space where its piece has "▁".

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        token_id = int(token_id)
        if token_id in self._special_by_id:
            return self._special_by_id[token_id].encode()
        pieces = self._parts.pieces
        if not 0 <= token_id < len(pieces) or not pieces[token_id]:
            raise InputError(f"token id {token_id} is not in the vocabulary of {self.vocab_size}")
        if self._parts.kinds[token_id] == BYTE:
            return bytes([int(pieces[token_id][3:5], 16)])
        text = pieces[token_id]
        return (text.replace(SPACE_MARK, " ") if self._parts.space_is_mark else text).encode()

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json that `tokenizers` and `transformers` load with the same ids.

        Raises:
            InputError: the model has what a tokenizer.json cannot express; names it.
        """
        document = sentencepiece_format.write(self._parts)
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")

    def _encode_part(self, text: str, *, is_first: bool) -> list[int]:
        with_prefix = is_first or self._parts.prefix_everywhere
        return self._sentencepiece.encode(self._to_bytes(text), with_prefix=with_prefix)
