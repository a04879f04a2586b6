"""Text on the CPU: tokenizer, deduplication, quality signals. Loads no torch."""

from pylm.text import dedup, signals
from pylm.text.tokenizer import TokenArray, Tokenizer
from pylm.text.word_counter import WordCounter

__all__ = ["TokenArray", "Tokenizer", "WordCounter", "dedup", "signals"]
