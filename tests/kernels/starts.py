"""Starts that go past Triton's own path, on a GPU that is not there: they launch what Triton would.

Run by `test_starts.py`, through the plugin `oracles.fake_gpu`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import triton
from oracles.fake_gpu import DRIVER, LIBCUDA, Launch, launches_of
from torch import Tensor

from pylm.kernels import (
    _grouped,
    _launch,
    linear_cross_entropy,
    linear_logprob,
    moe_experts,
    moe_route,
    rms_norm,
    rope,
    swiglu,
)

Step = Callable[[], object]


def launch_all_the_way(
    self: _launch.Start, num_rows: int, tensors: tuple[object, ...], *lengths: float
) -> None:
    self._launch(num_rows, tensors, lengths)


@contextmanager
def tritons_way() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _launch.Start,
            "__call__",
            launch_all_the_way,
        )
        yield


@contextmanager
def counting() -> Iterator[list[object]]:
    """Note every start that goes through Triton."""
    seen: list[object] = []
    launch = _launch.Start._launch

    def noted(self: _launch.Start, *arguments: object) -> object:
        seen.append(self)
        return launch(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch.Start, "_launch", noted)
        yield seen


def without_outputs(launches: list[Launch], inputs: list[int]) -> list[Launch]:
    """Blank out addresses that are none of the inputs': outputs are allocated anew by each call."""
    known = set(inputs)
    return [
        launch._replace(params=tuple(p if p in known or p < 1 << 36 else 1 for p in launch.params))
        for launch in launches
    ]


def assert_same(step: Step, *tensors: Tensor) -> list[Launch]:
    """Check that the second and third call launch what Triton launches, and ask Triton nothing."""
    inputs = [tensor.data_ptr() for tensor in tensors]
    with tritons_way():
        expected = without_outputs(launches_of(step), inputs)
    step()
    with counting() as asked:
        second, third = (without_outputs(launches_of(step), inputs) for _ in range(2))
    assert expected
    assert second == third == expected
    assert not asked
    return expected


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def test_every_op_launches_what_triton_would() -> None:
    x, weight, rstd = bf16(6, 64), bf16(64), torch.empty(6)
    assert_same(lambda: rms_norm.forward(x, weight, 1e-6, 0.0), x, weight)
    assert_same(lambda: rms_norm.forward(x, None, 1e-5, 0.0), x)
    assert_same(lambda: rms_norm.add_forward(x, x, weight, 1e-6, 1.0), x, weight)
    assert_same(lambda: rms_norm.backward(x, None, x, weight, rstd, 0.0, True), x, weight, rstd)
    assert_same(lambda: rms_norm.backward(x, x, x, None, rstd, 0.0, False), x, rstd)
    for form in (("silu", 1.0, None, 0.0), ("silu", 1.702, 7.0, 1.0), ("gelu", 1.0, None, 0.0)):
        assert_same(lambda form=form: swiglu.forward(x, x, *form, False), x)
        assert_same(lambda form=form: swiglu.backward(x, x, x, x, *form), x)
        for interleaved in (False, True):
            assert_same(lambda form=form, i=interleaved: swiglu.packed_forward(x, i, *form, False), x)
            grad = bf16(6, 32)
            assert_same(
                lambda form=form, i=interleaved, g=grad: swiglu.packed_backward(g, x, x, i, *form), x, grad
            )
    q, k, cos = bf16(2, 8, 4, 64), bf16(2, 2, 8, 64).transpose(1, 2), torch.empty(16, 32)
    positions = torch.zeros(2, 8, dtype=torch.int32)
    assert_same(lambda: rope.rotate(q, k, cos, cos, None, False, False), q, k, cos)
    assert_same(lambda: rope.rotate(q, k, cos, cos, positions, True, True), q, k, cos, positions)
    hidden, head, targets, bias = bf16(6, 64), bf16(160, 64), torch.zeros(6, dtype=torch.int64), bf16(160)
    row = torch.empty(6)
    needs = [True, True, False]
    for b, cap in ((None, None), (bias, 30.0)):
        call = hidden, head, targets, b, 0.5, cap, -100, True, False, cap is None
        assert_same(lambda call=call: linear_logprob.forward(*call), targets)
        *_, kept = linear_logprob.forward(*call)
        back = hidden, head, targets, b, row, row, row, kept, 0.5, cap, -100, needs
        assert_same(lambda back=back: linear_logprob.backward(row, None, row, None, *back), targets, row)
    logits = torch.empty(6, 16, dtype=torch.bfloat16)
    for call in (
        (None, 2, "softmax", "max", 1, 1, True, 1.0),
        (torch.empty(16), 2, "sigmoid", "top2", 4, 2, False, 2.5),
    ):
        assert_same(lambda call=call: moe_route.forward(logits, *call), logits)
        weight, expert, _, _, load, aux, z, lse = moe_route.forward(logits, *call)
        for upstream in ((weight, aux, z), (None, None, z)):
            back = *upstream, logits, expert, load, lse, call[2], call[6], call[7]
            assert_same(lambda back=back: moe_route.backward(*back), logits, expert, load, lse)
    loss = hidden, head, targets, None, -100, 0.1, 1e-4, [True, True]
    assert_same(lambda: linear_cross_entropy.forward(*loss), targets)
    grads = linear_cross_entropy.forward(*loss)
    assert_same(lambda: linear_cross_entropy.backward(*grads, hidden, head), *grads)
    assert_same(lambda: linear_cross_entropy.keep(*loss[:-1]), targets)
    total, dz = linear_cross_entropy.keep(*loss[:-1])
    back = total, dz, hidden, head, targets, -100, [True, True]
    assert_same(lambda: linear_cross_entropy.backward_of_kept(*back), total)


