"""Tiny random transformers models, as the tests of patching use them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pylm import ops

VOCABULARY, LAYERS = 61, 2
DENSE = {"rms_norm": 5, "rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
SPARSE = {"rms_norm": 5, "rope": 2, "linear_cross_entropy": 1, "moe_experts": 2}
WITH_QK_NORM, OF_ALL_SIDES = {"rms_norm": 9}, {"rms_norm": 9}
GEGLU = {k: v for k, v in DENSE.items() if k != "swiglu"} | {"geglu": 2}
# Settings, and what is swapped in two layers.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "Llama": ({}, DENSE),
    "Mistral": ({"sliding_window": 8}, DENSE),
    "Qwen2": ({}, DENSE),
    "Qwen3": ({}, DENSE | WITH_QK_NORM),
    "Olmo2": ({}, DENSE | WITH_QK_NORM),
    "Olmo3": ({"sliding_window": 8}, DENSE | WITH_QK_NORM),
    "Gemma": ({}, GEGLU),
    "Gemma2": ({"final_logit_softcapping": 5.0, "sliding_window": 8}, GEGLU | OF_ALL_SIDES),
    "Phi3": ({}, DENSE),
    "Granite": ({"logits_scaling": 0.3}, DENSE),
    "Mixtral": ({"num_local_experts": 4, "output_router_logits": True}, SPARSE),
    "Qwen3Moe": (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        SPARSE | WITH_QK_NORM,
    ),
    "Olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, SPARSE | WITH_QK_NORM),
}


def build(family: str, **settings: Any) -> Any:
    """Make a model in training mode, far from the start of training: gains that differ, sharp logits."""
    import transformers

    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **FAMILIES[family][0],
        **settings,
    }
    generator = torch.Generator().manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise) if "norm" in name else parameter.copy_(0.15 * noise)
    return model.train()


def both(family: str = "Llama") -> tuple[Any, Any]:
    """Make a model, and the same model patched."""
    plain = build(family)
    patched = copy.deepcopy(plain)
    ops.patch(patched)
    return plain, patched


def batch(size: int = 3, length: int = 17) -> dict[str, Tensor]:
    """Make rows of random ids with their own positions; some labels are ignored, one row is padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (size, length), generator=generator)
    labels = ids.clone()
    labels[0, :5] = -100
    mask = torch.ones_like(ids)
    mask[-1, -3:], labels[-1, -3:] = 0, -100
    positions = torch.stack([torch.arange(length) + row for row in range(size)])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


def run(
    model: Any, inputs: dict[str, Tensor], *, autocast: bool = False, with_logits: bool = True
) -> dict[str, Tensor]:
    """Return loss, logits and all gradients, in float64."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = model(**inputs)
    outputs.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    values = {"loss": outputs.loss, **grads} | ({"logits": outputs.logits.detach()} if with_logits else {})
    return {name: value.detach().double() for name, value in values.items()}


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]
