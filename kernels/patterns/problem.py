"""What is counted: the bits of a pattern, and what the distinct ones are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in a pattern's words the bits of each activation are; each starts at a word of its own.

    Attributes
    ----------
    names : tuple of str
        Where in the model the activations are.
    bits : tuple of int
    """

    names: tuple[str, ...]
    bits: tuple[int, ...]

    @property
    def first_words(self) -> tuple[int, ...]:
        words = [-(-n // 64) for n in self.bits]
        return tuple(int(n) for n in np.cumsum([0, *words[:-1]]))

    @property
    def n_words(self) -> int:
        return sum(-(-n // 64) for n in self.bits)

    def distinct_after_each(self, patterns: np.ndarray) -> tuple[int, ...]:
        """How many distinct patterns the first activation has, the first two together, and so on."""
        ends = [first + -(-n // 64) for first, n in zip(self.first_words, self.bits, strict=True)]
        return tuple(_n_distinct(patterns[:, :end]) for end in ends)


def _n_distinct(rows: np.ndarray) -> int:
    if rows.shape[1] == 0:
        return min(1, len(rows))
    rows = np.ascontiguousarray(rows)
    return len(np.unique(rows.view(np.dtype((np.void, rows.shape[1] * 8)))))


def unseen(counts: np.ndarray) -> tuple[float, float]:
    """What a random sample says about what it did not see, by how often each pattern was seen.

    Returns
    -------
    coverage : float
        The share of the distribution that lies in the patterns seen: 1 - f1 / n (Good 1953), f1 of them seen once.
    lower_bound : float
        Of the number of patterns, seen or not: S + f1 (f1 - 1) / (2 (f2 + 1)) (Chao 1984, bias-corrected), f2 seen twice.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return 1 - once / max(int(counts.sum()), 1), len(counts) + once * (once - 1) / (2 * (twice + 1))
