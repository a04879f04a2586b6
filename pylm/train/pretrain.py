"""Pretraining: the loop, in one function, in order.

Shapes: B sequences in a batch, T tokens in a sequence, D model dimension, V vocabulary.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pylm.config import Config
from pylm.data.loader import IGNORE, Batch, Loader
from pylm.data.mixture import MixtureConfig
from pylm.data.shards import Shard, open_shards
from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.model.hf import save_model
from pylm.model.transformer import Transformer
from pylm.ops import linear_cross_entropy
from pylm.text import Tokenizer
from pylm.train.checkpoint import Checkpointer
from pylm.train.metrics import Metrics
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
from pylm.train.spikes import SpikeConfig, SpikeDetector


class PretrainConfig(Config):
    """Model, data and schedule of pretraining."""

    model: ModelConfig
    """Architecture; `vocab_size` is taken from the tokenizer where it is left out."""
    mixture: MixtureConfig = Field(default_factory=MixtureConfig)
    """Shares of the sources over the run: the curriculum."""
    num_steps: int = Field(ge=1)
    """Optimizer updates."""
    seq_len: int = Field(ge=2)
    """Tokens a sequence."""
    batch_size: int = Field(ge=1)
    """Sequences an update, over all ranks."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences a rank computes at a time; None takes its whole share."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Rule and peak learning rates."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    spikes: SpikeConfig = Field(default_factory=SpikeConfig)
    """Detection of loss spikes."""
    z_loss: float = Field(default=1e-5, ge=0)
    """Weight of the squared log-partition (OLMo 2: 1e-5)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; `auto` is bfloat16 where the hardware multiplies it faster."""
    document_mask: bool = True
    """Keep attention within documents."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Newest checkpoints that are kept."""
    collect_garbage_every: int = Field(default=500, ge=1)
    """Steps between garbage collections, the same on all ranks so that none waits for another."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"seq_len must be at most model.max_seq_len, got {self.seq_len} and {self.model.max_seq_len}"
            )
        return self


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run reached."""

    num_parameters: int
    num_tokens: int
    final_loss: float
    num_spikes: int
    spike_score: float
    dtype: str

    def to_dict(self) -> dict[str, object]:
        """Give the fields for a stage's summary."""
        return asdict(self)


