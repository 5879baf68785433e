"""Pairs of samples by their numbers, in Triton; as ``Pairs`` numbers them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _before(i, n_points):
    """How many pairs the rows before row i have."""
    return i * (2 * n_points - i - 1) // 2


@triton.jit
def samples_of(pairs, n_points, n_rows, ALL: tl.constexpr):
    """i and j, int64, of pairs, int64: of all pairs i < j, or of those of the first n_rows samples with the others."""
    if ALL:
        last = 2 * n_points - 1
        root = tl.sqrt((last * last - 8 * pairs).to(tl.float64))
        i = ((last - root) * 0.5).to(tl.int64)
        i -= (_before(i, n_points) > pairs).to(tl.int64)  # the root rounds either way
        i += (_before(i + 1, n_points) <= pairs).to(tl.int64)
        j = pairs - _before(i, n_points) + i + 1
    else:
        i = pairs // (n_points - n_rows)
        j = pairs - i * (n_points - n_rows) + n_rows
    return i, j
