"""How much local maps agree: between two models, or between neighbouring points of one."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmn.errors import LmnError, thread_count
from lmn.grid import RegularGrid, as_grid
from lmn.map_source import MapSource, map_source
from lmn.memory import in_bytes, limit_for_maps
from lmn.preserve import alone_with
from lmn.progress import progress_bar
from lmn.reductions import of_a_size
from lmn.selection import Select
from lmn.subject import Subject
from lmn.submodules import unwrapped

_ROWS = 1024  # samples whose nearest ones are looked for at a time
_PAIRS = 1 << 17  # of neighbours, compared at a time
_WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DistributedDataParallel put before a model's own names
_MOST_LINES, _LONGEST_LINE = 3, 160  # of torch's message


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
    with those of its neighbours, averaged: its mean over all points is what is called geometric coherence here. Both names are
    used for several quantities in the literature; these are the definitions here.

    With a tap, each model's maps are taken at its own activations, those that it has at the same points of the grid.

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
    with _alone_with(model, other), Subject(model, grid, **options) as subject:  # type: ignore[arg-type]
        if other is None:
            source = map_source(subject, backend=backend, threads=threads, progress=progress)
            return _between_neighbours(source, memory_limit, progress)
        with Subject(_other(model, other), grid, **options) as second:  # type: ignore[arg-type]
            one, two = (
                map_source(each, backend=backend, threads=threads, progress=progress, shared=False)
                for each in (subject, second)
            )
            return _between_models(one, two, memory_limit, progress)


@contextmanager
def _alone_with(*models: Any) -> Iterator[None]:
    """Both models at once, in an order that is the same for every thread: none has one and waits for the other."""
    modules = {id(module): module for module in (unwrapped(each) for each in models if isinstance(each, nn.Module))}
    with ExitStack() as locks:
        for _, module in sorted(modules.items()):
            locks.enter_context(alone_with(module))
        yield


def _other(model: nn.Module, other: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    if not isinstance(other, Mapping):
        return other
    snapshot = copy.deepcopy(unwrapped(model))
    try:
        snapshot.load_state_dict(_by_own_names(other, snapshot))
    except (RuntimeError, TypeError) as error:
        lines = [textwrap.shorten(line, _LONGEST_LINE) for line in str(error).splitlines()]
        why = " ".join(lines[1 : 1 + _MOST_LINES] or lines)  # the first only names the class
        raise LmnError(f"other= is no state dict of this model ({why}); give model.state_dict().") from error
    return snapshot


def _by_own_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of the model, or of wrappers around it, by the model's own names."""
    own = model.state_dict()
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"a key is {name!r}, no name")
        if not isinstance(value, Tensor) and isinstance(own.get(name, torch.empty(0)), Tensor):
            raise TypeError(f"{name!r} is {type(value).__name__}, no tensor")
    candidates = [dict(state)]
    while prefix := next((p for p in _WRAPPERS if candidates[-1] and all(n.startswith(p) for n in candidates[-1])), ""):
        candidates.append({name.removeprefix(prefix): value for name, value in candidates[-1].items()})
    return max(candidates, key=lambda names: len(own.keys() & names.keys()))  # as given where that is as good


def _between_models(one: MapSource, two: MapSource, memory_limit: float | None, progress: bool) -> Tensor:
    sizes = [(each.n_out, each.n_in) for each in (one, two)]
    if sizes[0] != sizes[1]:
        raise LmnError(
            f"the models' maps are {sizes[0][0]} x {sizes[0][1]} and {sizes[1][0]} x {sizes[1][1]}, and only equal sizes can "
            "be aligned; pick matching outputs with select=, or taps of one width."
        )
    limit, cosines = limit_for_maps(one, memory_limit), []
    with progress_bar(one.n_maps, "alignment", "point", progress) as bar:
        for first, last in one.parts(2 * one.n_in, limit):
            cosines.append(_cosine(*(_unit(each.maps(first, last)) for each in (one, two))).to(one.dtype))
            bar.update(last - first)
    return torch.cat(cosines)


