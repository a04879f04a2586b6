"""A pretraining step on a GPU: pylm's ops, the same model with plain torch, each also under torch.compile.

    python bench/gpu_train.py --out FOLDER [--seconds N] [--dry-run]

The step is the one of `pylm pretrain` on one GPU: float32 weights, bfloat16 autocast, z-loss, clipping, fused
AdamW. The variants start from the same weights and must agree on the loss of the first steps before any is
timed. Model FLOPs utilisation (MFU) counts 6 FLOPs a weight and token and causal attention, over the dense
bfloat16 peak of the GPU's data sheet. What fails is a line of the table; the others go on, and the program
ends with 1.
"""

import argparse
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_clock
import torch
import torch.nn.functional as F
from gpu_common import (
    bf16_peak,
    describe,
    describe_error,
    find_device,
    is_lost,
    measure_ceilings,
    median_ms,
    write_results,
)
from torch import Tensor

from pylm import ops
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.train.optimizer import OptimizerConfig, build_optimizer

CHECKED_STEPS = 3
# Relative, of the loss: bfloat16 matrix products in another order, over three updates.
TOLERANCE = 5e-3
Z_LOSS = 1e-4
# Of the whole time, at least a quarter and so many seconds: 22 layers are compiled, which cannot be stopped.
COMPILE_SHARE, COMPILE_SECONDS = 0.25, 90.0


def torch_rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    # In one dtype, without which torch leaves its fused kernel.
    return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)


def torch_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def torch_swiglu_packed(gate_up: Tensor) -> Tensor:
    return torch_swiglu(*gate_up.chunk(2, -1))


def torch_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, position_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    time = q.shape[1]
    cos, sin = (
        table[:time, None] if position_ids is None else table[position_ids, None] for table in (cos, sin)
    )

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    return rotate(q), rotate(k)


def torch_loss(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_BTD, weight_VD).flatten(0, 1).float()
    loss = F.cross_entropy(logits_NV, targets_BT.flatten())
    return loss + Z_LOSS * torch.logsumexp(logits_NV, -1).square().mean()


def pylm_loss(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    return ops.linear_cross_entropy(hidden_BTD, weight_VD, targets_BT, z_loss=Z_LOSS)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Put torch's own operations in the place of pylm's in the model."""
    replacements = {
        "rms_norm": torch_rms_norm,
        "swiglu": torch_swiglu,
        "swiglu_packed": torch_swiglu_packed,
        "rope": torch_rope,
    }
    with mock.patch.object(
        ops.RMSNorm, "forward", lambda self, x: torch_rms_norm(x, self.weight, eps=self.eps)
    ):
        for module in ("transformer", "attention"):
            for name, function in replacements.items():
                target = f"pylm.model.{module}.{name}"
                patch = mock.patch(target, function)
                try:
                    patch.start()
                except AttributeError:
                    continue  # this module does not use it
        try:
            yield
        finally:
            mock.patch.stopall()


def model_config(*, dry_run: bool) -> ModelConfig:
    """Return a model of 0.71 B parameters, a tiny one for a dry run."""
    if dry_run:
        return ModelConfig(vocab_size=97, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, max_seq_len=16)
    return ModelConfig(
        vocab_size=50304,
        dim=1536,
        num_layers=22,
        num_heads=12,
        num_kv_heads=4,
        hidden_dim=4096,
        max_seq_len=4096,
    )


def build_step(
    config: ModelConfig, loss_of: Callable[..., Tensor], batch: Tensor, *, compiled: bool
) -> tuple[Callable[[], Tensor], Transformer]:
    """Return a function that makes one optimizer step on the batch and gives its loss, and the model."""
    torch.manual_seed(0)
    with torch.device(batch.device):  # on a CPU the random numbers alone take a minute
        model = Transformer(config)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-4))
    device = batch.device.type

    def compute(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return loss_of(model(ids_BT), model.output_weight, targets_BT)

    run = torch.compile(compute, dynamic=False) if compiled else compute
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> Tensor:
        loss = run(inputs, targets)
        loss.backward()
        optimizer.clip_gradients()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, model


def measure(
    row: dict[str, Any], config: ModelConfig, batch: Tensor, expected: list[float] | None, rounds: int
) -> None:
    """Check the losses of a variant's first steps, then time its step; fill in its row of the results."""
    device, name = batch.device, row["variant"]
    loss_of = torch_loss if name.startswith("torch") else pylm_loss
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step, model = build_step(config, loss_of, batch, compiled=name.endswith("compiled"))
    row["losses"] = losses = [float(step()) for _ in range(CHECKED_STEPS)]
    for ours, theirs in zip(losses, expected or losses, strict=True):
        if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
            row["note"] = f"losses {losses} and plain torch's {expected} differ: not timed"
            return
    step_ms, row["step_iqr_ms"] = median_ms(step, device, rounds=rounds)
    tokens = batch.shape[0] * (batch.shape[1] - 1)
    row["step_ms"], row["tokens_per_s"] = step_ms, 1e3 * tokens / step_ms
    row["flops_per_s"] = row["tokens_per_s"] * model.flops_per_token(batch.shape[1] - 1)
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)


