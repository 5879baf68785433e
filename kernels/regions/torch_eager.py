"""Exact subdivision for any network of affine steps and bends: maps by torch, cuts by the C++ core (csrc/cells.cpp).

A cell's affine map to any result of the network is known by that result at n_axes + 1 points of the cube, its middle and the
unit points of its axes, computed as if they were in the cell. What is affine is run on these points as on any samples, for
many cells at once; at a bend, cells are cut, and each part takes its own piece of the bend. Cells go through the network
some at a time and depth first, so that memory does not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Step, Value, units_of
from lmn.kernels.regions.problem import RELATIVE_TOLERANCE, Problem, Subdivision
from lmn.kernels.regions.sizes import cube_points, output_terms, term_sizes
from lmn.kernels.threads import torch_threads

_CHUNK_BYTES = 1 << 25  # of the widest result of the cells that go through the network together


def regions(problem: Problem, geometry: bool = False) -> Subdivision:  # noqa: ARG001 - the cells are there anyway
    """The cells of the problem's cube, with their vertices and facets."""
    with torch.no_grad(), torch_threads(problem.threads):
        return _Search(problem).run()


@dataclass(eq=False)
class _Cells:
    """Cells before the step numbered ``step``: parts of those that ``values`` are of, cut at the bend before it.

    Attributes
    ----------
    values : dict of int to value
        Results by slot: of the parents, (n_parents * n_points, ...).
    patterns : ndarray of shape (n_parents, n_words), uint64
    parent : ndarray of shape (n_cells,), int64
    bits : ndarray of shape (n_cells, n_words of the bend), uint64, or None at the start
    names : ndarray of shape (n_cells,), int64
        By which the tree of cuts knows them.
    """

    step: int
    cells: _core.Cells
    values: dict[int, Value]
    patterns: np.ndarray
    parent: np.ndarray
    bits: np.ndarray | None
    names: np.ndarray


