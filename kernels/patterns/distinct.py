"""The distinct ones among any number of patterns, kept on the device that they are on: by sorting, not by a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_TOGETHER = 1 << 18  # patterns that wait before they are sorted in


class DistinctPatterns:
    """Patterns as rows in the order in which they were first put in, known by hashes of 128 bits.

    What is put in waits until it is as much as there are rows, so that all sorting together is n log n; memory grows with the
    distinct patterns. Each sorting waits for the device once, for the number of new rows.

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
        self.collisions = 0

    def insert(self, words: Tensor, hashes: Tensor, first: Tensor) -> None:
        """Patterns of points of ascending numbers: (n, n_words), (n, 2) and (n,), int64."""
        self._waiting.append((words, hashes, first))
        self._n_waiting += len(words)
        if self._n_waiting >= max(_LEAST_TOGETHER, len(self.words)):
            self._merge()

    def finish(self) -> None:
        if self._waiting:
            self._merge()

    @property
    def ids(self) -> Tensor | None:
        """Which row each pattern has, in the order in which they were put in."""
        return None if self._ids is None else torch.cat([self.counts[:0], *self._ids])

    def _merge(self) -> None:
        n_rows = len(self.words)
        words, hashes, first = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        self._waiting, self._n_waiting = [], 0
        of_row, new = self._rows(torch.cat([self.words, words]), torch.cat([self._hashes, hashes]))
        new -= n_rows
        self.words, self._hashes = torch.cat([self.words, words[new]]), torch.cat([self._hashes, hashes[new]])
        self.first = torch.cat([self.first, first[new]])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(len(new))])
        self.counts.index_add_(0, of_row[n_rows:], torch.ones_like(first))
        if self._ids is not None:
            self._ids.append(of_row[n_rows:])

    def _rows(self, words: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Which row each has, and which, in ascending order, are the first of a row that is new."""
        leader = _leaders(hashes.unbind(1))
        if self._verify:
            differs = (words != words[leader]).any(1)
            if bool(differs.any()):
                self.collisions += int(differs[len(self.words) :].sum())
                leader = _leaders([*hashes.unbind(1), *words.unbind(1)])
        is_leader = leader == torch.arange(len(leader), device=leader.device)
        row = is_leader.cumsum(0) - 1
        new = is_leader.clone()
        new[: len(self.words)] = False
        return row[leader], new.nonzero()[:, 0]


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
