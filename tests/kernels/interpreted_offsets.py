"""Offsets past 2^31, without the memory: the kernels' own index arithmetic on memory that is never touched.

Collected by test_interpreted.py. The interpreter computes indices in the types that the compiler gives them,
and they wrap as on a GPU. A tensor of 2^31 elements costs address space until it is written to, and of its
many programs only the last ones are run, on rows that are also given alone, as a small tensor.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from pylm.kernels import (
    _grouped,
    _logits,
    linear_cross_entropy,
    linear_logprob,
    moe_experts,
    moe_route,
    rms_norm,
    rope,
    swiglu,
)

PAST = 2**31
# A distance that is a 32-bit number itself, so that the kernel's product with an index is not: 4 * 2^29.
FAR = 2**29 + 8
TAIL = 2
FORMS = [("silu", 1.0, None, 0.0), ("silu", 1.702, 7.0, 1.0), ("gelu", 1.0, None, 0.0)]


class Programs:
    """Which programs of a large grid are run: the last ones, and the first ones where asked for."""

    first = 0
    skipped = 0


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Run some programs of a large grid, and copy no storage onto itself."""
    builder, run = interpreter.interpreter_builder, Programs()
    getitem = interpreter.InterpretedFunction.__getitem__
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def launch(function: Any, grid: tuple[int, ...]) -> Any:
        run.skipped = grid[0] - run.first - 4 if grid[0] > 100 else 0
        return getitem(function, (grid[0] - run.skipped, *grid[1:]))

    def place(x: int, y: int, z: int) -> None:
        set_idx(x if x < run.first else x + run.skipped, y, z)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", launch)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)
    monkeypatch.setattr(builder, "set_grid_dim", lambda x, y, z: set_dim(x + run.skipped, y, z))
    monkeypatch.setattr(builder, "set_grid_idx", place)
    return run