def experts_steps(
    num_tokens: int, dim: int, hidden_dim: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Step], list[Tensor]]:
    """Return calls of the experts' launchers, and their inputs."""
    num_experts, top_k = 5, 2
    order = torch.zeros(num_tokens * top_k, dtype=torch.int32)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32)
    x, share = torch.empty(num_tokens, dim, dtype=dtype), torch.empty(num_tokens, top_k)
    weights = (
        torch.empty(num_experts, 2 * hidden_dim, dim, dtype=dtype),
        torch.empty(num_experts, dim, hidden_dim, dtype=dtype),
    )
    kept = torch.empty(num_tokens * top_k, 2 * hidden_dim, dtype=dtype)
    given = x, share, order, offsets, *weights
    steps: list[Step] = [
        lambda: moe_experts.forward(*given, True),
        lambda: moe_experts.forward(*given, False),
        lambda: moe_experts.backward(x, *given, kept, [True] * 4),
        lambda: moe_experts.backward(x, *given, kept, [True, False, False, False]),
        lambda: moe_experts.backward(x, *given, kept.new_empty(0, 0), [False, True, True, False]),
    ]
    return steps, [*given, kept]


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "dtype"),
    [(64, 32, torch.bfloat16), (33, 7, torch.bfloat16), (64, 32, torch.float32)],
)
def test_experts_launch_what_triton_would(dim: int, hidden_dim: int, dtype: torch.dtype) -> None:
    for num_tokens in (1, 40) if dim == 64 else (6,):
        steps, inputs = experts_steps(num_tokens, dim, hidden_dim, dtype)
        for step in steps:
            assert_same(step, *inputs)


def test_experts_that_are_described_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, inputs = experts_steps(24, 64, 32)
    described = assert_same(steps[0], *inputs)
    monkeypatch.setattr(_grouped, "DESCRIBED_BYTES", set())
    pointed = assert_same(steps[0], *inputs)
    assert {launch.function for launch in described} != {launch.function for launch in pointed}
    monkeypatch.undo()
    assert assert_same(steps[0], *inputs) == described


def test_indices_of_experts_of_other_dtypes() -> None:
    # The op of the dispatcher takes them as they are.
    _, (x, share, order, offsets, *rest) = experts_steps(24, 64, 32)
    gate_up, down, _ = rest
    functions = []
    for order_dtype, offsets_dtype in ((torch.int32,) * 2, (torch.int64, torch.int32), (torch.int64,) * 2):
        given = x, share, order.to(order_dtype), offsets.to(offsets_dtype), gate_up, down
        launches = assert_same(lambda given=given: moe_experts.forward(*given, True), *given)
        functions.append([launch.function for launch in launches])
    places, tables, products, *_ = zip(*functions, strict=True)
    assert places[0] != places[1] == places[2]
    assert tables[0] == tables[1] != tables[2]
    assert len(set(products)) == 3


