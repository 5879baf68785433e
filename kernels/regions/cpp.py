"""Exact subdivision of chains by the C++ core (csrc/subdivide.cpp)."""

from __future__ import annotations

import numpy as np

from lmn import _core
from lmn.kernels.regions.problem import RELATIVE_TOLERANCE, PieceLayer, Problem, Subdivision
from lmn.kernels.regions.sizes import terms_of_chain


def regions(problem: Problem, geometry: bool = False) -> Subdivision:
    """The cells of the problem's cube; their vertices, edges and facets only if asked for."""
    chain = problem.chain
    assert chain is not None
    found = _core.subdivide(
        a=chain.a,
        c=chain.c,
        size=chain.size,
        layers=[_lines(layer) for layer in chain.layers],
        relative_tolerance=RELATIVE_TOLERANCE,
        geometry=geometry,
        max_regions=problem.max_regions,
        threads=problem.threads,
    )
    return Subdivision(
        n_regions=found["n_regions"],
        lines_a_layer=tuple(layer.pieces.n_lines for layer in chain.layers),
        complete=not found["stopped"],
        count_after_each_layer=tuple(found["after_layer"]),
        patterns=found["pattern"],
        volumes=found["measure"],
        centres=found["centre"],
        maps=found["map"],
        cuts=found["cut"],
        children=found["child"],
        terms=terms_of_chain(chain),
        n_vertices=found.get("n_vertices"),
        n_facets=found.get("n_facets"),
        vertices=found.get("vertex"),
        vertex_ids=found.get("vertex_id"),
        edge_ids=found.get("edge_id"),
        facet_ids=found.get("facet_id"),
        facet_lines=found.get("facet_line"),
    )


def _lines(layer: PieceLayer) -> tuple[np.ndarray, ...]:
    """A layer line by line: with v = z - breakpoint, the activation is the sum over a unit's lines of slope v + offset.

    The first line says what is on both of its sides; every other one, by how much the slope changes above it.
    """
    breakpoints, slopes = layer.pieces.breakpoints, layer.pieces.slopes
    n_units, n_lines = len(slopes), len(breakpoints)
    unit = np.repeat(np.arange(n_units, dtype=np.int32), n_lines)
    slope_below, offset = np.zeros((n_units, n_lines)), np.zeros((n_units, n_lines))
    slope_below[:, 0], offset[:, 0] = slopes[:, 0], layer.pieces.at_first
    slope_above = np.diff(slopes, axis=1)
    slope_above[:, 0] = slopes[:, 1]
    columns = (np.tile(breakpoints, n_units), slope_below.ravel(), offset.ravel(), slope_above.ravel(), offset.ravel())
    return (unit, *columns, layer.weight, layer.bias)
