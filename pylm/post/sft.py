"""Supervised fine-tuning: the loop, in one function, in order.

    loss = sum of -log p over assistant tokens / number of assistant tokens in the step

over all micro-batches and ranks together: a row weighs by its tokens, and how a step was cut changes
nothing.

Shapes: B rows, T time, D model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import torch
from pydantic import Field

from pylm import ops
from pylm.data.chat import get_template
from pylm.data.pack import IGNORE
from pylm.files import write_json
from pylm.model.hf import load_model
from pylm.post.batches import collate, cut, step_rows
from pylm.post.examples import Example, fingerprint, read_conversations
from pylm.post.losses import sft_loss
from pylm.post.trainer import PostTrainingConfig, Trainer, fingerprint_model
from pylm.train.parallel import World, all_reduce_sum


class SFTConfig(PostTrainingConfig):
    """Supervised fine-tuning on conversations."""

    batch_size: int = Field(default=128, ge=1)
    """Rows an update, over all ranks (Tulu 3: 128)."""
    num_epochs: float = Field(default=2.0, gt=0)
    """Passes over the rows (Tulu 3: 2)."""
    max_length: int = Field(default=4096, ge=2)
    """Longest row in tokens, at most the model's context; a longer one loses its end, or is dropped if no
    assistant token is left."""
    max_heldout_rows: int | None = Field(default=None, ge=1)
    """Measure on this many held-out rows at most, the first of the files; None takes all."""


@dataclass(frozen=True)
class HeldoutLoss:
    """Loss on held-out rows.

    Attributes:
        loss: nats an assistant token.
        by_kind: the same by kind of row.
    """

    loss: float
    by_kind: dict[str, float]


@dataclass(frozen=True)
class SFTResult:
    """What a finished run reached.

    Attributes:
        num_rows: rows trained on.
        num_steps: updates.
        num_tokens: assistant tokens trained on, repeats included.
        set_aside: training rows that were truncated or dropped, by reason.
        loss: mean training loss of the last tenth of the steps, nats a token.
        heldout_before: on held-out rows before the first update; None without held-out rows.
        heldout_after: the same after the last.
    """

    num_rows: int
    num_steps: int
    num_tokens: int
    set_aside: dict[str, int]
    loss: float
    heldout_before: HeldoutLoss | None
    heldout_after: HeldoutLoss | None

    def to_dict(self) -> dict[str, object]:
        """Give the fields for a stage's summary."""
        return asdict(self)


