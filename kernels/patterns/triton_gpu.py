"""Patterns on the GPU: of narrow chains by one Triton kernel, of others a layer at a time, and of what is no chain by torch's
forward passes, packed and hashed by Triton; the distinct ones among them are found where they are."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels.activations import Activation
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.patterns.bits import lines_of, tied
from lmn.kernels.patterns.distinct import DistinctPatterns
from lmn.kernels.patterns.problem import Lattice, Layout, Patterns, Problem
from lmn.kernels.patterns.triton_fused import MOST_IN_A_ROW
from lmn.kernels.patterns.triton_ops import TAKES_GRIDS, UNITS, hash_words, layer_patterns, narrow_patterns, pack_bits
from lmn.kernels.pieces import breakpoints_of
from lmn.kernels.program import Step
from lmn.kernels.triton_host import NarrowChain, as_rows, on, rows_of, wide_layers

_POINTS_A_CALL = 1 << 18
_SAMPLE_BYTES = 1 << 28  # of the samples of a call
_LOW = 1 << 12  # of a coordinate's two parts, the lower's values


def patterns(problem: Problem) -> Patterns:
    """The distinct activation patterns at the problem's points; memory grows with them and not with the points."""
    by_points = _by_points(problem)
    n_words = by_points.n_words
    seen = DistinctPatterns(n_words, problem.device, verify=problem.verify, ids=problem.ids)
    with torch.no_grad():
        for begin in range(0, problem.n_points, by_points.most):
            n = min(by_points.most, problem.n_points - begin)
            indices = np.arange(begin, begin + n)
            seen.insert(*by_points.of(indices), _placed(indices, problem.device))
            problem.progress(n)
        seen.finish()
    layout_words = Layout.of(problem.program).n_words

    def words_at(indices: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _unsigned(by_points.of(indices)[0][:, :layout_words])

    return Patterns(
        words=_unsigned(seen.words[:, :layout_words]),
        counts=seen.counts.cpu().numpy(),
        first=seen.first.cpu().numpy(),
        ids=None if seen.ids is None else seen.ids.cpu().numpy(),
        collisions=seen.collisions if problem.verify else None,
        n_evaluated=problem.n_points,
        words_at=words_at,
    )


def _placed(indices: np.ndarray, device: torch.device) -> Tensor:
    """Ascending numbers of points on a device: made there where each follows the one before."""
    if len(indices) and _follow(indices):
        return torch.arange(int(indices[0]), int(indices[-1]) + 1, device=device)
    return torch.from_numpy(indices).to(device)


def _follow(indices: np.ndarray) -> bool:
    return int(indices[-1] - indices[0]) == len(indices) - 1


def _unsigned(words: Tensor) -> np.ndarray:
    return np.ascontiguousarray(words.cpu().numpy()).view(np.uint64)


def _by_points(problem: Problem) -> _Narrow | _Wide | _Program:
    if problem.edges_apart:  # what is on an edge, a grid's arithmetic rounds to either side
        problem = replace(problem, lattice=None)
    chain = problem.chain() if problem.dtype == torch.float32 else None
    if chain is None or not chain.layers:
        return _Program(problem)
    breakpoints = [_breakpoints(layer.activation) for layer in chain.layers]
    bits = tuple(n * len(at) for n, at in zip(chain.units, breakpoints, strict=True) if len(at))
    if bits != Layout.of(problem.program).bits:
        return _Program(problem)
    narrow = NarrowChain.of(chain, problem.device)
    return _Wide(problem, chain, breakpoints) if narrow is None else _Narrow(problem, narrow, breakpoints)


def _breakpoints(activation: Activation) -> np.ndarray:
    """None of an identity."""
    return np.zeros(0) if activation.core == "identity" else breakpoints_of(activation)


class _Narrow:
    """A chain whose layers fit a tile, in one kernel."""

    def __init__(self, problem: Problem, narrow: NarrowChain, breakpoints: list[np.ndarray]) -> None:
        self._problem, self._narrow, self._breakpoints = problem, narrow, breakpoints
        self._lattice = problem.lattice if TAKES_GRIDS else None
        self.n_words = Layout.of(problem.program).n_words + problem.edges_apart
        n_in = 1 if self._lattice is not None else narrow.chain.n_in
        self.most = min(_POINTS_A_CALL, rows_of(_SAMPLE_BYTES, n_in))

    @cached_property
    def _bends(self) -> dict[str, Any]:
        return self._narrow.bends(self._breakpoints)

    @cached_property
    def _points(self) -> dict[str, Tensor | None]:
        """Where the points are from: what the kernel takes of the first affine map, of the grid or of samples."""
        narrow, lattice = self._narrow, self._lattice
        if lattice is None:
            return {"first": narrow.first, "first_bias": narrow.first_bias, "steps": None, "counts": None}
        weight, bias = narrow.chain.first_map
        steps = _steps(lattice) @ weight.T
        return {
            "first": None,
            "first_bias": narrow.padded(bias + weight @ lattice.origin, narrow.width),
            "steps": narrow.padded(steps, len(steps), narrow.width),
            "counts": torch.tensor(lattice.counts, dtype=torch.int64, device=narrow.device),
        }

    @cached_property
    def _counted_in_32_bits(self) -> bool:
        return self._lattice is None or max(self._lattice.counts) < MOST_IN_A_ROW

    def of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The words and the hashes of points of ascending numbers."""
        problem, narrow = self._problem, self._narrow
        n, device, lattice = len(indices), problem.device, self._lattice
        words = torch.empty(n, self.n_words, dtype=torch.int64, device=device)
        hashes = torch.empty(n, 2, dtype=torch.int64, device=device)
        if not n:
            return words, hashes
        narrow_patterns(
            None if lattice is not None else as_rows(problem.samples(indices)),
            **self._points,
            **narrow.forward,
            **self._bends,
            indices=None if _follow(indices) and self._counted_in_32_bits else _placed(indices, device),
            begin=int(indices[0]),
            cores=narrow.cores,
            edges=problem.edges_apart,
            words=words,
            hashes=hashes,
        )
        return words, hashes


class _Wide:
    """A layer at a time."""

    def __init__(self, problem: Problem, chain: Chain, breakpoints: list[np.ndarray]) -> None:
        self._problem, self._chain, self._breakpoints = problem, chain, breakpoints
        self.n_words = Layout.of(problem.program).n_words + problem.edges_apart
        widest = max(chain.n_in if problem.lattice is None else len(self._coordinates), *chain.units)
        self.most = min(_POINTS_A_CALL, rows_of(_SAMPLE_BYTES, widest))

    @cached_property
    def _layers(self) -> list[dict[str, Any]]:
        layers, first_word = wide_layers(self._chain, self._problem.device), 0
        if self._problem.lattice is not None:
            layers[0] |= self._on_the_grid(self._problem.lattice)
        for each, at in zip(layers, self._breakpoints, strict=True):
            each |= {"breakpoints": on(self._problem.device, at), "first_word": first_word}
            first_word += -(-len(each["bias"]) * len(at) // 64)
        return layers

    def of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The words and the hashes of points of ascending numbers."""
        problem, n = self._problem, len(indices)
        device, apart = problem.device, problem.edges_apart
        words = torch.empty(n, self.n_words, dtype=torch.int64, device=device)
        on_edge = torch.zeros(n, dtype=torch.bool, device=device)
        u = self._places(indices)
        for number, arrays in enumerate(self._layers):
            n_units, is_last = len(arrays["bias"]), number + 1 == len(self._layers)
            out = torch.empty(0 if is_last else n, n_units, dtype=torch.float32, device=device)
            edges = torch.empty(n if apart else 0, triton.cdiv(n_units, UNITS), dtype=torch.int32, device=device)
            layer_patterns(u, **arrays, out=out, words=words, edges=edges)
            if apart:
                on_edge.logical_or_(edges.any(1))
            u = out
        return words, _hashes(words, indices, on_edge if apart else None)

    def _on_the_grid(self, lattice: Lattice) -> dict[str, Tensor]:
        """The first affine map of ``_places``."""
        weight, bias = self._chain.first_map
        steps = _steps(lattice) @ weight.T  # (n_axes, n_units)
        of_coordinates = np.stack([unit * steps[axis] for axis, unit in self._coordinates])
        device = self._problem.device
        return {"weights": on(device, of_coordinates), "bias": on(device, bias + weight @ lattice.origin)}

    @cached_property
    def _coordinates(self) -> list[tuple[int, int]]:
        """The axes of a grid that have points, and in which units: of long ones in two parts that float32 holds."""
        assert self._problem.lattice is not None
        counts = enumerate(self._problem.lattice.counts)
        found = [(axis, unit) for axis, count in counts if count > 1 for unit in (_LOW, 1) if unit < count]
        return found or [(0, 1)]

    def _places(self, indices: np.ndarray) -> Tensor:
        """Samples; or where in a grid its points are, (n, n_coordinates)."""
        problem, lattice = self._problem, self._problem.lattice
        if lattice is None:
            return as_rows(problem.samples(indices))
        places = torch.unravel_index(_placed(indices, problem.device), lattice.counts)
        parts = [places[axis] // _LOW if unit == _LOW else places[axis] % _LOW for axis, unit in self._coordinates]
        return torch.stack(parts, dim=1).float()


def _steps(lattice: Lattice) -> np.ndarray:
    """By how much a point's input differs from the next one's along each axis, (n_axes, n_in), float64."""
    counts = np.array(lattice.counts, dtype=np.int64)
    steps: np.ndarray = lattice.axes / np.maximum(counts - 1, 1)[:, None]
    return steps


def _hashes(words: Tensor, indices: np.ndarray, on_edge: Tensor | None) -> Tensor:
    """Of words, whose last is made here, where there are edges: the number of a point on one, and one, else 0."""
    if on_edge is not None:
        words[:, -1] = torch.where(on_edge, _placed(indices, words.device) + 1, 0)
    hashes = torch.empty(len(words), 2, dtype=torch.int64, device=words.device)
    hash_words(words, hashes)
    return hashes


class _Program:
    """Any program: run by torch, what goes into its bends packed by Triton."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._layout = Layout.of(problem.program)
        self._first_words = dict(zip((step.target for step in problem.program.bends), self._layout.first_words, strict=False))
        self.n_words = self._layout.n_words + problem.edges_apart
        self._breakpoints: dict[int, Tensor] = {}
        self.most = problem.batch

    def of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The words and the hashes of points of ascending numbers."""
        parts = [self._some(indices[first : first + self.most]) for first in range(0, len(indices), self.most)]
        words, hashes = zip(*parts, strict=True)
        return torch.cat(words), torch.cat(hashes)

    def _some(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        problem, n = self._problem, len(indices)
        device, apart = problem.device, problem.edges_apart
        words = torch.empty(n, self.n_words, dtype=torch.int64, device=device)
        on_edge = torch.zeros(n, dtype=torch.bool, device=device)

        def at_bend(step: Step, units: Tensor) -> None:
            assert step.bend is not None
            z, breakpoints = lines_of(step.bend, units)
            if step.target not in self._breakpoints:
                self._breakpoints[step.target] = torch.from_numpy(breakpoints).to(z)
            pack_bits(z.contiguous(), self._breakpoints[step.target], self._first_words[step.target], words)
            if apart:
                on_edge.logical_or_(tied(step.bend, units))

        problem.program.visit(problem.samples(indices), at_bend)
        return words, _hashes(words, indices, on_edge if apart else None)
