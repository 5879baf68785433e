"""The Triton kernel for deep chains of 65 to 128 units: as triton_fused.py, with all columns in two halves.

A product of 128 columns by 128 holds both operands in registers, which a third layer's differences need. Here it is four
products of 64 by 64 in loops that are not unrolled: one operand after the other. That takes a tenth to a fifth more
instructions than the whole product, by the compiler's count, where it fits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.connectivity.triton_fused import at_ends, difference, layer_deviation, store_r_squared, unexplained_at


@triton.jit
def _ends(z_high, z_low, j, i, layer, width, columns, present, parameters, HALF: tl.constexpr, CORE: tl.constexpr):
    """Of both halves of a layer, as ``at_ends``."""
    dz_a, at_a, dc_a = at_ends(z_high, z_low, j, i, layer, width, columns, present, parameters, 2 * HALF, CORE)
    dz_b, at_b, dc_b = at_ends(z_high, z_low, j, i, layer, width, HALF + columns, present, parameters, 2 * HALF, CORE)
    return dz_a, at_a, dc_a, dz_b, at_b, dc_b


@triton.jit
def _moves(z_high, z_low, j, i, layer, width, columns, present, HALF: tl.constexpr):
    """By how much z differs, of both halves of a layer."""
    of_layer = layer * 2 * HALF + columns
    a = difference(z_high, z_low, j, i, width, of_layer, present)
    return a, difference(z_high, z_low, j, i, width, HALF + of_layer, present)


@triton.jit
def _activated(t, z_of_i, dz_a, at_a, dc_a, dz_b, at_b, dc_b, a, b, scales, slopes, parameters, layer, columns,
               HALF: tl.constexpr, CORE: tl.constexpr):  # fmt: skip
    """Of both halves, as ``layer_deviation``."""
    u = layer_deviation(t, z_of_i, dz_a, at_a, dc_a, a, scales, slopes, parameters, layer, columns, 2 * HALF, CORE)
    v = layer_deviation(t, z_of_i, dz_b, at_b, dc_b, b, scales, slopes, parameters, layer, HALF + columns, 2 * HALF, CORE)
    return u, v


@triton.jit
def _to(a, b, weights, nothing, layer, rows, columns, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """Both halves, (pairs, HALF) each, through the affine map after a layer, without its bias, to some columns.

    ``nothing`` is 0, which the compiler does not know: it would unroll the loop, and load all weights at once.
    """
    first = weights + layer * 4 * HALF * HALF + rows[:, None] * 2 * HALF + columns[None, :]
    z = tl.zeros((a.shape[0], columns.shape[0]), tl.float32)
    for half in range(nothing, 2):
        u = tl.where(half == 0, a, b)
        z = tl.dot(u, tl.load(first + half * 2 * HALF * HALF), z, input_precision=PRECISION)
    return z


@triton.jit
def _through(a, b, weights, nothing, layer, columns, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """And to both halves of the next layer."""
    z = _to(a, b, weights, nothing, layer, columns, columns, HALF, PRECISION)
    return z, _to(a, b, weights, nothing, layer, columns, HALF + columns, HALF, PRECISION)


@triton.jit(do_not_specialize=["first_row", "first_column", "n_points", "n_out", "m"])
def fused_in_halves(
    z_high,
    z_low,
    y_high,
    y_low,
    weights,
    scales,
    slopes,
    parameters,
    noise,
    out,
    first_row,
    first_column,
    n_points,
    n_out,
    m,
    nothing,
    sxx,
    constant,
    tolerance,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    CORE3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As ``fused``, of the same arguments. Four layers' differences of z are loaded at each step, and not kept in registers."""
    HALF: tl.constexpr = WIDTH // 2
    OUTS: tl.constexpr = OUTPUTS if OUTPUTS < HALF else HALF
    i = (first_row + tl.program_id(0)).to(tl.int64)
    first = (first_column // PAIRS + tl.program_id(1)) * PAIRS
    if first + PAIRS - 1 <= i:
        return
    j = first.to(tl.int64) + tl.arange(0, PAIRS)
    wanted = (j > i) & (j >= first_column) & (j < n_points)
    columns, outputs = tl.arange(0, HALF), tl.arange(0, OUTS)
    width = DEPTH * WIDTH
    dz0, at0, dc0, ez0, bt0, ec0 = _ends(z_high, z_low, j, i, 0, width, columns, wanted, parameters, HALF, CORE0)
    if DEPTH > 1:
        dz1, at1, dc1, ez1, bt1, ec1 = _ends(z_high, z_low, j, i, 1, width, columns, wanted, parameters, HALF, CORE1)
    if DEPTH > 2:
        dz2, at2, dc2, ez2, bt2, ec2 = _ends(z_high, z_low, j, i, 2, width, columns, wanted, parameters, HALF, CORE2)
    if DEPTH > 3:
        dz3, at3, dc3, ez3, bt3, ec3 = _ends(z_high, z_low, j, i, 3, width, columns, wanted, parameters, HALF, CORE3)
    s1 = tl.zeros((PAIRS, OUTS), tl.float32)
    s2, s3, r1, r2, r3 = s1, s1, s1, s1, s1  # r: of the second half of the outputs, where there is one
    for step in range(1, m - 1):
        t = step * 1.0 / (m - 1)
        here, high, low = weights + step * nothing, z_high + step * nothing, z_low + step * nothing
        z_of_i = high + i * width
        none = tl.zeros((PAIRS, HALF), tl.float32)
        if DEPTH > 3:
            dz0, ez0 = _moves(high, low, j, i, 0, width, columns, wanted, HALF)
        a, b = _activated(
            t, z_of_i, dz0, at0, dc0, ez0, bt0, ec0, none, none, scales, slopes, parameters, 0, columns, HALF, CORE0
        )  # fmt: skip
        if DEPTH > 1:
            a, b = _through(a, b, here, nothing, 0, columns, HALF, PRECISION)
            if DEPTH > 3:
                dz1, ez1 = _moves(high, low, j, i, 1, width, columns, wanted, HALF)
            a, b = _activated(
                t, z_of_i, dz1, at1, dc1, ez1, bt1, ec1, a, b, scales, slopes, parameters, 1, columns, HALF, CORE1
            )  # fmt: skip
        if DEPTH > 2:
            a, b = _through(a, b, here, nothing, 1, columns, HALF, PRECISION)
            if DEPTH > 3:
                dz2, ez2 = _moves(high, low, j, i, 2, width, columns, wanted, HALF)
            a, b = _activated(
                t, z_of_i, dz2, at2, dc2, ez2, bt2, ec2, a, b, scales, slopes, parameters, 2, columns, HALF, CORE2
            )  # fmt: skip
        if DEPTH > 3:
            a, b = _through(a, b, here, nothing, 2, columns, HALF, PRECISION)
            dz3, ez3 = _moves(high, low, j, i, 3, width, columns, wanted, HALF)
            a, b = _activated(
                t, z_of_i, dz3, at3, dc3, ez3, bt3, ec3, a, b, scales, slopes, parameters, 3, columns, HALF, CORE3
            )  # fmt: skip
        y = _to(a, b, here, nothing, DEPTH - 1, columns, outputs, HALF, PRECISION)
        s1 += y
        s2 += (t - 0.5) * y
        s3 += y * y
        if OUTPUTS > HALF:
            y = _to(a, b, here, nothing, DEPTH - 1, columns, HALF + outputs, HALF, PRECISION)
            r1 += y
            r2 += (t - 0.5) * y
            r3 += y * y
    unexplained, error = unexplained_at(
        s1, s2, s3, y_high, y_low, j, i, outputs, wanted, noise, n_out, m, sxx, constant, OUTPUTS
    )  # fmt: skip
    if OUTPUTS > HALF:
        more, of_error = unexplained_at(
            r1, r2, r3, y_high, y_low, j, i, HALF + outputs, wanted, noise, n_out, m, sxx, constant, OUTPUTS
        )  # fmt: skip
        unexplained += more
        error += of_error
    store_r_squared(out, unexplained, error, i, j, n_points, n_out, tolerance, wanted)
