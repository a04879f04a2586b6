"""The model over bytes: byte-level BPE behind a pattern."""

import json
from collections.abc import Sequence

import xxhash

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken, AddedVocabulary
from pylm.text._normalizers import Normalizer
from pylm.text.patterns import PretokenPattern, find_pattern


class ByteModel:
    """Cuts text into pieces and merges their bytes.

    Attributes:
        vocabulary: bytes of each id, without special tokens, and the merges.
        pretoken: the pattern.
        ignore_merges: a piece that is a token is taken whole before any merge.
        core: the encoder; where the pattern has no machine, it takes each piece for a text.
    """

    lead = b""

    def __init__(
        self, vocabulary: _core.Vocabulary, pattern: str | PretokenPattern, *, ignore_merges: bool = False
    ) -> None:
        """Make the encoder.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        self.vocabulary = vocabulary
        self.pretoken = find_pattern(pattern)
        self.ignore_merges = ignore_merges
        machine = self.pretoken.machine() or _core.Pattern("whole")
        try:
            self.core = _core.BpeEncoder(vocabulary, machine, ignore_merges=ignore_merges)
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def pattern(self) -> str:
        """Name of the pattern."""
        return self.pretoken.name

    @property
    def is_direct(self) -> bool:
        """Whether the core cuts text by itself."""
        return self.pretoken.has_machine

    def encode(self, text: bytes, *, begins: bool) -> list[int]:
        """Give the ids of a stretch of text."""
        if self.pretoken.has_machine:
            return self.core.encode(text)
        ids, _ = self.core.encode_texts(self.pretoken.split_bytes(text), end_id=None, num_threads=1)
        return [int(i) for i in ids]

    def batch_encoder(self, added: AddedVocabulary) -> _core.AddedEncoder:
        """Give an encoder of many texts with added tokens."""
        return added.encoder(self.core, None if self.pretoken.has_machine else self.pretoken.split_bytes)

    def decoder(self, added: Sequence[AddedToken]) -> _core.TokenDecoder:
        """Give the decoder.

        Raises:
            InputError: an added token has the id of other bytes.
        """
        for token in added:
            own = self.vocabulary.token(token.id) if token.id < len(self.vocabulary) else b""
            if own not in (b"", token.content.encode()):
                raise InputError(
                    f"added token {token.content!r} has the id {token.id}, which is {own!r} in the vocabulary"
                )
        return _core.TokenDecoder(
            self.vocabulary,
            added=[(t.id, t.content) for t in added],
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
        return digest.hexdigest()
