"""Tables of cosines and sines for `rope`, the frequencies behind them, and positions of packed rows.

Pair i of R rotated features turns by theta^(-2 i / R) a position (Su et al., 2021). Context extensions
change these frequencies, and some lengthen queries and keys by an attention factor.

Shapes: R rotated features, P rows of the table, S packed sequences, T tokens.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import check_float_dtype, is_finite, is_integer, is_integral

_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def rope_cache(
    num_positions: int,
    dim: int,
    *,
    theta: float = 10_000.0,
    scaling: Mapping[str, object] | None = None,
    sequence_length: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Build the table of cosines and sines that `rope` reads.

    Angles are computed in float64, so that far positions keep their precision, and rounded once.

    Args:
        num_positions: P, the rows of the table.
        dim: R, the number of rotated features, even.
        theta: base of the frequencies theta^(-2 i / R).
        scaling: context extension in the terms of Hugging Face configurations; see `rope_frequencies`.
        sequence_length: the length that "dynamic" and "longrope" scale for; None takes `num_positions`.
        device: where the table is put.
        dtype: of the table.

    Returns:
        cos and sin, each (P, R / 2), times the attention factor of the extension.

    Raises:
        InputError: a number is out of range, or `scaling` names an unknown type or lacks a field.

    Example:
        >>> cos, sin = rope_cache(2048, 64, theta=500_000.0)
        >>> q, k = rope(q, k, cos, sin)
    """
    if not is_integer(num_positions) or num_positions < 0:
        raise InputError(
            f"rope_cache: num_positions must not be negative, got {num_positions!r}; pass a whole number"
        )
    check_float_dtype("rope_cache", dtype)
    length = num_positions if sequence_length is None else sequence_length
    frequencies, factor = rope_frequencies(dim, theta=theta, scaling=scaling, sequence_length=length)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequencies)
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos.mul_(factor), sin.mul_(factor)
    return cos.to(dtype).to(device), sin.to(dtype).to(device)


