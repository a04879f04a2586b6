"""Fused tensor ops of language models: a reference on the CPU, a Triton kernel on a GPU, one name.

Every op accepts any strides, never writes to its inputs, computes in float32 (float64 for float64
input), gives bitwise reproducible results, works under autograd and `torch.compile(fullgraph=True)`,
and never waits for the GPU unless asked to tune. No triton is loaded before an op runs on a CUDA tensor.
"""

from pylm.ops.gated import geglu, geglu_packed, swiglu, swiglu_packed
from pylm.ops.logprob import LogProb, linear_logprob
from pylm.ops.losses import dpo_loss, kto_loss, linear_cross_entropy
from pylm.ops.modules import LinearCrossEntropy, MoE, RMSNorm, RotaryEmbedding, SwiGLU
from pylm.ops.moe import Routing, moe_experts, moe_route
from pylm.ops.norm import rms_norm
from pylm.ops.patch import Left, PatchReport, Swapped, patch, unpatch
from pylm.ops.policy import PolicyLoss, group_advantages, grpo_loss
from pylm.ops.rotary import rope
from pylm.ops.rotary_tables import packed_position_ids, rope_cache, rope_frequencies
from pylm.ops.tuning import autotune
from pylm.ops.vocab_parallel import vocab_parallel_logprob
from pylm.ops.warming import warmup

__all__ = [
    "Left",
    "LinearCrossEntropy",
    "LogProb",
    "MoE",
    "PatchReport",
    "PolicyLoss",
    "RMSNorm",
    "RotaryEmbedding",
    "Routing",
    "Swapped",
    "SwiGLU",
    "autotune",
    "dpo_loss",
    "geglu",
    "geglu_packed",
    "group_advantages",
    "grpo_loss",
    "kto_loss",
    "linear_cross_entropy",
    "linear_logprob",
    "moe_experts",
    "moe_route",
    "packed_position_ids",
    "patch",
    "rms_norm",
    "rope",
    "rope_cache",
    "rope_frequencies",
    "swiglu",
    "swiglu_packed",
    "unpatch",
    "vocab_parallel_logprob",
    "warmup",
]
