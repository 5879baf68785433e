"""What a sample says about the patterns that it did not see."""

from __future__ import annotations

import numpy as np


def coverage(counts: np.ndarray) -> float:
    """The share of the distribution that lies in the patterns seen: 1 - f1 / n, f1 of them seen once (Good 1953).

    Parameters
    ----------
    counts : ndarray of shape (n_patterns,), int64
        How many of the n points, drawn independently, have each.
    """
    return 1 - int((counts == 1).sum()) / max(int(counts.sum()), 1)


def chao1(counts: np.ndarray) -> float:
    """A lower bound of the number of patterns, seen or not: S + f1 (f1 - 1) / (2 (f2 + 1)) (Chao 1984, bias-corrected).

    S patterns were seen, f1 of them once and f2 twice.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return len(counts) + once * (once - 1) / (2 * (twice + 1))
