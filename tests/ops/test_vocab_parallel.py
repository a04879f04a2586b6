"""An output layer cut over ranks gives what the whole one gives by torch's softmax in float64."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pylm import ops
from pylm.errors import InputError
from pylm.ops import LogProb

BORDERS = [0, 5, 6, 23]  # ranks with 5, 1 and 17 classes
OPTIONS = [{}, {"temperature": 0.7, "softcap": 3.0}, {"temperature": 0.7}]
MASKED = 2  # with these options a bias of -inf takes all classes of a rank out, as padding does
NAMES = ["logprob", "lse", "entropy", "hidden", "weight", "bias"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
# In units of the result's eps, times the largest value. A logit of 5 products, sums of 24 exponentials or
# rows; in bfloat16 each rank rounds its part of the hidden states' gradient and keeps its exponentials.
ULPS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 3}


def _inputs(number: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 12, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(23, 5, dtype=torch.float64, generator=generator)
    bias = torch.randn(23, dtype=torch.float64, generator=generator)
    targets = torch.arange(24).reshape(2, 12)  # the last one is no class
    targets[0, ::5] = -100
    if number == MASKED:
        bias[BORDERS[1] : BORDERS[2]] = float("-inf")
        targets[targets == BORDERS[1]] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def _loss(result: LogProb) -> Tensor:
    """Return a loss with other gradients for every row and result; rows without a class count nothing."""
    rates = torch.linspace(-1, 1, 24, dtype=result.lse.dtype).view(2, 12)
    logprob = torch.where(result.logprob.isnan(), 0.0, result.logprob)
    return (rates * logprob + rates.square() * result.lse + rates.cos() * result.entropy).sum()


CASES = [(number, dtype, options) for number, options in enumerate(OPTIONS) for dtype in DTYPES]


def _whole(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> LogProb:
    logits = hidden @ weight.T + bias
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    logprobs, kept = torch.log_softmax(logits, -1), targets != -100
    picked = logprobs.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
    return LogProb(*(torch.where(kept, x, 0.0) for x in (picked, torch.logsumexp(logits, -1), entropy)))


def _run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=3)
    for number, dtype, options in CASES:
        hidden, weight, bias, targets = _inputs(number, dtype)
        part = slice(BORDERS[rank], BORDERS[rank + 1])
        leaves = [t.requires_grad_() for t in (hidden, weight[part].clone(), bias[part].clone())]
        result = ops.vocab_parallel_logprob(
            leaves[0], leaves[1], targets,
            bias=leaves[2], group=dist.group.WORLD, first_class=BORDERS[rank], **options,
        )  # fmt: skip
        grads = torch.autograd.grad(_loss(result), leaves)
        values = [t.detach() for t in (*result, *grads)]
        torch.save(dict(zip(NAMES, values, strict=True)), folder / f"{number}-{dtype}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_give_what_one_gives(tmp_path: Path) -> None:
    mp.start_processes(_run_rank, (tmp_path,), nprocs=3, start_method="spawn")
    for number, dtype, options in CASES:
        *given, targets = _inputs(number, dtype)
        leaves = [t.double().requires_grad_() for t in given]
        # In the whole, the row without a class takes part with its sums alone.
        whole = _whole(*leaves, targets.clamp(max=22), **options)
        logprob = torch.where(targets == 23, float("nan"), whole.logprob)
        grads = torch.autograd.grad(_loss(whole._replace(logprob=logprob)), leaves)
        expected = dict(zip(NAMES, [*(logprob, whole.lse, whole.entropy), *grads], strict=True))
        ranks = [torch.load(tmp_path / f"{number}-{dtype}-{rank}.pt") for rank in range(3)]
        for name in NAMES:
            for rank, values in enumerate(ranks):
                wanted = expected[name].detach()
                if name in ("weight", "bias"):
                    wanted = wanted[BORDERS[rank] : BORDERS[rank + 1]]
                actual = values[name]
                assert actual.dtype == (
                    dtype if name in NAMES[3:] else torch.promote_types(dtype, torch.float32)
                )
                limit = ULPS[actual.dtype] * torch.finfo(actual.dtype).eps
                limit *= max(1.0, float(wanted.nan_to_num().abs().max()))
                torch.testing.assert_close(actual.double(), wanted, rtol=0.0, atol=limit, equal_nan=True)


def test_a_rank_without_classes_is_refused() -> None:
    hidden, weight, _, targets = _inputs()
    with pytest.raises(InputError, match=r"at least one row on each rank, got \(0, 5\)"):
        ops.vocab_parallel_logprob(hidden, weight[:0], targets, group=None, first_class=0)
