"""A narrow chain of affine maps and activations in Triton: a tile of points goes forward in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import activation, activation_with_slope
from lmn.kernels.triton_dot import dot, dot_added

AT_ONCE = tl.constexpr(64)  # rows of a matrix that fit the registers beside a tile; more are multiplied in parts
MOST_BREAKPOINTS = tl.constexpr(2)  # of an activation that is in the kernels' table


@triton.jit
def some_columns(u, which, WIDTH: tl.constexpr, SOME: tl.constexpr):
    """Of u, (rows, WIDTH), SOME columns, the which-th of so many."""
    parts = tl.reshape(u, (u.shape[0], WIDTH // SOME, SOME))
    is_it = (tl.arange(0, WIDTH // SOME) == which)[None, :, None]
    return tl.sum(tl.where(is_it, parts, 0.0), axis=1)


@triton.jit
def _loaded(places, mask):
    """What is there; zeros where a mask, unless it is None, has not."""
    return tl.load(places) if mask is None else tl.load(places, mask=mask, other=0.0)


@triton.jit
def product(u, matrix, stride, columns, mask, nothing, WIDTH: tl.constexpr, SOME: tl.constexpr, PRECISION: tl.constexpr):
    """u, (rows, WIDTH), times some columns of a matrix, (WIDTH, stride); those that a mask, (1, columns) or None, has.

    SOME of the matrix's rows at a time, in a loop from ``nothing`` on, which is 0: the compiler does not know that, and would
    else unroll it, and hold all of both operands at once.
    """
    rows = tl.arange(0, WIDTH if WIDTH < SOME else SOME)
    places = matrix + rows[:, None] * stride + columns[None, :]
    if WIDTH <= SOME:
        z = dot(u, _loaded(places, mask), PRECISION)
    else:
        z = tl.zeros((u.shape[0], columns.shape[0]), tl.float32)
        for part in range(nothing, WIDTH // SOME):
            w = _loaded(places + part * SOME * stride, mask)
            z = dot_added(z, some_columns(u, part, WIDTH, SOME), w, PRECISION)
    return z


@triton.jit
def first_map(x, first, bias, points, present, n_in, columns, WIDTH: tl.constexpr, POINTS: tl.constexpr, INS: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """The first pre-activations, (POINTS, WIDTH), of samples (n_points, n_in) by weights (n_in, WIDTH)."""
    z = tl.zeros((POINTS, WIDTH), tl.float32)
    for begin in range(0, n_in, INS):
        ins = begin + tl.arange(0, INS)
        part = tl.load(x + points[:, None] * n_in + ins[None, :], mask=present[:, None] & (ins < n_in)[None, :], other=0.0)
        w = tl.load(first + ins[:, None] * WIDTH + columns[None, :], mask=(ins < n_in)[:, None], other=0.0)
        z = dot_added(z, part, w, PRECISION)
    return z + tl.load(bias + columns)[None, :]


@triton.jit
def next_map(u, weights, biases, layer, columns, nothing, WIDTH: tl.constexpr, SOME: tl.constexpr, PRECISION: tl.constexpr):
    """The pre-activations of layer + 1 from the activations of a layer."""
    z = product(u, weights + layer * WIDTH * WIDTH, WIDTH, columns, None, nothing, WIDTH, SOME, PRECISION)
    return z + tl.load(biases + layer * WIDTH + columns)[None, :]


@triton.jit
def _constants(scales, straights, parameters, layer, columns, WIDTH: tl.constexpr):
    p0, p1 = tl.load(parameters + 3 * layer), tl.load(parameters + 3 * layer + 1)
    scale, straight = tl.load(scales + layer * WIDTH + columns), tl.load(straights + layer * WIDTH + columns)
    return p0, p1, scale[None, :], straight[None, :]


@triton.jit
def activated(z, scales, straights, parameters, layer, columns, WIDTH: tl.constexpr, CORE: tl.constexpr):
    p0, p1, scale, straight = _constants(scales, straights, parameters, layer, columns, WIDTH)
    return activation(z, scale, straight, p0, p1, CORE)


@triton.jit
def activated_with_slope(z, scales, straights, parameters, layer, columns, WIDTH: tl.constexpr, CORE: tl.constexpr):
    p0, p1, scale, straight = _constants(scales, straights, parameters, layer, columns, WIDTH)
    return activation_with_slope(z, scale, straight, p0, p1, tl.load(parameters + 3 * layer + 2), CORE)


@triton.jit
def slopes_of(
    z,
    weights,
    biases,
    scales,
    straights,
    parameters,
    columns,
    nothing,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SOME: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    CORE3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The slopes of all layers from the first pre-activations, each (POINTS, WIDTH); the first's where there is no layer."""
    u, s0 = activated_with_slope(z, scales, straights, parameters, 0, columns, WIDTH, CORE0)
    s1, s2, s3 = s0, s0, s0
    if DEPTH > 1:
        z = next_map(u, weights, biases, 0, columns, nothing, WIDTH, SOME, PRECISION)
        u, s1 = activated_with_slope(z, scales, straights, parameters, 1, columns, WIDTH, CORE1)
    if DEPTH > 2:
        z = next_map(u, weights, biases, 1, columns, nothing, WIDTH, SOME, PRECISION)
        u, s2 = activated_with_slope(z, scales, straights, parameters, 2, columns, WIDTH, CORE2)
    if DEPTH > 3:
        z = next_map(u, weights, biases, 2, columns, nothing, WIDTH, SOME, PRECISION)
        u, s3 = activated_with_slope(z, scales, straights, parameters, 3, columns, WIDTH, CORE3)
    return s0, s1, s2, s3
