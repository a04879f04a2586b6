"""An output layer cut over ranks gives what the whole one gives."""

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


def _inputs(number: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 12, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(23, 5, dtype=torch.float64, generator=generator)
    bias = torch.randn(23, dtype=torch.float64, generator=generator)
    targets = torch.arange(24).reshape(2, 12)  # the last one is no class
    targets[0, ::5] = -100
    if number == MASKED:
        bias[BORDERS[1] : BORDERS[2]] = float("-inf")
        targets[targets == BORDERS[1]] = -100
    return hidden, weight, bias, targets


def _loss(result: LogProb) -> Tensor:
    """Return a loss with other gradients for every row and result; rows without a class count nothing."""
    rates = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 12)
    logprob = torch.where(result.logprob.isnan(), 0.0, result.logprob)
    return (rates * logprob + rates.square() * result.lse + rates.cos() * result.entropy).sum()


def _run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=3)
    for number, options in enumerate(OPTIONS):
        hidden, weight, bias, targets = _inputs(number)
        part = slice(BORDERS[rank], BORDERS[rank + 1])
        leaves = [t.requires_grad_() for t in (hidden, weight[part].clone(), bias[part].clone())]
        result = ops.vocab_parallel_logprob(
            leaves[0], leaves[1], targets,
            bias=leaves[2], group=dist.group.WORLD, first_class=BORDERS[rank], **options,
        )  # fmt: skip
        grads = torch.autograd.grad(_loss(result), leaves)
        values = [t.detach() for t in (*result, *grads)]
        torch.save(dict(zip(NAMES, values, strict=True)), folder / f"{number}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_give_what_one_gives(tmp_path: Path) -> None:
    mp.start_processes(_run_rank, (tmp_path,), nprocs=3, start_method="spawn")
    for number, options in enumerate(OPTIONS):
        hidden, weight, bias, targets = _inputs(number)
        outside = targets == 23
        leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
        # In the whole, the row without a class takes part with its sums alone.
        whole = ops.linear_logprob(*leaves[:2], targets.clamp(max=22), bias=bias, **options)
        logprob = torch.where(outside, float("nan"), whole.logprob)
        grads = torch.autograd.grad(_loss(whole._replace(logprob=logprob)), leaves)
        expected = dict(zip(NAMES, [*(logprob, whole.lse, whole.entropy), *grads], strict=True))
        ranks = [torch.load(tmp_path / f"{number}-{rank}.pt") for rank in range(3)]
        for name in NAMES:
            for rank, values in enumerate(ranks):
                wanted = expected[name].detach()
                if name in ("weight", "bias"):
                    wanted = wanted[BORDERS[rank] : BORDERS[rank + 1]]
                torch.testing.assert_close(values[name], wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_rank_without_classes_is_refused() -> None:
    hidden, weight, _, targets = _inputs()
    with pytest.raises(InputError, match=r"at least one row on each rank, got \(0, 5\)"):
        ops.vocab_parallel_logprob(hidden, weight[:0], targets, group=None, first_class=0)
