"""Preference tuning: gradients against a naive pass, the cached reference, learning, resuming."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import dpo as dpo_oracle

from pylm.data.chat import PYLM
from pylm.files import read_json
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.post import dpo as dpo_module
from pylm.post.dpo import DPOConfig, accumulate_gradients, dpo, reference_logprobs
from pylm.post.examples import Example, Pair, read_pairs
from pylm.post.trainer import Trainer
from pylm.train.metrics import read_metrics
from pylm.train.parallel import World

ROUNDING = 1e-5  # float32, sums of a few hundred terms
CONFIG = DPOConfig(
    batch_size=8,
    num_epochs=4.0,
    max_length=32,
    micro_batch_tokens=128,
    dtype="float32",
    eval_every=4,
    checkpoint_every=3,
    optimizer={"learning_rate": 3e-3},
)


def rows(count: int) -> list[dict[str, object]]:
    """Prefer a lower-case answer; two kinds by the letter."""
    letters = "abcdef"
    return [
        {
            "prompt": "say " + letters[i % 6] * (1 + i % 3),
            "chosen": letters[i % 6],
            "rejected": letters[i % 6].upper() * (1 + i % 2),
            "kind": "even" if i % 2 == 0 else "odd",
        }
        for i in range(count)
    ]


def naive_sum(model: Transformer, example: Example) -> torch.Tensor:
    logits_TV = model(torch.tensor(example.ids[:-1]).unsqueeze(0))[0] @ model.output_weight.t()
    logprobs_TV = torch.log_softmax(logits_TV, -1)
    return torch.stack(
        [logprobs_TV[t, int(example.ids[t + 1])] for t in range(example.length - 1) if example.mask[t + 1]]
    ).sum()


def naive_sums(model: Transformer, pairs: list[Pair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(naive_sum(model, pair.chosen), naive_sum(model, pair.rejected)) for pair in pairs]


@pytest.mark.parametrize("kind", ["sigmoid", "length-normalised", "ipo", "simpo"])
def test_loss_and_gradient_equal_a_naive_pass_however_the_step_is_cut(
    tmp_path: Path, model_dir: Path, write_rows, kind: str
) -> None:
    config = CONFIG.model_copy(update={"kind": kind, "sft_coefficient": 0.5, "beta": 0.3, "gamma": 0.2})
    model, tokenizer = load_model(model_dir)
    pairs, _ = read_pairs([write_rows("dpo", rows(6))], tokenizer, PYLM, max_length=32)
    generator = torch.Generator().manual_seed(0)
    reference_2P = -20.0 * torch.rand(2, 6, generator=generator)

    model.double()
    sums = naive_sums(model, pairs)
    lengths = [(pair.chosen.num_trained, pair.rejected.num_trained) for pair in pairs]
    step = 1e-6
    options = {"kind": kind, "beta": 0.3, "label_smoothing": 0.0, "gamma": 0.2}
    surrogate, expected_loss = torch.zeros((), dtype=torch.float64), 0.0
    num_chosen_tokens = sum(chosen for chosen, _ in lengths)
    for p, (chosen, rejected) in enumerate(sums):
        reference = (reference_2P[0, p].item(), reference_2P[1, p].item())
        at = (chosen.item(), rejected.item())
        expected_loss += dpo_oracle.loss(at, reference, lengths[p], **options) / 6
        for side, value in enumerate((chosen, rejected)):
            ends = [
                dpo_oracle.loss(
                    tuple(x + by * (i == side) for i, x in enumerate(at)), reference, lengths[p], **options
                )
                for by in (step, -step)
            ]
            surrogate = surrogate + value * (ends[0] - ends[1]) / (2 * step) / 6
        surrogate = surrogate - 0.5 * chosen / num_chosen_tokens
        expected_loss -= 0.5 * chosen.item() / num_chosen_tokens
    surrogate.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])

    for micro_batch_tokens in (1, 10_000):
        model, tokenizer = load_model(model_dir)
        config = config.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
        trainer = Trainer(
            "dpo", config, model=model, tokenizer=tokenizer, num_steps=1,
            out=tmp_path / str(micro_batch_tokens), world=World(), identity={},
        )  # fmt: skip
        with trainer:
            values = accumulate_gradients(config, trainer, pairs, reference_2P)
        assert values["loss"] == pytest.approx(expected_loss, rel=ROUNDING)
        assert values["logps/chosen"] == pytest.approx(sum(c.item() for c, _ in sums) / 6, rel=ROUNDING)
        assert values["logps/rejected"] == pytest.approx(sum(r.item() for _, r in sums) / 6, rel=ROUNDING)
        grad = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=ROUNDING * float(expected.abs().max()))


def test_the_reference_is_computed_once_and_again_when_rows_change(
    tmp_path: Path, model_dir: Path, write_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(model_dir)
    pairs, _ = read_pairs([write_rows("dpo", rows(6))], tokenizer, PYLM, max_length=32)
    calls = []
    score_all = dpo_module.score_all

    def counted(*arguments, **options):
        calls.append(1)
        return score_all(*arguments, **options)

    monkeypatch.setattr(dpo_module, "score_all", counted)
    options = {"cache": tmp_path / "reference.npz", "world": World()}
    first = reference_logprobs(CONFIG, model, pairs, model_key="a", **options)
    assert torch.equal(reference_logprobs(CONFIG, model, pairs, model_key="a", **options), first)
    assert len(calls) == 1
    with torch.no_grad():
        expected = torch.tensor(naive_sums(model.double(), pairs)).t()
    torch.testing.assert_close(first.double(), expected, rtol=ROUNDING, atol=ROUNDING)
    model.float()
    reference_logprobs(CONFIG, model, pairs[:4], model_key="a", **options)
    reference_logprobs(CONFIG, model, pairs[:4], model_key="b", **options)
    assert len(calls) == 3
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as saved:
        assert saved["logprobs"].shape == (2, 4)


@pytest.mark.parametrize("kind", ["sigmoid", "simpo"])
def test_training_ranks_held_out_pairs_right(tmp_path: Path, model_dir: Path, write_rows, kind: str) -> None:
    path, heldout = write_rows("dpo", rows(48)), write_rows("heldout", rows(12))
    config = CONFIG.model_copy(update={"kind": kind, "num_epochs": 2.0})
    out = tmp_path / "out"
    result = dpo(config, model_dir=model_dir, rows=[path], heldout_rows=[heldout], out=out, seed=1)
    accuracy = result.heldout_after["rewards/accuracies"]
    assert accuracy["accuracy"] == 1.0
    assert accuracy["low"] == pytest.approx(12 / (12 + 1.96**2), abs=1e-4)
    assert {k: v["num_total"] for k, v in result.heldout_after["by_kind"].items()} == {"even": 6, "odd": 6}
    assert read_json(out / "heldout.json") == {
        "before": result.heldout_before,
        "after": result.heldout_after,
    }
    records = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in records if "heldout/rewards/accuracies" in r] == [0, 4, 8, 12]
    names = {"loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/margins",
             "rewards/accuracies", "logps/chosen", "logps/rejected", "elapsed_s"}  # fmt: skip
    assert all(names <= r.keys() for r in records[:-1])
    if kind == "sigmoid":
        assert records[0]["loss"] == pytest.approx(math.log(2.0), abs=ROUNDING)
        assert records[0]["rewards/margins"] == pytest.approx(0.0, abs=ROUNDING)
    else:
        assert not (out / "reference.npz").exists()


class KilledError(Exception):
    """Stands for a kill."""


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    tmp_path: Path, model_dir: Path, write_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        "model_dir": model_dir,
        "rows": [write_rows("dpo", rows(20))],
        "heldout_rows": [write_rows("heldout", rows(6))],
        "seed": 3,
    }
    whole = dpo(CONFIG, out=tmp_path / "whole", **arguments)
    log = Trainer.log

    def die(self: Trainer, step: int, **values: float) -> None:
        if step == 5:
            raise KilledError
        log(self, step, **values)

    monkeypatch.setattr(Trainer, "log", die)
    with pytest.raises(KilledError):
        dpo(CONFIG, out=tmp_path / "broken", **arguments)
    monkeypatch.setattr(Trainer, "log", log)
    assert dpo(CONFIG, out=tmp_path / "broken", **arguments) == whole
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for record in records[0] + records[1]:
        del record["elapsed_s"]
    assert records[0] == records[1]
