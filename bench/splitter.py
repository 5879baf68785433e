"""Polygons split line by line: the simplest program that counts a 2D ReLU network's regions rightly, which lmn is held against.

Depth first. A polygon takes a layer's lines one after the other, each cutting the pieces that it crosses; every piece then
composes its own map of the next layer, a product of that layer's weights with the piece's masked map.
"""

from __future__ import annotations

import numpy as np
from numba import njit

Weights = list[tuple[np.ndarray, np.ndarray]]

TOLERANCE = 1e-12  # of a line's coefficients: a vertex nearer than this is on the line


def count(weights: Weights, half: float) -> tuple[int, float]:
    """The regions of a network on the box [-half, half]^2, and Σ area |∇f|."""
    (first, bias), *rest = weights
    maps = np.column_stack([half * first, bias])
    matrices = [np.ascontiguousarray(w) for w, _ in rest]
    biases = [np.ascontiguousarray(b) for _, b in rest]
    regions, gradient = _count(maps, matrices, biases)
    return regions, gradient * half


@njit(cache=True)
def _count(first, matrices, biases):
    square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    waiting = [(0, square, first)]
    regions, gradient = 0, 0.0
    while len(waiting) > 0:
        layer, polygon, maps = waiting.pop()
        if layer == len(matrices):
            regions += 1
            gradient += _area(polygon) * np.sqrt(maps[0, 0] ** 2 + maps[0, 1] ** 2)
            continue
        for piece in _pieces(polygon, maps):
            masked = maps.copy()
            middle_x, middle_y = piece[:, 0].mean(), piece[:, 1].mean()
            for unit in range(len(maps)):
                if maps[unit, 0] * middle_x + maps[unit, 1] * middle_y + maps[unit, 2] <= 0:
                    masked[unit] = 0
            after = np.dot(matrices[layer], masked)
            after[:, 2] += biases[layer]
            waiting.append((layer + 1, piece, after))
    return regions, gradient


@njit(cache=True)
def _pieces(polygon, maps):
    """The parts into which a layer's lines cut a polygon."""
    pieces = [polygon]
    for unit in range(len(maps)):
        a, b, c = maps[unit, 0], maps[unit, 1], maps[unit, 2]
        near = TOLERANCE * (abs(a) + abs(b) + abs(c))
        for index in range(len(pieces)):
            piece = pieces[index]
            z = a * piece[:, 0] + b * piece[:, 1] + c
            if z.min() < -near and z.max() > near:
                pieces[index] = _side(piece, z, near)
                pieces.append(_side(piece, -z, near))
    return pieces


@njit(cache=True)
def _side(polygon, z, near):
    """The part of a polygon on which z, given at its vertices, is not below zero."""
    out = np.empty((len(z) + 1, 2))
    n = 0
    for v in range(len(z)):
        w = v + 1 if v + 1 < len(z) else 0
        if z[v] >= -near:
            out[n] = polygon[v]
            n += 1
        if (z[v] > near and z[w] < -near) or (z[v] < -near and z[w] > near):
            out[n] = polygon[v] + z[v] / (z[v] - z[w]) * (polygon[w] - polygon[v])
            n += 1
    return out[:n].copy()


@njit(cache=True)
def _area(polygon):
    twice = 0.0
    for v in range(1, len(polygon) - 1):
        p, q = polygon[v] - polygon[0], polygon[v + 1] - polygon[0]
        twice += p[0] * q[1] - p[1] * q[0]
    return twice / 2
