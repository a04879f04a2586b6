"""What a tokenizer is made of: a model that turns text into ids, and what stands around it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pylm.text._added_tokens import AddedToken, AddedVocabulary
from pylm.text._normalizers import Normalizer
from pylm.text._templates import Template

if TYPE_CHECKING:
    from pylm import _core


class Model(Protocol):
    """Turns the text between added tokens into ids."""

    @property
    def pattern(self) -> str:
        """How text is cut into pieces."""

    @property
    def vocabulary(self) -> "_core.Vocabulary":
        """Tokens of the model and its merges."""

    @property
    def lead(self) -> bytes:
        """What encoding puts before a text, and decoding takes away."""

    @property
    def core(self) -> "_core.BpeEncoder | _core.SentencePieceEncoder":
        """The encoder in C++."""

    @property
    def is_direct(self) -> bool:
        """Whether `core` alone does all there is to do with a text without added tokens."""

    def encode(self, text: bytes, *, begins: bool) -> list[int]:
        """Give the ids of a stretch of text, which begins a text or stands behind an added token."""

    def spans(
        self, text: bytes, ids: NDArray[np.uint32], sizes: NDArray[np.uint32], *, begins: bool
    ) -> NDArray[np.int64]:
        """Say where in a stretch of text its tokens lie.

        Args:
            text: the stretch.
            ids: uint32 (N,) as `encode` gives them.
            sizes: uint32 (N,) bytes that each decodes to.
            begins: as in `encode`.

        Returns:
            int64 (N, 2) first byte and past the last. A space that encoding puts before has none.

        Raises:
            InputError: a token has no place in the text as given; says why.
        """

    def batch_encoder(self, added: AddedVocabulary) -> "_core.AddedEncoder":
        """Give an encoder of many texts with added tokens."""

    def decoder(self, added: Sequence[AddedToken]) -> "_core.TokenDecoder":
        """Give the decoder; ValueError where the added tokens do not fit the model."""

    def fingerprint(self, added: AddedVocabulary, normalizer: Normalizer | None) -> str:
        """Hash all that decides ids."""


@dataclass(frozen=True)
class Parts:
    """What a file holds, in pylm's terms.

    Attributes:
        model: text to ids.
        added_tokens: words that are cut out first.
        normalizer: what is done to the text between those that are looked for in it as given.
        template: what `add_special_tokens` puts around a text.
    """

    model: Model
    added_tokens: Sequence[AddedToken] = ()
    normalizer: Normalizer | None = None
    template: Template = field(default_factory=Template)
