"""Started by torchrun from test_parallel.py: train on the ranks there are, in each folder that is named.

    train_on_ranks.py JOB.json

JOB.json holds the configuration, the corpus and a list of [folder, steps after which the run is cut off or
null]. Each rank writes which samples it drew to FOLDER/drawn-RANK.json.
"""

import json
import sys
from pathlib import Path

import torch

from pylm.data.loader import Batch, Loader
from pylm.train import muon
from pylm.train.parallel import World, start_world
from pylm.train.pretrain import PretrainConfig, pretrain


class CutOffError(Exception):
    """Stands for a kill between two steps."""


def train(job: dict[str, object], world: World) -> None:
    """Train in every folder, one after the other."""
    config = PretrainConfig.model_validate(job["config"])
    batch, has_fast_bfloat16 = Loader.batch, muon.has_fast_bfloat16
    # In bfloat16 a number that is rounded the other way is off by 2^-9, which Newton-Schulz magnifies.
    muon.has_fast_bfloat16 = lambda device: False
    for name, stop in job["runs"]:
        drawn: dict[int, list[int]] = {}

        def draw(self: Loader, step: int, stop: int | None = stop, drawn=drawn, **options: int) -> Batch:
            if step == stop:
                raise CutOffError
            result = batch(self, step, **options)
            drawn[step] = result.samples
            return result

        Loader.batch = draw
        out = Path(name)
        try:
            pretrain(
                config, tokens=Path(job["tokens"]), tokenizer_path=Path(job["tokenizer"]), out=out,
                seed=job["seed"], world=world,
            )  # fmt: skip
        except CutOffError:
            pass
        finally:
            Loader.batch = batch
        (out / f"drawn-{world.rank}.json").write_text(json.dumps(drawn))
    muon.has_fast_bfloat16 = has_fast_bfloat16


if __name__ == "__main__":
    torch.set_num_threads(1)
    with start_world() as world:
        train(json.loads(Path(sys.argv[1]).read_text()), world)
