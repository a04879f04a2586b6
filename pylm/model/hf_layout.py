"""The Transformer as `transformers` has it: names of classes, fields and tensors.

Three classes of that library compute what `pylm.model.transformer` computes:

    norm       qk_norm   class
    pre        true      Qwen3ForCausalLM
    pre        false     LlamaForCausalLM
    reordered  true      Exaone4ForCausalLM
    reordered  false     none

They keep query, key and value apart, and gate and up; cutting a matrix changes no number. None of them norms
embeddings: the norm has no weight and acts on each row alone, so the table is written with its rows normed.
An output matrix that was tied to the table then stands apart.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.ops import rms_norm

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
_CLASSES = {("pre", True): "Qwen3", ("pre", False): "Llama", ("reordered", True): "Exaone4"}
_FULL = "full_attention"
_EDITABLE = {
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
}
_NORMS = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "reordered": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


def describe(config: ModelConfig) -> dict[str, object] | None:
    """Give the fields of a config.json, or None where `transformers` has no class for the architecture."""
    name = _CLASSES.get((config.norm, config.qk_norm))
    if name is None:
        return None
    document: dict[str, object] = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_features,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings and not config.embedding_norm,
        "attention_bias": False,
        "initializer_range": config.init_std,
    }
    if name == "Exaone4":
        document |= {
            "sliding_window": None,
            "sliding_window_pattern": None,
            "layer_types": [_FULL] * config.num_layers,
        }
    return document


def take_over(config: ModelConfig, document: Mapping[str, object]) -> ModelConfig:
    """Follow what `transformers` has changed since: vocabulary, context, rotation, epsilon, tied weights.

    Args:
        config: as the model was written.
        document: the config.json that stands there now.

    Returns:
        The configuration of the weights beside it.

    Raises:
        InputError: a field asks for what pylm does not compute.
        ValidationError: a field is not what its name says.
    """
    rope = document.get("rope_parameters") or document.get("rope_scaling")
    rope = rope if isinstance(rope, Mapping) else {}
    layers = document.get("layer_types")
    for name, value, expected in (
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("hidden_act", document.get("hidden_act", "silu"), "silu"),
        ("use_sliding_window", document.get("use_sliding_window") or False, False),
        ("layer_types", sorted({str(x) for x in layers}) if isinstance(layers, list) else [_FULL], [_FULL]),
    ):
        if value != expected:
            raise InputError(f"config.json: {name} is {value!r}, but pylm only computes {expected!r}")
    values = config.model_dump()
    for name, other in _EDITABLE.items():
        values[name] = document.get(other, values[name])
    values["rope_theta"] = rope.get("rope_theta", document.get("rope_theta", config.rope_theta))
    was_tied = config.tie_embeddings and not config.embedding_norm
    if (is_tied := bool(document.get("tie_word_embeddings", was_tied))) != was_tied:
        values["tie_embeddings"] = is_tied
        values["embedding_norm"] = config.embedding_norm and not is_tied
    return ModelConfig.model_validate(values)


def to_hf(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Name and cut weights as `transformers` does.

    Args:
        weights: of a `Transformer`, under its names. Tensors may be on the meta device.
        config: its configuration, one that `describe` knows.

    Returns:
        The tensors of a model.safetensors; views where nothing is computed.
    """
    embedding = weights["embedding.weight"]
    output = embedding if config.tie_embeddings else weights["output.weight"]
    tensors = {"model.norm.weight": weights["norm.weight"]}
    tensors[EMBEDDING] = _normed(embedding, config) if config.embedding_norm else embedding
    if config.embedding_norm or not config.tie_embeddings:
        tensors[OUTPUT] = output
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for name, other in _same(config).items():
            tensors[f"{theirs}.{other}.weight"] = weights[f"{ours}.{name}.weight"]
        for name, others in _cut(config).items():
            parts = torch.split(weights[f"{ours}.{name}.weight"], list(others.values()))
            tensors |= {f"{theirs}.{x}.weight": part for x, part in zip(others, parts, strict=True)}
    return tensors


def from_hf(
    tensors: Mapping[str, Tensor], config: ModelConfig, *, raw_embedding: Tensor | None = None
) -> tuple[dict[str, Tensor], ModelConfig]:
    """Name and join weights as a `Transformer` does.

    Args:
        tensors: all that `to_hf` gives for `config`, in its shapes.
        config: the configuration that they were written with.
        raw_embedding: (V, D) the table before its norm, where `embedding_norm` is set and the output matrix
            is not tied to it, if it is known.

    Returns:
        Weights, and the configuration that they belong to: `config`; or, where `embedding_norm` is set and
        the table before the norm is unknown or has been trained on since, the same without that norm.
    """
    weights = {"norm.weight": tensors["model.norm.weight"], "embedding.weight": tensors[EMBEDDING]}
    if config.embedding_norm:
        raw = tensors[OUTPUT] if config.tie_embeddings else raw_embedding
        if raw is not None and _is_norm_of(tensors[EMBEDDING], raw, config):
            weights["embedding.weight"] = raw
        else:
            config = config.model_copy(update={"embedding_norm": False, "tie_embeddings": False})
    if not config.tie_embeddings:
        weights["output.weight"] = tensors[OUTPUT]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for name, other in _same(config).items():
            weights[f"{ours}.{name}.weight"] = tensors[f"{theirs}.{other}.weight"]
        for name, others in _cut(config).items():
            weights[f"{ours}.{name}.weight"] = torch.cat([tensors[f"{theirs}.{x}.weight"] for x in others])
    return weights, config


def _same(config: ModelConfig) -> dict[str, str]:
    """Map names of a block's weights that are taken as they are."""
    attention_norm, ffn_norm = _NORMS[config.norm]
    names = {
        "attention_norm": attention_norm,
        "ffn_norm": ffn_norm,
        "attention.out": "self_attn.o_proj",
        "ffn.down": "mlp.down_proj",
    }
    if config.qk_norm:
        names |= {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
    return names


def _cut(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Map names of a block's weights that are cut to those of their parts and the rows of each."""
    queries, keys = (n * config.head_features for n in (config.num_heads, config.kv_heads))
    return {
        "attention.qkv": {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": keys,
        },
        "ffn.gate_up": {"mlp.gate_proj": config.ffn_dim, "mlp.up_proj": config.ffn_dim},
    }


def _normed(embedding: Tensor, config: ModelConfig) -> Tensor:
    if embedding.is_meta:
        return torch.empty_like(embedding)
    return rms_norm(embedding.detach(), eps=config.norm_eps)


def _is_norm_of(table: Tensor, raw: Tensor, config: ModelConfig) -> bool:
    """Say whether rows are what the norm makes of raw ones, up to the rounding of another machine.

    A root mean square in float32 is off by some 1e-6 of itself, whatever order it is summed in.
    """
    normed = _normed(raw, config).to(table.dtype)
    return raw.shape == table.shape and torch.allclose(normed, table, rtol=5e-6, atol=1e-7)
