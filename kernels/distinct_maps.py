"""How many affine maps there are, wherever they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Of the size of A: what two maps x -> A x + c may differ by and still be one, beyond their rounding errors.
SAME_MAP = 1e-9

_PROJECTIONS = 4
_REACH = 5  # tolerances: a projection of a difference is as long as the difference, give or take


@dataclass(frozen=True, eq=False)
class Maps:
    """Affine maps x -> A x + c that are to be compared.

    Attributes
    ----------
    a : ndarray of shape (n, n_out * n_in), float64
    c : ndarray of shape (n, n_out), float64
    a_error, c_error : ndarray of shape (n,), float64
        Bounds of the rounding errors, as norms of all entries.
    """

    a: Array
    c: Array
    a_error: Array
    c_error: Array

    @property
    def tolerances(self) -> tuple[Array, Array]:
        """Of A and of c. A unit of x is about the size of the domain, so that c is compared on the scale of A too."""
        size = SAME_MAP * np.linalg.norm(self.a, axis=1)
        return np.maximum(size, self.a_error), np.maximum(size, self.c_error)

    def same(self, i: Array, j: Array) -> Array:
        """Whether the maps numbered i and j are one: (n_pairs,), bool."""
        same = np.ones(len(i), dtype=bool)
        for column, tolerance in zip((self.a, self.c), self.tolerances, strict=True):
            same &= np.linalg.norm(column[i] - column[j], axis=1) <= np.maximum(tolerance[i], tolerance[j])
        return same


class DistinctMaps:
    """Counts the distinct ones among maps that are put in a few at a time; keeps ten numbers of each, and no map.

    Maps are projected onto a few fixed random directions, and those are one that are near each other in all projections: sorted
    by one of them, they are split where there is a gap, and so on by the next, until nothing splits. The result depends
    neither on the order nor on the parts in which the maps come. Two different maps are near in one projection with a
    probability of about the tolerance, and in all of them never.
    """

    def __init__(self) -> None:
        self._rows: list[Array] = []  # projections of A, of c, and the tolerances of both

    def add(self, maps: Maps) -> None:
        columns = [_projected(maps.a), _projected(maps.c), *(t[:, None] for t in maps.tolerances)]
        self._rows.append(np.concatenate(columns, axis=1))

    def __len__(self) -> int:
        return int(_groups(np.concatenate(self._rows)).max(initial=-1)) + 1 if self._rows else 0


def _projected(rows: Array) -> Array:
    """(n, d) onto fixed random directions: (n, _PROJECTIONS)."""
    return np.asarray(rows @ np.random.default_rng(20231005).standard_normal((rows.shape[1], _PROJECTIONS)))


def _groups(rows: Array) -> Array:
    """Which rows are near each other in all projections: (n,), int64."""
    group, n_groups = np.zeros(len(rows), dtype=np.int64), min(1, len(rows))
    while True:
        for column in range(2 * _PROJECTIONS):
            value, tolerance = rows[:, column], rows[:, 2 * _PROJECTIONS + column // _PROJECTIONS]
            order = np.lexsort((value, group))
            v, t, g = value[order], tolerance[order], group[order]
            gap = np.diff(v) > _REACH * np.maximum(t[1:], t[:-1])
            group[order] = np.cumsum(np.concatenate([[False], gap | (np.diff(g) > 0)]))
        found = int(group.max(initial=-1)) + 1
        if found == n_groups:
            return group
        n_groups = found
