"""What every backend is given, and what it gives: the local Jacobians of a tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
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

    @property
    def bias_of_core(self) -> np.ndarray:
        """The bias where the activation is taken without its constant: ``scale * core + slope * z``."""
        return self.bias if self.weight is None else self.bias + self.activation.constant * self.weight.sum(axis=1)


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

    @property
    def units(self) -> list[int]:
        """Of each layer."""
        first = self.n_in if self.first is None else len(self.first[0])
        return [first, *(len(layer.bias) for layer in self.layers[:-1])] if self.layers else []

    @property
    def first_map(self) -> tuple[np.ndarray, np.ndarray]:
        """The affine map before the first activation, the identity where there is none."""
        return (np.eye(self.n_in), np.zeros(self.n_in)) if self.first is None else self.first

    @property
    def from_outputs(self) -> bool:
        """Whether a sweep from the outputs takes no more products than one from the inputs."""
        between = sum(layer.weight.size for layer in self.layers[:-1] if layer.weight is not None)
        first = self.first[0].size if self.first is not None else 0
        last = self.layers[-1].weight.size if self.layers and self.layers[-1].weight is not None else 0
        return self.n_out * (between + first) <= self.n_in * (between + last)

    @cached_property
    def narrowed(self) -> np.ndarray | None:
        """R of the first map W = R' Q', Q with orthonormal columns, (n_columns, n_units), where it is used and has fewer rows
        than W has columns: A = B W is B R' in coordinates in which there are fewer.
        """
        if not self.from_outputs or self.first is None or not self.layers or len(self.first[0]) >= self.n_in:
            return None
        return np.asarray(np.linalg.qr(self.first[0].T, mode="r"))


@dataclass(frozen=True, eq=False)
class Problem:
    """The local Jacobians of a tail.

    Attributes
    ----------
    chain : Chain or None
        The tail's arrays where it is a chain.
    why_no_chain : str
    device, dtype
        The samples'.
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
    device: torch.device
    dtype: torch.dtype
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
    single : bool
        Whether those of float32 samples are computed in float32, though those of float64 samples are not by the same means.
    """

    n_columns: int
    single: bool

    def jacobians(self, samples: Tensor) -> Tensor:
        """(n, ...) to A, (n, n_out, n_in), in the dtype of the samples."""

    def isometric(self, samples: Tensor) -> Tensor:
        """(n, ...) to A Q, (n, n_out, n_columns), the same orthonormal Q for all samples, which all rows of A lie in.

        It has the norms, the singular values and the inner products of A.
        """

    def has_grams(self, dtype: torch.dtype, /) -> bool:
        """Whether ``grams`` may be called with samples of a dtype: where inner products come faster than by the maps."""

    def grams(self, samples: Tensor, /) -> Tensor:
        """(n, ...) to the smaller of A A' and A' A, (n, k, k), float64."""


def smaller_gram(maps: Tensor) -> Tensor:
    """Of maps A, (n, n_out, n_columns), the smaller of A A' and A' A, float64."""
    a = maps if maps.shape[1] <= maps.shape[2] else maps.mT
    return (a @ a.mT).double()