def rope_frequencies(
    dim: int,
    *,
    theta: float = 10_000.0,
    scaling: Mapping[str, object] | None = None,
    sequence_length: int | None = None,
) -> tuple[Tensor, float]:
    """Return the angle that every pair turns by at each position, and the attention factor.

    With f = theta^(-2 i / R) and the fields of `scaling`, n = original_max_position_embeddings, by
    `rope_type` (or `type`):

        linear        f / factor
        dynamic       f of the base theta (factor m / n - factor + 1)^(R / (R - 2)), m = sequence_length
                      where that is more than n, else n (NTK-aware, Qwen 1, Yi)
        yarn          f for pairs of more than beta_fast (32) turns in n positions, f / factor for those of
                      fewer than beta_slow (1), blended linearly in i between; the two borders are rounded
                      outward unless truncate is false. The attention factor is 0.1 ln(factor) + 1, or the
                      quotient of 0.1 m ln(factor) + 1 for m = mscale and m = mscale_all_dim where both are
                      given (Qwen 2.5, DeepSeek, gpt-oss)
        longrope      f / long_factor[i] where sequence_length is more than n, else f / short_factor[i]; the
                      attention factor is sqrt(1 + ln(factor) / ln(n)) (Phi 3)
        llama3        f / factor for pairs of fewer than low_freq_factor turns in n positions, f for those of
                      more than high_freq_factor, blended linearly in turns between
        proportional  f / factor for the first partial_rotary_factor of the pairs, 0 for the rest (Gemma 4)

    A field attention_factor overrides that of yarn and longrope, whose factor is
    max_position_embeddings / n where there is no field factor.

    Args:
        dim: R, the number of rotated features, even.
        theta: base of the frequencies; a field `rope_theta` of `scaling` is not read.
        scaling: context extension in the terms of Hugging Face configurations, or None.
        sequence_length: the longest sequence, for "dynamic" and "longrope"; None means at most n.

    Returns:
        Frequencies, float64 (R / 2,) on the CPU, and the factor for cosines and sines.

    Raises:
        InputError: `dim` is odd, `theta` is not positive, or `scaling` names an unknown type, lacks a field
            or has one that does not fit.

    Source:
        Su et al., 2021 (plain); Chen et al., "Extending Context Window of Large Language Models via
        Positional Interpolation", 2023 (linear); Peng et al., "YaRN", 2023 (dynamic, yarn); Ding et al.,
        "LongRoPE", 2024; the releases of Llama 3.1, DeepSeek V2 (mscale) and Gemma 4 (proportional).
    """
    if not is_integer(dim) or dim % 2 or dim <= 0:
        raise InputError(f"rope_frequencies: dim must be a positive even number, got {dim!r}")
    if not is_finite(theta) or theta <= 0.0:
        raise InputError(f"rope_frequencies: theta must be positive, got {theta!r}; pass a finite number")
    if sequence_length is not None and (not is_integer(sequence_length) or sequence_length < 0):
        raise InputError(
            f"rope_frequencies: sequence_length must be a whole number of at least 0, or None, "
            f"got {sequence_length!r}"
        )
    if scaling is not None and not isinstance(scaling, Mapping):
        raise InputError(
            f"rope_frequencies: scaling must be a mapping or None, got {scaling!r}; "
            f'pass the field of the configuration, {{"rope_type": ...}}'
        )
    frequencies = _plain(dim, theta)
    if scaling is None:
        return frequencies, 1.0
    kind = _kind(scaling)
    if kind == "linear":
        return frequencies / _positive(scaling, "factor"), 1.0
    if kind == "dynamic":
        return _dynamic(dim, theta, scaling, sequence_length), 1.0
    if kind == "yarn":
        return _yarn(frequencies, theta, scaling)
    if kind in ("longrope", "su"):
        return _longrope(frequencies, scaling, sequence_length)
    if kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if kind == "proportional":
        share = _number(scaling, "partial_rotary_factor", 1.0)
        if share > 1.0:
            raise _unfit(scaling, "partial_rotary_factor", "must be in [0, 1]")
        frequencies[int(share * dim // 2) :] = 0.0
        return frequencies / _positive(scaling, "factor", 1.0), 1.0
    if kind != "default":
        raise InputError(f"rope_frequencies: rope_type must be one of {', '.join(_KINDS)}, got {kind!r}")
    return frequencies, 1.0


def _plain(dim: int, theta: float) -> Tensor:
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _dynamic(dim: int, theta: float, scaling: Mapping[str, object], sequence_length: int | None) -> Tensor:
    if dim == 2:
        raise InputError("rope_frequencies: scaling of type 'dynamic' needs dim of at least 4, got 2")
    factor, trained = _positive(scaling, "factor"), _trained(scaling)
    length = max(trained, sequence_length or 0)
    return _plain(dim, theta * (factor * length / trained - (factor - 1.0)) ** (dim / (dim - 2)))


def _yarn(frequencies: Tensor, theta: float, scaling: Mapping[str, object]) -> tuple[Tensor, float]:
    if theta == 1.0:
        raise InputError(
            "rope_frequencies: scaling of type 'yarn' needs another theta than 1: all pairs are alike"
        )
    trained = _trained(scaling)
    factor = _extension(scaling, trained)
    num_pairs = frequencies.shape[0]

    def pair_of(turns: float) -> float:
        """Return the pair, not a whole number, that turns so often in the trained positions."""
        return num_pairs * math.log(trained / (turns * 2.0 * math.pi)) / math.log(theta)

    fast, slow = _positive(scaling, "beta_fast", 32.0), _positive(scaling, "beta_slow", 1.0)
    if fast < slow:
        raise _unfit(scaling, "beta_fast", f"must not be below beta_slow, {slow}")
    low, high = pair_of(fast), pair_of(slow)
    truncate = scaling.get("truncate", True)
    if truncate not in (True, False):
        raise _unfit(scaling, "truncate", "must be true or false")
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper bound counts features, not pairs, and an empty range has the width 0.001: models are
    # trained with the frequencies that this gives.
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    width = high - low if high != low else 0.001
    blend = ((torch.arange(num_pairs, dtype=torch.float64) - low) / width).clamp(0.0, 1.0)
    scaled = frequencies * (1.0 - blend) + frequencies / factor * blend
    mscale, mscale_all = (_number(scaling, name, 0.0) for name in ("mscale", "mscale_all_dim"))
    attention = _attention_scale(factor, 1.0)
    if mscale and mscale_all:
        attention = _attention_scale(factor, mscale) / _attention_scale(factor, mscale_all)
    return scaled, _positive(scaling, "attention_factor", attention)


def _attention_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _longrope(
    frequencies: Tensor, scaling: Mapping[str, object], sequence_length: int | None
) -> tuple[Tensor, float]:
    trained = _trained(scaling)
    is_long = sequence_length is not None and sequence_length > trained
    factors = _numbers(scaling, "long_factor" if is_long else "short_factor", frequencies.shape[0])
    given = scaling.get("attention_factor")
    attention = 1.0
    if given is None:
        factor = _extension(scaling, trained)
        if factor > 1.0 and trained == 1.0:
            raise _unfit(scaling, "original_max_position_embeddings", "must be more than 1")
        attention = math.sqrt(1.0 + math.log(factor) / math.log(trained)) if factor > 1.0 else 1.0
    return frequencies / factors, _positive(scaling, "attention_factor", attention)


def _llama3(frequencies: Tensor, scaling: Mapping[str, object]) -> Tensor:
    factor = _positive(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if not high > low:
        raise _unfit(scaling, "high_freq_factor", f"must be more than low_freq_factor, {low}")
    turns = frequencies * _trained(scaling) / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / factor)


def _kind(scaling: Mapping[str, object]) -> object:
    return scaling.get("rope_type", scaling.get("type"))


def _extension(scaling: Mapping[str, object], trained: float) -> float:
    """Return how many times longer than the trained context the extended one is."""
    if scaling.get("factor") is None and scaling.get("max_position_embeddings") is not None:
        return _positive(scaling, "max_position_embeddings") / trained
    return _positive(scaling, "factor")


def _trained(scaling: Mapping[str, object]) -> float:
    """Return the length of the context that the model was trained with."""
    trained = _number(scaling, "original_max_position_embeddings")
    if trained < 1.0:
        raise _unfit(scaling, "original_max_position_embeddings", "must be at least 1")
    return trained


def _positive(scaling: Mapping[str, object], field: str, default: float | None = None) -> float:
    value = _number(scaling, field, default)
    if value <= 0.0:
        raise _unfit(scaling, field, "must be positive")
    return value


def _unfit(scaling: Mapping[str, object], field: str, expected: str) -> InputError:
    kind, got = _kind(scaling), scaling.get(field)
    return InputError(f"rope_frequencies: {field} of scaling of type {kind!r} {expected}, got {got!r}")


def _number(scaling: Mapping[str, object], field: str, default: float | None = None) -> float:
    """Return a field, a finite number of at least 0; where it is absent or None the default, if any."""
    value = scaling.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float):
        raise InputError(
            f"rope_frequencies: scaling of type {_kind(scaling)!r} needs the number {field!r}, got {value!r}"
        )
    if not is_finite(value) or isinstance(value, bool):
        raise _unfit(scaling, field, "must be a finite number")
    if value < 0.0:
        raise _unfit(scaling, field, "must not be negative")
    return float(value)


def _numbers(scaling: Mapping[str, object], field: str, count: int) -> Tensor:
    values = scaling.get(field)
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        got = f"{len(values)} of them" if isinstance(values, Sequence) else repr(values)
        raise InputError(
            f"rope_frequencies: scaling of type {_kind(scaling)!r} needs {count} numbers {field!r}, "
            f"one a pair of features, got {got}"
        )
    for value in values:
        if not is_finite(value) or value <= 0.0:
            raise _unfit(scaling, field, "must hold positive numbers")
    return torch.tensor(values, dtype=torch.float64)


def packed_position_ids(offsets: Tensor, num_tokens: int) -> Tensor:
    """Count the positions of packed sequences, each from 0, without asking the GPU.

    Args:
        offsets: integer (S + 1,), where each sequence begins and the last one ends: the `cu_seqlens` of
            variable-length attention. They begin with 0 and do not fall; sequences may be empty.
        num_tokens: T, the length of the row; tokens behind the last offset are counted from 0 as well.

    Returns:
        position_ids (T,) for `rope`, of the dtype and on the device of `offsets`.

    Raises:
        InputError: `offsets` has not one dimension or no element, is not of integers, or on the CPU does
            not begin with 0 or falls. A GPU cannot be asked; wrong offsets there give negative positions,
            and so NaN.

    Example:
        >>> packed_position_ids(torch.tensor([0, 3, 5]), 6).tolist()
        [0, 1, 2, 0, 1, 0]
    """
    if not isinstance(offsets, Tensor):
        raise InputError(
            f"packed_position_ids: offsets must be a tensor, got {type(offsets).__name__}; convert it first"
        )
    if offsets.dim() != 1 or offsets.shape[0] == 0 or not is_integral(offsets):
        raise InputError(
            f"packed_position_ids: offsets must be integers of shape (S + 1,), "
            f"got {offsets.dtype} {tuple(offsets.shape)}"
        )
    if not is_integer(num_tokens) or num_tokens < 0:
        raise InputError(
            f"packed_position_ids: num_tokens must not be negative, got {num_tokens!r}; pass a whole number"
        )
    if num_tokens > torch.iinfo(offsets.dtype).max:
        raise InputError(
            f"packed_position_ids: offsets must be of a dtype that holds num_tokens={num_tokens}, "
            f"got {offsets.dtype}; convert them to int32"
        )
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling():
        first, falls = int(offsets[0]), bool((offsets.diff() < 0).any())
        if first != 0 or falls:
            raise InputError(
                f"packed_position_ids: offsets must begin with 0 and not fall, got {offsets[:8].tolist()}; "
                f"pass cumulative lengths, cat((0, lengths.cumsum(0)))"
            )
    tokens = torch.arange(num_tokens, dtype=offsets.dtype, device=offsets.device)
    # The sequence of a token is the last one that begins at it or before: empty ones are passed by.
    sequence = torch.searchsorted(offsets.contiguous(), tokens, right=True) - 1
    return tokens - offsets[sequence.clamp(min=0)]
