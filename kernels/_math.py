"""Functions of elements in few instructions.

Triton's own `exp` and `sigmoid` take care of subnormal numbers, a comparison and two products each, and a
sigmoid's quotient of large ones: 10 instructions where 5 do. Here what is below 2^-126 may become zero. The
error is the same, about 2^-22 of the value; float64 goes Triton's way.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (the parameters of a kernel have Triton's types, which mypy does not know)

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """Return e^x."""
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * _LOG2_E)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    if x.dtype == tl.float64:
        y = tl.sigmoid(x)
    else:
        # A reciprocal square root is one instruction, a quotient is five. 1 + e^-x is no less than 1.
        root = tl.rsqrt(1.0 + tl.exp2(x * -_LOG2_E))
        y = root * root
    return y


@triton.jit
def sigmoid_and_rest(x):
    """Return s = 1 / (1 + e^-x) and 1 - s, the latter with a small error of its own where s is almost 1."""
    if x.dtype == tl.float64:
        y, rest = tl.sigmoid(x), tl.sigmoid(-x)
    else:
        exponential = tl.exp2(x * -_LOG2_E)
        root = tl.rsqrt(1.0 + exponential)
        y = root * root
        rest = tl.where(x > 0.0, exponential * y, 1.0 - y)
    return y, rest
