"""Where a network is measured: samples, or a regular grid whose points are made when they are needed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn.errors import LmnError

_MOST_POINTS = 1 << 62  # that int64 indices reach
_CHECKED_VALUES = 1 << 18  # at a time
_ON_A_LINE = 1e-6  # the angle between a plane's axes that float32 anchors may have by rounding


@dataclass(frozen=True, eq=False)
class Samples:
    """Given points: a tensor or array of shape (n_points, ...)."""

    values: Tensor
    from_numpy: bool = False

    @property
    def n_points(self) -> int:
        return len(self.values)

    @cached_property
    def fingerprint(self) -> str:
        """By which others are told apart."""
        return "" if self.values.is_meta else _fingerprint(self.values)

    def at(self, indices: Tensor, like: Tensor | None = None) -> Tensor:
        """The points of ascending indices: a view where they follow one another."""
        first, n = int(indices[0]), len(indices)
        if int(indices[-1]) == first + n - 1:
            points = self.values[first : first + n]
        else:
            points = self.values[indices.to(self.values.device)]
        if self.from_numpy and like is not None:
            # NumPy has no device and makes float64 by itself, so an array follows the model; a tensor says what it is.
            points = points.to(like.device, like.dtype if points.is_floating_point() else None)
        return points


@dataclass(frozen=True, eq=False)
class RegularGrid:
    """Points origin + Σ_a t_a axis_a, t_a in ``counts[a]`` uniform steps of [0, 1] with both ends; the last axis runs fastest.

    Attributes
    ----------
    kind : {"box", "plane", "line"}
    origin : Tensor of any shape, float64
        The input at t = 0; its shape is the shape of one input.
    axes : Tensor of shape (n_axes, *origin.shape), float64
    counts : tuple of int
    """

    kind: str
    origin: Tensor
    axes: Tensor
    counts: tuple[int, ...]

    @property
    def n_points(self) -> int:
        return math.prod(self.counts)

    @cached_property
    def fingerprint(self) -> str:
        """By which others are told apart."""
        return _fingerprint(self.origin, self.axes, torch.tensor(self.counts, device="cpu"))

    @property
    def points(self) -> Tensor:
        """All points, shape (n_points, *origin.shape), of torch's default dtype: in their order, and stored."""
        return self.at(torch.arange(self.n_points, device="cpu"))

    def __repr__(self) -> str:
        return f"{self.kind} of {' x '.join(map(str, self.counts))} points"

    def at(self, indices: Tensor, like: Tensor | None = None) -> Tensor:
        """The points of these numbers; made on a GPU where they are to be on one."""
        where = like.device if like is not None and like.device.type == "cuda" else "cpu"
        rest = indices.to(where, torch.int64)
        steps = []
        for count in reversed(self.counts):
            steps.append((rest % count).double())
            rest = rest // count
        return self.between(torch.stack(steps[::-1], dim=1), like)

    def between(self, steps: Tensor, like: Tensor | None = None) -> Tensor:
        """The points so many steps along the axes, (n, n_axes) float64, made where these are; a step need not be whole."""
        where = steps.device
        t = steps / torch.tensor([max(count - 1, 1) for count in self.counts], device=where)
        origin, axes = self.origin.reshape(1, -1).to(where), self.axes.reshape(len(self.axes), -1).to(where)
        points = (origin + t @ axes).reshape(-1, *self.origin.shape)
        device, dtype = (like.device, like.dtype) if like is not None else (None, torch.get_default_dtype())
        return points.to(device, dtype)


def box(low: float | Sequence[float] | Tensor, high: float | Sequence[float] | Tensor, n: int | Sequence[int]) -> RegularGrid:
    """A regular grid over an axis-parallel box of an input space of as many dimensions.

    Parameters
    ----------
    low, high : float or sequence of shape (n_in,)
        The corners; a number stands for all axes. Both ends are grid points.
    n : int or sequence of shape (n_in,)
        Points an axis; a single one is at the low end. At least one of the three gives the dimension by being a sequence.

    Returns
    -------
    RegularGrid
        Its points are generated when they are needed and never stored.

    Raises
    ------
    LmnError
        low not below high, not finite, lengths that differ, no dimension given, or n below 1.

    Examples
    --------
    >>> lmn.box([-1, -1], [1, 1], 64).n_points
    4096
    """
    lows, highs, n = _vector(low, "low"), _vector(high, "high"), _plain(n)
    if lows.ndim > 1 or highs.ndim > 1:
        raise LmnError(f"low and high are numbers or vectors; got shapes {tuple(lows.shape)} and {tuple(highs.shape)}.")
    lengths = {len(v) for v in (lows, highs) if v.ndim} | ({len(n)} if isinstance(n, Sequence) else set())
    if not lengths or lengths == {0}:
        raise LmnError(
            "a box of numbers has no dimension: give low, high or n as a sequence with an entry for each input, "
            "e.g. lmn.box([-1, -1], [1, 1], 64)."
        )
    if len(lengths) > 1:
        raise LmnError(f"low, high and n must have as many entries as the model has inputs; got lengths {sorted(lengths)}.")
    (n_in,) = lengths
    lows, highs = lows.expand(n_in), highs.expand(n_in)
    if not bool((lows < highs).all()):
        raise LmnError(f"a box needs low < high on every axis; got low {lows.tolist()} and high {highs.tolist()}.")
    return RegularGrid("box", lows.clone(), torch.diag(highs - lows), _counts(n, n_in))


