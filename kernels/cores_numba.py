"""The cores of the activations for Numba: the mathematics of csrc/cores.hpp, in loops that LLVM vectorises.

Each core is one function of a scalar, generic in its precision; what differs between float32 and float64 is chosen by type
when it is compiled. A float32 core has float32 arithmetic only (a Python literal would make it float64), no branch and no call
into libm. float32 coefficients are the minimax fits of csrc/cores.hpp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic, overload, register_jitable

# An fma in place of a product and a sum. Nothing that assumes finite values: a NaN must come through.
FASTMATH = {"contract"}


def elementwise(core: str, dtype: type[np.floating]) -> CFunc:
    """A compiled ``void f(dtype p0, dtype p1, dtype *z, intptr n)`` that replaces n values z by the core of them.

    Its ``address`` is what other compiled code calls, its ``ctypes`` what Python calls. Not for several threads at once.
    """
    return _elementwise(_CORES[core], types.float32 if dtype == np.float32 else types.float64)


@functools.cache
def _elementwise(core: Callable[[float, float, float], float], real: types.Float) -> CFunc:
    signature = types.void(real, real, types.CPointer(real), types.intp)

    # Numba's cache tells the cores apart by the pickle of this closure: ``core`` goes into it by name.
    @cfunc(signature, cache=True, fastmath=FASTMATH, error_model="numpy")
    def apply(p0, p1, z, n):
        values = carray(z, n)
        for index in range(n):
            values[index] = core(values[index], p0, p1)

    return apply


# ---- what the cores are made of --------------------------------------------------------------------------------------


def _number(value, like):
    """A constant in the precision of ``like``."""


@overload(_number)
def _(value, like):
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: np.float64(value)


@register_jitable
def _polynomial(coefficients, x):
    """Horner's rule, highest power first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


# Both return b where either is NaN: with the constant first, a NaN in the data is never clamped away.
@register_jitable
def _maximum(a, b):
    return a if a > b else b


@register_jitable
def _minimum(a, b):
    return a if a < b else b


