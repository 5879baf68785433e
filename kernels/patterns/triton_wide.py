"""The Triton kernel of patterns of wide and deep chains: a layer of some points at a time, its signs packed on the way out."""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import activation
from lmn.kernels.patterns.triton_bits import at_breakpoints, packed
from lmn.kernels.triton_products import product_tile, rows_and_columns


@triton.jit(do_not_specialize=["n_points", "first_word", "n_words"])
def layer_of_patterns(
    u,
    weights,
    bias,
    scales,
    straights,
    breakpoints,
    out,
    words,
    edges,
    p0,
    p1,
    n_points,
    n_in,
    n_units,
    first_word,
    n_words,
    LAST: tl.constexpr,
    EDGES: tl.constexpr,
    CORE: tl.constexpr,
    ROWS: tl.constexpr,
    INS: tl.constexpr,
    UNITS: tl.constexpr,
    BREAKPOINTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Activations, out (n_points, n_units), unless LAST, and the bits of 64 UNITS to words (n_points, n_words), int64.

    Pre-activations are u, (n_points, n_in), by weights (n_in, n_units), and bias. With EDGES, edges (n_points, blocks of units)
    is 1 where a unit is exactly at a breakpoint, else 0.
    """
    tl.static_assert(UNITS == 64)
    tile, block = rows_and_columns(n_units, UNITS)
    rows = tile * ROWS + tl.arange(0, ROWS)
    units = block * UNITS + tl.arange(0, UNITS)
    present, is_unit = rows < n_points, units < n_units
    z = product_tile(u, weights, rows, present, units, n_in, n_units, ROWS, INS, UNITS, PRECISION)
    z += tl.load(bias + units, mask=is_unit, other=0.0)[None, :]
    if BREAKPOINTS > 0:
        number = block * BREAKPOINTS + tl.arange(0, BREAKPOINTS)  # the words of 64 units
        inside = present[:, None] & (64 * number < n_units * BREAKPOINTS)[None, :]
        place = words + rows[:, None] * n_words + first_word + number[None, :]
        tl.store(place, packed(z, breakpoints, is_unit, BREAKPOINTS), mask=inside)
    if EDGES:
        on_edge = at_breakpoints(z, breakpoints, is_unit, BREAKPOINTS)
        tl.store(edges + rows * tl.cdiv(n_units, UNITS) + block, on_edge, mask=present)
    if not LAST:
        scale = tl.load(scales + units, mask=is_unit, other=0.0)[None, :]
        straight = tl.load(straights + units, mask=is_unit, other=0.0)[None, :]
        value = activation(z, scale, straight, p0, p1, CORE)
        tl.store(out + rows[:, None] * n_units + units[None, :], value, mask=present[:, None] & is_unit[None, :])
