"""A tokenizer of bytes, a model of one block, and rows on disk: small enough to train in a test."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from pylm.data.chat import SPECIAL_TOKENS
from pylm.model.config import ModelConfig
from pylm.model.hf import save_model
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

WriteRows = Callable[[str, Sequence[Mapping[str, object]]], Path]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes and special tokens, without a merge."""
    return Tokenizer.train(["a"], vocab_size=256 + len(SPECIAL_TOKENS), special_tokens=SPECIAL_TOKENS)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A saved model with initial weights."""
    folder = tmp_path_factory.mktemp("models") / "initial"
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=32, num_layers=1, num_heads=2, num_kv_heads=1, max_seq_len=64
    )
    save_model(Transformer(config), folder, tokenizer)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSON lines and return the path."""

    def write(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
