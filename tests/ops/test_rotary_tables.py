"""Tables of rope against scalar formulas and against transformers; positions of packed rows."""

import importlib
import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from pylm import ops
from pylm.errors import InputError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
DEEPSEEK = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
}
GPT_OSS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
# Both borders of yarn are the same pair.
NARROW = {
    "rope_type": "yarn",
    "factor": 2.0,
    "beta_fast": 1.5,
    "beta_slow": 1.5,
    "truncate": False,
    "attention_factor": 0.75,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.5, "original_max_position_embeddings": 2048}
PHI = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.03 * i for i in range(48)],
    "long_factor": [1.1 + 1.3 * i for i in range(48)],
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
}
PARTIAL = {"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 2.0}

# name: (scaling, features, theta, sequence length, largest length of the model)
CASES: dict[str, tuple[dict[str, object] | None, int, float, int | None, int]] = {
    "default": ({"rope_type": "default"}, 64, 10_000.0, None, 4096),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 64, 10_000.0, None, 4096),
    "llama3": (LLAMA3, 128, 500_000.0, None, 131_072),
    "dynamic, short": (DYNAMIC, 64, 10_000.0, 100, 2048),
    "dynamic, long": (DYNAMIC, 64, 10_000.0, 5001, 2048),
    "dynamic, unknown": (DYNAMIC, 10, 10_000.0, None, 2048),
    "yarn, qwen": (QWEN, 128, 1_000_000.0, None, 131_072),
    "yarn, deepseek": (DEEPSEEK, 64, 10_000.0, None, 163_840),
    "yarn, gpt-oss": (GPT_OSS, 64, 150_000.0, None, 131_072),
    "yarn, borders outside": ({**QWEN, "truncate": False}, 10, 10.0, None, 131_072),
    "yarn, few positions": ({**QWEN, "original_max_position_embeddings": 64}, 64, 1e4, None, 256),
    "yarn, narrow": (NARROW, 10, 10_000.0, None, 128),
    "yarn, no factor": ({**QWEN, "factor": None, "max_position_embeddings": 98_304}, 128, 1e6, None, 98_304),
    "longrope, short": (PHI, 96, 10_000.0, 4096, 131_072),
    "longrope, long": (PHI, 96, 10_000.0, 4097, 131_072),
    "longrope, given": ({**PHI, "attention_factor": 1.25, "factor": None}, 96, 10_000.0, None, 131_072),
    "proportional": (PARTIAL, 64, 10_000.0, None, 4096),
}


def _yarn(base: float, i: int, dim: int, fields: dict[str, object], factor: float) -> float:
    """Frequency of pair i, from the wavelengths: Peng et al. 2023, section 3.2, in the released form."""
    trained = fields["original_max_position_embeddings"]
    border = [
        dim * math.log(trained / (fields.get(name, default) * 2 * math.pi)) / (2 * math.log(base))
        for name, default in (("beta_fast", 32), ("beta_slow", 1))
    ]
    if fields.get("truncate", True):
        border = [math.floor(border[0]), math.ceil(border[1])]
    low, high = max(border[0], 0), min(border[1], dim - 1)
    if low == high:
        high += 0.001
    share = min(max((i - low) / (high - low), 0.0), 1.0)
    return base ** (-2 * i / dim) * ((1.0 - share) + share / factor)


