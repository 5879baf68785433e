"""Activation and linear regions: validate, plan, dispatch."""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lmn.activation_patterns import observe
from lmn.backends import check_name, choose
from lmn.domain import MOST_AXES, Domain, domain_of
from lmn.errors import LmnError, thread_count, whole_number
from lmn.exact_regions import ExactRegions
from lmn.grid import RegularGrid, as_grid
from lmn.kernels.patterns.problem import Layout
from lmn.kernels.regions.problem import Problem, Subdivision
from lmn.lowering import NotAChain
from lmn.observed_regions import LookedUp, ObservedRegions
from lmn.partition import Regions
from lmn.piecewise import chain_on
from lmn.selection import Select
from lmn.subject import Subject, spread


class TooManyRegions(LmnError):  # noqa: N818 - its users see an LmnError
    """More regions than were allowed."""


def regions(
    model: nn.Module,
    grid: Any,
    *,
    tap: str | None = None,
    select: Select | None = None,
    backend: str = "auto",
    max_regions: int = 10_000_000,
    verify: bool = False,
    exhaustive: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> Regions:
    """The activation regions of a piecewise-linear network where the grid is.

    On a line, in a plane and in a box of up to three dimensions: all of them, by geometry. The domain is cut where units pass
    a breakpoint of their activation, and where a maximum changes its member, layer by layer, in float64: no grid point is
    evaluated, and the grid's resolution does not matter. A region has a positive length, area or volume; a unit that is zero
    at a vertex within 1e-13 of the size of the terms of its sum passes through the vertex.

    Over samples, and in boxes of more dimensions: those that a point was observed in; see :func:`lmn.activation_patterns`.

    Parameters
    ----------
    model, select
        As for :func:`lmn.measure`.
    grid : RegularGrid, Tensor or ndarray
        From ``lmn.line``, ``lmn.plane`` or ``lmn.box``, or samples: where to look.
    tap : str, optional
        Look at the function from this submodule's output on, at the activations of the grid's points there; these regions are
        observed ones, since a submodule's output need not be a plane where its input is.
    backend : {"auto", "cpp", "triton", "torch", "reference"}
        Exact regions: "cpp" takes chains of affine maps and activations, "torch" any traced network. Observed ones: "cpp",
        "triton" and "reference".
    max_regions : int
        Past it the search for exact regions is given up, with an error that says how many were found. Each takes from 300 bytes
        (a chain of two layers) to some thousand (convolutional and residual networks).
    verify, exhaustive
        Of observed regions, as for :func:`lmn.activation_patterns`.
    threads : int, optional
        CPU threads; default ``torch.get_num_threads()``. The result does not depend on it.
    progress : bool

    Returns
    -------
    Regions
        :class:`lmn.exact_regions.ExactRegions` or :class:`lmn.observed_regions.ObservedRegions`; ``exact`` tells.

    Raises
    ------
    LmnError
        A network that is not piecewise linear, weights that are not finite, more than ``max_regions``.

    Examples
    --------
    >>> found = lmn.regions(model, lmn.box([-1, -1], [1, 1], 64))
    >>> found.count, found.labels((512, 512)).shape
    """
    with Subject(model, as_grid(grid), tap=tap, select=select) as subject:
        return find(
            subject,
            backend=backend,
            max_regions=max_regions,
            verify=verify,
            exhaustive=exhaustive,
            threads=threads,
            progress=progress,
        )


def find(
    subject: Subject,
    *,
    backend: str = "auto",
    max_regions: int,
    verify: bool = False,
    exhaustive: bool = False,
    threads: int | None,
    progress: bool,
) -> Regions:
    """The regions of an open subject."""
    started = time.perf_counter()
    max_regions = whole_number(max_regions, "max_regions", 1)
    threads = thread_count(threads)
    if is_geometric(subject):
        check_name("regions", backend)
        return _exact(subject, backend, max_regions, threads, started)
    check_name("patterns", backend)
    program, found, words_at = observe(
        subject, backend=backend, ids=False, verify=verify, exhaustive=exhaustive, threads=threads, progress=progress
    )
    looked_up = LookedUp(subject, program, words_at)
    return ObservedRegions(found, isinstance(subject.grid, RegularGrid), looked_up, time.perf_counter() - started)


def is_geometric(subject: Subject) -> bool:
    """Whether the regions are those of a line, a plane or a box, and not those seen at points."""
    grid = subject.grid
    return isinstance(grid, RegularGrid) and len(grid.axes) <= MOST_AXES and subject.network.tap is None


def _exact(subject: Subject, backend: str, max_regions: int, threads: int, started: float) -> ExactRegions:
    network, grid = subject.network, subject.grid
    assert isinstance(grid, RegularGrid)
    domain = domain_of(grid)
    steps = network.chain()
    double = cache(lambda: network.program(torch.float64, "cpu"))
    problem = Problem(
        chain=None if isinstance(steps, NotAChain) else chain_on(steps, domain),
        why_no_chain=steps.why if isinstance(steps, NotAChain) else "",
        program=double,
        centre=domain.centre,
        half=domain.half,
        shape=domain.shape,
        max_regions=max_regions,
        threads=threads,
    )
    chosen = choose("regions", backend, problem)
    run = chosen.load("regions")
    found: Subdivision = run(problem)
    if not found.complete:
        raise TooManyRegions(
            f"the network has more than max_regions = {max_regions} activation regions here ({found.n_regions} were found "
            "before the search was given up); take a smaller domain, or raise max_regions (each takes some hundred bytes, of "
            "convolutional and residual networks some thousand)."
        )
    _check_maps(subject, domain, found)
    if problem.chain is not None:
        layers = tuple(layer.pieces.where for layer in problem.chain.layers)
    else:
        layers = Layout.of(double()).names
    elapsed = time.perf_counter() - started
    return ExactRegions(domain, found, layers, threads, chosen.name, elapsed, partial(run, problem, geometry=True))


def _check_maps(subject: Subject, domain: Domain, found: Subdivision) -> None:
    """The maps give what the model gives, in the middle of some regions: a model may do more than was read off it."""
    some = spread(found.n_regions).numpy()
    u, maps = found.centres[some], found.maps[some]
    inputs = subject.like_model(torch.from_numpy(domain.inputs(domain.from_cube(u))))
    expected = subject.network.untraced(inputs).double().cpu().numpy()
    got = np.einsum("rka,ra->rk", maps[..., :-1], u) + maps[..., -1]
    if not np.isfinite(expected).all():
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    # An output may be a small difference of large terms, which the model has rounded.
    atol = 1e-3 * np.abs(expected).max() + 10 * torch.finfo(inputs.dtype).eps * found.terms.c
    if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-3, atol=atol):
        raise LmnError(
            "the maps read off the model give other outputs than the model; it does what its graph does not show; "
            "rewrite it with torch's modules and functions, out of place, or measure its linear mapping number."
        )
