"""Activation patterns at samples and at grids of any dimension: validate, plan, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmn.backends import choose
from lmn.domain import Array
from lmn.errors import LmnError, thread_count
from lmn.grid import RegularGrid, as_grid
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.patterns import unseen
from lmn.kernels.patterns.problem import Lattice, Layout, Problem
from lmn.kernels.program import Program
from lmn.lowering import NotAChain
from lmn.memory import working_bytes
from lmn.progress import progress_bar
from lmn.selection import Select
from lmn.slopes import slope_chain
from lmn.subject import Subject, spread

_BATCH_BYTES = 1 << 22  # of the widest result of the samples that are run together
_LARGEST_BATCH, _LARGEST_BATCH_ON_GPU = 1 << 13, 1 << 18


@dataclass(frozen=True, eq=False)
class ActivationPatterns:
    """The distinct activation patterns of a network at points, in the order of the first point of each.

    Attributes
    ----------
    words : ndarray of shape (n_patterns, n_words), uint64
        Bit i of a layer's words: unit by unit and breakpoint by breakpoint, whether the pre-activation is above; of a maximum,
        the number of the largest member. Each layer starts at a word of its own.
    counts : ndarray of shape (n_patterns,), int64
        Points that have each.
    first : ndarray of shape (n_patterns,), int64
        The first of these points.
    ids : ndarray of shape (n_points,), int64, or None
        Which pattern each point has, if it was asked for.
    n_points : int
    layers : tuple of str
        Where in the model the activations and maxima are.
    bits : tuple of int
        How many bits each has.
    first_words : tuple of int
        The word at which each starts.
    collisions : int or None
        How often patterns of one hash were different, if that was verified.
    backend : str
    """

    words: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    first: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any] | None
    n_points: int
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    first_words: tuple[int, ...]
    collisions: int | None
    backend: str

    @cached_property
    def count_after_each_layer(self) -> tuple[int, ...]:
        """Distinct patterns of the first layer, of the first two together, and so on."""
        return Layout(self.layers, self.bits).distinct_after_each(self.words)

    @property
    def coverage(self) -> float:
        """The share of the distribution, from which the points are independent draws, that has one of these (Good-Turing)."""
        return unseen.coverage(self.counts)

    @property
    def lower_bound(self) -> float:
        """Of the number of patterns that have a share of it, seen or not (Chao1)."""
        return unseen.chao1(self.counts)

    def __repr__(self) -> str:
        return f"ActivationPatterns({len(self.counts)} distinct at {self.n_points} points)"


def activation_patterns(
    model: nn.Module,
    grid: Any,
    *,
    tap: str | None = None,
    select: Select | None = None,
    backend: str = "auto",
    ids: bool = False,
    verify: bool = False,
    exhaustive: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> ActivationPatterns:
    """The distinct activation patterns of a piecewise-linear network at the points of a grid.

    A unit is on the piece that its pre-activation is on: of ReLU, active where z > 0, as torch's gradient is. Max pooling, and
    the maximum of results, is on its largest member, the first of equal ones. The output's sign is no part of a pattern.

    The points are run some at a time, their bits packed, hashed to 128 bits and put into a set: memory grows with the distinct
    patterns, and not with the points.

    Parameters
    ----------
    model, grid, tap, select
        As for :func:`lmn.measure`. Any number of points; all of the model from the tap on is looked at.
    backend : {"auto", "cpp", "triton", "reference"}
    ids : bool
        Tell which pattern each point has: 8 bytes a point, and all points of a regular grid are evaluated.
    verify : bool
        Compare the bits of patterns whose hashes are equal, and tell how often they were not (``collisions``).
    exhaustive : bool
        Evaluate every point of a regular grid. By default blocks of it in which no unit has a zero are counted without a look
        inside: regions are convex.
    threads : int, optional
        Default ``torch.get_num_threads()``.
    progress : bool

    Returns
    -------
    ActivationPatterns

    Raises
    ------
    LmnError
        A network that is not piecewise linear, or that could not be traced; samples that can't be measured.

    Examples
    --------
    >>> found = lmn.activation_patterns(model, samples)
    >>> len(found.counts), found.counts.max(), found.coverage
    """
    with Subject(model, as_grid(grid), tap=tap, select=select) as subject:
        found = observe(
            subject, backend=backend, ids=ids, verify=verify, exhaustive=exhaustive, threads=threads, progress=progress
        )
    return found.patterns


class Observed(NamedTuple):
    """The program whose patterns they are, in the samples' dtype; the patterns; what they are at points of ascending indices,
    looked at again.
    """

    program: Program
    patterns: ActivationPatterns
    words_at: Callable[[Array], Array]


def observe(
    subject: Subject,
    *,
    backend: str = "auto",
    ids: bool,
    edges_apart: bool = False,
    verify: bool = False,
    exhaustive: bool = False,
    threads: int | None,
    progress: bool,
) -> Observed:
    """The patterns of an open subject; ``edges_apart`` is as in the kernels' problem."""
    threads = thread_count(threads)
    grid = subject.grid
    example = subject.samples(spread(grid.n_points))
    program = subject.network.program(example.dtype)
    check_agreement(program, subject.network.untraced, example)
    with progress_bar(grid.n_points, "patterns", "point", progress) as bar:
        problem = Problem(
            program=program,
            chain=cache(lambda: _chain(subject, example)),
            n_points=grid.n_points,
            samples=lambda indices: subject.samples(torch.from_numpy(indices)),
            device=example.device,
            dtype=example.dtype,
            batch=_batch(example, program.widest),
            lattice=_lattice(subject, example),
            blocks=not (exhaustive or ids or edges_apart) and example.device.type == "cpu",
            ids=ids,
            edges_apart=edges_apart,
            verify=verify,
            threads=threads,
            progress=bar.update,
        )
        chosen = choose("patterns", backend, problem)
        found = chosen.load("patterns")(problem)
    layout = Layout.of(program)
    observed = ActivationPatterns(
        found.words, found.counts, found.first, found.ids, grid.n_points, layout.names, layout.bits, layout.first_words[:-1],
        found.collisions, chosen.name,
    )  # fmt: skip
    return Observed(program, observed, found.words_at)


