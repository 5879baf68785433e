"""The pairs i < j in row order: (0, 1), (0, 2), ..., (1, 2), ..."""

from __future__ import annotations

import numpy as np


def n_pairs(n_points: int) -> int:
    return n_points * (n_points - 1) // 2


def pairs(first: int, last: int, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """i and j of the pairs numbered first to last - 1, each of shape (last - first,), int64."""
    p = np.arange(first, last, dtype=np.int64)
    root = np.sqrt((2.0 * n_points - 1) ** 2 - 8.0 * p)
    i = ((2 * n_points - 1 - root) / 2).astype(np.int64)
    i -= _before(i, n_points) > p  # the root rounds either way
    i += _before(i + 1, n_points) <= p
    return i, p - _before(i, n_points) + i + 1


def _before(i: np.ndarray, n_points: int) -> np.ndarray:
    """The number of pairs in the rows before row i."""
    before: np.ndarray = i * (2 * n_points - i - 1) // 2
    return before
