"""What every backend is given: a chain of affine maps and piecewise-linear activations, on a cube."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lmn.kernels.activations import Activation

# A line passes through a vertex where it is zero within this much of the size of the terms that it is the sum of.
RELATIVE_TOLERANCE = 1e-13


@dataclass(frozen=True, eq=False)
class Pieces:
    """The linear pieces of an activation, for each of some units.

    Attributes
    ----------
    breakpoints : ndarray of shape (n_breakpoints,), float64
        Ascending, the same for all units.
    slopes : ndarray of shape (n_units, n_breakpoints + 1), float64
        Of the pieces from left to right.
    at_first : ndarray of shape (n_units,), float64
        The activation at its first breakpoint.
    """

    breakpoints: np.ndarray
    slopes: np.ndarray
    at_first: np.ndarray


def pieces(activation: Activation, n_units: int) -> Pieces:
    """The pieces of a piecewise-linear activation that is not the identity."""
    if activation.core == "pieces":
        return _pieces_by_values(activation, n_units)
    at, core_slopes = {
        "abs": (np.array([-np.inf, 0.0, np.inf]), np.array([-1.0, 1.0])),
        "clamp": (np.array([-np.inf, activation.p0, activation.p1, np.inf]), np.array([0.0, 1.0, 0.0])),
    }[activation.core]
    breakpoints, core_slopes = at[np.isfinite(at)], core_slopes[at[:-1] < at[1:]]  # a bound may be infinite
    scale, slope = activation.by_unit(n_units)
    first = torch.full((1, n_units), breakpoints[0], dtype=torch.float64)
    return Pieces(breakpoints, np.outer(scale, core_slopes) + slope[:, None], activation.function(first)[0].numpy())


def _pieces_by_values(activation: Activation, n_units: int) -> Pieces:
    """The slopes between given breakpoints, from the activation's values there."""
    breakpoints = np.array(activation.breakpoints, dtype=np.float64)
    at = np.concatenate([breakpoints[:1] - 1, breakpoints, breakpoints[-1:] + 1])
    values = activation.function(torch.from_numpy(at)[:, None])[:, 0].double().numpy()
    slopes = np.diff(values) / np.diff(at)
    return Pieces(breakpoints, np.tile(slopes, (n_units, 1)), np.full(n_units, values[1]))


@dataclass(frozen=True, eq=False)
class PieceLayer:
    """An activation and the affine map after it.

    Attributes
    ----------
    pieces : Pieces
    weight : ndarray of shape (n_next, n_units), float64
    bias : ndarray of shape (n_next,), float64
    """

    pieces: Pieces
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Problem:
    """A chain on the cube [-1, 1]^n_axes, n_axes from 1 to 3.

    Attributes
    ----------
    a : ndarray of shape (n_first, n_axes), float64
        With c, the first affine map: to the first activation's units, or to the outputs where there is none.
    c : ndarray of shape (n_first,), float64
    size : ndarray of shape (n_first,), float64
        The size of the terms that a and c were summed from: what their rounding errors are relative to.
    layers : tuple of PieceLayer
    max_regions : int
        At which the search is given up.
    threads : int
    """

    a: np.ndarray
    c: np.ndarray
    size: np.ndarray
    layers: tuple[PieceLayer, ...]
    max_regions: int
    threads: int

    @property
    def n_axes(self) -> int:
        return int(self.a.shape[1])

    @property
    def n_out(self) -> int:
        return len(self.layers[-1].bias) if self.layers else len(self.c)


@dataclass(frozen=True, eq=False)
class Subdivision:
    """The cells of a cube on which a chain is affine, in an order that does not depend on the number of threads.

    Coordinates are the cube's. A line is a unit passing a breakpoint; lines are numbered layer by layer, unit by unit.

    Attributes
    ----------
    n_regions : int
    lines_a_layer : tuple of int
    complete : bool
        False if max_regions was passed; n_regions is then what was found until that was noticed.
    count_after_each_layer : tuple of int
    patterns : ndarray of shape (n_regions, n_words), uint64
        Bit i of a layer's words: its line i is passed (z > breakpoint). Each layer starts at a word of its own.
    hashes : ndarray of shape (n_regions,), uint64
        Of the patterns.
    volumes : ndarray of shape (n_regions,), float64
        Length, area or volume.
    centres : ndarray of shape (n_regions, n_axes), float64
        A point inside: the mean of the vertices.
    maps : ndarray of shape (n_regions, n_out, n_axes + 1), float64
        A and c of x → A x + c.
    cuts, children : ndarray of shape (n_cuts, n_axes + 1), float64, and (n_cuts, 2), int64
        The tree of cuts: points with a . x + c > 0 are in the first child, the others in the second; a child is a cut, or
        ~region. The first cut is the root.
    n_vertices, n_facets : ndarray of shape (n_regions,), int32, or None
    vertices : ndarray of shape (sum of n_vertices, n_axes), float64, or None
        Of a polygon, around it counter-clockwise.
    vertex_ids, edge_ids, facet_ids : ndarray, uint64, or None
        For each region's vertices, edges (three dimensions) and facets, numbers that are equal where it is the same one.
    facet_lines : ndarray of shape (sum of n_facets,), int32, or None
        The line on which a facet lies, or n_lines + 2 axis + (0 or 1) for the cube's own sides. Of a polygon, facet i is the
        edge from vertex i to the next.
    """

    n_regions: int
    lines_a_layer: tuple[int, ...]
    complete: bool
    count_after_each_layer: tuple[int, ...]
    patterns: np.ndarray
    hashes: np.ndarray
    volumes: np.ndarray
    centres: np.ndarray
    maps: np.ndarray
    cuts: np.ndarray
    children: np.ndarray
    n_vertices: np.ndarray | None = None
    n_facets: np.ndarray | None = None
    vertices: np.ndarray | None = None
    vertex_ids: np.ndarray | None = None
    edge_ids: np.ndarray | None = None
    facet_ids: np.ndarray | None = None
    facet_lines: np.ndarray | None = None
