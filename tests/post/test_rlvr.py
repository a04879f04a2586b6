"""Reinforcement: what is computed and divided by what, learning a bandit, resuming."""

import json
from pathlib import Path

import pytest
import torch
from oracles import grpo as grpo_oracle

from pylm.errors import InputError
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.post.experience import Experience, collect_experience
from pylm.post.rewards import Judgement
from pylm.post.rlvr import RLVRConfig, accumulate_gradients, rlvr
from pylm.post.rollout import Rollouts
from pylm.post.trainer import Trainer
from pylm.post.verifiers import Verdict
from pylm.train import progress
from pylm.train.metrics import read_metrics
from pylm.train.parallel import World

ROUNDING = 1e-5  # float32, sums of a few hundred terms
CONFIG = RLVRConfig(
    num_steps=20,
    prompts_per_step=8,
    group_size=8,
    micro_batch_tokens=256,
    dtype="float32",
    eval_every=4,
    checkpoint_every=5,
    sampling={"max_new_tokens": 2},
    optimizer={"learning_rate": 2e-2},
    schedule={"warmup_fraction": 0.0},
)


class StartsWith:
    """Right is what begins with one of the ground truth's letters: a bandit with 261 arms."""

    def verify(self, completion: str, ground_truth: str, *, finished: bool) -> Verdict:
        return Verdict(completion[:1] in set(ground_truth), finished, completion[:1])


BANDIT = {"bandit": StartsWith()}


def rows(count: int) -> list[dict[str, object]]:
    right = "aeiou0123456789 "
    return [
        {
            "messages": [{"role": "user", "content": "pull " + "xyz"[i % 3] * (1 + i % 2)}],
            "ground_truth": right,
            "dataset": f"bandit/{i % 2}",
        }
        for i in range(count)
    ]


def judgement(reward: float) -> Judgement:
    return Judgement(reward, Verdict(reward > 0, True, None))


ROLLOUTS = Rollouts(
    prompts=[[256, 97], [256, 98, 99], [256]],
    completions=[
        [10, 260], [11, 12, 260], [10, 260],
        [13, 14], [15, 260], [13, 14],
        [10, 260], [17, 18, 19], [16, 20, 260],
    ],
    logprobs=[
        [-1.0, -2.0], [-1.0, -1.0, -1.0], [-1.0, -2.0],
        [-3.0, -1.0], [-2.0, -2.0], [-3.0, -1.0],
        [-1.0, -1.0], [-1.0] * 3, [-1.0] * 3,
    ],
    finished=[True, True, True, False, True, False, True, False, True],
    group_size=3,
)  # fmt: skip
REWARDS = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0]  # the middle group teaches nothing


def collect(config: RLVRConfig, *, micro_batch_tokens: int = 256) -> Experience:
    return collect_experience(
        ROLLOUTS,
        [judgement(reward) for reward in REWARDS],
        advantage=config.advantage,
        skip_zero_variance=config.zero_variance_groups == "skip",
        has_divergence=config.kl_coefficient != 0.0,
        micro_batch_tokens=micro_batch_tokens,
        world=World(),
    )


def test_only_what_teaches_is_computed_and_equal_completions_once() -> None:
    experience = collect(CONFIG)
    # The last group's reward of 1 is its mean: without advantage, yet counted.
    kept = [0, 1, 6, 7]
    assert [x.ids[x.mask].tolist() for x in experience.examples] == [ROLLOUTS.completions[i] for i in kept]
    assert experience.copies_N.tolist() == [2, 1, 1, 1]
    assert experience.examples[1].ids.tolist() == [256, 97, 11, 12, 260]
    assert (experience.num_sequences, experience.num_tokens) == (6, 15)
    expected = [
        a for group in ((1.0, 0.0, 1.0), (0.0, 2.0, 1.0))
        for a in grpo_oracle.advantages(group, standardised=True, epsilon=1e-4)
    ]  # fmt: skip
    assert experience.advantage_N.tolist() == pytest.approx([expected[i] for i in (0, 1, 3, 4)], rel=ROUNDING)
    metrics = experience.metrics
    assert metrics["reward"] == pytest.approx(8 / 9)
    assert metrics["reward_std"] == pytest.approx((3**-0.5 + 1) / 3)
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert metrics["accuracy"] == pytest.approx(7 / 9)
    assert metrics["entropy"] == pytest.approx(29 / 21)
    assert metrics["completions/mean_length"] == pytest.approx(21 / 9)
    assert metrics["completions/clipped_ratio"] == pytest.approx(3 / 9)


