"""The Triton kernel of local complexity of wide and deep chains: a layer of all vertices of some samples at a time.

A program takes some units of one sample: all of its vertices, a tile after the other, so that what is counted is known in it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import activation
from lmn.kernels.local_complexity.triton_fused import counted, seen, vertices_at
from lmn.kernels.triton_products import product_tile, rows_and_columns


@triton.jit(do_not_specialize=["n_directions"])
def layer_of_local_complexity(
    u,
    weights,
    bias,
    at_samples,
    steps,
    scales,
    straights,
    breakpoints,
    out,
    counts,
    p0,
    p1,
    n_in,
    n_units,
    n_directions,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CORE: tl.constexpr,
    VERTICES: tl.constexpr,
    INS: tl.constexpr,
    UNITS: tl.constexpr,
    BREAKPOINTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Activations, out (n_points * 2 n_directions, n_units), unless LAST; and counts, (n_points, blocks of units), int32.

    Pre-activations are u, (n_points * 2 n_directions, n_in), by weights (n_in, n_units), and bias; with FIRST those of the
    samples, at_samples (n_points, n_units), plus and minus steps (n_directions, n_units).
    """
    sample, block = rows_and_columns(n_units, UNITS)
    units = block * UNITS + tl.arange(0, UNITS)
    present = units < n_units
    n_vertices = 2 * n_directions
    scale = tl.load(scales + units, mask=present, other=0.0)[None, :]
    straight = tl.load(straights + units, mask=present, other=0.0)[None, :]
    constant = tl.load(at_samples + sample * n_units + units if FIRST else bias + units, mask=present, other=0.0)
    least = tl.full((UNITS,), float("inf"), tl.float32)
    most = -least
    for begin in range(0, n_vertices, VERTICES):
        vertices = begin + tl.arange(0, VERTICES)
        row = sample * n_vertices + vertices % n_vertices  # what is too many is some again
        if FIRST:
            z = vertices_at(constant, steps, vertices, n_directions, n_units, units, present)
        else:
            all_rows = vertices >= 0
            z = (
                product_tile(u, weights, row, all_rows, units, n_in, n_units, VERTICES, INS, UNITS, PRECISION)
                + constant[None, :]
            )
        least, most = seen(z, least, most)
        if not LAST:
            value = activation(z, scale, straight, p0, p1, CORE)
            stored = (vertices < n_vertices)[:, None] & present[None, :]
            tl.store(out + row[:, None] * n_units + units[None, :], value, mask=stored)
    count = counted(least, most, breakpoints, present, BREAKPOINTS)
    tl.store(counts + sample * tl.cdiv(n_units, UNITS) + block, count)
