"""Models on disk: exact, whole or not at all, and clear about damage."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pylm.data.chat import SPECIAL_TOKENS
from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.model.hf import load_model, save_model
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

SHAPE = {"dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], vocab_size=256 + len(SPECIAL_TOKENS), special_tokens=SPECIAL_TOKENS)


def make(tokenizer: Tokenizer, **options: object) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"vocab_size": tokenizer.vocab_size, **SHAPE, **options})
    return Transformer(config)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(make(tokenizer), tmp_path / "model", tokenizer)
    return tmp_path / "model"


FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize(
    ("options", "more_files"),
    [
        ({}, set()),
        ({"tie_embeddings": True, "norm": "reordered"}, set()),
        ({"qk_norm": False, "rope_theta": 7.0, "head_dim": 6, "hidden_dim": 24}, set()),
        ({"embedding_norm": True}, {"embedding.st"}),
        ({"embedding_norm": True, "tie_embeddings": True}, set()),
        ({"norm": "reordered", "qk_norm": False, "embedding_norm": True}, set()),
    ],
)
def test_what_is_read_is_what_was_written(
    tmp_path: Path, tokenizer: Tokenizer, options: dict[str, object], more_files: set[str]
) -> None:
    model = make(tokenizer, **options)
    save_model(model, tmp_path / "model", tokenizer)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded_tokenizer.fingerprint == tokenizer.fingerprint
    weights = model.state_dict()
    assert weights.keys() == loaded.state_dict().keys()
    assert all(torch.equal(w, weights[name]) for name, w in loaded.state_dict().items())
    ids_BT = torch.arange(24).reshape(2, 12)
    assert torch.equal(loaded(ids_BT), model(ids_BT))
    assert {p.name for p in (tmp_path / "model").iterdir()} == FILES | more_files
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_folders_of_the_first_format_are_read(saved: Path, tokenizer: Tokenizer) -> None:
    model = make(tokenizer)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (saved / name).unlink()
    config = {"format": "pylm-1", **model.config.model_dump(mode="json")}
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), saved / "model.safetensors")
    loaded = load_model(saved)[0]
    assert loaded.config == model.config
    weights = model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in loaded.state_dict().items())


def test_given_weights_are_written_and_the_folder_is_replaced(saved: Path, tokenizer: Tokenizer) -> None:
    (saved / "old").touch()
    model = make(tokenizer)
    weights = {name: w + 1 for name, w in model.state_dict().items()}
    save_model(model, saved, tokenizer, state_dict=weights)
    loaded = load_model(saved)[0].state_dict()
    assert all(torch.equal(loaded[name], w) for name, w in weights.items())
    assert not (saved / "old").exists()


def edit_config(*, top: dict[str, object] | None = None, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["pylm"] |= values
        config |= top or {}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return edit


def edit_weights(**tensors: torch.Tensor | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path) | tensors
        save_file({name: w for name, w in weights.items() if w is not None}, path)

    return edit


def cut_in_half(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def other_tokenizer(folder: Path) -> None:
    special = [*SPECIAL_TOKENS, "<|more|>"]
    Tokenizer.train(["a"], vocab_size=256 + len(special), special_tokens=special).save(
        folder / "tokenizer.json"
    )


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "no config.json there; expected a model folder that pylm wrote"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors there"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json there"),
    "empty config": (lambda f: (f / "config.json").write_bytes(b""), "damaged model folder"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"\xff": 1}'), "damaged model folder"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "expected pylm.format 'pylm-2'"),
    "other format": (edit_config(format="pylm-99"), "expected pylm.format 'pylm-2'"),
    "unknown field": (edit_config(colour="red"), "damaged model folder"),
    "no vocabulary": (edit_config(top={"vocab_size": None}), "vocab_size is not set"),
    "other width": (edit_config(dim=24), r"lm_head\.weight has shape \(261, 16\), .* asks for \(261, 24\)"),
    "more layers": (edit_config(num_layers=3), r"model\.layers\.2\.input_layernorm\.weight has shape none"),
    "other vocabulary": (
        edit_config(top={"vocab_size": 300}),
        r"lm_head\.weight has shape \(261, 16\), .* asks for \(300, 16\)",
    ),
    "no number": (edit_config(top={"rms_norm_eps": "small"}), "damaged model folder"),
    "stretched rotation": (
        edit_config(top={"rope_scaling": {"type": "linear", "factor": 2.0}}),
        "rope_type is 'linear', but pylm only computes 'default'",
    ),
    "stretched rotation, lately": (
        edit_config(top={"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}),
        "rope_type is 'yarn', but pylm only computes 'default'",
    ),
    "window": (
        edit_config(top={"layer_types": ["full_attention", "sliding_attention"]}),
        r"layer_types is \['full_attention', 'sliding_attention'\], but pylm only computes",
    ),
    "other window": (edit_config(top={"use_sliding_window": True}), "use_sliding_window is True"),
    "other activation": (edit_config(top={"hidden_act": "gelu"}), "hidden_act is 'gelu'"),
    "several files": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        r"model\.safetensors\.index\.json says that the weights are in several files, expected one",
    ),
    "cut off": (cut_in_half, "damaged model folder"),
    "no bytes": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged model folder"),
    "of transformers only": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen3"}'),
        "expected pylm.format 'pylm-2'",
    ),
    "a tensor too many": (edit_weights(extra=torch.zeros(3)), r"extra has shape \(3,\), .* asks for none"),
    "a tensor too few": (
        edit_weights(**{"model.norm.weight": None}),
        r"model\.norm\.weight has shape none",
    ),
    "other tokenizer": (other_tokenizer, "tokenizer.json has 262 tokens, but the model only 261"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_one_line(saved: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let the operating system refuse to write longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [1000, 30_000])  # within the configuration or tokenizer, the weights
def test_a_disk_that_is_full_leaves_what_was_there(
    saved: Path, tokenizer: Tokenizer, size_bytes: int
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(OSError, match="File too large"), largest_file(size_bytes):
        save_model(make(tokenizer, num_layers=3), saved, tokenizer)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
