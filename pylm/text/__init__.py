"""Text on the CPU: tokenizer, deduplication, quality signals. Loads no torch."""

from pylm.text import dedup, signals
from pylm.text._added_tokens import AddedToken
from pylm.text._decoding import StreamDecoder, TokenOffsets
from pylm.text.token_array import TokenArray
from pylm.text.tokenizer import Tokenizer
from pylm.text.word_counter import WordCounter

__all__ = [
    "AddedToken",
    "StreamDecoder",
    "TokenArray",
    "TokenOffsets",
    "Tokenizer",
    "WordCounter",
    "dedup",
    "signals",
]
