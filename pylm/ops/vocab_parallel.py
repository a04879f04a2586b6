"""The output layer with its vocabulary cut over the ranks of a group, as in tensor parallelism.

Each rank holds V_r rows of the weight. Of its part of the vocabulary it computes, by `linear_logprob`, the
log-sum-exp L_r, the mean logit m_r under its own softmax, and the target's logit where the target is its own.
The whole is

    lse = log sum_r exp(L_r)     logprob = z_target - lse     entropy = lse - sum_r exp(L_r - lse) m_r

so four numbers a row are exchanged, the fourth telling whether a rank has the target, and the local gradients
follow from those of the sums.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_float, check_ignore_index, check_positive, is_integer
from pylm.ops.logprob import LogProb, check_linear, linear_logprob


class _Replicate(torch.autograd.Function):
    """Hand a tensor that all ranks have to computations that differ: its gradient is the sum of theirs."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, dist.ProcessGroup], output: Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Sums of 16-bit gradients would be rounded at each rank.
        grad = grads[0].contiguous()
        total = grad.float() if grad.element_size() < 4 else grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total.to(grads[0].dtype), None


class _Gather(torch.autograd.Function):
    """Stack a tensor of each rank. What follows is the same on all ranks, so each takes its own gradient."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        stacked = x.new_empty(dist.get_world_size(group), *x.shape)
        dist.all_gather(list(stacked.unbind(0)), x.contiguous(), group=group)
        return stacked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, dist.ProcessGroup], output: Tensor) -> None:
        ctx.rank = dist.get_rank(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.rank], None


def vocab_parallel_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    first_class: int,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> LogProb:
    """Compute what `linear_logprob` does, the output matrix being cut by rows over the ranks of a group.

    All ranks of the group call it with the same hidden states and targets, and must go on with the same loss:
    each then has the gradients of its own part of the weight, and the whole gradient of the hidden states.

    Args:
        hidden: (..., D) final hidden states, the same on all ranks.
        weight: (V_r, D) this rank's rows of the output matrix, V_r >= 1; ranks may have different numbers.
        targets: (...) integers in [0, V) or `ignore_index`, the same on all ranks. Another target gives NaN
            as its log-probability: no rank has it, and none is asked.
        group: the ranks that share the matrix.
        first_class: the class of the first row of `weight`.
        bias: (V_r,) this rank's part, or None; -inf takes a class out, on some ranks all of them.
        temperature: divides the logits, after the soft cap; > 0.
        softcap: c of c tanh(logit / c), or None.
        ignore_index: rows with this target give 0 in all three results, and no gradient.

    Returns:
        LogProb(logprob, lse, entropy) over the whole vocabulary, each float32 (...), the same on all ranks.

    Raises:
        InputError: a shape, dtype, device or option does not fit, or `weight` has no rows.

    Source:
        Shoeybi et al., "Megatron-LM", 2019 (vocabulary-parallel cross entropy).
    """
    check_float("vocab_parallel_logprob", weight=weight)
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise InputError(
            f"vocab_parallel_logprob: weight must be (V_r, D) with at least one row on each rank, "
            f"got {tuple(weight.shape)}; use fewer ranks"
        )
    targets = check_linear("vocab_parallel_logprob", hidden, weight, targets, bias)
    check_positive("vocab_parallel_logprob", temperature=temperature)
    check_positive("vocab_parallel_logprob", or_none=True, softcap=softcap)
    check_ignore_index("vocab_parallel_logprob", ignore_index)
    if not is_integer(first_class) or first_class < 0:
        raise InputError(
            f"vocab_parallel_logprob: first_class must be a whole number of at least 0, got {first_class!r}"
        )
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            "vocab_parallel_logprob: group must be of torch.distributed, which has not been started; "
            "call torch.distributed.init_process_group first"
        )
    is_kept = targets != ignore_index
    local_targets = targets - first_class
    is_local = is_kept & (local_targets >= 0) & (local_targets < weight.shape[0])
    # A row whose target is elsewhere needs the sums all the same, so it gets the first class.
    local_targets = torch.where(is_local, local_targets, 0).masked_fill(~is_kept, ignore_index)
    # A bias of -inf may take all classes of a rank out, as where a vocabulary is padded: such a rank has no
    # sum, and does not count. With a soft cap it takes out nothing.
    is_out = None
    if bias is not None and softcap is None:
        is_out = (bias == -torch.inf).all()
        bias = torch.where(is_out, 0.0, bias)
    part = linear_logprob(
        _Replicate.apply(hidden, group),  # type: ignore[no-untyped-call]
        weight,
        local_targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
    )
    target_logit, lse = part.logprob + part.lse, part.lse
    if is_out is not None:
        target_logit, lse = (torch.where(is_out, -torch.inf, x) for x in (target_logit, lse))
    target_logit = torch.where(is_local, target_logit, 0.0)
    parts = torch.stack((target_logit, lse, part.lse - part.entropy, is_local.to(lse.dtype)))
    target_logits, lses, means, owners = _Gather.apply(parts, group).unbind(1)  # type: ignore[no-untyped-call]
    lse = torch.logsumexp(lses, 0)
    target_logit = torch.where(owners.sum(0) > 0, target_logits.sum(0), float("nan"))
    entropy = lse - ((lses - lse).exp() * means).sum(0)
    logprob, lse, entropy = (torch.where(is_kept, x, 0.0) for x in (target_logit - lse, lse, entropy))
    return LogProb(logprob, lse, entropy)
