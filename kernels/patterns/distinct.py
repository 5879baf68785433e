"""The distinct ones among any number of patterns, kept on the device that they are on: by sorting, not by a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_TOGETHER = 1 << 20  # patterns that wait before they are sorted in,
_WAITING_BYTES = 1 << 28  # or fewer, of so many bytes
_COMPARED_BYTES = 1 << 26  # of words that are compared at a time


class DistinctPatterns:
    """Patterns as rows in the order in which they were first put in, known by hashes of 128 bits.

    What is put in waits until it is as much as there are rows, so that all sorting together is n log n; memory grows with the
    distinct patterns. Each sorting waits for the device: for how many patterns there are, how many of them are new, and, where
    they are compared, whether any differ.

    Parameters
    ----------
    n_words : int
    verify : bool
        Compare the words of equal hashes; where they differ, all are told apart by their words.
    ids : bool
        Keep which row each pattern that is put in has.
    """

    def __init__(self, n_words: int, device: torch.device, *, verify: bool, ids: bool) -> None:
        self._verify = verify
        self._ids: list[Tensor] | None = [] if ids else None
        self.words = torch.empty(0, n_words, dtype=torch.int64, device=device)
        self._hashes = torch.empty(0, 2, dtype=torch.int64, device=device)
        self.counts, self.first = (torch.empty(0, dtype=torch.int64, device=device) for _ in range(2))
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_waiting = 0
        self._least = max(1, min(_LEAST_TOGETHER, _WAITING_BYTES // (8 * max(1, n_words))))
        self.collisions = 0

    def insert(self, words: Tensor, hashes: Tensor, first: Tensor) -> None:
        """Patterns of points of ascending numbers: (n, n_words), (n, 2) and (n,), int64."""
        self._waiting.append((words, hashes, first))
        self._n_waiting += len(words)
        if self._n_waiting >= max(self._least, len(self.words)):
            self._merge()

    def finish(self) -> None:
        if self._waiting:
            self._merge()

    @property
    def ids(self) -> Tensor | None:
        """Which row each pattern has, in the order in which they were put in."""
        return None if self._ids is None else torch.cat([self.counts[:0], *self._ids])

    def _merge(self) -> None:
        words, hashes, first = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        self._waiting, self._n_waiting = [], 0
        rows, new = self._rows(words, hashes)
        self.words, self._hashes = torch.cat([self.words, words[new]]), torch.cat([self._hashes, hashes[new]])
        self.first = torch.cat([self.first, first[new]])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(len(new))])
        self.counts.index_add_(0, rows, torch.ones_like(first))
        if self._ids is not None:
            self._ids.append(rows)

    def _rows(self, words: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Which row each has, and which of them, in ascending order, are the first of a row that is new."""
        n_rows, keys = len(self.words), torch.cat([self._hashes, hashes]).unbind(1)
        leader = _leaders(keys)
        if self._verify:
            differs = self._differs(words, leader[n_rows:])
            if bool(differs.any()) or self.collisions:
                self.collisions += int(differs.sum())
                leader = _leaders([*keys, *torch.cat([self.words, words]).unbind(1)])
        is_leader = leader == torch.arange(len(leader), device=leader.device)
        row = is_leader.cumsum(0) - 1
        return row[leader[n_rows:]], is_leader[n_rows:].nonzero()[:, 0]

    def _differs(self, words: Tensor, leader: Tensor) -> Tensor:
        """Whether words differ from those of their leader, which is a row or, numbered after these, one of them."""
        n_rows, parts = len(self.words), []
        together = max(1, _COMPARED_BYTES // (8 * max(1, words.shape[1])))
        for some, lead in zip(words.split(together), leader.split(together), strict=True):
            of_leader = words[(lead - n_rows).clamp(min=0)]
            if n_rows:
                of_leader = torch.where((lead < n_rows)[:, None], self.words[lead.clamp(max=n_rows - 1)], of_leader)
            parts.append((some != of_leader).any(1))
        return torch.cat(parts)


def _leaders(keys: Sequence[Tensor]) -> Tensor:
    """The place of the first of all that have the same keys, for each place: (n,), int64."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    starts = torch.ones(len(order), dtype=torch.bool, device=order.device)
    starts[1:] = torch.stack([key[order[1:]] != key[order[:-1]] for key in keys]).any(0)
    leader = torch.empty_like(order)
    leader[order] = order[starts][starts.cumsum(0) - 1]
    return leader
