"""The regions of a network on a line, in a plane or in a box: all of them, with their geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lmn.domain import Domain, float64
from lmn.errors import LmnError, whole_number
from lmn.kernels.distinct_maps import Maps
from lmn.kernels.regions import tree
from lmn.kernels.regions.problem import RELATIVE_TOLERANCE, Subdivision
from lmn.partition import Array, LinearMaps, Regions
from lmn.wording import counted


@dataclass(frozen=True, eq=False)
class ExactRegions(Regions):
    """All full-dimensional regions, by geometry; see :class:`lmn.Regions` for what observed ones have too.

    Points, vertices and maps are told in the grid's own coordinates: the inputs for a box, and for a plane or a line the
    parameters in [0, 1] along its axes (:meth:`inputs` turns them into inputs). Lengths, areas and volumes are the inputs'.

    Attributes
    ----------
    volumes : ndarray of shape (count,), float64
        Lengths, areas or volumes.
    points : ndarray of shape (count, n_axes), float64
        The mean of each region's vertices.
    linear_maps : LinearMaps
        A is (count, n_out, n_axes).
    """

    domain: Domain
    found: Subdivision
    layers: tuple[str, ...]
    threads: int
    backend: str
    elapsed: float
    with_geometry: Callable[[], Subdivision] | None

    exact: ClassVar[bool] = True

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the model, and so with the geometry."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | {"found": self._geometry, "with_geometry": None}

    # -- counts ----------------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return self.found.n_regions

    @property
    def count_after_each_layer(self) -> tuple[int, ...]:
        return self.found.count_after_each_layer

    @cached_property
    def n_linear_regions(self) -> int:
        """Linear regions: neighbouring activation regions with one map merged."""
        same = self._compared.same(self.neighbours[:, 0], self.neighbours[:, 1])
        return tree.n_components(self.count, self.neighbours[same])

    @cached_property
    def _compared(self) -> Maps:
        a, c = self.found.maps[..., :-1].reshape(self.count, -1), self.found.maps[..., -1]
        return Maps(a, c, *(np.full(self.count, RELATIVE_TOLERANCE * size) for size in self.found.terms))

    # -- regions ---------------------------------------------------------------------------------------------------------

    @property
    def patterns(self) -> np.ndarray[Any, Any]:
        return self.found.patterns

    @cached_property
    def volumes(self) -> Array:
        return np.asarray(self.found.volumes * (self.domain.size / 2**self.domain.n_axes))

    @cached_property
    def points(self) -> Array:
        return self.domain.from_cube(self.found.centres)

    @cached_property
    def linear_maps(self) -> LinearMaps:
        return LinearMaps(*self.domain.maps_from_cube(self.found.maps))

    @cached_property
    def _geometry(self) -> Subdivision:
        if self.found.vertices is not None:
            return self.found
        assert self.with_geometry is not None
        return self.with_geometry()

    @cached_property
    def vertices(self) -> list[Array]:
        """The vertices of each region, shape (n_vertices, n_axes); of a polygon, around it counter-clockwise."""
        found = self._geometry
        assert found.vertices is not None
        assert found.n_vertices is not None
        return np.split(self.domain.from_cube(found.vertices), np.cumsum(found.n_vertices)[:-1])

    @cached_property
    def neighbours(self) -> np.ndarray[Any, Any]:
        """Pairs of regions that share a facet: shape (n_pairs, 2), int64, the smaller number first."""
        found = self._geometry
        assert found.facet_ids is not None
        assert found.n_facets is not None
        region = np.repeat(np.arange(self.count), found.n_facets)
        order = np.argsort(found.facet_ids, kind="stable")
        ids = found.facet_ids[order]
        shared = np.flatnonzero(ids[1:] == ids[:-1])
        pairs = np.stack([region[order[shared]], region[order[shared + 1]]], axis=1)
        return np.unique(np.sort(pairs, axis=1), axis=0)

    @cached_property
    def last_cuts(self) -> np.ndarray[Any, Any]:
        """The deepest activation, counted from 0, whose units bound each region: (count,), int64; -1 where none does."""
        found = self._geometry
        assert found.facet_lines is not None
        assert found.n_facets is not None
        layer = np.append(np.repeat(np.arange(len(found.lines_a_layer)), found.lines_a_layer), [-1] * 2 * self.domain.n_axes)
        starts = np.cumsum(found.n_facets) - found.n_facets
        return np.asarray(np.maximum.reduceat(layer[found.facet_lines], starts))

    # -- points and pictures ----------------------------------------------------------------------------------------------

    def inputs(self, points: Any) -> Array:
        """The model's inputs at points in the grid's own coordinates: (n, n_axes) to (n, ...)."""
        own = float64(points)
        if own.shape[-1:] != (self.domain.n_axes,):
            raise LmnError(f"points are (n, {self.domain.n_axes}), in the grid's own coordinates; got shape {own.shape}.")
        return self.domain.inputs(own.reshape(-1, self.domain.n_axes))

    def labels(self, shape: int | Sequence[int], ends: bool = False) -> np.ndarray[Any, Any]:
        """An image of the regions, without a forward pass: an array of the given shape, int32.

        Parameters
        ----------
        shape : int or sequence of n_axes int
            Points an axis; entry [i, j] is the region of the i-th point along the first axis and the j-th along the second.
        ends : bool
            False: the centres of as many cells. True: evenly spaced points with both ends, as those of a grid.
        """
        n_axes = self.domain.n_axes
        shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
        sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,) * n_axes
        if len(sizes) != n_axes:
            raise LmnError(f"labels of a {self.domain.kind} take {n_axes} sizes, one an axis; got {shape!r}.")
        sizes = tuple(whole_number(size, "a size", 1) for size in sizes)
        return self._painted(self._numbers, sizes, *zip(*(_spaced(n, ends) for n in sizes), strict=True))

    def _at_points(self, values: Array, shape: Sequence[int]) -> Array:
        """The values, (count, ...), of the regions that a grid's points are in, whose shape is known to be right."""
        return self._painted(np.ascontiguousarray(values), shape, *zip(*(_spaced(n, True) for n in shape), strict=True))

    def slice_labels(self, axis: int, at: float, n: int) -> np.ndarray[Any, Any]:
        """The labels of n x n cells of a three-dimensional box's slice where the given axis is ``at``: (n, n), int32."""
        domain, n = self.domain, whole_number(n, "n", 1)
        if domain.n_axes != 3:
            raise LmnError(f"slices are of three dimensions; this is a {domain.kind} of {domain.n_axes}.")
        if whole_number(axis, "axis", 0) >= domain.n_axes:
            raise LmnError(f"axis is 0, 1 or 2; got {axis!r}.")
        if not isinstance(at, int | float) or not domain.low[axis] <= at <= domain.high[axis]:
            raise LmnError(
                f"at is a number within the box, from {domain.low[axis]} to {domain.high[axis]} on axis {axis}; got {at!r}."
            )
        fixed = float(self.domain.to_cube(np.where(np.arange(3) == axis, at, self.domain.low))[axis])
        first, step = zip(*((fixed, 0.0) if a == axis else _spaced(n, False) for a in range(3)), strict=True)
        return self._painted(self._numbers, [1 if a == axis else n for a in range(3)], first, step).squeeze(axis)

    @property
    def _numbers(self) -> np.ndarray[Any, Any]:
        return np.arange(self.count, dtype=np.int32)

    def _painted(
        self, values: np.ndarray[Any, Any], shape: Sequence[int], first: Sequence[float], step: Sequence[float]
    ) -> np.ndarray[Any, Any]:
        return tree.rasterised(self.found.cuts, self.found.children, values, shape, first, step, self.threads)

    def locate(self, inputs: Any) -> np.ndarray[Any, Any]:
        """The regions of inputs, shape (n, ...), as (n,) int64; -1 outside of the grid's domain.

        An input counts as lying in a plane or on a line if it is away from it by less than a millionth of its size.
        """
        x = float64(inputs)
        if x.shape[1:] != self.domain.shape:
            raise LmnError(f"locate takes inputs of shape (n, {', '.join(map(str, self.domain.shape))}); got {x.shape}.")
        own, away = self.domain.own_from_inputs(x)
        u = self.domain.to_cube(own)
        slack = 1e-6 if len(self.domain.centre) > self.domain.n_axes else 1e-12
        inside = (np.abs(u) <= 1 + slack).all(axis=1) & (away <= 1e-6 * np.abs(self.domain.half).sum(0).max())  # and no NaN
        region = tree.locate(self.found.cuts, self.found.children, np.where(inside[:, None], u, 0.0), self.threads)
        region[~inside] = -1
        return region

    def plot(self, fill: str = "norm", **options: Any) -> Any:
        """Draw the partition, and return the matplotlib Axes; see :func:`lmn.plots.draw`.

        Options: ``output`` (which of several), ``boundary`` (whether to draw it), ``axis`` and ``at`` (of a slice), and ``ax``.
        """
        from lmn.plots import draw  # matplotlib is an extra

        return draw(self, fill, **options)

    def to_dict(self) -> dict[str, float]:
        layers = {f"exact_regions_after_layer_{index}": float(n) for index, n in enumerate(self.count_after_each_layer)}
        return {"exact_regions": float(self.count), **layers}

    def __str__(self) -> str:
        after = ", ".join(map(str, self.count_after_each_layer))
        layers = f", after each layer {after}" if after else ""
        return f"{counted(self.count, 'activation region')}, exact\n{self.domain.kind}{layers}; {self.elapsed:.2f} s"

    def __repr__(self) -> str:
        return f"ExactRegions(count={self.count}, on a {self.domain.kind})"


def _spaced(n: int, ends: bool) -> tuple[float, float]:
    """The first of n points of [-1, 1] and the distance between two."""
    return (-1.0, 2.0 / max(n - 1, 1)) if ends else (-1.0 + 1.0 / n, 2.0 / n)
