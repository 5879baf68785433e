"""Patterns on the GPU: those of narrow chains by one Triton kernel, of others by torch's forward passes, packed and hashed by
Triton; the distinct ones among them are found where they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.patterns.bits import lines_of, tied
from lmn.kernels.patterns.distinct import DistinctPatterns
from lmn.kernels.patterns.problem import Layout, Patterns, Problem
from lmn.kernels.patterns.triton_bits import hashed, pack
from lmn.kernels.patterns.triton_fused import fused
from lmn.kernels.pieces import breakpoints_of
from lmn.kernels.program import Step
from lmn.kernels.triton_host import MOST_DEPTH, MOST_WIDTH, POINTS, NarrowChain
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of

INS, _WARPS = 16, 8
_POINTS_A_CALL = 1 << 18
_SAMPLE_BYTES = 1 << 26  # of the samples of a call
_PACKED = 64  # points of a tile


def patterns(problem: Problem) -> Patterns:
    """The distinct activation patterns at the problem's points; memory grows with them and not with the points."""
    by_points = _by_points(problem)
    n_words = by_points.n_words
    seen = DistinctPatterns(n_words, problem.device, verify=problem.verify, ids=problem.ids)
    with torch.no_grad():
        for begin in range(0, problem.n_points, by_points.most):
            n = min(by_points.most, problem.n_points - begin)
            words, hashes = by_points.of(np.arange(begin, begin + n))
            seen.insert(words, hashes, torch.arange(begin, begin + n, device=problem.device))
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


def _unsigned(words: Tensor) -> np.ndarray:
    return np.ascontiguousarray(words.cpu().numpy()).view(np.uint64)


def _by_points(problem: Problem) -> _Narrow | _Program:
    narrow = _Narrow(problem)
    return narrow if narrow.fits else _Program(problem)


class _Narrow:
    """A chain whose layers fit a tile, in one kernel."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        chain = problem.chain() if problem.dtype == torch.float32 else None
        self._narrow = None if chain is None else NarrowChain.of(chain, problem.device)
        layout = Layout.of(problem.program)
        self.n_words = layout.n_words + problem.edges_apart
        self.fits = self._narrow is not None and self._bits == layout.bits
        n_in = 1 if self._narrow is None or problem.lattice is not None else self._narrow.chain.n_in
        self.most = min(_POINTS_A_CALL, max(POINTS, _SAMPLE_BYTES // (4 * n_in)))

    @cached_property
    def _breakpoints(self) -> list[np.ndarray]:
        """Of each layer, none of an identity."""
        assert self._narrow is not None
        acts = [layer.activation for layer in self._narrow.chain.layers]
        return [np.zeros(0) if act.core == "identity" else breakpoints_of(act) for act in acts]

    @property
    def _bits(self) -> tuple[int, ...]:
        assert self._narrow is not None
        units = self._narrow.chain.units
        return tuple(n * len(at) for n, at in zip(units, self._breakpoints, strict=True) if len(at))

    @cached_property
    def _tables(self) -> dict[str, Any]:
        narrow = self._narrow
        assert narrow is not None
        most = max(1, *map(len, self._breakpoints))
        breakpoints, layout, first_word = torch.full((narrow.depth, most), torch.nan), [], 0
        for number, (n, at) in enumerate(zip(narrow.chain.units, self._breakpoints, strict=True)):
            breakpoints[number, : len(at)] = torch.from_numpy(at)
            n_of_layer = -(-n * len(at) // 64)
            layout.append([n, len(at), first_word, n_of_layer])
            first_word += n_of_layer
        device = narrow.device
        return {
            "breakpoints": breakpoints.to(device),
            "layout": torch.tensor(layout, dtype=torch.int32, device=device),
            "MOST_BREAKPOINTS": most,
        }

    @cached_property
    def _points(self) -> dict[str, Any]:
        """Where the points are from: what the kernel takes of the first affine map, of the grid or of samples."""
        narrow, lattice = self._narrow, self._problem.lattice
        assert narrow is not None
        if lattice is None:
            none = narrow.first_bias
            return {"first": narrow.first, "first_bias": narrow.first_bias, "steps": none, "counts": none, "n_axes": 0}
        weight, bias = narrow.chain.first_map
        counts = np.array(lattice.counts, dtype=np.int64)
        steps = (lattice.axes / np.maximum(counts - 1, 1)[:, None]) @ weight.T
        return {
            "first": narrow.first_bias,
            "first_bias": narrow.padded(bias + weight @ lattice.origin, narrow.width),
            "steps": narrow.padded(steps, len(steps), narrow.width),
            "counts": torch.from_numpy(counts).to(narrow.device),
            "n_axes": len(counts),
        }

    def of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The words and the hashes of points of ascending numbers."""
        problem, narrow = self._problem, self._narrow
        assert narrow is not None
        n, device, lattice = len(indices), problem.device, problem.lattice
        words = torch.empty(n, self.n_words, dtype=torch.int64, device=device)
        hashes = torch.empty(n, 2, dtype=torch.int64, device=device)
        if not n:
            return words, hashes
        follow = int(indices[-1] - indices[0]) == n - 1
        points = self._points
        x = points["first"] if lattice is not None else problem.samples(indices).flatten(1).contiguous()
        fused[(triton.cdiv(n, POINTS),)](
            x=x,
            **points,
            **narrow.forward,
            **self._tables,
            indices=words if follow else torch.from_numpy(indices).to(device),
            words=words,
            hashes=hashes,
            begin=int(indices[0]),
            n_points=n,
            n_in=narrow.chain.n_in,
            n_words=self.n_words,
            GRID=lattice is not None,
            INDEXED=not follow,
            EDGES=problem.edges_apart,
            DEPTH=narrow.depth,
            WIDTH=narrow.width,
            POINTS=POINTS,
            INS=INS,
            **narrow.inner_cores,
            PRECISION=precision_of(device),
            num_warps=_WARPS,
            num_stages=1,
        )
        return words, hashes


