"""What the stages of post-training share: options, updates, checkpoints, metrics, weights for all ranks.

A stage's own file holds its loop; this one holds the parts that would otherwise be there three times.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
import xxhash
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pylm.config import Config
from pylm.data.chat import get_template
from pylm.errors import InputError
from pylm.model.generate import SamplingProgress
from pylm.model.hf import save_model
from pylm.model.transformer import Transformer
from pylm.text import Tokenizer
from pylm.train.checkpoint import Checkpointer
from pylm.train.metrics import Metrics, MetricValue
from pylm.train.optimizer import OptimizerConfig, build_optimizer
from pylm.train.parallel import (
    World,
    all_reduce_sum,
    autocast,
    barrier,
    gather_state_dict,
    has_fast_bfloat16,
    shard_model,
)
from pylm.train.progress import Progress
from pylm.train.schedule import ScheduleConfig, learning_rate_factor


class PostOptimizerConfig(OptimizerConfig):
    """The optimizer of post-training: AdamW at a small rate, without decay."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak rate of AdamW (Tulu 3 8B: 5e-6 for SFT, 5e-7 for DPO, 3e-7 for reinforcement)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices."""


class PostScheduleConfig(ScheduleConfig):
    """The learning rate of post-training: a short warm-up, then down a line to zero."""

    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps over which the rate rises linearly from zero to its peak."""
    kind: Literal["cosine", "linear", "constant"] = "linear"
    """Shape after the warm-up: falls to `final_fraction`, or stays at the peak."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak."""


