"""The Triton kernel of local complexity of narrow chains: all vertices around a sample go forward, a tile at a time.

A sample has gone through the first affine map, and its vertices are the same steps from there as everybody's. All that is kept
of a layer is the least and the greatest pre-activation of each unit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.triton_chain import AT_ONCE, MOST_BREAKPOINTS, activated, next_map


@triton.jit
def vertices_at(z, steps, vertices, n_directions, n_units, columns, present):
    """Pre-activations z, (WIDTH,), at vertices, (VERTICES,): all z + step, then z - step, of steps (n_directions, n_units)."""
    number = vertices % (2 * n_directions)  # what is too many is some again
    forward = number < n_directions
    direction = tl.where(forward, number, number - n_directions).to(tl.int64)
    step = tl.load(steps + direction[:, None] * n_units + columns[None, :], mask=present[None, :], other=0.0)
    return z[None, :] + tl.where(forward, 1.0, -1.0)[:, None] * step


@triton.jit
def seen(z, least, most):
    """The least and the greatest so far, (WIDTH,), of z, (VERTICES, WIDTH); the greatest is infinite if one is not finite."""
    values = tl.where(z - z == 0.0, z, float("inf"))  # NaN and infinity minus themselves are NaN
    return tl.minimum(least, tl.min(z, axis=0)), tl.maximum(most, tl.max(values, axis=0))


@triton.jit
def counted(least, most, breakpoints, present, BREAKPOINTS: tl.constexpr):
    """Units with a breakpoint between, and -1 where a value is not finite."""
    between = tl.zeros_like(least).to(tl.int32)
    for which in tl.static_range(BREAKPOINTS):
        at = tl.load(breakpoints + which)
        between = between | ((most > at) & (least <= at)).to(tl.int32)
    count = tl.sum(tl.where(present, between, 0), axis=0)
    return tl.where(tl.max(tl.where(present, most, 0.0), axis=0) == float("inf"), -1, count)


@triton.jit(do_not_specialize=["n_directions", "units0", "units1", "units2", "units3"])
def fused_local_complexity(
    at_samples,
    steps,
    weights,
    biases,
    scales,
    straights,
    parameters,
    breakpoints,
    counts,
    n_directions,
    units0,
    units1,
    units2,
    units3,
    nothing,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    VERTICES: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    BREAKPOINTS0: tl.constexpr,
    BREAKPOINTS1: tl.constexpr,
    BREAKPOINTS2: tl.constexpr,
    BREAKPOINTS3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """How many units of each layer are counted at sample program 0: counts, (n_points, DEPTH), int32.

    at_samples, (n_points, WIDTH), are first pre-activations, and steps, (n_directions, WIDTH), lead from there to those of half
    of the vertices; ``nothing`` is 0, which keeps weights from being loaded before the loop, all at once.
    """
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    everywhere = columns < WIDTH
    at_sample = tl.load(at_samples + sample * WIDTH + columns)
    infinity = tl.full((WIDTH,), float("inf"), tl.float32)
    least0, most0 = infinity, -infinity
    least1, most1 = infinity, -infinity
    least2, most2 = infinity, -infinity
    least3, most3 = infinity, -infinity
    for begin in range(0, 2 * n_directions, VERTICES):
        here = weights + begin * nothing
        z = vertices_at(at_sample, steps, begin + tl.arange(0, VERTICES), n_directions, WIDTH, columns, everywhere)
        least0, most0 = seen(z, least0, most0)
        if DEPTH > 1:
            u = activated(z, scales, straights, parameters, 0, columns, WIDTH, CORE0)
            z = next_map(u, here, biases, 0, columns, nothing, WIDTH, AT_ONCE, PRECISION)
            least1, most1 = seen(z, least1, most1)
        if DEPTH > 2:
            u = activated(z, scales, straights, parameters, 1, columns, WIDTH, CORE1)
            z = next_map(u, here, biases, 1, columns, nothing, WIDTH, AT_ONCE, PRECISION)
            least2, most2 = seen(z, least2, most2)
        if DEPTH > 3:
            u = activated(z, scales, straights, parameters, 2, columns, WIDTH, CORE2)
            z = next_map(u, here, biases, 2, columns, nothing, WIDTH, AT_ONCE, PRECISION)
            least3, most3 = seen(z, least3, most3)
    to = counts + sample * DEPTH
    tl.store(to, counted(least0, most0, breakpoints, columns < units0, BREAKPOINTS0))
    if DEPTH > 1:
        tl.store(to + 1, counted(least1, most1, breakpoints + 1 * MOST_BREAKPOINTS, columns < units1, BREAKPOINTS1))
    if DEPTH > 2:
        tl.store(to + 2, counted(least2, most2, breakpoints + 2 * MOST_BREAKPOINTS, columns < units2, BREAKPOINTS2))
    if DEPTH > 3:
        tl.store(to + 3, counted(least3, most3, breakpoints + 3 * MOST_BREAKPOINTS, columns < units3, BREAKPOINTS3))