def test_counted_groups_divide_the_loss_and_are_computed_for_the_divergence() -> None:
    counted = CONFIG.model_copy(update={"zero_variance_groups": "count"})
    experience = collect(counted)
    assert (len(experience.examples), experience.num_sequences, experience.num_tokens) == (4, 9, 21)
    experience = collect(counted.model_copy(update={"kl_coefficient": 0.1}))
    assert experience.copies_N.tolist() == [2, 1, 2, 1, 1, 1, 1]


def logprobs(model: Transformer, config: RLVRConfig, experience: Experience) -> list[list[torch.Tensor]]:
    """Log-probabilities of every sample that counts, one by one, equal ones again."""
    found = []
    copies = experience.copies_N.tolist()
    for example in [x for x, count in zip(experience.examples, copies, strict=True) for _ in range(count)]:
        logits_TV = model(torch.tensor(example.ids[:-1]).unsqueeze(0))[0] @ model.output_weight.t()
        logprobs_TV = torch.log_softmax(logits_TV / config.sampling.temperature, -1)
        places = [t for t in range(example.length - 1) if example.mask[t + 1]]
        found.append([logprobs_TV[t, int(example.ids[t + 1])] for t in places])
    return found


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 256])
def test_loss_and_gradient_equal_a_naive_pass_however_the_step_is_cut(
    tmp_path: Path, model_dir: Path, reduction: str, micro_batch_tokens: int
) -> None:
    config = CONFIG.model_copy(
        update={
            "reduction": reduction,
            "kl_coefficient": 0.1,
            "sampling": CONFIG.sampling.model_copy(update={"temperature": 0.8, "max_new_tokens": 4}),
        }
    )
    experience = collect(config, micro_batch_tokens=micro_batch_tokens)
    model, tokenizer = load_model(model_dir)
    reference = load_model(model_dir)[0]
    trainer = Trainer(
        "rlvr",
        config,
        model=model,
        tokenizer=tokenizer,
        num_steps=1,
        out=tmp_path,
        world=World(),
        identity={},
    )
    with trainer:
        first = accumulate_gradients(config, trainer, experience, reference)
        assert (first["kl"], first["clip_ratio"]) == (pytest.approx(0.0, abs=1e-6), 0.0)
        # Move away, so that ratio, clip and divergence all count in the second update.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.zero_grad()
        second = accumulate_gradients(config, trainer, experience, reference)
    grad = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    model.double().zero_grad()
    new = logprobs(model, config, experience)
    with torch.no_grad():
        old = [[x.item() for x in row] for row in logprobs(reference.double(), config, experience)]
    options = {
        "clip_low": config.clip_low, "clip_high": config.clip_high, "kl_coefficient": 0.1,
        "reduction": reduction, "max_tokens": 4,
    }  # fmt: skip
    advantage = experience.advantage_N.repeat_interleave(experience.copies_N).tolist()

    def oracle(at: list[list[float]]) -> float:
        return grpo_oracle.loss(at, old, old, advantage, **options)

    at = [[x.item() for x in row] for row in new]
    assert second["loss"] == pytest.approx(oracle(at), rel=1e-4, abs=1e-6)
    copies = experience.copies_N.tolist()
    sampled = [x for x, n in zip(experience.sampler_logprobs, copies, strict=True) for _ in range(n)]
    seen = grpo_oracle.figures(
        at, old, sampled, advantage, clip_low=config.clip_low, clip_high=config.clip_high
    )
    assert seen["clip_ratio"] > 0
    for name, value in seen.items():
        assert second[name] == pytest.approx(value, rel=1e-4), name
    step = 1e-6
    surrogate = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(new):
        for t, value in enumerate(row):
            ends = []
            for by in (step, -step):
                moved = [list(other) for other in at]
                moved[i][t] += by
                ends.append(oracle(moved))
            surrogate = surrogate + value * (ends[0] - ends[1]) / (2 * step)
    surrogate.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_bandit_is_learned(tmp_path: Path, model_dir: Path, write_rows) -> None:
    out = tmp_path / "out"
    result = rlvr(
        CONFIG, model_dir=model_dir, rows=[write_rows("rl", rows(24))],
        heldout_rows=[write_rows("heldout", rows(6))], out=out, seed=0, verifiers=BANDIT,
    )  # fmt: skip
    records = read_metrics(out / "metrics.jsonl")
    assert records[0]["reward"] < 0.2
    assert result.reward > 0.7
    assert result.heldout_after["accuracy"]["accuracy"] == 1.0
    assert set(result.heldout_after["by_dataset"]) == {"bandit/0", "bandit/1"}
    assert [r["step"] for r in records if "heldout/accuracy" in r] == [0, 4, 8, 12, 16, 20]
    assert records[0]["heldout/accuracy"] == result.heldout_before["accuracy"]["accuracy"]
    names = {"loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std", "entropy",
             "clip_ratio", "logps/mismatch", "accuracy", "completions/mean_length", "elapsed_s"}  # fmt: skip
    assert all(names <= r.keys() for r in records[:-1])
    assert all("kl" not in r for r in records)
    assert max(r["logps/mismatch"] for r in records[:-1]) < 1e-4
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [s["step"] for s in samples] == [step for step in (0, 4, 8, 12, 16) for _ in range(4)]
    assert {"prompt", "completion", "ground_truth", "reward", "correct", "finished"} <= samples[0].keys()


