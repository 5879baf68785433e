"""A connectivity matrix, its rows ordered by clusters, and its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmn.domain import Array
from lmn.errors import LmnError

_N_CLUSTERS = 10


def clustered(connectivity: Array) -> Array:
    """An order of samples in which those of a cluster stand together, by spectral clustering into 10, larger clusters first.

    Parameters
    ----------
    connectivity : ndarray of shape (n_points, n_points)
        The affinities.

    Returns
    -------
    ndarray of shape (n_points,), int64
    """
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError as error:
        raise LmnError("the order by clusters needs scikit-learn; pip install scikit-learn.") from error
    clusters = min(_N_CLUSTERS, len(connectivity))
    if clusters < 2:
        return np.arange(len(connectivity))
    labels = SpectralClustering(clusters, affinity="precomputed", random_state=0).fit_predict(connectivity)
    sizes = np.bincount(labels)
    return np.lexsort((labels, -sizes[labels]))


def lowest_shown(matrices: Sequence[Array]) -> float:
    """Of one scale for all, to compare by; a few pairs lie far below, and would take the contrast from the others."""
    return min(float(np.quantile(matrix, 0.005)) for matrix in matrices)


def draw_matrix(axes: Any, matrix: Array, order: Array, low: float, title: str) -> Any:
    image = axes.imshow(matrix[np.ix_(order, order)], vmin=low, vmax=1, cmap="magma", interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.tick_params(labelsize="small")
    return image


def draw_spectrum(axes: Any, eigenvalues: Array) -> None:
    axes.plot(np.arange(1, len(eigenvalues) + 1), eigenvalues, ".", markersize=3)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xlabel("rank")
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
