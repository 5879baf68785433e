"""The Triton kernel for narrow chains: one sample i against a tile of samples j goes through the whole tail, and leaves r².

As in csrc/connectivity.hpp only deviations from the chord pass through the products, so nothing cancels, and three sums over
the steps are all that is kept of an output. A tile's differences stay in registers for all steps; weights come from the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import core
from lmn.kernels.triton_chain import product


@triton.jit
def difference(high, low, j, i, width, columns, present):
    """Values of the samples j minus those of sample i, which are held in two floats: (pairs, columns)."""
    at_j = j[:, None] * width + columns[None, :]
    at_i = i * width + columns
    mask = present[:, None]
    rough = tl.load(high + at_j, mask=mask, other=0.0) - tl.load(high + at_i)[None, :]
    return rough + (tl.load(low + at_j, mask=mask, other=0.0) - tl.load(low + at_i)[None, :])


@triton.jit
def deviation(t, z, dz, at_i, dcore, shift, scale, straight, p0, p1, CORE: tl.constexpr):
    """The activation's deviation from its chord at a step t, where its argument deviates by shift; all (pairs, units)."""
    off_chord = core(z + t * dz + shift, p0, p1, CORE) - (at_i + t * dcore)
    return scale * off_chord + straight * shift


@triton.jit
def _through(u, weights, layer, columns, nothing, WIDTH: tl.constexpr, SOME: tl.constexpr, PRECISION: tl.constexpr):
    """The affine map after a layer, without its bias: (pairs, WIDTH) to (pairs, columns).

    ``weights`` must not look the same at each step: loads that do are moved out of the loop, where those of all layers take
    registers and shared memory at once.
    """
    return product(u, weights + layer * WIDTH * WIDTH, WIDTH, columns, None, nothing, WIDTH, SOME, PRECISION)


@triton.jit
def at_ends(z_high, z_low, j, i, layer, width, columns, present, parameters, WIDTH: tl.constexpr, CORE: tl.constexpr):
    """Of one layer: by how much z differs at the samples j, its core at sample i, and by how much that differs."""
    p0, p1 = tl.load(parameters + 2 * layer), tl.load(parameters + 2 * layer + 1)
    of_layer = layer * WIDTH + columns
    z = tl.load(z_high + i * width + of_layer)
    dz = difference(z_high, z_low, j, i, width, of_layer, present)
    at_i = core(z, p0, p1, CORE)
    return dz, at_i, core(z[None, :] + dz, p0, p1, CORE) - at_i[None, :]


@triton.jit
def layer_deviation(
    t, z_of_i, dz, at_i, dcore, shift, scales, straights, parameters, layer, columns, WIDTH: tl.constexpr, CORE: tl.constexpr
):
    z = tl.load(z_of_i + layer * WIDTH + columns)
    p0, p1 = tl.load(parameters + 2 * layer), tl.load(parameters + 2 * layer + 1)
    scale, straight = tl.load(scales + layer * WIDTH + columns), tl.load(straights + layer * WIDTH + columns)
    return deviation(t, z[None, :], dz, at_i[None, :], dcore, shift, scale[None, :], straight[None, :], p0, p1, CORE)


@triton.jit
def unexplained_of(s1, s2, s3, y, dy, noise, is_output, m, interior, sxx, constant):
    """1 - r² of each pair and its estimated error, summed over the outputs, (pairs,): csrc/connectivity_isa.cpp says why."""
    sxy = dy * sxx + s2
    rest = s3 - s1 * s1 / m - s2 * s2 / sxx
    rest = tl.where(rest < 0.0, 0.0, rest)  # a NaN stays one
    total = sxy * sxy / sxx + rest
    cross = 2.0 * tl.sqrt(noise * rest)
    least = constant * tl.maximum(tl.abs(y + dy), tl.abs(y))
    moves = total > m * least * least
    stands_still = (total == 0.0) & (dy == 0.0)
    safe = tl.where(moves, total, 1.0)
    error = tl.where(moves, (noise * interior + cross) / safe, tl.where(stands_still, 0.0, 1.0) + total * 0.0)
    error = tl.where(error > 1.0, 1.0, error)
    unexplained = tl.where(moves, rest / safe, total * 0.0)
    return (
        tl.sum(tl.where(is_output, unexplained, 0.0), axis=1),
        tl.sum(tl.where(is_output, error, 0.0), axis=1),
    )


@triton.jit
def unexplained_at(s1, s2, s3, y_high, y_low, j, i, outputs, wanted, noise, n_out, m, sxx, constant, OUTPUTS: tl.constexpr):
    """The same of some of a chain's outputs, y (n_points, OUTPUTS), of which n_out are outputs."""
    y = tl.load(y_high + i * OUTPUTS + outputs)
    dy = difference(y_high, y_low, j, i, OUTPUTS, outputs, wanted)
    of_noise, is_output = tl.load(noise + outputs)[None, :], (outputs < n_out)[None, :]
    return unexplained_of(s1, s2, s3, y[None, :], dy, of_noise, is_output, m * 1.0, (m - 2) * 1.0, sxx, constant)


