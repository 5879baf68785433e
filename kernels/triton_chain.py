"""A narrow chain of affine maps and activations in Triton: a tile of points goes forward in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import activation, activation_with_slope


@triton.jit
def first_map(x, first, bias, points, present, n_in, columns, WIDTH: tl.constexpr, POINTS: tl.constexpr, INS: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """The first pre-activations, (POINTS, WIDTH), of samples (n_points, n_in) by weights (n_in, WIDTH)."""
    z = tl.zeros((POINTS, WIDTH), tl.float32)
    for begin in range(0, n_in, INS):
        ins = begin + tl.arange(0, INS)
        part = tl.load(x + points[:, None] * n_in + ins[None, :], mask=present[:, None] & (ins < n_in)[None, :], other=0.0)
        w = tl.load(first + ins[:, None] * WIDTH + columns[None, :], mask=(ins < n_in)[:, None], other=0.0)
        z = tl.dot(part, w, z, input_precision=PRECISION)
    return z + tl.load(bias + columns)[None, :]


@triton.jit
def next_map(u, weights, biases, layer, columns, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """The pre-activations of layer + 1 from the activations of a layer."""
    w = tl.load(weights + layer * WIDTH * WIDTH + columns[:, None] * WIDTH + columns[None, :])
    return tl.dot(u, w, input_precision=PRECISION) + tl.load(biases + layer * WIDTH + columns)[None, :]


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
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
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
        z = next_map(u, weights, biases, 0, columns, WIDTH, PRECISION)
        u, s1 = activated_with_slope(z, scales, straights, parameters, 1, columns, WIDTH, CORE1)
    if DEPTH > 2:
        z = next_map(u, weights, biases, 1, columns, WIDTH, PRECISION)
        u, s2 = activated_with_slope(z, scales, straights, parameters, 2, columns, WIDTH, CORE2)
    if DEPTH > 3:
        z = next_map(u, weights, biases, 2, columns, WIDTH, PRECISION)
        u, s3 = activated_with_slope(z, scales, straights, parameters, 3, columns, WIDTH, CORE3)
    return s0, s1, s2, s3
