"""Text on the CPU: tokenizer, deduplication, quality signals. Loads no torch."""

from pylm.text import dedup, signals
from pylm.text.tokenizer import TokenArray, Tokenizer

__all__ = ["TokenArray", "Tokenizer", "dedup", "signals"]
