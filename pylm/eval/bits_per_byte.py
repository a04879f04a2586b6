"""How many bits a model needs for each byte of text: comparable across tokenizers and with compressors."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pylm.data.chat import END_OF_TEXT
from pylm.errors import InputError
from pylm.model.transformer import Transformer
from pylm.ops import linear_logprob

if TYPE_CHECKING:
    from pylm.text import Tokenizer

_IGNORED = -100


@dataclass(frozen=True)
class BitsPerByte:
    """Bits and bytes of each document.

    Attributes:
        bits: information content of each document under the model, in bits.
        num_bytes: UTF-8 bytes of each document.
        num_tokens: tokens of each document.
    """

    bits: list[float]
    num_bytes: list[int]
    num_tokens: list[int]

    @property
    def value(self) -> float:
        """Bits per byte over all documents; NaN without bytes."""
        total = sum(self.num_bytes)
        return math.fsum(self.bits) / total if total else math.nan


@dataclass(frozen=True)
class Window:
    """Inputs `start:stop` of a document, of which those from `first` on are scored."""

    document: int
    start: int
    first: int
    stop: int


def bits_per_byte(
    model: Transformer,
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    seq_len: int,
    stride: int,
    batch_size: int = 16,
) -> BitsPerByte:
    """Measure the information content of texts under a model.

    A document is its tokens after one end-of-text token, which every document follows in training; all
    of its tokens are predicted, the end is not. Windows of `seq_len` inputs advance by `stride`: each
    token is predicted once, with at least `seq_len - stride` tokens of context wherever the document
    has that many. The text of a special token inside a document counts as ordinary text.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        texts: documents; an empty one has 0 bits and 0 bytes.
        seq_len: longest input, in tokens.
        stride: tokens that a window goes on, in [1, seq_len].
        batch_size: windows a forward pass.

    Returns:
        Bits, bytes and tokens of every document, in order.

    Raises:
        InputError: `stride` is not in [1, seq_len], or the tokenizer has no end of text.
    """
    if not 1 <= stride <= seq_len:
        raise InputError(f"stride must be in [1, seq_len={seq_len}], got {stride}")
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(
            f"a document starts after {END_OF_TEXT}, which the tokenizer lacks; it has "
            f"{', '.join(tokenizer.special_tokens) or 'no special tokens'}"
        )
    start_id = tokenizer.special_tokens[END_OF_TEXT]
    encoded = tokenizer.encode_batch(list(texts))
    documents = [
        torch.from_numpy(np.concatenate(([start_id], np.asarray(encoded[i], dtype=np.int64))))
        for i in range(len(texts))
    ]
    windows = [
        window
        for i, document in enumerate(documents)
        for window in split_windows(i, len(document) - 1, seq_len=seq_len, stride=stride)
    ]
    windows.sort(key=lambda window: window.start - window.stop)  # longest first: little padding, early peak
    nats: list[list[float]] = [[] for _ in texts]
    device = model.output_weight.device
    with torch.inference_mode():
        for begin in range(0, len(windows), batch_size):
            batch = windows[begin : begin + batch_size]
            ids_BT, targets_BT = _fill(batch, documents, pad_id=start_id)
            is_scored_BT = targets_BT != _IGNORED
            hidden_BTD = model(ids_BT.to(device))
            logprob_N = linear_logprob(
                hidden_BTD[is_scored_BT.to(device)],
                model.output_weight,
                targets_BT[is_scored_BT].to(device),
            ).logprob
            sums = torch.zeros(targets_BT.shape, dtype=torch.float64)
            sums[is_scored_BT] = -logprob_N.to("cpu", torch.float64)
            for window, total in zip(batch, sums.sum(dim=1).tolist(), strict=True):
                nats[window.document].append(total)
    return BitsPerByte(
        bits=[math.fsum(parts) / math.log(2) for parts in nats],
        num_bytes=[len(text.encode("utf-8")) for text in texts],
        num_tokens=[len(document) - 1 for document in documents],
    )


def split_windows(document: int, num_targets: int, *, seq_len: int, stride: int) -> Iterator[Window]:
    """Yield windows that score each of `num_targets` targets once.

    Args:
        document: number of the document, passed on.
        num_targets: tokens to predict; input t predicts target t.
        seq_len: longest window.
        stride: advance from window to window.
    """
    start = first = 0
    while first < num_targets:
        stop = min(start + seq_len, num_targets)
        yield Window(document, start, first, stop)
        first = stop
        start += stride


def sample_texts(texts: Sequence[str], *, max_bytes: int | None, seed: int) -> list[tuple[int, str]]:
    """Take documents in a random order up to a number of bytes; the last one is cut there.

    A smaller cap takes a part of what a larger cap takes, so two evaluations overlap.

    Args:
        texts: documents.
        max_bytes: UTF-8 bytes to take; None takes everything.
        seed: of the order.

    Returns:
        Index and text of the documents taken, ordered by index.
    """
    if max_bytes is None:
        return list(enumerate(texts))
    order = list(range(len(texts)))
    random.Random(f"{seed}/bits_per_byte").shuffle(order)
    taken = []
    left = max_bytes
    for index in order:
        data = texts[index].encode("utf-8")
        if left <= 0:
            break
        taken.append((index, data[:left].decode("utf-8", errors="ignore")))  # no half character at the cut
        left -= len(data)
    return sorted(taken)


def _fill(windows: list[Window], documents: list[Tensor], *, pad_id: int) -> tuple[Tensor, Tensor]:
    num_columns = max(window.stop - window.start for window in windows)
    ids_BT = torch.full((len(windows), num_columns), pad_id, dtype=torch.int64)
    targets_BT = torch.full((len(windows), num_columns), _IGNORED, dtype=torch.int64)
    for row, window in enumerate(windows):
        document = documents[window.document]
        ids_BT[row, : window.stop - window.start] = document[window.start : window.stop]
        scored = document[window.first + 1 : window.stop + 1]
        targets_BT[row, window.first - window.start : window.stop - window.start] = scored
    return ids_BT, targets_BT
