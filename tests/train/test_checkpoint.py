"""Checkpoints: exact, whole or not there, and clear about what cannot be resumed."""

import json
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pylm.errors import InputError
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.train.checkpoint import Checkpointer, checkpoint_paths
from pylm.train.optimizer import OptimizerConfig, Optimizers, build_optimizer

SHAPE = {"vocab_size": 19, "dim": 16, "num_layers": 1, "num_heads": 2, "max_seq_len": 8}


def make(folder: Path, *, keep: int = 1, kind: str = "muon", seed: int = 0, **shape: object) -> Checkpointer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig.model_validate(SHAPE | shape))
    optimizer = build_optimizer(model, OptimizerConfig.model_validate({"kind": kind}))
    return Checkpointer(folder, model=model, optimizer=optimizer, keep=keep)


def train(checkpointer: Checkpointer, steps: int) -> None:
    model, optimizer = checkpointer.model, checkpointer.optimizer
    for _ in range(steps):
        ids_BT = torch.randint(19, (2, 6))  # torch's generator is part of the state
        (model(ids_BT) @ model.output_weight.T).logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(optimizer: Optimizers) -> list[torch.Tensor]:
    return [
        value
        for each in optimizer.optimizers
        for group in each.param_groups
        for parameter in group["params"]
        for _, value in sorted(each.state[parameter].items())
    ]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_loop_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    whole = make(tmp_path, kind=kind)
    train(whole, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is printed over a live display
        assert whole.save(3, numbers=[0.1, None], name="x") == tmp_path / "step-00000003"
        resumed = make(tmp_path, kind=kind, seed=1)
        assert resumed.resume() == {"step": 3, "numbers": [0.1, None], "name": "x"}
    resumed_state = torch.get_rng_state()
    train(resumed, 2)
    torch.set_rng_state(resumed_state)
    train(whole, 2)
    for x, y in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(x, y)
    states = state_of(whole.optimizer), state_of(resumed.optimizer)
    assert len(states[0]) > len(list(whole.model.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))


def test_the_generator_is_restored(tmp_path: Path) -> None:
    checkpointer = make(tmp_path)
    train(checkpointer, 1)
    checkpointer.save(1)
    expected = torch.rand(3)
    torch.manual_seed(77)
    checkpointer.resume()
    assert torch.equal(torch.rand(3), expected)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert make(tmp_path / "none").resume() is None
    (tmp_path / "some" / "step-00000007").mkdir(parents=True)  # no state.json: not a checkpoint
    assert make(tmp_path / "some").resume() is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    checkpointer = make(tmp_path, keep=keep)
    for step in (2, 4, 6, 6):
        checkpointer.save(step)
    expected = [f"step-{step:08d}" for step in (4, 6)[-keep:]]
    assert sorted(p.name for p in tmp_path.iterdir()) == expected
    assert [p.name for p in checkpoint_paths(tmp_path)] == expected
    state = make(tmp_path).resume()
    assert state is not None
    assert state["step"] == 6


def test_what_a_killed_save_left_is_not_read_and_removed(tmp_path: Path) -> None:
    checkpointer = make(tmp_path)
    checkpointer.save(5)
    for name in (".step-00000010.tmp", ".step-00000003.old.tmp"):
        shutil.copytree(tmp_path / "step-00000005", tmp_path / name)
    (tmp_path / ".step-00000010.tmp" / "state.json").unlink()
    state = make(tmp_path).resume()
    assert state is not None
    assert state["step"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    (tmp_path / ".step-00000015.tmp").mkdir()
    checkpointer.save(20)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000020"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"dim": 24}, r"attention\.k_norm\.weight has shape \[8\] there and \[12\] in the recipe"),
        ({"vocab_size": 20}, r"embedding\.weight has shape \[19, 16\] there and \[20, 16\]"),
        ({"num_layers": 2}, r"blocks\.1\.attention\.k_norm\.weight has shape none there"),
        ({"qk_norm": False}, r"blocks\.0\.attention\.k_norm\.weight has shape \[8\] there and none"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, shape: dict[str, object], message: str
) -> None:
    make(tmp_path).save(1)
    other = make(tmp_path, **shape)
    before = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(InputError, match=message):
        other.resume()
    assert all(torch.equal(x, y) for x, y in zip(before, other.model.parameters(), strict=True))


def cut(name: str, size: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (file,) = path.glob(name)
        file.write_bytes(file.read_bytes()[:size])

    return damage


def edit_state(text: str) -> Callable[[Path], None]:
    return lambda path: (path / "state.json").write_text(text)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "tensors cut off": cut("*.distcp", 4000),
    "no bytes of tensors": cut("*.distcp", 0),
    "no tensors": lambda path: [p.unlink() for p in path.glob("*.distcp")],
    "metadata cut off": cut(".metadata", 50),
    "no metadata": lambda path: (path / ".metadata").unlink(),
    "state cut off": cut("state.json", 10),
    "state not UTF-8": lambda path: (path / "state.json").write_bytes(b'"\xff"'),
    "a list": edit_state("[]"),
    "a number": edit_state("3"),
    "no shapes": edit_state(json.dumps({"step": 3})),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    checkpointer = make(tmp_path)
    train(checkpointer, 1)
    DAMAGES[name](checkpointer.save(3))
    message = (
        "step-00000003: the checkpoint cannot be read .* remove this folder to go on from the one before"
    )
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path).resume()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_an_os_error_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpointer = make(tmp_path)
    train(checkpointer, 1)
    checkpointer.save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpointer.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert make(tmp_path).resume() == {"step": 1}
