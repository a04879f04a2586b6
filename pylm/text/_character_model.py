"""The model over characters: BPE as SentencePiece does it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken, AddedVocabulary
from pylm.text._normalizers import Normalizer

SPACE_MARK = "▁"
"""Stands for a space in pieces."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

Prefix = Literal["never", "always", "unless_space"]


@dataclass(frozen=True, eq=False)
class CharacterModel:
    """Merges characters, a space being one of them.

    Attributes:
        vocabulary: pieces as UTF-8, empty where an id is not in use, and the merges.
        kinds: uint8, kind of each piece, by the numbers of SentencePiece.
        extra_characters: symbols that merge but have no id; theirs follow those of the pieces.
        byte_fallback: a character without a piece becomes its bytes.
        fuse_unknown: a run of unknown characters is one unknown token.
        prefix: when a space is put before a text.
        prefix_everywhere: whether a text after an added token gets it too.
        space_is_mark: a space is "▁" in pieces.
        collapse_spaces: drop spaces at both ends and after spaces.
        split_words: no merge crosses the border before a space.
        ignore_merges: take a word that is a piece whole.
        charsmap: SentencePiece's compiled rules of normalization; empty for none.
        drop_lead: decoding takes a space at the beginning away; None where encoding puts one there.
        file: has the tables of an encoder and a decoder with these options.
        core: the encoder.
    """

    vocabulary: _core.Vocabulary
    kinds: NDArray[np.uint8]
    extra_characters: Sequence[str] = ()
    byte_fallback: bool = True
    fuse_unknown: bool = True
    prefix: Prefix = "always"
    prefix_everywhere: bool = True
    space_is_mark: bool = True
    collapse_spaces: bool = False
    split_words: bool = False
    ignore_merges: bool = False
    charsmap: bytes = b""
    drop_lead: bool | None = None
    file: _core.TokenizerFile | None = None
    core: _core.SentencePieceEncoder = field(init=False)

    pattern = "sentencepiece"
    is_direct = True

    def __post_init__(self) -> None:
        """Make the encoder.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        try:
            object.__setattr__(self, "core", self.make_core())
        except ValueError as error:
            raise InputError(str(error)) from error

    def make_core(self, *, simd: bool = True) -> _core.SentencePieceEncoder:
        """Make an encoder; ValueError where the parts do not fit each other."""
        return _core.SentencePieceEncoder(
            self.vocabulary,
            self.kinds,
            self.extra_characters,
            byte_fallback=self.byte_fallback,
            fuse_unknown=self.fuse_unknown,
            prefix=self.prefix,
            prefix_everywhere=self.prefix_everywhere,
            space_is_mark=self.space_is_mark,
            collapse_spaces=self.collapse_spaces,
            split_words=self.split_words,
            ignore_merges=self.ignore_merges,
            charsmap=self.charsmap,
            simd=simd,
            file=self.file,
        )

    @property
    def lead(self) -> bytes:
        """What decoding takes away at the beginning of a text."""
        drops = self.prefix != "never" if self.drop_lead is None else self.drop_lead
        return b" " if drops else b""

    def encode(self, text: bytes, *, begins: bool) -> list[int]:
        """Give the ids of a stretch of text."""
        return self.core.encode(text, begins=begins)

    def spans(
        self, text: bytes, ids: NDArray[np.uint32], sizes: NDArray[np.uint32], *, begins: bool
    ) -> NDArray[np.int64]:
        """Say where in a stretch of text its tokens lie."""
        if self.charsmap or self.collapse_spaces:
            raise InputError(
                "offsets are not known of a SentencePiece model that changes text (rules of normalization or "
                "removal of spaces)"
            )
        chars = text.decode("utf-8", "replace")
        starts = [0, *accumulate(len(c.encode()) for c in chars)]
        if self.space_is_mark:
            chars = chars.replace(" ", SPACE_MARK)
        if self._has_prefix(chars, begins):
            chars = SPACE_MARK + chars
            starts = [0, *starts]
        drops = UNKNOWN not in self.kinds

        def is_dropped(at: int) -> bool:
            return drops and at < len(chars) and not self._is_known(chars[at])

        misfit = InputError("offsets are not known: the tokenizer's tables and options do not fit each other")
        spans = []
        place = cut = 0  # characters, and bytes of the next one
        for token_id in ids.tolist():
            kind = self.kinds[token_id]
            piece = "" if kind in (BYTE, UNKNOWN) else self._piece(token_id)
            while is_dropped(place) and not (piece and chars.startswith(piece, place)):
                place += 1
            begin = end = place
            if place >= len(chars):
                raise misfit
            if kind == BYTE:
                size = len(chars[place].encode())
                first = min(starts[place] + cut, starts[place + 1])
                spans.append((first, min(first + 1, starts[place + 1])))
                place, cut = (place, cut + 1) if cut + 1 < size else (place + 1, 0)
                continue
            if kind == UNKNOWN:
                end += 1
                while self.fuse_unknown and end < len(chars) and not self._is_known(chars[end]):
                    end += 1
            elif chars.startswith(piece, place):
                end += len(piece)
            else:  # merged across dropped characters
                for _ in piece:
                    while is_dropped(end):
                        end += 1
                    end += 1
            if end > len(chars):
                raise misfit
            spans.append((starts[begin], starts[end]))
            place = end
        if not all(map(is_dropped, range(place, len(chars)))):
            raise misfit
        return np.array(spans, np.int64).reshape(-1, 2)

    def _piece(self, token_id: int) -> str:
        return self.vocabulary.token(token_id).decode("utf-8", "replace")

    def _has_prefix(self, chars: str, begins: bool) -> bool:
        if not chars or self.prefix == "never" or not (begins or self.prefix_everywhere):
            return False
        return self.prefix == "always" or not chars.startswith(SPACE_MARK)

    def _is_known(self, char: str) -> bool:
        return char in self._characters or self._bytes.issuperset(char.encode())

    @cached_property
    def _bytes(self) -> frozenset[int]:
        """Those that stand for characters without a piece."""
        pieces = np.flatnonzero(self.kinds == BYTE).tolist() if self.byte_fallback else ()
        return frozenset(int(self.vocabulary.token(i)[3:5], 16) for i in pieces)

    @cached_property
    def _characters(self) -> frozenset[str]:
        """Those that are pieces."""
        return frozenset(piece for piece in self.pieces() if len(piece) == 1)

    def batch_encoder(self, added: AddedVocabulary) -> _core.AddedEncoder:
        """Give an encoder of many texts with added tokens."""
        return added.encoder(self.core, None)

    def decoder(self, added: Sequence[AddedToken]) -> _core.TokenDecoder:
        """Give the decoder: a piece has a space where it has "▁"."""
        if self.file is not None:
            return _core.TokenDecoder.of_file(self.file)
        pieces = _core.decoded_pieces(self.vocabulary, self.kinds, space_is_mark=self.space_is_mark)
        return _core.TokenDecoder(
            pieces,
            added=[
                (t.id, t.content.replace(SPACE_MARK, " ") if self.space_is_mark else t.content) for t in added
            ],
            special=[t.id for t in added if t.special],
        )

    def fingerprint(self, added: AddedVocabulary, normalizer: Normalizer | None) -> str:
        """Hash all that decides ids."""
        digest = xxhash.xxh3_128()
        # As a saved file has them: without ranks of their own, and no kind for what is not found in text.
        merges = self.vocabulary.merges()[self.order_of_merges()][:, :3]
        kinds = np.where(self.kinds == CONTROL, NORMAL, self.kinds)
        switches = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("bool", bool)}
        for part in (
            json.dumps([switches, self.prefix, sorted(added.special.items())]).encode(),
            json.dumps([self.pieces(), list(self.extra_characters)]).encode(),
            kinds.astype(np.uint8).tobytes(),
            np.ascontiguousarray(merges).tobytes(),
            self.charsmap,
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        if flagged := sorted(str(t) for t in added.tokens if t != AddedToken(t.content, t.id)):
            digest.update("".join(flagged).encode())
        return digest.hexdigest()

    def pieces(self) -> list[str]:
        """Give the text of each id."""
        return [piece.decode("utf-8", "replace") for piece in self.vocabulary.tokens()]

    def order_of_merges(self) -> NDArray[np.intp]:
        """Give the places of the merges by rank.

        SentencePiece merges pieces of equal score from left to right, `tokenizers` one merge after the
        other. With the longest result first, a run of one character grows from its left end in both: such
        runs (of spaces) are the pieces that have equal scores in practice.
        """
        sizes = np.array([len(text) for text in (*self.pieces(), *self.extra_characters)])
        left, _, merged, rank = self.vocabulary.merges().T
        return np.lexsort((sizes[left], -sizes[merged], rank))
