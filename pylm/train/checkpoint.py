"""Checkpoints: torch.distributed.checkpoint folders, published by an atomic rename.

checkpoints/step-00000400/
    state.json       step, parameter shapes, what the loop gave to `save`
    .metadata *.distcp   model and optimizer tensors, readable by any number of ranks
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

State = dict[str, Any]


class Checkpointer:
    """Save and restore a training loop exactly.

    All ranks call every method. A checkpoint is complete when its folder has its name; what a killed
    process left behind is removed by the next resume or save.
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
        if self.world.is_main:
            self._remove_stale()
        paths = checkpoint_paths(self.folder)
        if not paths:
            return None
        path = paths[-1]
        try:
            state: State = read_json(path / "state.json")
            shapes = state.pop("parameter_shapes")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _unreadable(path, error) from error
        _check_shapes(path, saved=shapes, actual=_shapes(self.model))
        tensors = self._tensors()
        try:
            with _own_exceptions():
                load(tensors, checkpoint_id=path)
        except Exception as error:  # unpickling damaged bytes may raise anything
            raise _unreadable(path, error) from error
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

        Raises:
            OSError: the disk is full, or the like; nothing is left behind.
        """
        path = self.folder / f"step-{step:08d}"
        temporary = _hidden(path)
        if self.world.is_main:
            self._remove_stale()
            temporary.mkdir(parents=True)
        barrier()
        try:
            with _own_exceptions():
                save(self._tensors(), checkpoint_id=temporary)
            if self.world.is_main:
                shapes = _shapes(self.model)
                write_json(temporary / "state.json", {"step": step, "parameter_shapes": shapes, **state})
        except BaseException:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.world.is_main:
            if path.exists():
                _discard(path)
            temporary.rename(path)
            for old in checkpoint_paths(self.folder)[: -self.keep]:
                _discard(old)
        barrier()
        return path

    def _remove_stale(self) -> None:
        for stale in self.folder.glob(_hidden(Path("step-*")).name):
            shutil.rmtree(stale)

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


def _hidden(path: Path) -> Path:
    """Name the folder that a checkpoint is written to before it counts, or goes to when it no longer does."""
    return path.with_name(f".{path.name}.tmp")


def _discard(path: Path) -> None:
    """Remove a checkpoint; a kill in between leaves no folder that looks complete."""
    hidden = path.rename(_hidden(path.with_name(f"{path.name}.old")))
    shutil.rmtree(hidden)


@contextmanager
def _own_exceptions() -> Iterator[None]:
    """Let the first rank's exception through, which torch wraps into a BaseException, and be quiet.

    torch warns at every save and load that it takes a world of one for a world of one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            raise _cause(error) from error


def _cause(error: CheckpointException) -> BaseException:
    """Give what went wrong on the first rank that failed, and behind torch's complaint a full disk."""
    cause, _ = error.failures[min(error.failures)]
    behind: BaseException | None = cause
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__cause__ or behind.__context__
    return behind or cause


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return InputError(
        f"{path}: the checkpoint cannot be read ({reason}); "
        "remove this folder to go on from the one before, or from the start"
    )


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in model.named_parameters()}


def _check_shapes(path: Path, *, saved: Mapping[str, list[int]], actual: Mapping[str, list[int]]) -> None:
    for name in sorted(saved.keys() | actual.keys()):
        if saved.get(name) != actual.get(name):
            raise InputError(
                f"{path}: checkpoint of another model: {name} has shape {saved.get(name, 'none')} there and "
                f"{actual.get(name, 'none')} in the recipe; restore the recipe or remove {path.parent}"
            )
