"""The cores of the activations for Triton: the mathematics of csrc/cores.hpp in float32, and their slopes.

One function of a block, with the core as a constexpr, so that a kernel holds the one that it is compiled for. No libdevice:
the same polynomials on every target and in the interpreter, whose divisions may round differently. Coefficients are the
minimax fits of csrc/cores.hpp. Everywhere a NaN in the data comes through: comparisons put the constant where it is returned
only if the data is a number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.activations import CORES

IDENTITY = tl.constexpr(CORES.index("identity"))
RELU = tl.constexpr(CORES.index("relu"))
CLAMP = tl.constexpr(CORES.index("clamp"))
TANH = tl.constexpr(CORES.index("tanh"))
ZTANH = tl.constexpr(CORES.index("ztanh"))
ZERF = tl.constexpr(CORES.index("zerf"))
ZGELU_TANH = tl.constexpr(CORES.index("zgelu_tanh"))
ELU = tl.constexpr(CORES.index("elu"))
SOFTPLUS = tl.constexpr(CORES.index("softplus"))
HARDSWISH = tl.constexpr(CORES.index("hardswish"))
MISH = tl.constexpr(CORES.index("mish"))


@triton.jit
def _at_most(high, z):
    return tl.where(high < z, high, z)


@triton.jit
def _at_least(low, z):
    return tl.where(low > z, low, z)


@triton.jit
def _tanh(z):  # 2.2e-8 on |z| < 9.02, where tanh rounds to 1
    x = _at_least(-9.02, _at_most(9.02, z))
    t = x * x
    p = (((1.3305495e-8 * t + 2.0573737e-5) * t + 3.4934444e-3) * t + 0.13379222) * t + 0.99999998
    q = (((7.7564772e-7 * t + 3.2821263e-4) * t + 2.5868830e-2) * t + 0.46712537) * t + 1.0
    return x * p / q


@triton.jit
def _erf(z):  # 1.9e-8 on |z| < 3.92, where erf rounds to 1
    x = _at_least(-3.92, _at_most(3.92, z))
    t = x * x
    p = ((((2.0465190e-6 * t + 2.8484325e-4) * t + 3.7715782e-3) * t + 5.2766423e-2) * t + 0.19056828) * t + 1.1283791
    q = ((((3.8052821e-5 * t + 1.1636610e-3) * t + 1.4981253e-2) * t + 0.11417263) * t + 0.50221947) * t + 1.0
    return x * p / q


@triton.jit
def _exponential(z):
    """2^k and expm1(r) where z = k ln2 + r, for z <= 0 (larger z is not asked for): exp and expm1 follow."""
    x = _at_least(-104.0, z)  # whose power is 0
    k = tl.floor(x * 1.44269504 + 0.5)
    r = (x - k * 0.693359375) + k * 2.12194440e-4  # ln2 in two parts, the first exact in 10 bits
    h = ((((1.9857247e-4 * r + 1.3933597e-3) * r + 8.3333615e-3) * r + 4.1666466e-2) * r + 0.16666667) * r + 0.5
    return tl.exp2(k), r + r * r * h


@triton.jit
def _exp(z):
    power, expm1_r = _exponential(z)
    return power * expm1_r + power


@triton.jit
def _expm1(z):
    power, expm1_r = _exponential(z)
    return power * expm1_r + (power - 1.0)


@triton.jit
def _log1p(e):  # e in [0, 1]: 2 atanh(e / (2 + e)), 4.0e-9
    s = e / (e + 2.0)
    t = s * s
    h = (((0.14089157 * t + 0.13980304) * t + 0.20012455) * t + 0.33333157) * t + 1.0
    return 2.0 * s * h


@triton.jit
def core(z, p0, p1, CORE: tl.constexpr):
    """A core at a block of any shape, float32."""
    if CORE == IDENTITY:
        value = z
    elif CORE == RELU:
        value = _at_least(0.0, z)
    elif CORE == CLAMP:
        value = _at_most(p1, _at_least(p0, z))
    elif CORE == TANH:
        value = _tanh(p0 * z)
    elif CORE == ZTANH:
        value = z * _tanh(p0 * z)
    elif CORE == ZERF:
        value = z * _erf(z * 0.70710678)
    elif CORE == ZGELU_TANH:
        value = z * _tanh(0.79788456 * z * (0.044715 * z * z + 1.0))
    elif CORE == ELU:
        value = tl.where(z > 0.0, z, p0 * _expm1(_at_most(0.0, z)))
    elif CORE == SOFTPLUS:
        tail = _log1p(_exp(-p0 * tl.abs(z))) / p0
        value = 0.5 * tl.abs(z) + tl.where(p0 * z > p1, 0.0, tail)
    elif CORE == HARDSWISH:
        value = z * _at_most(6.0, _at_least(0.0, z + 3.0)) * (1.0 / 6.0)
    else:
        tl.static_assert(CORE == MISH)
        e = _exp(-tl.abs(z))
        numerator = tl.where(z > 0.0, 2.0 * e + 1.0, e * (e + 2.0))
        rest = tl.where(z > 0.0, 2.0 * e * e, 2.0)
        value = z * numerator / (numerator + rest)
    return value


@triton.jit
def _tanh_with_slope(z):
    """tanh and 1 - tanh² = 4 (1 + e) / (2 + e)², e = expm1(-2|z|), which goes to zero as it should where z is large."""
    e = _expm1(-2.0 * tl.abs(z))
    inverse = 1.0 / (e + 2.0)
    t = -e * inverse
    return tl.where(z < 0.0, -t, t), 4.0 * (e + 1.0) * inverse * inverse


@triton.jit
def _of_a_number(z, slope):
    """The slope, or the NaN that z is."""
    return tl.where(z == z, slope, z)


@triton.jit
def core_with_slope(z, p0, p1, kink, CORE: tl.constexpr):
    """A core and its slope at a block of any shape, float32; ``kink`` is the slope where two linear pieces meet."""
    value = core(z, p0, p1, CORE)
    if CORE == IDENTITY:
        slope = _of_a_number(z, tl.full(z.shape, 1.0, tl.float32))
    elif CORE == RELU:
        slope = _of_a_number(z, tl.where(z > 0.0, 1.0, tl.where(z < 0.0, 0.0, kink)))
    elif CORE == CLAMP:
        inside = (z > p0) & (z < p1)
        slope = _of_a_number(z, tl.where(inside, 1.0, tl.where((z == p0) | (z == p1), kink, 0.0)))
    elif CORE == TANH:
        _, of_tanh = _tanh_with_slope(p0 * z)
        slope = p0 * of_tanh
    elif CORE == ZTANH:
        t, of_tanh = _tanh_with_slope(p0 * z)
        slope = t + p0 * z * of_tanh
    elif CORE == ZERF:
        slope = _erf(z * 0.70710678) + 0.79788456 * z * _exp(-0.5 * z * z)
    elif CORE == ZGELU_TANH:
        square = _at_most(1.0e4, z * z)  # beyond, the slope of tanh is zero: it must not meet infinity
        t, of_tanh = _tanh_with_slope(0.79788456 * z * (0.044715 * square + 1.0))
        slope = t + z * 0.79788456 * (3.0 * 0.044715 * square + 1.0) * of_tanh
    elif CORE == ELU:
        slope = tl.where(z > 0.0, 1.0, p0 * _expm1(_at_most(0.0, z)) + p0)
    elif CORE == SOFTPLUS:
        slope = tl.where(p0 * z > p1, 0.5, 0.5 * _tanh(0.5 * p0 * z))
    elif CORE == HARDSWISH:
        slope = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, z * (1.0 / 3.0) + 0.5))
    else:
        tl.static_assert(CORE == MISH)
        e = _exp(-tl.abs(z))
        numerator = tl.where(z > 0.0, 2.0 * e + 1.0, e * (e + 2.0))
        rest = tl.where(z > 0.0, 2.0 * e * e, 2.0)
        whole = numerator + rest
        sigmoid = tl.where(z > 0.0, 1.0, e) / (e + 1.0)
        slope = numerator / whole + z * sigmoid * (rest * (whole + numerator) / (whole * whole))
    return value, slope


@triton.jit
def _finite(z):
    """The largest number for infinity, of which an activation may have nothing, or a difference; and the weights of units that
    a tile is filled up with are 0, of which infinity would make NaN."""
    return tl.clamp(z, -3.4e38, 3.4e38, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activation(z, scale, straight, p0, p1, CORE: tl.constexpr):
    """scale core(z) + straight z."""
    z = _finite(z)
    return _finite(scale * core(z, p0, p1, CORE) + straight * z)


@triton.jit
def activation_with_slope(z, scale, straight, p0, p1, kink, CORE: tl.constexpr):
    """And its slope."""
    z = _finite(z)
    value, slope = core_with_slope(z, p0, p1, kink, CORE)
    return _finite(scale * value + straight * z), scale * slope + straight
