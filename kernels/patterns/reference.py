"""The definition: every point by itself, in NumPy, and the distinct rows of what bits there are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.patterns.problem import Layout, Patterns, Problem
from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Step


def patterns(problem: Problem) -> Patterns:
    """The distinct activation patterns, by comparing them all: memory grows with the points."""
    layout = Layout.of(problem.program)
    rows, edges = zip(*(_bits(problem, index) for index in range(problem.n_points)), strict=True)
    table: dict[tuple[bytes, int], int] = {}
    apart = [index + 1 if edge and problem.edges_apart else 0 for index, edge in enumerate(edges)]
    keys = [(row.tobytes(), number) for row, number in zip(rows, apart, strict=True)]
    ids = np.array([table.setdefault(key, len(table)) for key in keys])
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)

    def words_at(indices: np.ndarray) -> np.ndarray:
        return np.stack([_words(layout, _bits(problem, index)[0]) for index in indices])

    words = np.stack([_words(layout, rows[index]) for index in first])
    return Patterns(words, counts, first, ids if problem.ids else None, 0, problem.n_points, words_at)


def _words(layout: Layout, bits: np.ndarray) -> np.ndarray:
    words, start = np.zeros(layout.n_words, dtype=np.uint64), 0
    for first_word, n in zip(layout.first_words, layout.bits, strict=False):
        for bit in range(n):
            words[first_word + bit // 64] |= np.uint64(int(bits[start + bit]) << (bit % 64))
        start += n
    return words


def _bits(problem: Problem, index: int) -> tuple[np.ndarray, bool]:
    """Of one point, layer by layer; and whether it is exactly where pieces meet."""
    bits: list[bool] = []
    edges: list[bool] = []

    def at_bend(step: Step, units: Tensor) -> None:
        z = units[0].double().numpy()
        if isinstance(step.bend, Pieces):
            bits.extend(bool(value > at) for value in z for at in step.bend.breakpoints)
            edges.extend(bool(value == at) for value in z for at in step.bend.breakpoints)
        else:
            assert step.bend is not None
            for window in step.bend.members:
                values = [step.bend.sign * z[unit] if unit >= 0 else -np.inf for unit in window]
                position = int(np.argmax(values))  # the first of equal ones
                bits.extend(bool(position >> bit & 1) for bit in range(step.bend.bits_each))
                edges.append(values.count(max(values)) > 1)

    with torch.no_grad():
        problem.program.visit(problem.samples(np.array([index])).clone(), at_bend)
    return np.array(bits, dtype=bool), any(edges)
