"""Added tokens: words that are cut out of a text before it is merged, with Hugging Face's flags."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, NoReturn

from pylm import _core
from pylm.errors import InputError
from pylm.text._normalizers import Normalizer
from pylm.text.texts import Texts

AllowedSpecial = Collection[str] | Literal["all"]

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A word that becomes one id wherever it stands in a text.

    Attributes:
        content: its text.
        id: its id.
        single_word: not where a letter, mark, digit or underscore stands beside it.
        lstrip: takes the white space before it along.
        rstrip: takes the white space after it along.
        normalized: looked for in the normalized text, not in the text as given.
        special: recognised only where the caller allows it, and left out of text on demand.
    """

    content: str
    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    def __post_init__(self) -> None:
        """Look at the text.

        Raises:
            InputError: lone surrogates, which no text can hold.
        """
        try:
            self.content.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"added token {self.id} ({self.content!a}) holds lone surrogates") from error


class Masks(NamedTuple):
    """Which tokens are looked for: a byte each, for the raw and for the normalized text."""

    raw: bytes
    normalized: bytes


class Stretch(NamedTuple):
    """A part of a normalized text: one added token, or text between them.

    Attributes:
        begin: first byte in the normalized text.
        end: past the last byte; white space that a token takes along included.
        text: what is merged, empty for a token.
        token: id, or None for text.
    """

    begin: int
    end: int
    text: bytes
    token: int | None


