"""Activation and linear regions: validate, plan, dispatch."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from lmn.backends import choose
from lmn.connectivity import Subject
from lmn.domain import MOST_AXES, domain_of
from lmn.errors import LmnError, whole_number
from lmn.grid import RegularGrid, as_grid
from lmn.lowering import NotAChain
from lmn.partition import Regions
from lmn.piecewise import chain_problem
from lmn.selection import Select


def regions(
    model: nn.Module,
    grid: Any,
    *,
    select: Select | None = None,
    backend: str = "auto",
    max_regions: int = 10_000_000,
    threads: int | None = None,
) -> Regions:
    """The activation regions of a piecewise-linear network: all of them, on a line, in a plane or in a box of three dimensions.

    The domain is cut where units pass a breakpoint of their activation, layer by layer, in float64 and on the model's weights
    as they are: no grid point is evaluated, and the grid's resolution does not matter. A region has a positive length, area
    or volume; a unit that is zero at a vertex within 1e-13 of the size of the terms of its sum passes through the vertex.

    Parameters
    ----------
    model, select
        As for :func:`lmn.measure`.
    grid : RegularGrid
        From ``lmn.line``, ``lmn.plane`` or ``lmn.box``: where to look.
    backend : {"auto", "cpp"}
    max_regions : int
        Past it the search is given up with an error that says how many were found: each takes about 200 bytes.
    threads : int, optional
        CPU threads; default ``torch.get_num_threads()``. The result does not depend on it.

    Returns
    -------
    Regions

    Raises
    ------
    LmnError
        A network that is not piecewise linear, weights that are not finite, more than ``max_regions``.

    Examples
    --------
    >>> found = lmn.regions(model, lmn.box([-1, -1], [1, 1], 64))
    >>> found.count, found.labels((512, 512)).shape
    """
    started = time.perf_counter()
    max_regions = whole_number(max_regions, "max_regions", 1)
    threads = torch.get_num_threads() if threads is None else whole_number(threads, "threads", 1)
    points = as_grid(grid)
    if not isinstance(points, RegularGrid) or len(points.axes) > MOST_AXES:
        raise LmnError("exact regions are those on an lmn.line, in an lmn.plane or in an lmn.box of up to three dimensions.")
    domain = domain_of(points)
    with Subject(model, points, select=select) as subject:
        steps = subject.network.chain()
    if isinstance(steps, NotAChain):
        raise LmnError(f"the network is no chain of affine maps and activations: {steps.why}.")
    problem = chain_problem(steps, domain, max_regions=max_regions, threads=threads)
    run = choose("regions", backend, problem).load("regions")
    found = run(problem)
    if not found.complete:
        raise LmnError(
            f"the network has more than max_regions = {max_regions} activation regions here ({found.n_regions} were found "
            "before the search was given up); take a smaller domain, or raise max_regions (each takes about 200 bytes)."
        )
    return Regions(domain, found, threads, time.perf_counter() - started, lambda: run(problem, geometry=True))
