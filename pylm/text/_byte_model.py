"""The model over bytes: byte-level BPE behind a pattern."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import xxhash
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken, AddedVocabulary
from pylm.text._normalizers import Normalizer
from pylm.text.patterns import PretokenPattern, find_pattern


@dataclass(frozen=True)
class MissingBytes:
    """What becomes of bytes that have no token, as `tokenizers` has it.

    Attributes:
        unknown: id that stands for one; None to drop them, so that their neighbours may merge.
        fuse: a run of them in a piece is one unknown token.
    """

    unknown: int | None = None
    fuse: bool = False


class ByteModel:
    """Cuts text into pieces and merges their bytes.

    Attributes:
        vocabulary: bytes of each id, without special tokens, and the merges.
        pretoken: the pattern.
        ignore_merges: a piece that is a token is taken whole before any merge.
        missing: what becomes of bytes without a token; None where all have one.
        prefix_space: a stretch of text that does not begin with a space gets one.
        unreachable: ids of the vocabulary that no text comes to, and their text, for decoding.
        core: the encoder; where the pattern has no machine, it takes each piece for a text.
    """

    lead = b""

    def __init__(
        self,
        vocabulary: _core.Vocabulary,
        pattern: str | PretokenPattern,
        *,
        ignore_merges: bool = False,
        missing: MissingBytes | None = None,
        prefix_space: bool = False,
        unreachable: Sequence[tuple[int, str]] = (),
        file: _core.TokenizerFile | None = None,
    ) -> None:
        """Make the encoder, or take it from a file that was written of one with the same options.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        self.vocabulary = vocabulary
        self.pretoken = find_pattern(pattern)
        self.ignore_merges = ignore_merges
        self.missing = missing
        self.prefix_space = prefix_space
        self.unreachable = tuple(unreachable)
        self._file = file
        self._missing_bytes = frozenset(range(256) if missing else ()) - {
            token[0] for token in (vocabulary.tokens() if missing else ()) if len(token) == 1
        }
        machine = self.pretoken.machine() or _core.Pattern("whole")
        try:
            self.core = _core.BpeEncoder(
                vocabulary,
                machine,
                ignore_merges=ignore_merges,
                drop_missing=missing is not None,
                unknown=missing.unknown if missing else None,
                fuse_unknown=missing is not None and missing.fuse,
                file=file,
            )
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def pattern(self) -> str:
        """Name of the pattern."""
        return self.pretoken.name

    @property
    def is_direct(self) -> bool:
        """Whether the core does all there is to do with a text."""
        return self.pretoken.has_machine and not self.prefix_space

    def encode(self, text: bytes, *, begins: bool) -> list[int]:
        """Give the ids of a stretch of text."""
        if self.pretoken.has_machine:
            return self.core.encode(self._with_prefix(text))
        ids, _ = self.core.encode_texts(self._cut(text), end_id=None, num_threads=1)
        return [int(i) for i in ids]

    def batch_encoder(self, added: AddedVocabulary) -> _core.AddedEncoder:
        """Give an encoder of many texts with added tokens."""
        return added.encoder(self.core, None if self.is_direct else self._cut)

    def _with_prefix(self, text: bytes) -> bytes:
        return b" " + text if self.prefix_space and text and not text.startswith(b" ") else text

    def _cut(self, text: bytes) -> list[bytes]:
        """Give what the core takes for texts."""
        text = self._with_prefix(text)
        return [text] if self.pretoken.has_machine else self.pretoken.split_bytes(text)

    def spans(
        self, text: bytes, ids: NDArray[np.uint32], sizes: NDArray[np.uint32], *, begins: bool
    ) -> NDArray[np.int64]:
        """Say where in a stretch of text its tokens lie; a token may hold dropped bytes within."""
        body = self._with_prefix(text)
        if self._missing_bytes.isdisjoint(body):
            ends = np.cumsum(sizes, dtype=np.int64)
            spans = np.stack([ends - sizes, ends], axis=1)
        else:
            spans = np.array(self._align(body, ids), np.int64).reshape(-1, 2)
        placed: NDArray[np.int64] = np.maximum(spans - (len(body) - len(text)), 0)
        return placed

    def _align(self, text: bytes, ids: NDArray[np.uint32]) -> list[tuple[int, int]]:
        assert self.missing is not None
        drops = self.missing.unknown is None
        missing = self._missing_bytes
        borders = set(accumulate(map(len, self.pretoken.split_bytes(text))))
        spans = []
        place = 0

        def is_missing(at: int) -> bool:
            return at < len(text) and text[at] in missing

        for token_id in ids.tolist():
            # The token may also be one that text comes to.
            is_unknown = token_id == self.missing.unknown and is_missing(place)
            token = b"" if is_unknown else self.vocabulary.token(token_id)
            while drops and is_missing(place) and not text.startswith(token, place):
                place += 1
            begin = place
            if is_unknown:
                place += 1
                while self.missing.fuse and place not in borders and is_missing(place):
                    place += 1
            elif text.startswith(token, place):
                place += len(token)
            else:
                for byte in token:
                    while drops and is_missing(place):
                        place += 1
                    if text[place : place + 1] != bytes([byte]):
                        raise InputError(
                            f"offsets of token {token_id} ({token!r}) are not known: it is merged from an "
                            "unknown token"
                        )
                    place += 1
            spans.append((begin, place))
        return spans

    def decoder(self, added: Sequence[AddedToken]) -> _core.TokenDecoder:
        """Give the decoder.

        Raises:
            InputError: an added token has the id of other bytes.
        """
        if self._file is not None:
            return _core.TokenDecoder.of_file(self._file)
        for token in added:
            own = self.vocabulary.token(token.id) if token.id < len(self.vocabulary) else b""
            if own not in (b"", token.content.encode()):
                raise InputError(
                    f"added token {token.content!r} has the id {token.id}, which is {own!r} in the vocabulary"
                )
        return _core.TokenDecoder(
            self.vocabulary,
            added=[*self.unreachable, *((t.id, t.content) for t in added)],
            special=[t.id for t in added if t.special],
        )

    def fingerprint(self, added: AddedVocabulary, normalizer: Normalizer | None) -> str:
        """Hash all that decides ids."""
        digest = xxhash.xxh3_128()
        simple = {None: "None", '{"type": "NFC"}': "NFC"}
        spec = json.dumps(normalizer.spec, sort_keys=True) if normalizer else None
        for part in (
            self.pattern if self.pretoken.has_machine else repr(self.pretoken.expressions),
            str(self.ignore_merges),
            simple.get(spec, str(spec)),
            str(sorted(added.special.items())),
        ):
            digest.update(part.encode() + b"\0")
        digest.update(self.vocabulary.merges().tobytes())
        digest.update(self.vocabulary.packed())
        if flagged := sorted(str(t) for t in added.tokens if t != AddedToken(t.content, t.id)):
            digest.update("".join(flagged).encode())
        rare = (self.pretoken.byte_expressions, self.missing, self.prefix_space)
        if any(rare):
            digest.update(repr(rare).encode())
        return digest.hexdigest()
