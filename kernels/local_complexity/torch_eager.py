"""Any traced tail on any device, by PyTorch: all vertices of some samples at a time, or of one sample what fits a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.local_complexity.problem import Bends, Found, Layer, Problem
from lmn.kernels.patterns.bits import largest_members
from lmn.kernels.threads import torch_threads
from lmn.kernels.windows import Windows


def local_complexity(problem: Problem) -> Found:
    with torch.no_grad(), torch_threads(problem.threads):
        bends = problem.bends(problem.dtype)
        counts = np.zeros((problem.n_points, len(bends.layers)), dtype=np.int64)
        if bends.layers:
            steps = problem.steps.to(problem.dtype)
            moves = torch.cat([steps, -steps])
            together = max(1, problem.batch // len(moves))
            for part, samples in problem.parts(max(together, problem.batch)):
                found = [_counts(bends, some, moves, problem.batch) for some in samples.split(together)]
                counts[part] = torch.cat(found).cpu().numpy()
    return Found(bends.layers, counts)


def _counts(bends: Bends, samples: Tensor, moves: Tensor, batch: int) -> Tensor:
    """(n, n_layers), int64, of samples whose vertices are at moves, (n_vertices, n_in), from them."""
    n = len(samples)
    seen = [_seen(layer) for layer in bends.layers]
    for some in moves.split(max(1, batch // n)):
        vertices = samples + some.to(samples.device).reshape(-1, 1, *samples.shape[1:])  # (n_vertices, n, ...)
        bends.visit(vertices.flatten(0, 1), _noting(seen, n))
    return torch.stack([each.count() for each in seen], dim=1)


def _noting(seen: list[_Seen], n: int) -> Callable[[int, Tensor], None]:
    return lambda layer, units: seen[layer].note(units.reshape(-1, n, units.shape[1]))


class _Seen(Protocol):
    """What of a layer is kept of the vertices that were seen."""

    def note(self, units: Tensor) -> None:
        """Units at some vertices of all samples, (n_vertices, n, n_units of the layer's sources)."""

    def count(self) -> Tensor:
        """(n,), int64; -1 where some are not finite."""


def _seen(layer: Layer) -> _Seen:
    return _Largest(layer.bend) if isinstance(layer.bend, Windows) else _Range(layer.bend)


class _Range:
    """The least and the greatest pre-activation of each unit."""

    def __init__(self, breakpoints: np.ndarray) -> None:
        self._breakpoints = breakpoints
        self._least: Tensor | None = None

    def note(self, units: Tensor) -> None:
        least, most = units.amin(0), units.amax(0)  # NaN of a NaN; over the first axis, faster than torch.aminmax
        if self._least is None:
            self._least, self._most = least, most
        else:
            self._least, self._most = torch.minimum(self._least, least), torch.maximum(self._most, most)

    def count(self) -> Tensor:
        assert self._least is not None
        between = torch.zeros_like(self._least, dtype=torch.bool)
        for at in self._breakpoints.tolist():
            between |= (self._most > at) & ~(self._least > at)
        finite = (torch.isfinite(self._least) & torch.isfinite(self._most)).all(1)
        return torch.where(finite, between.sum(1), -1)


class _Largest:
    """The first vertex's largest members, and where another vertex has others."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._first: Tensor | None = None

    def note(self, units: Tensor) -> None:
        members = largest_members(self._windows, units.flatten(0, 1)).unflatten(
            0, units.shape[:2]
        )  # (n_vertices, n, n_windows)
        if self._first is None:
            self._first = members[0]
            self._differs = torch.zeros_like(self._first, dtype=torch.bool)
            self._finite = torch.ones(len(self._first), dtype=torch.bool, device=units.device)
        self._differs |= (members != self._first).any(0)
        self._finite &= (self._windows.sign * units).amax((0, 2)) < torch.inf  # nor NaN

    def count(self) -> Tensor:
        return torch.where(self._finite, self._differs.sum(1), -1)
