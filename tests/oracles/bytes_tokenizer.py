"""A tokenizer whose ids are bytes: slow, obvious, and enough for all that only counts and joins ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass
class Encoded:
    """What `encode_batch` gives."""

    ids: np.ndarray
    offsets: np.ndarray


class BytesTokenizer:
    """Ids 0..255 are bytes, special tokens come after them."""

    def __init__(self, special_tokens: Sequence[str], *, num_unused: int = 0) -> None:
        self.special_tokens = {token: 256 + i for i, token in enumerate(special_tokens)}
        self.names = {id: token for token, id in self.special_tokens.items()}
        self.num_unused = num_unused

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.special_tokens) + self.num_unused

    @property
    def fingerprint(self) -> str:
        return repr((self.num_unused, self.special_tokens))

    def token_bytes(self, id: int) -> bytes:
        if id < 256:
            return bytes([id])
        return self.names.get(id, f"unused {id}").encode()

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_batch(
        self, texts: pa.Array | list[str], *, end_id: int | None = None, num_threads: int = 0
    ) -> Encoded:
        end = [] if end_id is None else [end_id]
        texts = texts.to_pylist() if isinstance(texts, pa.Array) else texts
        lists = [self.encode_ordinary(t) + end for t in texts]
        ids = np.array([i for one in lists for i in one], dtype=np.uint32)
        return Encoded(ids, np.cumsum([0, *map(len, lists)], dtype=np.int64))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8")
