"""The local maps of a network on a grid: at its points, at one point of each distinct pattern, or of its exact regions.

A map is computed once, whatever the number of points that have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lmn.activation_patterns import observe
from lmn.errors import LmnError
from lmn.exact_regions import ExactRegions
from lmn.grid import RegularGrid
from lmn.kernels.activations import Activation
from lmn.kernels.patterns.bits import words_of
from lmn.kernels.program import Program
from lmn.local_maps import CHECKED, Differentiated, differentiated, own_derivatives
from lmn.lowering import NotAChain
from lmn.memory import working_bytes
from lmn.observed_regions import ObservedRegions
from lmn.partition import Array, Regions
from lmn.regions import find, is_geometric
from lmn.subject import Subject, spread

_WORTH_REGIONS = 4096  # points, from which on regions are looked for without being asked
_WORTH_PATTERNS = 64
_WORTH_SWEEPS = 4
MOST_REGIONS = 1_000_000  # that are looked for without being asked
_PROBED = 512  # points by which it is seen whether patterns repeat
_REPEATED = 8  # points a pattern, from which on a look at all patterns pays for a kernel that knows the chain
_PART_BYTES = 1 << 22
_GRAM_BYTES = 1 << 24
_LEAST_GRAM = {torch.float32: 1e-30, torch.float64: 1e-250}  # below which squares lose digits, or all of them
_LEAST_PART, _LARGEST_PART, _LARGEST_PART_ON_GPU = 1 << 7, 1 << 16, 1 << 20


@dataclass(eq=False)
class MapSource:
    """Local maps, and the points that have them.

    Attributes
    ----------
    subject : Subject
    found : Differentiated or None
        None where the maps are those of regions.
    n_maps : int
    weights : Tensor of shape (n_maps,), float64
        The share of the points, or of the domain, that has each; they sum to 1.
    repeated : Tensor of shape (n_points,), int64, or None
        Which map each point has, where maps were found to repeat among the points.
    representatives : Tensor of shape (n_maps,), int64, or None
        The point at which each map is taken, where not every point has its own.
    regions : ExactRegions or None
        Of a box, whose maps are taken.
    """

    subject: Subject
    found: Differentiated | None
    n_maps: int
    weights: Tensor
    dtype: torch.dtype
    device: torch.device
    threads: int
    repeated: Tensor | None = None
    representatives: Tensor | None = None
    regions: ExactRegions | None = None

    @property
    def n_out(self) -> int:
        return self._found.n_out if self.regions is None else self.regions.linear_maps.A.shape[1]

    @property
    def n_in(self) -> int:
        return self._found.n_in if self.regions is None else self.regions.linear_maps.A.shape[2]

    @property
    def n_columns(self) -> int:
        """Of a map in isometric coordinates."""
        return self._found.maps.n_columns if self.regions is None else self.n_in

    @property
    def backend(self) -> str:
        """What computes the maps."""
        return self._found.backend if self.regions is None else self.regions.backend

    @property
    def path(self) -> str:
        """How the model was taken."""
        return self._found.path if self.regions is None else "exact regions"

    @property
    def _found(self) -> Differentiated:
        assert self.found is not None
        return self.found

    def parts(
        self, columns: int, memory_limit: int, *, reduced: bool = True, within: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Ranges of maps of so many columns that are held at a time: few, that stay in the cache, where they are reduced."""
        each = max(1, self.n_out * columns * self.dtype.itemsize)
        most = self._largest_part if not reduced else max(_LEAST_PART, working_bytes(self.device, _PART_BYTES) // each)
        yield from self._ranges(within or (0, self.n_maps), min(most, memory_limit // (4 * each)))

    def gram_parts(self, memory_limit: int) -> Iterator[tuple[int, int]]:
        """Ranges of maps whose samples and Gram matrices are held at a time."""
        each = self.n_in * self.dtype.itemsize + 4 * 8 * min(self.n_out, self.n_in) ** 2
        yield from self._ranges((0, self.n_maps), min(working_bytes(self.device, _GRAM_BYTES), memory_limit // 2) // each)

    @property
    def _largest_part(self) -> int:
        """On a GPU, where around each part there are some thirty launches and a wait."""
        return _LARGEST_PART if self.device.type == "cpu" else _LARGEST_PART_ON_GPU

    def _ranges(self, within: tuple[int, int], most: int) -> Iterator[tuple[int, int]]:
        rows = max(1, min(self._largest_part, most))
        for first in range(*within, rows):
            yield first, min(first + rows, within[1])

    @property
    def has_grams(self) -> bool:
        """Whether inner products are to be had without the maps."""
        return self.regions is None and self._found.maps.has_grams(self.dtype)

    def grams(self, first: int, last: int) -> Tensor | None:
        """The smaller of A A' and A' A, (n, k, k), float64; None where some are no numbers, or lost all digits."""
        samples = self.samples(first, last)
        grams = self._found.maps.grams(samples)
        total = grams.diagonal(dim1=1, dim2=2).sum(1)
        small = total < _LEAST_GRAM[self.dtype]
        wrong, some_small = torch.stack([~torch.isfinite(total).all(), small.any()]).tolist()
        if wrong:  # which has to be told of, or are squares of numbers that are large
            return None
        if some_small and bool(self._found.maps.isometric(samples[small]).any()):
            return None
        return grams

    def samples(self, first: int, last: int) -> Tensor:
        """The points at which maps are taken, (n, ...)."""
        indices = torch.arange(first, last, device="cpu") if self.representatives is None else self.representatives[first:last]
        return self.subject.samples(indices)

    def maps(self, first: int, last: int, *, double: bool = False) -> Tensor:
        """A of some maps, (n, n_out, n_in), in the samples' dtype or in float64."""
        if self.regions is not None:
            a = torch.from_numpy(self.regions.linear_maps.A[first:last])
            return a.to(self.device, torch.float64 if double else self.dtype)
        samples = self.samples(first, last)
        return self._finite(self._found.maps.jacobians(samples.double() if double else samples), first)

    def isometric(self, first: int, last: int) -> Tensor:
        """The maps in coordinates of the inputs in which there are fewer, (n, n_out, n_columns); see ``LocalMaps``."""
        if self.regions is not None:
            return self.maps(first, last)
        return self._finite(self._found.maps.isometric(self.samples(first, last)), first)

    def empty(self, *shape: int) -> Tensor:
        """Room for something of each map."""
        return torch.empty(self.n_maps, *shape, dtype=self.dtype, device=self.device)

    @cached_property
    def gather(self) -> Tensor | None:
        """Which map each point has, (n_points,), whole numbers; None: point i has map i, where it is asked for."""
        if self.regions is None:
            return self.repeated
        return torch.from_numpy(self.regions.labels(self._counts, ends=True)).flatten().to(self.device)

    def at_points(self, values: Tensor) -> Tensor:
        """Of each map, (n_maps, ...), to of each point, (n_points, ...)."""
        if self.regions is not None:
            painted = torch.from_numpy(self.regions._at_points(values.cpu().numpy(), self._counts))
            return painted.flatten(0, len(self._counts) - 1).to(values.device)
        if self.repeated is None:
            return values
        if values.device.type != "cpu":
            return values[self.repeated]
        return torch.from_numpy(values.numpy().take(self.repeated.numpy(), axis=0))  # five times as fast as torch's

    @property
    def _counts(self) -> tuple[int, ...]:
        return cast(RegularGrid, self.subject.grid).counts

    def _finite(self, maps: Tensor, first: int) -> Tensor:
        if maps.numel():
            low, high = torch.aminmax(maps)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                bad = (~torch.isfinite(maps.flatten(1)).all(1)).nonzero()[:, 0]
                point = int(bad[0]) + first
                point = point if self.representatives is None else int(self.representatives[point])
                raise LmnError(
                    f"{len(bad)} of {len(maps)} Jacobians are not finite (NaN, infinity), the first at point {point}; is the "
                    "training diverged, or has an operation (sqrt or norm at zero) no derivative at the point?"
                )
        return maps

    def offsets(self, first: int, last: int, a: Tensor) -> Tensor:
        """c = f(x) - A x of the maps A, (n, n_out), in float64 where the model can be had in it, and in the dtype of A."""
        if self.regions is not None:
            return torch.from_numpy(self.regions.linear_maps.c[first:last]).to(a)
        network, samples = self.subject.network, self.samples(first, last)
        dtype = samples.dtype if network.single_inside else torch.float64
        parts = [network.tail(part.to(dtype, copy=True)) for part in samples.split(network.batch)]
        x = samples.flatten(1).double()
        # A again in float64: what is left of f(x) is a small difference.
        exact = a.double() if network.single_inside or a.dtype == torch.float64 else self.maps(first, last, double=True)
        return (torch.cat(parts).double() - torch.einsum("nki,ni->nk", exact, x)).to(a)


def map_source(
    subject: Subject,
    *,
    backend: str,
    threads: int,
    progress: bool,
    of_domain: bool = False,
    shared: bool = True,
    known: Regions | None = None,
) -> MapSource:
    """Where the local maps of an open subject come from.

    Parameters
    ----------
    of_domain : bool
        What is asked is a number of the domain, for which the weights of maps are enough, and not of each point.
    shared : bool
        Whether a map may be computed once for many points. Those of other backends than "triton", where they are named, are
        taken at every point.
    known : Regions, optional
        The subject's, if they were found before.
    """
    n_points = subject.grid.n_points
    example = subject.samples(spread(n_points, CHECKED))

    def source(
        found: Differentiated | None, n_maps: int, weights: Tensor | None = None, **rest: Tensor | ExactRegions | None
    ) -> MapSource:
        shares = torch.full((n_maps,), 1 / n_maps, dtype=torch.float64, device="cpu") if weights is None else weights.double()
        return MapSource(subject, found, n_maps, shares, example.dtype, example.device, threads, **rest)  # type: ignore[arg-type]

    on_cpu = example.device.type == "cpu"
    regions = _regions(subject, threads, of_domain, known, on_cpu) if shared and backend == "auto" else None
    if regions is not None:
        volumes = torch.from_numpy(regions.volumes)
        return source(None, regions.count, volumes / volumes.sum(), regions=regions)
    found = differentiated(subject.network, example, backend, threads)
    repeated = (
        _patterns(subject, found, backend, threads, of_domain, known, progress)
        if shared and backend in ("auto", "triton") and found.path != "whole model" and n_points >= _WORTH_PATTERNS
        else None
    )
    if repeated is not None:
        representatives, counts, ids = repeated
        weights = torch.from_numpy(counts / n_points)
        return source(found, len(counts), weights, repeated=ids, representatives=torch.from_numpy(representatives))
    return source(found, n_points)


def _regions(subject: Subject, threads: int, of_domain: bool, known: Regions | None, on_cpu: bool) -> ExactRegions | None:
    """The regions of a box, where they are known or worth a search; else None."""
    grid = subject.grid
    if not isinstance(grid, RegularGrid) or grid.kind != "box" or not is_geometric(subject):
        return None
    regions = known if isinstance(known, ExactRegions) else None
    if regions is None:
        # A chain's are found faster than its points are run, but by a GPU; others only where they are asked for.
        fast = on_cpu and not isinstance(subject.network.chain(), NotAChain)
        worth = of_domain or (fast and grid.n_points >= _WORTH_REGIONS)
        if not worth or not _is_piecewise_linear(subject):
            return None
        try:
            most = MOST_REGIONS if of_domain else grid.n_points
            regions = cast(ExactRegions, find(subject, max_regions=most, threads=threads, progress=False))
        except LmnError:  # more of them than points
            return None
    # Their maps are the model's derivatives unless parts of it are detached, or have derivatives of their own.
    some = spread(regions.count).numpy()
    inputs = torch.from_numpy(regions.inputs(regions.points[some])).to(subject.samples(spread(1)).device)
    for samples in (inputs, subject.like_model(inputs)):
        if samples.dtype == torch.float32 or not subject.network.single_inside:
            try:
                own = own_derivatives(subject.network, samples)
            except LmnError:  # of a model that has none in float64, or none at all, which is then said by what looks for them
                continue
            return regions if own.are_of(torch.from_numpy(regions.linear_maps.A[some])) else None
    return None


def _is_piecewise_linear(subject: Subject) -> bool:
    steps = subject.network.chain()
    if isinstance(steps, NotAChain):
        return piecewise_linear_program(subject) is not None
    return all(step.piecewise_linear for step in steps if isinstance(step, Activation))


def _patterns(
    subject: Subject,
    found: Differentiated,
    backend: str,
    threads: int,
    of_domain: bool,
    known: Regions | None,
    progress: bool,
) -> tuple[Array, Array, Tensor | None] | None:
    """A point of each distinct map, how many have it, and which each point has; None where patterns are not worth a look."""
    is_chain = found.path == "chain"
    # A kernel that knows the chain takes a sweep in about the time in which torch takes a forward pass.
    if is_chain and min(found.n_in, found.n_out) < _WORTH_SWEEPS:
        return None
    program = piecewise_linear_program(subject)
    if program is None or (is_chain and not _repeated(program, subject, threads)):
        return None
    if of_domain and isinstance(known, ObservedRegions):
        first = known.first
        if not words_of(program, subject.samples(torch.from_numpy(first)), threads, first)[:, -1].any():
            return first, known.counts, None
    # Of points on the edge of theirs torch's slopes are another map, each its own.
    seen = observe(subject, backend=backend, ids=True, edges_apart=True, threads=threads, progress=progress).patterns
    assert seen.ids is not None
    return seen.first, seen.counts, torch.from_numpy(seen.ids).to(subject.samples(spread(1)).device)


def piecewise_linear_program(subject: Subject) -> Program | None:
    """The network as steps, in the samples' dtype, where it is piecewise linear and is known to be."""
    try:
        return subject.network.program(subject.samples(spread(1)).dtype)
    except LmnError:
        return None


def _repeated(program: Program, subject: Subject, threads: int) -> bool:
    """Whether patterns repeat so much that looking at all of them first is cheaper than a Jacobian at each point."""
    n_points = subject.grid.n_points
    if n_points < 16 * _PROBED:
        return False
    words = words_of(program, subject.samples(spread(n_points, _PROBED)), threads)
    return len(np.unique(words, axis=0)) * _REPEATED <= len(words)
