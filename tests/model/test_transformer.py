"""The model against a slow forward pass in NumPy, and against itself on parts of its input."""

import numpy as np
import pytest
import torch
from oracles import transformer as oracle
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer

ROUNDING = 1e-11  # float64, a few thousand terms of size 1
IDS = [3, 17, 17, 0, 30, 8, 5, 3, 29, 11, 12]
ARCHITECTURES = {
    "plain": {"qk_norm": False},
    "tied": {"tie_embeddings": True},
    "grouped": {"num_kv_heads": 2, "rope_theta": 50.0, "hidden_dim": 13},
    "one-key-head": {"num_kv_heads": 1, "head_dim": 6, "embedding_norm": True, "norm_eps": 0.1},
    "reordered": {"norm": "reordered", "num_kv_heads": 2, "norm_eps": 0.1},
    "reordered-bare": {"norm": "reordered", "qk_norm": False, "embedding_norm": True, "tie_embeddings": True},
    "one-head": {"num_heads": 1, "num_layers": 1},
}

pytestmark = pytest.mark.usefixtures("attention_kind")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", [1, len(IDS)])
def test_logits_equal_those_of_the_slow_version(make_model, name: str, length: int) -> None:
    model = make_model(**ARCHITECTURES[name])
    ids = IDS[:length]
    hidden_BTD = model(torch.tensor([ids, ids[::-1]]))
    got = (hidden_BTD @ model.output_weight.T).detach().numpy()
    weights = oracle.weights_of(model)
    for row, each in enumerate((ids, ids[::-1])):
        expected = oracle.logits(weights, model.config, each)
        np.testing.assert_allclose(got[row], expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", ["tied", "one-key-head", "reordered"])
def test_gradient_equals_differences_of_the_slow_version(make_model, name: str) -> None:
    model = make_model(**ARCHITECTURES[name])
    weights = oracle.weights_of(model)
    rng = np.random.default_rng(0)
    pull = rng.normal(size=(len(IDS), 31))
    logits_TV = model(torch.tensor([IDS]))[0] @ model.output_weight.T
    (logits_TV * torch.from_numpy(pull)).sum().backward()
    gradient = {name: p.grad.numpy() for name, p in model.named_parameters()}
    step = 1e-6
    for tensor in weights:  # one direction for every tensor, so that none hides behind another
        direction = rng.normal(size=weights[tensor].shape)
        ends = [
            (
                pull * oracle.logits(weights | {tensor: weights[tensor] + by * direction}, model.config, IDS)
            ).sum()
            for by in (step, -step)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert (gradient[tensor] * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-5), tensor


def test_packed_documents_are_computed_as_if_alone(make_model) -> None:
    model = make_model(num_kv_heads=2)
    rows = [[IDS[:4], IDS[4:5], IDS[5:]], [IDS[:1], IDS[1:10], IDS[10:]], [IDS]]
    ids_BT = torch.tensor([[token for doc in row for token in doc] for row in rows])
    positions_BT = torch.tensor([[t for doc in row for t in range(len(doc))] for row in rows])
    documents_BT = torch.tensor([[n for n, doc in enumerate(row) for _ in doc] for row in rows])
    packed_BTD = model(ids_BT, positions_BT=positions_BT, documents_BT=documents_BT)
    for number, row in enumerate(rows):
        alone_TD = torch.cat([model(torch.tensor([doc]))[0] for doc in row])
        torch.testing.assert_close(packed_BTD[number], alone_TD, rtol=ROUNDING, atol=ROUNDING)


def test_inputs_of_any_strides(make_model) -> None:
    model = make_model()
    ids_TB = torch.tensor([IDS, IDS[::-1]]).t().contiguous()
    expected = model(ids_TB.t().contiguous())
    torch.testing.assert_close(model(ids_TB.t()), expected, rtol=0, atol=0)


def test_float32_stays_within_its_precision(make_model) -> None:
    model = make_model(num_kv_heads=2, rope_theta=50.0).float()
    exact = oracle.hidden_states(oracle.weights_of(model), model.config, IDS)
    model.reset_tables()
    assert model.cos.dtype == torch.float32
    got = model(torch.tensor([IDS]))[0].detach().numpy()
    assert np.abs(got - exact).max() < 64 * np.finfo(np.float32).eps * np.abs(exact).max()


def test_initial_weights() -> None:
    config = ModelConfig(
        vocab_size=997, dim=128, num_layers=2, num_heads=4, init_std=0.05, output_init_std=0.5,
        zero_init_residual=True,
    )  # fmt: skip
    torch.manual_seed(3)
    model = Transformer(config)
    # A normal cut at three deviations has 0.986 of its deviation.
    for weight, std in ((model.embedding.weight, 0.05), (model.output_weight, 0.5)):
        assert weight.std().item() == pytest.approx(0.986 * std, rel=0.01)
        assert weight.abs().max() <= 3 * std
    for block in model.blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.986 * 0.05, rel=0.02)
        assert not block.attention.out.weight.any()
        assert not block.ffn.down.weight.any()
        assert torch.equal(block.attention_norm.weight, torch.ones(128))
    embedded = model.embedding(torch.tensor([5, 6]))
    expected = embedded * (embedded.square().mean(1, keepdim=True) + config.norm_eps).rsqrt()
    torch.testing.assert_close(model(torch.tensor([[5, 6]]))[0], expected)
    torch.manual_seed(3)
    again = Transformer(config)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))


def test_counts_of_parameters_and_operations() -> None:
    shape = {"dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "hidden_dim": 50}
    model = Transformer(ModelConfig(vocab_size=71, qk_norm=True, max_seq_len=64, **shape))
    per_block = 32 * (4 + 2 * 2) * 6 + 4 * 6 * 32 + 3 * 32 * 50 + 2 * 32 + 2 * 6
    assert model.num_params(non_embedding=True) == 3 * per_block + 32
    assert model.num_params() == 3 * per_block + 32 + 2 * 71 * 32
    tied = Transformer(ModelConfig(vocab_size=71, tie_embeddings=True, **shape))
    assert tied.num_params() == 3 * per_block + 32 + 71 * 32
    assert tied.num_params(non_embedding=True) == 3 * per_block + 32
    # torch counts matrix products; the estimate counts the weights of norms like those of matrices.
    ids_BT = torch.arange(64).reshape(1, 64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (model(ids_BT) @ model.output_weight.T).sum().backward()
    norms = 3 * (2 * 32 + 2 * 6) + 32
    assert counter.get_total_flops() / 64 == model.flops_per_token(64, causal=False) - 6 * norms
    attention = 12 * 3 * 4 * 6 * 64
    assert model.flops_per_token(64) == model.flops_per_token(64, causal=False) - attention // 2


def test_bad_arguments(make_model) -> None:
    with pytest.raises(InputError, match=r"model\.vocab_size is not set"):
        Transformer(ModelConfig(dim=16, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="got 65 tokens, but the model's max_seq_len is 64"):
        make_model()(torch.zeros(1, 65, dtype=torch.int64))


def test_bfloat16_products_stay_within_their_precision(make_model) -> None:
    model = make_model(num_kv_heads=2, num_layers=1)
    ids_BT = torch.tensor([IDS, IDS[::-1]])
    exact = model(ids_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.float()(ids_BT)
    error = (rounded.double() - exact).norm() / exact.norm()
    assert error < 8 * 2**-8  # one layer: seven products and the scores, each rounded to 8 bits
