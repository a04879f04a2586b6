"""What importing pylm.ops takes: torch and little else, with triton absent, and without a GPU."""

import json
import os
import subprocess
import sys

# Finders are asked in turn, so the first one can say that there is no such module.
WITHOUT_TRITON = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""
# Of each op the forward and the backward pass; patch needs no transformers to be imported.
USE = """
import torch
from pylm import ops

x = torch.randn(4, 8, requires_grad=True)
q = torch.randn(1, 4, 2, 8, requires_grad=True)
targets, weights = torch.arange(4), (torch.randn(3, 8, 8), torch.randn(3, 8, 4))
y = ops.geglu(ops.swiglu(ops.rms_norm(x), x), x) + ops.swiglu_packed(torch.cat((x, x), -1))
loss = ops.linear_cross_entropy(y, x, targets) - ops.linear_logprob(y, x, targets).logprob.sum()
loss = loss + sum(z.sum() for z in ops.rope(q, q, *ops.rope_cache(4, 8)))
loss = loss + ops.moe_experts(y, ops.moe_route(y[:, :3], 2), *weights).sum()
loss.backward()
assert x.grad.isfinite().all() and q.grad.isfinite().all()
assert str(ops.patch(torch.nn.Sequential(torch.nn.Linear(2, 2))))
"""


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_runs_without_triton_and_without_a_gpu() -> None:
    _run(WITHOUT_TRITON + USE)


def test_kernels_without_triton_are_an_import_error() -> None:
    # What an op on a GPU imports the first time.
    code = "try:\n    import pylm.kernels.rms_norm\nexcept ImportError as error:\n    print(error)"
    assert _run(WITHOUT_TRITON + code).split() == ["No", "module", "named", "'triton'"]


def test_importing_loads_pylm_and_nothing_else() -> None:
    code = (
        "import json, sys, torch\nbefore = set(sys.modules)\nimport pylm.ops\n"
        "print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))"
    )
    added, loaded = json.loads(_run(code))
    others = [name for name in added if name.partition(".")[0] != "pylm"]
    assert len(others) <= 5, f"modules of other packages come with pylm.ops: {others}"
    assert {name.split(".")[1] for name in added if "." in name} <= {"errors", "ops"}
    heavy = {"transformers", "triton", "pandas", "pyarrow", "scipy", "pydantic", "matplotlib"}
    assert not heavy & set(loaded)
