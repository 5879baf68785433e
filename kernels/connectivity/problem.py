"""What every backend is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.activations import Activation, core_values
from lmn.kernels.connectivity.pairs import Pairs

_UNITS_A_BLOCK = 64  # whose cores are held at a time

Progress = Callable[[int], None]  # called with the number of pairs just done


@dataclass(frozen=True, eq=False)
class Layer:
    """An activation and the affine map after it.

    Attributes
    ----------
    z : ndarray of shape (n_hidden, n_points), float64
        The samples' pre-activations: rows of the chain's.
    activation : Activation
    weight : ndarray of shape (n_next, n_hidden), float64, or None
        None after the last activation of a chain that ends in it. Biases act through z and y.
    """

    z: np.ndarray
    activation: Activation
    weight: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Chain:
    """A tail that alternates activations and affine maps, its first affine map already applied to the samples.

    Attributes
    ----------
    layers : tuple of Layer
        None where the tail is affine.
    z : ndarray of shape (n_units, n_points), float64
        The pre-activations of all layers, one below the other. A kernel reads it where it is: with many samples it is large.
    y : ndarray of shape (n_out, n_points), float64
        The samples' outputs, multiplied by ``scale``; so are the last weights. r² does not depend on it.
    scale : ndarray of shape (n_out,), float64
        Powers of two.
    """

    layers: tuple[Layer, ...]
    z: np.ndarray
    y: np.ndarray
    scale: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        """The samples' outputs as they are, shape (n_out, n_points), float64."""
        outputs: np.ndarray = self.y / self.scale[:, None]
        return outputs

    def n_products(self, m: int) -> int:
        """Multiplications of one pair of samples."""
        return (m - 2) * max(1, sum(layer.weight.size for layer in self.layers if layer.weight is not None))

    @cached_property
    def _root_mean_squares(self) -> list[np.ndarray]:
        """Of each layer's cores over the samples, (n_hidden,)."""
        return [_by_unit(layer, lambda core: np.sqrt(np.mean(core**2, axis=1))) for layer in self.layers]

    @cached_property
    def _usual_sizes(self) -> list[np.ndarray]:
        """Of each layer's cores, what nine in ten of the samples at which they are not zero don't pass, (n_hidden,)."""
        return [_by_unit(layer, _of_nine_in_ten) for layer in self.layers]

    def rounding_noise(self, dtype: type[np.floating]) -> np.ndarray:
        """Estimated variance of an output's deviation along a segment from rounding in dtype, shape (n_out,).

        A core at a point is wrong by about two units in the last place of its usual size among the samples; the errors of the
        units are independent and add up through the weights. In float32, where noise only decides what is done again, the
        usual size is the root mean square; in float64, where it decides what is constant, it is one that nine in ten of the
        samples at which the core is not zero don't pass: a few far ones don't make constants of the others.
        """
        ulp = float(np.finfo(dtype).eps) / 2
        noise = np.zeros(len(self.layers[0].z if self.layers else self.y))
        sizes = self._root_mean_squares if dtype == np.float32 else self._usual_sizes
        for layer, size in zip(self.layers, sizes, strict=True):
            scale, slope = layer.activation.by_unit(len(layer.z))
            noise = noise * (np.abs(scale) + np.abs(slope)) ** 2 + (2 * ulp * scale * size) ** 2
            if layer.weight is not None:
                noise = layer.weight**2 @ noise
        return noise


def _by_unit(layer: Layer, size: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A size, (n_hidden,), of a layer's absolute cores at the samples, (units, n_points), some units at a time."""
    act, sizes = layer.activation, np.empty(len(layer.z))
    for first in range(0, len(layer.z), _UNITS_A_BLOCK):
        units = slice(first, first + _UNITS_A_BLOCK)
        sizes[units] = size(np.abs(core_values(act.core, layer.z[units], act.p0, act.p1)))
    return sizes


def _of_nine_in_ten(core: np.ndarray) -> np.ndarray:
    """Of each row, what nine in ten of its values that are not zero don't pass; the values are sorted in place."""
    core.sort(axis=1)
    zeros, last = (core == 0).sum(axis=1), core.shape[1] - 1
    rank = zeros + np.int64(0.9 * (last - zeros).clip(min=0))
    return np.take_along_axis(core, np.minimum(rank, last)[:, None], axis=1)[:, 0]


@dataclass(frozen=True, eq=False)
class Problem:
    """Linear connectivity of a tail over samples.

    Attributes
    ----------
    samples : Tensor of shape (n_points, ...), float32 or float64
        Their dtype is the one that is computed in.
    tail : callable
        (batch, ...) to (batch, n_out), in the dtype of its argument, which it may overwrite.
    y : Tensor of shape (n_points, n_out), float64, on the samples' device
        The samples' outputs, computed in float64 where the tail allows it.
    m : int
        Points a segment, both ends included.
    chain : Chain or None
        The tail's arrays where it is a chain.
    why_no_chain : str
    widest : int
        Values a sample in the widest intermediate result of the tail.
    double : bool
        Whether the tail can be computed in float64.
    threads : int
    batch : int
        Samples that the tail may be given at a time in float64.
    n_rows : int or None
        The pairs asked for are those of the first ``n_rows`` samples with the others; None: all pairs.
    """

    samples: Tensor
    tail: Callable[[Tensor], Tensor]
    y: Tensor
    m: int
    chain: Chain | None
    why_no_chain: str
    widest: int
    double: bool
    threads: int
    batch: int
    n_rows: int | None = None

    @property
    def n_points(self) -> int:
        return len(self.samples)

    @property
    def device(self) -> torch.device:
        return self.samples.device

    @property
    def dtype(self) -> torch.dtype:
        return self.samples.dtype

    @property
    def tolerance_f64(self) -> float:
        """The error of L that a chain kernel may leave in float64."""
        if not self.double:
            return math.inf  # there is nothing better
        return TOLERANCE if self.samples.dtype == torch.float32 else TOLERANCE_F64

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.n_points, self.n_rows)


# A pair whose L is wrong by more than this, by the kernel's own estimate of its float32 rounding, is done again in float64.
TOLERANCE = 2e-6

# The same for float64 samples. A chain's pair that float64 has no better, as where all units are saturated and only torch's own
# functions keep the digits of what is left, is done again by the tail itself.
TOLERANCE_F64 = 1e-10

# An output whose movement along a segment has a root mean square smaller than this, of the output's size there, is constant.
CONSTANT = 1e-14
