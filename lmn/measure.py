"""The one call: a model, a grid, and the numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmn.as_written import not_compiled
from lmn.backends import check_name
from lmn.connectivity import Computed, check_segments, compute
from lmn.errors import LmnError, thread_count, whole_number
from lmn.grid import as_grid
from lmn.jacobian_statistics import JacobianStatistics, statistics
from lmn.local_complexity import DEFAULT_DIRECTIONS, LocalComplexity
from lmn.local_complexity import find as local_complexity_of
from lmn.measurement import Measurement
from lmn.partition import Regions
from lmn.regions import find, is_geometric
from lmn.selection import Select
from lmn.spectrum import eigenvalues_in_place, nonlinear_complexity
from lmn.subject import Subject

METRICS = ("lmn", "regions", "jacobians", "local_complexity")
_UNASKED = ("lmn", "regions")
_MOST_OBSERVED = 1 << 22  # points at which regions are looked for without being asked


@not_compiled
def measure(
    model: nn.Module,
    grid: Any,
    *,
    tap: str | None = None,
    metrics: Sequence[str] | None = None,
    select: Select | None = None,
    backend: str = "auto",
    m: int = 21,
    max_points: int | None = 2048,
    seed: int = 0,
    connectivity: bool = False,
    max_regions: int = 1_000_000,
    threads: int | None = None,
    progress: bool = True,
) -> Measurement:
    """Measure how complex the function inside a model is over the points of a grid.

    Parameters
    ----------
    model : nn.Module
        Any module with one tensor as input. It is run in evaluation mode and left as it was, also when this fails. Its forward
        hooks run, as in any forward pass; for regions there may be none inside, since they may change what a module does. It
        must not be trained by another thread meanwhile.
    grid : Tensor or ndarray of shape (n_points, ...), or the result of lmn.box, lmn.plane or lmn.line
        The model's inputs, of any dtype that it takes. A tensor must have the model's dtype and device where it is floating;
        an array and a regular grid are converted to them.
    tap : str, optional
        Name of a submodule (as in ``model.named_modules()``): samples are then its outputs, and the function measured is that
        from there to the model's output. Needed where inputs are integers. Default: the inputs themselves.
    metrics : sequence of {"lmn", "regions", "jacobians", "local_complexity"}, optional
        What to measure. Default: "lmn" and "regions". What does not apply is None, and ``notes`` has the reason.
        "jacobians" are statistics of all points, or of all exact regions (:class:`lmn.JacobianStatistics`);
        "local_complexity" is :func:`lmn.local_complexity` with its defaults, at up to ``max_points`` points.
    select : callable, optional
        Picks a tensor with the batch first from the model's output, e.g. ``lambda out: out.logits[:, -1]``. Not needed for
        a tensor, or an output with ``.logits`` or the key "logits".
    backend : {"auto", "cpp", "triton", "numba", "torch", "reference"}
        What computes the connectivity; see :func:`lmn.available_backends`. A backend that is named is used or raises.
    m : int, at least 3
        Points a segment.
    max_points : int or None
        The LMN costs n_points²: of a larger grid, a random sample of so many points is measured (``n_sampled``, ``indices``),
        and the LMN is that of the sample. None: all points, whatever it takes.
    seed : int
        Of that sample's own random generator.
    connectivity : bool
        Keep the connectivity matrix in the result.
    max_regions : int
        Exact regions are not counted past it.
    threads : int, optional
        CPU threads; default ``torch.get_num_threads()``. The bits of the C++ and Numba kernels' results do not depend on it.
    progress : bool
        Show a progress bar for what takes over a second.

    Returns
    -------
    Measurement

    Raises
    ------
    LmnError
        Input that can't be measured: samples that are empty, not finite, of the wrong shape, dtype or device, or integers
        without a tap; an unknown tap; a model that is not finite on the grid, takes several inputs, or whose samples
        influence each other. The message says what was got and what to do.

    Examples
    --------
    >>> measurement = lmn.measure(model, lmn.box([-1, -1], [1, 1], 24))
    >>> measurement.lmn, measurement.n_points
    """
    started = time.perf_counter()
    options = Options(metrics, backend, m, max_points, seed, max_regions, threads, connectivity, progress)
    return measure_subject(Subject(model, as_grid(grid), tap=tap, select=select), options, started)


@dataclass(frozen=True)
class Options:
    """Of ``measure``, those that need no model to be told from what is none.

    Raises
    ------
    LmnError
    """

    metrics: Sequence[str] | None = None
    backend: str = "auto"
    m: int = 21
    max_points: int | None = 2048
    seed: int = 0
    max_regions: int = 1_000_000
    threads: int | None = None
    connectivity: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        names = self.metrics
        known = names is None or (isinstance(names, Sequence) and len(names) > 0 and all(name in METRICS for name in names))
        if not known or isinstance(names, str):
            raise LmnError(f"metrics is a sequence of names out of {METRICS}; got {names!r}.")
        check_name("connectivity", self.backend)
        check_segments(self.m)
        if self.max_points is not None:
            whole_number(self.max_points, "max_points (or None)", 1)
        whole_number(self.seed, "seed", 0)
        whole_number(self.max_regions, "max_regions", 1)
        thread_count(self.threads)


def measure_subject(subject: Subject, options: Options, started: float) -> Measurement:
    """``measure``, of a model that may have been looked at before; ``started`` is by perf_counter."""
    threads, progress, n_points = thread_count(options.threads), options.progress, subject.grid.n_points
    indices = _sample(n_points, options.max_points, options.seed)
    notes: list[str] = []
    wanted = _UNASKED if options.metrics is None else options.metrics
    found: Computed | None = None
    regions: Regions | None = None
    local: JacobianStatistics | None = None
    crossings: LocalComplexity | None = None
    with subject:
        if "lmn" in wanted:
            found = compute(
                subject, indices, backend=options.backend, m=int(options.m), threads=threads, progress=progress,
                dtype=torch.float64,
            )  # fmt: skip
            notes += found.notes
        if "regions" in wanted:
            regions, why = _regions(subject, options.metrics is None, options.max_regions, threads, progress)
            notes += [f"no regions: {why}"] if regions is None else []
        if "jacobians" in wanted:
            local, said = _jacobians(subject, regions, threads, progress)
            notes += said
        if "local_complexity" in wanted:
            crossings, said = _local_complexity(subject, indices, threads, progress)
            notes += said
    sampled = [name for name, part in (("LMN", found), ("local complexity", crossings)) if part is not None]
    if indices is not None and sampled:
        notes.append(
            f"the {' and the '.join(sampled)} of a random sample of {len(indices)} of the grid's {n_points} points "
            "(max_points), not of the grid"
        )
    return Measurement(
        n_points=n_points,
        regions=regions,
        jacobians=local,
        local_complexity=crossings,
        path=found.path if found is not None else subject.network.path,
        notes=tuple(notes),
        n_sampled=len(indices) if indices is not None and sampled else None,
        indices=indices if sampled else None,
        **_of_connectivity(found, options, threads),
        elapsed=time.perf_counter() - started,
    )


def _of_connectivity(found: Computed | None, options: Options, threads: int) -> dict[str, Any]:
    """What a measurement says of the linear connectivity."""
    if found is None:
        return {}
    matrix = found.matrix.clone() if options.connectivity else None
    eigenvalues = eigenvalues_in_place(found.matrix.cpu().numpy(), threads)
    complexity = nonlinear_complexity(eigenvalues)
    return {
        "lmn": float(np.exp2(complexity)),
        "nonlinear_complexity": complexity,
        "eigenvalues": eigenvalues,
        "connectivity": matrix,
        "m": int(options.m),
        "backend": found.backend,
        "dtype": found.dtype,
        "n_redone": found.n_redone,
    }


def _regions(
    subject: Subject, unasked: bool, max_regions: int, threads: int | None, progress: bool
) -> tuple[Regions | None, str]:
    """The regions, or why there are none."""
    n_points = subject.grid.n_points
    if unasked and not is_geometric(subject) and n_points > _MOST_OBSERVED:
        return None, f"the grid has {n_points} points to look at; ask for them by metrics=('lmn', 'regions')."
    try:
        return find(subject, max_regions=max_regions, threads=threads, progress=progress), ""
    except LmnError as error:
        return None, error.short


def _jacobians(
    subject: Subject, regions: Regions | None, threads: int, progress: bool
) -> tuple[JacobianStatistics | None, tuple[str, ...]]:
    """The Jacobians' statistics, or None, and what there is to say."""
    try:
        return statistics(subject, regions, threads, progress)
    except LmnError as error:
        return None, (f"no Jacobians: {error.short}",)


def _local_complexity(
    subject: Subject, indices: Tensor | None, threads: int, progress: bool
) -> tuple[LocalComplexity | None, tuple[str, ...]]:
    """The local complexity of the grid's points or of a sample, or None, and why."""
    n_in = subject.network.sample_shape.numel()
    directions = min(DEFAULT_DIRECTIONS, n_in)
    said = (
        () if directions == DEFAULT_DIRECTIONS else (f"local complexity with {directions} directions: there are {n_in} inputs",)
    )
    try:
        return local_complexity_of(subject, indices, n_directions=directions, threads=threads, progress=progress), said
    except LmnError as error:
        return None, (f"no local complexity: {error.short}",)


def _sample(n_points: int, max_points: int | None, seed: int) -> Tensor | None:
    """The indices of the points to take, ascending, or None for all."""
    if max_points is None or n_points <= max_points:
        return None
    drawn = np.random.default_rng(seed).choice(n_points, max_points, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn))