def sft(
    config: SFTConfig,
    *,
    model_dir: Path,
    rows: Sequence[Path],
    out: Path,
    seed: int,
    heldout_rows: Sequence[Path] = (),
    world: World | None = None,
) -> SFTResult:
    """Fine-tune a model on conversations, going on from the newest checkpoint if there is one.

    Args:
        config: the recipe's part.
        model_dir: model to start from, with its tokenizer.
        rows: files of conversations; see `pylm.data.rows.read_chat_rows`.
        out: gets `metrics.jsonl`, `checkpoints/` and, at the end, `heldout.json` and `model/`.
        seed: of the order of rows.
        heldout_rows: files of the same form to measure on.
        world: ranks that train together; one by default.

    Returns:
        Rows, steps, tokens, losses.

    Raises:
        InputError: a file or a row cannot be used, or `out` holds the checkpoint of another run.
    """
    world = world or World()
    model, tokenizer = load_model(model_dir, device=world.device)
    template = get_template(config.template)
    max_length = min(config.max_length, model.config.max_seq_len)
    examples, set_aside = read_conversations(rows, tokenizer, template, max_length=max_length)
    heldout, _ = read_conversations(heldout_rows, tokenizer, template, max_length=max_length)
    heldout = heldout[: config.max_heldout_rows]
    num_steps = ceil(config.num_epochs * len(examples) / config.batch_size)
    trainer = Trainer(
        "sft", config, model=model, tokenizer=tokenizer, num_steps=num_steps, out=out, world=world,
        identity={
            "seed": seed,
            "model": fingerprint_model(model_dir),
            "rows": fingerprint(example.ids for example in examples),
        },
    )  # fmt: skip
    recent_losses: list[float] = trainer.saved.get("recent_losses", [])
    num_tokens: int = trainer.saved.get("num_tokens", 0)
    saved_report = trainer.saved.get("heldout_before")
    before = HeldoutLoss(**saved_report) if saved_report else None
    after = None
    with trainer:
        for step in range(trainer.first_step, num_steps):
            values: dict[str, float] = {}
            if heldout and trainer.is_eval_due(step):
                report = measure(config, trainer, heldout)
                before = before or report
                values["heldout/loss"] = report.loss
            chosen = step_rows(len(examples), seed=seed, step=step, batch_size=config.batch_size)
            batch = [examples[i] for i in chosen]
            values["loss"] = accumulate_gradients(config, trainer, batch)
            values |= trainer.update(step)
            num_tokens += sum(example.num_trained for example in batch)
            recent_losses = [*recent_losses, values["loss"]][-max(1, num_steps // 10) :]
            trainer.log(step, **values, num_tokens=num_tokens)
            trainer.progress.update(step + 1, loss=values["loss"], lr=values["learning_rate"])
            trainer.save_checkpoint(
                step, recent_losses=recent_losses, num_tokens=num_tokens,
                heldout_before=asdict(before) if before else None,
            )  # fmt: skip
        if heldout:
            after = measure(config, trainer, heldout)
            trainer.log(num_steps, **{"heldout/loss": after.loss})
    if before and after and world.is_main:
        write_json(out / "heldout.json", {"before": asdict(before), "after": asdict(after)})
    trainer.save_model()
    return SFTResult(
        num_rows=len(examples),
        num_steps=num_steps,
        num_tokens=num_tokens,
        set_aside=set_aside,
        loss=sum(recent_losses) / len(recent_losses),
        heldout_before=before,
        heldout_after=after,
    )


def accumulate_gradients(config: SFTConfig, trainer: Trainer, batch: Sequence[Example]) -> float:
    """Add the gradient of one step's loss to the parameters, micro-batch by micro-batch.

    Args:
        config: micro-batch size.
        trainer: model and ranks.
        batch: the step's rows, the same on all ranks.

    Returns:
        The step's loss, over all ranks.
    """
    world = trainer.world
    num_tokens = sum(example.num_trained for example in batch)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    lengths = [example.length for example in batch]
    for part in cut(lengths, max_tokens=config.micro_batch_tokens, rank=world.rank, world_size=world.size):
        if not part:
            trainer.stand_by()
            continue
        micro = collate([batch[i] for i in part], device=world.device)
        with trainer.autocast():
            hidden_BTD = trainer.model(micro.ids_BT)
            loss = sft_loss(hidden_BTD, trainer.model.output_weight, micro.targets_BT, num_tokens=num_tokens)
        trainer.backward(loss)
        total += loss.detach()
    return float(all_reduce_sum(total).item())


def measure(config: SFTConfig, trainer: Trainer, examples: Sequence[Example]) -> HeldoutLoss:
    """Measure the current model on held-out rows; all ranks call this together.

    Args:
        config: micro-batch size.
        trainer: model and ranks.
        examples: held-out rows, at least one.

    Returns:
        Loss over all assistant tokens, and by kind of row.
    """
    world, model = trainer.world, trainer.whole_model()
    kinds = sorted({example.kind for example in examples})
    sums = torch.zeros(len(kinds), dtype=torch.float64, device=world.device)
    lengths = [example.length for example in examples]
    for part in cut(lengths, max_tokens=config.micro_batch_tokens, rank=world.rank, world_size=world.size):
        if not part:
            continue
        micro = collate([examples[i] for i in part], device=world.device)
        with torch.no_grad(), trainer.autocast():
            loss_BT = ops.linear_cross_entropy(
                model(micro.ids_BT),
                model.output_weight,
                micro.targets_BT,
                ignore_index=IGNORE,
                reduction="none",
            )
        places = torch.tensor([kinds.index(examples[i].kind) for i in part], device=world.device)
        sums.index_add_(0, places, loss_BT.double().sum(1))
    losses = all_reduce_sum(sums).tolist()
    counts = [sum(x.num_trained for x in examples if x.kind == kind) for kind in kinds]
    by_kind = {kind: loss / count for kind, loss, count in zip(kinds, losses, counts, strict=True)}
    return HeldoutLoss(loss=sum(losses) / sum(counts), by_kind=by_kind)
