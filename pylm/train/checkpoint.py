"""Checkpoints: torch.distributed.checkpoint folders, published by an atomic rename.

checkpoints/step-00000400/
    state.json       step, parameter shapes, what the loop gave to `save`
    .metadata *.distcp   model and optimizer tensors, readable by any number of ranks
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pylm.errors import InputError
from pylm.files import read_json, write_json
from pylm.train.optimizer import Optimizers
from pylm.train.parallel import World, barrier

State = dict[str, object]


class Checkpointer:
    """Save and restore a training loop exactly.

    All ranks call every method. A checkpoint is complete when its folder has its name; what a killed
    process left behind is removed by the next save.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: nn.Module,
        optimizer: Optimizers,
        world: World | None = None,
        keep: int = 1,
    ) -> None:
        """Bind a folder to what is saved in it.

        Args:
            folder: holds `step-NNNNNNNN` folders; created at the first save.
            model: sharded or not.
            optimizer: built after sharding.
            world: ranks that save together.
            keep: number of newest checkpoints that are kept.
        """
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.world = world or World()
        self.keep = keep

    def resume(self) -> State | None:
        """Load the newest checkpoint into model, optimizer and torch's generator.

        Returns:
            What was given to `save`, with `step`; None when there is no checkpoint.

        Raises:
            InputError: the checkpoint is of another model, or cannot be read.
        """
        paths = checkpoint_paths(self.folder)
        if not paths:
            return None
        path = paths[-1]
        state: State = read_json(path / "state.json")
        shapes = state.pop("parameter_shapes")
        assert isinstance(shapes, dict)
        _check_shapes(path, saved=shapes, actual=_shapes(self.model))
        tensors = self._tensors()
        try:
            load(tensors, checkpoint_id=path)
        except (CheckpointException, RuntimeError, KeyError, EOFError) as error:
            raise InputError(
                f"{path}: the checkpoint cannot be read ({str(error).splitlines()[0][:120]}); "
                "remove this folder to go on from the one before, or from the start"
            ) from error
        set_model_state_dict(self.model, tensors["model"])
        for index, optimizer in enumerate(self.optimizer.optimizers):
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=tensors[f"optimizer_{index}"])
        torch.set_rng_state(tensors["rng"]["torch"])
        return state

    def save(self, step: int, **state: object) -> Path:
        """Write a checkpoint of the loop after `step` finished steps.

        Args:
            step: number of finished steps; the resumed loop goes on with this one.
            **state: values for JSON that `resume` gives back.

        Returns:
            The published folder.
        """
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.tmp"
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        save(self._tensors(), checkpoint_id=temporary)
        if self.world.is_main:
            write_json(
                temporary / "state.json", {"step": step, "parameter_shapes": _shapes(self.model), **state}
            )
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            for old in checkpoint_paths(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        barrier()
        return path

    def _tensors(self) -> dict[str, dict[str, Any]]:
        tensors: dict[str, dict[str, Any]] = {
            "model": dict(get_model_state_dict(self.model)),
            "rng": {"torch": torch.get_rng_state()},
        }
        for index, optimizer in enumerate(self.optimizer.optimizers):
            tensors[f"optimizer_{index}"] = dict(get_optimizer_state_dict(self.model, optimizer))
        return tensors


def checkpoint_paths(folder: Path) -> list[Path]:
    """Give the complete checkpoints in a folder, oldest first."""
    return sorted(x for x in folder.glob("step-*") if (x / "state.json").exists())


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in model.named_parameters()}


def _check_shapes(path: Path, *, saved: Mapping[str, list[int]], actual: Mapping[str, list[int]]) -> None:
    for name in sorted(saved.keys() | actual.keys()):
        if saved.get(name) != actual.get(name):
            raise InputError(
                f"{path}: checkpoint of another model: {name} has shape {saved.get(name, 'none')} there and "
                f"{actual.get(name, 'none')} in the recipe; restore the recipe or remove {path.parent}"
            )
