"""Preference tuning: the loop, in one function, in order.

The reference is asked once, before training: its log-probabilities of every answer are cached on disk, so
that training holds one model and a resumed run does not compute them again.

Shapes: P preference pairs, B = 2 P rows (chosen answers first, then rejected), T time, D model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pylm import ops
from pylm.data.chat import get_template
from pylm.data.pack import IGNORE
from pylm.files import atomic_path, write_json
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.post.accuracy import Accuracy, accuracy_by_kind
from pylm.post.batches import collate, cut, step_rows
from pylm.post.examples import Pair, fingerprint, read_pairs
from pylm.post.losses import PreferenceKind, PreferenceLoss, preference_loss
from pylm.post.trainer import (
    PostOptimizerConfig,
    PostTrainingConfig,
    Trainer,
    fingerprint_model,
    use_bfloat16,
)
from pylm.train.parallel import World, all_reduce_sum, autocast, barrier


class DPOOptimizerConfig(PostOptimizerConfig):
    """The optimizer of preference tuning."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak rate of AdamW (Tulu 3 8B: 5e-7)."""


class DPOConfig(PostTrainingConfig):
    """Preference tuning on pairs of answers."""

    optimizer: DPOOptimizerConfig = Field(default_factory=DPOOptimizerConfig)
    """Rule and peak learning rates."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs an update, over all ranks (Tulu 3: 128)."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs (Tulu 3: 1)."""
    max_length: int = Field(default=2048, ge=2)
    """Longest prompt and answer together, in tokens; a longer answer loses its end (Tulu 3: 2,048)."""
    kind: PreferenceKind = "sigmoid"
    """Which loss; see `pylm.post.losses.preference_loss`. Tulu 3 takes length-normalised."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: usually 0.1; 5 for length-normalised; 2 for simpo."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong; not for ipo."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin that simpo asks for; unused elsewhere."""
    sft_coefficient: float = Field(default=0.0, ge=0)
    """Weight of an added cross entropy on the chosen answers, a mean over their tokens in the step; keeps
    their probability from sinking along with that of the rejected ones (Pang et al. 2024)."""
    max_heldout_pairs: int | None = Field(default=None, ge=1)
    """Measure on this many held-out pairs at most, the first of the files; None takes all."""


@dataclass(frozen=True)
class PairReport:
    """Held-out pairs under a policy.

    Attributes:
        loss: mean preference loss.
        margin: mean difference of the implicit rewards.
        reward_accuracy: share of pairs whose chosen answer has the higher implicit reward.
        logp_accuracy: share of pairs whose chosen answer is the likelier one, whatever the reference.
        by_kind: reward accuracy by kind of pair.
    """

    loss: float
    margin: float
    reward_accuracy: Accuracy
    logp_accuracy: Accuracy
    by_kind: dict[str, Accuracy]

    def metrics(self) -> dict[str, float]:
        """Give the figures under their names in metrics.jsonl."""
        return {
            "heldout/loss": self.loss,
            "heldout/rewards/margins": self.margin,
            "heldout/rewards/accuracies": self.reward_accuracy.value,
            "heldout/logps/accuracies": self.logp_accuracy.value,
        }

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, accuracies with their 95 % Wilson intervals."""
        return {
            "loss": self.loss,
            "rewards/margins": self.margin,
            "rewards/accuracies": self.reward_accuracy.to_json(),
            "logps/accuracies": self.logp_accuracy.to_json(),
            "by_kind": {kind: accuracy.to_json() for kind, accuracy in self.by_kind.items()},
        }


@dataclass(frozen=True)
class DPOResult:
    """What a finished run reached.

    Attributes:
        num_pairs: pairs trained on.
        num_steps: updates.
        set_aside: training pairs that were truncated or dropped, by reason.
        loss: mean training loss of the last tenth of the steps.
        heldout_before: `PairReport.to_dict` before the first update; None without held-out pairs.
        heldout_after: the same after the last.
    """

    num_pairs: int
    num_steps: int
    set_aside: dict[str, int]
    loss: float
    heldout_before: dict[str, Any] | None
    heldout_after: dict[str, Any] | None

    def to_dict(self) -> dict[str, object]:
        """Give the fields for a stage's summary."""
        return asdict(self)


