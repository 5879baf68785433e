"""What every backend is given, and what it finds: the activation patterns of a network at points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.program import Program


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in a pattern's words the bits of each layer are; each starts at a word of its own.

    Attributes
    ----------
    names : tuple of str
        Where in the model the layers, activations and maxima, are.
    bits : tuple of int
    """

    names: tuple[str, ...]
    bits: tuple[int, ...]

    @classmethod
    def of(cls, program: Program) -> Layout:
        bends = [step.bend for step in program.bends if step.bend is not None]
        return cls(tuple(bend.where for bend in bends), tuple(bend.n_bits for bend in bends))

    @property
    def first_words(self) -> tuple[int, ...]:
        """And, last, how many words there are."""
        return tuple(int(n) for n in np.cumsum([0, *(-(-n // 64) for n in self.bits)]))

    @property
    def n_words(self) -> int:
        return self.first_words[-1]

    def distinct_after_each(self, patterns: np.ndarray) -> tuple[int, ...]:
        """How many distinct patterns the first layer has, the first two together, and so on."""
        return tuple(_n_distinct(patterns[:, :end]) for end in self.first_words[1:])


def _n_distinct(rows: np.ndarray) -> int:
    rows = np.ascontiguousarray(rows)
    return len(np.unique(rows.view(np.dtype((np.void, rows.shape[1] * 8))))) if rows.shape[1] else min(1, len(rows))


@dataclass(frozen=True, eq=False)
class Lattice:
    """Points on a regular grid: origin + Σ_a axis_a i_a / (counts[a] - 1), 0 <= i_a < counts[a], the last axis fastest.

    Attributes
    ----------
    origin : ndarray of shape (n_in,), float64
    axes : ndarray of shape (n_axes, n_in), float64
    counts : tuple of int
    at : callable
        (n, n_axes) float64, places between the points too, to samples (n, ...) of the program's dtype.
    """

    origin: np.ndarray
    axes: np.ndarray
    counts: tuple[int, ...]
    at: Callable[[np.ndarray], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """The activation patterns of a network at points.

    Attributes
    ----------
    program : Program
    chain : callable
        The program as a chain whose activations kernels have, or None where it is none.
    n_points : int
    samples : callable
        Indices, (n,) int64, to those samples, (n, ...), of the program's dtype.
    device, dtype
        Theirs.
    batch : int
        Samples that are run at a time.
    lattice : Lattice or None
        Where the points are a regular grid of inputs.
    blocks : bool
        Whether blocks of it in which nothing bends may be counted without a look inside.
    ids : bool
        Whether it is asked which pattern each point has.
    edges_apart : bool
        Count each point that is exactly where pieces meet as a pattern of its own.
    verify : bool
        Compare the bits of patterns whose hashes are equal.
    threads : int
    progress : callable
        Called with the number of points just done.
    """

    program: Program
    chain: Callable[[], Chain | None]
    n_points: int
    samples: Callable[[np.ndarray], Tensor]
    device: torch.device
    dtype: torch.dtype
    batch: int
    lattice: Lattice | None
    blocks: bool
    ids: bool
    edges_apart: bool
    verify: bool
    threads: int
    progress: Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Patterns:
    """The distinct ones, in the order of the first point of each.

    Attributes
    ----------
    words : ndarray of shape (count, n_words), uint64
    counts : ndarray of shape (count,), int64
        Points that have it.
    first : ndarray of shape (count,), int64
        The first of them.
    ids : ndarray of shape (n_points,), int64, or None
        Which pattern each point has.
    collisions : int or None
        Different patterns of one hash, if that was verified.
    n_evaluated : int
        Forward passes, of points or of directions of blocks.
    words_at : callable
        Ascending indices of points, (n,) int64, to the patterns that they have now, (n, n_words), as these were found.
    """

    words: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    ids: np.ndarray | None
    collisions: int | None
    n_evaluated: int
    words_at: Callable[[np.ndarray], np.ndarray]
