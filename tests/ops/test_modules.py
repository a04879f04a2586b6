"""The modules: the ops behind them, what they keep through conversions, a model in torchtitan's manner."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from oracles import ops as oracle
from torch import Tensor, nn

from pylm import ops
from pylm.errors import InputError


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding_follows_the_oracle(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rotary = ops.RotaryEmbedding(6, num_positions=16, theta=100.0, interleaved=interleaved)
    q, k = torch.randn(5, 3, 8, generator=generator), torch.randn(5, 1, 8, generator=generator)
    for positions in (None, torch.tensor([3, 4, 0, 1, 15])):
        places = list(range(5)) if positions is None else positions.tolist()
        rotated = rotary(q, k, position_ids=positions)
        for x, y in zip((q, k), rotated, strict=True):
            expected = oracle.rope(x.double(), places, 100.0, 6, interleaved)
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="17 positions but cos only 16 rows"):
        rotary(torch.randn(17, 3, 8), torch.randn(17, 1, 8))


def test_rotary_embedding_stays_precise_and_out_of_the_state_dict() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    rotary = ops.RotaryEmbedding(8, num_positions=4096, scaling=scaling)
    assert rotary.state_dict() == {}
    assert list(rotary.parameters()) == []
    expected = ops.rope_cache(4096, 8, scaling=scaling)
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), copy.deepcopy):
        converted = convert(nn.Sequential(copy.deepcopy(rotary), nn.Linear(2, 2)))[0]
        assert converted.cos.dtype == torch.float32
        assert torch.equal(converted.cos, expected[0])
        assert torch.equal(converted.sin, expected[1])
    with torch.device("meta"):
        empty = ops.RotaryEmbedding(8, num_positions=4096, scaling=scaling)
    assert empty.cos.is_meta
    empty.to_empty(device="cpu").reset_parameters()
    assert torch.equal(empty.sin, expected[1])
    assert "num_positions=4096" in repr(rotary)


def test_swiglu_follows_the_formula() -> None:
    torch.manual_seed(0)
    block = ops.SwiGLU(6, 10, bias=True, dtype=torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    gate, up = F.linear(x, block.gate_up.weight, block.gate_up.bias).chunk(2, -1)
    expected = F.linear(gate / (1 + (-gate).exp()) * up, block.down.weight, block.down.bias)
    torch.testing.assert_close(block(x), expected)
    leaves = [x, *block.parameters()]
    for got, want in zip(
        torch.autograd.grad(block(x).square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    assert ops.SwiGLU(6, 10).gate_up.bias is None


def test_linear_cross_entropy_gives_loss_and_logits() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(11, 6)
    head = ops.LinearCrossEntropy(6, 11, ignore_index=3, softcap=2.0, z_loss=0.1)
    assert float(head.weight.detach().abs().max()) <= 6**-0.5
    head.weight = embedding.weight
    hidden, targets = torch.randn(2, 4, 6), torch.randint(0, 11, (2, 4))
    logits = 2.0 * torch.tanh(hidden @ embedding.weight.T / 2.0)
    torch.testing.assert_close(head(hidden), logits)
    kept = targets != 3
    rows = F.cross_entropy(logits[kept], targets[kept]) + 0.1 * logits[kept].logsumexp(-1).square().mean()
    torch.testing.assert_close(head(hidden, targets), rows)
    head(hidden, targets).backward()
    assert embedding.weight.grad.abs().sum() > 0
    assert "softcap=2.0" in repr(head)
    smooth = ops.LinearCrossEntropy(6, 11, label_smoothing=0.2, reduction="sum")
    expected = F.cross_entropy(
        (hidden @ smooth.weight.T).flatten(0, 1), targets.flatten(), label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(smooth(hidden, targets), expected)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


# A decoder in torchtitan's manner: plain modules, weights made on the meta device, init_weights afterwards.


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rope: nn.Module) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.wq, self.wk, self.wv))
        q, k = rope(q, k)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        return self.wo(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, plain: bool) -> None:
        super().__init__()
        norm = (lambda: nn.RMSNorm(dim, eps=1e-5)) if plain else (lambda: ops.RMSNorm(dim, eps=1e-5))
        self.attention = Attention(dim, 4, 2)
        self.feed_forward = PlainSwiGLU(dim, 2 * dim) if plain else ops.SwiGLU(dim, 2 * dim)
        self.attention_norm, self.ffn_norm = norm(), norm()

    def forward(self, x: Tensor, rope: nn.Module) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope)
        return x + self.feed_forward(self.ffn_norm(x))


class PlainSwiGLU(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class PlainRotary(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        half = q.shape[-1] // 2
        angles = torch.outer(torch.arange(q.shape[1]), 500.0 ** -(torch.arange(half) / half))
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

        return rotate(q), rotate(k)


class PlainHead(nn.Module):
    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, self.weight).flatten(0, 1).float(), targets.flatten())


class Decoder(nn.Module):
    def __init__(self, vocab_size: int, dim: int, num_layers: int, plain: bool) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleDict({str(i): Block(dim, plain) for i in range(num_layers)})
        self.rope = PlainRotary() if plain else ops.RotaryEmbedding(dim // 4, num_positions=64, theta=500.0)
        self.output = PlainHead(dim, vocab_size) if plain else ops.LinearCrossEntropy(dim, vocab_size)

    def init_weights(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.1, generator=generator)
        if isinstance(self.rope, ops.RotaryEmbedding):
            self.rope.reset_parameters()

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h, self.rope)
        return self.output(h, targets)


def _decoder(plain: bool) -> Decoder:
    with torch.device("meta"):
        model = Decoder(53, 32, 2, plain)
    model.to_empty(device="cpu")
    model.init_weights()
    return model


def test_a_decoder_of_the_modules_trains_like_one_of_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    starts, steps = (torch.randint(0, high, (40, 4, 1), generator=generator) for high in (53, 4))
    tokens = (starts + steps * torch.arange(17)) % 53
    curves = []
    for plain in (True, False):
        model = _decoder(plain)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for batch in tokens:
            loss = model(batch[:, :-1], batch[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(torch.tensor(losses))
    assert curves[0][-1] < curves[0][0] - 0.3
    # 40 updates of AdamW, each of which turns rounding into steps where gradients are near 0.
    torch.testing.assert_close(curves[1], curves[0], rtol=0.0, atol=2e-3)


def test_a_decoder_of_the_modules_compiles_and_checkpoints() -> None:
    model = _decoder(plain=False)
    tokens = torch.randint(0, 53, (2, 9), generator=torch.Generator().manual_seed(2))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    again = compiled(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, list(model.parameters())), expected)
    block, h = model.layers["0"], torch.randn(2, 8, 32, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(block, h, model.rope, use_reentrant=False)
    (got,) = torch.autograd.grad(y.sum(), h)
    assert torch.equal(got, torch.autograd.grad(block(h, model.rope).sum(), h)[0])


def test_the_bias_of_experts_stays_float32() -> None:
    module = ops.MoE(8, 4, 3, 2, balance="bias").bfloat16()
    assert module.router_weight.dtype == torch.bfloat16
    assert module.expert_bias.dtype == torch.float32
    module.expert_bias.fill_(0.5)
    for _ in range(100):
        module.update_bias(torch.tensor([1, 2, 3]))
    torch.testing.assert_close(module.expert_bias, torch.tensor([0.6, 0.5, 0.4]))


def test_experts_on_the_meta_device_have_shapes() -> None:
    module = ops.MoE(8, 4, 3, 2, device="meta")
    y, routing = module(torch.empty(5, 8, device="meta"))
    assert y.shape == (5, 8)
    assert routing.expert.shape == (5, 2)
