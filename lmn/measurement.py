"""What a measurement found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of ``lmn.measure``.

    Attributes
    ----------
    lmn : float
        Linear mapping number, between 1 and the number of points that were measured.
    nonlinear_complexity : float
        log2 of it, in bits.
    n_points : int
        Points of the grid.
    n_sampled : int or None
        How many of them were drawn at random, where the grid has more than ``max_points``: the LMN is that of the sample.
    eigenvalues : ndarray of shape (n_points or n_sampled,), float64
        Of the connectivity matrix, descending.
    connectivity : Tensor of shape (n_points, n_points) or (n_sampled, n_sampled), or None
        The matrix, if it was asked for; float64.
    indices : Tensor of shape (n_sampled,), int64, or None
        Which of the grid's points were drawn.
    m : int
        Points a segment.
    backend : str
        What computed the connectivity.
    path : str
        How the model was taken: "chain" (arrays in a kernel), "traced" (the tail as a graph) or "whole model" (run as it is,
        with the tap's output substituted).
    dtype : str
        What was computed in.
    n_redone : int
        Pairs that float32 could not do to the tolerance and that were done again in float64.
    elapsed : float
        Seconds.
    notes : tuple of str
        What a reader of the numbers should know.
    """

    lmn: float
    nonlinear_complexity: float
    n_points: int
    n_sampled: int | None
    eigenvalues: np.ndarray[Any, Any] = field(repr=False)
    connectivity: Tensor | None = field(repr=False)
    indices: Tensor | None = field(repr=False)
    m: int
    backend: str
    path: str
    dtype: str
    n_redone: int
    elapsed: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, float]:
        """The numbers as flat floats, for loggers and data frames."""
        names = ("lmn", "nonlinear_complexity", "n_points", "n_sampled", "m", "n_redone", "elapsed")
        values = {name: getattr(self, name) for name in names}
        return {name: float(value) for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        points = f"{self.n_sampled} of {self.n_points}" if self.n_sampled is not None else f"{self.n_points}"
        lines = [
            f"LMN {self.lmn:.4g}  (nonlinear complexity {self.nonlinear_complexity:.4g} bits)",
            f"{points} points, {self.m} a segment; {self.backend}, {self.path}, {self.dtype}; {self.elapsed:.2f} s",
            *self.notes,
        ]
        return "\n".join(lines)
