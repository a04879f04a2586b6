"""Each op on a GPU against torch, torch.compile and Liger-Kernel, in bfloat16.

    python bench/gpu_ops.py --out FOLDER [--seconds N] [--dry-run]

Outputs and gradients of every competitor must agree before it is timed. `forward` runs without gradients,
`backward` alone on a graph that is kept, `both` is one after the other. The ceiling is a copy that moves as
many bytes as must be read and written at least, or the bare matrix products, timed in the same run. Host time
is what one call takes the CPU where the tensors are small. Each size has its share of the seconds: torch and
pylm are timed in any case, others while it lasts.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from gpu_common import Clock, describe, find_device, measure_ceilings, median_ms, write_results
from torch import Tensor

from pylm import ops

# Relative error of a whole tensor in the 2-norm. One rounding to bfloat16 is off by 0.2 % so; torch's own
# sequences of rounded operations by up to 1 %.
TOLERANCE = 0.02
PARTS = ("forward", "backward", "both")
HOST_CALLS = 200

Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One op at one size.

    Attributes:
        name: op and size, as the table has it.
        calls: implementation by name; "torch" is there, and gives what is right.
        inputs: those with gradients.
        bytes_moved: in the forward and in the backward pass, at least; None where products are the ceiling.
        products: the matrix products of the forward and of the backward pass alone.
        separate: that a backward pass on its own can be timed; not where the forward pass makes gradients.
        host: that the time of the host is measured.
    """

    name: str
    calls: dict[str, Call]
    inputs: list[Tensor]
    bytes_moved: tuple[int, int] | None = None
    products: tuple[Call, Call] | None = None
    separate: bool = True
    host: bool = False


def _liger() -> dict[str, Call]:
    """Return the functions of Liger-Kernel by our names; empty where it is not installed."""
    # One configuration a kernel: trying all of them takes longer than all the rest here.
    os.environ.setdefault("LIGER_FUSED_MOE_AUTOTUNE", "0")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return {}
    return {
        "rms_norm": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
        "swiglu": LigerSiLUMulFunction.apply,
        "geglu": LigerGELUMulFunction.apply,
        "rope": LigerRopeFunction.apply,
        "moe_experts": LigerFusedMoEFunction.apply,
        "linear_cross_entropy": lambda h, w, t: LigerFusedLinearCrossEntropyFunction.apply(h, w, t)[0],
    }


def _others() -> dict[str, Call]:
    """Return other implementations of `linear_cross_entropy` by their names, those that are installed."""
    found: dict[str, Call] = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch linear_cross_entropy"] = lambda h, w, t: F.linear_cross_entropy(h, w, t)
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        return found
    return found | {"cut-cross-entropy": linear_cross_entropy}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def _rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2).to(x.dtype)


