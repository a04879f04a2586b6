"""A tiny model and a tokenizer of single bytes, for tests that need both and nothing of them."""

import pytest
import torch

from pylm.data.chat import SPECIAL_TOKENS
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer


class ByteTokenizer:
    """Token i is byte i; the special tokens follow."""

    special_tokens = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}  # noqa: RUF012
    vocab_size = 256 + len(SPECIAL_TOKENS)

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode_ordinary(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        names = {value: name.encode() for name, value in self.special_tokens.items()}
        return b"".join(names.get(i) or bytes([i]) for i in ids).decode("utf-8", errors="replace")


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def model() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=ByteTokenizer.vocab_size,
        dim=32,
        num_layers=2,
        num_heads=2,
        hidden_dim=64,
        max_seq_len=512,
        init_std=0.3,
    )
    return Transformer(config).eval()
