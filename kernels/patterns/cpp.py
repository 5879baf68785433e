"""Forward passes by torch; bits packed, hashed and counted by the C++ core (csrc/patterns.cpp)."""

from __future__ import annotations

import numpy as np
import torch

from lmn import _core
from lmn.kernels.patterns import blocks
from lmn.kernels.patterns.bits import words_of
from lmn.kernels.patterns.problem import Layout, Patterns, Problem
from lmn.kernels.threads import torch_threads


def patterns(problem: Problem) -> Patterns:
    """The distinct activation patterns at the problem's points; memory grows with them and not with the points."""
    counter = _Counter(problem)
    with torch.no_grad(), torch_threads(problem.threads):
        if problem.lattice is not None and problem.blocks:
            counter.n_evaluated += blocks.count(problem, counter.insert, counter.evaluate)
        else:
            for first in range(0, problem.n_points, problem.batch):
                counter.evaluate(np.arange(first, min(first + problem.batch, problem.n_points)))
    return counter.result()


class _Counter:
    def __init__(self, problem: Problem) -> None:
        self._problem, self._n_words = problem, Layout.of(problem.program).n_words
        self._set = _core.PatternSet(self._n_words + problem.edges_apart, problem.verify)
        self._keys = np.empty(problem.n_points, dtype=np.int64) if problem.ids else None
        self.n_evaluated = 0

    def evaluate(self, indices: np.ndarray) -> None:
        """Run the samples of ascending indices and count their patterns."""
        problem = self._problem
        numbers = indices if problem.edges_apart else None
        words = words_of(problem.program, problem.samples(indices), problem.threads, numbers)
        self.n_evaluated += len(indices)
        keys = self._keys[indices[0] : indices[-1] + 1] if self._keys is not None else None
        self._set.insert(words, indices, None, problem.threads, keys)
        problem.progress(len(indices))

    def insert(self, words: np.ndarray, first: np.ndarray, counts: np.ndarray) -> None:
        """Count patterns that so many points have, the first of them at the given index."""
        self._set.insert(words, first, counts, self._problem.threads, None)
        self._problem.progress(int(counts.sum()))

    def result(self) -> Patterns:
        collisions = int(self._set.collisions) if self._problem.verify else None
        words, counts, first = self._set.take(self._keys)
        words = words[:, : self._n_words] if self._problem.edges_apart else words
        return Patterns(words, counts, first, self._keys, collisions, self.n_evaluated, self._words_at)

    def _words_at(self, indices: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return words_of(self._problem.program, self._problem.samples(indices), self._problem.threads)