class _Program:
    """Any program: run by torch, what goes into its bends packed by Triton."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._layout = Layout.of(problem.program)
        self._first_words = dict(zip((step.target for step in problem.program.bends), self._layout.first_words, strict=False))
        self.n_words = self._layout.n_words + problem.edges_apart
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
            self._pack(z, breakpoints, words, self._first_words[step.target])
            if apart:
                on_edge.logical_or_(tied(step.bend, units))

        problem.program.visit(problem.samples(indices), at_bend)
        if apart:
            words[:, -1] = torch.where(on_edge, torch.from_numpy(indices).to(device) + 1, 0)
        hashes = torch.empty(n, 2, dtype=torch.int64, device=device)
        hashed[(triton.cdiv(n, _PACKED),)](words, hashes, n, self.n_words, POINTS=_PACKED, num_warps=2)
        return words, hashes

    @staticmethod
    def _pack(z: Tensor, breakpoints: np.ndarray, words: Tensor, first_word: int) -> None:
        n, n_units = z.shape
        z = z.contiguous()
        pack[(triton.cdiv(n, _PACKED), triton.cdiv(n_units * len(breakpoints), 64))](
            z, torch.from_numpy(breakpoints).to(z), words, n, n_units, len(breakpoints), words.shape[1], first_word,
            POINTS=_PACKED, num_warps=4,
        )  # fmt: skip


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("n_points", "n_in", "n_axes", "n_words", "n_units", "n_breakpoints", "first_word")
_TYPES = dict.fromkeys(_INTEGERS, "i32") | {"begin": "i64", "layout": "*i32"}
_TYPES |= dict.fromkeys(("words", "hashes", "indices", "counts"), "*i64")


def configurations() -> Iterator[Configuration]:
    for label, core, most, grid in (
        ("abs, grid", "abs", 1, True), ("abs, samples", "abs", 1, False), ("clamp, samples", "clamp", 2, False)
    ):  # fmt: skip
        constants: dict[str, Any] = {
            "GRID": grid,
            "INDEXED": False,
            "EDGES": True,
            "MOST_BREAKPOINTS": most,
            "DEPTH": MOST_DEPTH,
        }
        constants |= {"WIDTH": MOST_WIDTH, "POINTS": POINTS, "INS": INS, "PRECISION": ""}
        constants |= dict.fromkeys(("CORE0", "CORE1", "CORE2"), CORES.index(core))
        yield Configuration("patterns", f"{MOST_DEPTH} x {MOST_WIDTH} {label}", fused, constants, _TYPES, _WARPS, 1)
    yield Configuration("patterns", "packed", pack, {"POINTS": _PACKED}, _TYPES, 4, 2)
    yield Configuration("patterns", "hashed", hashed, {"POINTS": _PACKED}, _TYPES, 2, 2)
