"""Products of float32 in the matrix unit, in Triton: as it multiplies them itself, or as three of TF32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _in_two(u):
    """The nearest number of TF32, which has 10 bits of the mantissa, and what is left of u."""
    bits = u.to(tl.int32, bitcast=True) + 0x1000
    high = (bits & -0x2000).to(tl.float32, bitcast=True)
    return high, u - high


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a times b, float32, by ``PRECISION``: "ieee", "tf32x3" or "tf32".

    tf32x3 is the sum of the three larger of four products of halves, the smaller first (Ootomo, Yokota 2022): 21 bits or more.
    Triton's own keeps infinity as it is, for which kernels take 1.2 to 1.6 times as many instructions on sm_80 and sm_90. Here
    it comes to NaN: activations are finite, and what else is multiplied and is not is told of as NaN is.
    """
    if PRECISION == "tf32x3":
        a_high, a_low = _in_two(a)
        b_high, b_low = _in_two(b)
        z = tl.dot(a_low, b_high, input_precision="tf32")
        z = tl.dot(a_high, b_low, z, input_precision="tf32")
        z = tl.dot(a_high, b_high, z, input_precision="tf32")
    else:
        z = tl.dot(a, b, input_precision=PRECISION)
    return z


@triton.jit
def dot_added(total, a, b, PRECISION: tl.constexpr):
    """A total, and a times b.

    The matrix unit cuts off what it adds: of tf32x3 it adds up one tile's products alone, and these are added to the total as
    float32 are, to nearest.
    """
    if PRECISION == "tf32x3":
        total += dot(a, b, PRECISION)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
