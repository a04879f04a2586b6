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

from pylm.kernels import rms_norm, rope, swiglu

PAST = 2**31
# A distance that is a 32-bit number itself, so that the kernel's product with an index is not: 4 * 2^29.
FAR = 2**29 + 8
TAIL = 2
FORMS = [("silu", 1.0, None, 0.0), ("silu", 1.702, 7.0, 1.0), ("gelu", 1.0, None, 0.0)]


@pytest.fixture(autouse=True)
def last_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the last programs of a large grid, and copy no storage onto itself."""
    builder, skipped = interpreter.interpreter_builder, [0]
    getitem = interpreter.InterpretedFunction.__getitem__
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def launch(function: Any, grid: tuple[int]) -> Any:
        (num_programs,) = grid
        skipped[0] = num_programs - 4 if num_programs > 1000 else 0
        return getitem(function, (num_programs - skipped[0],))

    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", launch)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)
    monkeypatch.setattr(builder, "set_grid_dim", lambda x, y, z: set_dim(x + skipped[0], y, z))
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(x + skipped[0], y, z))


def _values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).half()


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