def _float32(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


@intrinsic
def _power_of_two(_typing_context, shifted):
    """2^k in the precision of ``shifted`` = k + 1.5 * 2^(mantissa bits), whose low bits hold k."""
    bits, mantissa, bias = (32, 23, 127) if shifted == types.float32 else (64, 52, 1023)

    def generate(context, builder, _signature, arguments):
        integer = ir.IntType(bits)
        k = builder.shl(builder.bitcast(arguments[0], integer), ir.Constant(integer, mantissa))
        power = builder.add(k, ir.Constant(integer, bias << mantissa))
        return builder.bitcast(power, context.get_value_type(shifted))

    return shifted(shifted), generate


_ROUND_32, _LOG2E_32 = _float32(1.5 * 2**23, 1.44269504)  # adding the first rounds to an integer
_LEAST_32, _LN2_HIGH_32, _LN2_LOW_32 = _float32(-87.0, 0.693359375, -2.12194440e-4)  # ln2's first part is exact in 10 bits
_EXP_32 = _float32(1.9857247e-4, 1.3933597e-3, 8.3333615e-3, 4.1666466e-2, 0.16666667, 0.5)  # (expm1(r) - r) / r^2, 2.7e-9


@register_jitable
def _exponential_32(z):
    x = _maximum(_LEAST_32, z)
    shifted = x * _LOG2E_32 + _ROUND_32
    k = shifted - _ROUND_32
    r = (x - k * _LN2_HIGH_32) - k * _LN2_LOW_32
    return _power_of_two(shifted), r + r * r * _polynomial(_EXP_32, r)


_ROUND_64, _LOG2E_64 = 1.5 * 2**52, 1.4426950408889634
_LN2_HIGH_64, _LN2_LOW_64 = 0.693147180369123816490, 1.90821492927058770002e-10
_EXP_64 = tuple(1 / math.factorial(n) for n in range(13, 1, -1))  # Taylor's series is good to 2e-16


@register_jitable
def _exponential_64(z):
    x = _maximum(-708.0, z)
    shifted = x * _LOG2E_64 + _ROUND_64
    k = shifted - _ROUND_64
    r = (x - k * _LN2_HIGH_64) - k * _LN2_LOW_64
    return _power_of_two(shifted), r + r * r * _polynomial(_EXP_64, r)


def _exponential(z):
    """2^k and expm1(r) where z = k ln2 + r, for z <= 0 (larger z is not asked for): exp and expm1 follow."""


@overload(_exponential)
def _(z):
    if z == types.float32:
        return lambda z: _exponential_32(z)
    return lambda z: _exponential_64(z)


@register_jitable
def _exp_of_negative(z):
    power, expm1_r = _exponential(z)
    return power * expm1_r + power


@register_jitable
def _expm1_of_negative(z):
    power, expm1_r = _exponential(z)
    return power * expm1_r + (power - _number(1, z))


_TANH_P_32 = _float32(1.3305495e-8, 2.0573737e-5, 3.4934444e-3, 0.13379222, 0.99999998)
_TANH_Q_32 = _float32(7.7564772e-7, 3.2821263e-4, 2.5868830e-2, 0.46712537, 1.0)
(_TANH_IS_1_32,) = _float32(9.02)


@register_jitable
def _tanh_32(z):  # 2.2e-8
    x = _maximum(-_TANH_IS_1_32, _minimum(_TANH_IS_1_32, z))
    t = x * x
    return x * _polynomial(_TANH_P_32, t) / _polynomial(_TANH_Q_32, t)


@register_jitable
def _tanh_64(z):  # keeps its precision near zero
    e = _expm1_of_negative(-2.0 * abs(z))
    return math.copysign(-e / (e + 2.0), z)


def _tanh(z):
    """The hyperbolic tangent."""


@overload(_tanh)
def _(z):
    if z == types.float32:
        return lambda z: _tanh_32(z)
    return lambda z: _tanh_64(z)


_ERF_P_32 = _float32(2.0465190e-6, 2.8484325e-4, 3.7715782e-3, 5.2766423e-2, 0.19056828, 1.1283791)
_ERF_Q_32 = _float32(3.8052821e-5, 1.1636610e-3, 1.4981253e-2, 0.11417263, 0.50221947, 1.0)
(_ERF_IS_1_32,) = _float32(3.92)


@register_jitable
def _erf_32(z):  # 1.9e-8
    x = _maximum(-_ERF_IS_1_32, _minimum(_ERF_IS_1_32, z))
    t = x * x
    return x * _polynomial(_ERF_P_32, t) / _polynomial(_ERF_Q_32, t)


def _erf(z):
    """The error function."""


@overload(_erf)
def _(z):
    if z == types.float32:
        return lambda z: _erf_32(z)
    return lambda z: math.erf(z)


_TWO_32, _LOG1P_32 = np.float32(2), _float32(0.14089157, 0.13980304, 0.20012455, 0.33333157, 1.0)


@register_jitable
def _log1p_of_unit_32(e):  # 2 atanh(e / (2 + e)), 4.0e-9
    s = e / (e + _TWO_32)
    return _TWO_32 * s * _polynomial(_LOG1P_32, s * s)


def _log1p_of_unit(e):
    """log(1 + e) for e in [0, 1]."""


@overload(_log1p_of_unit)
def _(e):
    if e == types.float32:
        return lambda e: _log1p_of_unit_32(e)
    return lambda e: math.log1p(e)


# ---- the cores: kernels/activations.py has their formulas ------------------------------------------------------------


@register_jitable
def identity(z, p0, p1):
    return z


@register_jitable
def relu(z, p0, p1):
    return _maximum(_number(0, z), z)


@register_jitable
def clamp(z, p0, p1):
    return _minimum(p1, _maximum(p0, z))


@register_jitable
def tanh(z, p0, p1):
    return _tanh(z * p0)


@register_jitable
def ztanh(z, p0, p1):
    return z * _tanh(z * p0)


@register_jitable
def zerf(z, p0, p1):
    return z * _erf(z * _number(math.sqrt(0.5), z))


@register_jitable
def zgelu_tanh(z, p0, p1):
    cubic = _number(0.044715, z) * z * z + _number(1, z)
    return z * _tanh(_number(math.sqrt(2 / math.pi), z) * z * cubic)


@register_jitable
def elu(z, p0, p1):
    zero = _number(0, z)
    below = p0 * _expm1_of_negative(_minimum(zero, z))
    return z if z > zero else below


@register_jitable
def softplus(z, p0, p1):  # |z|/2 + log1p(exp(-p0 |z|)) / p0; linear above p0 z > p1, as in torch
    size = abs(z)
    tail = _log1p_of_unit(_exp_of_negative(-p0 * size)) * (_number(1, z) / p0)
    return _number(0.5, z) * size + (_number(0, z) if z * p0 > p1 else tail)


@register_jitable
def hardswish(z, p0, p1):
    return z * _minimum(_number(6, z), _maximum(_number(0, z), z + _number(3, z))) * _number(1 / 6, z)


@register_jitable
def mish(z, p0, p1):
    # With e = exp(-|z|), tanh(softplus(z)) is (1 + 2e) / (1 + 2e + 2e^2) above zero and (e^2 + 2e) / (e^2 + 2e + 2) below.
    one, two = _number(1, z), _number(2, z)
    e = _exp_of_negative(-abs(z))
    above, below = e * two + one, e * (e + two)
    square = e * e * two
    positive = z > _number(0, z)
    numerator = above if positive else below
    return z * numerator / (numerator + (square if positive else two))


_CORES = {
    "identity": identity,
    "relu": relu,
    "clamp": clamp,
    "tanh": tanh,
    "ztanh": ztanh,
    "zerf": zerf,
    "zgelu_tanh": zgelu_tanh,
    "elu": elu,
    "softplus": softplus,
    "hardswish": hardswish,
    "mish": mish,
}
