"""Rotary position embedding of queries and keys.

Feature pair i of position t turns by the angle t * theta^(-2 i / R) (Su et al., 2021). The pair is
(i, i + R / 2) in the usual layout, (2 i, 2 i + 1) in the interleaved one.

Shapes: B batch, T time, H query heads, K key heads, C features of a head, R <= C rotated features,
P rows of the table.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pylm.errors import InputError
from pylm.ops._library import (
    check_device,
    check_flag,
    check_float,
    compute_dtype,
    define_op,
    is_integral,
    register_autograd,
)

# On the CPU the passes over a chunk of this many elements stay in the second-level cache.
_CHUNK_ELEMENTS = 1 << 17


def _split(x: Tensor, size: int) -> Tensor:
    """View x (..., R) as (..., size, R / size)."""
    return x.view(*x.shape[:-1], size, x.shape[-1] // size)


def _rotate_halves(y: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate x (..., R) into y; cos and sin broadcast to (..., 2, R / 2) and (..., R / 2)."""
    half = sin.shape[-1]
    torch.mul(_split(x, 2), cos, out=_split(y, 2))
    y[..., :half].addcmul_(x[..., half:], sin, value=-1.0)
    y[..., half:].addcmul_(x[..., :half], sin)


def _pairs(x: Tensor) -> Tensor:
    """Return x (..., R) as complex numbers (..., R / 2), a view where it lies as those have to."""
    x = x.contiguous()
    # Contiguous tensors may start anywhere, and have any stride along a dimension of one.
    if x.storage_offset() % 2 or any(stride % 2 for stride in x.stride()[:-1]):
        x = x.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(_split(x, x.shape[-1] // 2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate x (..., T, H, C) by cos and sin of shape (T, R / 2) or (..., T, R / 2)."""
    time, num_heads, num_features = x.shape[-3:]
    half = cos.shape[-1]
    wide = x.to(cos.dtype).reshape(math.prod(x.shape[:-3]), time, num_heads, num_features)
    y = torch.empty(wide.shape, dtype=cos.dtype)
    if 2 * half < num_features:
        y[..., 2 * half :] = wide[..., 2 * half :]
    x_rot, y_rot = wide[..., : 2 * half], y[..., : 2 * half]
    tables = math.prod(cos.shape[:-2])
    cos, sin = cos.reshape(tables, time, 1, half), sin.reshape(tables, time, 1, half)
    if interleaved:
        # A pair is a complex number: one pass.
        pairs = _pairs(x_rot)
        if 2 * half == num_features:
            torch.mul(pairs, torch.complex(cos, sin), out=torch.view_as_complex(_split(y, half)))
        else:
            _split(y_rot, half).copy_(torch.view_as_real(pairs * torch.complex(cos, sin)))
    elif wide.numel() <= _CHUNK_ELEMENTS:
        _rotate_halves(y_rot, x_rot, cos.unsqueeze(-2), sin)
    else:
        _rotate_chunks(y_rot, x_rot, cos, sin)
    return y.to(x.dtype).view(x.shape)


def _rotate_chunks(y: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate x (B, T, H, R) into y block by block of positions, the batch rows of a block in turn."""
    batch, time, num_heads, num_features = x.shape
    step = max(1, _CHUNK_ELEMENTS // (num_heads * num_features))
    for start in range(0, time, step):
        block = slice(start, start + step)
        # Tables that are written out for all heads give long inner loops, and serve every batch row.
        block_cos = cos[:, block].unsqueeze(-2).expand(-1, -1, num_heads, 2, -1)
        block_sin = sin[:, block].expand(-1, -1, num_heads, -1)
        if cos.shape[0] == 1:
            block_cos, block_sin = block_cos.contiguous(), block_sin.contiguous()
        for row in range(batch):
            table = row if cos.shape[0] > 1 else 0
            _rotate_halves(y[row, block], x[row, block], block_cos[table], block_sin[table])


def _rope_cpu(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    num_positions, time = cos.shape[0], q.shape[-3]
    if position_ids is None:
        cos, sin = cos[:time], sin[:time]
    else:
        if position_ids.numel():
            low, high = torch.aminmax(position_ids)
            if int(low) < 0 or int(high) >= num_positions:
                raise InputError(
                    f"rope: position_ids must be in [0, {num_positions}), the rows of cos, "
                    f"got {int(low)} to {int(high)}; build a longer table with rope_cache"
                )
        position_ids = position_ids.long()  # uint8 would select by mask
        cos, sin = cos[position_ids], sin[position_ids]
    wide = compute_dtype(q)
    cos, sin = cos.to(wide), sin.to(wide)
    if inverse:
        sin = -sin
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rope_fake(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


_ROPE = define_op(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? position_ids, bool interleaved, bool inverse)"
    " -> (Tensor q_rotated, Tensor k_rotated)",
    cpu=_rope_cpu,
    kernel="rope.rotate",
    fake=_rope_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, cos, sin, position_ids, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin, position_ids)


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin, position_ids = ctx.saved_tensors
    # The gradient of a rotation is the rotation back; an attention factor in the tables stays.
    grad_q, grad_k = _ROPE(grad_q, grad_k, cos, sin, position_ids, ctx.interleaved, not ctx.inverse)
    return grad_q, grad_k, None, None, None, None, None


register_autograd("rope", _backward, setup_context=_save)


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    position_ids: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions.

    Args:
        q: (..., T, H, C), any strides; tensors laid out (B, H, T, C) are passed as `q.transpose(1, 2)`.
        k: (..., T, K, C); the dimensions before the last two are those of `q`.
        cos: (P, R / 2) cosines from `rope_cache`; R <= C, features from R on pass unchanged.
        sin: (P, R / 2) sines. Cosines and sines receive no gradient.
        position_ids: integer rows of the table, (T,), or (..., T) like q without its last two dimensions
            or of a shape that broadcasts to theirs, as (1, T) does; None means 0 .. T - 1. Out of range
            is an error on the CPU and NaN on a GPU, which cannot be asked without waiting for it.
        interleaved: pair features (2 i, 2 i + 1) and not (i, i + R / 2).

    Returns:
        The rotated q and k, contiguous, in their dtypes, computed in float32.

    Raises:
        InputError: a shape, dtype, device or position does not fit.

    Source:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    check_float("rope", q=q, k=k, cos=cos, sin=sin)
    check_device("rope", q, k=k, cos=cos, sin=sin, position_ids=position_ids)
    check_flag("rope", interleaved=interleaved)
    if q.dim() < 3 or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise InputError(
            f"rope: q (..., T, H, C) and k (..., T, K, C) must agree in all but the heads, "
            f"got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if cos.dim() != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > q.shape[-1]:
        raise InputError(
            f"rope: cos and sin must both be (P, R / 2) with R <= {q.shape[-1]}, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}; make them with rope_cache"
        )
    if position_ids is None:
        if q.shape[-3] > cos.shape[0]:
            raise InputError(
                f"rope: q has {q.shape[-3]} positions but cos only {cos.shape[0]} rows; "
                f"build a longer table with rope_cache"
            )
    else:
        position_ids = _check_positions(q, position_ids)
    if cos.shape[1] == 0:
        copy = torch.contiguous_format
        return q.clone(memory_format=copy), k.clone(memory_format=copy)
    rotated_q, rotated_k = _ROPE(q, k, cos, sin, position_ids, interleaved, False)
    return rotated_q, rotated_k


def _check_positions(q: Tensor, position_ids: Tensor) -> Tensor:
    """Return positions of shape (T,), or like q (..., T, H, C) without its last two dimensions."""
    shape, expected = position_ids.shape, q.shape[:-2]
    if shape in (expected[-1:], expected) and is_integral(position_ids):
        return position_ids
    leading = list(zip(shape[-2::-1], expected[-2::-1], strict=False))
    fits = 1 <= len(shape) <= len(expected) and shape[-1] == expected[-1]
    if not (fits and is_integral(position_ids) and all(size in (1, full) for size, full in leading)):
        raise InputError(
            f"rope: position_ids must be integers of shape ({expected[-1]},) or {tuple(expected)}, "
            f"got {position_ids.dtype} {tuple(shape)}"
        )
    # The same for all rows: looked up once.
    same = all(size == 1 for size in shape[:-1])
    return position_ids.reshape(shape[-1]) if same else position_ids.expand(expected)