def plane(a: Any, b: Any, c: Any, n: int | Sequence[int]) -> RegularGrid:
    """A regular grid over the parallelogram a + s (b - a) + t (c - a), s and t in [0, 1], of any input space.

    Parameters
    ----------
    a, b, c : Tensor, ndarray or sequence of one shape
        Three anchors, each one input of the model (an image, a vector); they must not lie on a line.
    n : int or two ints
        Points an axis, both ends included.

    Raises
    ------
    LmnError
        Anchors of different shapes, not finite, or on one line.
    """
    anchors = [_vector(x, name) for x, name in ((a, "a"), (b, "b"), (c, "c"))]
    _require_one_shape(anchors, "three anchors")
    axes = torch.stack([anchors[1] - anchors[0], anchors[2] - anchors[0]])
    lengths = torch.linalg.svdvals(torch.nn.functional.normalize(axes.reshape(2, -1), dim=1))
    if not float(lengths[1]) > _ON_A_LINE:
        raise LmnError("the three anchors of a plane lie on one line; use lmn.line, or move one of them.")
    return RegularGrid("plane", anchors[0], axes, _counts(n, 2))


def line(start: Any, stop: Any, n: int) -> RegularGrid:
    """A regular grid of n points on the segment from start to stop, both included.

    Parameters
    ----------
    start, stop : Tensor, ndarray or sequence of one shape
        Two inputs of the model.

    Raises
    ------
    LmnError
        Ends of different shapes, not finite, or equal.
    """
    ends = [_vector(start, "start"), _vector(stop, "stop")]
    _require_one_shape(ends, "two ends")
    if torch.equal(ends[0], ends[1]):
        raise LmnError("the two ends of a line are equal; give two different inputs.")
    return RegularGrid("line", ends[0], (ends[1] - ends[0])[None], _counts(n, 1))


def as_grid(grid: Any) -> Samples | RegularGrid:
    """A Grid from what a caller gives: itself, a tensor, or a NumPy array."""
    if isinstance(grid, Samples | RegularGrid):
        return grid
    from_numpy = isinstance(grid, np.ndarray)
    if isinstance(grid, np.ma.MaskedArray):
        raise LmnError("the samples are a masked array, and its mask would be lost; give samples.compressed().")
    if from_numpy:
        try:
            grid = torch.from_numpy(np.ascontiguousarray(grid, dtype=grid.dtype.newbyteorder("=")))
        except TypeError as error:
            raise LmnError(f"the samples are an array of dtype {grid.dtype}; give numbers.") from error
    if isinstance(grid, Tensor) and grid.layout != torch.strided:
        raise LmnError(f"the samples are {grid.layout}; give dense ones, samples.to_dense().")
    if not isinstance(grid, Tensor):
        raise LmnError(
            f"the grid is {type(grid).__name__}; give the samples as a tensor or a NumPy array with the batch first, or a "
            "regular grid by lmn.box, lmn.plane or lmn.line."
        )
    if grid.ndim == 0:
        raise LmnError(
            "the grid is one number, a tensor of shape (); give samples with the batch first, e.g. x.reshape(1, -1)."
        )
    if len(grid) == 0:
        raise LmnError(f"the grid is empty: samples of shape {tuple(grid.shape)}; give at least one sample, the batch first.")
    if grid.is_complex():
        raise LmnError(f"the samples are of dtype {grid.dtype}; give real ones.")
    bad = _not_finite(grid) if grid.is_floating_point() and not grid.is_meta else 0
    if bad:
        raise LmnError(f"{bad} of {len(grid)} samples have a NaN or an infinity; remove them first.")
    return Samples(grid.detach(), from_numpy)


def _not_finite(samples: Tensor) -> int:
    """How many samples have a value that is not finite; looked at some at a time."""
    if samples.numel() == 0:
        return 0
    rows = max(1, _CHECKED_VALUES * len(samples) // samples.numel())
    bad = 0
    for part in samples.split(rows):
        low, high = torch.aminmax(part)  # one pass; either is NaN where a value is
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            bad += int((~torch.isfinite(part.reshape(len(part), -1)).all(1)).sum())
    return bad


def _vector(x: Any, name: str) -> Tensor:
    try:
        vector = torch.as_tensor(x.detach() if isinstance(x, Tensor) else x, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise LmnError(f"{name} must be numbers; got {x!r}.") from error
    if not bool(torch.isfinite(vector).all()):
        raise LmnError(f"{name} has a NaN or an infinity.")
    return vector


def _require_one_shape(points: Sequence[Tensor], what: str) -> None:
    shapes = {tuple(point.shape) for point in points}
    if len(shapes) > 1 or shapes == {()}:
        raise LmnError(f"the {what} must be inputs of one shape; got shapes {[tuple(p.shape) for p in points]}.")


def _plain(n: Any) -> Any:
    """Points an axis as Python's numbers, where they are an array or a tensor."""
    return n.tolist() if isinstance(n, np.ndarray | np.generic | Tensor) else n


def _counts(n: Any, n_axes: int) -> tuple[int, ...]:
    n = _plain(n)
    counts = tuple(n) if isinstance(n, Sequence) else (n,) * n_axes
    if len(counts) != n_axes or not all(isinstance(c, int | np.integer) and not isinstance(c, bool) and c >= 1 for c in counts):
        raise LmnError(f"n must be a positive whole number of points, or {n_axes} of them (one an axis); got {n!r}.")
    if math.prod(int(c) for c in counts) > _MOST_POINTS:
        raise LmnError(
            f"a grid of {n_axes} axes with {min(counts)} to {max(counts)} points has more than 2^62; measure over samples."
        )
    return tuple(int(c) for c in counts)


def _fingerprint(*tensors: Tensor) -> str:
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
