"""Compressed sizes against the command-line tools and against what random bytes need."""

import random
import shutil
import subprocess

import pytest

from pylm.errors import InputError
from pylm.eval.compression import compress

TEXTS = ["def f(x):\n    return x + 1\n" * 40, "Zürich, 東京, 🌍\n" * 30, ""]


@pytest.mark.parametrize("tool", ["gzip", "xz"])
def test_sizes_equal_those_of_the_tools(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    inputs = TEXTS if tool == "gzip" else ["".join(TEXTS)]
    size = 0
    for text in inputs:
        done = subprocess.run([tool, "-9", "-c"], input=text.encode(), capture_output=True, check=True)
        size += len(done.stdout)
    result = compress(TEXTS)
    assert result.num_bytes == num_bytes
    measured = result.gzip if tool == "gzip" else result.xz
    assert measured == pytest.approx(8 * size / num_bytes, rel=0.02)


def test_random_letters_need_their_entropy() -> None:
    """16 equally likely letters carry 4 bits each; no compressor gets below, a good one comes near."""
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefghijklmnop", k=100_000))
    result = compress([text])
    for value in (result.xz, result.zstd, result.gzip):
        assert 4.0 <= value < 4.9


def test_repetition_across_texts_helps_only_the_single_stream() -> None:
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefghijklmnop", k=5_000))
    once, twice = compress([text]), compress([text, text])
    assert twice.xz < 0.6 * once.xz
    assert twice.gzip == pytest.approx(once.gzip)
    assert twice.zstd == pytest.approx(once.zstd)


def test_nothing_cannot_be_compressed() -> None:
    with pytest.raises(InputError, match="0 bytes"):
        compress([""])
