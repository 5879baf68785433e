"""The Triton kernels for wide and deep chains: a layer at a time, for as many pairs as keep the GPU busy for longer than a
launch takes.

Deviations are (steps, pairs, units) in scratch memory: an activation's are made in place from those of its argument, an affine
map's by a product in blocks, and at the end three sums over the steps give r². See triton_fused.py.

Why not in one kernel that streams the weights: its tiles are of 16 pairs, as more have no place beside what a layer's pairs
keep in registers, and each takes all weights at each step: of three layers of 256 units and 768 samples 199 GB from the second
cache, as the first ones hold no layer. By the model of triton_work.py that takes 64 ms on an H100, and a layer at a time 44 ms,
with 58 GB through memory and 57 from the second cache.

Why activations have a pass of their own: a product's tile has one step of its pairs. Beside it, as its epilogue, an activation
would save the 8 bytes a value that the pass moves through memory, and load the 16 of both samples' pre-activations, of which
there are two floats each, from the second cache again at each step: at half the time a byte it takes as long.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.connectivity.triton_fused import deviation, store_r_squared, unexplained_of
from lmn.kernels.connectivity.triton_pairs import samples_of
from lmn.kernels.cores_triton import core


@triton.jit
def _rows_of(high, low, points, width, columns, mask):
    at = points[:, None] * width + columns[None, :]
    return tl.load(high + at, mask=mask, other=0.0), tl.load(low + at, mask=mask, other=0.0)


@triton.jit
def _numbers(first_pair, pairs, n_pairs):
    """Of the pairs of a tile, int64; past the last one, of the first."""
    return first_pair + tl.where(pairs < n_pairs, pairs, 0)


@triton.jit(do_not_specialize=["first_pair", "n_pairs", "n_points", "n_rows", "m"])
def activations(
    z_high,
    z_low,
    scales,
    straights,
    u,
    p0,
    p1,
    first_pair,
    n_pairs,
    n_points,
    n_rows,
    n_units,
    m,
    ALL: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAIRS: tl.constexpr,
    UNITS: tl.constexpr,
    CORE: tl.constexpr,
):
    """u, (m - 2, n_pairs, n_units), from the deviations of pre-activations, or from none, to those of the activations.

    Of the pairs from first_pair on. z are (n_points, n_units) in two floats.
    """
    pairs = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    mask = (pairs < n_pairs)[:, None] & (units < n_units)[None, :]
    i, j = samples_of(_numbers(first_pair, pairs, n_pairs), n_points.to(tl.int64), n_rows, ALL)
    z, z_rest = _rows_of(z_high, z_low, i, n_units, units, mask)
    at_j, at_j_rest = _rows_of(z_high, z_low, j, n_units, units, mask)
    dz = (at_j - z) + (at_j_rest - z_rest)
    at_i = core(z, p0, p1, CORE)
    dcore = core(z + dz, p0, p1, CORE) - at_i
    scale = tl.load(scales + units, mask=units < n_units, other=0.0)[None, :]
    straight = tl.load(straights + units, mask=units < n_units, other=0.0)[None, :]
    here = u + pairs[:, None] * n_units + units[None, :]
    for step in range(1, m - 1):
        t = step * 1.0 / (m - 1)
        shift = tl.zeros((PAIRS, UNITS), tl.float32)
        if SHIFTED:
            shift = tl.load(here, mask=mask, other=0.0)
        tl.store(here, deviation(t, z, dz, at_i, dcore, shift, scale, straight, p0, p1, CORE), mask=mask)
        here += n_pairs.to(tl.int64) * n_units


@triton.jit(do_not_specialize=["first_pair", "n_pairs", "n_points", "n_rows", "m"])
def sums(
    u,
    y_high,
    y_low,
    noise,
    out,
    first_pair,
    n_pairs,
    n_points,
    n_rows,
    n_out,
    m,
    sxx,
    constant,
    tolerance,
    ALL: tl.constexpr,
    PAIRS: tl.constexpr,
    OUTS: tl.constexpr,
):
    """r² of pairs from the deviations of their outputs, (m - 2, n_pairs, n_out), to both places of ``out``."""
    pairs = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    present = pairs < n_pairs
    i, j = samples_of(_numbers(first_pair, pairs, n_pairs), n_points.to(tl.int64), n_rows, ALL)
    unexplained = tl.zeros((PAIRS,), tl.float32)
    error = tl.zeros((PAIRS,), tl.float32)
    for first in range(0, n_out, OUTS):
        outs = first + tl.arange(0, OUTS)
        mask = present[:, None] & (outs < n_out)[None, :]
        s1 = tl.zeros((PAIRS, OUTS), tl.float32)
        s2 = tl.zeros((PAIRS, OUTS), tl.float32)
        s3 = tl.zeros((PAIRS, OUTS), tl.float32)
        here = u + pairs[:, None] * n_out + outs[None, :]
        for step in range(1, m - 1):
            t = step * 1.0 / (m - 1)
            at = tl.load(here, mask=mask, other=0.0)
            s1 += at
            s2 += (t - 0.5) * at
            s3 += at * at
            here += n_pairs.to(tl.int64) * n_out
        y, y_rest = _rows_of(y_high, y_low, i, n_out, outs, mask)
        at_j, at_j_rest = _rows_of(y_high, y_low, j, n_out, outs, mask)
        dy = (at_j - y) + (at_j_rest - y_rest)
        of_noise = tl.load(noise + outs, mask=outs < n_out, other=0.0)[None, :]
        points, interior = m * 1.0, (m - 2) * 1.0
        some, of_error = unexplained_of(s1, s2, s3, y, dy, of_noise, mask, points, interior, sxx, constant)
        unexplained += some
        error += of_error
    store_r_squared(out, unexplained, error, i, j, n_points, n_out, tolerance, present)
