"""The largest of several values: max pooling, and the maximum of results or along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Windows:
    """Each output is the largest value of a window, or the smallest.

    Attributes
    ----------
    members : ndarray of shape (n_windows, size), int64
        The units in each window, as positions in the flattened sources one after the other; -1 where a window has fewer.
    sign : {1, -1}
        1: the largest; -1: the smallest.
    where : str
        Where in its model it is, for messages.
    """

    members: np.ndarray
    sign: int
    where: str

    @property
    def bits_each(self) -> int:
        """Bits that tell which member of a window is the largest: the first of equal ones."""
        return max(1, int(self.members.shape[1] - 1).bit_length())

    @property
    def n_bits(self) -> int:
        """Of a pattern."""
        return len(self.members) * self.bits_each

    @property
    def n_lines(self) -> int:
        """Members are numbered window by window; where one takes over from another there is a line."""
        return int(self.members.size)


def pooling(
    shape: Sequence[int], out_shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """The windows of max pooling over the last axes of ``shape``, (n_windows, size), as numbers of flattened values."""
    places, inside = [], []  # by axis: (outputs, kernel positions)
    for size, n_out, k, s, p, d in zip(
        shape[-len(kernel) :], out_shape[-len(kernel) :], kernel, stride, padding, dilation, strict=True
    ):
        at = np.arange(n_out)[:, None] * s - p + np.arange(k) * d
        places.append(at)
        inside.append((at >= 0) & (at < size))
    return _windows(shape, places, inside)


def adaptive_pooling(shape: Sequence[int], out_shape: Sequence[int], n_axes: int) -> np.ndarray:
    """The windows of adaptive max pooling over the last ``n_axes`` axes."""
    places, inside = [], []
    for size, n_out in zip(shape[-n_axes:], out_shape[-n_axes:], strict=True):
        starts = np.arange(n_out) * size // n_out
        stops = -(-(np.arange(n_out) + 1) * size // n_out)
        at = starts[:, None] + np.arange((stops - starts).max())
        places.append(at)
        inside.append(at < stops[:, None])
    return _windows(shape, places, inside)


def along(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """The windows of a maximum over axes (of a sample's shape)."""
    positions = np.arange(int(np.prod(shape))).reshape(tuple(shape))
    axes = [axis % len(shape) for axis in axes]
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    return positions.transpose(*kept, *axes).reshape(int(np.prod([shape[axis] for axis in kept])), -1)


def elementwise(n_values: int, n_sources: int) -> np.ndarray:
    """The windows of the maximum of several results of one shape."""
    return np.arange(n_sources * n_values).reshape(n_sources, n_values).T


def _windows(shape: Sequence[int], places: list[np.ndarray], inside: list[np.ndarray]) -> np.ndarray:
    n_axes = len(places)
    channels = int(np.prod(shape[:-n_axes]))
    outputs, kernels = [p.shape[0] for p in places], [p.shape[1] for p in places]
    index = np.zeros((*outputs, *kernels), dtype=np.int64)
    valid = np.ones((*outputs, *kernels), dtype=bool)
    for axis, (at, ok) in enumerate(zip(places, inside, strict=True)):
        broadcast = [1] * (2 * n_axes)
        broadcast[axis], broadcast[n_axes + axis] = at.shape
        index = index * shape[len(shape) - n_axes + axis] + at.reshape(broadcast)
        valid &= ok.reshape(broadcast)
    flat = np.where(valid, index, -1).reshape(int(np.prod(outputs)), -1)
    area = int(np.prod(shape[-n_axes:]))
    offset = np.repeat(np.arange(channels) * area, len(flat))[:, None]
    tiled = np.tile(flat, (channels, 1))
    return np.where(tiled >= 0, tiled + offset, -1)