def tabulate(rows: list[dict[str, Any]], peak: float | None, matmul: float) -> list[list[str]]:
    """Format the rows for the Markdown table."""
    table = [["variant", "step ms", "tokens/s", "speed / torch", "MFU", "of measured matmul", "peak GiB"]]
    base = next((row.get("tokens_per_s") for row in rows if row["variant"] == "torch"), None)
    for row in rows:
        if "note" in row:
            table.append([row["variant"], row["note"], "", "", "", "", ""])
            continue
        table.append(
            [
                row["variant"],
                f"{row['step_ms']:.1f} ± {row['step_iqr_ms'] / 2:.1f}",
                f"{row['tokens_per_s']:.0f}",
                "" if base is None else f"{row['tokens_per_s'] / base:.2f}",
                "no peak known" if peak is None else f"{100 * row['flops_per_s'] / peak:.1f} %",
                f"{100 * row['flops_per_s'] / matmul:.1f} %",
                f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "",
            ]
        )
    return table


def measure_all(
    variants: list[str],
    result: dict[str, Any],
    config: ModelConfig,
    batch: Tensor,
    options: argparse.Namespace,
    clock: gpu_clock.Clock,
) -> list[str]:
    """Time the variants while there is time, and write each row when it is there; return what failed."""
    rows, failed, expected = result["rows"], [], None
    peak, matmul = result["bf16_peak_flops_per_s"], result["ceilings"]["matmul_flops_per_s"]
    needed = max(COMPILE_SECONDS, COMPILE_SHARE * options.seconds)
    for name in variants:
        row: dict[str, Any] = {"variant": name}
        if "compiled" in name and clock.left() < needed:
            row["note"] = f"fewer than {math.ceil(needed)} s were left: not timed"
        else:
            torch.compiler.reset()
            try:
                with plain_torch() if name.startswith("torch") else nullcontext():
                    measure(row, config, batch, expected, rounds=2 if options.dry_run else 20)
                expected = expected or row["losses"]
            except Exception as error:
                row["note"] = describe_error(error)
            if "note" in row:
                failed.append(f"{name}: {row['note']}")
        rows.append(row)
        write_results(options.out, "train", result, tabulate(rows, peak, matmul), show=False)
        print(f"{name}:", row["note"] if "note" in row else f"{row['step_ms']:.1f} ms", flush=True)
        gc.collect()
        if is_lost(batch.device):
            break
        if batch.device.type == "cuda":
            torch.cuda.empty_cache()
    write_results(options.out, "train", result, tabulate(rows, peak, matmul))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a pretraining step on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.json and train.md")
    parser.add_argument("--batch-size", type=int, default=3, help="rows of 4096 tokens")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=570.0, help="that it may take")
    options = parser.parse_args()
    clock = gpu_clock.Clock(options.seconds, since=gpu_clock.STARTED)
    device = find_device(options.dry_run)
    config = model_config(dry_run=options.dry_run)
    generator = torch.Generator().manual_seed(1)
    shape = options.batch_size, config.max_seq_len + 1
    assert config.vocab_size is not None
    batch = torch.randint(0, config.vocab_size, shape, generator=generator).to(device)
    with torch.device("meta"):
        num_params = Transformer(config).num_params()
    result = {
        "about": describe(device),
        "ceilings": measure_ceilings(device, dry_run=options.dry_run),
        "model": {
            "num_params": num_params,
            "tokens_a_step": shape[0] * config.max_seq_len,
            **config.model_dump(),
        },
        "bf16_peak_flops_per_s": bf16_peak(device),
        "rows": [],
    }
    variants = ["torch", "pylm"]
    if not options.dry_run:
        variants += ["torch, compiled", "pylm, compiled"]
    if failed := measure_all(variants, result, config, batch, options, clock):
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
