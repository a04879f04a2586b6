"""The loop: what it computes, that it learns, and that nothing but the clock shows where it was killed."""

import contextlib
import gc
import math
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from pydantic import ValidationError

from pylm.data.loader import Batch, Loader
from pylm.data.mixture import MixtureConfig
from pylm.data.shards import open_shards
from pylm.errors import InputError
from pylm.model.hf import load_model
from pylm.model.transformer import Transformer
from pylm.train import pretrain as pretrain_module
from pylm.train.checkpoint import Checkpointer
from pylm.train.metrics import Metrics, read_metrics
from pylm.train.parallel import World
from pylm.train.pretrain import PretrainConfig, accumulate_gradients, pretrain

CONFIG = PretrainConfig.model_validate(
    {
        "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "max_seq_len": 32},
        "mixture": {"stages": [{"until": 0.5, "weights": {"web": 3, "code": 1}}, {"weights": {"code": 1}}]},
        "num_steps": 40,
        "seq_len": 24,
        "batch_size": 4,
        "optimizer": {"kind": "muon", "learning_rate": 1e-2},
        "schedule": {"warmup_fraction": 0.1, "anneal_fraction": 0.2},
        "dtype": "float32",
        "checkpoint_every": 5,
    }
)


def arguments(corpus) -> dict[str, object]:
    return {"tokens": corpus.tokens, "tokenizer_path": corpus.tokenizer, "seed": 3}


def losses(out: Path) -> list[dict[str, object]]:
    """All that is logged but the clock."""
    return [{k: v for k, v in r.items() if k != "elapsed_s"} for r in read_metrics(out / "metrics.jsonl")]


def gradient_of(model: Transformer) -> torch.Tensor:
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return gradient


@pytest.fixture
def batch(corpus) -> Batch:
    """Rows with several documents, rows with one, and places that are not trained."""
    shards = open_shards(corpus.tokens)
    loader = Loader(shards, MixtureConfig(), seq_len=24, batch_size=6, num_steps=20, seed=0)
    for step in range(20):
        batch = loader.batch(step)
        borders = [] if batch.documents_BT is None else batch.documents_BT.max(axis=1).tolist()
        if {0, 1, 2} <= set(borders):
            batch.targets_BT[2, 19:] = -100
            return batch
    raise AssertionError("no such batch")


def make_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG.model.model_copy(update={"vocab_size": 261, "init_std": 0.2}))


def test_loss_and_gradient_are_those_of_each_document_alone(batch: Batch) -> None:
    model = make_model()
    config = CONFIG.model_copy(update={"z_loss": 0.01})
    loss = accumulate_gradients(model, batch, config, World(), bfloat16=False)
    gradient = gradient_of(model)
    model.double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, targets, documents in zip(batch.ids_BT, batch.targets_BT, batch.documents_BT, strict=True):
        for number in range(documents.max() + 1):
            ids_T = torch.from_numpy(ids[documents == number])
            targets_T = torch.from_numpy(targets[documents == number])
            logits_TV = model(ids_T[None])[0] @ model.output_weight.T
            trained_T = targets_T != -100
            picked_T = torch.log_softmax(logits_TV, -1).gather(1, targets_T.clamp(min=0)[:, None])[:, 0]
            total = total - picked_T[trained_T].sum()
            total = total + 0.01 * logits_TV.logsumexp(-1)[trained_T].square().sum()
            count += int(trained_T.sum())
    assert count < batch.ids_BT.size
    (total / count).backward()
    assert loss == pytest.approx((total / count).item(), rel=1e-5)
    expected = gradient_of(model)
    torch.testing.assert_close(
        gradient.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("size", [1, 2, 4, 5, 100])
def test_micro_batches_change_nothing_but_rounding(batch: Batch, size: int) -> None:
    model = make_model()
    whole = accumulate_gradients(model, batch, CONFIG, World(), bfloat16=False)
    expected = gradient_of(model)
    config = CONFIG.model_copy(update={"micro_batch_size": size})
    assert accumulate_gradients(model, batch, config, World(), bfloat16=False) == pytest.approx(
        whole, rel=1e-6
    )
    gradient = gradient_of(model)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_document_mask_can_be_left_out(batch: Batch) -> None:
    model = make_model()
    config = CONFIG.model_copy(update={"document_mask": False, "z_loss": 0.0})
    loss = accumulate_gradients(model, batch, config, World(), bfloat16=False)
    logits_BTV = model(torch.from_numpy(batch.ids_BT)) @ model.output_weight.T
    expected = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten()
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_pattern_is_learned(tmp_path: Path, corpus) -> None:
    result = pretrain(CONFIG, out=tmp_path, **arguments(corpus))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(40))
    assert records[0]["loss"] == pytest.approx(math.log(261), abs=0.2)
    assert result.final_loss == records[-1]["loss"] < 2.5
    assert [r["tokens"] for r in records] == [96 * (i + 1) for i in range(40)]
    assert [r["stage"] for r in records] == [0] * 20 + [1] * 20
    rates = [r["learning_rate"] for r in records]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[-1] == pytest.approx(1e-2 * 0.1 / 8)
    assert all(r["grad_norm"] > 0 and not r["skipped"] for r in records)
    elapsed = [r["elapsed_s"] for r in records]
    assert elapsed == sorted(elapsed)
    assert (result.num_tokens, result.dtype, result.num_spikes) == (40 * 96, "float32", 0)
    model, tokenizer = load_model(tmp_path / "model")
    assert result.num_parameters == model.num_params()
    assert model.config.vocab_size == tokenizer.vocab_size == 261
    assert (tokenizer.chat_template, tokenizer.eos_id) == (None, tokenizer.special_tokens["<|endoftext|>"])
    assert gc.isenabled()


