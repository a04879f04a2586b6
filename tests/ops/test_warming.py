"""Warming up runs every op that the sizes allow, forward and backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pylm import ops
from pylm.ops import logprob


class Recorder(TorchDispatchMode):
    """Notes the ops of pylm that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pylm":
            self.names.add(func.name().partition("::")[2])
        return func(*args, **(kwargs or {}))


OUTPUT_LAYER = {
    *("linear_logprob", "linear_logprob_backward"),
    *("linear_cross_entropy", "linear_cross_entropy_backward"),
}
NORM = {"rms_norm", "add_rms_norm", "rms_norm_backward"}


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({}, set()),
        ({"dim": 8}, NORM),
        ({"dim": 8, "vocab_size": 5}, NORM | OUTPUT_LAYER),
        ({"hidden_dim": 8}, {"gated", "gated_backward", "gated_packed", "gated_packed_backward"}),
        ({"num_heads": 2, "head_dim": 4}, {"rope"} | NORM),
    ],
)
def test_runs_the_ops_that_the_sizes_allow(
    sizes: dict[str, int], names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "_KEEP_BYTES", {})  # as on a GPU, cross entropy makes its gradients early
    with Recorder() as recorder:
        assert ops.warmup(**sizes, dtype=torch.float32, device="cpu") > 0
    assert recorder.names == names