class AddedVocabulary:
    """All added tokens of a tokenizer, ready to be found.

    Attributes:
        tokens: all of them.
        special: the special ones, text to id.
        contents: all, text to id.
        ordinary: the tokens that ordinary text may hold: those that are not special.
    """

    def __init__(self, tokens: Sequence[AddedToken], normalizer: Normalizer | None) -> None:
        """Prepare the search.

        Raises:
            InputError: a content or an id given twice, or an empty content.
        """
        by_content: dict[str, AddedToken] = {}
        by_id: dict[int, AddedToken] = {}
        for token in tokens:
            if not token.content:
                raise InputError(f"added token {token.id} has no text")
            for known in (by_content.get(token.content), by_id.get(token.id)):
                if known is not None:
                    raise InputError(
                        f"added tokens {known.content!r} ({known.id}) and {token.content!r} ({token.id}) "
                        "clash"
                    )
            by_content[token.content] = by_id[token.id] = token
        self.tokens = tuple(by_content.values())
        self.special = {t.content: t.id for t in self.tokens if t.special}
        self.contents = {t.content: t.id for t in self.tokens}
        self._normalizer = normalizer
        # Special ones first, as in `tokenizers`: among tokens that normalize to one text the first wins.
        ordered = sorted(self.tokens, key=lambda t: not t.special)
        self._raw = [t for t in ordered if not t.normalized]
        self._normalized = [self._in_normal_form(t) for t in ordered if t.normalized]
        self._raw_core = _core.AddedTokens([_row(t) for t in self._raw])
        self._normalized_core = _core.AddedTokens([_row(t) for t in self._normalized])
        self._masks: dict[tuple[frozenset[str], frozenset[str]], tuple[Masks, Masks]] = {}
        self._nothing_allowed = self._make_masks(frozenset(), frozenset(self.special))
        self.ordinary = self._nothing_allowed[0]

    def _in_normal_form(self, token: AddedToken) -> AddedToken:
        if self._normalizer is None:
            return token
        return replace(token, content=self._normalizer(token.content) or token.content)

    def acts(self, enabled: Masks) -> bool:
        """Tell whether anything is done to a text before the model sees it."""
        return self._normalizer is not None or 1 in enabled.raw or 1 in enabled.normalized

    def encoder(
        self,
        core: _core.BpeEncoder | _core.SentencePieceEncoder,
        splitter: Callable[[bytes], list[bytes]] | None,
    ) -> _core.AddedEncoder:
        """Give an encoder of many texts; `splitter` cuts what the core cannot cut."""
        normalizer = self._normalizer
        return _core.AddedEncoder(
            core,
            raw=self._raw_core,
            normalized=self._normalized_core,
            form=normalizer.form if normalizer else None,
            normalizer=normalizer.normalize_bytes if normalizer else None,
            keeps_ascii=normalizer is None or normalizer.keeps_ascii,
            splitter=splitter,
        )

    def masks(
        self, allowed_special: AllowedSpecial, disallowed_special: AllowedSpecial
    ) -> tuple[Masks, Masks]:
        """Say which tokens are recognised, and which may not be in a text.

        Raises:
            InputError: no special token of that name.
        """
        if not allowed_special and disallowed_special == "all":
            return self._nothing_allowed
        allowed = self._names(allowed_special, "allowed_special")
        if disallowed_special == "all":
            return self._make_masks(allowed, frozenset(self.special) - allowed)
        return self._make_masks(allowed, self._names(disallowed_special, "disallowed_special") - allowed)

    def _names(self, names: AllowedSpecial, argument: str) -> frozenset[str]:
        if names == "all":
            return frozenset(self.special)
        if isinstance(names, str):
            raise TypeError(f"{argument} must be 'all' or a collection of special tokens, got {names!r}")
        if unknown := set(names) - self.special.keys():
            raise InputError(f"{argument} has {min(unknown)!r}, which is no special token of this tokenizer")
        return frozenset(names)

    def _make_masks(self, allowed: frozenset[str], disallowed: frozenset[str]) -> tuple[Masks, Masks]:
        if (known := self._masks.get((allowed, disallowed))) is not None:
            return known
        by_id = {self.contents[name] for name in allowed}
        refused = {self.contents[name] for name in disallowed}

        def mask(tokens: list[AddedToken], ids: set[int], ordinary: bool) -> bytes:
            return bytes(t.id in ids or (ordinary and not t.special) for t in tokens)

        masks = (
            Masks(mask(self._raw, by_id, True), mask(self._normalized, by_id, True)),
            Masks(mask(self._raw, refused, False), mask(self._normalized, refused, False)),
        )
        if len(self._masks) < 64:  # callers have a handful of sets
            self._masks[allowed, disallowed] = masks
        return masks

    def refuse(self, text: bytes, disallowed: Masks) -> None:
        """Make sure that a text holds no disallowed special token.

        Raises:
            InputError: it does; names the token, the place and the ways on.
        """
        for core, tokens, mask in self._sides(disallowed):
            if 1 in mask and (found := core.find(text, mask)):
                begin, _, token = found[0]
                place = len(text[:begin].decode("utf-8", "replace"))
                self._fail("the text", f"character {place}", tokens[token])

    def refuse_batch(self, texts: Texts | Sequence[bytes], disallowed: Masks) -> None:
        """Make sure that no text holds a disallowed special token; as `refuse`."""
        for core, tokens, mask in self._sides(disallowed):
            if 1 in mask and (found := core.find_first(texts, mask)) is not None:
                index, begin, token = found
                self._fail(f"texts[{index}]", f"byte {begin}", tokens[token])

    def _sides(self, masks: Masks) -> tuple[tuple[_core.AddedTokens, list[AddedToken], bytes], ...]:
        return (
            (self._raw_core, self._raw, masks.raw),
            (self._normalized_core, self._normalized, masks.normalized),
        )

    def _fail(self, text: str, place: str, token: AddedToken) -> NoReturn:
        name = next(t.content for t in self.tokens if t.id == token.id)  # as given, not as normalized
        raise InputError(
            f"{text} holds the special token {name!r} at {place}; pass allowed_special={{{name!r}}} to "
            "encode it as one, disallowed_special=() to encode it as text, or use encode_ordinary"
        )

    def cut(self, text: bytes, enabled: Masks) -> Iterator[Stretch]:
        """Cut a text into added tokens and the normalized text between them."""
        begin = shift = 0
        matches = self._raw_core.find(text, enabled.raw) if 1 in enabled.raw else []
        for start, end, token in matches:
            if start > begin:
                normal = self._normalize(text[begin:start])
                yield from self._cut_normalized(normal, begin + shift, enabled.normalized)
                shift += len(normal) - (start - begin)
            yield Stretch(start + shift, end + shift, b"", self._raw[token].id)
            begin = end
        if begin < len(text):
            yield from self._cut_normalized(
                self._normalize(text[begin:] if begin else text), begin + shift, enabled.normalized
            )

    def normalize(self, text: bytes, enabled: Masks) -> bytes:
        """Give the normalized text that the stretches of `cut` are parts of."""
        if self._normalizer is None:
            return text
        parts, begin = [], 0
        for start, end, _ in self._raw_core.find(text, enabled.raw):
            parts += [self._normalize(text[begin:start]), text[max(start, begin) : end]]
            begin = end
        return b"".join([*parts, self._normalize(text[begin:])])

    def _cut_normalized(self, text: bytes, base: int, mask: bytes) -> Iterator[Stretch]:
        begin = 0
        for start, end, token in self._normalized_core.find(text, mask) if 1 in mask else ():
            if start > begin:
                yield Stretch(base + begin, base + start, text[begin:start], None)
            yield Stretch(base + start, base + end, b"", self._normalized[token].id)
            begin = end
        if begin < len(text):
            yield Stretch(base + begin, base + len(text), text[begin:] if begin else text, None)

    def _normalize(self, text: bytes) -> bytes:
        return text if self._normalizer is None else self._normalizer.normalize_bytes(text)


def _row(token: AddedToken) -> tuple[str, int, bool, bool, bool]:
    return token.content, token.id, token.single_word, token.lstrip, token.rstrip
