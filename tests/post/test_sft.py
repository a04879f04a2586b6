"""Supervised fine-tuning: gradients against a naive model pass, cuts, learning, resuming."""

from pathlib import Path

import pytest
import torch

from pylm.data.chat import PYLM
from pylm.errors import InputError
from pylm.model.hf import load_model
from pylm.post.examples import read_conversations
from pylm.post.sft import SFTConfig, accumulate_gradients, sft
from pylm.post.trainer import Trainer
from pylm.train.metrics import read_metrics
from pylm.train.parallel import World

ROUNDING = 1e-5  # float32, sums of a few hundred terms
CONFIG = SFTConfig(
    batch_size=8,
    num_epochs=4.0,
    max_length=32,
    micro_batch_tokens=64,
    dtype="float32",
    eval_every=4,
    checkpoint_every=3,
    optimizer={"learning_rate": 1e-2},
)


def rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "user", "content": "say " + "abc"[i % 3] * (1 + i % 4)},
                {"role": "assistant", "content": "abc"[i % 3]},
            ],
            "kind": "vowel" if i % 3 == 0 else "consonant",
        }
        for i in range(count)
    ]


def gradients(config: SFTConfig, model_dir: Path, path: Path, out: Path) -> tuple[float, torch.Tensor]:
    model, tokenizer = load_model(model_dir)
    examples, _ = read_conversations([path], tokenizer, PYLM, max_length=config.max_length)
    trainer = Trainer(
        "sft", config, model=model, tokenizer=tokenizer, num_steps=1, out=out, world=World(), identity={}
    )
    with trainer:
        loss = accumulate_gradients(config, trainer, examples)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_gradient_equals_a_naive_pass_and_does_not_depend_on_the_cut(
    tmp_path: Path, model_dir: Path, write_rows
) -> None:
    path = write_rows("sft", rows(12))
    model, tokenizer = load_model(model_dir)
    model.double()
    examples, _ = read_conversations([path], tokenizer, PYLM, max_length=CONFIG.max_length)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for example in examples:
        logits_TV = model(torch.tensor(example.ids[:-1]).unsqueeze(0))[0] @ model.output_weight.t()
        for place, (target, trained) in enumerate(zip(example.ids[1:], example.mask[1:], strict=True)):
            if trained:
                total = total - torch.log_softmax(logits_TV[place], -1)[int(target)]
                count += 1
    (total / count).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    for micro_batch_tokens in (1, 64, 10_000):
        config = CONFIG.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
        loss, grad = gradients(config, model_dir, path, tmp_path / str(micro_batch_tokens))
        assert loss == pytest.approx((total / count).item(), rel=ROUNDING)
        torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=ROUNDING)


def test_training_teaches_the_answers(tmp_path: Path, model_dir: Path, write_rows) -> None:
    path, heldout = write_rows("sft", rows(48)), write_rows("heldout", rows(6))
    result = sft(
        CONFIG, model_dir=model_dir, rows=[path], heldout_rows=[heldout], out=tmp_path / "out", seed=1
    )
    assert result.heldout_before.loss == pytest.approx(torch.log(torch.tensor(261.0)).item(), rel=0.05)
    assert result.heldout_after.loss < 0.2 * result.heldout_before.loss
    assert set(result.heldout_after.by_kind) == {"vowel", "consonant"}
    assert result.num_tokens == 4 * 48 * 2
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(25))
    assert [r["step"] for r in records if "heldout/loss" in r] == [0, 4, 8, 12, 16, 20, 24]
    names = {"loss", "grad_norm", "learning_rate", "num_tokens", "elapsed_s"}
    assert all(names <= r.keys() for r in records[:-1])
    again = sft(
        CONFIG, model_dir=tmp_path / "out" / "model", rows=[path], heldout_rows=[heldout], out=tmp_path / "2",
        seed=1,
    )  # fmt: skip
    assert again.heldout_before.loss == result.heldout_after.loss
    _, saved = load_model(tmp_path / "out" / "model")
    assert saved.chat_template == PYLM.jinja
    assert saved.eos_id == saved.special_tokens[PYLM.end]


class KilledError(Exception):
    """Stands for a kill."""


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    tmp_path: Path, model_dir: Path, write_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        "model_dir": model_dir,
        "rows": [write_rows("sft", rows(20))],
        "heldout_rows": [write_rows("heldout", rows(6))],
        "seed": 3,
    }
    whole = sft(CONFIG, out=tmp_path / "whole", **arguments)
    log = Trainer.log

    def die(self: Trainer, step: int, **values: float) -> None:
        if step == 5:
            raise KilledError
        log(self, step, **values)

    monkeypatch.setattr(Trainer, "log", die)
    with pytest.raises(KilledError):
        sft(CONFIG, out=tmp_path / "broken", **arguments)
    monkeypatch.setattr(Trainer, "log", log)
    assert not (tmp_path / "broken" / "model").exists()
    assert sft(CONFIG, out=tmp_path / "broken", **arguments) == whole
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for record in records[0] + records[1]:
        del record["elapsed_s"]
    assert records[0] == records[1]


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, model_dir: Path, write_rows) -> None:
    path = write_rows("sft", rows(20))
    sft(CONFIG, model_dir=model_dir, rows=[path], out=tmp_path / "out", seed=0)
    with pytest.raises(InputError, match="checkpoint of a run with another seed"):
        sft(CONFIG, model_dir=model_dir, rows=[path], out=tmp_path / "out", seed=1)
