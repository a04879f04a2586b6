"""The ops that are timed on a GPU, at which sizes, and what else computes the same."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_common import describe_error
from torch import Tensor

from pylm import ops

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
        flops: of the products of the forward and of the backward pass.
        separate: that a backward pass on its own can be timed; not where the forward pass makes gradients.
        host: that the time of the host is measured.
    """

    name: str
    calls: dict[str, Call]
    inputs: list[Tensor]
    bytes_moved: tuple[int, int] | None = None
    products: tuple[Call, Call] | None = None
    flops: tuple[int, int] | None = None
    separate: bool = True
    host: bool = False


def _liger() -> dict[str, Call]:
    """Return the functions of Liger-Kernel by our names; empty where it cannot be imported."""
    # One configuration a kernel: trying all of them takes longer than all the rest here.
    os.environ.setdefault("LIGER_FUSED_MOE_AUTOTUNE", "0")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except Exception as error:
        _say_absent("Liger-Kernel", error)
        return {}
    return {
        "rms_norm": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
        "swiglu": LigerSiLUMulFunction.apply,
        "geglu": LigerGELUMulFunction.apply,
        "rope": LigerRopeFunction.apply,
        "moe_experts": LigerFusedMoEFunction.apply,
        "linear_cross_entropy": lambda h, w, t: LigerFusedLinearCrossEntropyFunction.apply(h, w, t)[0],
    }


def _say_absent(name: str, error: Exception) -> None:
    """Say why a peer does not take part; it may be there and not fit this torch."""
    if not isinstance(error, ModuleNotFoundError):
        print(f"{name} takes no part: {describe_error(error)}", flush=True)


def _others() -> dict[str, Call]:
    """Return other implementations of `linear_cross_entropy` by their names, those that can be imported."""
    found: dict[str, Call] = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch linear_cross_entropy"] = lambda h, w, t: F.linear_cross_entropy(h, w, t)
    try:
        from cut_cross_entropy import linear_cross_entropy
    except Exception as error:
        _say_absent("cut-cross-entropy", error)
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

    def rope(
        self,
        time: int,
        heads: int,
        key_heads: int,
        features: int,
        *,
        interleaved: bool = False,
        host: bool = False,
    ) -> Case:
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
        return Case(name, calls, inputs, (2 * size, 2 * size), host=host)

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
        side = 64 if self._dry_run else 4096
        product = torch.randn(2, side, side, device=self._device).bfloat16()

        def forward() -> object:
            # As many operations in dense products.
            return [product[0] @ product[1] for _ in range(max(1, round(3 * size / (2 * side**3))))]

        def backward() -> object:
            return forward(), forward()

        name = f"moe_experts {rows} x {dim} x {hidden}, {top_k} of {experts}"
        products = forward, backward
        return Case(name, calls, inputs, products=products, flops=(3 * size, 6 * size))

    def all(self) -> list["partial[Case]"]:
        """Return what builds each case, so that only one is in memory."""
        if self._dry_run:
            return [
                partial(self.norm, 24, 64, host=True),
                partial(self.add_norm, 24, 64),
                partial(self.gated, "swiglu", 24, 96),
                partial(self.rope, 24, 4, 2, 16),
                partial(self.cross_entropy, 24, 64, 160),
                partial(self.experts, 24, 8, 2, 64, 32),
                partial(self.head_norm, 24, 4, 16),
                partial(self.gated, "swiglu_packed", 24, 96),
                partial(self.gated, "geglu", 24, 96),
                partial(self.rope, 24, 4, 2, 16, interleaved=True),
                partial(self.logprob, 24, 64, 160),
                partial(self.route, 24, 8, 2),
            ]
        # The layers of Llama 3 8B and Qwen 3 with 8,192 tokens, few rows, and sizes that nothing divides;
        # first what gpu_summary.py has goals for.
        return [
            partial(self.norm, 8192, 4096),
            partial(self.add_norm, 8192, 4096),
            partial(self.rope, 8192, 32, 8, 128),
            partial(self.gated, "swiglu", 8192, 14336),
            partial(self.cross_entropy, 8192, 4096, 151936),
            partial(self.experts, 32768, 128, 8, 2048, 768),
            partial(self.norm, 16, 4096, host=True),
            partial(self.gated, "swiglu", 16, 14336, host=True),
            partial(self.rope, 16, 32, 8, 128, host=True),
            partial(self.norm, 32768, 2048),
            partial(self.gated, "swiglu_packed", 8192, 14336),
            partial(self.rope, 8192, 32, 8, 128, interleaved=True),
            partial(self.logprob, 8192, 4096, 151936),
            partial(self.route, 32768, 128, 8),
            partial(self.head_norm, 8192, 32, 128),
            partial(self.gated, "geglu", 8192, 14336),
            partial(self.norm, 1000, 4097),
            partial(self.gated, "swiglu", 1000, 4097),
            partial(self.cross_entropy, 256, 2048, 32000),
            partial(self.cross_entropy, 4096, 768, 50257),
            partial(self.cross_entropy, 8192, 4096, 128256),
            partial(self.cross_entropy, 16384, 4096, 128256),
        ]
