"""Blocks of a regular grid in which nothing bends, counted without a look inside.

Where the units that a block's middle decides have no zero in the block, all of its points have the middle's pattern: with the
pieces of the middle the network is affine, and an affine function's range over a block is its value in the middle, give or
take the sum of its changes along the axes. So a block costs n_axes + 1 forward passes whatever its size, and it fails at
the first bend that has a zero inside. A block that fails is taken apart into smaller ones, and in the end into points.

Where regions are small most blocks fail, and it is faster to evaluate the points: how many blocks of each size would fail is
seen from some of them, and only the sizes that pay are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.patterns.bits import largest_members, pack
from lmn.kernels.patterns.problem import Layout, Problem
from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Value, units_of
from lmn.kernels.windows import Windows

# What rounding may be wrong by, as a multiple of the dtype's precision and of the largest value at the bend: a zero that is
# nearer to a block than this is looked for point by point.
_ROUNDING = 256

_TRIED = 256  # blocks of a size, to see how many fail
_COST = 3  # of a forward pass of a block, in those of a point: its units' changes are looked at too

Insert = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # words, first point, number of points
Evaluate = Callable[[np.ndarray], None]  # indices of points
Blocks = tuple[np.ndarray, np.ndarray]  # first and last point of each, (n_blocks, n_axes), int64


def count(problem: Problem, insert: Insert, evaluate: Evaluate) -> int:
    """Count all points of the problem's lattice; returns the forward passes that blocks took."""
    counter = _Counter(problem, insert, evaluate)
    sides = counter.sides_that_pay()
    if sides:
        counter.count(sides)
    else:
        for first in range(0, problem.n_points, problem.batch):
            evaluate(np.arange(first, min(first + problem.batch, problem.n_points)))
    return counter.passes


