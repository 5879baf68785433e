"""A regular grid's domain as a cube: what exact subdivision works on, and the coordinates that its results are told in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lmn.errors import LmnError
from lmn.grid import RegularGrid

Array = np.ndarray[Any, Any]

MOST_AXES = 3  # that can be subdivided exactly


@dataclass(frozen=True, eq=False)
class Domain:
    """A box, plane or line x = centre + Σ_a u_a half_a with u in the cube [-1, 1]^n_axes.

    Its own coordinates are the inputs for a box, and the parameters t in [0, 1] for a plane or a line.

    Attributes
    ----------
    kind : {"box", "plane", "line"}
    shape : tuple of int
        Of one input.
    centre : ndarray of shape (n_in,), float64
    half : ndarray of shape (n_axes, n_in), float64
    low, high : ndarray of shape (n_axes,), float64
        Of its own coordinates.
    """

    kind: str
    shape: tuple[int, ...]
    centre: Array
    half: Array
    low: Array
    high: Array

    @property
    def n_axes(self) -> int:
        return len(self.half)

    @property
    def size(self) -> float:
        """Its length, area or volume, in the inputs' units."""
        lengths = np.linalg.svd(2 * self.half, compute_uv=False)
        return float(np.prod(lengths))

    @property
    def metric(self) -> Array:
        """The inner products of its axes, (n_axes, n_axes), in the inputs' units."""
        return np.asarray(4 * self.half @ self.half.T)

    def to_cube(self, own: Array) -> Array:
        """(n, n_axes) in its own coordinates to the cube's."""
        return np.asarray(2 * (own - self.low) / (self.high - self.low) - 1)

    def from_cube(self, u: Array) -> Array:
        """(n, n_axes) in the cube's coordinates to its own."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return np.asarray(middle + u * half)

    def maps_from_cube(self, maps: Array) -> tuple[Array, Array]:
        """Maps of the cube's coordinates, (n, n_out, n_axes + 1), as A, (n, n_out, n_axes), and c, (n, n_out), of its own."""
        half = (self.high - self.low) / 2
        a = maps[..., :-1] / half
        c = maps[..., -1] - a @ ((self.low + self.high) / 2)
        return a, c

    def inputs(self, own: Array) -> Array:
        """(n, n_axes) in its own coordinates to inputs, (n, *shape)."""
        return np.asarray(self.centre + self.to_cube(own) @ self.half).reshape(-1, *self.shape)

    def own_from_inputs(self, inputs: Array) -> tuple[Array, Array]:
        """Inputs, (n, *shape), to its own coordinates, (n, n_axes), and how far each is from it, (n,), in the inputs' units."""
        offsets = inputs.reshape(len(inputs), -1) - self.centre
        u = np.linalg.lstsq(self.half.T, offsets.T, rcond=None)[0].T
        away = np.linalg.norm(offsets - u @ self.half, axis=1)
        return self.from_cube(u), away


def domain_of(grid: RegularGrid) -> Domain:
    """The domain of a grid of one to three axes."""
    origin = grid.origin.numpy()
    axes = grid.axes.reshape(len(grid.axes), -1).numpy()
    n_axes = len(axes)
    half = axes / 2
    centre = origin.reshape(-1) + half.sum(0)
    low, high = (origin, origin + axes.sum(0)) if grid.kind == "box" else (np.zeros(n_axes), np.ones(n_axes))
    return Domain(grid.kind, tuple(origin.shape), centre, half, low, high)


def float64(x: Any) -> Array:
    """Points as an array, from a tensor or from what NumPy takes."""
    try:
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if np.iscomplexobj(array):
            raise TypeError("they are complex")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise LmnError(f"points are an array of numbers; got {type(x).__name__} ({error}).") from error