def test_other_lengths_ask_triton_nothing() -> None:
    weight, cos = bf16(64), torch.empty(4096, 32)
    x, rstd, q, k = bf16(4096, 64), torch.empty(4096), bf16(2, 4096, 4, 64), bf16(2, 4096, 2, 64)
    head, targets, logits = bf16(160, 64), torch.zeros(4096, dtype=torch.int64), torch.empty(4096, 16)
    row = torch.empty(4096)

    def steps(n: int) -> list[Step]:
        route = None, 2, "softmax", "max", 1, 1, True, 1.0
        layer = None, 1.0, None, -100
        return [
            lambda: rms_norm.forward(x[:n], weight, 1e-6, 0.0),
            lambda: rms_norm.add_forward(x[:n], x[:n], weight, 1e-6, 0.0),
            lambda: rms_norm.backward(x[:n], None, x[:n], weight, rstd[:n], 0.0, True),
            lambda: swiglu.forward(x[:n], x[:n], "silu", 1.0, None, 0.0, False),
            lambda: swiglu.packed_backward(x[:n, :32], x[:n], x, False, "silu", 1.0, None, 0.0),
            lambda: rope.rotate(q[:1, :n], k[:1, :n], cos, cos, None, False, False),
            # Two rows of their own length, as padded batches have.
            lambda: rope.rotate(q[:, :n].contiguous(), k[:, :n].contiguous(), cos, cos, None, False, False),
            lambda: linear_logprob.forward(x[:n], head, targets[:n], *layer, True, False, True),
            lambda: linear_logprob.backward(
                row[:n], None, None, None, x[:n], head, targets[:n], None, row[:n], row[:n], row[:n],
                row[:0], 1.0, None, -100, [True, True, False],
            ),
            lambda: linear_cross_entropy.forward(x[:n], head, targets[:n], None, -100, 0.0, 0.0, [True] * 2),
            lambda: moe_route.forward(logits[:n], *route),
            *experts_steps(n, 64, 32)[0],
        ]  # fmt: skip

    for step in steps(24):
        step()
    for n in (1, 2, 7, 16, 129, 1000):
        with counting() as asked:
            for step in steps(n):
                step()
        assert not asked
        for step in steps(n):
            assert_same(step)


def test_lengths_past_32_bits_take_their_own_kernel() -> None:
    # Address space, never touched.
    many = 2**31 + 5
    functions = [
        assert_same(lambda x=x: swiglu.forward(x, x, "silu", 1.0, None, 0.0, False), x)[0].function
        for x in (bf16(3, 1), bf16(many, 1), bf16(5, 1))
    ]
    assert functions[0] == functions[2] != functions[1]


@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 4096])
@pytest.mark.parametrize("dim", [1, 8, 16, 17, 128])
def test_numbers_of_one_and_multiples_of_16(num_rows: int, dim: int) -> None:
    x = bf16(num_rows, dim)
    assert_same(lambda: swiglu.forward(x, x, "silu", 1.0, None, 0.0, False), x)
    assert_same(lambda: rms_norm.forward(x, None, 1e-6, 0.0), x)


def test_other_sizes_after_the_first_take_their_own_kernel() -> None:
    # 1, a multiple of 16 and another number are three kernels to Triton.
    functions = set()
    for dim in (1, 16, 17, 16, 1):
        x = bf16(3, dim)
        functions.add(assert_same(lambda x=x: rms_norm.forward(x, None, 1e-6, 0.0), x)[0].function)
    assert len(functions) == 3


def test_strides_past_32_bits() -> None:
    step = 2**31 + 16
    # Of the address space only the first page of each row is ever touched, and here not even that.
    far = torch.empty(step + 64, dtype=torch.bfloat16).as_strided((2, 64), (step, 1))
    near = bf16(2, 64)
    functions = [
        assert_same(lambda x=x: swiglu.forward(x, x, "silu", 1.0, None, 0.0, False), x)[0].function
        for x in (near, far)
    ]
    assert functions[0] != functions[1]