def _frequency(i: int, dim: int, base: float, fields: dict[str, object], length: int | None) -> float:
    """Frequency of pair i by the formula of each type, one number at a time."""
    kind, plain = fields.get("rope_type", fields.get("type")), base ** (-2 * i / dim)
    trained = fields.get("original_max_position_embeddings")
    if kind == "linear":
        return plain / fields["factor"]
    if kind == "dynamic":
        stretched = max(length or 0, trained) / trained
        return (base * (fields["factor"] * stretched - fields["factor"] + 1) ** (dim / (dim - 2))) ** (
            -2 * i / dim
        )
    if kind == "yarn":
        return _yarn(base, i, dim, fields, fields["factor"] or fields["max_position_embeddings"] / trained)
    if kind == "longrope":
        is_long = length is not None and length > trained
        return plain / fields["long_factor" if is_long else "short_factor"][i]
    if kind == "llama3":
        wavelength = 2 * math.pi / plain
        if wavelength < trained / fields["high_freq_factor"]:
            return plain
        if wavelength > trained / fields["low_freq_factor"]:
            return plain / fields["factor"]
        smooth = (trained / wavelength - fields["low_freq_factor"]) / (
            fields["high_freq_factor"] - fields["low_freq_factor"]
        )
        return (1 - smooth) * plain / fields["factor"] + smooth * plain
    if kind == "proportional":
        rotated = int(fields["partial_rotary_factor"] * dim // 2)
        return plain / fields["factor"] if i < rotated else 0.0
    return plain


# Worked out by hand: 0.1 ln 4 + 1; (0.1 ln 40 + 1) / (0.0707 ln 40 + 1); 0.1 ln 32 + 1;
# 0.1 ln 3 + 1; sqrt(1 + ln 32 / ln 4096) = sqrt(17 / 12).
ATTENTION = {
    "yarn, qwen": 1.138629436111989,
    "yarn, deepseek": (1 + 0.1 * math.log(40)) / (1 + 0.0707 * math.log(40)),
    "yarn, gpt-oss": 1.3465735902799727,
    "yarn, borders outside": 1.138629436111989,
    "yarn, few positions": 1.138629436111989,
    "yarn, narrow": 0.75,
    "yarn, no factor": 1 + 0.1 * math.log(3),
    "longrope, short": math.sqrt(17 / 12),
    "longrope, long": math.sqrt(17 / 12),
    "longrope, given": 1.25,
}


@pytest.mark.parametrize("name", list(CASES))
def test_frequencies_equal_the_formulas(name: str) -> None:
    scaling, dim, theta, length, _ = CASES[name]
    frequencies, factor = ops.rope_frequencies(dim, theta=theta, scaling=scaling, sequence_length=length)
    expected = [_frequency(i, dim, theta, scaling, length) for i in range(dim // 2)]
    assert frequencies.dtype == torch.float64
    assert frequencies.tolist() == pytest.approx(expected, rel=1e-13)
    assert factor == pytest.approx(ATTENTION.get(name, 1.0), rel=1e-15)
    if name in ("llama3", "yarn, qwen", "yarn, deepseek", "yarn, gpt-oss"):
        plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
        ratios = {round(p / e, 6) for p, e in zip(plain, expected, strict=True)}
        assert {1.0, float(scaling["factor"])} < ratios, "kept, blended and divided pairs all occur"


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("name", list(CASES)[1:])
def test_frequencies_equal_transformers(name: str, transformers: ModuleType) -> None:
    rope_utils = importlib.import_module("transformers.modeling_rope_utils")
    scaling, dim, theta, length, longest = CASES[name]
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in rope_utils.ROPE_INIT_FUNCTIONS:
        pytest.skip(f"transformers {transformers.__version__} has no function for {kind!r}")
    fields = {"rope_theta": theta, **scaling, "rope_type": kind}
    is_new = int(transformers.__version__.split(".")[0]) >= 5
    config = transformers.LlamaConfig(
        hidden_size=dim,
        num_attention_heads=1,
        head_dim=dim,
        max_position_embeddings=longest,
        rope_theta=theta,
        **({"rope_parameters": fields} if is_new else {"rope_scaling": fields}),
    )
    expected, attention = rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    frequencies, factor = ops.rope_frequencies(dim, theta=theta, scaling=scaling, sequence_length=length)
    # Theirs are powers in float32: the rounded exponent, at most 1, times ln(theta) <= 14, and 6 roundings.
    torch.testing.assert_close(frequencies.float(), expected, rtol=20 * 2.0**-24, atol=0.0)
    assert factor == pytest.approx(attention, rel=1e-12)


def test_cache_values() -> None:
    cos, sin = ops.rope_cache(100_001, 8, theta=500_000.0)
    for position in (0, 1, 777, 100_000):
        for i in range(4):
            angle = position * 500_000.0 ** (-2 * i / 8)
            # Rounded once from float64: half a unit of float32, where inv_freq in float32 is off by 4e-3.
            assert abs(float(cos[position, i]) - math.cos(angle)) <= 2.0**-25
            assert abs(float(sin[position, i]) - math.sin(angle)) <= 2.0**-25


@pytest.mark.parametrize("name", list(CASES))
def test_cache_holds_the_scaled_angles(name: str) -> None:
    scaling, dim, theta, length, _ = CASES[name]
    frequencies, factor = ops.rope_frequencies(dim, theta=theta, scaling=scaling, sequence_length=length or 7)
    cos, sin = ops.rope_cache(
        7, dim, theta=theta, scaling=scaling, sequence_length=length, dtype=torch.float64
    )
    for position in (0, 1, 6):
        angles = [position * f for f in frequencies.tolist()]
        assert cos[position].tolist() == pytest.approx([factor * math.cos(a) for a in angles], abs=1e-15)
        assert sin[position].tolist() == pytest.approx([factor * math.sin(a) for a in angles], abs=1e-15)


def test_the_rows_of_a_table_are_its_sequence_length() -> None:
    for scaling, dim, trained in ((PHI, 96, 4096), (DYNAMIC, 64, 2048)):
        short, longer = (
            ops.rope_cache(rows, dim, scaling=scaling, dtype=torch.float64)[0][1]
            for rows in (trained, trained + 1)
        )
        assert torch.equal(short, ops.rope_cache(2, dim, scaling=scaling, dtype=torch.float64)[0][1])
        assert not torch.equal(short, longer)
        given = ops.rope_cache(2, dim, scaling=scaling, sequence_length=trained + 1, dtype=torch.float64)
        assert torch.equal(longer, given[0][1])


def test_an_attention_factor_passes_rope_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 5, h, 12, dtype=torch.float64, generator=generator).requires_grad_() for h in (2, 1)
    )
    tables = ops.rope_cache(5, 10, scaling=NARROW, dtype=torch.float64)
    plain = [table / 0.75 for table in tables]
    for interleaved in (False, True):
        for a, b in zip(
            ops.rope(q, k, *tables, interleaved=interleaved),
            ops.rope(q, k, *plain, interleaved=interleaved),
            strict=True,
        ):
            torch.testing.assert_close(a[..., :10], 0.75 * b[..., :10], rtol=1e-14, atol=1e-14)
            assert torch.equal(a[..., 10:], b[..., 10:])
        assert torch.autograd.gradcheck(
            lambda q, k, interleaved=interleaved: ops.rope(q, k, *tables, interleaved=interleaved), (q, k)
        )


def test_cache_errors_name_what_is_wrong() -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("positive even number, got 5", lambda: ops.rope_cache(4, 5)),
        ("num_positions must not be negative, got -1", lambda: ops.rope_cache(-1, 4)),
        ("theta must be positive, got 0", lambda: ops.rope_cache(4, 4, theta=0.0)),
        ("one of default, linear.*got 'ntk'", lambda: ops.rope_cache(4, 4, scaling={"rope_type": "ntk"})),
        (
            "type 'linear' needs the number 'factor', got None",
            lambda: ops.rope_cache(4, 4, scaling={"type": "linear"}),
        ),
        ("needs dim of at least 4", lambda: ops.rope_cache(4, 2, scaling=DYNAMIC)),
        (
            "type 'yarn' needs the number 'factor', got '4'",
            lambda: ops.rope_cache(4, 4, scaling={**QWEN, "factor": "4"}),
        ),
        (
            "needs the number 'original_max_position_embeddings'",
            lambda: ops.rope_cache(4, 4, scaling={"type": "yarn"}),
        ),
        ("needs 2 numbers 'short_factor'.*got 48 of them", lambda: ops.rope_cache(4, 4, scaling=PHI)),
        ("'short_factor'.*got None", lambda: ops.rope_cache(4, 4, scaling={**PHI, "short_factor": None})),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [[3, 1, 4], [0, 2, 0, 0, 5, 0], [1], [7], [0], []])
