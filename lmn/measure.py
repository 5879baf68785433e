"""The one call: a model, a grid, and the numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmn.connectivity import Subject, compute
from lmn.errors import LmnError, whole_number
from lmn.grid import as_grid
from lmn.measurement import Measurement
from lmn.selection import Select
from lmn.spectrum import eigenvalues_in_place, nonlinear_complexity

METRICS = ("lmn",)


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
    threads: int | None = None,
    progress: bool = True,
) -> Measurement:
    """Measure how complex the function inside a model is over the points of a grid.

    Parameters
    ----------
    model : nn.Module
        Any module with one tensor as input. It is run in evaluation mode and left as it was, also when this fails. Its forward
        hooks run, as in any forward pass. It must not be trained by another thread meanwhile.
    grid : Tensor or ndarray of shape (n_points, ...), or the result of lmn.box, lmn.plane or lmn.line
        The model's inputs, of any dtype that it takes. A tensor must have the model's dtype and device where it is floating;
        an array and a regular grid are converted to them.
    tap : str, optional
        Name of a submodule (as in ``model.named_modules()``): samples are then its outputs, and the function measured is that
        from there to the model's output. Needed where inputs are integers. Default: the inputs themselves.
    metrics : sequence of {"lmn"}, optional
        What to measure. Default: all.
    select : callable, optional
        Picks a tensor with the batch first from the model's output, e.g. ``lambda out: out.logits[:, -1]``. Not needed for
        a tensor, or an output with ``.logits`` or the key "logits".
    backend : {"auto", "cpp", "numba", "torch", "reference"}
        What computes it; see :func:`lmn.available_backends`. A backend that is named is used or raises.
    m : int, at least 3
        Points a segment.
    max_points : int or None
        The LMN costs n_points²: of a larger grid, a random sample of so many points is measured (``n_sampled``, ``indices``),
        and the LMN is that of the sample. None: all points, whatever it takes.
    seed : int
        Of that sample's own random generator.
    connectivity : bool
        Keep the connectivity matrix in the result.
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
    known = metrics is None or (isinstance(metrics, Sequence) and len(metrics) > 0 and all(name in METRICS for name in metrics))
    if not known or isinstance(metrics, str):
        raise LmnError(f"metrics is a sequence of names out of {METRICS}; got {metrics!r}.")
    points = as_grid(grid)
    indices = _sample(points.n_points, max_points, seed)
    with Subject(model, points, tap=tap, select=select) as subject:
        found = compute(subject, indices, backend=backend, m=m, threads=threads, progress=progress, dtype=torch.float64)
    matrix = found.matrix.clone() if connectivity else None
    eigenvalues = eigenvalues_in_place(found.matrix.cpu().numpy())
    complexity = nonlinear_complexity(eigenvalues)
    notes = list(found.notes)
    if indices is not None:
        notes.append(
            f"the LMN of a random sample of {len(indices)} of the grid's {points.n_points} points (max_points), not of the grid"
        )
    return Measurement(
        lmn=float(np.exp2(complexity)),
        nonlinear_complexity=complexity,
        n_points=points.n_points,
        n_sampled=len(indices) if indices is not None else None,
        eigenvalues=eigenvalues,
        connectivity=matrix,
        indices=indices,
        m=m,
        backend=found.backend,
        path=found.path,
        dtype=found.dtype,
        n_redone=found.n_redone,
        elapsed=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _sample(n_points: int, max_points: int | None, seed: int) -> Tensor | None:
    """The indices of the points to take, ascending, or None for all."""
    if max_points is None or n_points <= whole_number(max_points, "max_points (or None)", 1):
        return None
    seed = whole_number(seed, "seed", 0)
    drawn = np.random.default_rng(seed).choice(n_points, max_points, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn))
