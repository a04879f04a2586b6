"""The kernels on the CPU, by Triton's interpreter: the tests of the ops again, and the kernels' own edges."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Left out: bfloat16, whose rounding the interpreter cuts off, as "narrow" allows for; errors, which a GPU
# gives as NaN; what is kept for the CPU's backward pass; finite differences of rope, 5 minutes of one program
# a position, and some that others cover; thousands of programs; what is not about kernels.
ROWS = (
    "not (low_precision or bfloat16 or errors or dpo or ipo or follows_torch or outputs1 or outputs2"
    " or outputs0-None or outputs3-2 or kto or robust or preference or transformers or kept-sigmoid"
    " or thousands or 257-3-127-none or 257-3-127-all)"
)
REST = (
    "not (bfloat16 or errors or cache or gradcheck or gated-cpu or packed-cpu or logprob-cpu or kept-cpu"
    " or triton)"
)
MOE = (
    "not (bfloat16 or errors or gradcheck or balances or transformers or choices or keeps or cpu"
    " or thousands)"
)
RUNS = {
    "rows": (ROWS, ["ops/test_norm.py", "ops/test_gated.py"]),
    "logits": (ROWS, ["ops/test_logprob.py", "ops/test_losses.py"]),
    "offsets": ("test", ["kernels/interpreted_offsets.py"]),
    "rest": (
        REST,
        [
            "kernels/interpreted_edges.py",
            "kernels/interpreted_tuning.py",
            "ops/test_rotary.py",
            "ops/test_registration.py",
        ],
    ),
    "moe": (MOE, ["ops/test_moe.py"]),
    "narrow": ("test", ["ops/test_narrow_dtypes.py"]),
}
OF_ROWS = {"add_rms_norm", "rms_norm_backward", "gated_backward", "gated_packed_backward"}
OF_LOGITS = {"linear_logprob_backward", "linear_cross_entropy_kept_backward"}
MIXTURE = {"moe_route", "moe_route_backward", "moe_experts", "moe_experts_backward"}
LAUNCHERS = {
    "rows": OF_ROWS,
    "logits": {"linear_cross_entropy_backward", *OF_LOGITS},
    "offsets": set(),  # calls them itself
    "rest": {"rope", *OF_ROWS, *OF_LOGITS, *MIXTURE},
    "moe": MIXTURE,
    "narrow": {"rope", *OF_ROWS, *OF_LOGITS, *MIXTURE},
}


@pytest.mark.parametrize("name", list(RUNS))
def test_kernels_pass_the_tests_of_the_ops(name: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed (there is none for macOS)")
    expression, files = RUNS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "oracles.interpreted", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", expression, *(str(TESTS / file) for file in files)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, launched = done.stdout.partition("launchers that ran: ")
    assert LAUNCHERS[name] <= set(launched.partition("\n")[0].split()), "the kernels were passed by"
