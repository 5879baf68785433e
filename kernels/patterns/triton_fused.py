"""The Triton kernel of patterns of narrow chains: a tile of points forward in registers, its signs packed and hashed.

Points of a regular grid are never made: the affine map before the first activation takes its origin and its steps instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.patterns.triton_bits import first_hash, next_hash, store_hash
from lmn.kernels.triton_chain import activated, first_map, next_map


@triton.jit
def _on_the_grid(origin, steps, counts, points, n_axes, columns, WIDTH: tl.constexpr, POINTS: tl.constexpr):
    """The first pre-activations, (POINTS, WIDTH), of the points of these numbers, the last axis fastest."""
    z = tl.zeros((POINTS, WIDTH), tl.float32) + tl.load(origin + columns)[None, :]
    rest = points
    for back in range(n_axes):
        axis = n_axes - 1 - back
        count = tl.load(counts + axis)
        step = tl.load(steps + axis * WIDTH + columns)[None, :]
        index = rest % count
        rest = rest // count
        # In two parts, each of which float32 can hold, and their sum can not.
        z += ((index >> 12) << 12).to(tl.float32)[:, None] * step
        z += (index & 4095).to(tl.float32)[:, None] * step
    return z


@triton.jit
def _bits(z, a, b, on_edge, breakpoints, layout, layer, words, points, present, n_words, columns,
          MOST_BREAKPOINTS: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr, EDGES: tl.constexpr):  # fmt: skip
    """The words of a layer, stored and hashed; and which points are on an edge, where that is asked for.

    layout, int32, is of each layer: units, breakpoints, first word, words.
    """
    n_units, n_breakpoints = tl.load(layout + 4 * layer), tl.load(layout + 4 * layer + 1)
    first_word, n_of_layer = tl.load(layout + 4 * layer + 2), tl.load(layout + 4 * layer + 3)
    for number in tl.static_range(MOST_BREAKPOINTS * ((WIDTH + 63) // 64)):  # the most words of so many units
        word = tl.zeros((POINTS,), tl.int64)
        for which in tl.static_range(MOST_BREAKPOINTS):
            at = tl.load(breakpoints + layer * MOST_BREAKPOINTS + which)
            place = columns * n_breakpoints + which - 64 * number
            here = (columns < n_units) & (which < n_breakpoints) & (place >= 0) & (place < 64)
            above = (z > at) & here[None, :]
            shift = tl.where(here, place, 0).to(tl.int64)
            word += tl.sum(above.to(tl.int64) << shift[None, :], axis=1)
            if EDGES:
                on_edge = on_edge | tl.max(((z == at) & here[None, :]).to(tl.int32), axis=1)
        # A block: Triton 3.9's interpreter takes no less for a mask.
        is_word = tl.zeros((POINTS,), tl.int32) + n_of_layer > number
        next_a, next_b = next_hash(a, b, word)
        a, b = tl.where(is_word, next_a, a), tl.where(is_word, next_b, b)
        tl.store(words + points * n_words + first_word + number, word, mask=present & is_word)
    return a, b, on_edge


@triton.jit(do_not_specialize=["begin", "n_points", "n_axes", "n_words"])
def fused(
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
    layout,
    words,
    hashes,
    begin,
    n_points,
    n_in,
    n_axes,
    n_words,
    nothing,
    GRID: tl.constexpr,
    INDEXED: tl.constexpr,
    EDGES: tl.constexpr,
    MOST_BREAKPOINTS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    INS: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The patterns of points as words, (n_points, n_words), and their hashes, (n_points, 2); both int64.

    With GRID the points are those from ``begin`` on of a regular grid, or with INDEXED those whose numbers are ``indices``,
    and first_bias (WIDTH,) and steps (n_axes, WIDTH) are its origin and its steps by the first affine map; else they are x,
    (n_points, n_in), and first (n_in, WIDTH). With EDGES the last word is the number of a point, and one, that is exactly at a
    breakpoint, and 0 of the others.
    """
    places = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    present = places < n_points
    columns = tl.arange(0, WIDTH)
    numbers = begin + places
    if INDEXED:
        numbers = tl.load(indices + places, mask=present, other=0)
    if GRID:
        z = _on_the_grid(first_bias, steps, counts, numbers, n_axes, columns, WIDTH, POINTS)
    else:
        z = first_map(x, first, first_bias, places, present, n_in, columns, WIDTH, POINTS, INS, PRECISION)
    a, b = first_hash(POINTS)
    on_edge = tl.zeros((POINTS,), tl.int32)
    a, b, on_edge = _bits(z, a, b, on_edge, breakpoints, layout, 0, words, places, present, n_words, columns,
                          MOST_BREAKPOINTS, WIDTH, POINTS, EDGES)  # fmt: skip
    if DEPTH > 1:
        u = activated(z, scales, straights, parameters, 0, columns, WIDTH, CORE0)
        z = next_map(u, weights, biases, 0, columns, nothing, WIDTH, PRECISION)
        a, b, on_edge = _bits(z, a, b, on_edge, breakpoints, layout, 1, words, places, present, n_words, columns,
                              MOST_BREAKPOINTS, WIDTH, POINTS, EDGES)  # fmt: skip
    if DEPTH > 2:
        u = activated(z, scales, straights, parameters, 1, columns, WIDTH, CORE1)
        z = next_map(u, weights, biases, 1, columns, nothing, WIDTH, PRECISION)
        a, b, on_edge = _bits(z, a, b, on_edge, breakpoints, layout, 2, words, places, present, n_words, columns,
                              MOST_BREAKPOINTS, WIDTH, POINTS, EDGES)  # fmt: skip
    if DEPTH > 3:
        u = activated(z, scales, straights, parameters, 2, columns, WIDTH, CORE2)
        z = next_map(u, weights, biases, 2, columns, nothing, WIDTH, PRECISION)
        a, b, on_edge = _bits(z, a, b, on_edge, breakpoints, layout, 3, words, places, present, n_words, columns,
                              MOST_BREAKPOINTS, WIDTH, POINTS, EDGES)  # fmt: skip
    if EDGES:
        apart = tl.where(on_edge > 0, numbers + 1, 0)
        a, b = next_hash(a, b, apart)
        tl.store(words + places * n_words + n_words - 1, apart, mask=present)
    store_hash(hashes, places, present, a, b)
