"""How much local maps agree: between two models, or between neighbouring points of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmn.errors import LmnError, in_short, thread_count
from lmn.grid import RegularGrid, as_grid
from lmn.map_source import MapSource, map_source
from lmn.memory import in_bytes, memory_limit_of
from lmn.progress import progress_bar
from lmn.selection import Select
from lmn.subject import Subject
from lmn.submodules import unwrapped

_ROWS = 1024  # points whose neighbours are looked for at a time


def jacobian_alignment(
    model: nn.Module,
    grid: Any,
    other: nn.Module | Mapping[str, Tensor] | None = None,
    *,
    tap: str | None = None,
    select: Select | None = None,
    backend: str = "auto",
    memory_limit: float | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Tensor:
    """The cosine similarity of local Jacobians at every point of a grid.

    cos(A, B) = <A, B> / (|A| |B|) over all entries: 1 where two maps are multiples of each other; 0 where one of them is zero,
    and 1 where both are.

    Between two models, or two snapshots of one, at the same points: Jacobian alignment. Within one model, of each point's map
    with those of its neighbours, averaged: the mean over all points is a measure of geometric coherence (the name is used for
    several quantities; here it is this one).

    Parameters
    ----------
    model, grid, tap, select, backend, memory_limit, threads, progress
        As for :func:`lmn.jacobians`.
    other : nn.Module or state dict, optional
        A model of as many inputs and outputs; or the values of the model's own parameters and buffers at another moment,
        ``model.state_dict()``. Default: the neighbours in the model itself. On a regular grid these are the next points along
        each axis, both ways; of samples, the nearest other one.

    Returns
    -------
    Tensor of shape (n_points,), in [-1, 1], in the samples' dtype

    Raises
    ------
    LmnError
        A single point without another model; models of other sizes; and what :func:`lmn.jacobians` raises.

    Examples
    --------
    >>> before = {name: value.clone() for name, value in model.state_dict().items()}
    >>> train(model)
    >>> lmn.jacobian_alignment(model, samples, before).mean()
    """
    options = {"tap": tap, "select": select}
    threads = thread_count(threads)
    grid = as_grid(grid)
    with Subject(model, grid, **options) as subject:  # type: ignore[arg-type]
        if other is None:
            source = map_source(subject, backend=backend, threads=threads, progress=progress)
            return _between_neighbours(source, memory_limit, progress)
        with Subject(_other(model, other), grid, **options) as second:  # type: ignore[arg-type]
            one, two = (
                map_source(each, backend=backend, threads=threads, progress=progress, shared=False)
                for each in (subject, second)
            )
            return _between_models(one, two, memory_limit, progress)


def _other(model: nn.Module, other: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    if not isinstance(other, Mapping):
        return other
    snapshot = copy.deepcopy(unwrapped(model))
    try:
        snapshot.load_state_dict(dict(other))
    except RuntimeError as error:
        raise LmnError(f"other= is no state dict of this model ({in_short(error)}); give model.state_dict().") from error
    return snapshot


def _between_models(one: MapSource, two: MapSource, memory_limit: float | None, progress: bool) -> Tensor:
    sizes = [(each.n_out, each.n_in) for each in (one, two)]
    if sizes[0] != sizes[1]:
        raise LmnError(
            f"the models' maps are {sizes[0][0]} x {sizes[0][1]} and {sizes[1][0]} x {sizes[1][1]}, and only equal sizes can "
            "be aligned; pick matching outputs with select=, or taps of one width."
        )
    limit, cosines = memory_limit_of(memory_limit, one.device), []
    with progress_bar(one.n_maps, "alignment", "point", progress) as bar:
        for first, last in one.parts(2 * one.n_in, limit):
            cosines.append(_cosine(*(_unit(each.maps(first, last)) for each in (one, two))).to(one.dtype))
            bar.update(last - first)
    return torch.cat(cosines)


def _between_neighbours(source: MapSource, memory_limit: float | None, progress: bool) -> Tensor:
    n_points, limit = source.subject.grid.n_points, memory_limit_of(memory_limit, source.device)
    size = source.n_maps * source.n_out * source.n_columns * source.dtype.itemsize
    if n_points < 2:
        raise LmnError("a single point has no neighbour; give more points, or another model to compare with.")
    if size > limit:
        raise LmnError(
            f"the {source.n_maps} maps take {in_bytes(size)}, and the memory limit is {in_bytes(limit)}; take fewer points or "
            "outputs, or raise memory_limit."
        )
    with progress_bar(source.n_maps, "Jacobians", "map", progress) as bar:
        parts = []
        for first, last in source.parts(2 * source.n_columns, limit):
            parts.append(_unit(source.isometric(first, last)))
            bar.update(last - first)
    units = torch.cat(parts)
    total = torch.zeros(n_points, dtype=torch.float64, device=source.device)
    count = torch.zeros_like(total)
    for i, j, mutual in _neighbours(source):
        a, b = (at if source.gather is None else source.gather[at].long() for at in (i, j))
        cosine = _cosine(units[a], units[b])
        for at in (i, j) if mutual else (i,):
            total.index_add_(0, at, cosine)
            count.index_add_(0, at, torch.ones_like(cosine))
    return (total / count).to(source.dtype)


def _neighbours(source: MapSource) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Pairs of neighbouring points, some at a time, and whether each is the other's neighbour."""
    grid = source.subject.grid
    if not isinstance(grid, RegularGrid):
        for i in torch.arange(grid.n_points, device=source.device).split(_ROWS):
            yield i, _nearest(source.subject, i), False
        return
    places = torch.arange(grid.n_points, device=source.device).reshape(grid.counts)
    for axis, n in enumerate(grid.counts):
        for first in range(n - 1):
            yield places.select(axis, first).flatten(), places.select(axis, first + 1).flatten(), True


def _nearest(subject: Subject, indices: Tensor) -> Tensor:
    """For each of some samples, the nearest other one: the first of equally near ones."""
    here = subject.samples(indices.cpu()).flatten(1)
    best = torch.full((len(here),), torch.inf, dtype=here.dtype, device=here.device)
    nearest = torch.zeros(len(here), dtype=torch.int64, device=here.device)
    for others in torch.arange(subject.grid.n_points).split(4 * _ROWS):
        distance = torch.cdist(here, subject.samples(others).flatten(1))
        distance[indices[:, None] == others.to(here.device)] = torch.inf
        least, place = distance.min(1)
        nearer = least < best
        best, nearest = torch.where(nearer, least, best), torch.where(nearer, others.to(here.device)[place], nearest)
    return nearest


def _unit(maps: Tensor) -> Tensor:
    """Maps as vectors of unit norm, (n, n_out * n_in); zeros stay zeros."""
    flat = maps.flatten(1)
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / torch.where(norms > 0, norms, 1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    both_zero = ~(a.any(1) | b.any(1))
    return torch.where(both_zero, 1.0, (a * b).sum(1, dtype=torch.float64).clamp(-1, 1))