def _chain(subject: Subject, example: Tensor) -> Chain | None:
    found = slope_chain(subject.network, example)
    return None if isinstance(found, NotAChain) else found


def _batch(example: Tensor, widest: int) -> int:
    """How many samples are run together."""
    largest = _LARGEST_BATCH if example.device.type == "cpu" else _LARGEST_BATCH_ON_GPU
    return max(1, min(largest, working_bytes(example.device, _BATCH_BYTES) // (example.element_size() * widest)))


def _lattice(subject: Subject, example: Tensor) -> Lattice | None:
    """The grid's points as a lattice of samples, where they are one: of the inputs themselves."""
    grid = subject.grid
    if not isinstance(grid, RegularGrid) or subject.network.tap is not None:
        return None
    origin, axes = grid.origin.flatten().numpy(), grid.axes.flatten(1).numpy()
    return Lattice(origin, axes, grid.counts, lambda steps: grid.between(torch.from_numpy(steps), example))


def check_agreement(steps: Callable[[Tensor], Tensor], tail: Callable[[Tensor], Tensor], samples: Tensor) -> None:
    """The steps give what the model gives, at some samples."""
    with torch.no_grad():
        got, expected = steps(samples.clone()), tail(samples.clone()).to(samples.dtype)
    if not bool(torch.isfinite(expected).all()):
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    tolerance = 1e-3 * float(expected.abs().max())
    if got.shape != expected.shape or not bool(torch.isclose(got, expected, rtol=1e-3, atol=tolerance).all()):
        raise LmnError(
            "read as steps, the model gives other outputs than when it is run; it does what its graph does not show."
        )
