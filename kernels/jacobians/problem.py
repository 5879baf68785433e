"""What every backend is given, and what it gives: the local Jacobians of a tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from lmn.kernels.activations import Activation


@dataclass(frozen=True, eq=False)
class SlopeLayer:
    """An activation and the affine map after it.

    Attributes
    ----------
    activation : Activation
    weight : ndarray of shape (n_next, n_units), float64, or None
        None where the chain ends in this activation.
    bias : ndarray of shape (n_next,), float64
    """

    activation: Activation
    weight: np.ndarray | None
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Chain:
    """Affine maps and activations in turn.

    Attributes
    ----------
    n_in, n_out : int
    first : (weight, bias) or None
        The affine map before the first activation, (n_units, n_in) and (n_units,), float64; None where there is none.
    layers : tuple of SlopeLayer
        Empty where the tail is affine.
    """

    n_in: int
    n_out: int
    first: tuple[np.ndarray, np.ndarray] | None
    layers: tuple[SlopeLayer, ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """The local Jacobians of a tail.

    Attributes
    ----------
    chain : Chain or None
        The tail's arrays where it is a chain and the samples are on the CPU.
    why_no_chain : str
    tail : callable
        (n, ...) to (n, n_out), differentiable, in the dtype of its argument, which it may overwrite.
    n_in, n_out : int
        Values of a sample and of an output.
    batch : int
        Samples that the tail may be given at a time.
    double : bool
        Whether the tail can be computed in float64.
    forward : bool
        Whether the tail may be differentiated from its inputs on, where that takes fewer sweeps.
    threads : int
    """

    chain: Chain | None
    why_no_chain: str
    tail: Callable[[Tensor], Tensor]
    n_in: int
    n_out: int
    batch: int
    double: bool
    forward: bool
    threads: int


class LocalMaps(Protocol):
    """What a backend gives for a problem.

    Attributes
    ----------
    n_columns : int
        Of the Jacobians in isometric coordinates, at most n_in.
    """

    n_columns: int

    def jacobians(self, samples: Tensor) -> Tensor:
        """(n, ...) to A, (n, n_out, n_in), in the dtype of the samples."""

    def isometric(self, samples: Tensor) -> Tensor:
        """(n, ...) to A Q, (n, n_out, n_columns), the same orthonormal Q for all samples, which all rows of A lie in.

        It has the norms, the singular values and the inner products of A.
        """

    def grams(self, samples: Tensor, /) -> Tensor | None:
        """(n, ...) to the smaller of A A' and A' A, (n, k, k), float64; None where the maps have to be made first."""
