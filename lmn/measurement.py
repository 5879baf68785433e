"""What a measurement found."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from lmn.errors import LmnError
from lmn.jacobian_statistics import JacobianStatistics
from lmn.local_complexity import LocalComplexity
from lmn.matrices import clustered, draw_matrix, draw_spectrum, lowest_shown
from lmn.partition import Regions
from lmn.plots import matplotlib_pyplot

# What the numbers of a measurement are called that may change from one of a training to the next.
_NUMBERS = re.compile(
    r"lmn|nonlinear_complexity|n_redone|elapsed|(exact|observed)_regions(_after_layer_\d+|_coverage|_lower_bound|_limited_by_points)?"
    r"|jacobian_((largest_)?spectral_norm|frobenius_norm|effective_rank)|(effective_)?linear_maps|local_complexity(_layer_\d+)?"
)


def is_measured(name: str) -> bool:
    """Whether a number of a training is of a measurement, by its name."""
    return _NUMBERS.fullmatch(name) is not None


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of ``lmn.measure``.

    What was not measured is None.

    Attributes
    ----------
    lmn : float or None
        Linear mapping number, between 1 and the number of points that were measured.
    nonlinear_complexity : float or None
        log2 of it, in bits.
    regions : Regions or None
        The activation regions: ``regions.count``, and ``regions.exact``, which tells whether these are all on a line, in a
        plane or in a box, or those observed at the points.
    jacobians : JacobianStatistics or None
        Norms and ranks of the local Jacobians, and how many of them differ.
    local_complexity : LocalComplexity or None
        Of each sample: how many units change sign around it.
    n_points : int
        Points of the grid.
    n_sampled : int or None
        How many of them were drawn at random, where the grid has more than ``max_points``: the LMN and the local complexity
        are those of the sample.
    eigenvalues : ndarray of shape (n_points or n_sampled,), float64, or None
        Of the connectivity matrix, descending.
    connectivity : Tensor of shape (n_points, n_points) or (n_sampled, n_sampled), or None
        The matrix, if it was asked for; float64.
    indices : Tensor of shape (n_sampled,), int64, or None
        Which of the grid's points were drawn.
    m : int or None
        Points a segment.
    backend : str or None
        What computed the connectivity.
    path : str
        How the model was taken: "chain" (arrays in a kernel), "traced" (the tail as a graph) or "whole model" (run as it is,
        with the tap's output substituted).
    dtype : str or None
        What the connectivity was computed in.
    n_redone : int or None
        Pairs that float32 could not do to the tolerance and that were done again in float64.
    elapsed : float
        Seconds.
    notes : tuple of str
        What a reader of the numbers should know.
    """

    n_points: int
    path: str
    elapsed: float
    lmn: float | None = None
    nonlinear_complexity: float | None = None
    regions: Regions | None = field(default=None, repr=False)
    jacobians: JacobianStatistics | None = field(default=None, repr=False)
    local_complexity: LocalComplexity | None = field(default=None, repr=False)
    n_sampled: int | None = None
    eigenvalues: np.ndarray[Any, Any] | None = field(default=None, repr=False)
    connectivity: Tensor | None = field(default=None, repr=False)
    indices: Tensor | None = field(default=None, repr=False)
    m: int | None = None
    backend: str | None = None
    dtype: str | None = None
    n_redone: int | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, float]:
        """The numbers as flat floats, for loggers and data frames."""
        names = ("lmn", "nonlinear_complexity", "n_points", "n_sampled", "m", "n_redone", "elapsed")
        values = {name: getattr(self, name) for name in names}
        found = {name: float(value) for name, value in values.items() if value is not None}
        for part in self._parts:
            found |= part.to_dict()
        return found

    def plot(self) -> Any:
        """Draw the connectivity, its rows ordered by clusters, beside its spectrum; measure with ``connectivity=True``.

        Returns
        -------
        matplotlib Figure
        """
        if self.connectivity is None or self.eigenvalues is None:
            raise LmnError("the measurement has no connectivity to draw; measure with connectivity=True.")
        plt = matplotlib_pyplot()
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained", width_ratios=(1.15, 1))
        matrix = self.connectivity.cpu().numpy()
        image = draw_matrix(left, matrix, clustered(matrix), lowest_shown([matrix]), f"linear connectivity, LMN {self.lmn:.1f}")
        figure.colorbar(image, ax=left, extend="min")
        left.set(xlabel="sample, by clusters", ylabel="sample, by clusters")
        draw_spectrum(right, self.eigenvalues)
        right.set_title(f"its eigenvalues, of entropy {self.nonlinear_complexity:.2f} bits", fontsize="medium")
        return figure

    @property
    def _parts(self) -> list[Regions | JacobianStatistics | LocalComplexity]:
        return [part for part in (self.regions, self.jacobians, self.local_complexity) if part is not None]

    def __str__(self) -> str:
        points = f"{self.n_sampled} of {self.n_points}" if self.n_sampled is not None else f"{self.n_points}"
        how = f", {self.m} a segment; {self.backend}, {self.path}, {self.dtype}" if self.lmn is not None else ""
        lines = (
            [f"LMN {self.lmn:.4g}  (nonlinear complexity {self.nonlinear_complexity:.4g} bits)"] if self.lmn is not None else []
        )
        lines += map(str, self._parts)
        return "\n".join([*lines, f"{points} points{how}; {self.elapsed:.2f} s", *self.notes])
