"""Ids back to text: whole, or id by id as a model writes them; and where each token lies in its text."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.text._checks import check_choice
from pylm.text.token_array import TokenArray

if TYPE_CHECKING:
    from pylm import _core

Errors = Literal["replace", "strict", "ignore"]
Ids = Iterable[int] | NDArray[np.integer]


@dataclass(frozen=True)
class TokenOffsets:
    """Ids of a text and where each lies in it.

    Attributes:
        ids: uint32 (N,).
        bytes: int64 (N, 2) first byte and past the last in the UTF-8 of `text`.
        chars: int64 (N, 2) first character and past the last. A character that several tokens share belongs
            to each of them.
        text: what the places are in: the text as normalized, which is the text itself without a normalizer.
    """

    ids: NDArray[np.uint32]
    bytes: NDArray[np.int64]
    chars: NDArray[np.int64]
    text: str


def to_ids(ids: Ids) -> NDArray[np.uint32]:
    """Give ids as the core takes them.

    Raises:
        InputError: a number that is no id.
    """
    try:
        array = np.asarray(ids if isinstance(ids, np.ndarray | Sequence) else list(ids))
    except TypeError:
        raise TypeError(f"ids must be whole numbers in one dimension, got {type(ids).__name__}") from None
    if array.ndim == 1 and array.size == 0:
        return np.zeros(0, np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"ids must be whole numbers in one dimension, got {array.dtype} of shape {array.shape}"
        )
    if array.dtype != np.uint32:
        outside = (array < 0) | (array > 0xFFFFFFFF)
        if outside.any():
            raise InputError(f"token id {array[outside][0]} is not in the vocabulary")
    return array.astype(np.uint32, copy=False)


def to_text(content: bytes, errors: Errors) -> str:
    """Decode UTF-8.

    Raises:
        InputError: bytes that are none, with `errors="strict"`.
    """
    try:
        return content.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the tokens' bytes are no UTF-8 at byte {error.start} ({error.reason}); pass errors='replace', "
            "or use decode_bytes"
        ) from error
    except LookupError as error:
        raise InputError(f"errors must be 'replace', 'strict' or 'ignore', got {errors!r}") from error


class StreamDecoder:
    """Turns ids into text one at a time: the parts make up what `Tokenizer.decode` gives for all of them.

    A character whose bytes are spread over several ids comes with the last of them, never in halves.

    Example:
        >>> stream = tokenizer.stream()
        >>> for token_id in ids:
        ...     print(stream.push(token_id), end="", flush=True)
        >>> print(stream.flush())
    """

    def __init__(
        self,
        core: "_core.TokenDecoder",
        *,
        skip_special_tokens: bool = False,
        errors: Errors = "replace",
        lead: bytes = b"",
    ) -> None:
        """Begin a text; `Tokenizer.stream` is the usual way."""
        check_choice("errors", errors, ("replace", "strict", "ignore"))
        self._core = core
        self._skip_special = skip_special_tokens
        self._errors = errors
        self._lead = self._lead_left = lead
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        """Take an id and give the text that is now certain, which may be none.

        Raises:
            InputError: an id that the vocabulary does not have; with `errors="strict"`, bytes that are no
                UTF-8, after which the next `push` begins a new text.
        """
        content = decode_bytes(self._core, [token_id], self._skip_special)
        if content and self._lead_left:
            content, self._lead_left = content.removeprefix(self._lead_left), b""
        return self._decode(content)

    def flush(self) -> str:
        """End the text: give what an unfinished character leaves. The next `push` begins a new text.

        Raises:
            InputError: with `errors="strict"`, an unfinished character.
        """
        text = self._decode(b"", final=True)
        self._begin()
        return text

    def _begin(self) -> None:
        self._utf8.reset()
        self._lead_left = self._lead

    def _decode(self, content: bytes, *, final: bool = False) -> str:
        try:
            return self._utf8.decode(content, final)
        except UnicodeDecodeError as error:
            self._begin()
            raise InputError(
                f"the tokens' bytes are no UTF-8 ({error.reason}); pass errors='replace', or use decode_bytes"
            ) from error


class Decoding:
    """The half of a tokenizer that gives text."""

    _decoder: "_core.TokenDecoder"
    _lead = b""  # what encoding puts before a text, and decoding takes away

    def decode(self, ids: Ids, *, skip_special_tokens: bool = False, errors: Errors = "replace") -> str:
        """Turn ids into text.

        Args:
            ids: any iterable of numbers, or a NumPy array.
            skip_special_tokens: leave special tokens out.
            errors: what becomes of bytes that are no UTF-8: U+FFFD, an error, or nothing.

        Raises:
            InputError: an id that the vocabulary does not have; with "strict", bytes that are no UTF-8.
        """
        return to_text(self.decode_bytes(ids, skip_special_tokens=skip_special_tokens), errors)

    def decode_bytes(self, ids: Ids, *, skip_special_tokens: bool = False) -> bytes:
        """Turn ids into bytes, special tokens into their text.

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        return decode_bytes(self._decoder, ids, skip_special_tokens).removeprefix(self._lead)

    def decode_batch(
        self,
        batch: TokenArray | Sequence[Ids],
        *,
        skip_special_tokens: bool = False,
        errors: Errors = "replace",
        num_threads: int = 0,
    ) -> list[str]:
        """Turn the ids of many texts into texts; arguments and errors as in `decode`.

        Args:
            batch: what `encode_batch` gave, or the ids of each text.
            skip_special_tokens: leave special tokens out.
            errors: what becomes of bytes that are no UTF-8.
            num_threads: 0 takes all cores.
        """
        if not isinstance(batch, TokenArray):
            rows = [to_ids(ids) for ids in batch]
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            batch = TokenArray(np.concatenate(rows) if rows else np.zeros(0, np.uint32), offsets)
        try:
            texts = self._decoder.decode_batch(
                batch.ids, batch.offsets, skip_special=skip_special_tokens, num_threads=num_threads
            )
        except IndexError as error:
            raise InputError(str(error)) from error
        return [to_text(text.removeprefix(self._lead), errors) for text in texts]

    def stream(self, *, skip_special_tokens: bool = False, errors: Errors = "replace") -> StreamDecoder:
        """Begin to decode id by id: `push` gives the text that is certain, `flush` the rest.

        Raises:
            InputError: `errors` is none of "replace", "strict", "ignore".
        """
        return StreamDecoder(
            self._decoder, skip_special_tokens=skip_special_tokens, errors=errors, lead=self._lead
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes of one id.

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        return decode_bytes(self._decoder, [token_id], False)


def decode_bytes(core: "_core.TokenDecoder", ids: Ids, skip_special: bool) -> bytes:
    """Give the bytes of ids.

    Raises:
        InputError: an id that the vocabulary does not have.
    """
    try:
        return core.decode(to_ids(ids), skip_special=skip_special)
    except IndexError as error:
        raise InputError(str(error)) from error


def char_offsets(text: bytes, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn (N, 2) byte ranges into ranges of the characters that they touch.

    A byte that is no UTF-8 must not occur.
    """
    is_start = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
    # Characters that begin before each byte; one more entry for the end.
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_start, dtype=np.int64)])
    begin, end = offsets[:, 0], offsets[:, 1]
    inside = np.append(~is_start, False)[begin]  # a range that begins within a character takes all of it
    chars = np.stack([before[begin] - inside, before[end]], axis=1)
    return np.where((begin == end)[:, None], before[begin][:, None], chars)
