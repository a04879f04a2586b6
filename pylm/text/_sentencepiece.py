"""The tokenizer over characters: SentencePiece-style BPE behind the public class."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text import _sentencepiece_format as sentencepiece_format
from pylm.text._added_tokens import AddedToken, AddedVocabulary, AllowedSpecial, Masks
from pylm.text._decoding import TokenOffsets
from pylm.text._hf_config import ROLES, TokenizerConfig
from pylm.text._sentencepiece_format import BYTE, CONTROL, NORMAL, SPACE_MARK, SentencePieceParts
from pylm.text.patterns import PretokenPattern
from pylm.text.texts import Texts, to_list
from pylm.text.token_array import TokenArray
from pylm.text.tokenizer import Tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A `Tokenizer` whose model merges characters; what `Tokenizer.load` gives for such files."""

    def __init__(self, parts: SentencePieceParts, *, config: TokenizerConfig | None = None) -> None:
        """Assemble a tokenizer of the parts of a file.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        self.pattern = "sentencepiece"
        self._pretoken = PretokenPattern(self.pattern, ())  # the core cuts text by the vocabulary
        self._parts = parts
        self._normalizer = None
        self._template = parts.template
        self._config = config or TokenizerConfig()
        self._added = AddedVocabulary([AddedToken(t, i) for t, i in parts.special_tokens.items()], None)
        self._added_encoder = None
        self._lead = b" " if parts.prefix != "never" else b""
        try:
            self._core = self._sentencepiece = parts.encoder()
            pieces = [self._piece_bytes(i) for i in range(len(parts.pieces))]
            special = list(self._added.special.items())
            self._decoder = _core.TokenDecoder(
                _core.Vocabulary(pieces, np.zeros((0, 4), np.uint32)),
                added=[(i, text) for text, i in special],
                special=[i for _, i in special],
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self._role_ids = {role: self._find_role(role) for role in ROLES}

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
            json.dumps([switches, parts.prefix, sorted(self._added.special.items())]).encode(),
            json.dumps([list(parts.pieces), list(parts.extra_characters)]).encode(),
            kinds.astype(np.uint8).tobytes(),
            np.ascontiguousarray(merges).tobytes(),
            parts.charsmap,
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def encode_with_offsets(
        self,
        text: str,
        *,
        allowed_special: AllowedSpecial = (),
        disallowed_special: AllowedSpecial = "all",
    ) -> TokenOffsets:
        """Refuse: the rules of these models change a text in ways that keep no places.

        Raises:
            InputError: always.
        """
        raise InputError("offsets are known of byte-level tokenizers only, not of SentencePiece-style ones")

    def encode_batch(
        self,
        texts: Texts | Sequence[bytes] | NDArray[np.str_ | np.object_],
        *,
        allowed_special: AllowedSpecial = (),
        disallowed_special: AllowedSpecial = (),
        end_id: int | None = None,
        num_threads: int = 0,
    ) -> TokenArray:
        """Turn many texts into ids; arguments and errors as in `Tokenizer.encode_batch`."""
        if not allowed_special and not disallowed_special:
            return super().encode_batch(texts, end_id=end_id, num_threads=num_threads)
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a sequence of texts, got a single one; use encode")
        end = [] if end_id is None else [end_id]
        rows = []
        for text in to_list(texts):
            content = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
            ids = self.encode(content, allowed_special=allowed_special, disallowed_special=disallowed_special)
            rows.append(np.array([*ids, *end], np.uint32))
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return TokenArray(np.concatenate([np.zeros(0, np.uint32), *rows]), offsets)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, alone or in a folder, as `Tokenizer.save` does.

        Raises:
            InputError: the model has what a tokenizer.json cannot express; names it.
        """
        if Path(path).suffix == ".tiktoken":
            raise InputError(f"{path}: a rank file holds byte-level BPE only; save a tokenizer.json")
        super().save(path)

    def _to_json(self) -> str:
        return json.dumps(sentencepiece_format.write(self._parts), ensure_ascii=False)

    def _piece_bytes(self, token_id: int) -> bytes:
        """Give the bytes of an id; a space where its piece has "▁"."""
        piece = self._parts.pieces[token_id]
        if self._parts.kinds[token_id] == BYTE:
            return bytes([int(piece[3:5], 16)])
        return (piece.replace(SPACE_MARK, " ") if self._parts.space_is_mark else piece).encode()

    def _encode_bytes(self, content: bytes, enabled: Masks) -> list[int]:
        ids: list[int] = []
        for stretch in self._added.cut(content, enabled):
            if stretch.token is not None:
                ids.append(stretch.token)
                continue
            with_prefix = stretch.begin == 0 or self._parts.prefix_everywhere
            ids += self._sentencepiece.encode(stretch.text, with_prefix=with_prefix)
        return ids