@triton.jit
def store_r_squared(out, unexplained, error, i, j, n_points, n_out, tolerance, wanted):
    """From the sums over the outputs, to both places of a pair; NaN where the error is more than the tolerance."""
    count = n_out * 1.0
    r2 = tl.where(error / count <= tolerance, 1.0 - unexplained / count, float("nan"))
    tl.store(out + i * n_points + j, r2, mask=wanted)
    tl.store(out + j * n_points + i, r2, mask=wanted)


@triton.jit(do_not_specialize=["first_row", "first_column", "n_points", "n_out", "m"])
def fused_connectivity(
    z_high,
    z_low,
    y_high,
    y_low,
    weights,
    scales,
    straights,
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
    RELOADS: tl.constexpr,
    SOME: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    CORE3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """r² of sample i = first_row + program 0 with a tile of samples j, j > i and j >= first_column, to both places of ``out``.

    z are (n_points, DEPTH * WIDTH) and y (n_points, OUTPUTS), in two floats; weights (DEPTH, WIDTH, WIDTH), units to units;
    scales and straights (DEPTH, WIDTH); parameters (DEPTH, 2); noise (OUTPUTS,); all float32, zero where a layer is narrower;
    ``nothing`` is 0. With RELOADS z of sample i and its differences from the others are loaded again at each step, and not kept
    in registers; products take SOME units at a time. What float32 can't do to the tolerance is NaN.
    """
    i = (first_row + tl.program_id(0)).to(tl.int64)
    first = (first_column // PAIRS + tl.program_id(1)) * PAIRS
    if first + PAIRS - 1 <= i:
        return
    j = first.to(tl.int64) + tl.arange(0, PAIRS)
    wanted = (j > i) & (j >= first_column) & (j < n_points)
    columns, outputs = tl.arange(0, WIDTH), tl.arange(0, OUTPUTS)
    width = DEPTH * WIDTH
    dz0, at0, dc0 = at_ends(z_high, z_low, j, i, 0, width, columns, wanted, parameters, WIDTH, CORE0)
    if DEPTH > 1:
        dz1, at1, dc1 = at_ends(z_high, z_low, j, i, 1, width, columns, wanted, parameters, WIDTH, CORE1)
    if DEPTH > 2:
        dz2, at2, dc2 = at_ends(z_high, z_low, j, i, 2, width, columns, wanted, parameters, WIDTH, CORE2)
    if DEPTH > 3:
        dz3, at3, dc3 = at_ends(z_high, z_low, j, i, 3, width, columns, wanted, parameters, WIDTH, CORE3)
    s1 = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    s2 = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    s3 = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    for step in range(1, m - 1):
        t = step * 1.0 / (m - 1)
        here, high, low = weights + step * nothing, z_high + step * nothing, z_low + step * nothing
        z_of_i = (high if RELOADS else z_high) + i * width
        none = tl.zeros((PAIRS, WIDTH), tl.float32)
        if RELOADS:
            dz0 = difference(high, low, j, i, width, 0 * WIDTH + columns, wanted)
        u = layer_deviation(t, z_of_i, dz0, at0, dc0, none, scales, straights, parameters, 0, columns, WIDTH, CORE0)
        if DEPTH > 1:
            u = _through(u, here, 0, columns, nothing, WIDTH, SOME, PRECISION)
            if RELOADS:
                dz1 = difference(high, low, j, i, width, 1 * WIDTH + columns, wanted)
            u = layer_deviation(t, z_of_i, dz1, at1, dc1, u, scales, straights, parameters, 1, columns, WIDTH, CORE1)
        if DEPTH > 2:
            u = _through(u, here, 1, columns, nothing, WIDTH, SOME, PRECISION)
            if RELOADS:
                dz2 = difference(high, low, j, i, width, 2 * WIDTH + columns, wanted)
            u = layer_deviation(t, z_of_i, dz2, at2, dc2, u, scales, straights, parameters, 2, columns, WIDTH, CORE2)
        if DEPTH > 3:
            u = _through(u, here, 2, columns, nothing, WIDTH, SOME, PRECISION)
            if RELOADS:
                dz3 = difference(high, low, j, i, width, 3 * WIDTH + columns, wanted)
            u = layer_deviation(t, z_of_i, dz3, at3, dc3, u, scales, straights, parameters, 3, columns, WIDTH, CORE3)
        u = _through(u, here, DEPTH - 1, outputs, nothing, WIDTH, SOME, PRECISION)
        s1 += u
        s2 += (t - 0.5) * u
        s3 += u * u
    unexplained, error = unexplained_at(
        s1, s2, s3, y_high, y_low, j, i, outputs, wanted, noise, n_out, m, sxx, constant, OUTPUTS
    )  # fmt: skip
    store_r_squared(out, unexplained, error, i, j, n_points, n_out, tolerance, wanted)