class Cases:
    """Builds the cases on a device; tiny ones for a dry run."""

    def __init__(self, device: torch.device, *, dry_run: bool) -> None:
        self._device, self._dry_run = device, dry_run
        self._generator = torch.Generator(device).manual_seed(0)
        self._liger, self._others = _liger(), _others()

    def leaf(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self._generator, device=self._device)
        return x.mul_(scale).bfloat16().requires_grad_()

    def _calls(self, name: str, op: Call, torch_op: Call) -> dict[str, Call]:
        calls = {"torch": torch_op, "pylm": op}
        if not self._dry_run:
            calls["torch.compile"] = torch.compile(torch_op, dynamic=False)
        if name in self._liger:
            calls["liger"] = self._liger[name]
        return calls

    def norm(self, rows: int, dim: int, *, host: bool = False) -> Case:
        calls = self._calls("rms_norm", ops.rms_norm, lambda x, w: F.rms_norm(x, (dim,), w, 1e-6))
        size = 2 * rows * dim
        inputs = [self.leaf(rows, dim), self.leaf(dim)]
        return Case(f"rms_norm {rows} x {dim}", calls, inputs, (2 * size, 3 * size), host=host)

    def head_norm(self, rows: int, heads: int, features: int) -> Case:
        """Queries where they are, within fused queries, keys and values."""
        base = self.leaf(rows, 2 * heads, features).detach()
        x = base[:, :heads].requires_grad_()
        calls = self._calls("", ops.rms_norm, lambda x, w: F.rms_norm(x, (features,), w, 1e-6))
        size = 2 * rows * heads * features
        name = f"rms_norm of heads {rows} x {heads} x {features}"
        return Case(name, calls, [x, self.leaf(features)], (2 * size, 3 * size))

    def add_norm(self, rows: int, dim: int) -> Case:
        calls = self._calls(
            "",
            lambda x, r, w: ops.rms_norm(x, w, residual=r),
            lambda x, r, w: (F.rms_norm(x + r, (dim,), w, 1e-6), x + r),
        )
        inputs = [self.leaf(rows, dim), self.leaf(rows, dim), self.leaf(dim)]
        size = 2 * rows * dim
        return Case(f"add_rms_norm {rows} x {dim}", calls, inputs, (4 * size, 4 * size))

    def gated(self, name: str, rows: int, dim: int, *, host: bool = False) -> Case:
        size, packed = 2 * rows * dim, name == "swiglu_packed"
        op, torch_op = {
            "swiglu": (ops.swiglu, lambda g, u: F.silu(g) * u),
            "geglu": (ops.geglu, lambda g, u: F.gelu(g, approximate="tanh") * u),
            "swiglu_packed": (ops.swiglu_packed, lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]),
        }[name]
        inputs = [self.leaf(rows, 2 * dim)] if packed else [self.leaf(rows, dim), self.leaf(rows, dim)]
        shape = f"{name} {rows} x {2 * dim if packed else dim}"
        return Case(shape, self._calls(name, op, torch_op), inputs, (3 * size, 5 * size), host=host)

    def rope(self, time: int, heads: int, key_heads: int, features: int, *, interleaved: bool) -> Case:
        cos, sin = ops.rope_cache(time, features, device=self._device)
        turn = _rotate_interleaved if interleaved else _rotate
        calls = self._calls(
            "",
            lambda q, k: ops.rope(q, k, cos, sin, interleaved=interleaved),
            lambda q, k: (turn(q, cos, sin), turn(k, cos, sin)),
        )
        if "rope" in self._liger and not interleaved:
            # Liger takes (B, H, T, C), tables of whole features, and writes into what it is given.
            wide = [torch.cat((t, t), -1)[None].to(torch.bfloat16) for t in (cos, sin)]
            calls["liger"] = lambda q, k: tuple(
                y.transpose(1, 2)
                for y in self._liger["rope"](
                    q.clone().transpose(1, 2), k.clone().transpose(1, 2), *wide
                )
            )  # fmt: skip
        size = 2 * time * (heads + key_heads) * features
        name = f"rope {'interleaved ' if interleaved else ''}{time} x {heads} + {key_heads} x {features}"
        inputs = [self.leaf(1, time, heads, features), self.leaf(1, time, key_heads, features)]
        return Case(name, calls, inputs, (2 * size, 2 * size))

    def _output_layer(
        self, rows: int, dim: int, vocab: int
    ) -> tuple[list[Tensor], Tensor, tuple[Call, Call]]:
        hidden, weight = self.leaf(rows, dim), self.leaf(vocab, dim, scale=dim**-0.5)
        targets = torch.randint(0, vocab, (rows,), generator=self._generator, device=self._device)

        def forward() -> object:
            return hidden.detach() @ weight.detach().T

        def backward() -> object:
            grad = hidden.new_empty(rows, vocab).normal_(std=1e-3) if not made else made[0]
            made[:] = [grad]
            return grad @ weight.detach(), grad.T @ hidden.detach()

        made: list[Tensor] = []
        return [hidden, weight], targets, (forward, backward)

    def cross_entropy(self, rows: int, dim: int, vocab: int) -> Case:
        inputs, targets, products = self._output_layer(rows, dim, vocab)
        calls = self._calls(
            "",
            lambda h, w: ops.linear_cross_entropy(h, w, targets),
            lambda h, w: F.cross_entropy((h @ w.T).float(), targets),
        )
        for name, call in self._others.items():
            calls[name] = lambda h, w, call=call: call(h, w, targets)
        if "linear_cross_entropy" in self._liger:
            calls["liger"] = lambda h, w: self._liger["linear_cross_entropy"](h, w, targets)
        name = f"linear_cross_entropy {rows} x {dim} x {vocab}"
        return Case(name, calls, inputs, products=products, separate=False)

    def logprob(self, rows: int, dim: int, vocab: int) -> Case:
        inputs, targets, products = self._output_layer(rows, dim, vocab)

        def torch_logprob(h: Tensor, w: Tensor) -> Tensor:
            return F.log_softmax((h @ w.T).float(), -1).gather(1, targets[:, None]).squeeze(1)

        calls = self._calls("", lambda h, w: ops.linear_logprob(h, w, targets).logprob, torch_logprob)
        return Case(f"linear_logprob {rows} x {dim} x {vocab}", calls, inputs, products=products)

    def route(self, rows: int, experts: int, top_k: int) -> Case:
        def torch_route(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            scores = logits.softmax(-1)
            best, expert = scores.topk(top_k, -1)
            share = F.one_hot(expert, experts).sum(1).float().mean(0)
            aux_loss = experts * (share * scores.mean(0)).sum()
            weight = best / best.sum(-1, keepdim=True)
            expert.flatten().sort(stable=True)
            return weight, aux_loss, torch.logsumexp(logits, -1).square().mean()

        def route(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            routing = ops.moe_route(logits, top_k)
            return routing.weight, routing.aux_loss, routing.z_loss

        logits = torch.randn(rows, experts, generator=self._generator, device=self._device).requires_grad_()
        size = 4 * rows * experts
        calls = self._calls("", route, torch_route)
        return Case(f"moe_route {rows} x {experts}, top {top_k}", calls, [logits], (size, 2 * size))

    def experts(self, rows: int, experts: int, top_k: int, dim: int, hidden: int) -> Case:
        logits = torch.randn(rows, experts, generator=self._generator, device=self._device)
        routing = ops.moe_route(logits, top_k)
        order, tokens = routing.order.long(), (routing.order // top_k).long()
        ends = routing.offsets[1:].to(torch.int32)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(rows * top_k, device=self._device)

        def multiply(a: Tensor, b: Tensor) -> Tensor:
            if a.device.type == "cuda":
                return F.grouped_mm(a, b, offs=ends)
            parts = zip(a.split(routing.load.tolist()), b, strict=True)
            return torch.cat([part @ weight for part, weight in parts])

        def torch_experts(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            gate, up = multiply(x[tokens], gate_up.transpose(1, 2)).chunk(2, -1)
            out = multiply(F.silu(gate) * up, down.transpose(1, 2))[inverse].view(rows, top_k, dim)
            return (out * weight[..., None]).sum(1).to(x.dtype)

        inputs = [
            self.leaf(rows, dim),
            routing.weight.detach().requires_grad_(),
            self.leaf(experts, 2 * hidden, dim, scale=dim**-0.5),
            self.leaf(experts, dim, hidden, scale=hidden**-0.5),
        ]
        calls = self._calls(
            "", lambda x, w, g, d: ops.moe_experts(x, routing._replace(weight=w), g, d), torch_experts
        )
        if "moe_experts" in self._liger:
            expert = routing.expert.int()
            calls["liger"] = lambda x, w, g, d: self._liger["moe_experts"](x, g, d, expert, w)
        size = 2 * rows * top_k * dim * hidden
        product = torch.randn(2, 4096, 4096, device=self._device).bfloat16()

        def forward() -> object:
            # As many operations in dense products.
            return [product[0] @ product[1] for _ in range(max(1, round(3 * size / (2 * 4096**3))))]

        def backward() -> object:
            return forward(), forward()

        name = f"moe_experts {rows} x {dim} x {hidden}, {top_k} of {experts}"
        return Case(name, calls, inputs, products=(forward, backward))

    def all(self) -> list[Callable[[], Case]]:
        """Return what builds each case, so that only one is in memory."""
        if self._dry_run:
            return [
                lambda: self.norm(24, 64, host=True),
                lambda: self.head_norm(24, 4, 16),
                lambda: self.add_norm(24, 64),
                lambda: self.gated("swiglu", 24, 96),
                lambda: self.gated("swiglu_packed", 24, 96),
                lambda: self.gated("geglu", 24, 96),
                lambda: self.rope(24, 4, 2, 16, interleaved=False),
                lambda: self.rope(24, 4, 2, 16, interleaved=True),
                lambda: self.cross_entropy(24, 64, 160),
                lambda: self.logprob(24, 64, 160),
                lambda: self.route(24, 8, 2),
                lambda: self.experts(24, 8, 2, 64, 32),
            ]
        # The layers of Llama 3 8B and Qwen 3 with 8,192 tokens, few rows, and sizes that nothing divides.
        return [
            lambda: self.norm(16, 4096, host=True),
            lambda: self.norm(8192, 4096),
            lambda: self.norm(32768, 2048),
            lambda: self.norm(1000, 4097),
            lambda: self.head_norm(8192, 32, 128),
            lambda: self.add_norm(8192, 4096),
            lambda: self.gated("swiglu", 16, 14336, host=True),
            lambda: self.gated("swiglu", 8192, 14336),
            lambda: self.gated("swiglu", 1000, 4097),
            lambda: self.gated("swiglu_packed", 8192, 14336),
            lambda: self.gated("geglu", 8192, 14336),
            lambda: self.rope(8192, 32, 8, 128, interleaved=False),
            lambda: self.rope(8192, 32, 8, 128, interleaved=True),
            lambda: self.cross_entropy(256, 2048, 32000),
            lambda: self.cross_entropy(4096, 768, 50257),
            lambda: self.cross_entropy(8192, 4096, 128256),
            lambda: self.cross_entropy(8192, 4096, 151936),
            lambda: self.cross_entropy(16384, 4096, 128256),
            lambda: self.logprob(8192, 4096, 151936),
            lambda: self.route(32768, 128, 8),
            lambda: self.experts(32768, 128, 8, 2048, 768),
        ]


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def run_both(call: Call, inputs: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """Return outputs and gradients."""
    outputs = _as_tuple(call(*inputs))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, upstream)]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative error in the 2-norm over all tensors."""
    pairs = zip(actual, expected, strict=True)
    norm = torch.linalg.vector_norm
    return max(
        float(norm((a - b).float()) / norm(b.float(), dtype=torch.float32).clamp(min=1e-12)) for a, b in pairs
    )


class Ceilings:
    """Times of copies of a number of bytes and of bare products, each measured once."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device, self._rounds = device, rounds
        self._copies: dict[int, float] = {}

    def copy_ms(self, bytes_moved: int) -> float:
        """Return the time of a copy that reads and writes so many bytes together."""
        if bytes_moved not in self._copies:
            source = torch.zeros(bytes_moved // 2, dtype=torch.int8, device=self._device)
            target = torch.empty_like(source)
            ms, _ = median_ms(lambda: target.copy_(source), self._device, rounds=self._rounds)
            self._copies[bytes_moved] = ms
        return self._copies[bytes_moved]

    def of(self, case: Case) -> dict[str, float]:
        """Return the ceiling of each part in milliseconds."""
        if case.products is not None:
            forward, backward = (median_ms(p, self._device, rounds=self._rounds)[0] for p in case.products)
        else:
            assert case.bytes_moved is not None
            forward, backward = (self.copy_ms(n) for n in case.bytes_moved)
        return {"forward": forward, "backward": backward, "both": forward + backward}


def host_us(call: Call, inputs: list[Tensor], device: torch.device) -> float:
    """Return what a call takes the host, the graph for the backward pass included."""
    best = math.inf
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            call(*inputs)
        best = min(best, (time.perf_counter() - start) / HOST_CALLS)
    return 1e6 * best


def measure(
    case: Case, device: torch.device, ceilings: Ceilings, rounds: int, clock: Clock
) -> list[dict[str, Any]]:
    """Compare and time all implementations of a case; torch and pylm, and others while there is time."""
    rows: list[dict[str, Any]] = []
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        outputs = _as_tuple(case.calls["torch"](*case.inputs))
    upstream = [torch.randn(y.shape, generator=generator, device=device).to(y.dtype) for y in outputs]
    del outputs
    expected = run_both(case.calls["torch"], case.inputs, upstream)
    limits = ceilings.of(case)
    for name, call in case.calls.items():
        row: dict[str, Any] = {"case": case.name, "implementation": name, "ceiling_ms": limits}
        rows.append(row)
        if name not in ("torch", "pylm") and clock.left() <= 0.0:
            row["note"] = "the time was over: not timed"
            continue
        try:
            actual = run_both(call, case.inputs, upstream)
        except Exception as error:
            if name == "pylm":
                raise
            row["note"] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
            continue
        row["error"] = largest_error(actual, expected)
        del actual
        if not row["error"] <= TOLERANCE:
            row["note"] = f"differs from torch by {row['error']:.3f}: not timed"
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run_both(call, case.inputs, upstream)
            row["peak_extra_bytes"] = torch.cuda.max_memory_allocated(device) - before

        def forward(call: Call = call) -> None:
            with torch.no_grad():
                call(*case.inputs)

        timed: dict[str, Call] = {
            "forward": forward,
            "both": lambda call=call: run_both(call, case.inputs, upstream),
        }
        if case.separate:
            kept = _as_tuple(call(*case.inputs))
            timed["backward"] = lambda kept=kept: torch.autograd.grad(
                kept, case.inputs, upstream, retain_graph=True
            )
        for part, function in timed.items():
            row[f"{part}_ms"], row[f"{part}_iqr_ms"] = median_ms(function, device, rounds=rounds)
            row[f"{part}_share"] = limits[part] / row[f"{part}_ms"]
        if case.host:
            row["host_us"] = host_us(call, case.inputs, device)
    return rows


def tabulate(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Format the rows for the Markdown table; ratios are times relative to pylm's in the same run."""
    table = [["op", "by"]]
    for part in PARTS:
        table[0] += [f"{part} ms", "of ceiling"]
    table[0] += ["both / pylm", "peak extra MiB", "host us"]
    ours = {row["case"]: row for row in rows if row["implementation"] == "pylm"}
    for row in rows:
        line = [row["case"], row["implementation"]]
        table.append(line)
        if "note" in row:
            line += [row["note"], *[""] * (len(table[0]) - 3)]
            continue
        for part in PARTS:
            if f"{part}_ms" in row:
                line += [f"{row[f'{part}_ms']:.3f} ± {row[f'{part}_iqr_ms'] / 2:.3f}"]
                line += [f"{100 * row[f'{part}_share']:.0f} %"]
            else:
                line += ["", ""]
        base, peak = ours[row["case"]].get("both_ms"), row.get("peak_extra_bytes")
        line.append("" if base is None else f"{row['both_ms'] / base:.2f}")
        line.append("" if peak is None else f"{peak / 2**20:.0f}")
        line.append(f"{row['host_us']:.0f}" if "host_us" in row else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each op on a GPU against its peers.")
    parser.add_argument("--out", type=Path, required=True, help="folder for ops.json and ops.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=570.0, help="that it may take")
    parser.add_argument("--only", default="", help="a part of the names of the cases to time")
    options = parser.parse_args()
    clock = Clock(options.seconds)
    device = find_device(options.dry_run)
    # A graph that is kept may not give its buffers away.
    torch._functorch.config.donated_buffer = False
    rounds = 3 if options.dry_run else 20
    overall = measure_ceilings(device, dry_run=options.dry_run)
    ceilings = Ceilings(device, rounds)
    rows: list[dict[str, Any]] = []
    result = {"about": describe(device), "ceilings": overall, "rows": rows}
    builders = Cases(device, dry_run=options.dry_run).all()
    for i, build in enumerate(builders):
        if clock.left() <= 0.0:
            print(f"the time was over: {len(builders) - i} cases left out", flush=True)
            result["cases_left_out"] = len(builders) - i
            break
        # Twice the share of a case, as most take less; what is left over goes to those behind it.
        share = Clock(2.0 * clock.left() / (len(builders) - i))
        start, case = time.perf_counter(), build()
        if options.only in case.name:
            torch.compiler.reset()
            rows += measure(case, device, ceilings, rounds, share)
            # Written after each case: nothing is lost when the time is over.
            write_results(options.out, "ops", result, tabulate(rows), show=False)
            print(f"{case.name}: {time.perf_counter() - start:.0f} s", flush=True)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write_results(options.out, "ops", result, tabulate(rows))
    wrong = [row["case"] for row in rows if row["implementation"] == "pylm" and "note" in row]
    if wrong:
        raise SystemExit(f"pylm differs from torch in: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
