"""Local Jacobians in bulk: validate, plan, dispatch, reduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmn.backends import check_name
from lmn.errors import LmnError, thread_count
from lmn.grid import as_grid
from lmn.kernels.distinct_maps import DistinctMaps, Maps
from lmn.local_maps import CHECKED
from lmn.map_source import MOST_REGIONS, map_source, piecewise_linear_program
from lmn.memory import in_bytes, limit_for_maps
from lmn.observed_regions import ROUNDING
from lmn.partition import Regions
from lmn.progress import progress_bar
from lmn.reductions import OF_DOMAIN, REDUCTIONS, effective_linear_maps, of_maps
from lmn.regions import TooManyRegions, find
from lmn.selection import Select
from lmn.subject import Subject


def jacobians(
    model: nn.Module,
    grid: Any,
    *,
    tap: str | None = None,
    select: Select | None = None,
    reduce: str | Sequence[str] | None = None,
    offsets: bool = False,
    backend: str = "auto",
    memory_limit: float | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Any:
    """The local Jacobian A(x) = ∂f/∂x of a model at every point of a grid, or what is to be known of it.

    Of a piecewise-linear network A is that of x's activation region; where units are exactly at a breakpoint it has torch's
    slopes there, or, at the points of a box, those of a region beside.

    A map that many points share is computed once. In a box of up to three dimensions the regions of a chain are found by
    geometry (:func:`lmn.regions`), and no point is run where they are fewer than the points; elsewhere a piecewise-linear
    network is looked at for its distinct patterns first. Chains of affine maps and activations are differentiated by a C++
    kernel, other models by torch, from the outputs or from the inputs, whichever takes fewer sweeps. What is read off a model
    is checked against its own derivatives at some points; where these differ, its own reverse mode is used. BatchNorm is taken
    in evaluation mode.

    Parameters
    ----------
    model, grid, tap, select
        As for :func:`lmn.measure`. With a tap, the derivatives are those by its outputs.
    reduce : str or sequence of str, optional
        What to return instead of the Jacobians, which are then never held all at once. Of each point, shape (n_points,):

        - "frobenius_norm", "spectral_norm";
        - "singular_values": (n_points, min(n_out, n_in)), descending;
        - "effective_rank": 2^H, H the entropy in bits of the normalised squared singular values (Roy, Vetterli 2007, there of
          the singular values themselves), 0 for a zero map;
        - "participation_ratio": (Σ σ²)² / Σ σ⁴, 0 for a zero map;
        - "log_determinant": log |det A| of square maps, -inf for singular ones.

        Of the whole grid, a number:

        - "linear_maps", int: distinct maps x → A x + c, two of which are one within a billionth of A's norm or their rounding
          errors; maps that are linked by such pairs are one. Exact regions of a line, a plane or a box count by their own maps,
          whatever the points (on a line or in a plane by their maps along it); elsewhere it is the number of those observed at
          the points, a lower bound. ``backend`` and ``memory_limit`` matter only where the model is not piecewise linear;
        - "effective_linear_maps", float: 2^S, S the entropy in bits of the spectrum of Σ_i w_i a_i a_i', with a_i the
          vectorised map of unit norm and w_i the weight of point i: uniform, or each exact region's share of a box. 1 for an
          affine network, c for c orthogonal maps in equal shares. It costs O(n_points), where the linear mapping number costs
          O(n_points²), and is another number: it compares the maps *at* the points, as directions, whatever their offsets c,
          and nothing in between; LMN asks how straight the network is *between* each two points. Two far regions with one map
          and a wrinkle between them are one map here and two there; small turns of a map count little here, and here alone.
    offsets : bool
        Return (A, c), c = f(x) - A x of shape (n_points, n_out); not with ``reduce``.
    backend : {"auto", "cpp", "triton", "torch", "reference"}
        One that is named takes every point by itself, but "triton" a map that points share once.
    memory_limit : float, optional
        Bytes that the result and what is held at a time may take. Default: half of what is free.
    threads : int, optional
        CPU threads; default ``torch.get_num_threads()``.
    progress : bool

    Returns
    -------
    Tensor of shape (n_points, n_out, n_in), in the samples' dtype and on their device
        Samples and outputs are flattened. With ``reduce``: what is named there, in a dict if it is a sequence of names.

    Raises
    ------
    LmnError
        An output without a derivative (integers, an argmax); samples that influence each other; Jacobians that are not finite,
        or do not fit the memory limit; and what :func:`lmn.measure` raises.

    Examples
    --------
    >>> lmn.jacobians(model, lmn.box([-1, -1], [1, 1], 1024)).shape
    >>> lmn.jacobians(model, samples, reduce="spectral_norm").max()
    >>> lmn.jacobians(model, samples, reduce=("effective_rank", "effective_linear_maps"))
    """
    names = _names(reduce)
    if offsets and names:
        raise LmnError("offsets=True is for the maps themselves; leave out reduce=.")
    check_name("jacobians", backend)
    threads = thread_count(threads)
    with Subject(model, as_grid(grid), tap=tap, select=select) as subject:
        if not names:
            return _stored(subject, offsets, backend, memory_limit, threads, progress)
        found = _reduced(subject, names, backend, memory_limit, threads, progress)
    return found[names[0]] if isinstance(reduce, str) else found


def _reduced(
    subject: Subject, names: tuple[str, ...], backend: str, memory_limit: float | None, threads: int, progress: bool
) -> dict[str, Any]:
    """Reductions by name."""
    found: dict[str, Any] = {}
    known: Regions | None = None
    of_points = tuple(name for name in names if name not in OF_DOMAIN)
    if of_points:
        source = map_source(subject, backend=backend, threads=threads, progress=progress)
        if "log_determinant" in of_points and source.n_in != source.n_out:
            raise LmnError(f"log_determinant is of square maps, and these are {source.n_out} x {source.n_in}; leave it out.")
        with progress_bar(source.n_maps, "Jacobians", "map", progress) as bar:
            values = of_maps(source, of_points, limit_for_maps(source, memory_limit), bar.update)
        found |= {name: source.at_points(each) for name, each in values.items()}
        known = source.regions
    if "linear_maps" in names:
        found["linear_maps"] = linear_maps(subject, known, backend, memory_limit, threads, progress)
    if "effective_linear_maps" in names:
        source = map_source(subject, backend=backend, threads=threads, progress=progress, of_domain=True, known=known)
        with progress_bar(source.n_maps, "Jacobians", "map", progress) as bar:
            found["effective_linear_maps"] = effective_linear_maps(source, limit_for_maps(source, memory_limit), bar.update)
    return {name: found[name] for name in names}


def _stored(
    subject: Subject, offsets: bool, backend: str, memory_limit: float | None, threads: int, progress: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """All maps, and their offsets if asked for."""
    source = map_source(subject, backend=backend, threads=threads, progress=progress)
    limit, n_points = limit_for_maps(source, memory_limit), subject.grid.n_points
    size = n_points * source.n_out * source.n_in * source.dtype.itemsize
    if size > limit:
        raise LmnError(
            f"{n_points} Jacobians of {source.n_out} x {source.n_in} take {in_bytes(size)}, and the memory limit is "
            f"{in_bytes(limit)}; reduce them as they are made (reduce='spectral_norm', say), take fewer points, or raise "
            "memory_limit."
        )
    parts = list(source.parts(source.n_in, limit, reduced=False))
    maps = None if len(parts) == 1 else source.empty(source.n_out, source.n_in)
    c = source.empty(source.n_out) if offsets else None
    with progress_bar(source.n_maps, "Jacobians", "map", progress) as bar:
        for first, last in parts:
            some = source.maps(first, last)
            if c is not None:
                c[first:last] = source.offsets(first, last, some)
            if maps is None:
                maps = some
            else:
                maps[first:last] = some
            bar.update(last - first)
    assert maps is not None
    return (source.at_points(maps), source.at_points(c)) if c is not None else source.at_points(maps)


def linear_maps(
    subject: Subject, known: Regions | None, backend: str, memory_limit: float | None, threads: int, progress: bool
) -> int:
    """The number of distinct maps: of the regions of a piecewise-linear network, or of the points."""
    if known is not None:
        return known.n_linear_maps
    if piecewise_linear_program(subject) is not None:
        try:
            return find(subject, max_regions=MOST_REGIONS, threads=threads, progress=progress).n_linear_maps
        except TooManyRegions as error:
            raise LmnError(
                f"the network has more than {MOST_REGIONS} activation regions here, too many to compare their maps; take a "
                "smaller box or samples, or count effective_linear_maps.",
                short=f"more than {MOST_REGIONS} activation regions",
            ) from error
    if subject.network.single_inside:
        raise LmnError(
            "the model computes in float32 whatever it is given, and its maps can't be told from their rounding errors; count "
            "effective_linear_maps."
        )
    source = map_source(subject, backend=backend, threads=threads, progress=progress)
    distinct, example = DistinctMaps(), source.samples(0, min(source.n_maps, CHECKED))
    largest = float(example.abs().max()) or 1.0
    with progress_bar(source.n_maps, "linear maps", "map", progress) as bar:
        for first, last in source.parts(4 * source.n_in, limit_for_maps(source, memory_limit)):
            a = source.maps(first, last, double=True)
            c = source.offsets(first, last, a)
            ax = torch.einsum("nki,ni->nk", a, source.samples(first, last).flatten(1).double())
            terms = ax.norm(dim=1) + (ax + c).norm(dim=1)  # of which c is a difference
            columns = a.flatten(1) * largest, c, torch.zeros_like(terms), ROUNDING * terms
            distinct.add(Maps(*(x.cpu().numpy() for x in columns)))
            bar.update(last - first)
    return len(distinct)


def _names(reduce: str | Sequence[str] | None) -> tuple[str, ...]:
    if reduce is None:
        return ()
    names = (reduce,) if isinstance(reduce, str) else reduce
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name in REDUCTIONS for name in names):
        raise LmnError(f"reduce is a name, or a sequence of names, out of {REDUCTIONS}; got {reduce!r}.")
    return tuple(dict.fromkeys(names))
