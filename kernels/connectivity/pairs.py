"""The pairs of samples that a problem asks for, numbered: what backends share out among chunks, tasks and calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """All pairs i < j in row order, (0, 1), (0, 2), ..., (1, 2), ...; or those of the first ``n_rows`` samples with the others.

    Attributes
    ----------
    n_points : int
    n_rows : int or None
    """

    n_points: int
    n_rows: int | None = None

    def __len__(self) -> int:
        if self.n_rows is not None:
            return self.n_rows * (self.n_points - self.n_rows)
        return self.n_points * (self.n_points - 1) // 2

    @property
    def rows(self) -> range:
        """The samples that are an i."""
        return range(self.n_points if self.n_rows is None else self.n_rows)

    @property
    def first_column(self) -> int:
        """The least j of any pair."""
        return self.n_rows or 0

    def in_row(self, i: int) -> int:
        """The number of pairs of sample i."""
        return self.n_points - max(i + 1, self.first_column)

    def numbered(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """i and j of the pairs numbered first to last - 1 (or to the end), each of shape (n_pairs,), int64."""
        p, n = np.arange(first, min(last, len(self)), dtype=np.int64), self.n_points
        if self.n_rows is not None:
            i, j = np.divmod(p, n - self.n_rows)
            return i, j + self.n_rows
        root = np.sqrt((2.0 * n - 1) ** 2 - 8.0 * p)
        i = ((2 * n - 1 - root) / 2).astype(np.int64)
        i -= self._before(i) > p  # the root rounds either way
        i += self._before(i + 1) <= p
        return i, p - self._before(i) + i + 1

    def _before(self, i: np.ndarray) -> np.ndarray:
        """The number of pairs in the rows before row i."""
        before: np.ndarray = i * (2 * self.n_points - i - 1) // 2
        return before
