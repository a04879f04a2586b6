"""The ops on a GPU: values, compiled graphs, captured graphs, no waiting, the same bits, large tensors."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pylm import ops
from pylm.ops import logprob

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# The error of an op against float64 may be twice that of torch's own operations in the same dtype, and one
# rounding of the largest value where torch happens to be exact. What is reduced over rows or classes may be
# off by the order of its float32 sums as well: sqrt(4096) roundings.
FACTOR = 2.0
ROUNDINGS = 1.0
SUM_ERROR = 64 * torch.finfo(torch.float32).eps

Call = Callable[..., tuple[Tensor, ...]]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _gpt_oss(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(1.702 * gate) * (up + 1.0)


def _logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logprobs = F.log_softmax(hidden @ weight.T, -1)
    picked, kept = logprobs.gather(1, targets.clamp(min=0)[:, None]).squeeze(1), targets != -100
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return picked * kept, torch.logsumexp(hidden @ weight.T, -1) * kept, entropy * kept


def _loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logits = hidden @ weight.T
    squares = torch.logsumexp(logits, -1)[targets != -100].square().mean()
    return (F.cross_entropy(logits, targets, label_smoothing=0.1) + 1e-3 * squares,)


def _route(logits: Tensor) -> tuple[Tensor, ...]:
    """What ops.moe_route gives for 3 experts, weights not normalised."""
    shares = logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
    expert = logits.sort(dim=1, descending=True, stable=True).indices[:, :3]
    load = torch.zeros_like(shares).scatter(1, expert, 1.0).mean(0)
    lse = torch.logsumexp(logits.to(shares.dtype), -1)
    return shares.gather(1, expert), logits.shape[1] * (load * shares.mean(0)).sum(), lse.square().mean()


def _experts(
    x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, *_: Tensor
) -> tuple[Tensor]:
    y = torch.zeros_like(x)
    for e in range(gate_up.shape[0]):
        share = torch.where(expert == e, weight, 0.0).sum(1, keepdim=True).to(x.dtype)
        gate, up = (x @ gate_up[e].T).chunk(2, 1)
        y = y + share * ((F.silu(gate) * up) @ down[e].T)
    return (y,)


def _op_route(logits: Tensor) -> tuple[Tensor, ...]:
    routing = ops.moe_route(logits, 3, normalize=False)
    return routing.weight, routing.aux_loss, routing.z_loss


def _op_experts(
    x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, order: Tensor, offsets: Tensor
) -> tuple[Tensor]:
    nothing = x.new_empty(0)
    routing = ops.Routing(weight, expert, order, offsets, nothing, nothing, nothing)
    return (ops.moe_experts(x, routing, gate_up, down),)


def _cases(name: str, odd: bool, dtype: torch.dtype) -> tuple[Call, Call, list[Tensor], list[Tensor]]:
    """Return the op, the same by torch, the inputs with gradients, and those without."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(DEVICE, dtype).requires_grad_()

    n, d, v = (37, 127, 1003) if odd else (512, 1024, 4096)
    if name == "rms_norm":
        return (
            lambda x, w: (ops.rms_norm(x, w),),
            lambda x, w: (F.rms_norm(x, w.shape, w, 1e-6),),
            [leaf(n, d), leaf(d)],
            [],
        )
    if name == "add_rms_norm":
        return (
            lambda x, r, w: ops.rms_norm(x, w, residual=r),
            lambda x, r, w: (F.rms_norm(x + r, w.shape, w, 1e-6), x + r),
            [leaf(n, d), leaf(n, d), leaf(d)],
            [],
        )
    if name == "swiglu":
        return (
            lambda g, u: (ops.swiglu(g, u),),
            lambda g, u: (F.silu(g) * u,),
            [leaf(d, n).t().detach().requires_grad_(), leaf(n, d)],
            [],
        )
    if name == "geglu":
        return (
            lambda g, u: (ops.geglu(g, u),),
            lambda g, u: (F.gelu(g, approximate="tanh") * u,),
            [leaf(n, d), leaf(n, d)],
            [],
        )
    if name == "swiglu_packed":
        return (
            lambda x: (ops.swiglu_packed(x),),
            lambda x: (F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],),
            [leaf(n, 2 * d)],
            [],
        )
    if name == "swiglu_interleaved":
        form = {"alpha": 1.702, "limit": 1.5, "up_offset": 1.0}
        return (
            lambda x: (ops.swiglu_packed(x, interleaved=True, **form),),
            lambda x: (_gpt_oss(x[..., ::2].clamp(max=1.5), x[..., 1::2].clamp(-1.5, 1.5)),),
            [leaf(n, 2 * d)],
            [],
        )
    if name == "geglu_exact":
        return (
            lambda x: (ops.geglu_packed(x, approximate="none"),),
            lambda x: (F.gelu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],),
            [leaf(n, 2 * d)],
            [],
        )
    if name == "rope":
        features = 62 if odd else 128
        tables = list(ops.rope_cache(n, features, device=DEVICE))
        return (
            ops.rope,
            lambda q, k, cos, sin: (_rotate(q, cos, sin), _rotate(k, cos, sin)),
            [leaf(2, n, 5, features), leaf(2, n, 1, features)],
            tables,
        )
    if name == "moe_route":
        return (
            _op_route,
            _route,
            [leaf(n, 13 if odd else 128)],
            [],
        )
    if name == "moe_experts":
        experts, hidden_dim = (5, 33) if odd else (16, 384)
        logits = torch.randn(n, experts, generator=generator).to(DEVICE)
        logits[:, 1] = -9.0  # no token
        routing = ops.moe_route(logits, 3)
        weights = leaf(experts, 2 * hidden_dim, d, scale=d**-0.5), leaf(experts, d, hidden_dim, scale=0.1)
        return _op_experts, _experts, [leaf(n, d), leaf(n, 3), *weights], list(routing[1:4])
    targets = torch.randint(0, v, (n,), generator=generator).to(DEVICE)
    targets[::5] = -100
    inputs = [leaf(n, d), leaf(v, d, scale=2.0 / d**0.5)]
    if name == "linear_cross_entropy":
        options = {"label_smoothing": 0.1, "z_loss": 1e-3}
        return lambda h, w, t: (ops.linear_cross_entropy(h, w, t, **options),), _loss, inputs, [targets]
    return lambda h, w, t: tuple(ops.linear_logprob(h, w, t)), _logprob, inputs, [targets]


