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
    rows = [_bits(problem, index) for index in range(problem.n_points)]
    table: dict[bytes, int] = {}
    ids = np.array([table.setdefault(row.tobytes(), len(table)) for row in rows])
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    words = np.zeros((len(first), layout.n_words), dtype=np.uint64)
    for pattern, index in enumerate(first):
        start = 0
        for first_word, n in zip(layout.first_words, layout.bits, strict=False):
            for bit in range(n):
                words[pattern, first_word + bit // 64] |= np.uint64(int(rows[index][start + bit]) << (bit % 64))
            start += n
    return Patterns(words, counts, first, ids if problem.ids else None, 0, problem.n_points)


def _bits(problem: Problem, index: int) -> np.ndarray:
    """Of one point, layer by layer."""
    bits: list[bool] = []

    def at_bend(step: Step, units: Tensor) -> None:
        z = units[0].double().numpy()
        if isinstance(step.bend, Pieces):
            bits.extend(bool(value > at) for value in z for at in step.bend.breakpoints)
        else:
            assert step.bend is not None
            for window in step.bend.members:
                values = [step.bend.sign * z[unit] if unit >= 0 else -np.inf for unit in window]
                position = int(np.argmax(values))  # the first of equal ones
                bits.extend(bool(position >> bit & 1) for bit in range(step.bend.bits_each))

    with torch.no_grad():
        problem.program.visit(problem.samples(np.array([index])).clone(), at_bend)
    return np.array(bits, dtype=bool)
