"""The Triton kernel of patterns of narrow chains: a tile of points forward in registers, its signs packed and hashed.

Points of a regular grid are never made: the affine map before the first activation takes its origin and its steps instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.patterns.triton_bits import at_breakpoints, first_hash, next_hash, packed, store_hash
from lmn.kernels.triton_chain import AT_ONCE, MOST_BREAKPOINTS, activated, first_map, next_map

MOST_IN_A_ROW = 2**32 - 2**10  # points of an axis that 32 bits count, and those of a tile after them


@triton.jit
def _along(z, step, index, count):
    """Moved by so many steps, (WIDTH,), along an axis of so many points: in two parts where float32 can't hold their sum."""
    if count > 16777216:
        z += ((index >> 12) << 12).to(tl.float32)[:, None] * step[None, :]
        index = index & 4095
    return z + index.to(tl.float32)[:, None] * step[None, :]


@triton.jit
def _of_a_grid(origin, steps, counts, points, n_axes, columns, WIDTH: tl.constexpr, POINTS: tl.constexpr):
    """The first pre-activations, (POINTS, WIDTH), of the points of these numbers, int64, the last axis fastest."""
    z = tl.zeros((POINTS, WIDTH), tl.float32) + tl.load(origin + columns)[None, :]
    rest = points
    for back in range(n_axes):
        axis = n_axes - 1 - back
        count = tl.load(counts + axis)
        z = _along(z, tl.load(steps + axis * WIDTH + columns), rest % count, count)
        rest = rest // count
    return z


@triton.jit
def _in_a_row(origin, steps, counts, begin, n_axes, columns, WIDTH: tl.constexpr, POINTS: tl.constexpr):
    """Of the points from number begin, int64, on; axes' counts are under 2^32 - POINTS.

    Divisions take tens of instructions, of 64 bits far more: only the first one's number is divided. The others are so many
    points on, and so in the same row of an axis, or in the next; where rows are shorter than a tile, 32 bits are divided.
    """
    z = tl.zeros((POINTS, WIDTH), tl.float32) + tl.load(origin + columns)[None, :]
    first, further = begin, tl.arange(0, POINTS).to(tl.uint32)
    for back in range(n_axes):
        axis = n_axes - 1 - back
        count = tl.load(counts + axis)
        index = (first % count).to(tl.uint32) + further
        first = first // count
        further = (index >= count.to(tl.uint32)).to(tl.uint32)
        if count < POINTS:
            further = index // count.to(tl.uint32)
        z = _along(z, tl.load(steps + axis * WIDTH + columns), index - further * count.to(tl.uint32), count)
    return z


@triton.jit
def _signs(z, a, b, on_edge, to, present, breakpoints, layer, n_units, columns, BREAKPOINTS: tl.constexpr, EDGES: tl.constexpr):
    """The words of a layer, stored and hashed; which points are on an edge, where that is asked for; and where the next go."""
    if BREAKPOINTS > 0:
        at, is_unit = breakpoints + layer * MOST_BREAKPOINTS, columns < n_units
        words = packed(z, at, is_unit, BREAKPOINTS)
        number, n_of_layer = tl.arange(0, words.shape[1]), tl.cdiv(n_units * BREAKPOINTS, 64)
        tl.store(to[:, None] + number[None, :], words, mask=present[:, None] & (number < n_of_layer)[None, :])
        for each in tl.static_range(words.shape[1]):
            next_a, next_b = next_hash(a, b, tl.sum(tl.where((number == each)[None, :], words, 0), axis=1))
            # A block: Triton 3.9's interpreter takes no less for a mask.
            is_word = tl.zeros_like(on_edge) + n_of_layer > each
            a, b = tl.where(is_word, next_a, a), tl.where(is_word, next_b, b)
        to += n_of_layer
        if EDGES:
            on_edge = on_edge | at_breakpoints(z, at, is_unit, BREAKPOINTS)
    return a, b, on_edge, to


