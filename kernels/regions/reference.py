"""The definition, by linear programs: slow, obvious, sharing nothing with the fast paths.

A cell is a list of half-spaces. A unit's line cuts it where both sides hold a ball of some size: a cell is full-dimensional iff
its Chebyshev radius, the radius of the largest ball inside, is positive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from lmn.kernels.regions.problem import Chain, PieceLayer

Cell = tuple[tuple[bool, ...], np.ndarray, np.ndarray]  # pattern; sides g x <= h as rows (g.., h); the units' maps

SMALLEST_RADIUS = 1e-9  # of the cube's half side: a thinner cell is rounding


@dataclass(frozen=True, eq=False)
class ReferenceRegion:
    """One cell.

    Attributes
    ----------
    pattern : tuple of bool
        Whether each line is passed, layer by layer, unit by unit, breakpoint by breakpoint.
    inside : ndarray of shape (n_axes,), float64
        The centre of the largest ball in it.
    map : ndarray of shape (n_out, n_axes + 1), float64
        A and c of x -> A x + c.
    """

    pattern: tuple[bool, ...]
    inside: np.ndarray
    map: np.ndarray


def regions(chain: Chain) -> list[ReferenceRegion]:
    """The cells of the cube, in no particular order."""
    n = chain.n_axes
    sides = np.vstack([np.eye(n), -np.eye(n)])
    cells: list[Cell] = [((), np.column_stack([sides, np.ones(2 * n)]), np.column_stack([chain.a, chain.c]))]
    for layer in chain.layers:
        for unit in range(len(layer.pieces.slopes)):
            for at in layer.pieces.breakpoints:
                cells = [half for cell in cells for half in _halves(cell, unit, at)]
        cells = [(pattern, sides, _after(layer, pattern, units)) for pattern, sides, units in cells]
    return [ReferenceRegion(pattern, _largest_ball(sides)[0], outputs) for pattern, sides, outputs in cells]


def _halves(cell: Cell, unit: int, at: float) -> Iterator[Cell]:
    """The parts of a cell below and above a line that are full-dimensional."""
    pattern, sides, units = cell
    line = units[unit] - np.append(np.zeros(units.shape[1] - 1), at)
    for above in (False, True):
        side = np.append(-line[:-1], line[-1]) if above else np.append(line[:-1], -line[-1])
        extended = np.vstack([sides, side])
        if _largest_ball(extended)[1] > SMALLEST_RADIUS:
            yield (*pattern, above), extended, units


def _largest_ball(sides: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius: the largest r with g . x + |g| r <= h for every side; a side with g = 0 holds or does not."""
    g, h = sides[:, :-1], sides[:, -1]
    norms = np.linalg.norm(g, axis=1)
    if np.any(h[norms == 0] < 0):
        return np.zeros(g.shape[1]), -1.0
    g, h, norms = (x[norms > 0] for x in (g, h, norms))
    cost = np.append(np.zeros(g.shape[1]), -1)
    found = linprog(cost, np.column_stack([g, norms]), h, bounds=[(None, None)] * g.shape[1] + [(None, 1)])
    return (found.x[:-1], float(found.x[-1])) if found.status == 0 else (np.zeros(g.shape[1]), -1.0)


def _after(layer: PieceLayer, pattern: tuple[bool, ...], units: np.ndarray) -> np.ndarray:
    """The next layer's units: the piece that each unit is on, and the affine map after it."""
    n_units, n_lines = len(layer.pieces.slopes), len(layer.pieces.breakpoints)
    passed = np.array(pattern[len(pattern) - n_units * n_lines :]).reshape(n_units, n_lines).sum(axis=1)
    values = np.empty_like(units)
    for unit, piece in enumerate(passed):
        slopes, breakpoints = layer.pieces.slopes[unit], layer.pieces.breakpoints
        start = layer.pieces.at_first[unit]  # the value at the first breakpoint, then at the start of the piece
        origin = breakpoints[0]
        for step in range(1, piece):
            start, origin = start + slopes[step] * (breakpoints[step] - origin), breakpoints[step]
        values[unit] = slopes[piece] * units[unit]
        values[unit, -1] += start - slopes[piece] * origin
    after: np.ndarray = layer.weight @ values
    after[:, -1] += layer.bias
    return after
