"""Models on disk: a folder that `transformers` reads as well.

    config.json             the architecture as `transformers` has it, and under `pylm` as pylm has it
    model.safetensors       weights, see `pylm.model.hf_layout`
    embedding.st            where embeddings are normed and the output matrix is not tied to them: the table
                            before the norm, as safetensors; its ending keeps it from those who load every
                            *.safetensors of a folder
    generation_config.json  the tokens that end an answer
    tokenizer.json          the tokenizer
    tokenizer_config.json   roles of its tokens, and the chat template of a tuned model

An architecture that `transformers` lacks is written under pylm's own names, as all models once were.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pylm.data.chat import END_OF_TEXT, ChatTemplate
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.model import hf_layout
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer

FORMAT = "pylm-2"
"""Of folders that `transformers` reads."""
OWN_FORMAT = "pylm-1"
"""Of folders whose weights have pylm's names."""
_RAW_EMBEDDING = "embedding.st"
_INDEX = "model.safetensors.index.json"


def save_model(
    model: Transformer,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model and its tokenizer, atomically and exactly.

    Args:
        model: its configuration and, unless `state_dict` is given, its weights.
        folder: replaced as a whole.
        tokenizer: saved beside the weights, with roles for its tokens. `<|endoftext|>` begins a text and
            fills up rows; it also ends a text, and the template's end of a message ends an answer.
        template: the layout of conversations that the model was tuned with; None for a model that was not.
        state_dict: whole weights, where the model itself holds only shards.

    Raises:
        InputError: the tokenizer lacks a token of the template.
        OSError: the disk is full, or the like; nothing is left behind.
    """
    config = model.config
    weights = {k: v.detach().cpu().contiguous() for k, v in (state_dict or model.state_dict()).items()}
    stop_ids = _stop_ids(tokenizer, template)
    description = hf_layout.describe(config)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if description is None:
            _write(temporary / "config.json", {"format": OWN_FORMAT, **config.model_dump(mode="json")})
            _save_weights(weights, temporary / "model.safetensors")
        else:
            own = {"format": FORMAT, **config.model_dump(mode="json")}
            dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
            document = description | stop_ids | {"torch_dtype": dtype, "use_cache": True, "pylm": own}
            _write(temporary / "config.json", document)
            _save_weights(hf_layout.to_hf(weights, config), temporary / "model.safetensors")
            if config.embedding_norm and not config.tie_embeddings:
                raw = {"embedding.weight": weights["embedding.weight"]}
                _save_weights(raw, temporary / _RAW_EMBEDDING)
        roles = _roles(tokenizer, template)
        # Not in config.json: there it would keep the row of the token from being trained.
        _write(temporary / "generation_config.json", stop_ids | {"pad_token_id": roles.pad_id})
        roles.save(temporary)


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """Read what `save_model` wrote, or what `transformers` saved of it, in one file of weights.

    Args:
        folder: the model's folder.
        device: where the weights go.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    if (folder / _INDEX).is_file():  # a model.safetensors beside it may be an older one
        raise InputError(
            f"{folder}: {_INDEX} says that the weights are in several files, expected one; "
            "save the model with a max_shard_size that holds it, in an empty folder"
        )
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} there; expected a model folder that pylm wrote")
    try:
        config, is_own = _read_config(folder / "config.json")
        tensors = load_file(folder / "model.safetensors", device=str(device))
        raw = folder / _RAW_EMBEDDING
        raw_embedding = load_file(raw, device=str(device))["embedding.weight"] if raw.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, SafetensorError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: damaged model folder ({reason}); restore it from a copy") from error
    with torch.device("meta"):
        model = Transformer(config)
    own = model.state_dict()
    wanted = own if is_own else hf_layout.to_hf(own, config)
    expected = {k: tuple(v.shape) for k, v in wanted.items()}
    actual = {k: tuple(v.shape) for k, v in tensors.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise InputError(
                f"{folder / 'model.safetensors'}: {name} has shape {actual.get(name, 'none')}, "
                f"but config.json asks for {expected.get(name, 'none')}"
            )
    weights: Mapping[str, Tensor] = tensors
    if not is_own:
        weights, actual_config = hf_layout.from_hf(tensors, config, raw_embedding=raw_embedding)
        if actual_config != config:
            with torch.device("meta"):
                model = Transformer(actual_config)
    model.to_empty(device=device)
    model.reset_tables()
    model.load_state_dict(weights)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > len(model.output_weight):
        raise InputError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, but the model only "
            f"{len(model.output_weight)}; put the tokenizer there that the model was trained with"
        )
    return model.eval(), tokenizer


def _read_config(path: Path) -> tuple[ModelConfig, bool]:
    """Read a configuration; say whether the weights beside it have pylm's own names."""
    values = document = json.loads(path.read_text(encoding="utf-8"))
    is_own = isinstance(document, dict) and document.get("format") == OWN_FORMAT
    if isinstance(document, dict) and not is_own:
        values = document.get("pylm")
    if not isinstance(values, dict) or values.pop("format", None) not in (FORMAT, OWN_FORMAT):
        raise InputError(f"{path}: expected pylm.format {FORMAT!r}; write it with save_model")
    config = ModelConfig.model_validate(values)
    if is_own:
        return config, True
    try:
        return hf_layout.take_over(config, document), False
    except InputError as error:
        raise InputError(f"{path.parent}: {error}") from error


def _stop_ids(tokenizer: Tokenizer, template: ChatTemplate | None) -> dict[str, Any]:
    """Give the tokens that begin and end texts, by the names of a generation_config.json."""
    end_of_text = tokenizer.special_tokens.get(END_OF_TEXT)
    if template is None:
        return {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    # The end of a message first: some take the first only.
    stop_ids = sorted(template.stop_ids(tokenizer), key=lambda i: i == end_of_text)
    return {"bos_token_id": end_of_text, "eos_token_id": stop_ids}


def _roles(tokenizer: Tokenizer, template: ChatTemplate | None) -> Tokenizer:
    text = END_OF_TEXT if END_OF_TEXT in tokenizer.special_tokens else None
    if template is None:
        return tokenizer.with_roles(bos_token=text, eos_token=text, pad_token=text, add_bos=True)
    return tokenizer.with_roles(
        bos_token=text,
        eos_token=template.end,
        pad_token=text or template.end,
        chat_template=template.jinja,
        add_bos=True,
    )


def _write(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(weights), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A full disk comes as text.
        if number := re.search(r"os error (\d+)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