@triton.jit(do_not_specialize=["begin", "n_points", "n_axes", "n_words", "units0", "units1", "units2", "units3"])
def fused_patterns(
    x,
    first,
    first_bias,
    steps,
    counts,
    indices,
    weights,
    biases,
    scales,
    straights,
    parameters,
    breakpoints,
    words,
    hashes,
    begin,
    n_points,
    n_in,
    n_axes,
    n_words,
    units0,
    units1,
    units2,
    units3,
    nothing,
    GRID: tl.constexpr,
    INDEXED: tl.constexpr,
    EDGES: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    INS: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    BREAKPOINTS0: tl.constexpr,
    BREAKPOINTS1: tl.constexpr,
    BREAKPOINTS2: tl.constexpr,
    BREAKPOINTS3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The patterns of points as words, (n_points, n_words), and their hashes, (n_points, 2); both int64.

    With GRID the points are those from ``begin`` on of a regular grid, or with INDEXED those whose numbers are ``indices``, as
    they must be where an axis's count is MOST_IN_A_ROW or more; and first_bias (WIDTH,) and steps (n_axes, WIDTH) are its
    origin and its steps by the first affine map. Else they are x, (n_points, n_in), and first (n_in, WIDTH). With EDGES the
    last word is the number of a point, and one, that is exactly at a breakpoint, and 0 of the others. units0 and so on are how
    many units the layers have, and BREAKPOINTS0 and so on how many breakpoints, the first of the layer's row in breakpoints,
    (DEPTH, MOST_BREAKPOINTS).
    """
    places = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    present = places < n_points
    columns = tl.arange(0, WIDTH)
    numbers = begin + places
    if INDEXED:
        numbers = tl.load(indices + places, mask=present, other=0)
    if GRID and INDEXED:
        z = _of_a_grid(first_bias, steps, counts, numbers, n_axes, columns, WIDTH, POINTS)
    elif GRID:
        z = _in_a_row(first_bias, steps, counts, begin + tl.program_id(0).to(tl.int64) * POINTS, n_axes, columns, WIDTH, POINTS)
    else:
        z = first_map(x, first, first_bias, places, present, n_in, columns, WIDTH, POINTS, INS, PRECISION)
    a, b = first_hash(POINTS)
    on_edge, to = tl.zeros((POINTS,), tl.int32), words + places * n_words
    a, b, on_edge, to = _signs(z, a, b, on_edge, to, present, breakpoints, 0, units0, columns, BREAKPOINTS0, EDGES)
    if DEPTH > 1:
        u = activated(z, scales, straights, parameters, 0, columns, WIDTH, CORE0)
        z = next_map(u, weights, biases, 0, columns, nothing, WIDTH, AT_ONCE, PRECISION)
        a, b, on_edge, to = _signs(z, a, b, on_edge, to, present, breakpoints, 1, units1, columns, BREAKPOINTS1, EDGES)
    if DEPTH > 2:
        u = activated(z, scales, straights, parameters, 1, columns, WIDTH, CORE1)
        z = next_map(u, weights, biases, 1, columns, nothing, WIDTH, AT_ONCE, PRECISION)
        a, b, on_edge, to = _signs(z, a, b, on_edge, to, present, breakpoints, 2, units2, columns, BREAKPOINTS2, EDGES)
    if DEPTH > 3:
        u = activated(z, scales, straights, parameters, 2, columns, WIDTH, CORE2)
        z = next_map(u, weights, biases, 2, columns, nothing, WIDTH, AT_ONCE, PRECISION)
        a, b, on_edge, to = _signs(z, a, b, on_edge, to, present, breakpoints, 3, units3, columns, BREAKPOINTS3, EDGES)
    if EDGES:
        apart = tl.where(on_edge > 0, numbers + 1, 0)
        a, b = next_hash(a, b, apart)
        tl.store(words + places * n_words + n_words - 1, apart, mask=present)
    store_hash(hashes, places, present, a, b)