def test_addresses_that_are_no_multiples_of_16() -> None:
    base = bf16(6 * 64 + 8)
    aligned, odd = base[: 6 * 64].view(6, 64), base[1 : 6 * 64 + 1].view(6, 64)
    assert aligned.data_ptr() % 16 == 0

    def forward(x: Tensor, other: Tensor) -> Step:
        return lambda: swiglu.forward(x, other, "silu", 1.0, None, 0.0, False)

    # One start for all of them, as sizes, strides and dtypes are the same.
    functions = [
        assert_same(forward(x, other), x, other)[0].function
        for x, other in ((aligned, aligned), (odd, aligned), (aligned, odd), (odd, odd), (aligned, aligned))
    ]
    assert len(set(functions)) == 4
    assert functions[0] == functions[-1]


def test_other_dtypes() -> None:
    x = bf16(6, 64)
    functions = {
        assert_same(lambda w=w: rms_norm.forward(x, w, 1e-6, 0.0), x, w)[0].function
        for w in (bf16(64), torch.empty(64), torch.empty(64, dtype=torch.float16))
    }
    wide = x.double()
    functions.add(assert_same(lambda: rms_norm.forward(wide, None, 1e-6, 0.0), wide)[0].function)
    assert len(functions) == 4
    cos, positions = torch.empty(16, 32), torch.zeros(8, dtype=torch.int64)
    q = bf16(1, 8, 4, 64)
    functions = {
        assert_same(lambda p=p: rope.rotate(q, q, cos, cos, p, False, False), q, cos, p)[0].function
        for p in (positions, positions.int())
    }
    assert len(functions) == 2


def test_the_stream_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = bf16(5, 64)

    def step() -> object:
        return rms_norm.forward(x, None, 1e-6, 0.0)

    step()
    for stream in (7, 21, 0, 7):
        monkeypatch.setitem(DRIVER.streams, 0, stream)
        assert [launch.stream for launch in launches_of(step)] == [stream]


def test_devices_have_their_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    x = bf16(9, 64)
    functions = []
    for device in (0, 1, 0, 1):
        monkeypatch.setattr(DRIVER, "device", device)
        launch = assert_same(lambda: rms_norm.forward(x, None, 1e-6, 0.0), x)[0]
        assert launch.stream == DRIVER.streams[device]
        functions.append(launch.function)
    assert functions[0] == functions[2] != functions[1] == functions[3]


def test_hooks_are_told_of_every_launch() -> None:
    x = bf16(7, 64)
    told: list[str] = []

    def enter(metadata: object) -> None:
        told.append("enter")

    def leave(metadata: object) -> None:
        told.append("exit")

    def step() -> object:
        return rms_norm.forward(x, None, 1e-6, 0.0)

    step()
    step()
    runtime = triton.knobs.runtime
    runtime.launch_enter_hook.add(enter)
    runtime.launch_exit_hook.add(leave)
    try:
        step()
        step()
    finally:
        runtime.launch_enter_hook.remove(enter)
        runtime.launch_exit_hook.remove(leave)
    step()
    assert told == ["enter", "exit"] * 2
    hooks = rms_norm._forward_kernel.pre_run_hooks
    hooks.append(lambda *args, **options: told.append("pre"))
    try:
        step()
    finally:
        hooks.clear()
    assert told[4:] == ["pre"]
    assert_same(step, x)


def test_a_triton_that_is_not_known_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x = bf16(11, 64)
    monkeypatch.setattr(_launch, "_KNOWN_TRITON", ((0, 1), (0, 2)))
    monkeypatch.setattr(_launch, "_prepared_by_class", {})
    rms_norm._forward_start.cache_clear()
    _launch._is_known_triton.cache_clear()
    try:
        with counting() as asked:
            for _ in range(3):
                rms_norm.forward(x, None, 1e-6, 0.0)
        assert len(asked) == 3
    finally:
        monkeypatch.undo()
        _launch._is_known_triton.cache_clear()
        rms_norm._forward_start.cache_clear()


def test_this_triton_is_known() -> None:
    assert _launch._is_known_triton()


def test_threads() -> None:
    num_threads, num_calls, errors = 8, 50, []
    tensors = [bf16(num_rows, 64) for num_rows in range(20, 28)]
    for x in tensors:
        rms_norm.forward(x, None, 1e-6, 0.0)

    def work(seed: int) -> None:
        try:
            for i in range(num_calls):
                x = tensors[(seed + i) % len(tensors)]
                rms_norm.forward(x, None, 1e-6, 0.0)
        except Exception as error:
            errors.append(error)

    LIBCUDA.start_noting(0)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert LIBCUDA.count_launches() == num_threads * num_calls
