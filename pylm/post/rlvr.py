"""Reinforcement learning from verifiable rewards: GRPO, the loop in one function, in order.

Each step draws prompts, samples a group of completions of each, lets a program judge them, and raises the
probability of what did better than its group. What teaches nothing costs nothing: completions without
advantage are not computed again, and the output matrix meets completion tokens only.

Shapes: P prompts of this rank, G samples of a prompt, B rows of a micro-batch, T time, D model.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pylm import ops
from pylm.data.chat import get_template
from pylm.data.pack import IGNORE
from pylm.files import write_json
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.ops.policy import AdvantageKind
from pylm.post.accuracy import Accuracy
from pylm.post.batches import MicroBatch, collate, step_rows
from pylm.post.examples import Prompt, fingerprint, read_prompts
from pylm.post.experience import Examiner, Experience, collect_experience
from pylm.post.rewards import Judgement, RewardConfig
from pylm.post.rollout import Rollouts, SamplingConfig, complete_greedily, roll_out
from pylm.post.trainer import (
    PostOptimizerConfig,
    PostTrainingConfig,
    Trainer,
    fingerprint_model,
    sum_over_ranks,
)
from pylm.post.verifiers import VERIFIERS, Verifier
from pylm.train.metrics import Metrics, MetricValue
from pylm.train.parallel import World, all_reduce_sum


class RLVROptimizerConfig(PostOptimizerConfig):
    """The optimizer of reinforcement."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak rate of AdamW (Tulu 3.1 8B: 5e-7)."""


class RLVRConfig(PostTrainingConfig):
    """Group relative policy optimisation on prompts with checkable answers."""

    optimizer: RLVROptimizerConfig = Field(default_factory=RLVROptimizerConfig)
    """Rule and peak learning rates."""
    num_steps: int = Field(default=100, ge=1)
    """Times that prompts are drawn and sampled."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts a step, over all ranks."""
    group_size: int = Field(default=8, ge=2)
    """Completions of each prompt (Tulu 3.1: 16)."""
    max_prompt_length: int = Field(default=2048, ge=1)
    """Longest prompt in tokens, at most what the model's context leaves; a longer one is dropped."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How completions are sampled."""
    rewards: RewardConfig = Field(default_factory=RewardConfig)
    """What a completion earns."""
    advantage: AdvantageKind = "standardised"
    """Divide by the group's standard deviation (GRPO), or centre only (Dr. GRPO)."""
    reduction: Literal["sequence", "token", "constant"] = "token"
    """What a token weighs: `sequence` (GRPO), `token` (DAPO) or `constant` (Dr. GRPO)."""
    zero_variance_groups: Literal["skip", "count"] = "skip"
    """Groups whose completions all earned the same teach nothing. `skip` leaves them out of the loss and of
    its denominators (as DAPO does, without drawing others); `count` keeps them in the denominators and in the
    divergence from the reference."""
    updates_per_step: int = Field(default=1, ge=1)
    """Updates on the same completions; from the second on, the ratio to the sampling policy counts."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """How far below 1 the ratio still counts."""
    clip_high: float = Field(default=0.2, ge=0)
    """How far above 1 the ratio still counts (DAPO: 0.28)."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the model that training starts from (Tulu 3: 0.05, Tulu 3.1: 0.01); at 0
    no reference is held."""
    max_heldout_prompts: int | None = Field(default=None, ge=1)
    """Measure on this many held-out prompts at most, the first of the files; None takes all."""
    num_logged_samples: int = Field(default=4, ge=0)
    """Completions written to `samples.jsonl` at every measurement."""


@dataclass(frozen=True)
class Solved:
    """Held-out prompts answered greedily.

    Attributes:
        accuracy: share answered right.
        formatted: share answered in the asked form.
        by_dataset: accuracy by data set.
        mean_length: tokens of a completion.
    """

    accuracy: Accuracy
    formatted: Accuracy
    by_dataset: dict[str, Accuracy]
    mean_length: float

    def metrics(self) -> dict[str, float]:
        """Give the figures under their names in metrics.jsonl."""
        low, high = self.accuracy.interval
        return {
            "heldout/accuracy": self.accuracy.value,
            "heldout/low": low,
            "heldout/high": high,
            "heldout/formatted": self.formatted.value,
            "heldout/mean_length": self.mean_length,
        }

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, accuracies with their 95 % Wilson intervals."""
        return {
            "accuracy": self.accuracy.to_json(),
            "formatted": self.formatted.to_json(),
            "by_dataset": {name: accuracy.to_json() for name, accuracy in self.by_dataset.items()},
            "mean_length": self.mean_length,
        }