def dpo(
    config: DPOConfig,
    *,
    model_dir: Path,
    rows: Sequence[Path],
    out: Path,
    seed: int,
    heldout_rows: Sequence[Path] = (),
    world: World | None = None,
) -> DPOResult:
    """Tune a model on preferences, going on from the newest checkpoint if there is one.

    Args:
        config: the recipe's part.
        model_dir: model to start from, with its tokenizer; also the reference.
        rows: JSON lines files of `{"prompt", "chosen", "rejected", "kind"}`.
        out: gets `reference.npz`, `metrics.jsonl`, `checkpoints/` and, at the end, `heldout.json` and
            `model/`.
        seed: of the order of pairs.
        heldout_rows: files of the same form to measure on.
        world: ranks that train together; one by default.

    Returns:
        Pairs, steps, losses, held-out accuracy.

    Raises:
        InputError: a file or a row cannot be used, or `out` holds the checkpoint of another run.
    """
    world = world or World()
    model, tokenizer = load_model(model_dir, device=world.device)
    template = get_template(config.template)
    max_length = min(config.max_length, model.config.max_seq_len)
    pairs, set_aside = read_pairs(rows, tokenizer, template, max_length=max_length)
    heldout, _ = read_pairs(heldout_rows, tokenizer, template, max_length=max_length)
    heldout = heldout[: config.max_heldout_pairs]
    model_key = fingerprint_model(model_dir)
    train_reference_2P = heldout_reference_2P = None
    if config.kind != "simpo":
        reference_2P = reference_logprobs(
            config, model, pairs + heldout, model_key=model_key, cache=out / "reference.npz", world=world
        )
        train_reference_2P = reference_2P[:, : len(pairs)]
        heldout_reference_2P = reference_2P[:, len(pairs) :]
    num_steps = ceil(config.num_epochs * len(pairs) / config.batch_size)
    trainer = Trainer(
        "dpo", config, model=model, tokenizer=tokenizer, num_steps=num_steps, out=out, world=world,
        identity={"seed": seed, "model": model_key, "rows": fingerprint_pairs(pairs)},
    )  # fmt: skip
    recent_losses: list[float] = trainer.saved.get("recent_losses", [])
    before: dict[str, Any] | None = trainer.saved.get("heldout_before")
    after = None
    with trainer:
        for step in range(trainer.first_step, num_steps):
            values: dict[str, float] = {}
            if heldout and trainer.is_eval_due(step):
                report = measure(config, trainer, heldout, heldout_reference_2P)
                before = before or report.to_dict()
                values |= report.metrics()
            chosen = step_rows(len(pairs), seed=seed, step=step, batch_size=config.batch_size)
            values |= accumulate_gradients(
                config, trainer, [pairs[i] for i in chosen], _columns(train_reference_2P, chosen)
            )
            values |= trainer.update(step)
            recent_losses = [*recent_losses, values["loss"]][-max(1, num_steps // 10) :]
            trainer.log(step, **values)
            trainer.progress.update(step + 1, loss=values["loss"], accuracy=values["rewards/accuracies"])
            trainer.save_checkpoint(step, recent_losses=recent_losses, heldout_before=before)
        if heldout:
            report = measure(config, trainer, heldout, heldout_reference_2P)
            after = report.to_dict()
            trainer.log(num_steps, **report.metrics())
    if heldout and world.is_main:
        write_json(out / "heldout.json", {"before": before, "after": after})
    trainer.save_model()
    return DPOResult(
        num_pairs=len(pairs),
        num_steps=num_steps,
        set_aside=set_aside,
        loss=sum(recent_losses) / len(recent_losses),
        heldout_before=before,
        heldout_after=after,
    )


_STEP_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "nll_loss",
)


def accumulate_gradients(
    config: DPOConfig, trainer: Trainer, pairs: Sequence[Pair], reference_2P: Tensor | None
) -> dict[str, float]:
    """Add the gradient of one step's loss to the parameters, micro-batch by micro-batch.

    Args:
        config: loss and its options.
        trainer: model and ranks.
        pairs: the step's pairs, the same on all ranks.
        reference_2P: log-probabilities of their answers under the reference; None for simpo.

    Returns:
        The step's loss, implicit rewards and log-probabilities, means over the pairs of all ranks.
    """
    num_chosen_tokens = sum(pair.chosen.num_trained for pair in pairs)
    totals = torch.zeros(len(_STEP_METRICS), dtype=torch.float64, device=trainer.world.device)
    for part in _cut(pairs, config, trainer.world):
        if not part:
            trainer.stand_by()
            continue
        with trainer.autocast():
            logprob_2P, length_2P = score_pairs(trainer.model, [pairs[i] for i in part], trainer.world.device)
            result = _preference(config, logprob_2P, _columns(reference_2P, part), length_2P)
            nll = -logprob_2P[0].sum() / num_chosen_tokens
            loss = result.loss_P.sum() / len(pairs)
            if config.sft_coefficient:
                loss = loss + config.sft_coefficient * nll
        trainer.backward(loss)
        chosen, rejected = logprob_2P.detach().sum(1)
        margin_P = result.chosen_P - result.rejected_P
        totals += torch.stack(
            [
                loss.detach() * len(pairs),
                result.chosen_P.sum(),
                result.rejected_P.sum(),
                margin_P.sum(),
                (margin_P > 0).sum(),
                chosen,
                rejected,
                nll.detach() * len(pairs),
            ]
        )
    means = (all_reduce_sum(totals) / len(pairs)).tolist()
    return dict(zip(_STEP_METRICS, means, strict=True))


def measure(
    config: DPOConfig, trainer: Trainer, pairs: Sequence[Pair], reference_2P: Tensor | None
) -> PairReport:
    """Measure the current policy on held-out pairs; all ranks call this together.

    Args:
        config: loss and its options.
        trainer: model and ranks.
        pairs: held-out pairs.
        reference_2P: log-probabilities of their answers under the reference; None for simpo.

    Returns:
        Loss, margin and accuracies over all pairs. A tie counts as wrong.
    """
    logprob_2P, length_2P = score_all(
        trainer.whole_model(), pairs, config, trainer.world, bfloat16=trainer.bfloat16
    )
    result = _preference(config, logprob_2P, reference_2P, length_2P)
    margin_P = result.chosen_P - result.rejected_P
    is_right_P = (margin_P > 0).tolist()
    return PairReport(
        loss=result.loss_P.mean().item(),
        margin=margin_P.mean().item(),
        reward_accuracy=Accuracy(sum(is_right_P), len(pairs)),
        logp_accuracy=Accuracy(int((logprob_2P[0] > logprob_2P[1]).sum()), len(pairs)),
        by_kind=accuracy_by_kind(zip((pair.kind for pair in pairs), is_right_P, strict=True)),
    )


def score_pairs(model: Transformer, pairs: Sequence[Pair], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sum the log-probabilities of both answers of pairs, in one forward pass.

    Args:
        model: the model to ask.
        pairs: at least one.
        device: of the model.

    Returns:
        Sums, float32 (2, P), and the numbers of tokens they are over, int64 (2, P); chosen answers first.
    """
    micro = collate([p.chosen for p in pairs] + [p.rejected for p in pairs], device=device)
    hidden_BTD = model(micro.ids_BT)
    token_loss_BT = ops.linear_cross_entropy(
        hidden_BTD, model.output_weight, micro.targets_BT, ignore_index=IGNORE, reduction="none"
    )
    return -token_loss_BT.sum(1).view(2, -1), micro.mask_BT.sum(1).view(2, -1)


def score_all(
    model: Transformer, pairs: Sequence[Pair], config: DPOConfig, world: World, *, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Score any number of pairs without gradient, dealt out to the ranks; see `score_pairs`."""
    scores_22P = torch.zeros(2, 2, len(pairs), dtype=torch.float64, device=world.device)
    for part in _cut(pairs, config, world):
        if part:
            with torch.no_grad(), autocast(world, bfloat16=bfloat16):
                logprob_2P, length_2P = score_pairs(model, [pairs[i] for i in part], world.device)
            scores_22P[:, :, part] = torch.stack([logprob_2P.double(), length_2P.double()])
    logprob_2P, length_2P = all_reduce_sum(scores_22P)
    return logprob_2P.float(), length_2P.long()


def reference_logprobs(
    config: DPOConfig,
    model: Transformer,
    pairs: Sequence[Pair],
    *,
    model_key: str,
    cache: Path,
    world: World,
) -> Tensor:
    """Score pairs under the model that training starts from, or read the scores that an earlier run left.

    Args:
        config: micro-batch size and dtype.
        pairs: training and held-out pairs.
        model: the reference, whole on every rank.
        model_key: its fingerprint.
        cache: the .npz file; used if it was made from the same model, rows and dtype, else replaced.
        world: ranks, which share the work.

    Returns:
        float32 (2, P) sums of log-probabilities, chosen answers first.
    """
    bfloat16 = use_bfloat16(config.dtype, world.device)
    key = f"{model_key}-{fingerprint_pairs(pairs)}-{'bfloat16' if bfloat16 else 'float32'}"
    if cache.exists():
        with np.load(cache, allow_pickle=False) as saved:
            if str(saved["key"]) == key:
                return torch.from_numpy(saved["logprobs"]).to(world.device)
    logprob_2P, _ = score_all(model, pairs, config, world, bfloat16=bfloat16)
    if world.is_main:
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), logprobs=logprob_2P.cpu().numpy())
    barrier()
    return logprob_2P


def fingerprint_pairs(pairs: Sequence[Pair]) -> str:
    """Hash the token ids of pairs, and where their answers begin."""
    examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
    return fingerprint(part for x in examples for part in (x.ids[~x.mask], x.ids[x.mask]))


def _preference(
    config: DPOConfig, logprob_2P: Tensor, reference_2P: Tensor | None, length_2P: Tensor
) -> PreferenceLoss:
    return preference_loss(
        logprob_2P,
        reference_2P,
        length_2P,
        kind=config.kind,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        gamma=config.gamma,
    )


def _columns(scores_2P: Tensor | None, columns: Sequence[int]) -> Tensor | None:
    return None if scores_2P is None else scores_2P[:, list(columns)]


def _cut(pairs: Sequence[Pair], config: DPOConfig, world: World) -> list[list[int]]:
    """Cut pairs into micro-batches; a pair takes two rows of the longer answer's length."""
    lengths = [2 * max(pair.chosen.length, pair.rejected.length) for pair in pairs]
    return cut(lengths, max_tokens=config.micro_batch_tokens, rank=world.rank, world_size=world.size)