def pretrain(
    config: PretrainConfig,
    *,
    tokens: Path,
    tokenizer_path: Path,
    out: Path,
    seed: int,
    world: World | None = None,
) -> PretrainResult:
    """Train a model from its initial weights, going on from the newest checkpoint if there is one.

    Args:
        config: the recipe's part.
        tokens: folder of token shards, one set a source.
        tokenizer_path: tokenizer.json that made them.
        out: gets `metrics.jsonl`, `checkpoints/` and, at the end, `model/`.
        seed: of initial weights and of the order of data.
        world: ranks that train together; one by default.

    Returns:
        Parameters, tokens, the mean loss of the last hundredth of the steps, spikes.

    Raises:
        InputError: sources without shards, a batch that ranks cannot share, a checkpoint of another model
            or run, a run whose loss is no longer finite.
    """
    world = world or World()
    tokenizer = Tokenizer.load(tokenizer_path)
    shards = open_shards(tokens, config.mixture.sources)
    for shard in shards.values():
        shard.check_tokenizer(tokenizer)
    loader = Loader(
        shards,
        config.mixture,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        seed=seed,
    )
    loader.batch(0, rank=world.rank, world_size=world.size)  # refused before a large model is built
    torch.manual_seed(seed)
    model = Transformer(_with_vocabulary(config.model, tokenizer)).to(world.device)
    bfloat16 = has_fast_bfloat16(world.device) if config.dtype == "auto" else config.dtype == "bfloat16"
    num_parameters = sum(p.numel() for p in model.parameters())
    shard_model(model, world)
    optimizer = build_optimizer(model, config.optimizer)
    spikes = SpikeDetector(config.spikes)
    checkpointer = Checkpointer(
        out / "checkpoints", model=model, optimizer=optimizer, world=world, keep=config.keep_checkpoints
    )
    start_step, elapsed_before_s, recent_losses = 0, 0.0, list[float]()
    identity = _identity(config, seed=seed, tokenizer=tokenizer, shards=shards)
    if state := checkpointer.resume():
        _check_identity(checkpointer.folder, saved=state["identity"], actual=identity)
        start_step, elapsed_before_s = state["step"], state["elapsed_s"]
        recent_losses = state["recent_losses"]
        spikes.load_state_dict(state["spikes"])
    num_recent = max(1, config.num_steps // 100)
    num_batch_tokens = config.batch_size * config.seq_len
    start_s = time.monotonic()
    with (
        _collect_garbage_by_hand(),
        Metrics(out / "metrics.jsonl", resume_step=start_step, enabled=world.is_main) as metrics,
        Progress(config.num_steps, "pretrain", enabled=world.is_main) as progress,
    ):
        for step in range(start_step, config.num_steps):
            batch = loader.batch(step, rank=world.rank, world_size=world.size)
            factor = learning_rate_factor(config.schedule, step, config.num_steps)
            rate = optimizer.set_learning_rate(factor)
            loss = accumulate_gradients(model, batch, config, world, bfloat16=bfloat16)
            grad_norm = optimizer.clip_gradients().item()
            spike, skip = spikes.observe(loss=loss, grad_norm=grad_norm)
            if not skip:
                optimizer.step()
            optimizer.zero_grad()
            if spikes.num_not_finite >= config.spikes.max_not_finite:
                raise InputError(
                    f"pretrain: no finite loss and gradient for {spikes.num_not_finite} steps, up to step "
                    f"{step}; lower optimizer.learning_rate or optimizer.max_grad_norm and start again"
                )
            if math.isfinite(loss):
                recent_losses = [*recent_losses, loss][-num_recent:]
            elapsed_s = elapsed_before_s + time.monotonic() - start_s
            metrics.write(
                step,
                loss=loss,
                grad_norm=grad_norm,
                learning_rate=rate,
                tokens=(step + 1) * num_batch_tokens,
                spike=spike,
                skipped=skip,
                stage=loader.stage(step),
                elapsed_s=round(elapsed_s, 3),
            )
            progress.update(
                step + 1, loss=loss, lr=rate, tokens_per_s=int((step + 1) * num_batch_tokens / elapsed_s)
            )
            finished = step + 1
            if finished % config.checkpoint_every == 0 and finished < config.num_steps:
                checkpointer.save(
                    finished,
                    identity=identity,
                    elapsed_s=elapsed_s,
                    recent_losses=recent_losses,
                    spikes=spikes.state_dict(),
                )
            if finished % config.collect_garbage_every == 0:
                gc.collect()
    weights = gather_state_dict(model)
    if world.is_main:
        save_model(model, out / "model", tokenizer, state_dict=weights)
    barrier()
    return PretrainResult(
        num_parameters=num_parameters,
        num_tokens=config.num_steps * num_batch_tokens,
        final_loss=sum(recent_losses) / len(recent_losses) if recent_losses else math.nan,
        num_spikes=spikes.num_spikes,
        spike_score=spikes.spike_score,
        dtype="bfloat16" if bfloat16 else "float32",
    )


def accumulate_gradients(
    model: Transformer, batch: Batch, config: PretrainConfig, world: World, *, bfloat16: bool
) -> float:
    """Add the gradient of one batch's mean loss to the parameters, micro-batch by micro-batch.

    The mean is over all target tokens of all ranks, so that loss and gradient do not depend on the
    micro-batch size or the number of ranks, beyond rounding.

    Args:
        model: maps ids (B, T) to hidden states (B, T, D) and has `output_weight` (V, D).
        batch: this rank's rows.
        config: micro-batch size, z-loss, mask.
        world: ranks; FSDP averages gradients over them, hence the factor `world.size`.
        bfloat16: compute matrix products in bfloat16.

    Returns:
        The mean loss in nats a token over all ranks, z-loss included.
    """
    num_targets = all_reduce_sum(
        torch.tensor(int((batch.targets_BT != IGNORE).sum()), dtype=torch.float64, device=world.device)
    ).item()
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for ids_BT, targets_BT, positions_BT, documents_BT in _micro_batches(batch, config, world.device):
        with autocast(world, bfloat16=bfloat16):
            hidden_BTD = model(ids_BT, positions_BT=positions_BT, documents_BT=documents_BT)
            loss = linear_cross_entropy(
                hidden_BTD, model.output_weight, targets_BT, z_loss=config.z_loss, reduction="sum"
            )
        (loss * (world.size / num_targets)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(all_reduce_sum(total)) / num_targets


def _micro_batches(
    batch: Batch, config: PretrainConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Cut a rank's rows; a mask is given only to a part that holds a document's border."""
    num_rows = len(batch.ids_BT)
    size = config.micro_batch_size or num_rows
    documents_BT = batch.documents_BT if config.document_mask else None
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)

        def tensor(array: NDArray[np.int64] | None, rows: slice = rows) -> Tensor | None:
            return None if array is None else torch.from_numpy(array[rows]).to(device, non_blocking=True)

        ids_BT, targets_BT = tensor(batch.ids_BT), tensor(batch.targets_BT)
        assert ids_BT is not None
        assert targets_BT is not None
        if documents_BT is not None and documents_BT[rows].any():
            yield ids_BT, targets_BT, tensor(batch.positions_BT), tensor(batch.documents_BT)
        else:
            yield ids_BT, targets_BT, None, None


@contextmanager
def _collect_garbage_by_hand() -> Iterator[None]:
    """Collect now, and then only where the loop says so; afterwards the collector is as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_ONLY_SPEED = {"micro_batch_size", "checkpoint_every", "keep_checkpoints", "collect_garbage_every"}
"""Fields of `PretrainConfig` that change nothing in the outcome beyond rounding."""


def _identity(
    config: PretrainConfig, *, seed: int, tokenizer: Tokenizer, shards: Mapping[str, Shard]
) -> dict[str, object]:
    """Give what the outcome of a run depends on, as JSON values."""
    return {
        "config": config.model_dump(mode="json", exclude=_ONLY_SPEED),
        "seed": seed,
        "tokenizer": tokenizer.fingerprint,
        "tokens": {name: shard.meta.tokens_xxh3 for name, shard in shards.items()},
    }


def _check_identity(folder: Path, *, saved: Mapping[str, object], actual: Mapping[str, object]) -> None:
    changed = [name for name, value in actual.items() if saved.get(name) != value]
    if changed:
        raise InputError(
            f"{folder}: checkpoint of a run with another {', '.join(changed)}; "
            "restore it or remove the folder to start again"
        )


def _with_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    if config.vocab_size is None:
        return config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    if config.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"pretrain.model.vocab_size is {config.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens; leave it out to take the tokenizer's"
        )
    return config