class PostTrainingConfig(Config):
    """Options that SFT, preference tuning and reinforcement share."""

    rows: tuple[Path, ...] = ()
    """Files of rows to train on; none takes those that the run has synthesized."""
    heldout_rows: tuple[Path, ...] = ()
    """Files of rows to measure on; none takes those that the run has synthesized."""
    template: str = "pylm"
    """Chat template by name; see `pylm.data.chat.TEMPLATES`."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens, padding included, that a rank computes at a time. Changes speed and memory only."""
    optimizer: PostOptimizerConfig = Field(default_factory=PostOptimizerConfig)
    """Rule and peak learning rates."""
    schedule: PostScheduleConfig = Field(default_factory=PostScheduleConfig)
    """Learning rate over the run."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; `auto` is bfloat16 where the hardware multiplies it faster."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between measurements on held-out rows; the first and the final model are always measured."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""

    def input_files(self) -> tuple[Path, ...]:
        """List the files that the recipe names."""
        return self.rows + self.heldout_rows


class Trainer:
    """A stage at work: the model that is trained, and everything around it that is not the loss.

    Use it as a context manager; a stage that was cut off continues from its newest checkpoint.
    """

    def __init__(
        self,
        name: str,
        config: PostTrainingConfig,
        *,
        model: Transformer,
        tokenizer: Tokenizer,
        num_steps: int,
        out: Path,
        world: World,
        identity: Mapping[str, str | int],
    ) -> None:
        """Shard the model, build its optimizer, load the newest checkpoint if there is one.

        Args:
            name: of the stage, for the display.
            config: shared options.
            model: to train, on `world.device`; belongs to the trainer from here on.
            tokenizer: saved beside the trained model.
            num_steps: length of the run.
            out: folder of the stage.
            world: ranks.
            identity: what the outcome depends on besides `config`: fingerprints of model and rows, seed.

        Raises:
            InputError: `out` holds the checkpoint of another run.
        """
        self.config = config
        self.num_steps = num_steps
        self.out = out
        self.world = world
        self.model, self.tokenizer = model, tokenizer
        # A sharded model gathers weights in step with the other ranks, which sampling cannot keep: for
        # more than one rank a whole copy does what is not training.
        self._whole = model if world.size == 1 else copy.deepcopy(model).requires_grad_(False)
        shard_model(model, world)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.bfloat16 = use_bfloat16(config.dtype, world.device)
        self._checkpointer = Checkpointer(
            out / "checkpoints", model=self.model, optimizer=self.optimizer, world=world
        )
        self._identity = {
            "config": config.model_dump_json(exclude={"checkpoint_every", "rows", "heldout_rows"}),
            **identity,
        }
        self.saved: dict[str, Any] = dict(self._checkpointer.resume() or {})
        if self.saved and self.saved["identity"] != self._identity:
            changed = [k for k, v in self._identity.items() if self.saved["identity"].get(k) != v]
            raise InputError(
                f"{out / 'checkpoints'}: checkpoint of a run with another {', '.join(changed)}; "
                f"restore it or remove the folder to start again"
            )
        self.first_step: int = self.saved.get("step", 0)
        self._elapsed_before_s: float = self.saved.get("elapsed_s", 0.0)
        self._start_s = time.monotonic()
        self.metrics = Metrics(out / "metrics.jsonl", resume_step=self.first_step, enabled=world.is_main)
        self.progress = Progress(num_steps, name, start=self.first_step, enabled=world.is_main)

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on the run, those before it was cut off included."""
        return self._elapsed_before_s + time.monotonic() - self._start_s

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the run's dtype."""
        return autocast(self.world, bfloat16=self.bfloat16)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of the step's loss; shares add up over ranks.

        Sharding averages gradients over ranks, so the share is scaled up by their number first.
        """
        (loss * self.world.size).backward()  # type: ignore[no-untyped-call]

    def stand_by(self) -> None:
        """Take part in a micro-batch that has rows for other ranks only, adding nothing."""
        hidden_BTD = self.model(torch.zeros(1, 1, dtype=torch.int64, device=self.world.device))
        self.backward((hidden_BTD @ self.model.output_weight.to(hidden_BTD.dtype).t()).sum() * 0.0)

    def update(self, step: int) -> dict[str, float]:
        """Clip the gradients, move the parameters, drop the gradients.

        An update whose gradient is not finite is left out, and says so.

        Returns:
            `grad_norm` before clipping, `learning_rate`, and `skipped` (1 where left out).
        """
        factor = learning_rate_factor(self.config.schedule, step, self.num_steps)
        rate = self.optimizer.set_learning_rate(factor)
        grad_norm = self.optimizer.clip_gradients().item()
        is_finite = math.isfinite(grad_norm)
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {"grad_norm": grad_norm, "learning_rate": rate, "skipped": int(not is_finite)}

    def whole_model(self) -> Transformer:
        """Give the current model as one piece on every rank, for sampling and measuring.

        All ranks call this together; it costs nothing in a world of one.
        """
        if self.world.size > 1:
            copy_weights(self.model, self._whole)
        return self._whole

    def is_eval_due(self, step: int) -> bool:
        """Whether the model with which this step begins is measured on held-out rows."""
        return step % self.config.eval_every == 0

    def log(self, step: int, **values: MetricValue) -> None:
        """Append a record to metrics.jsonl: of a step and the model with which it began, or, under
        `num_steps`, of the final model.
        """
        self.metrics.write(step, **values, elapsed_s=round(self.elapsed_s, 3))

    def show_sampling(self, name: str, max_new_tokens: int) -> SamplingProgress:
        """Give what shows how many samples are done within the step at work, under a name."""

        def show(done: int, total: int, num_tokens: int) -> None:
            self.progress.update_within(
                **{name: f"{done}/{total}", "token": f"{num_tokens}/{max_new_tokens}"}
            )

        return show

    def save_checkpoint(self, step: int, **state: object) -> None:
        """Save the run after the update of this step, where that is due."""
        finished = step + 1
        if finished % self.config.checkpoint_every == 0 and finished < self.num_steps:
            self._checkpointer.save(finished, identity=self._identity, elapsed_s=self.elapsed_s, **state)

    def save_model(self) -> None:
        """Publish the trained model in `out/model`."""
        weights = gather_state_dict(self.model)
        if self.world.is_main:
            template = get_template(self.config.template)
            save_model(self.model, self.out / "model", self.tokenizer, template=template, state_dict=weights)
        barrier()

    def __enter__(self) -> "Trainer":
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        self.metrics.close()


def sum_over_ranks(world: World, values: Sequence[float]) -> list[float]:
    """Add each value up over all ranks, in double precision."""
    total = torch.tensor(values, dtype=torch.float64, device=world.device)
    return [float(value) for value in all_reduce_sum(total).tolist()]


def use_bfloat16(dtype: Literal["auto", "float32", "bfloat16"], device: torch.device) -> bool:
    """Decide whether matrix products are computed in bfloat16."""
    return has_fast_bfloat16(device) if dtype == "auto" else dtype == "bfloat16"


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters of a sharded model into a whole one; all ranks take part."""
    parameters = dict(target.named_parameters())
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            parameters[name].copy_(whole)


def fingerprint_model(folder: Path) -> str:
    """Hash the files of a saved model: weights, architecture, tokenizer."""
    digest = xxhash.xxh3_128()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
