"""What an architecture may be, and the sizes that follow from it."""

import pytest
from pydantic import ValidationError

from pylm.model.config import ModelConfig


def make(**values: object) -> ModelConfig:
    return ModelConfig.model_validate({"dim": 64, "num_layers": 1, "num_heads": 4, **values})


def test_what_is_left_out_is_derived() -> None:
    config = make()
    assert (config.kv_heads, config.head_features) == (4, 16)
    assert config.ffn_dim == 192  # 8 / 3 * 64 = 170.7, up to a multiple of 32
    given = make(num_kv_heads=2, head_dim=6, hidden_dim=7)
    assert (given.kv_heads, given.head_features, given.ffn_dim) == (2, 6, 7)


@pytest.mark.parametrize(("dim", "expected"), [(12, 32), (96, 256), (97, 288), (4096, 10944)])
def test_hidden_dim_is_the_next_multiple_of_32_above_8_thirds(dim: int, expected: int) -> None:
    assert make(dim=dim, head_dim=2).ffn_dim == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"num_kv_heads": 8}, "num_heads must be a multiple of num_kv_heads, got 4 and 8"),
        ({"dim": 66}, "dim must be a multiple of num_heads, got 66 and 4; or set head_dim"),
        ({"dim": 60}, "head_dim must be even for rotary positions, got 15"),
        ({"head_dim": 5}, "head_dim must be even for rotary positions, got 5"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"norm": "post"}, "'pre' or 'reordered'"),
        ({"num_head": 4}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_architectures_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**values)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().dim = 3
