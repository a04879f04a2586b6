"""The guide's recipe is one, and its tables name what there is; its code runs in test_readme.py."""

import re
import tomllib
from pathlib import Path

from pylm.model.config import ModelConfig
from pylm.train.pretrain import PretrainConfig

GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_recipe_can_be_used() -> None:
    config = PretrainConfig.model_validate(tomllib.loads(block("toml"))["pretrain"])
    assert config.mixture.sources == ("books", "code", "web")
    assert [stage.until for stage in config.mixture.stages] == [0.8, 1.0]


def test_all_fields_of_the_model_are_explained() -> None:
    table = GUIDE[GUIDE.index("| field of `pretrain.model`") : GUIDE.index("Attention stays within")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named | {"norm_eps"} == set(ModelConfig.model_fields)


def test_defaults_are_those_of_the_code() -> None:
    spikes = PretrainConfig.model_fields["spikes"].get_default(call_default_factory=True)
    assert (spikes.sigma, spikes.window, spikes.skip_sigma) == (7, 1000, 6)
    assert (spikes.skip_window, spikes.max_not_finite) == (128, 100)
    assert PretrainConfig.model_fields["z_loss"].default == 1e-5
    model = ModelConfig(dim=2, num_layers=1, num_heads=1)
    assert (model.rope_theta, model.max_seq_len, model.init_std) == (5e5, 4096, 0.02)
    assert (model.norm, model.qk_norm, model.tie_embeddings) == ("pre", True, False)
