"""A pretraining step on a GPU: pylm's ops, the same model with plain torch, each also under torch.compile.

    python bench/gpu_train.py --out FOLDER [--dry-run]

The step is the one of `pylm pretrain` on one GPU: float32 weights, bfloat16 autocast, z-loss, clipping, fused
AdamW. The variants start from the same weights and must agree on the loss of the first steps before any is
timed. Model FLOPs utilisation (MFU) counts 6 FLOPs a weight and token and causal attention, over the dense
bfloat16 peak of the GPU's data sheet.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from gpu_common import Clock, bf16_peak, describe, find_device, measure_ceilings, median_ms, write_results
from torch import Tensor

from pylm import ops
from pylm.model.config import ModelConfig
from pylm.model.transformer import Transformer
from pylm.train.optimizer import OptimizerConfig, build_optimizer

CHECKED_STEPS = 3
# Relative, of the loss: bfloat16 matrix products in another order, over three updates.
TOLERANCE = 5e-3
Z_LOSS = 1e-4


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
    """Return a model of 0.75 B parameters, a tiny one for a dry run."""
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
    model = Transformer(config).to(batch.device)
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
    name: str, config: ModelConfig, batch: Tensor, expected: list[float] | None, rounds: int
) -> tuple[dict[str, Any], list[float]]:
    """Check the losses of the first steps, then time the step."""
    device = batch.device
    uses_torch, compiled = name.startswith("torch"), name.endswith("compiled")
    loss_of = torch_loss if uses_torch else pylm_loss
    row: dict[str, Any] = {"variant": name}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step, model = build_step(config, loss_of, batch, compiled=compiled)
    losses = [float(step()) for _ in range(CHECKED_STEPS)]
    row["losses"] = losses
    for ours, theirs in zip(losses, expected or losses, strict=True):
        if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
            row["note"] = "losses differ from plain torch: not timed"
            return row, losses
    row["step_ms"], row["step_iqr_ms"] = median_ms(step, device, rounds=rounds)
    tokens = batch.shape[0] * (batch.shape[1] - 1)
    row["tokens_per_s"] = 1e3 * tokens / row["step_ms"]
    row["flops_per_s"] = row["tokens_per_s"] * model.flops_per_token(batch.shape[1] - 1)
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return row, losses


def tabulate(rows: list[dict[str, Any]], peak: float | None, matmul: float) -> list[list[str]]:
    """Format the rows for the Markdown table."""
    table = [["variant", "step ms", "tokens/s", "speed / torch", "MFU", "of measured matmul", "peak GiB"]]
    base = rows[0]["tokens_per_s"]
    for row in rows:
        if "note" in row:
            table.append([row["variant"], row["note"], "", "", "", "", ""])
            continue
        table.append(
            [
                row["variant"],
                f"{row['step_ms']:.1f} ± {row['step_iqr_ms'] / 2:.1f}",
                f"{row['tokens_per_s']:.0f}",
                f"{row['tokens_per_s'] / base:.2f}",
                "no peak known" if peak is None else f"{100 * row['flops_per_s'] / peak:.1f} %",
                f"{100 * row['flops_per_s'] / matmul:.1f} %",
                f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "",
            ]
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a pretraining step on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.json and train.md")
    parser.add_argument("--batch-size", type=int, default=3, help="rows of 4096 tokens")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=570.0, help="that it may take")
    options = parser.parse_args()
    clock = Clock(options.seconds)
    device = find_device(options.dry_run)
    config = model_config(dry_run=options.dry_run)
    generator = torch.Generator().manual_seed(1)
    shape = options.batch_size, config.max_seq_len + 1
    assert config.vocab_size is not None
    batch = torch.randint(0, config.vocab_size, shape, generator=generator).to(device)
    ceilings = measure_ceilings(device, dry_run=options.dry_run)
    rows: list[dict[str, Any]] = []
    peak = bf16_peak(device)
    with torch.device("meta"):
        num_params = Transformer(config).num_params()
    result = {
        "about": describe(device),
        "ceilings": ceilings,
        "model": {
            "num_params": num_params,
            "tokens_a_step": shape[0] * config.max_seq_len,
            **config.model_dump(),
        },
        "bf16_peak_flops_per_s": peak,
        "rows": rows,
    }
    expected: list[float] | None = None
    for name in (
        ("torch", "pylm") if options.dry_run else ("torch", "pylm", "torch, compiled", "pylm, compiled")
    ):
        # A compiled variant takes about a third of the time of all; torch and pylm are timed in any case.
        if "compiled" in name and clock.left() < options.seconds / 4:
            rows.append({"variant": name, "note": "the time was over: not timed"})
            write_results(
                options.out, "train", result, tabulate(rows, peak, ceilings["matmul_flops_per_s"]), show=False
            )
            continue
        torch.compiler.reset()
        if name.startswith("torch"):
            with plain_torch():
                row, losses = measure(name, config, batch, expected, rounds=2 if options.dry_run else 20)
        else:
            row, losses = measure(name, config, batch, expected, rounds=2 if options.dry_run else 20)
        expected = expected or losses
        rows.append(row)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        # Written after each variant: nothing is lost when the time is over.
        table = tabulate(rows, peak, ceilings["matmul_flops_per_s"])
        write_results(options.out, "train", result, table, show=False)
    write_results(options.out, "train", result, table)
    if "note" in rows[1]:
        raise SystemExit(f"pylm and plain torch disagree: losses {rows[1]['losses']} and {rows[0]['losses']}")


if __name__ == "__main__":
    main()