def test_packed_positions(lengths: list[int], dtype: torch.dtype) -> None:
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    for padding in (0, 3):
        expected = [t for length in [*lengths, padding] for t in range(length)]
        ids = ops.packed_position_ids(torch.tensor(ends, dtype=dtype), sum(lengths) + padding)
        assert ids.dtype == dtype
        assert ids.tolist() == expected


def test_packed_positions_serve_rope() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(9, h, 8, generator=generator) for h in (4, 2))
    tables = ops.rope_cache(9, 8)
    lengths = [4, 2, 3]
    offsets = torch.tensor([0, 4, 6, 9], dtype=torch.int32)
    packed = ops.rope(q, k, *tables, position_ids=ops.packed_position_ids(offsets, 9))
    apart = [ops.rope(a, b, *tables) for a, b in zip(q.split(lengths), k.split(lengths), strict=True)]
    for whole, parts in zip(packed, zip(*apart, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_packed_positions_compile_and_have_shapes() -> None:
    compiled = torch.compile(
        lambda offsets: ops.packed_position_ids(offsets, 5), fullgraph=True, backend="aot_eager"
    )
    assert compiled(torch.tensor([0, 2, 5])).tolist() == [0, 1, 0, 1, 2]
    assert ops.packed_position_ids(torch.empty(3, dtype=torch.int32, device="meta"), 5).shape == (5,)


def test_packed_position_errors() -> None:
    for offsets in (torch.tensor([1, 3]), torch.tensor([0, 3, 2])):
        with pytest.raises(InputError, match=r"must begin with 0 and not fall, got \["):
            ops.packed_position_ids(offsets, 3)
    for offsets in (torch.tensor([[0, 1]]), torch.tensor(0), torch.tensor([]), torch.tensor([0.0, 1.0])):
        with pytest.raises(InputError, match="must be integers of shape"):
            ops.packed_position_ids(offsets, 3)
    with pytest.raises(InputError, match="num_tokens must not be negative"):
        ops.packed_position_ids(torch.tensor([0]), -1)
