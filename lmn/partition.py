"""The regions of a network where it was looked at: what exact and observed ones have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmn.errors import LmnError
from lmn.kernels.distinct_maps import DistinctMaps, Maps

Array = np.ndarray[Any, Any]


class LinearMaps(NamedTuple):
    """The affine maps x → A x + c of regions.

    Attributes
    ----------
    A : ndarray of shape (count, n_out, n_in), float64
        On a line or a plane n_in is the number of its axes.
    c : ndarray of shape (count, n_out), float64
    """

    A: Array
    c: Array


class Regions(ABC):
    """The activation regions of a piecewise-linear network: what :func:`lmn.regions` returns.

    On a line, in a plane or in a box of up to three dimensions they are all that there are, with their geometry
    (``exact``); over samples and in boxes of more dimensions they are those that a point was seen in, a lower bound.

    Attributes
    ----------
    count : int
        Activation regions: sets of points in which every unit stays on one piece of its activation, and every maximum with
        one of its members.
    exact : bool
        Whether ``count`` is the number of regions there are (full-dimensional ones), or of those observed.
    count_after_each_layer : tuple of int
        Regions of the first activation or maximum alone, of the first two, and so on.
    layers : tuple of str
        Where in the model those are.
    patterns : ndarray of shape (count, n_words), uint64
        Bit i of a layer's words: unit by unit and breakpoint by breakpoint, whether the pre-activation is above; of a maximum,
        the number of the largest member. Each layer starts at a word of its own.
    points : ndarray of shape (count, ...), float64
        A point in each region.
    linear_maps : LinearMaps
        A and c of each.
    elapsed : float
        Seconds.
    """

    exact: ClassVar[bool]
    elapsed: float
    layers: tuple[str, ...]

    @property
    @abstractmethod
    def count(self) -> int: ...

    @property
    @abstractmethod
    def count_after_each_layer(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def patterns(self) -> np.ndarray[Any, Any]: ...

    @property
    @abstractmethod
    def points(self) -> Array: ...

    @property
    @abstractmethod
    def linear_maps(self) -> LinearMaps: ...

    @cached_property
    def n_linear_maps(self) -> int:
        """Distinct affine maps, wherever they are used.

        Two are one where neither A nor c differs by more than a billionth of A's norm (in units of the domain) or than the
        rounding errors of the terms that they are summed from. The result does not depend on the order of the regions.
        """
        distinct = DistinctMaps()
        distinct.add(self._compared)
        return len(distinct)

    @property
    @abstractmethod
    def _compared(self) -> Maps:
        """The maps, in units of the domain."""

    # -- what only exact regions have ----------------------------------------------------------------------------------------

    @property
    def volumes(self) -> Array:
        raise self._only_exact("volumes")

    @property
    def vertices(self) -> list[Array]:
        raise self._only_exact("vertices")

    @property
    def neighbours(self) -> np.ndarray[Any, Any]:
        raise self._only_exact("neighbours")

    @property
    def n_linear_regions(self) -> int:
        raise self._only_exact("linear regions, which are neighbours with one map merged,")

    def labels(self, shape: int | Sequence[int], ends: bool = False) -> np.ndarray[Any, Any]:  # noqa: ARG002
        raise self._only_exact("labels")

    def plot(self, fill: str = "norm", **options: Any) -> Any:  # noqa: ARG002
        raise self._only_exact("pictures")

    @abstractmethod
    def locate(self, inputs: Any) -> np.ndarray[Any, Any]:
        """The regions of inputs, shape (n, ...), as (n,) int64; -1 for one that is in none of these."""

    def _only_exact(self, what: str) -> LmnError:
        return LmnError(
            f"{what} are known of exact regions only, and these were observed at points; take an lmn.line, an lmn.plane or an "
            "lmn.box of up to three dimensions."
        )

    # -- printed ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def to_dict(self) -> dict[str, float]:
        """The counts as flat floats, for loggers and data frames; ``exact`` or ``observed`` is part of the names."""