@dataclass(frozen=True)
class RLVRResult:
    """What a finished run reached.

    Attributes:
        num_prompts: prompts to draw from.
        num_steps: steps.
        set_aside: prompts that were dropped, by reason.
        reward: mean reward of the last tenth of the steps.
        heldout_before: `Solved.to_dict` before the first update; None without held-out prompts.
        heldout_after: the same after the last.
    """

    num_prompts: int
    num_steps: int
    set_aside: dict[str, int]
    reward: float
    heldout_before: dict[str, Any] | None
    heldout_after: dict[str, Any] | None

    def to_dict(self) -> dict[str, object]:
        """Give the fields for a stage's summary."""
        return asdict(self)


def rlvr(
    config: RLVRConfig,
    *,
    model_dir: Path,
    rows: Sequence[Path],
    out: Path,
    seed: int,
    heldout_rows: Sequence[Path] = (),
    world: World | None = None,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
) -> RLVRResult:
    """Train a model on verified rewards, going on from the newest checkpoint if there is one.

    Args:
        config: the recipe's part.
        model_dir: model to start from, with its tokenizer; also the reference.
        rows: files of prompts with answers; see `pylm.data.rows.read_verifiable_rows`.
        out: gets `metrics.jsonl`, `samples.jsonl`, `checkpoints/` and, at the end, `heldout.json` and
            `model/`.
        seed: of the order of prompts and of sampling.
        heldout_rows: files of the same form to measure on.
        world: ranks that train together; one by default.
        verifiers: programs that judge, by the name that a row's `dataset` gives.

    Returns:
        Prompts, steps, reward, held-out accuracy.

    Raises:
        InputError: a file or a row cannot be used, a data set has no verifier, or `out` holds the checkpoint
            of another run.
    """
    world = world or World()
    model, tokenizer = load_model(model_dir, device=world.device)
    template = get_template(config.template)
    stop_ids = template.stop_ids(tokenizer)
    max_length = min(config.max_prompt_length, model.config.max_seq_len - config.sampling.max_new_tokens)
    prompts, set_aside = read_prompts(rows, tokenizer, template, max_length=max_length)
    heldout, _ = read_prompts(heldout_rows, tokenizer, template, max_length=max_length)
    heldout = heldout[: config.max_heldout_prompts]
    examiner = Examiner(config.rewards, tokenizer, verifiers)
    examiner.check([*prompts, *heldout])
    reference = None
    if config.kl_coefficient:
        reference = load_model(model_dir, device=world.device)[0].requires_grad_(False)
    trainer = Trainer(
        "rlvr", config, model=model, tokenizer=tokenizer, num_steps=config.num_steps, out=out, world=world,
        identity={
            "seed": seed,
            "model": fingerprint_model(model_dir),
            "rows": fingerprint(prompt.ids for prompt in prompts),
        },
    )  # fmt: skip
    recent_rewards: list[float] = trainer.saved.get("recent_rewards", [])
    before: dict[str, Any] | None = trainer.saved.get("heldout_before")
    after = None
    samples_log = Metrics(out / "samples.jsonl", resume_step=trainer.first_step, enabled=world.is_main)
    with trainer, samples_log:
        for step in range(trainer.first_step, config.num_steps):
            values: dict[str, float] = {}
            policy = trainer.whole_model()
            if heldout and trainer.is_eval_due(step):
                solved = measure(config, trainer, heldout, examiner, stop_ids=stop_ids)
                before = before or solved.to_dict()
                values |= solved.metrics()
            start_s = time.monotonic()
            drawn = step_rows(len(prompts), seed=seed, step=step, batch_size=config.prompts_per_step)
            mine = [prompts[i] for i in drawn[world.rank :: world.size]]
            with trainer.autocast():
                rollouts = roll_out(
                    policy, [prompt.ids for prompt in mine], config.sampling, group_size=config.group_size,
                    stop_ids=stop_ids, seed=seed, step=step, rank=world.rank,
                    progress=trainer.show_sampling("samples", config.sampling.max_new_tokens),
                )  # fmt: skip
            judgements = examiner.judge(mine, rollouts)
            experience = collect_experience(
                rollouts,
                judgements,
                advantage=config.advantage,
                skip_zero_variance=config.zero_variance_groups == "skip",
                has_divergence=config.kl_coefficient != 0.0,
                micro_batch_tokens=config.micro_batch_tokens,
                world=world,
            )
            values |= experience.metrics
            sampled_s = time.monotonic()
            for update in range(config.updates_per_step):
                figures = accumulate_gradients(config, trainer, experience, reference)
                values |= (
                    figures if update == 0 else {"loss": figures["loss"], "clip_ratio": figures["clip_ratio"]}
                )
                values |= trainer.update(step)
            values |= {"rollout_s": sampled_s - start_s, "update_s": time.monotonic() - sampled_s}
            recent_rewards = [*recent_rewards, values["reward"]][-max(1, config.num_steps // 10) :]
            trainer.log(step, **values)
            if trainer.is_eval_due(step):
                for sample in _samples(mine, rollouts, judgements, examiner)[: config.num_logged_samples]:
                    samples_log.write(step, **sample)
            trainer.progress.update(step + 1, reward=values["reward"], accuracy=values["accuracy"])
            trainer.save_checkpoint(step, recent_rewards=recent_rewards, heldout_before=before)
        if heldout:
            solved = measure(config, trainer, heldout, examiner, stop_ids=stop_ids)
            after = solved.to_dict()
            trainer.log(config.num_steps, **solved.metrics())
    if heldout and world.is_main:
        write_json(out / "heldout.json", {"before": before, "after": after})
    trainer.save_model()
    return RLVRResult(
        num_prompts=len(prompts),
        num_steps=config.num_steps,
        set_aside=set_aside,
        reward=sum(recent_rewards) / len(recent_rewards),
        heldout_before=before,
        heldout_after=after,
    )


def accumulate_gradients(
    config: RLVRConfig, trainer: Trainer, experience: Experience, reference: Transformer | None
) -> dict[str, float]:
    """Add the gradient of one update's loss to the parameters, micro-batch by micro-batch.

    The policy's own log-probabilities at the first update of a step are the old ones: the sampler held the
    same weights. Those of the sampler itself, which computes in another order, are only compared.

    Args:
        config: loss and its options.
        trainer: model and ranks.
        experience: the step's rows; keeps the log-probabilities that later updates need.
        reference: the model that training started from, where divergence counts.

    Returns:
        `loss`, `clip_ratio`, `logps/mismatch` (mean distance of trainer and sampler), and `kl` where there is
        a reference; over all ranks.
    """
    world = trainer.world
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    for number, part in enumerate(experience.parts):
        trainer.progress.update_within(batch=f"{number + 1}/{len(experience.parts)}")
        if not part:
            trainer.stand_by()
            continue
        micro = collate([experience.examples[i] for i in part], device=world.device)
        with trainer.autocast():
            logprob_BT = completion_logprobs(trainer.model, micro, temperature=config.sampling.temperature)
        old_logprob_BT = experience.old_logprobs.setdefault(number, logprob_BT.detach())
        if reference is not None and number not in experience.reference_logprobs:
            with torch.no_grad(), trainer.autocast():
                experience.reference_logprobs[number] = completion_logprobs(
                    reference, micro, temperature=config.sampling.temperature
                )
        result = ops.grpo_loss(
            logprob_BT,
            experience.advantage_N[part],
            micro.mask_BT,
            old_logprob=old_logprob_BT,
            reference_logprob=experience.reference_logprobs.get(number),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coefficient=config.kl_coefficient,
            reduction=config.reduction,
            row_weight=experience.copies_N[part],
            num_sequences=experience.num_sequences,
            num_tokens=experience.num_tokens,
            max_tokens=config.sampling.max_new_tokens,
        )
        trainer.backward(result.loss)
        sampler_logprob_BT = torch.zeros_like(old_logprob_BT)
        sampler_logprob_BT[micro.mask_BT] = torch.tensor(
            [x for i in part for x in experience.sampler_logprobs[i]],
            dtype=old_logprob_BT.dtype,
            device=world.device,
        )
        count_BT = experience.copies_N[part].unsqueeze(1) * micro.mask_BT
        distance_BT = (logprob_BT.detach() - sampler_logprob_BT).abs()
        sums += torch.stack(
            [
                result.loss.detach(),
                count_BT.sum(),
                (count_BT * result.clipped).sum(),
                (count_BT * distance_BT).sum(),
                (count_BT * result.kl).sum(),
            ]
        )
    loss, num_tokens, num_clipped, mismatch, divergence = all_reduce_sum(sums).tolist()
    num_tokens = max(1.0, num_tokens)
    figures = {"loss": loss, "clip_ratio": num_clipped / num_tokens, "logps/mismatch": mismatch / num_tokens}
    return figures if reference is None else {**figures, "kl": divergence / num_tokens}


def completion_logprobs(model: Transformer, micro: MicroBatch, *, temperature: float) -> Tensor:
    """Compute log-probabilities (B, T) of the trained tokens, 0 elsewhere, as the sampler defines them."""
    hidden_BTD = model(micro.ids_BT)
    return ops.linear_logprob(
        hidden_BTD, model.output_weight, micro.targets_BT, temperature=temperature, ignore_index=IGNORE
    ).logprob


def measure(
    config: RLVRConfig,
    trainer: Trainer,
    prompts: Sequence[Prompt],
    examiner: Examiner,
    *,
    stop_ids: Sequence[int],
) -> Solved:
    """Answer held-out prompts greedily and judge the answers; all ranks call this together.

    Args:
        config: bounds on length and memory.
        trainer: model and ranks.
        prompts: held-out prompts, at least one.
        examiner: judges.
        stop_ids: tokens that end a completion.

    Returns:
        Accuracy over all prompts and by data set.
    """
    world, policy = trainer.world, trainer.whole_model()
    mine = list(prompts[world.rank :: world.size])
    with trainer.autocast():
        rollouts = complete_greedily(
            policy, [x.ids for x in mine], config.sampling, stop_ids=stop_ids,
            progress=trainer.show_sampling("held out", config.sampling.max_new_tokens),
        )  # fmt: skip
    judgements = examiner.judge(mine, rollouts)
    datasets = sorted({prompt.dataset for prompt in prompts})
    correct = [0] * len(datasets)
    for prompt, judgement in zip(mine, judgements, strict=True):
        correct[datasets.index(prompt.dataset)] += judgement.verdict.correct
    num_formatted = sum(x.verdict.formatted for x in judgements)
    num_tokens, formatted, *correct_sums = sum_over_ranks(
        world, [rollouts.num_tokens, num_formatted, *correct]
    )
    counts = [sum(prompt.dataset == dataset for prompt in prompts) for dataset in datasets]
    return Solved(
        accuracy=Accuracy(int(sum(correct_sums)), len(prompts)),
        formatted=Accuracy(int(formatted), len(prompts)),
        by_dataset={
            dataset: Accuracy(int(num_correct), count)
            for dataset, num_correct, count in zip(datasets, correct_sums, counts, strict=True)
        },
        mean_length=num_tokens / len(prompts),
    )


def _samples(
    prompts: Sequence[Prompt], rollouts: Rollouts, judgements: Sequence[Judgement], examiner: Examiner
) -> list[dict[str, MetricValue]]:
    """Show the first completion of every prompt."""
    shown: list[dict[str, MetricValue]] = []
    for number, prompt in enumerate(prompts):
        place = number * rollouts.group_size
        finished = rollouts.finished[place]
        shown.append(
            {
                "prompt": prompt.text,
                "completion": examiner.read(rollouts.completions[place], finished=finished),
                "ground_truth": prompt.ground_truth,
                "dataset": prompt.dataset,
                "reward": judgements[place].reward,
                "correct": judgements[place].verdict.correct,
                "finished": finished,
            }
        )
    return shown
