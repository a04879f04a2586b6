"""One rank and two: the same rows, the same losses, and checkpoints that go from one to the other."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pylm.model.hf import load_model
from pylm.train import parallel
from pylm.train.metrics import read_metrics
from pylm.train.parallel import World, all_reduce_sum, autocast, gather_state_dict, shard_model, start_world

SCRIPT = Path(__file__).with_name("train_on_ranks.py")
NUM_STEPS, CUT_OFF = 12, 8
CONFIG = {
    "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "max_seq_len": 32},
    "num_steps": NUM_STEPS,
    "seq_len": 24,
    "batch_size": 4,
    "micro_batch_size": 2,
    "optimizer": {"kind": "muon", "learning_rate": 3e-3},  # Muon for the matrices, AdamW for the rest
    "dtype": "float32",
    "checkpoint_every": 4,
}
# float32 sums in another order, through 12 updates of which Adam's first ones magnify small gradients.
LOSS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_on_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus, script: ModuleType) -> Path:
    """Train on one rank, on two, and on one after the other, both ways."""
    folder = tmp_path_factory.mktemp("ranks")

    def job(*runs: tuple[str, int | None]) -> dict[str, object]:
        return {
            "config": CONFIG,
            "tokens": str(corpus.tokens),
            "tokenizer": str(corpus.tokenizer),
            "seed": 1,
            "runs": [(str(folder / name), stop) for name, stop in runs],
        }

    script.train(job(("1", None), ("1-2", CUT_OFF)), World())
    (folder / "job.json").write_text(json.dumps(job(("2", None), ("1-2", None), ("2-1", CUT_OFF))))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(folder / "job.json")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    script.train(job(("2-1", None)), World())
    return folder


def drawn(out: Path, rank: int) -> dict[int, list[int]]:
    return {int(k): v for k, v in json.loads((out / f"drawn-{rank}.json").read_text()).items()}


@pytest.mark.parametrize("name", ["2", "1-2", "2-1"])
def test_the_number_of_ranks_changes_nothing_but_rounding(folder: Path, name: str) -> None:
    one, other = folder / "1", folder / name
    records = [read_metrics(out / "metrics.jsonl") for out in (one, other)]
    assert [len(r) for r in records] == [NUM_STEPS] * 2
    for expected, got in zip(*records, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=LOSS_TOLERANCE)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=50 * LOSS_TOLERANCE)
        for key in ("step", "learning_rate", "tokens", "stage", "spike", "skipped"):
            assert got[key] == expected[key]
    weights = [load_model(out / "model")[0].state_dict() for out in (one, other)]
    for tensor in weights[0]:
        torch.testing.assert_close(weights[1][tensor], weights[0][tensor], rtol=1e-3, atol=5e-4)


def test_two_ranks_draw_the_rows_of_one(folder: Path) -> None:
    whole = drawn(folder / "1", 0)
    parts = [drawn(folder / "2", rank) for rank in (0, 1)]
    assert sorted(whole) == list(range(NUM_STEPS))
    assert {step: parts[0][step] + parts[1][step] for step in parts[0]} == whole
    # A resumed run draws its first batch to check it, then goes on at the checkpoint.
    assert sorted(drawn(folder / "1-2", 1)) == [0, *range(CUT_OFF, NUM_STEPS)]


def test_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with start_world() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not World(rank=1, size=2).is_main
    model = torch.nn.Linear(3, 2)
    assert shard_model(model, World()) is model
    weights = gather_state_dict(model)
    assert weights.keys() == {"weight", "bias"}
    assert torch.equal(weights["weight"], model.weight)
    assert all_reduce_sum(torch.tensor([1.5])).tolist() == [1.5]


def test_bfloat16_is_used_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for bfloat16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast(World(), bfloat16=bfloat16):
            assert model(x).dtype == expected
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert parallel.has_fast_bfloat16(torch.device("cpu")) == (avx or amx)