class _Counter:
    def __init__(self, problem: Problem, insert: Insert, evaluate: Evaluate) -> None:
        assert problem.lattice is not None
        self._problem, self._insert, self._evaluate = problem, insert, evaluate
        self._lattice = problem.lattice
        self._counts = np.array(self._lattice.counts, dtype=np.int64)
        self._strides = np.cumprod([1, *self._lattice.counts[:0:-1]])[::-1].astype(np.int64)
        layout, bends = Layout.of(problem.program), problem.program.bends
        self._first_words = dict(zip((step.target for step in bends), layout.first_words, strict=False))
        self._last = problem.program.steps.index(bends[-1]) if bends else -1
        self._n_words = layout.n_words
        self._chunk = max(1, problem.batch // (len(self._counts) + 1))
        self._points: list[np.ndarray] = []
        self.passes = 0

    # -- which blocks --------------------------------------------------------------------------------------------------------

    def sides_that_pay(self) -> list[int]:
        """Descending: blocks of so many points an axis save more passes than they cost, by some blocks of each size."""
        sides, cost, rng = list[int](), 1.0, np.random.default_rng(0)
        side = 2
        while side <= 2 * self._counts.max():
            tiles = -(-self._counts // side)
            low = rng.integers(0, tiles, (_TRIED, len(tiles))) * side
            high = np.minimum(low + side, self._counts) - 1
            passed, _ = self._look((low, high))
            points = np.prod(high - low + 1, axis=1)
            with_blocks = _COST * (len(tiles) + 1) * _TRIED / points.sum() + cost * points[~passed].sum() / points.sum()
            if with_blocks < cost:
                sides.insert(0, side)
                cost = with_blocks
            side *= 2
        return sides

    def count(self, sides: list[int]) -> None:
        tiles = -(-self._counts // sides[0])
        for first in range(0, int(np.prod(tiles)), self._chunk):
            numbers = np.arange(first, min(first + self._chunk, int(np.prod(tiles))))
            low = np.stack(np.unravel_index(numbers, tuple(tiles)), axis=1) * sides[0]
            self._descend((low, np.minimum(low + sides[0], self._counts) - 1), sides[1:])
        self._flush(0)

    def _descend(self, blocks: Blocks, sides: list[int]) -> None:
        low, high = blocks
        passed, words = self._look(blocks)
        if passed.any():
            sizes = np.prod(high[passed] - low[passed] + 1, axis=1)
            self._insert(words[passed], low[passed] @ self._strides, sizes)
        low, high = low[~passed], high[~passed]
        if not len(low):
            return
        if not sides:
            self._points += [part[0] @ self._strides for part in _parts((low, high), 1)]
            self._flush(self._problem.batch - 1)
            return
        parts = [np.concatenate(column) for column in zip(*_parts((low, high), sides[0]), strict=True)]
        for first in range(0, len(parts[0]), self._chunk):
            self._descend((parts[0][first : first + self._chunk], parts[1][first : first + self._chunk]), sides[1:])

    def _flush(self, most: int) -> None:
        """Evaluate the points that are left to be, where there are more than so many."""
        if sum(map(len, self._points)) <= most:
            return
        indices = np.sort(np.concatenate(self._points))
        self._points = []
        for first in range(0, len(indices), self._problem.batch):
            self._evaluate(indices[first : first + self._problem.batch])

    # -- a look at blocks ----------------------------------------------------------------------------------------------------

    def _look(self, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """In which blocks nothing bends, (n_blocks,), bool; and the patterns of these, (n_blocks, n_words)."""
        low, high = blocks
        n_axes = len(self._counts)
        corners = np.vstack([np.zeros(n_axes), np.eye(n_axes)])  # the middle, and from there along each axis
        at = ((low + high) / 2)[:, None, :] + ((high - low) / 2)[:, None, :] * corners
        values: dict[int, Value] = {0: self._lattice.at(at.reshape(-1, n_axes))}
        left, words = np.arange(len(low)), np.zeros((len(low), self._n_words), dtype=np.uint64)
        self.passes += len(at) * len(corners)
        for step in self._problem.program.steps[: self._last + 1]:
            sources = [values[slot] for slot in step.sources]
            if step.bend is None:
                values[step.target] = step.run(sources, len(left) * len(corners))
            else:
                units = units_of(sources, len(left) * len(corners)).unflatten(0, (len(left), len(corners)))
                straight = ~_bends_inside(step.bend, units)
                if not straight.all():
                    kept = torch.from_numpy(np.flatnonzero(straight))
                    values = {slot: _taken(value, len(corners), kept) for slot, value in values.items()}
                    left, units = left[straight], units[kept]
                    if not len(left):
                        break
                some = words[left]
                pack(step, units[:, 0], some, self._first_words[step.target], self._problem.threads)
                words[left] = some
                if step is not self._problem.program.steps[self._last]:
                    values[step.target] = _bent(step.bend, units).reshape(-1, *step.shape)
            for slot in step.done:
                values.pop(slot, None)
        passed = np.zeros(len(low), dtype=bool)
        passed[left] = True
        return passed, words


def _parts(blocks: Blocks, side: int) -> Iterator[Blocks]:
    """Blocks taken apart into smaller ones of a side, some of each at a time."""
    low, high = blocks
    largest = int((high - low).max()) + 1
    for place in itertools.product(range(0, largest, side), repeat=low.shape[1]):
        start = low + np.array(place)
        inside = (start <= high).all(axis=1)
        yield start[inside], np.minimum(start[inside] + side - 1, high[inside])


def _bends_inside(bend: Pieces | Windows, units: Tensor) -> np.ndarray:
    """Whether a bend has a zero in each block: (n_blocks, 1 + n_axes, n_units) to (n_blocks,), bool.

    The units are those in the middle, and from there at the end of each axis.
    """
    rounding = _ROUNDING * torch.finfo(units.dtype).eps * units.abs().amax(dim=(1, 2))[:, None]
    if isinstance(bend, Pieces):
        reach = (units[:, 1:] - units[:, :1]).abs_().sum(1).add_(rounding)
        near = torch.zeros(reach.shape, dtype=torch.bool, device="cpu")
        for at in bend.breakpoints.tolist():
            near |= (units[:, 0] - at).abs_() <= reach
        return near.any(1).numpy()
    largest = _members(bend, units, largest_members(bend, units[:, 0].contiguous()))
    near = torch.zeros(largest[:, 0].shape, dtype=torch.bool, device="cpu")
    for place in range(bend.members.shape[1]):
        lead = bend.sign * (largest - _members(bend, units, torch.full_like(near, place, dtype=torch.int64)))
        reach = (lead[:, 1:] - lead[:, :1]).abs_().sum(1)
        same = (lead[:, 0] == 0) & (reach == 0)  # the largest itself, or units that are off
        near |= (lead[:, 0] <= reach + rounding) & ~same & torch.from_numpy(bend.members[:, place] >= 0)
    return near.any(1).numpy()


def _bent(bend: Pieces | Windows, units: Tensor) -> Tensor:
    """The bend with the pieces of the blocks' middles."""
    if isinstance(bend, Windows):
        return _members(bend, units, largest_members(bend, units[:, 0].contiguous()))
    piece = torch.zeros(units[:, 0].shape, dtype=torch.int64, device="cpu")
    for at in bend.breakpoints.tolist():
        piece += units[:, 0] > at
    row = torch.arange(bend.n_units, device="cpu")
    slope, offset = (torch.from_numpy(table)[row, piece].to(units.dtype) for table in (bend.slopes, bend.offsets))
    return units * slope[:, None] + offset[:, None]


def _members(windows: Windows, units: Tensor, place: Tensor) -> Tensor:
    """The units at a place in each window, (n_blocks, n_points, n_windows): place is (n_blocks, n_windows)."""
    members = torch.from_numpy(windows.members)
    chosen = members[torch.arange(len(members), device="cpu"), place]  # (n_blocks, n_windows)
    return units.gather(2, chosen[:, None].clamp(min=0).expand(-1, units.shape[1], -1))


def _taken(value: Value, n_points: int, kept: Tensor) -> Value:
    """The values of some of the blocks."""
    if isinstance(value, Tensor):
        return value.unflatten(0, (-1, n_points))[kept].flatten(0, 1)
    return [_taken(part, n_points, kept) for part in value]
