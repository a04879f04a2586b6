"""A model that somebody else trained: the 260,000 parameters of Karpathy's stories260K, greedily.

The golden ids were computed by a forward pass in NumPy and give the text that the model's author published.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pylm.model.config import ModelConfig
from pylm.model.generate import generate, stream
from pylm.model.transformer import Transformer


def half_split(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of a projection whose rotary pairs are neighbours to pairs half a head apart."""
    rows, dim = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, dim).swapaxes(1, 2).reshape(rows, dim)


def read_llama2c(path: Path) -> Transformer:
    """Read the first format of llama2.c: seven int32 of header, float32 tensors by kind, layers within."""
    data = path.read_bytes()
    dim, hidden_dim, num_layers, num_heads, num_kv, vocab_size, seq_len = struct.unpack("<7i", data[:28])
    values = np.frombuffer(data, dtype="<f4", offset=28)
    place = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        place += int(np.prod(shape))
        return values[place - int(np.prod(shape)) : place].reshape(shape)

    assert vocab_size > 0, "the output matrix is the embedding"
    kv_dim = dim // num_heads * num_kv
    embedding = take(vocab_size, dim)
    attention_norm = take(num_layers, dim)
    q, k, v = (take(num_layers, rows, dim) for rows in (dim, kv_dim, kv_dim))
    out = take(num_layers, dim, dim)
    ffn_norm = take(num_layers, dim)
    gate = take(num_layers, hidden_dim, dim)
    down = take(num_layers, dim, hidden_dim)
    up = take(num_layers, hidden_dim, dim)
    norm = take(dim)
    config = ModelConfig(
        vocab_size=vocab_size, dim=dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_kv,
        hidden_dim=hidden_dim, qk_norm=False, norm_eps=1e-5, rope_theta=1e4, max_seq_len=seq_len,
        tie_embeddings=True,
    )  # fmt: skip
    weights = {"embedding.weight": embedding, "norm.weight": norm}
    for i in range(num_layers):
        heads = np.concatenate([half_split(q[i], num_heads), half_split(k[i], num_kv), v[i]])
        weights |= {
            f"blocks.{i}.attention_norm.weight": attention_norm[i],
            f"blocks.{i}.attention.qkv.weight": heads,
            f"blocks.{i}.attention.out.weight": out[i],
            f"blocks.{i}.ffn_norm.weight": ffn_norm[i],
            f"blocks.{i}.ffn.gate_up.weight": np.concatenate([gate[i], up[i]]),
            f"blocks.{i}.ffn.down.weight": down[i],
        }
    model = Transformer(config)
    model.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    return model.eval()


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, object]:
    return json.loads((shared_data / "tinyllm" / "stories260K_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Transformer:
    return read_llama2c(shared_data / "tinyllm" / "stories260K.bin")


def test_the_story_is_told_to_the_last_token(stories: Transformer, golden: dict[str, object]) -> None:
    expected = golden["greedy_ids"]
    assert len(expected) == 256
    samples = generate(stories, [[golden["bos"]]], max_new_tokens=256, temperature=0)
    assert samples.ids == [expected]
    assert list(stream(stories, [golden["bos"]], max_new_tokens=64, temperature=0)) == expected[:64]


def test_the_story_goes_on_beside_others(stories: Transformer, golden: dict[str, object]) -> None:
    ids = [golden["bos"], *golden["greedy_ids"]]
    prompts = [ids[:cut] for cut in (1, 40, 2, 100, 17)]
    samples = generate(stories, prompts, max_new_tokens=48, temperature=0)
    assert samples.ids == [ids[len(p) : len(p) + 48] for p in prompts]