def _between_neighbours(source: MapSource, memory_limit: float | None, progress: bool) -> Tensor:
    grid = source.subject.grid
    if grid.n_points < 2:
        raise LmnError("a single point has no neighbour; give more points, or another model to compare with.")
    limit = limit_for_maps(source, memory_limit)
    units = _all_units(source, limit, progress)
    if isinstance(grid, RegularGrid):
        return _along_axes(units, source, grid.counts, limit).to(source.dtype)
    indices = torch.arange(grid.n_points, device=source.device)
    rows = max(1, min(_ROWS, math.isqrt(limit // 64), limit // (64 * source.n_in)))
    nearest = torch.cat([_nearest(source.subject, part, rows) for part in indices.split(rows)])
    return _cosines(units, source, indices, nearest, limit).to(source.dtype)


def _all_units(source: MapSource, limit: int, progress: bool) -> Tensor:
    """All maps as vectors of unit norm, (n_maps, n_out * n_columns)."""
    width = source.n_out * source.n_columns
    size = source.n_maps * width * source.dtype.itemsize
    if size > limit:
        raise LmnError(
            f"the {source.n_maps} maps take {in_bytes(size)}, and the memory limit is {in_bytes(limit)}; take fewer points or "
            "outputs, or raise memory_limit."
        )
    units = torch.empty(source.n_maps, width, dtype=source.dtype, device=source.device)
    with progress_bar(source.n_maps, "Jacobians", "map", progress) as bar:
        for first, last in source.parts(2 * source.n_columns, limit):
            units[first:last] = _unit(source.isometric(first, last))
            bar.update(last - first)
    return units


def _cosines(units: Tensor, source: MapSource, i: Tensor, j: Tensor, limit: int) -> Tensor:
    """Of the maps at points i with those at points j, (n,), float64; some pairs at a time."""
    pairs = max(1, min(_PAIRS, limit // (8 * units[0].nbytes)))
    found = torch.empty(len(i), dtype=torch.float64, device=units.device)
    for first in range(0, len(i), pairs):
        part = slice(first, first + pairs)
        a, b = (at[part] if source.gather is None else source.gather[at[part]].long() for at in (i, j))
        found[part] = _cosine(units[a], units[b])
    return found


def _along_axes(units: Tensor, source: MapSource, counts: tuple[int, ...], limit: int) -> Tensor:
    """Of each point of a regular grid, the mean over the next points along each axis, both ways, (n_points,), float64."""
    places = torch.arange(math.prod(counts), device=units.device).reshape(counts)
    total = torch.zeros(counts, dtype=torch.float64, device=units.device)
    number = torch.zeros_like(total)
    for axis, n in enumerate(counts):
        here, there = (places.narrow(axis, first, n - 1) for first in (0, 1))
        cosines = _cosines(units, source, here.flatten(), there.flatten(), limit).reshape(here.shape)
        for first in (0, 1):
            total.narrow(axis, first, n - 1).add_(cosines)
            number.narrow(axis, first, n - 1).add_(1)
    return (total / number).flatten()


def _nearest(subject: Subject, indices: Tensor, rows: int) -> Tensor:
    """For each of some samples, the nearest other one: the first of equally near ones.

    In float64, of the samples' differences: near ones far from the origin differ by less than products in float32 can tell.
    """
    here = subject.samples(indices.cpu()).flatten(1).double()
    best = torch.full((len(here),), torch.inf, dtype=here.dtype, device=here.device)
    nearest = torch.zeros(len(here), dtype=torch.int64, device=here.device)
    for others in torch.arange(subject.grid.n_points, device="cpu").split(rows):
        there = subject.samples(others).flatten(1).double()
        distance = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")
        distance[indices[:, None] == others.to(here.device)] = torch.inf
        least, place = distance.min(1)
        nearer = least < best
        best, nearest = torch.where(nearer, least, best), torch.where(nearer, others.to(here.device)[place], nearest)
    return nearest


def _unit(maps: Tensor) -> Tensor:
    """Maps as vectors of unit norm, (n, n_out * n_in); zeros stay zeros."""
    flat = of_a_size(maps)[0].flatten(1)
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / torch.where(norms > 0, norms, 1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    both_zero = ~(a.any(1) | b.any(1))
    return torch.where(both_zero, 1.0, (a * b).sum(1, dtype=torch.float64).clamp(-1, 1))
