"""Blocks of a regular grid in which nothing bends, counted without a look inside.

Where the units that a block's middle decides have no zero in the block, all of its points have the middle's pattern: with the
pieces of the middle the network is affine, and an affine function's range over a block is its value in the middle, give or
take the sum of its changes along the axes. So a block costs n_axes + 1 forward passes whatever its size, and it fails at
the first bend that has a zero inside. A block that fails is halved, and one of a few points is evaluated point by point.
"""

from __future__ import annotations

from collections.abc import Callable

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

Insert = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # words, first point, number of points
Evaluate = Callable[[np.ndarray], None]  # indices of points


def count(problem: Problem, insert: Insert, evaluate: Evaluate) -> int:
    """Count all points of the problem's lattice; returns the forward passes that blocks took."""
    return _Blocks(problem, insert, evaluate).run()


class _Blocks:
    def __init__(self, problem: Problem, insert: Insert, evaluate: Evaluate) -> None:
        assert problem.lattice is not None
        self._problem, self._insert, self._evaluate = problem, insert, evaluate
        self._lattice, self._program = problem.lattice, problem.program
        self._n_axes = len(self._lattice.counts)
        self._strides = np.cumprod([1, *self._lattice.counts[:0:-1]])[::-1].astype(np.int64)
        layout = Layout.of(self._program)
        self._first_words = dict(zip((step.target for step in self._program.bends), layout.first_words, strict=False))
        self._n_words = layout.n_words
        self._few = 2 * (self._n_axes + 1)  # points that are evaluated one by one
        self._chunk = max(1, problem.batch // (self._n_axes + 1))
        self._points: list[np.ndarray] = []
        self._passes = 0

    def run(self) -> int:
        last = np.array([self._lattice.counts], dtype=np.int64) - 1
        waiting = [(np.zeros_like(last), last)]  # first and last point of blocks, (n_blocks, n_axes)
        while waiting:
            low, high = waiting.pop()
            if len(low) > self._chunk:
                waiting.append((low[self._chunk :], high[self._chunk :]))
                low, high = low[: self._chunk], high[: self._chunk]
            few = np.prod(high - low + 1, axis=1) <= self._few
            self._collect(low[few], high[few])
            low, high = low[~few], high[~few]
            if len(low):
                failed, axis = self._try(low, high)
                if len(failed):
                    waiting.append(_halved(low[failed], high[failed], axis))
        self._flush(0)
        return self._passes

    # -- points ----------------------------------------------------------------------------------------------------------

    def _collect(self, low: np.ndarray, high: np.ndarray) -> None:
        """The points of small blocks, to be evaluated when there are enough of them."""
        sizes = high - low + 1
        totals = np.prod(sizes, axis=1)
        for k in range(int(totals.max(initial=0))):
            inside = totals > k
            rest, at = np.full(int(inside.sum()), k), low[inside].copy()
            for axis in reversed(range(self._n_axes)):
                rest, offset = np.divmod(rest, sizes[inside, axis])
                at[:, axis] += offset
            self._points.append(at @ self._strides)
        self._flush(self._problem.batch - 1)

    def _flush(self, most: int) -> None:
        if sum(map(len, self._points)) <= most:
            return
        indices = np.sort(np.concatenate(self._points))
        self._points = []
        for first in range(0, len(indices), self._problem.batch):
            self._evaluate(indices[first : first + self._problem.batch])

    # -- blocks ----------------------------------------------------------------------------------------------------------

    def _try(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the blocks in which nothing bends; which others there are, and the axis along which to halve each."""
        half = (high - low) / 2
        corners = np.vstack([np.zeros(self._n_axes), np.eye(self._n_axes)])  # the middle, and from there along each axis
        at = ((low + high) / 2)[:, None, :] + half[:, None, :] * corners
        values: dict[int, Value] = {0: self._lattice.at(at.reshape(-1, self._n_axes))}
        left, words = np.arange(len(low)), np.zeros((len(low), self._n_words), dtype=np.uint64)
        axes = np.full(len(low), -1)  # of blocks that failed
        n_points = len(corners)
        self._passes += n_points * len(low)
        for step in self._program.steps:
            sources = [values[slot] for slot in step.sources]
            if step.bend is None:
                values[step.target] = step.run(sources, n_points * len(left))
            else:
                units = units_of(sources, n_points * len(left)).unflatten(0, (len(left), n_points))
                fails, changes = _changes(step.bend, units)
                changes[half[left] == 0] = -1  # nothing to halve
                axes[left[fails]] = changes[fails].argmax(axis=1)
                if fails.any():
                    kept = torch.from_numpy(np.flatnonzero(~fails))
                    values = {slot: _taken(value, n_points, kept) for slot, value in values.items()}
                    left, units = left[~fails], units[kept]
                    if len(left) == 0:
                        break
                some = words[left]
                pack(step, units[:, 0], some, self._first_words[step.target], self._problem.threads)
                words[left] = some
                values[step.target] = _bent(step.bend, units).reshape(-1, *step.shape)
            for slot in step.done:
                values.pop(slot, None)
        self._insert(words[left], low[left] @ self._strides, np.prod(high[left] - low[left] + 1, axis=1))
        failed = np.flatnonzero(axes >= 0)
        return failed, axes[failed]


def _halved(low: np.ndarray, high: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(low))
    middle = (low[rows, axis] + high[rows, axis]) // 2
    end, start = high.copy(), low.copy()
    end[rows, axis], start[rows, axis] = middle, middle + 1
    return np.concatenate([low, start]), np.concatenate([end, high])


def _changes(bend: Pieces | Windows, units: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether a bend has a zero in each block, and how much what has one changes along each axis.

    Parameters
    ----------
    units : Tensor of shape (n_blocks, 1 + n_axes, n_units)
        In the middle, and from there to the end of each axis.

    Returns
    -------
    ndarray of shape (n_blocks,), bool, and ndarray of shape (n_blocks, n_axes), float64
    """
    rounding = _ROUNDING * torch.finfo(units.dtype).eps * units.abs().amax(dim=(1, 2))[:, None]
    if isinstance(bend, Pieces):
        changes = (units[:, 1:] - units[:, :1]).abs()
        reach = changes.sum(1) + rounding
        near = torch.zeros(reach.shape, dtype=torch.bool)
        for at in bend.breakpoints.tolist():
            near |= (units[:, 0] - at).abs() <= reach
        by_axis = torch.einsum("bau,bu->ba", changes, near.to(changes.dtype))
    else:
        first = units[:, 0].contiguous()
        largest = _members(bend, units, largest_members(bend, first))
        near, by_axis = torch.zeros(largest[:, 0].shape, dtype=torch.bool), units.new_zeros(len(units), units.shape[1] - 1)
        for place in range(bend.members.shape[1]):
            lead = bend.sign * (largest - _members(bend, units, torch.full_like(near, place, dtype=torch.int64)))
            changes = (lead[:, 1:] - lead[:, :1]).abs()
            reach = changes.sum(1)
            same = (lead[:, 0] == 0) & (reach == 0)  # the largest itself, or units that are off
            close = (lead[:, 0] <= reach + rounding) & ~same & torch.from_numpy(bend.members[:, place] >= 0)
            near |= close
            by_axis += torch.einsum("bau,bu->ba", changes, close.to(changes.dtype))
    return near.any(1).numpy(), by_axis.double().numpy()


def _bent(bend: Pieces | Windows, units: Tensor) -> Tensor:
    """The bend with the pieces of the blocks' middles."""
    if isinstance(bend, Windows):
        return _members(bend, units, largest_members(bend, units[:, 0].contiguous()))
    piece = torch.zeros(units[:, 0].shape, dtype=torch.int64)
    for at in bend.breakpoints.tolist():
        piece += units[:, 0] > at
    row = torch.arange(bend.n_units)
    slope, offset = (torch.from_numpy(table)[row, piece].to(units.dtype) for table in (bend.slopes, bend.offsets))
    return units * slope[:, None] + offset[:, None]


def _members(windows: Windows, units: Tensor, place: Tensor) -> Tensor:
    """The units at a place in each window, (n_blocks, n_points, n_windows): place is (n_blocks, n_windows)."""
    members = torch.from_numpy(windows.members)
    chosen = members[torch.arange(len(members)), place]  # (n_blocks, n_windows)
    return units.gather(2, chosen[:, None].clamp(min=0).expand(-1, units.shape[1], -1))


def _taken(value: Value, n_points: int, kept: Tensor) -> Value:
    """The values of some of the blocks."""
    if isinstance(value, Tensor):
        return value.unflatten(0, (-1, n_points))[kept].flatten(0, 1)
    return [_taken(part, n_points, kept) for part in value]
