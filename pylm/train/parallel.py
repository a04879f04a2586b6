"""Ranks, devices and sharding. The model knows nothing of this file."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0


@contextmanager
def start_world() -> Iterator[World]:
    """Join the other ranks when started by torchrun; a world of one otherwise.

    Yields:
        The world: NCCL and one GPU a rank where CUDA is available, gloo on the CPU otherwise.
    """
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device=torch.device("cuda", 0) if cuda else torch.device("cpu"))
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    finally:
        if joined_here:
            dist.destroy_process_group()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 matrix products are faster than float32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(world: World, *, bfloat16: bool) -> AbstractContextManager[object]:
    """Run matrix products in bfloat16, or change nothing."""
    return torch.autocast(world.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()


def shard_model(model: nn.Module, world: World, *, bfloat16: bool = False) -> nn.Module:
    """Shard parameters, gradients and optimizer state over all ranks (FSDP2); no change in a world of one.

    Each block in `model.blocks` is gathered on its own, then the rest (embedding, last norm, output).
    Gradients are averaged over ranks: scale local losses by `world.size` where a global sum is meant.

    Args:
        model: on `world.device`, the same values on every rank.
        world: the ranks.
        bfloat16: gather parameters and compute in bfloat16, reduce gradients in float32.
    """
    if world.size == 1:
        return model
    mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bfloat16
        else MixedPrecisionPolicy()
    )
    blocks = getattr(model, "blocks", ())
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def gather_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather whole parameters onto the CPU of rank 0; the other ranks get an empty dict.

    All ranks call it. In a world of one the tensors are the model's own, moved to the CPU.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place where there are several; gives the same tensor."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