def _values(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _long(num_columns: int, tail: Tensor | None = None) -> Tensor:
    """Return more than 2^31 elements, (N, num_columns), whose last rows hold random numbers."""
    x = torch.empty(PAST // num_columns + 5, num_columns, dtype=torch.float16)
    x[-TAIL:] = _values(TAIL, num_columns) if tail is None else tail
    return x


def _apart(x: Tensor, dim: int) -> Tensor:
    """Return a copy of x whose elements lie `FAR` apart along `dim`, and together along the others."""
    strides = list(x[(slice(None),) * dim + (slice(1),)].contiguous().stride())
    strides[dim] = FAR
    y = torch.empty(FAR * (x.shape[dim] - 1) + x.numel(), dtype=x.dtype).as_strided(x.shape, strides)
    return y.copy_(x)


def _assert_tail(launch: Callable[..., tuple[Tensor, ...]], *large: Tensor) -> None:
    """The last rows of a large call are the rows of a call with the last rows alone."""
    for a, b in zip(launch(*large), launch(*(x[-TAIL:].clone() for x in large)), strict=True):
        assert bool(b.isfinite().all())
        assert torch.equal(a[-TAIL:], b)


def test_rows_of_the_norm() -> None:
    x, weight = _long(1024), _values(1024)
    _assert_tail(lambda x: rms_norm.forward(x, weight, 1e-6, 0.0), x)
    _assert_tail(lambda x, r: rms_norm.add_forward(x, r, weight, 1e-6, 0.0), x, _long(1024))


def test_rows_of_the_gradient_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many programs as there are rows, else the last one would walk over a third of them.
    monkeypatch.setattr(rms_norm, "num_programs", lambda x: x.shape[0])
    x, grad, added, weight = (*(_long(1024) for _ in range(3)), _values(1024))
    rstd = torch.ones(x.shape[0])
    _assert_tail(
        lambda g, a, x, r: rms_norm.backward(g, a, x, weight, r, 0.0, False)[:1], grad, added, x, rstd
    )


def test_rows_far_apart_of_the_norm() -> None:
    x, weight = _values(5, 33), _values(33)
    rstd = torch.ones(5)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        outputs = rms_norm.add_forward(x, x, weight, 1e-6, 0.0)
        return *outputs, *rms_norm.backward(x, x, x, weight, rstd, 0.0, True)

    assert all(torch.equal(a, b) for a, b in zip(run(_apart(x, 0)), run(x), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_columns", [2048, 1])
def test_rows_of_gated_activations(form: tuple[Any, ...], num_columns: int) -> None:
    gate, up, grad = (_long(num_columns) for _ in range(3))
    _assert_tail(lambda g, u: swiglu.forward(g, u, *form, False)[:1], gate, up)
    _assert_tail(lambda y, g, u: swiglu.backward(y, g, u, u, *form), grad, gate, up)
    for interleaved in (False, True):
        packed = _long(2 * num_columns)
        grad = torch.empty(packed.shape[0], num_columns, dtype=torch.float16)
        grad[-TAIL:] = _values(TAIL, num_columns)
        _assert_tail(lambda x, i=interleaved: swiglu.packed_forward(x, i, *form, False)[:1], packed)
        _assert_tail(lambda y, x, i=interleaved: (swiglu.packed_backward(y, x, x, i, *form),), grad, packed)


@pytest.mark.parametrize("form", FORMS)
def test_rows_far_apart_of_gated_activations(form: tuple[Any, ...]) -> None:
    def run(gate_up: Tensor, grad: Tensor) -> list[Tensor]:
        results = [swiglu.forward(grad, grad, *form, False)[0], *swiglu.backward(*[grad] * 4, *form)]
        for interleaved in (False, True):
            results.append(swiglu.packed_forward(gate_up, interleaved, *form, False)[0])
            results.append(swiglu.packed_backward(grad, gate_up, gate_up, interleaved, *form))
        return results

    gate_up, grad = _values(5, 34), _values(5, 17)
    far = run(_apart(gate_up, 0), _apart(grad, 0))
    assert all(torch.equal(a, b) for a, b in zip(far, run(gate_up, grad), strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_of_rope(interleaved: bool) -> None:
    q = _long(1024)
    num_rows = q.shape[0]
    cos, sin = _values(num_rows, 3), _values(num_rows, 3)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        q, k = q.view(-1, 2, 512), k.view(-1, 1, 1024)[..., :512]
        return rope.rotate(q, k, cos, sin, None, interleaved, False)

    _assert_tail(rotate, q, q, cos, sin)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_table_past_32_bits(interleaved: bool) -> None:
    cos, sin = _long(2), _long(2)
    q, ids = _values(1, 3, 5), torch.tensor([cos.shape[0] - 1], dtype=torch.int32)
    large = rope.rotate(q, q, cos, sin, ids, interleaved, False)
    small = rope.rotate(q, q, cos[-1:].clone(), sin[-1:].clone(), ids * 0, interleaved, False)
    assert torch.equal(large[0], small[0])
    assert bool(small[0].isfinite().all())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "half"), [(0, 3), (1, 2), (2, 3), (3, 2), (3, 3)])
def test_dimensions_far_apart_of_rope(dim: int, half: int, interleaved: bool) -> None:
    shape = [2, 2, 2, 6]
    shape[dim] = max(5, shape[dim])
    q = _values(*shape)
    cos, sin = _values(shape[1], half), _values(shape[1], half)
    ids = (torch.arange(shape[0] * shape[1]).view(shape[:2]) % shape[1]).to(torch.int8)
    for position_ids in (None, ids, _apart(ids, 0), _apart(ids, 1)):
        plain = None if position_ids is None else position_ids.contiguous()
        far = rope.rotate(_apart(q, dim), _apart(q, dim), cos, sin, position_ids, interleaved, False)
        for a, b in zip(far, rope.rotate(q, q, cos, sin, plain, interleaved, False), strict=True):
            assert torch.equal(a, b)


def _past(*columns: Tensor) -> list[Tensor]:
    """Return tensors of more than 2^31 elements, in one storage, that end with the given ones."""
    memory = torch.empty(PAST + 64 * len(columns), dtype=columns[0].dtype)
    large = [memory[64 * i : 64 * i + PAST + len(column)] for i, column in enumerate(columns)]
    for x, column in zip(large, columns, strict=True):
        x[PAST:] = column
    return large


# The output layer: rows of 21 logits, padded to 24.

CLASSES = 21, 24
TARGETS = torch.tensor([3, 0, -100, 20, 7], dtype=torch.int8)


def _go_over_rows(
    product: Tensor, targets: Tensor, statistics: list[Tensor], out: Tensor, leaves: str, first_row: int = 0
) -> None:
    start = _logits._row_start(
        CLASSES,
        (product.stride(0), out.stride(0)),
        (product.dtype, None, targets.dtype, torch.float32, out.dtype),
        (0.7, None, 0.1, 1e-4, -100, True, True, leaves),
    )
    start(5, (product, product, targets, *statistics, out), first_row)


@pytest.mark.parametrize("leaves", ["nothing", "probabilities", "gradient"])
def test_rows_far_apart_of_logits(leaves: str) -> None:
    product = _values(5, 24, dtype=torch.float32)
    results = []
    for x, out in (
        (product, torch.zeros(5, 24).half()),
        (_apart(product, 0), _apart(torch.zeros(5, 24).half(), 0)),
    ):
        statistics = [torch.empty(5) for _ in range(4)]
        _go_over_rows(x, TARGETS, statistics, out, leaves)
        results.append([*statistics, out])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    exact = torch.log_softmax(product[:, :21].double() / 0.7, -1)[0, 3]
    torch.testing.assert_close(results[0][0][0].double(), exact, rtol=1e-5, atol=1e-5)


def test_rows_of_logits_past_32_bits() -> None:
    product = _values(5, 24, dtype=torch.float32)
    results = []
    for targets, statistics, row in (
        (TARGETS, [torch.empty(5) for _ in range(4)], 0),
        (_past(TARGETS)[0], _past(*torch.zeros(4, 5)), PAST),
    ):
        out = torch.empty(5, 24).half()
        _go_over_rows(product, targets, statistics, out, "gradient", row)
        results.append([*(x[-5:] for x in statistics), out])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert bool((results[0][0] != 0).any())


def _gradient(
    source: Tensor, targets: Tensor, sums: list[Tensor], upstream: list[Tensor], out: Tensor, *,
    from_probabilities: bool, first_row: int = 0,
) -> Tensor:  # fmt: skip
    start = linear_logprob._gradient_start(
        CLASSES,
        (source.stride(0), out.stride(0)),
        tuple(g.stride(0) for g in upstream),
        (source.dtype, None, targets.dtype, torch.float32, out.dtype, *[g.dtype for g in upstream]),
        (0.7, None, -100, from_probabilities),
    )
    start(5, (source, source, targets, *sums, *upstream, out), first_row)
    return out


@pytest.mark.parametrize("from_probabilities", [False, True])
def test_rows_far_apart_of_the_gradient_of_logits(from_probabilities: bool) -> None:
    source = _values(5, 24, dtype=torch.float32).softmax(1)
    sums, upstream = [torch.zeros(5), torch.ones(5)], list(_values(4, 5, dtype=torch.float32))
    options: dict[str, Any] = {"from_probabilities": from_probabilities}
    near = _gradient(source, TARGETS, sums, upstream, torch.empty(5, 24).half(), **options)
    out = _apart(near * 0, 0)
    far = [_apart(g, 0) for g in upstream]
    assert torch.equal(_gradient(_apart(source, 0), TARGETS, sums, far, out, **options), near)
    assert bool((near != 0).any())
    out = torch.empty(5, 24).half()
    past = _past(*sums, *upstream)
    large = _gradient(
        source, _past(TARGETS)[0], past[:2], past[2:], out, first_row=PAST, **options
    )  # fmt: skip
    assert torch.equal(large, near)


def test_gradients_of_weights_past_32_bits() -> None:
    grad, factor, small = _long(1024), torch.tensor(0.5), torch.ones(3, 2)
    _, scaled = linear_cross_entropy.backward(factor, small, grad, small, grad)
    assert torch.equal(scaled[-TAIL:], grad[-TAIL:] * 0.5)


# The router


def _route(logits: Tensor) -> list[Tensor]:
    return list(moe_route.forward(logits, None, 2, "sigmoid", "top2", 3, 2, True, 2.5))


@pytest.mark.parametrize("dim", [0, 1])
def test_dimensions_far_apart_of_the_router(dim: int) -> None:
    logits = _values(7, 6)
    near, far = _route(logits), _route(_apart(logits, dim))
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
    expert, load, lse = near[1], near[4], near[7]
    grad_weight = _values(7, 2, dtype=torch.float32)
    grads = [
        moe_route.backward(g, torch.ones(()), torch.ones(()), x, expert, load, lse, "sigmoid", True, 2.5)
        for g, x in ((grad_weight, logits), (_apart(grad_weight, 0), _apart(logits, dim)))
    ]
    assert torch.equal(*grads)
    assert bool((grads[0] != 0).any())


def _route_starts(logits: Tensor) -> Any:
    starts = moe_route._forward_starts(
        1024, logits.stride(), (logits.dtype, None), 2, "softmax", "max", (1, 1), True, 1.0
    )
    assert starts.block_n == 1, "a program has more than a token"
    return starts


def test_tokens_of_the_router() -> None:
    logits, top_k = _long(1024), 2
    num_tokens = logits.shape[0]

    def choose(logits: Tensor) -> tuple[Tensor, ...]:
        n = logits.shape[0]
        weight, expert, lse = torch.empty(n, top_k), torch.empty(n, top_k, dtype=torch.int64), torch.empty(n)
        load, share, z = torch.empty(n, 1024, dtype=torch.int32), torch.empty(n, 1024), torch.empty(n)
        _route_starts(logits).choose(n, (logits, logits, weight, expert, lse, load, share, z), n)
        return weight, expert, lse, load, share, z

    _assert_tail(choose, logits)
    # All tokens have gone to experts 0 and 1, the last one goes to 5 and 9.
    last = num_tokens - 1
    expert, load = torch.tensor([0, 1]).repeat(num_tokens, 1), torch.zeros(1024, dtype=torch.int32)
    expert[last] = torch.tensor([5, 9])
    load[:2], load[5], load[9] = last, 1, 1
    before = torch.empty(num_tokens, 1024, dtype=torch.int32)
    before[-4:] = 0
    before[-4:, :2] = torch.arange(last - 3, last + 1)[:, None]
    order = torch.empty(num_tokens * top_k, dtype=torch.int32)
    outputs = order, torch.empty(1025, dtype=torch.int32), torch.empty(()), torch.empty(())
    given = expert, before, load, torch.empty(1024), torch.empty(num_tokens)
    _route_starts(logits).sort(num_tokens, (*given, *outputs), num_tokens, num_tokens, float(num_tokens))
    evens = [2 * token for token in range(last - 3, last)]
    assert order[last - 3 : last].tolist() == evens
    assert order[2 * last - 3 :].tolist() == [*(choice + 1 for choice in evens), 2 * last, 2 * last + 1]


def test_tokens_of_the_gradient_of_the_router() -> None:
    logits = _long(1024)
    num_tokens = logits.shape[0]
    expert = torch.tensor([3, 1000]).repeat(num_tokens, 1)
    weight, load, lse = (
        torch.randn(num_tokens, 2),
        torch.zeros(1024, dtype=torch.int32),
        torch.zeros(num_tokens),
    )

    def differentiate(logits: Tensor, weight: Tensor, expert: Tensor, lse: Tensor) -> tuple[Tensor]:
        return (moe_route.backward(weight, None, None, logits, expert, load, lse, "softmax", True, 1.0),)

    _assert_tail(differentiate, logits, weight, expert, lse)


# The experts


def _experts(x: Tensor, share: Tensor, gate_up: Tensor, down: Tensor, grad: Tensor) -> list[Tensor]:
    order = torch.tensor([0, 5, 2, 8, 1, 3, 9, 4, 6, 7], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 4, 4, 7, 10], dtype=torch.int32)
    y, kept = moe_experts.forward(x, share, order, offsets, gate_up, down, True)
    grads = moe_experts.backward(grad, x, share, order, offsets, gate_up, down, kept, [True] * 4)
    return [y, kept, *grads]


@pytest.mark.parametrize(("places", "dim"), [((0, 4), 0), ((2, 3), 0), ((2, 3), 1), ((2, 3), 2)])
def test_dimensions_far_apart_of_experts(places: tuple[int, int], dim: int) -> None:
    tensors = [_values(5, 8), _values(5, 2), _values(5, 16, 8), _values(5, 8, 8), _values(5, 8)]
    near = _experts(*tensors)
    for place in places:
        tensors[place] = _apart(tensors[place], dim)
    for a, b in zip(_experts(*tensors), near, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-9, atol=2**-9)  # other tiles add up in another order
        assert bool(b.isfinite().all())


def test_rows_of_experts(programs: Programs) -> None:
    programs.first = 8  # the tiles that there are
    num_rows, num_few, hidden_dim = PAST // 512 + 128, 70, 256
    gate_up, down = _values(2, 2 * hidden_dim, 8), _values(2, 8, hidden_dim)
    x, grad, share = (_values(num_few, d) for d in (8, 8, 1))

    def run(n: int) -> list[Tensor]:
        # Experts have the last rows; those before are no one's.
        start = n - num_few
        order, offsets = torch.arange(n, dtype=torch.int32), torch.tensor([start, start + 40, n]).int()
        given = [torch.cat((t.new_zeros(start, t.shape[1]), t)) for t in (x, share)]
        upstream = torch.cat((grad.new_zeros(start, 8), grad))
        y, kept = moe_experts.forward(*given, order, offsets, gate_up, down, True)
        assert kept.shape == (n, 2 * hidden_dim)
        grads = moe_experts.backward(upstream, *given, order, offsets, gate_up, down, kept, [True] * 4)
        return [kept[-num_few:], y[-TAIL:], grads[0][-TAIL:], grads[1][-num_few:], *grads[2:]]

    for a, b in zip(run(num_rows), run(num_few), strict=True):
        assert torch.equal(a, b)
        assert bool(b.isfinite().all())


def test_gradients_of_experts_past_32_bits() -> None:
    num_a, num_b = 2**15 + 128, 2**15
    a, b = _values(3, num_a), _values(3, num_b)
    order, offsets = torch.arange(3, dtype=torch.int32), torch.tensor([0, 1, 3], dtype=torch.int32)
    rows = _grouped.SortedRows(order, offsets, 1, a, b)
    grads = _grouped.outer_products(a, b, rows, gathers_a=False)
    assert grads.numel() > PAST
    expected = a[1:, -128:].double().T @ b[1:, -256:].double()
    torch.testing.assert_close(grads[-1, -128:, -256:].double(), expected, rtol=2**-10, atol=2**-10)
