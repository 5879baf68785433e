"""Bits packed and distinct patterns counted by the C++ core (csrc/patterns.cpp)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn import _core


class PatternCounter:
    """Streams samples' activation patterns into the set of distinct ones.

    Parameters
    ----------
    n_words : int
    verify : bool
        Compare the bits of patterns whose 128-bit hashes agree.
    threads : int
    """

    def __init__(self, n_words: int, verify: bool, threads: int) -> None:
        self._n_words, self._threads = n_words, threads
        self._set = _core.PatternSet(n_words, verify)

    def __len__(self) -> int:
        return len(self._set)

    @property
    def collisions(self) -> int:
        """Different patterns of one hash that ``verify`` told apart."""
        return int(self._set.collisions)

    def words(self, n: int) -> np.ndarray:
        """Zeroed words for n samples, shape (n, n_words), uint64."""
        return np.zeros((n, self._n_words), dtype=np.uint64)

    def pack(self, z: Tensor, breakpoints: np.ndarray, words: np.ndarray, first_word: int) -> None:
        """Set the bits z > breakpoint: z of shape (n, ...), unit by unit and breakpoint by breakpoint."""
        values = z.detach().reshape(len(z), -1)
        if values.dtype != torch.float64:
            values = values.float()
        array = np.ascontiguousarray(values.cpu().numpy())
        pack = _core.pack_bits_f64 if array.dtype == np.float64 else _core.pack_bits_f32
        pack(array, breakpoints, words, first_word, self._threads)

    def insert(
        self, words: np.ndarray, index: np.ndarray, counts: np.ndarray | None = None, keys: np.ndarray | None = None
    ) -> None:
        """Put in patterns that stand for ``counts`` points each, the earliest of them ``index``; fill keys for `positions`."""
        self._set.insert(words, index, counts, self._threads, keys)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct patterns (count, n_words), how many points each has, and its earliest point, in that one's order."""
        return self._set.written(self._n_words)

    def positions(self, keys: np.ndarray) -> None:
        """Turn keys into positions among the result's patterns, in place."""
        self._set.positions(keys, self._threads)
