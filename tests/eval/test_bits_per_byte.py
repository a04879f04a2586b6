"""Bits per byte against one forward pass a token, and against what is known of a uniform model."""

import math
import random

import pytest
import torch

from pylm.data.chat import END_OF_TEXT
from pylm.errors import InputError
from pylm.eval.bits_per_byte import bits_per_byte, sample_texts, split_windows
from pylm.model.transformer import Transformer

TEXTS = [
    "def f(x):\n    return x\n" * 6,
    "",
    "a",
    "Zürich 東京 🌍 " * 9,
    "<|endoftext|> is <|user|> text",
    "x" * 64,
]


def naive_bits(model: Transformer, tokenizer, text: str, *, seq_len: int, stride: int) -> float:
    """Sum -log2 p(token | its window), one forward pass for every single token."""
    ids = [tokenizer.special_tokens[END_OF_TEXT], *tokenizer.encode_ordinary(text)]
    bits = 0.0
    for target in range(1, len(ids)):
        position = target - 1  # input that predicts it
        # Windows start at multiples of the stride; the first that reaches the position scores it.
        start = 0
        while start + seq_len <= position:
            start += stride
        context = torch.tensor([ids[start:target]])
        with torch.no_grad():
            logits = model(context)[0, -1].double() @ model.output_weight.double().T
        bits -= torch.log_softmax(logits, dim=-1)[ids[target]].item() / math.log(2)
    return bits


@pytest.mark.parametrize(
    ("seq_len", "stride", "batch_size"), [(16, 16, 1), (16, 5, 4), (20, 15, 2), (512, 512, 3), (7, 1, 4)]
)
def test_equals_one_pass_a_token(model, tokenizer, seq_len: int, stride: int, batch_size: int) -> None:
    texts = [text[:24] for text in TEXTS]
    measured = bits_per_byte(model, tokenizer, texts, seq_len=seq_len, stride=stride, batch_size=batch_size)
    for text, bits, num_bytes, num_tokens in zip(
        texts, measured.bits, measured.num_bytes, measured.num_tokens, strict=True
    ):
        expected = naive_bits(model, tokenizer, text, seq_len=seq_len, stride=stride)
        assert bits == pytest.approx(expected, rel=2e-5, abs=1e-9)
        assert num_bytes == num_tokens == len(text.encode())
    assert measured.value == pytest.approx(sum(measured.bits) / sum(measured.num_bytes))


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(model, tokenizer) -> None:
    flat = Transformer(model.config).eval()
    with torch.no_grad():
        flat.output.weight.zero_()
    measured = bits_per_byte(flat, tokenizer, TEXTS, seq_len=32, stride=16)
    assert measured.value == pytest.approx(math.log2(tokenizer.vocab_size), rel=1e-6)


def test_special_tokens_in_a_text_are_text(model, tokenizer) -> None:
    [text] = [text for text in TEXTS if "<|user|>" in text]
    measured = bits_per_byte(model, tokenizer, [text], seq_len=64, stride=64)
    assert measured.num_tokens == [len(text)]


def test_without_bytes_there_is_no_value(model, tokenizer) -> None:
    assert math.isnan(bits_per_byte(model, tokenizer, ["", ""], seq_len=8, stride=8).value)
    assert math.isnan(bits_per_byte(model, tokenizer, [], seq_len=8, stride=8).value)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_refused(model, tokenizer, stride: int) -> None:
    with pytest.raises(InputError, match=rf"stride must be in \[1, seq_len=16\], got {stride}"):
        bits_per_byte(model, tokenizer, ["x"], seq_len=16, stride=stride)


def test_a_tokenizer_without_end_of_text_is_refused(model, tokenizer) -> None:
    class Bare(type(tokenizer)):
        special_tokens = {}  # noqa: RUF012

    with pytest.raises(InputError, match=r"<\|endoftext\|>, which the tokenizer lacks"):
        bits_per_byte(model, Bare(), ["x"], seq_len=8, stride=8)


def test_windows_score_every_target_once_with_enough_context() -> None:
    rng = random.Random(0)
    for _ in range(300):
        seq_len = rng.randint(1, 40)
        stride, num_targets = rng.randint(1, seq_len), rng.randint(0, 200)
        scored = []
        for window in split_windows(0, num_targets, seq_len=seq_len, stride=stride):
            assert 0 < window.stop - window.start <= seq_len
            assert window.start <= window.first < window.stop <= num_targets
            assert window.first - window.start >= min(window.first, seq_len - stride)
            scored += range(window.first, window.stop)
        assert scored == list(range(num_targets))


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    rng = random.Random(1)
    texts = ["é" * rng.randint(0, 400) for _ in range(40)]
    everything = dict(sample_texts(texts, max_bytes=None, seed=3))
    assert everything == dict(enumerate(texts))
    previous: dict[int, str] = {}
    for max_bytes in (1, 501, 2_000, 8_001, 10**6):
        taken = sample_texts(texts, max_bytes=max_bytes, seed=3)
        assert [index for index, _ in taken] == sorted(index for index, _ in taken)
        total = sum(len(text.encode()) for _, text in taken)
        available = sum(len(text.encode()) for text in texts)
        assert min(max_bytes, available) - 1 <= total <= max_bytes  # at most half a character short
        for index, text in previous.items():
            assert dict(taken)[index].startswith(text)
        previous = dict(taken)
    assert sample_texts(texts, max_bytes=500, seed=3) != sample_texts(texts, max_bytes=500, seed=4)