@dataclass(eq=False)
class _Tree:
    """The tree of cuts as it grows: a child is a cut, or ~name of a cell that may yet be cut."""

    cuts: list[np.ndarray] = field(default_factory=list)
    children: list[np.ndarray] = field(default_factory=list)
    n_cuts: int = 0
    n_names: int = 1
    begins: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # names, and the cuts or ~regions that they are

    def add(self, cuts: np.ndarray, children: np.ndarray, roots: np.ndarray, parents: _Cells, parent: np.ndarray) -> np.ndarray:
        """What one bend cut; returns the names of the parts."""
        names: np.ndarray = parents.names[parent]
        was_cut = roots >= 0
        new = was_cut[parent]
        names[new] = self.n_names + np.arange(new.sum())
        self.n_names += int(new.sum())
        self.begins.append((parents.names[was_cut], self.n_cuts + roots[was_cut]))
        self.cuts.append(cuts)
        self.children.append(np.where(children >= 0, children + self.n_cuts, ~names[~np.minimum(children, -1)]))
        self.n_cuts += len(cuts)
        return names

    def result(self, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
        """Cuts and children, the children being cuts or ~regions."""
        if self.n_cuts == 0:
            return np.empty((0, n_axes + 1)), np.empty((0, 2), dtype=np.int64)
        begin = np.empty(self.n_names, dtype=np.int64)
        for names, what in self.begins:
            begin[names] = what
        children = np.concatenate(self.children)
        return np.concatenate(self.cuts), np.where(children >= 0, children, begin[~np.minimum(children, -1)])


class _Search:
    def __init__(self, problem: Problem) -> None:
        self._problem, self._program = problem, problem.program()
        self._n_axes = len(problem.half)
        self._n_points = self._n_axes + 1
        bends = [step.bend for step in self._program.bends]
        self._lines = tuple(bend.n_lines for bend in bends if bend is not None)
        self._first_lines = np.cumsum([0, *self._lines])
        self._words = np.cumsum([0, *(-(-bend.n_bits // 64) for bend in bends if bend is not None)])
        self._sizes = term_sizes(self._program, *cube_points(problem.centre, problem.half, problem.shape))
        self._after = [0] * len(bends)
        self._chunk = max(1, _CHUNK_BYTES // (8 * self._n_points * self._program.widest))
        self._tree = _Tree()
        self._columns: list[dict[str, Any]] = []
        self._patterns: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []
        self._n_done = 0
        self._complete = True

    def run(self) -> Subdivision:
        waiting = [self._whole()]
        while waiting and self._complete:
            now = waiting.pop()
            waiting += reversed(self._advanced(now, self._n_done + sum(len(cells.names) for cells in waiting)))
        return self._result(self._n_done + sum(len(cells.names) for cells in waiting))

    def _whole(self) -> _Cells:
        problem = self._problem
        at = torch.from_numpy(problem.centre + np.vstack([np.zeros_like(problem.centre), problem.half]))
        return _Cells(
            step=0,
            cells=_core.Cells(self._n_axes, int(self._first_lines[-1])),
            values={0: at.reshape(-1, *problem.shape)},
            patterns=np.zeros((1, self._words[-1]), dtype=np.uint64),
            parent=np.zeros(1, dtype=np.int64),
            bits=None,
            names=np.zeros(1, dtype=np.int64),
        )

    def _advanced(self, now: _Cells, others: int) -> list[_Cells]:
        """Take cells to the next bend and cut them, or to the end; of all others there are so many."""
        n, steps = len(now.names), self._program.steps
        values, patterns = self._own(now)
        for index in range(now.step, len(steps)):
            step = steps[index]
            sources = [values[slot] for slot in step.sources]
            if step.bend is not None:
                return self._cut(now, index, values, patterns, others)
            values[step.target] = step.run(sources, n * self._n_points)
            for slot in step.done:
                del values[slot]
        self._finish(now, values, patterns)
        return []

    def _own(self, now: _Cells) -> tuple[dict[int, Value], np.ndarray]:
        """The cells' own values and patterns, from their parents' and the bend."""
        if now.bits is None:
            return dict(now.values), now.patterns
        step = self._program.steps[now.step - 1]
        n_parents = len(now.patterns)
        bent = self._bent(step, now, now.bits)
        values: dict[int, Value] = {step.target: bent.reshape(-1, *step.shape)}
        parent = torch.from_numpy(now.parent)
        whole = np.array_equal(now.parent, np.arange(n_parents))
        for slot, value in now.values.items():
            if slot not in step.done:
                values[slot] = value if whole else self._taken(value, n_parents, parent)
        patterns = now.patterns[now.parent]
        first = self._words[self._number(step)]
        patterns[:, first : first + now.bits.shape[1]] = now.bits
        return values, patterns

    def _taken(self, value: Value, n: int, parent: Tensor) -> Value:
        if not isinstance(value, Tensor):
            return [self._taken(part, n, parent) for part in value]
        return value.reshape(n, self._n_points, *value.shape[1:])[parent].flatten(0, 1)

    def _units(self, step: Step, values: dict[int, Value], n: int) -> np.ndarray:
        units = units_of([values[slot] for slot in step.sources], n * self._n_points)
        return np.ascontiguousarray(units.reshape(n, self._n_points, -1).numpy())

    def _bent(self, step: Step, now: _Cells, bits: np.ndarray) -> Tensor:
        units, bend = self._units(step, now.values, len(now.patterns)), step.bend
        if isinstance(bend, Pieces):
            bent = _core.bend_units(units, now.parent, bits, bend.slopes, bend.offsets, self._problem.threads)
        else:
            assert bend is not None
            bent = _core.bend_windows(units, now.parent, bits, bend.members, bend.bits_each, self._problem.threads)
        return torch.from_numpy(bent)

    def _number(self, step: Step) -> int:
        return next(number for number, other in enumerate(self._program.bends) if other is step)

    def _cut(self, now: _Cells, index: int, values: dict[int, Value], patterns: np.ndarray, others: int) -> list[_Cells]:
        step = self._program.steps[index]
        bend, number = step.bend, self._number(step)
        units, size, threads = self._units(step, values, len(now.names)), self._sizes[step.target], self._problem.threads
        first, most = int(self._first_lines[number]), max(1, self._problem.max_regions - others)
        if isinstance(bend, Pieces):
            unit = np.repeat(np.arange(bend.n_units, dtype=np.int32), len(bend.breakpoints))
            at = np.tile(bend.breakpoints, bend.n_units)
            found = now.cells.cut_by_lines(units, size, unit, at, first, RELATIVE_TOLERANCE, most, threads)
        else:
            assert bend is not None
            found = now.cells.cut_by_windows(
                units, size, bend.members, bend.sign, bend.bits_each, first, RELATIVE_TOLERANCE, most, threads
            )
        if isinstance(found, int):  # there are more than were allowed
            self._complete = False
            self._n_done += found
            return []
        cells, parent, bits, cuts, children, roots = found
        names = self._tree.add(cuts, children, roots, now, parent)
        self._after[number] += len(names)
        parts = []
        for start in range(0, len(names), self._chunk):
            part = slice(start, min(start + self._chunk, len(names)))
            some = cells if len(names) <= self._chunk else cells.part(part.start, part.stop)
            parts.append(_Cells(index + 1, some, values, patterns, parent[part].copy(), bits[part].copy(), names[part]))
        return parts

    def _finish(self, now: _Cells, values: dict[int, Value], patterns: np.ndarray) -> None:
        n = len(now.names)
        y = values[self._program.output].reshape(n, self._n_points, -1)
        self._maps.append(torch.cat([y[:, 1:] - y[:, :1], y[:, :1]], dim=1).transpose(1, 2).contiguous().numpy())
        self._patterns.append(patterns)
        self._columns.append(now.cells.described())
        self._tree.begins.append((now.names, ~(self._n_done + np.arange(n))))
        self._n_done += n

    def _result(self, n_found: int) -> Subdivision:
        def column(name: str) -> np.ndarray:
            return np.concatenate([part[name] for part in self._columns])

        terms = output_terms(self._sizes)
        if not self._complete:
            nothing = np.empty(0)
            return Subdivision(
                n_found, self._lines, False, tuple(self._after), nothing, nothing, nothing, nothing, nothing, nothing, terms
            )
        cuts, children = self._tree.result(self._n_axes)
        return Subdivision(
            n_regions=self._n_done,
            lines_a_layer=self._lines,
            complete=True,
            count_after_each_layer=tuple(self._after),
            patterns=np.concatenate(self._patterns),
            volumes=column("measure"),
            centres=column("centre"),
            maps=np.concatenate(self._maps),
            cuts=cuts,
            children=children,
            terms=terms,
            n_vertices=column("n_vertices"),
            n_facets=column("n_facets"),
            vertices=column("vertex"),
            vertex_ids=column("vertex_id"),
            edge_ids=column("edge_id"),
            facet_ids=column("facet_id"),
            facet_lines=column("facet_line"),
        )
