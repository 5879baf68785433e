"""The linear pieces of a piecewise-linear activation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lmn.kernels.activations import Activation


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
    where : str
        Where in its model the activation is, for messages.
    """

    breakpoints: np.ndarray
    slopes: np.ndarray
    at_first: np.ndarray
    where: str = ""

    @property
    def n_units(self) -> int:
        return len(self.slopes)

    @property
    def n_lines(self) -> int:
        """A line is a unit passing a breakpoint; they are numbered unit by unit."""
        return len(self.slopes) * len(self.breakpoints)

    @property
    def n_bits(self) -> int:
        """Of a pattern: whether each line is passed."""
        return self.n_lines

    @property
    def offsets(self) -> np.ndarray:
        """Where each piece, drawn on, meets zero: the activation is slope z + offset; (n_units, n_breakpoints + 1), float64."""
        first = self.at_first - self.slopes[:, 0] * self.breakpoints[0]
        steps = -np.diff(self.slopes, axis=1) * self.breakpoints
        return np.column_stack([first, first[:, None] + np.cumsum(steps, axis=1)])


def breakpoints_of(activation: Activation) -> np.ndarray:
    """Where the pieces of a piecewise-linear activation that is not the identity meet: ascending, float64."""
    bounds = {"pieces": activation.breakpoints, "relu": (0.0,), "clamp": (activation.p0, activation.p1)}[activation.core]
    return np.unique([at for at in bounds if np.isfinite(at)])


def pieces(activation: Activation, n_units: int) -> Pieces:
    """The pieces of a piecewise-linear activation that is not the identity."""
    if activation.core == "pieces":
        return _pieces_by_values(activation, n_units)
    breakpoints = breakpoints_of(activation)
    if activation.core == "relu":
        core_slopes = np.array([0.0, 1.0])
    else:
        ends = np.array([-np.inf, activation.p0, activation.p1, np.inf])
        core_slopes = np.array([0.0, 1.0, 0.0])[ends[:-1] < ends[1:]]  # bounds may be infinite, or equal
    scale, slope = activation.by_unit(n_units)
    first = torch.full((1, n_units), breakpoints[0], dtype=torch.float64, device="cpu")
    slopes = np.outer(scale, core_slopes) + slope[:, None]
    return Pieces(breakpoints, slopes, activation.function(first)[0].numpy(), activation.where)


def _pieces_by_values(activation: Activation, n_units: int) -> Pieces:
    """The slopes between given breakpoints, from the activation's values there."""
    breakpoints = breakpoints_of(activation)
    at = np.concatenate([breakpoints[:1] - 1, breakpoints, breakpoints[-1:] + 1])
    values = activation.function(torch.from_numpy(at)[:, None])[:, 0].double().numpy()
    slopes = np.diff(values) / np.diff(at)
    return Pieces(breakpoints, np.tile(slopes, (n_units, 1)), np.full(n_units, values[1]), activation.where)
