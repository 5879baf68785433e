"""What is asked of a subdivision's tree of cuts and of its neighbours (csrc/tree.cpp, csrc/components.hpp)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmn import _core


def locate(cuts: np.ndarray, children: np.ndarray, points: np.ndarray, threads: int) -> np.ndarray:
    """The regions of points, shape (n_points, n_axes), in the cube's coordinates: (n_points,), int64.

    A point on a cut belongs to the side where the unit is not above its breakpoint.
    """
    return _core.locate(cuts, children, points, threads)


def rasterised(
    cuts: np.ndarray,
    children: np.ndarray,
    values: np.ndarray,
    shape: Sequence[int],
    first: Sequence[float],
    step: Sequence[float],
    threads: int,
) -> np.ndarray:
    """The values of the regions of a regular grid's points: an array of the given shape, and of each value's.

    Parameters
    ----------
    values : ndarray of shape (n_regions, ...), contiguous
    shape : n_axes int
    first, step : n_axes float
        Of each axis, the first point and the distance between two, in the cube's coordinates.
    """
    return _core.rasterise(cuts, children, values, shape, first, step, threads)


def n_components(n_regions: int, pairs: np.ndarray) -> int:
    """The connected components of regions, joined by pairs of shape (n_pairs, 2), int64."""
    return _core.count_components(n_regions, pairs)