def run(config: PretrainConfig, corpus, out: Path, kill_after: int | None, counted: Path | None) -> None:
    """Body of a process that is killed after so many function calls, or counts them."""
    torch.set_num_threads(1)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    pretrain(config, out=out, **arguments(corpus))
    sys.setprofile(None)
    if counted is not None:
        counted.write_text(str(calls))


def test_kills_at_any_moment_leave_no_trace(tmp_path: Path, corpus) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pylm.train.pretrain"])

    def start(out: Path, kill_after: int | None = None) -> int | None:
        process = context.Process(target=run, args=(CONFIG, corpus, out, kill_after, tmp_path / "calls"))
        process.start()
        process.join()
        return process.exitcode

    assert start(tmp_path / "whole") == 0
    num_calls = int((tmp_path / "calls").read_text())
    rng = random.Random(0)
    for number in range(5):  # on average past a checkpoint or two each; some in the midst of saving one
        code = start(tmp_path / "broken", kill_after=rng.randrange(1, num_calls // 3))
        if code == 0:
            assert number >= 3, "a third of the calls may not train the whole"
            break
        assert code == -signal.SIGKILL
    assert start(tmp_path / "broken") == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    files = [
        sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*"))
        for name in ("whole", "broken")
    ]
    assert files[0] == files[1]


def test_an_interrupt_ends_cleanly_and_the_run_goes_on(
    tmp_path: Path, corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(CONFIG, out=tmp_path / "whole", **arguments(corpus))
    for place, name in ((Metrics, "write"), (Loader, "batch"), (Checkpointer, "save")):
        original, left = getattr(place, name), [12 if name != "save" else 1]

        def interrupt(self, *args, original=original, left=left, **options):
            left[0] -= 1
            if left[0] < 0:
                signal.raise_signal(signal.SIGINT)
            return original(self, *args, **options)

        monkeypatch.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, out=tmp_path / "broken", **arguments(corpus))
        monkeypatch.setattr(place, name, original)
        assert gc.isenabled()
    assert pretrain(CONFIG, out=tmp_path / "broken", **arguments(corpus)) == whole
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_what_is_counted_over_the_run_survives_the_checkpoint(tmp_path: Path, corpus) -> None:
    config = PretrainConfig.model_validate(
        CONFIG.model_dump()
        | {"num_steps": 200, "seq_len": 6, "batch_size": 1, "checkpoint_every": 199}
        | {"spikes": {"min_history": 8, "sigma": 2.5}}
    )
    whole = pretrain(config, out=tmp_path, **arguments(corpus))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert whole.num_spikes == sum(r["spike"] for r in records) > 0
    assert whole.spike_score == whole.num_spikes / 200
    assert whole.final_loss == pytest.approx((records[-1]["loss"] + records[-2]["loss"]) / 2)  # of 2 steps
    before = losses(tmp_path)
    assert pretrain(config, out=tmp_path, **arguments(corpus)) == whole  # from the checkpoint of step 199
    assert losses(tmp_path) == before


def test_the_clock_goes_on_where_the_checkpoint_was(
    tmp_path: Path, corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(pretrain_module.time, "monotonic", lambda: now[0])
    batch = Loader.batch

    def tick(self: Loader, step: int, **options: int) -> Batch:
        now[0] += 2.0
        if step == 13 and now[0] < 100:
            raise KeyboardInterrupt
        return batch(self, step, **options)

    monkeypatch.setattr(Loader, "batch", tick)
    shown: dict[int, int] = {}
    monkeypatch.setattr(
        pretrain_module.Progress,
        "update",
        lambda self, step, **values: shown.update({step: values["tokens_per_s"]}),
    )
    with contextlib.suppress(KeyboardInterrupt):
        pretrain(CONFIG, out=tmp_path, **arguments(corpus))
    now[0] = 1e6  # a night later
    pretrain(CONFIG, out=tmp_path, **arguments(corpus))
    assert [r["elapsed_s"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        2.0 * i for i in range(1, 41)
    ]
    assert set(shown.values()) == {48}


def break_loss(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    accumulate = pretrain_module.accumulate_gradients
    calls = iter(range(10**6))

    def broken(model: Transformer, *args: object, **options: object) -> float:
        loss = accumulate(model, *args, **options)
        if next(calls) in steps:
            next(model.parameters()).grad[0, 0] = math.nan
            return math.nan
        return loss

    monkeypatch.setattr(pretrain_module, "accumulate_gradients", broken)


def test_a_loss_that_is_not_a_number_is_skipped(
    tmp_path: Path, corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, range(36, 40))
    result = pretrain(CONFIG, out=tmp_path, **arguments(corpus))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if r["skipped"]] == [36, 37, 38, 39]
    assert [r["loss"] for r in records[36:]] == [None] * 4
    assert result.num_spikes == 4
    assert result.final_loss == records[35]["loss"]
    assert all(p.isfinite().all() for p in load_model(tmp_path / "model")[0].parameters())


def test_a_run_that_is_lost_is_given_up(tmp_path: Path, corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss(monkeypatch, range(7, 1000))
    config = CONFIG.model_copy(update={"spikes": CONFIG.spikes.model_copy(update={"max_not_finite": 9})})
    with pytest.raises(InputError, match="no finite loss and gradient for 9 steps, up to step 15"):
        pretrain(config, out=tmp_path, **arguments(corpus))
    assert gc.isenabled()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"z_loss": 0.5}, "config"),
        ({"optimizer": CONFIG.optimizer.model_copy(update={"beta2": 0.9})}, "config"),
        ({"seed": 4}, "seed"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    tmp_path: Path, corpus, changed: dict[str, object], named: str
) -> None:
    short = CONFIG.model_copy(update={"num_steps": 6})
    pretrain(short, out=tmp_path, **arguments(corpus))
    seed = {"seed": changed.pop("seed")} if "seed" in changed else {}
    other = short.model_copy(update=changed)
    with pytest.raises(InputError, match=f"checkpoint of a run with another {named}; restore it or remove"):
        pretrain(other, out=tmp_path, **{**arguments(corpus), **seed})
    # What changes speed only may change.
    faster = short.model_copy(update={"micro_batch_size": 1, "checkpoint_every": 3})
    pretrain(faster, out=tmp_path, **arguments(corpus))


def test_bad_arguments(tmp_path: Path, corpus) -> None:
    with pytest.raises(ValidationError, match=r"seq_len must be at most model\.max_seq_len, got 33 and 32"):
        PretrainConfig.model_validate(CONFIG.model_dump() | {"seq_len": 33})
    small = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"vocab_size": 200})})
    with pytest.raises(InputError, match=r"pretrain\.model\.vocab_size is 200, but the tokenizer has 261"):
        pretrain(small, out=tmp_path, **arguments(corpus))
    with pytest.raises(InputError, match="batch_size=4 cannot be shared evenly by 3 ranks"):
        pretrain(CONFIG, out=tmp_path, world=World(rank=0, size=3), **arguments(corpus))
    with pytest.raises(InputError):
        pretrain(CONFIG, out=tmp_path, **{**arguments(corpus), "tokens": tmp_path / "none"})