NAMES = [
    *("rms_norm", "add_rms_norm", "swiglu", "geglu", "swiglu_packed", "swiglu_interleaved", "geglu_exact"),
    *("rope", "moe_route", "moe_experts", "linear_cross_entropy", "linear_logprob"),
]


def _run(call: Call, inputs: list[Tensor], rest: list[Tensor]) -> list[Tensor]:
    """Return outputs and gradients; the upstream gradients are the same for every dtype."""
    outputs = call(*inputs, *rest)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, inputs, upstream))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("odd", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name: str, odd: bool, dtype: torch.dtype) -> None:
    op, torch_op, inputs, rest = _cases(name, odd, dtype)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    wide_rest = [t.double() if t.is_floating_point() else t for t in rest]
    exact = _run(torch_op, wide, wide_rest)
    for ours, low, truth in zip(_run(op, inputs, rest), _run(torch_op, inputs, rest), exact, strict=True):
        error = float((ours.double() - truth).abs().max())
        error_of_torch = float((low.double() - truth).abs().max())
        floor = (ROUNDINGS * torch.finfo(dtype).eps + SUM_ERROR) * float(truth.abs().max())
        assert error <= max(FACTOR * error_of_torch, floor)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_twice(name: str) -> None:
    op, _, inputs, rest = _cases(name, False, torch.bfloat16)
    first = _run(op, inputs, rest)
    assert all(torch.equal(a, b) for a, b in zip(first, _run(op, inputs, rest), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name: str) -> None:
    op, _, inputs, rest = _cases(name, True, torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(lambda *args: tuple(y * 2.0 for y in op(*args)), fullgraph=True)
    expected = _run(lambda *args: tuple(y * 2.0 for y in op(*args)), inputs, rest)
    for a, b in zip(_run(compiled, inputs, rest), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_in_float64(name: str) -> None:
    op, _, inputs, rest = _cases(name, True, torch.float64)
    few = [t.detach()[:3].clone().requires_grad_() for t in inputs]
    if name == "rope":
        few = [t.detach()[:, :3].clone().requires_grad_() for t in inputs]
    elif name.startswith("linear"):
        few = [inputs[0].detach()[:3, :4].clone(), inputs[1].detach()[:70, :4].clone()]
        few, rest = [t.requires_grad_() for t in few], [torch.tensor([69, -100, 0], device=DEVICE)]
    elif name == "moe_experts":
        x, weight, gate_up, down = (t.detach() for t in inputs)
        gate_up = torch.cat((gate_up[:, :2, :5], gate_up[:, -2:, :5]), 1)
        few = [t.clone().requires_grad_() for t in (x[:, :5], weight, gate_up, down[:, :5, :2])]
    elif "norm" in name:
        few = [t.detach()[..., :5][:3].clone().requires_grad_() for t in inputs[:-1]]
        few.append(inputs[-1].detach()[:5].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: op(*args, *rest), few, fast_mode=True)


def test_autocast_decides_the_dtype_of_products() -> None:
    hidden, weight = _cases("linear_logprob", True, torch.float32)[2]
    targets = _cases("linear_logprob", True, torch.float32)[3][0]

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return ops.linear_cross_entropy(hidden, weight, targets)

    expected = ops.linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    for call in (loss, torch.compile(loss, fullgraph=True)):
        actual = call(hidden, weight)
        assert torch.equal(actual, expected)
        grads = torch.autograd.grad(actual, (hidden, weight))
        assert [g.dtype for g in grads] == [torch.float32] * 2


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_waiting")
def test_no_op_waits_for_the_gpu() -> None:
    def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        smooth = ops.linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, z_loss=1e-4)
        return smooth, ops.linear_cross_entropy(hidden, weight, targets, softcap=5.0, reduction="sum")

    cases = [_cases(name, True, torch.bfloat16) for name in NAMES]
    calls = [(op, inputs, rest) for op, _, inputs, rest in cases] + [(losses, *cases[-1][2:])]
    rope_case = cases[NAMES.index("rope")]
    q, k = rope_case[2]
    ids = torch.randint(0, 37, (2, 37), device=DEVICE)
    calls.append((lambda q, k, *t: ops.rope(q, k, *t, position_ids=ids), [q, k], rope_case[3]))
    offsets = torch.tensor([0, 20, 20, 37], device=DEVICE)

    def packed(q: Tensor, k: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        return ops.rope(q, k, *tables, position_ids=ops.packed_position_ids(offsets, 37))

    calls.append((packed, [q, k], rope_case[3]))
    logprob, reference = (torch.randn(4, 9, device=DEVICE, requires_grad=True) for _ in range(2))
    mask = torch.randint(0, 2, (4, 9), device=DEVICE).bool()

    def policy_losses(logprob: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        advantages = ops.group_advantages(logprob.detach()).mean(1)
        options = {"reference_logprob": reference, "kl_coefficient": 0.1}
        losses = [
            ops.grpo_loss(logprob, advantages, mask, reduction=reduction, max_tokens=9, **options).loss
            for reduction in ("sequence", "token", "constant", "none")
        ]
        sums = logprob.sum(1), reference.sum(1)
        kto = ops.kto_loss(*sums, mask[:, 0], (sums[0] - sums[1]).mean())
        return *losses, kto, ops.dpo_loss(*sums, *sums, label_smoothing=0.1, kind="robust")

    calls.append((policy_losses, [logprob, reference], [mask]))
    for op, inputs, rest in calls:
        outputs = op(*inputs, *rest)  # compiles
        upstream = [torch.ones_like(y) for y in outputs]
        torch.autograd.grad(outputs, inputs, upstream)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(op(*inputs, *rest), inputs, upstream)
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_captured_in_a_cuda_graph(name: str) -> None:
    op, _, inputs, rest = _cases(name, False, torch.bfloat16)

    def step() -> list[Tensor]:
        outputs = op(*inputs, *rest)
        return [*outputs, *torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():  # new values at the old addresses
        for tensor in inputs:
            tensor.copy_(tensor.flip(0))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_device_of_the_input_is_used(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    op, _, inputs, rest = _cases(name, True, torch.bfloat16)
    expected = _run(op, inputs, rest)
    moved = [t.detach().to("cuda:1").requires_grad_() for t in inputs]
    with torch.cuda.device(0):
        actual = _run(op, moved, [t.to("cuda:1") for t in rest])
    for a, b in zip(actual, expected, strict=True):
        assert a.device.index == 1
        assert torch.equal(a.to(b.device), b)


# Just past 2^31 elements in the largest tensor, at most 5 such tensors of bfloat16 (22 GB) at a time.
LARGE = 2**31 + 2**20
TAIL = 3


def _tail_matches(op: Call, inputs: list[Tensor], rest: list[Tensor], is_row: list[bool]) -> None:
    """The last rows of a large call equal a call with the last rows alone."""
    outputs = op(*inputs, *rest)
    grads = torch.autograd.grad(
        outputs, inputs, [torch.ones((), device=DEVICE).expand_as(y) for y in outputs]
    )
    small = [
        (t.detach()[-TAIL:].clone() if rows else t.detach()).requires_grad_()
        for t, rows in zip(inputs, is_row, strict=True)
    ]
    small_rest = [t[-TAIL:] for t in rest]
    expected = op(*small, *small_rest)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a[-TAIL:], b)
    expected_grads = torch.autograd.grad(expected, small, [torch.ones_like(y) for y in expected])
    for a, b, rows in zip(grads, expected_grads, is_row, strict=True):
        assert bool(a[-TAIL:].isfinite().all())
        if rows:
            torch.testing.assert_close(a[-TAIL:], b)


def _large(num_columns: int) -> Tensor:
    x = torch.empty(LARGE // num_columns + 1, num_columns, dtype=torch.bfloat16, device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    return x.normal_(generator=generator).requires_grad_()


@pytest.fixture
def memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 70e9:
        pytest.skip("needs 70 GB of free GPU memory")
    yield
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("memory")
def test_past_32_bits_norm() -> None:
    weight = torch.ones(4096, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    _tail_matches(lambda x, w: (ops.rms_norm(x, w),), [_large(4096), weight], [], [True, False])


@pytest.mark.usefixtures("memory")
def test_past_32_bits_swiglu() -> None:
    _tail_matches(lambda x: (ops.swiglu_packed(x),), [_large(8192)], [], [True])


@pytest.mark.usefixtures("memory")
def test_past_32_bits_rope() -> None:
    tables = ops.rope_cache(1, 128, device=DEVICE)

    def rope(x: Tensor) -> tuple[Tensor, ...]:
        x_BTHC = x.view(-1, 1, 32, 128)
        return ops.rope(x_BTHC, x_BTHC[:, :, :1], *tables)

    _tail_matches(rope, [_large(4096)], [], [True])


@pytest.mark.usefixtures("memory")
def test_past_32_bits_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    top_k, num_experts, dim, hidden_dim = 8, 16, 64, 512
    num_tokens = LARGE // (2 * hidden_dim * top_k) + 1  # gate and up past 2^31 elements
    x = torch.randn(num_tokens, dim, generator=generator).to(DEVICE, torch.bfloat16).requires_grad_()
    logits = torch.randn(num_tokens, num_experts, generator=generator).to(DEVICE)
    shapes = (num_experts, 2 * hidden_dim, dim), (num_experts, dim, hidden_dim)
    weights = [
        torch.randn(s, generator=generator).div_(s[2] ** 0.5).to(DEVICE, torch.bfloat16) for s in shapes
    ]
    _tail_matches(
        lambda x, gate_up, down, logits: (ops.moe_experts(x, ops.moe_route(logits, top_k), gate_up, down),),
        [x, *(w.requires_grad_() for w in weights)],
        [logits],
        [True, False, False],
    )


@pytest.mark.parametrize("budget", [0, 3 << 30])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_in_chunks(
    dtype: torch.dtype, softcap: float | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients at once, dz in the place of wider logits; and dz kept. Rows are cut into parts."""
    from pylm.kernels import _logits

    monkeypatch.setattr(logprob, "_KEEP_BYTES", {"cuda": budget})
    monkeypatch.setattr(_logits, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(_logits, "_MIN_CHUNK_ROWS", 256)
    generator = torch.Generator().manual_seed(0)
    shapes = (700, 512), (20003, 512)
    inputs = [torch.randn(s, generator=generator).div_(s[1] ** 0.25) for s in shapes]
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    targets = torch.randint(0, 20003, (700,), generator=generator).to(DEVICE)
    targets[::7] = -100
    logits = wide[0] @ wide[1].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    exact = F.cross_entropy(logits, targets)
    loss = ops.linear_cross_entropy(*leaves, targets, softcap=softcap)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    truth = torch.autograd.grad(exact, wide)
    for actual, value in zip(torch.autograd.grad(loss, leaves), truth, strict=True):
        error = float((actual.double() - value).abs().max())
        # dz, hidden states times the gradient of the loss, and the result are rounded.
        assert error <= (3 * torch.finfo(dtype).eps + SUM_ERROR) * float(value.abs().max())


@pytest.mark.usefixtures("memory")
def test_past_32_bits_logprob() -> None:
    generator = torch.Generator().manual_seed(0)
    # Hidden states past 2^31 elements with few classes, then logits past 2^31 with few features.
    for hidden, num_classes in ((_large(4096), 128), (_large(64)[: LARGE // 32768].detach(), 32768)):
        num_rows, dim = hidden.shape
        weight = torch.randn(num_classes, dim, generator=generator).div_(dim**0.5).to(DEVICE, torch.bfloat16)
        targets = torch.full((num_rows,), num_classes - 1, device=DEVICE)
        _tail_matches(
            lambda h, w, t: tuple(ops.linear_logprob(h, w, t)),
            [hidden.detach().requires_grad_(), weight.requires_grad_()],
            [targets],
            [True, False],
        )
