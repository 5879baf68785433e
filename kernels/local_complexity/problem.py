"""What every backend is given, and what it finds: how many units bend between the vertices around samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.windows import Windows


@dataclass(frozen=True, eq=False)
class Layer:
    """Units that may bend: a pointwise activation, or maxima.

    Attributes
    ----------
    where : str
        Where in its model it is.
    n_units : int
        Values of an activation, or windows of which the largest member is taken.
    bend : ndarray of shape (n_breakpoints,), float64, or Windows
        A unit is counted where one of the breakpoints is between its pre-activations, or a window's largest member changes.
    smooth : bool
        Whether the activation has no pieces, and its one breakpoint is the sign.
    """

    where: str
    n_units: int
    bend: np.ndarray | Windows
    smooth: bool = False


class Bends(Protocol):
    """A tail that tells what goes into its layers."""

    @property
    def layers(self) -> tuple[Layer, ...]: ...

    def visit(self, samples: Tensor, at_layer: Callable[[int, Tensor], None]) -> None:
        """Run samples, (n, ...), which may be overwritten; tell each layer's number and units, (n, n_units of its sources)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """How many units bend between the vertices x ± step of a cross-polytope around each sample x.

    Attributes
    ----------
    n_points : int
    samples : callable
        Indices, (n,) int64, to those samples, (n, ...).
    device, dtype
        Theirs.
    steps : Tensor of shape (n_directions, n_in), float64, on the CPU
        From a sample to its vertices: orthogonal, of one length.
    chain : Chain or None
        The tail's arrays where it is a chain.
    layers : tuple of Layer
        Of the chain: its activations but for identities, in their order.
    why_no_chain : str
    bends : callable
        The tail in a dtype.
    batch : int
        Samples that the tail may be given at a time.
    double : bool
        Whether the tail can be computed in float64.
    threads : int
    progress : callable
        Called with the number of samples just done.
    """

    n_points: int
    samples: Callable[[np.ndarray], Tensor]
    device: torch.device
    dtype: torch.dtype
    steps: Tensor
    chain: Chain | None
    layers: tuple[Layer, ...]
    why_no_chain: str
    bends: Callable[[torch.dtype], Bends]
    batch: int
    double: bool
    threads: int
    progress: Callable[[int], object]

    def parts(self, most: int) -> Iterator[tuple[slice, Tensor]]:
        """So many samples at a time, with their places; progress is told after each."""
        for first in range(0, self.n_points, most):
            part = slice(first, min(first + most, self.n_points))
            yield part, self.samples(np.arange(part.start, part.stop))
            self.progress(part.stop - part.start)


@dataclass(frozen=True, eq=False)
class Found:
    """What a backend finds.

    Attributes
    ----------
    layers : tuple of Layer
    counts : ndarray of shape (n_points, n_layers), int64
        How many of each layer's units are counted at each sample; below zero where, at a vertex, one of what it takes is not
        finite. The infinity that no maximum is, by which members are masked, may be among what a maximum takes.
    """

    layers: tuple[Layer, ...]
    counts: np.ndarray