def test_a_log_shows_what_happens_within_a_step(
    tmp_path: Path, model_dir: Path, write_rows, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    arguments = {"rows": [write_rows("rl", rows(8))], "heldout_rows": [write_rows("heldout", rows(6))]}
    config = CONFIG.model_copy(update={"num_steps": 3})
    rlvr(config, model_dir=model_dir, out=tmp_path / "out", seed=0, verifiers=BANDIT, **arguments)
    lines = capsys.readouterr().err.splitlines()
    longest = config.sampling.max_new_tokens
    shown = [line.split("  ")[:3] for line in lines]
    assert [x[:2] for x in shown if x[1] in ("held out 6/6", "samples 64/64")] == [
        ["rlvr 0/3", "held out 6/6"],
        ["rlvr 0/3", "samples 64/64"],
        ["rlvr 1/3", "samples 64/64"],
        ["rlvr 2/3", "samples 64/64"],
        ["rlvr 3/3", "held out 6/6"],
    ]
    assert any(x[1].startswith("batch 1/") for x in shown)
    assert any(
        line.startswith(f"rlvr 1/3  samples 64/64  token {longest}/{longest}  reward ") for line in lines
    )


def test_a_step_that_teaches_nothing_changes_nothing(tmp_path: Path, model_dir: Path, write_rows) -> None:
    config = CONFIG.model_copy(
        update={"num_steps": 2, "rewards": CONFIG.rewards.model_copy(update={"correct": 0.0})}
    )
    out = tmp_path / "out"
    rlvr(config, model_dir=model_dir, rows=[write_rows("rl", rows(8))], out=out, seed=0, verifiers=BANDIT)
    before, after = load_model(model_dir)[0], load_model(out / "model")[0]
    assert all(torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True))
    assert [r["frac_reward_zero_std"] for r in read_metrics(out / "metrics.jsonl")] == [1.0, 1.0]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    tmp_path: Path, model_dir: Path, write_rows, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    config = CONFIG.model_copy(update={"kl_coefficient": 0.01, "updates_per_step": 2, "dtype": dtype})
    arguments = {
        "model_dir": model_dir,
        "rows": [write_rows("rl", rows(20))],
        "heldout_rows": [write_rows("heldout", rows(4))],
        "seed": 3,
        "verifiers": BANDIT,
    }
    whole = rlvr(config, out=tmp_path / "whole", **arguments)
    log = Trainer.log

    def die(self: Trainer, step: int, **values: float) -> None:
        if step == 8:
            raise KilledError
        log(self, step, **values)

    monkeypatch.setattr(Trainer, "log", die)
    with pytest.raises(KilledError):
        rlvr(config, out=tmp_path / "broken", **arguments)
    monkeypatch.setattr(Trainer, "log", log)
    torch.manual_seed(123)
    assert rlvr(config, out=tmp_path / "broken", **arguments) == whole
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "broken")]
    assert samples[0] == samples[1]
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for record in records[0] + records[1]:
        for name in ("elapsed_s", "rollout_s", "update_s"):
            record.pop(name, None)
    assert records[0] == records[1]
    assert all(r["kl"] >= 0 for r in records[0][:-1])


def test_a_prompt_that_nobody_can_judge_stops_the_run_before_it_starts(
    tmp_path: Path, model_dir: Path, write_rows
) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    unknown = write_rows("unknown", [{"messages": messages, "ground_truth": "4", "dataset": "sums"}])
    unreadable = write_rows("bad", [{"messages": messages, "ground_truth": "four", "dataset": "arithmetic"}])
    with pytest.raises(InputError, match="prompt '2 \\+ 2\\?': no verifier for dataset 'sums'"):
        rlvr(CONFIG, model_dir=model_dir, rows=[unknown], out=tmp_path / "out", seed=0)
    with pytest.raises(InputError, match="ground_truth must be an integer"):
        rlvr(CONFIG, model_dir=model_dir, rows=[unreadable], out=tmp_path / "out", seed=0)
