"""Recipes: what is read, what is refused, and how the fault is named."""

from pathlib import Path

import pytest

from pylm.errors import InputError
from pylm.recipe import find_recipe, load_recipe

MINIMAL = """
name = "small"
[prepare]
sources = [{ name = "a", kind = "text", paths = ["a.txt"] }]
[pretrain]
num_steps = 10
seq_len = 16
batch_size = 2
model = { dim = 32, num_layers = 1, num_heads = 2 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return str(path)


def test_defaults_and_overrides(recipe: str) -> None:
    plain = load_recipe(recipe)
    assert plain.folder == Path("runs/small")
    assert plain.sft is None
    changed = load_recipe(
        recipe,
        ["pretrain.num_steps=20", "out=/data/x", "pretrain.model.norm=reordered", "prepare.sources.0.name=b"],
    )
    assert changed.pretrain.num_steps == 20
    assert changed.folder == Path("/data/x")
    assert changed.pretrain.model.norm == "reordered"
    assert changed.prepare.sources[0].name == "b"
    assert changed.pretrain.batch_size == plain.pretrain.batch_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.num_stepz=3", r"unknown key pretrain\.num_stepz; did you mean 'num_steps'\?"),
        ("pretrain.model.num_headz=3", r"unknown key pretrain\.model\.num_headz; did you mean 'num_heads'\?"),
        ("pretain.num_steps=3", r"unknown key pretain; did you mean 'pretrain'\?"),
        ("pretrain.num_steps=many", r"pretrain\.num_steps: .*integer.*'many'"),
        ("pretrain.model.num_heads=5", r"dim must be a multiple of num_heads, got 32 and 5"),
        ("num_steps", r"not of the form key=value"),
        ("name.x=1", r"is not a table"),
        ("pretrain.num_steps=0", r"greater than or equal to 1"),
        ("prepare.sources.5.kind=text", r"no entry 5; they count from 0 to 0"),
        ("seed=18446744073709551616", r"seed: .*less than 9223372036854775808"),
        ("out=", r"out must name a folder"),
        ("tokenizer.pattern=qwen9", r"'o200k'"),
    ],
)
def test_faults_are_named_in_one_line(recipe: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(recipe, [override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quickstart"):
        load_recipe(str(tmp_path / "absent.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n", encoding="utf-8")
    with pytest.raises(InputError, match="not TOML"):
        load_recipe(str(broken))
    broken.write_bytes(b"name = '\xff'\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(str(broken))
    broken.write_text("name = 'x'\n", encoding="utf-8")
    with pytest.raises(InputError, match="missing key prepare"):
        load_recipe(str(broken))


def test_shipped_recipes_load() -> None:
    folder = find_recipe("quickstart").parent
    for path in sorted(folder.glob("*.toml")):
        assert load_recipe(str(path)).name == path.stem
