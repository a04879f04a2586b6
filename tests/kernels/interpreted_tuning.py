"""Configurations that are tuned give the same bits as the checked-in one, by Triton's interpreter.

Collected by test_interpreted.py.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pylm import ops
from pylm.kernels import (
    _autotune,
    _grouped,
    linear_cross_entropy,
    linear_logprob,
    moe_experts,
    rms_norm,
    rope,
    swiglu,
)

Results = tuple[Tensor, ...]
NUM_OTHERS = 6


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A number of the configuration that is the fastest, of each kernel."""
    wanted = [0]

    def measure(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
        return {name: 0.5 if i == wanted[0] % len(calls) else 1.0 for i, name in enumerate(calls)}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_autotune, "measure", measure)
    small = _grouped.SMALL_TILES
    monkeypatch.setattr(_grouped, "TILES", {"small": small, "walking": small._replace(programs=1)})
    _autotune.forget()
    yield wanted
    _autotune.forget()


def _calls() -> dict[str, Callable[[], Results]]:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, up, weight, rstd = random(37, 1100), random(37, 1100), random(1100), random(37).abs()
    q, k, (cos, sin) = random(2, 9, 3, 20), random(2, 9, 1, 20), ops.rope_cache(9, 16)
    hidden, head, targets, row = random(5, 12), random(300, 12), torch.arange(5), random(5)
    grads = random(5, 12), random(300, 12)
    logits, experts_x = random(70, 4), random(70, 36)
    routing = ops.moe_route(logits, 2)
    given = (
        *(experts_x, routing.weight, routing.order, routing.offsets),
        *(random(4, 40, 36), random(4, 36, 20)),
    )
    form = "silu", 1.702, 2.0, 1.0
    kept = random(140, 40)
    return {
        "swiglu": lambda: (*swiglu.forward(x, up, *form, False), *swiglu.backward(up, x, up, x, *form)),
        "interleaved": lambda: swiglu.packed_forward(x, True, *form, False),
        "rope": lambda: rope.rotate(q, k, cos, sin, None, True, False),
        "rms_norm": lambda: rms_norm.backward(up, up, x, weight, rstd, 0.0, True),
        "linear_logprob": lambda: linear_logprob.backward(
            row, row, None, None, hidden, head, targets, None, row, row, row, torch.empty(0), 1.0, None, -100,
            [True, True, False],
        ),
        "linear_cross_entropy": lambda: linear_cross_entropy.backward(
            torch.tensor(0.3), *grads, hidden, head
        ),
        "moe_experts": lambda: (
            *moe_experts.forward(*given, True),
            *moe_experts.backward(experts_x, *given, kept, [True] * 4),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_calls()))
def test_the_same_bits_in_every_configuration(name: str, names: list[int]) -> None:
    call = _calls()[name]
    expected = call()
    chosen = set()
    for number in range(1, NUM_OTHERS + 1):
        names[0] = number
        _autotune.forget()
        for path in Path(str(_autotune.folder())).glob("*"):
            path.unlink()
        with ops.autotune():
            for value, other in zip(call(), expected, strict=True):
                assert torch.equal(value, other)
        chosen |= {(choice.about["kernel"], choice.name) for choice in _autotune.choices()}
    assert len(chosen) >= 4
