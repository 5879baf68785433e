"""The regions that a network was seen in, at samples or at the points of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmn.activation_patterns import ActivationPatterns
from lmn.domain import float64
from lmn.errors import LmnError
from lmn.kernels.distinct_maps import Maps
from lmn.kernels.jacobians.torch_eager import from_outputs
from lmn.kernels.patterns.bits import words_of
from lmn.kernels.program import Program
from lmn.kernels.regions.problem import RELATIVE_TOLERANCE
from lmn.kernels.regions.sizes import output_terms, term_sizes
from lmn.partition import Array, LinearMaps, Regions
from lmn.subject import Subject, spread
from lmn.wording import counted

# A share of the points that have a region of their own from which a count measures the sample more than the network.
_NEARLY_EVERY = 0.9

ROUNDING = 1e-12  # of the terms of c, which is f(x) - A x
_PROBED = 64  # points at which terms are looked at
_REGIONS_AT_A_TIME = 1024  # that are looked at again


class LookedUp(NamedTuple):
    """What points are looked up with again."""

    subject: Subject
    program: Program
    words_at: Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class ObservedRegions(Regions):
    """The distinct activation patterns at points: a lower bound of the regions there are.

    But for rounding: a unit that is zero on all of a region, as the difference of equal results, is above zero at some points
    of it and below at others; so is the largest of equal results. Such regions are counted once for each pattern seen.

    Attributes
    ----------
    n_points : int
    counts : ndarray of shape (count,), int64
        Points in each region.
    first : ndarray of shape (count,), int64
        The first point in each, by which regions are ordered.
    points : ndarray of shape (count, ...), float64
        Those points: inputs, or activations at the tap.
    linear_maps : LinearMaps
        A is (count, n_out, n_in): ∂f/∂x at that point; c = f(x) - A x. Computed when it is first asked for.
    coverage : float
        Good-Turing: the share of the distribution, from which the points are independent draws, that lies in the regions seen.
    lower_bound : float
        Chao1: of the number of regions with a share of it, seen or not.
    limited_by_points : bool
        Nearly every point has a region of its own: the count tells how many points there are.
    """

    found: ActivationPatterns
    regular: bool
    looked_up: LookedUp | None
    elapsed: float

    exact: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the model and its samples: what was asked for before is in it."""
        return self.__dict__ | {"looked_up": None}

    @property
    def count(self) -> int:
        return len(self.found.counts)

    @property
    def n_points(self) -> int:
        return self.found.n_points

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.found.layers

    @property
    def patterns(self) -> np.ndarray[Any, Any]:
        return self.found.words

    @property
    def counts(self) -> np.ndarray[Any, Any]:
        return self.found.counts

    @property
    def first(self) -> np.ndarray[Any, Any]:
        return self.found.first

    @cached_property
    def count_after_each_layer(self) -> tuple[int, ...]:
        return self.found.count_after_each_layer

    @property
    def coverage(self) -> float:
        return self.found.coverage

    @property
    def lower_bound(self) -> float:
        return self.found.lower_bound

    @property
    def limited_by_points(self) -> bool:
        return self.count >= _NEARLY_EVERY * self.n_points

    @cached_property
    def points(self) -> Array:
        return np.concatenate([part.double().cpu().numpy() for part in self._samples()])

    @property
    def _looked_up(self) -> LookedUp:
        if self.looked_up is None:
            raise LmnError(
                "the points of observed regions are looked up in the model and its samples, which a pickle does not have; "
                "ask for points and linear_maps before pickling, and locate points with the original."
            )
        return self.looked_up

    def _samples(self) -> Iterator[Tensor]:
        """The first points of the regions, some at a time: looked up again, and checked to have the patterns that they had."""
        subject, _, words_at = self._looked_up
        parts = -(-self.count // _REGIONS_AT_A_TIME)
        for indices, patterns in zip(np.array_split(self.first, parts), np.array_split(self.patterns, parts), strict=True):
            with subject.network.reading():
                samples = subject.samples(torch.from_numpy(indices))
                same = np.array_equal(words_at(indices), patterns)
            if not same:
                raise LmnError(
                    "the model before the tap, or the samples, have changed since these regions were observed, and the points "
                    "are looked up when they are asked for; ask for points, linear_maps and locate before it is trained on."
                )
            yield samples

    @cached_property
    def linear_maps(self) -> LinearMaps:
        double = self._looked_up.program.in_dtype(torch.float64)
        a, c = zip(*(_maps(double, samples.double()) for samples in self._samples()), strict=True)
        return LinearMaps(np.concatenate(a), np.concatenate(c))

    @cached_property
    def _compared(self) -> Maps:
        a, c = self.linear_maps
        x = torch.from_numpy(self.points)
        program, device = self._looked_up.program.in_dtype(torch.float64), next(self._samples()).device
        sizes = term_sizes(program, x[spread(len(x), _PROBED)].to(device), x.abs().amax(0, keepdim=True).to(device))
        largest = float(x.abs().max()) or 1.0
        flat = x.reshape(self.count, -1).numpy()
        ax = np.einsum("nki,ni->nk", a, flat)
        terms = np.linalg.norm(ax, axis=1) + np.linalg.norm(ax + c, axis=1)  # of which c is a difference
        error = np.full(self.count, RELATIVE_TOLERANCE * output_terms(sizes).a)
        return Maps(a.reshape(self.count, -1) * largest, c, error, np.maximum(error, ROUNDING * terms))

    def locate(self, inputs: Any) -> np.ndarray[Any, Any]:
        """The regions of points, shape (n, ...), as (n,) int64; -1 for one whose pattern was not seen."""
        example = next(self._samples())
        x = torch.from_numpy(float64(inputs)).to(example)
        if x.shape[1:] != example.shape[1:]:
            shape = ", ".join(map(str, example.shape[1:]))
            raise LmnError(f"locate takes points of shape (n, {shape}); got {tuple(x.shape)}.")
        known = {row.tobytes(): region for region, row in enumerate(self.patterns)}
        with torch.no_grad():
            parts = [words_of(self._looked_up.program, part, 1) for part in x.split(_REGIONS_AT_A_TIME) if len(part)]
        words = np.concatenate([self.patterns[:0], *parts])
        found = np.array([known.get(row.tobytes(), -1) for row in words], dtype=np.int64)
        found[~torch.isfinite(x).flatten(1).all(1).cpu().numpy()] = -1
        return found

    def to_dict(self) -> dict[str, float]:
        layers = {f"observed_regions_after_layer_{index}": float(n) for index, n in enumerate(self.count_after_each_layer)}
        unseen = {
            "observed_regions_coverage": self.coverage,
            "observed_regions_lower_bound": self.lower_bound,
            "observed_regions_limited_by_points": float(self.limited_by_points),
        }
        return {"observed_regions": float(self.count), **layers, **unseen}

    def __str__(self) -> str:
        after = ", ".join(map(str, self.count_after_each_layer))
        # A regular grid's points are no independent draws, of which alone these are estimates.
        unseen = f"coverage {self.coverage:.1%}, at least {self.lower_bound:.0f} by Chao1; " if not self.regular else ""
        lines = [
            f"{counted(self.count, 'activation region')} observed at {counted(self.n_points, 'point')}",
            f"{unseen}after each layer {after}; {self.elapsed:.2f} s",
        ]
        if self.limited_by_points:
            lines.append("nearly every point has a region of its own: the count measures how many points there are")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"ObservedRegions(count={self.count}, at {counted(self.n_points, 'point')})"


def _maps(program: Program, samples: Tensor) -> tuple[Array, Array]:
    """A = ∂f/∂x, (n, n_out, n_in), and c = f(x) - A x, by one backward pass an output."""
    a, y = from_outputs(program, samples)
    c = y - torch.einsum("nki,ni->nk", a, samples.flatten(1))
    return a.cpu().numpy(), c.cpu().numpy()
