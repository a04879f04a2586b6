"""Nonsense given to the public ops and modules: one line that names the argument, in graphs as well."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pylm import ops
from pylm.errors import InputError

NAN, INF = float("nan"), float("inf")
X, WEIGHT, TARGETS, PAIRS = torch.ones(4, 8), torch.ones(6, 8), torch.tensor([0, 1, 2, 3]), torch.zeros(3)
GAIN = torch.ones(8)
HEADS = torch.ones(1, 4, 2, 8)
COS, SIN = ops.rope_cache(8, 8)
LOGITS = torch.arange(32.0).view(4, 8)
ROUTING = ops.moe_route(LOGITS, 2)
EXPERTS = torch.ones(8, 6, 8), torch.ones(8, 8, 3)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}
PROPORTIONAL = {"rope_type": "proportional", "factor": 4.0, "partial_rotary_factor": 0.5}


def _refuses(message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [NAN, INF, "a", None, torch.tensor(1.0)])
def test_errors_of_numbers_that_are_none(value: Any) -> None:
    _refuses("rms_norm: eps must not be negative", ops.rms_norm, X, eps=value)
    _refuses("rms_norm: weight_offset must be a finite", ops.rms_norm, X, GAIN, weight_offset=value)
    if value is not None:
        _refuses("swiglu: limit must be positive", ops.swiglu, X, X, limit=value)
        _refuses("linear_logprob: softcap must be pos", ops.linear_logprob, X, WEIGHT, TARGETS, softcap=value)
    _refuses("swiglu: alpha and up_offset must be finite", ops.swiglu, X, X, alpha=value)
    _refuses("swiglu_packed: alpha and up_offset", ops.swiglu_packed, X, up_offset=value)
    _refuses("linear_logprob: temperature must", ops.linear_logprob, X, WEIGHT, TARGETS, temperature=value)
    loss = ops.linear_cross_entropy
    _refuses("linear_cross_entropy: z_loss must not be", loss, X, WEIGHT, TARGETS, z_loss=value)
    _refuses("linear_cross_entropy: label_smoothing", loss, X, WEIGHT, TARGETS, label_smoothing=value)
    _refuses("dpo_loss: beta must be positive", ops.dpo_loss, *[PAIRS] * 4, beta=value)
    _refuses("dpo_loss: margin must be a finite", ops.dpo_loss, *[PAIRS] * 4, margin=value)
    _refuses("dpo_loss: label_smoothing must", ops.dpo_loss, *[PAIRS] * 4, label_smoothing=value)
    _refuses("kto_loss: beta must be", ops.kto_loss, PAIRS, PAIRS, PAIRS > 0, 0.0, beta=value)
    _refuses("kto_loss: weights", ops.kto_loss, PAIRS, PAIRS, PAIRS > 0, 0.0, desirable_weight=value)
    _refuses("group_advantages: epsilon must", ops.group_advantages, X, epsilon=value)
    grpo = [X, X[:, 0], X > 0]
    _refuses("grpo_loss: clip_low and clip_high", ops.grpo_loss, *grpo, clip_high=value)
    _refuses("grpo_loss: kl_coef", ops.grpo_loss, *grpo, kl_coefficient=value, reference_logprob=X)
    _refuses("moe_route: scale must be positive", ops.moe_route, LOGITS, 2, scale=value)
    _refuses("rope_frequencies: theta must be positive", ops.rope_cache, 8, 8, theta=value)
    _refuses("RMSNorm: eps must not be negative", ops.RMSNorm, 8, eps=value)
    _refuses("MoE: scale must be positive", ops.MoE, 8, 4, 4, 2, scale=value)


def test_errors_of_numbers_out_of_range() -> None:
    _refuses("rms_norm: eps must not be negative, got -1e-06", ops.rms_norm, X, eps=-1e-6)
    loss = ops.linear_cross_entropy
    _refuses("linear_cross_entropy: z_loss must not be", loss, X, WEIGHT, TARGETS, z_loss=-1e-4)
    _refuses("linear_cross_entropy: label_smooth", loss, X, WEIGHT, TARGETS, label_smoothing=-0.1)
    _refuses("group_advantages: epsilon must", ops.group_advantages, X, epsilon=-1.0)
    grpo = [X, X[:, 0], X > 0]
    _refuses("grpo_loss: kl_coefficient", ops.grpo_loss, *grpo, kl_coefficient=-1.0, reference_logprob=X)
    for count in (-1, NAN, "a", torch.ones(3)):
        _refuses("grpo_loss: num_sequences must", ops.grpo_loss, *grpo, num_sequences=count)
        _refuses("grpo_loss: num_tokens must", ops.grpo_loss, *grpo, num_tokens=count)
    _refuses('grpo_loss: reduction "cons', ops.grpo_loss, *grpo, reduction="constant", max_tokens=NAN)
    for kl in (NAN, INF, "a", None):
        _refuses("kto_loss: kl must be one finite number", ops.kto_loss, PAIRS, PAIRS, PAIRS > 0, kl)
    for scale in (0.0, -1.0):
        _refuses("moe_route: scale must be positive", ops.moe_route, LOGITS, 2, scale=scale)
    for top_k in (0, 9, 2.0, "2", None, True):
        _refuses("moe_route: top_k must be in [1, 8]", ops.moe_route, LOGITS, top_k)
    for groups in (0, 3, 2.0, "a", None):
        _refuses("moe_route: num_groups must be at least 1", ops.moe_route, LOGITS, 2, num_groups=groups)
    _refuses("moe_route: topk_groups", ops.moe_route, LOGITS, 2, num_groups=2, topk_groups="a")
    for flag in (None, 1, "x"):
        _refuses("moe_route: normalize must be True or False", ops.moe_route, LOGITS, 2, normalize=flag)
        _refuses("rope: interleaved must be True", ops.rope, HEADS, HEADS, COS, SIN, interleaved=flag)
        _refuses("swiglu_packed: interleaved must be True", ops.swiglu_packed, X, interleaved=flag)
    for index in (1.5, None, "a", 2**63):
        _refuses("linear_logprob: ignore", ops.linear_logprob, X, WEIGHT, TARGETS, ignore_index=index)
        _refuses("linear_cross_entropy: ignore", loss, X, WEIGHT, TARGETS, ignore_index=index)


def test_numbers_of_numpy_are_numbers() -> None:
    expected = ops.rms_norm(X, GAIN, eps=0.5)
    torch.testing.assert_close(ops.rms_norm(X, GAIN, eps=np.float32(0.5)), expected, rtol=0, atol=0)  # type: ignore[arg-type]
    routing = ops.moe_route(LOGITS, np.int64(2))  # type: ignore[arg-type]
    assert torch.equal(routing.expert, ROUTING.expert)


def test_errors_of_what_is_no_tensor() -> None:
    meta = torch.zeros(3, device="meta")
    _refuses("rms_norm: x must be a tensor, got NoneType", ops.rms_norm, None)
    _refuses("rms_norm: weight must be a tensor, got list", ops.rms_norm, X, [1.0])
    _refuses("swiglu: up must be a tensor", ops.swiglu, X, None)
    _refuses("rope: k must be a tensor", ops.rope, HEADS, None, COS, SIN)
    _refuses("linear_logprob: targets must be a tensor", ops.linear_logprob, X, WEIGHT, [0, 1, 2, 3])
    _refuses("linear_logprob: hidden must be a tensor", ops.linear_logprob, None, WEIGHT, TARGETS)
    _refuses("dpo_loss: policy_chosen must be a tensor", ops.dpo_loss, None, PAIRS, PAIRS, PAIRS)
    _refuses("dpo_loss: reference_rejected is on meta", ops.dpo_loss, PAIRS, PAIRS, PAIRS, meta)
    _refuses("kto_loss: is_desirable must be a tensor", ops.kto_loss, PAIRS, PAIRS, [True] * 3, 0.0)
    complex_kl = torch.tensor(1j)
    _refuses("kto_loss: kl must be a floating", ops.kto_loss, PAIRS, PAIRS, PAIRS > 0, complex_kl)
    _refuses("grpo_loss: mask must be a tensor", ops.grpo_loss, X, X[:, 0], None)
    _refuses("grpo_loss: advantages must be a tensor", ops.grpo_loss, X, None, X > 0)
    _refuses("packed_position_ids: offsets must be a tensor", ops.packed_position_ids, [0, 3], 3)
    offsets = torch.tensor([0, 3])
    _refuses("packed_position_ids: num_tokens must", ops.packed_position_ids, offsets, 3.5)
    _refuses("packed_position_ids: offsets must be integers", ops.packed_position_ids, offsets > 0, 3)
    small = offsets.to(torch.int8)
    _refuses("packed_position_ids: offsets must be of a dtype", ops.packed_position_ids, small, 300)
    _refuses("moe_route: bias must be a tensor", ops.moe_route, LOGITS, 2, bias=[1.0])
    _refuses("moe_experts: routing must be what moe_route gives", ops.moe_experts, X, None, *EXPERTS)
    part = {"group": None, "first_class": 0}
    _refuses("vocab_parallel_logprob: weight must", ops.vocab_parallel_logprob, X, [1], TARGETS, **part)
    call = ops.vocab_parallel_logprob
    _refuses("vocab_parallel_logprob: group must be of torch", call, X, WEIGHT, TARGETS, **part)
    part["first_class"] = -1
    _refuses("vocab_parallel_logprob: first_class must be a whole", call, X, WEIGHT, TARGETS, **part)


def test_errors_of_routings_that_are_none() -> None:
    def routed(**changes: Tensor) -> ops.Routing:
        return ROUTING._replace(**changes)

    order, offsets = ROUTING.order, ROUTING.offsets
    message = "moe_experts: order and offsets of routing must be integers"
    _refuses(message, ops.moe_experts, X, routed(order=order.float()), *EXPERTS)
    _refuses(message, ops.moe_experts, X, routed(offsets=offsets.float()), *EXPERTS)
    message = "moe_experts: the order of routing must be in [0, 8), got"
    _refuses(message, ops.moe_experts, X, routed(order=order + 1), *EXPERTS)
    message = "moe_experts: the offsets of routing must rise from 0 to its 8 rows"
    _refuses(message, ops.moe_experts, X, routed(offsets=offsets + 1), *EXPERTS)
    _refuses(message, ops.moe_experts, X, routed(offsets=offsets.flip(0)), *EXPERTS)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("yarn", "scaling must be a mapping or None"),
        ({"rope_type": "linear", "factor": 0.0}, "factor of scaling of type 'linear' must be positive"),
        ({"rope_type": "linear", "factor": -2.0}, "factor of scaling of type 'linear' must not be negative"),
        ({"rope_type": "linear", "factor": NAN}, "factor of scaling of type 'linear' must be a finite"),
        ({"rope_type": "linear", "factor": True}, "factor of scaling of type 'linear' must be a finite"),
        ({**YARN, "factor": 0}, "factor of scaling of type 'yarn' must be positive"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings of scaling"),
        ({**YARN, "original_max_position_embeddings": NAN}, "original_max_position_embeddings of scaling"),
        ({**YARN, "beta_fast": 0}, "beta_fast of scaling of type 'yarn' must be positive"),
        ({**YARN, "beta_fast": 1, "beta_slow": 32}, "beta_fast of scaling of type 'yarn' must not be below"),
        ({**YARN, "mscale": -1.0}, "mscale of scaling of type 'yarn' must not be negative"),
        ({**YARN, "attention_factor": 0.0}, "attention_factor of scaling of type 'yarn' must be positive"),
        ({**YARN, "truncate": "false"}, "truncate of scaling of type 'yarn' must be true or false"),
        ({**LLAMA3, "factor": 0}, "factor of scaling of type 'llama3' must be positive"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "high_freq_factor of scaling of type 'llama3' must be more"),
        ({**LLAMA3, "original_max_position_embeddings": -1}, "original_max_position_embeddings of scaling"),
        ({**DYNAMIC, "factor": -1.0}, "factor of scaling of type 'dynamic'"),
        ({**DYNAMIC, "original_max_position_embeddings": 0}, "original_max_position_embeddings of scaling"),
        ({**LONG, "long_factor": [1, 2, 3, 0]}, "long_factor of scaling of type 'longrope' must hold"),
        ({**LONG, "long_factor": [1, 2, 3, "a"]}, "long_factor of scaling of type 'longrope' must hold"),
        ({**LONG, "original_max_position_embeddings": 1}, "original_max_position_embeddings of scaling"),
        ({**PROPORTIONAL, "partial_rotary_factor": 2.0}, "partial_rotary_factor of scaling of type 'prop"),
        ({**PROPORTIONAL, "factor": 0.0}, "factor of scaling of type 'proportional' must be positive"),
    ],
)
def test_errors_of_context_extensions(scaling: Any, message: str) -> None:
    _refuses(f"rope_frequencies: {message}", ops.rope_cache, 64, 8, scaling=scaling)


def test_errors_of_tables() -> None:
    for count in (-1, 8.5, "8", None):
        _refuses("rope_cache: num_positions must not be negative", ops.rope_cache, count, 8)
    for dim in (7, 0, 8.0, "8"):
        _refuses("rope_frequencies: dim must be a positive even number", ops.rope_cache, 8, dim)
    for length in (-1, 2.5, "a"):
        _refuses("rope_frequencies: sequence_length must", ops.rope_cache, 8, 8, sequence_length=length)
    for dtype in (torch.int64, "float32"):
        _refuses("rope_cache: dtype must be a floating torch.dtype", ops.rope_cache, 8, 8, dtype=dtype)
    _refuses("rope_frequencies: scaling of type 'yarn' needs", ops.rope_cache, 8, 8, theta=1.0, scaling=YARN)


def test_errors_of_modules() -> None:
    for size in (0, -1, 8.0, "8", None):
        _refuses("RMSNorm: dim must be a positive whole", ops.RMSNorm, size)
        _refuses("SwiGLU: hidden_dim must be a positive whole", ops.SwiGLU, 8, size)
        _refuses("LinearCrossEntropy: num_classes must be", ops.LinearCrossEntropy, 8, size)
        _refuses("MoE: num_experts must be a positive whole", ops.MoE, 8, 4, size, 1)
        if size is not None:
            _refuses("warmup: dim must be a positive whole number", ops.warmup, dim=size, device="cpu")
    _refuses("RMSNorm: eps must not be negative", ops.RMSNorm, 8, eps=-1e-6)
    _refuses("RMSNorm: weight_offset must be a finite", ops.RMSNorm, 8, weight_offset=NAN)
    for module in (ops.RMSNorm, ops.SwiGLU, ops.LinearCrossEntropy, ops.MoE):
        sizes = {ops.RMSNorm: (8,), ops.MoE: (8, 4, 4, 2)}.get(module, (8, 8))
        _refuses(f"{module.__name__}: dtype must be a floating", module, *sizes, dtype=torch.int64)
    _refuses("RotaryEmbedding: interleaved", ops.RotaryEmbedding, 8, num_positions=8, interleaved="x")
    _refuses("LinearCrossEntropy: label_smoothing", ops.LinearCrossEntropy, 8, 10, label_smoothing=2.0)
    _refuses("LinearCrossEntropy: z_loss must not be", ops.LinearCrossEntropy, 8, 10, z_loss=-1.0)
    _refuses("LinearCrossEntropy: softcap must be", ops.LinearCrossEntropy, 8, 10, softcap=-1.0)
    _refuses("LinearCrossEntropy: reduction must be", ops.LinearCrossEntropy, 8, 10, reduction="x")
    _refuses("LinearCrossEntropy: ignore_index must", ops.LinearCrossEntropy, 8, 10, ignore_index=None)
    _refuses("LinearCrossEntropy: hidden must be (..., 8)", ops.LinearCrossEntropy(8, 10), X[:, :4])
    _refuses("MoE: top_k must be in [1, 4]", ops.MoE, 8, 4, 4, 5)
    _refuses("MoE: top_k must be in [1, 2]", ops.MoE, 8, 4, 4, 3, num_groups=2)
    _refuses("MoE: num_groups must be at least 1 and divide the 4", ops.MoE, 8, 4, 4, 2, num_groups=3)
    _refuses("MoE: topk_groups must be in [1, num_groups=1]", ops.MoE, 8, 4, 4, 2, topk_groups=2)
    _refuses('MoE: score must be "softmax"', ops.MoE, 8, 4, 4, 2, score="x")
    _refuses("MoE: scale must be positive", ops.MoE, 8, 4, 4, 2, scale=-1.0)
    moe = ops.MoE(8, 4, 4, 2, balance="bias")
    _refuses("MoE: x must be (..., 8), got (4, 4)", moe, X[:, :4])
    _refuses("MoE: x must be a floating-point tensor", moe, X.long())
    _refuses("MoE.update_bias: load must be a tensor (4,), got (3,)", moe.update_bias, torch.ones(3))
    _refuses("MoE.update_bias: load must be a tensor (4,), got list", moe.update_bias, [1, 1, 1, 1])
    _refuses("MoE.update_bias: rate must be positive", moe.update_bias, torch.ones(4), rate=-1.0)
    _refuses("MoE.update_bias: load is on meta", moe.update_bias, torch.ones(4, device="meta"))
    _refuses("warmup: dtype must be a floating", ops.warmup, dim=8, dtype=torch.int64, device="cpu")
    _refuses("unpatch: model must be a torch.nn.Module, got int", ops.unpatch, 3)
    _refuses("patch: ops must be a set of names", ops.patch, torch.nn.Linear(2, 2), ops=3)


def test_logits_of_another_dtype_are_those_of_the_loss() -> None:
    torch.manual_seed(0)
    head = ops.LinearCrossEntropy(8, 6)
    hidden = torch.randn(4, 8, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(head(hidden), TARGETS)
    torch.testing.assert_close(head(hidden, TARGETS), expected)


def test_graphs_hold_the_checks() -> None:
    def step(x: Tensor, weight: Tensor, scale: float, limit: float) -> Tensor:
        y = ops.rms_norm(x, GAIN, eps=scale * 1e-6)
        y = ops.swiglu(y, y, alpha=scale, limit=limit)
        y, _ = ops.rope(y.view(1, 4, 1, 8), y.view(1, 4, 1, 8), COS, SIN)
        losses = ops.linear_cross_entropy(y.view(4, 8), weight, TARGETS, z_loss=scale * 1e-4)
        return losses + ops.linear_logprob(y.view(4, 8), weight, TARGETS, temperature=scale).logprob.sum()

    # With dynamic shapes numbers are symbolic from the first call on.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for scale, limit in ((1.5, 7.0), (0.5, 3.0)):
        torch.testing.assert_close(compiled(X, WEIGHT, scale, limit), step(X, WEIGHT, scale, limit))
