"""Small models with weights that are all different from their neighbours, norms included."""

from collections.abc import Callable

import pytest
import torch

from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.ops import rope_cache

MakeModel = Callable[..., Transformer]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Make a float64 model, its rotary tables not rounded, from options of `ModelConfig`."""

    def make(**options: object) -> Transformer:
        defaults = {"vocab_size": 31, "dim": 16, "num_layers": 2, "num_heads": 4, "max_seq_len": 64}
        config = ModelConfig.model_validate(defaults | options)
        model = Transformer(config).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.4 * noise)
        model.cos, model.sin = rope_cache(
            config.max_seq_len, config.head_features, theta=config.rope_theta, dtype=torch.float64
        )
        return model

    return make


@pytest.fixture(params=["dense", "fused"])
def attention_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with plain matrix products, and again with torch's fused attention."""
    if request.param == "fused":
        monkeypatch.setattr("pylm.model.attention.DENSE_KEYS", 0)
    return str(request.param)
