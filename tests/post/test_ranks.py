"""Two ranks train what one rank trains."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pylm.model.hf import load_model
from pylm.post.dpo import DPOConfig, dpo
from pylm.post.rlvr import RLVRConfig, rlvr
from pylm.post.sft import SFTConfig, sft
from pylm.post.verifiers import Verdict
from pylm.train.metrics import read_metrics
from pylm.train.parallel import World

SHARED = {
    "micro_batch_tokens": 64,
    "dtype": "float32",
    "eval_every": 2,
    "checkpoint_every": 2,
    "optimizer": {"learning_rate": 1e-2},
}
SFT = SFTConfig(batch_size=5, num_epochs=2.0, **SHARED)
DPO = DPOConfig(batch_size=3, num_epochs=1.0, **SHARED)
RLVR = RLVRConfig(num_steps=3, prompts_per_step=3, group_size=4, sampling={"max_new_tokens": 2}, **SHARED)
WORLD_SIZE = 2


class EndsSoon:
    """Right is what ends at all."""

    def verify(self, completion: str, ground_truth: str, *, finished: bool) -> Verdict:
        return Verdict(len(completion) % 2 == 0, finished, None)


def train_all(world: World, model_dir: Path, folder: Path) -> None:
    out = folder / f"{world.size}-ranks"
    options = {"model_dir": model_dir, "seed": 0, "world": world}
    for name, run in (("sft", sft), ("dpo", dpo), ("rlvr", rlvr)):
        rows = [folder / f"{name}.jsonl"]
        extra = {"verifiers": {"toy": EndsSoon()}} if name == "rlvr" else {}
        config = {"sft": SFT, "dpo": DPO, "rlvr": RLVR}[name]
        run(config, rows=rows, heldout_rows=rows, out=out / name, **options, **extra)


def join_and_train(rank: int, model_dir: Path, folder: Path) -> None:
    """Body of one rank."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    train_all(World(rank=rank, size=WORLD_SIZE), model_dir, folder)
    dist.destroy_process_group()


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_two_ranks_train_what_one_rank_trains(tmp_path: Path, model_dir: Path) -> None:
    questions = [[{"role": "user", "content": "q" * (1 + i % 5)}] for i in range(7)]
    write(tmp_path / "sft.jsonl", [
        {"messages": [*q, {"role": "assistant", "content": "a" * (1 + i % 3)}], "kind": "k"}
        for i, q in enumerate(questions)
    ])  # fmt: skip
    write(tmp_path / "dpo.jsonl", [
        {"prompt": q, "chosen": "a" * (1 + i % 3), "rejected": "b", "kind": "k"}
        for i, q in enumerate(questions)
    ])  # fmt: skip
    write(tmp_path / "rlvr.jsonl", [{"messages": q, "ground_truth": "", "dataset": "toy"} for q in questions])
    mp.start_processes(join_and_train, (model_dir, tmp_path), nprocs=WORLD_SIZE, start_method="spawn")
    train_all(World(), model_dir, tmp_path)
    for name in ("sft", "dpo"):
        one, two = (read_metrics(tmp_path / f"{size}-ranks" / name / "metrics.jsonl") for size in (1, 2))
        assert len(one) == len(two)
        for record, other in zip(one, two, strict=True):
            assert record.keys() == other.keys()
            for key in record.keys() - {"elapsed_s"}:
                assert other[key] == pytest.approx(record[key], rel=1e-3, abs=1e-4), (
                    name,
                    record["step"],
                    key,
                )
        weights = [load_model(tmp_path / f"{size}-ranks" / name / "model")[0] for size in (1, 2)]
        for x, y in zip(*(model.parameters() for model in weights), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-3)
    # Samples come from a stream of each rank's own; what is measured before training is the same.
    one, two = (read_metrics(tmp_path / f"{size}-ranks" / "rlvr" / "metrics.jsonl") for size in (1, 2))
    assert one[0]["heldout/accuracy"] == two[0]["heldout/accuracy"]
    assert [r["step"] for r in two] == [0, 1, 2, 3]
    assert all(r["logps/mismatch"] < 1e-4 for r in two[:-1])
