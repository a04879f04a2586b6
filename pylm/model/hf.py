"""Models on disk: a folder with config.json, model.safetensors and tokenizer.json."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

FORMAT = "pylm-1"


def save_model(
    model: Transformer, folder: Path, tokenizer: Tokenizer, *, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model and its tokenizer, atomically and exactly.

    Args:
        model: its configuration and, unless `state_dict` is given, its weights.
        folder: replaced as a whole.
        tokenizer: saved beside the weights.
        state_dict: whole weights, where the model itself holds only shards.

    Raises:
        OSError: the disk is full, or the like; nothing is left behind.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in (state_dict or model.state_dict()).items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        config = {"format": FORMAT, **model.config.model_dump(mode="json")}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save_weights(weights, temporary / "model.safetensors")
        tokenizer.save(temporary / "tokenizer.json")


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """Read what `save_model` wrote.

    Args:
        folder: the model's folder.
        device: where the weights go.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} there; expected a model folder that pylm wrote")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise InputError(
                f"{folder / 'config.json'}: expected format {FORMAT!r}; write it with save_model"
            )
        config = ModelConfig.model_validate(values)
        weights = load_file(folder / "model.safetensors", device=str(device))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: damaged model folder ({reason}); restore it from a copy") from error
    with torch.device("meta"):
        model = Transformer(config)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    actual = {k: tuple(v.shape) for k, v in weights.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise InputError(
                f"{folder / 'model.safetensors'}: {name} has shape {actual.get(name, 'none')}, "
                f"but config.json asks for {expected.get(name, 'none')}"
            )
    model.to_empty(device=device)
    model.reset_tables()
    model.load_state_dict(weights)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.vocab_size > len(model.output_weight):
        raise InputError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, but the model only "
            f"{len(model.output_weight)}; put the tokenizer there that the model was trained with"
        )
    return model.eval(), tokenizer


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(weights), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A full disk comes as text.
        if number := re.search(r"os error (\d+)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
