"""What every backend is given, and what it finds: a piecewise-linear network on a cube, and its regions there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Program

# A line passes through a vertex where it is zero within this much of the size of the terms that it is the sum of.
RELATIVE_TOLERANCE = 1e-13


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
class Chain:
    """Affine maps and activations in turn, the first affine map composed with the coordinates of the cube.

    Attributes
    ----------
    a : ndarray of shape (n_first, n_axes), float64
        With c, the first affine map: to the first activation's units, or to the outputs where there is none.
    c : ndarray of shape (n_first,), float64
    size : ndarray of shape (n_first,), float64
        The size of the terms that a and c were summed from: what their rounding errors are relative to.
    layers : tuple of PieceLayer
    """

    a: np.ndarray
    c: np.ndarray
    size: np.ndarray
    layers: tuple[PieceLayer, ...]

    @property
    def n_axes(self) -> int:
        return int(self.a.shape[1])


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on the cube [-1, 1]^n_axes, n_axes from 1 to 3: inputs centre + Σ_a u_a half_a.

    Attributes
    ----------
    chain : Chain or None
    why_no_chain : str
    program : callable
        Gives the network as steps, in float64; asked for only by who needs it, and raises where there is none.
    centre, half : ndarray of shape (n_in,) and (n_axes, n_in), float64
    shape : tuple of int
        Of one input.
    max_regions : int
        At which the search is given up.
    threads : int
    """

    chain: Chain | None
    why_no_chain: str
    program: Callable[[], Program]
    centre: np.ndarray
    half: np.ndarray
    shape: tuple[int, ...]
    max_regions: int
    threads: int


class Terms(NamedTuple):
    """How large the terms are that the outputs' affine maps x → A x + c are summed from, as norms of all entries."""

    a: float
    c: float


@dataclass(frozen=True, eq=False)
class Subdivision:
    """The cells of a cube on which a network is affine, in an order that does not depend on the number of threads.

    Coordinates are the cube's. A line is a unit passing a breakpoint, or another member of a window becoming the largest; lines
    are numbered layer by layer, unit by unit. A layer is an activation, or a maximum.

    Attributes
    ----------
    n_regions : int
    lines_a_layer : tuple of int
    complete : bool
        False if max_regions was passed; n_regions is then what was found until that was noticed.
    count_after_each_layer : tuple of int
    patterns : ndarray of shape (n_regions, n_words), uint64
        Bit i of a layer's words: its line i is passed (z > breakpoint); or, of a maximum, which member of each window is the
        largest. Each layer starts at a word of its own.
    volumes : ndarray of shape (n_regions,), float64
        Length, area or volume.
    centres : ndarray of shape (n_regions, n_axes), float64
        A point inside: the mean of the vertices.
    maps : ndarray of shape (n_regions, n_out, n_axes + 1), float64
        A and c of x → A x + c.
    cuts, children : ndarray of shape (n_cuts, n_axes + 1), float64, and (n_cuts, 2), int64
        The tree of cuts: points with a . x + c > 0 are in the first child, the others in the second; a child is a cut, or
        ~region, and several may lead to one region. The first cut is the root.
    terms : Terms
        What the rounding errors of maps are relative to.
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
    volumes: np.ndarray
    centres: np.ndarray
    maps: np.ndarray
    cuts: np.ndarray
    children: np.ndarray
    terms: Terms
    n_vertices: np.ndarray | None = None
    n_facets: np.ndarray | None = None
    vertices: np.ndarray | None = None
    vertex_ids: np.ndarray | None = None
    edge_ids: np.ndarray | None = None
    facet_ids: np.ndarray | None = None
    facet_lines: np.ndarray | None = None
