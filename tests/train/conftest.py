"""Token shards of two sources and their tokenizer: a text with a pattern that is learned in a few steps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pylm.data.chat import SPECIAL_TOKENS
from pylm.data.tokenization import write_shards
from pylm.text import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Where the tokenizer and the shards are."""

    tokenizer: Path
    tokens: Path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Write documents of 0 to 60 letters."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = Tokenizer.train(["a"], vocab_size=256 + len(SPECIAL_TOKENS), special_tokens=SPECIAL_TOKENS)
    tokenizer.save(folder / "tokenizer.json")
    rng = np.random.default_rng(0)
    documents = [
        {
            "id": f"{source}-{i}", "source": source, "url": None,
            "text": "".join(rng.permutation(["ab", "cd", "xyz"])) * int(rng.integers(0, 9)),
        }
        for source in ("web", "code")
        for i in range(40)
    ]  # fmt: skip
    schema = pa.schema([(field, pa.string()) for field in ("id", "text", "source", "url")])
    write_shards([pa.RecordBatch.from_pylist(documents, schema)], tokenizer, folder / "tokens")
    return Corpus(folder / "tokenizer.json", folder / "tokens")
