"""What cases take of a GPU by the arithmetic, and how long that takes at given rates: a model, which nobody measured.

Operations are those that the kernels do, padding to their tiles included; bytes are those that come from memory or go there at
least once. What stays in the caches, as weights do, is not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import triton

from lmn.kernels.triton_host import LEAST, MOST_DEPTH, MOST_WIDTH

_CORE = 40.0  # vector operations, about, of the most expensive core and what is around it
_BITS = 8.0  # of a sign's way into its word
_TILE = 16  # rows of a narrow chain's tile, and inputs that go through its first map at a time


@dataclass(frozen=True)
class Rates:
    """What a GPU can do: operations/s of the matrix unit as the kernels use it, of float32 vectors, and bytes/s of memory.

    The kernels multiply float32: on NVIDIA as three TF32 products, on AMD in the matrix unit's float32.
    """

    name: str
    matrix: float
    products: int
    vector: float
    memory: float


# By the vendors' data sheets, dense.
RATES = (
    Rates("A100 SXM 80GB", 156e12, 3, 19.5e12, 2.039e12),
    Rates("H100 SXM", 494.7e12, 3, 66.9e12, 3.35e12),
    Rates("MI300X", 163.4e12, 1, 163.4e12, 5.3e12),
)


@dataclass(frozen=True)
class Work:
    """What a case takes of a GPU.

    Attributes
    ----------
    case : str
    matrix : float
        Operations of float32 products, before they are taken apart into those of the matrix unit.
    vector : float
        Of everything else.
    memory : float
        Bytes.
    """

    case: str
    matrix: float = 0.0
    vector: float = 0.0
    memory: float = 0.0

    def __add__(self, other: Work) -> Work:
        return replace(
            self, matrix=self.matrix + other.matrix, vector=self.vector + other.vector, memory=self.memory + other.memory
        )

    def seconds(self, gpu: Rates) -> tuple[float, str]:
        """One after the other, and which of the three takes longest."""
        parts = {
            "matrix unit": self.matrix * gpu.products / gpu.matrix,
            "vectors": self.vector / gpu.vector,
            "memory": self.memory / gpu.memory,
        }
        return sum(parts.values()), max(parts, key=lambda name: parts[name])


def _padded(n: int, tile: int) -> int:
    return int(triton.cdiv(n, tile)) * tile


def _width(units: tuple[int, ...]) -> int | None:
    """Of a narrow chain's tile; None where it is not narrow."""
    width = max(LEAST, triton.next_power_of_2(max(units)))
    return width if len(units) <= MOST_DEPTH and width <= MOST_WIDTH else None


def _product(n_rows: int, n_in: int, n_out: int, *, reads: bool = True, writes: bool = True) -> Work:
    """A wide layer's, whose rows come from memory and go there."""
    rows, outs = _padded(n_rows, 64), _padded(n_out, 64)
    return Work("", 2.0 * rows * _padded(n_in, 32) * outs, 0.0, 4.0 * (reads * n_rows * n_in + writes * n_rows * n_out))


def connectivity(n: int, units: tuple[int, ...], n_out: int, m: int = 21) -> Work:
    """All pairs of n samples through a tail of layers of so many units; wide layers' deviations stay in the cache."""
    from lmn.kernels.connectivity.triton_ops import PAIRS, fused_for

    sizes = fused_for(list(units), n_out)
    case = f"connectivity, {'-'.join(map(str, (*units, n_out)))}, N = {n:,}"
    if sizes is None:
        points = n * (n - 1) / 2 * (m - 2)
        products = sum(_padded(a, 32) * _padded(b, 64) for a, b in itertools.pairwise((*units, n_out)))
        return Work(case, 2 * points * products, points * (sum(units) * _CORE + 6 * n_out), 4.0 * n * n)
    points = n * (n + PAIRS) / 2 * (m - 2)  # of all segments, whole tiles
    products = sizes.width**2 * (sizes.depth - 1) + sizes.width * sizes.outputs
    vector = points * (sizes.depth * sizes.width * _CORE + 6 * sizes.outputs)
    memory = 4.0 * n * n + 8.0 * n * (sizes.depth * sizes.width + sizes.outputs)
    return Work(case, 2 * points * products, vector, memory)


def patterns(n: int, widths: tuple[int, ...], n_axes: int | None = None) -> Work:
    """Of n samples, or points of a grid of so many axes, without the sorting that finds the distinct ones."""
    units = widths[1:-1]
    width, words = _width(units), sum(triton.cdiv(each, 64) for each in units)
    case = f"patterns, {'-'.join(map(str, widths))}, {n:,} {'samples' if n_axes is None else 'points of a grid'}"
    memory = n * (8.0 * words + 16) + (4.0 * n * widths[0] if n_axes is None else 0)
    if width is None:
        run = sum((_product(n, a, b) for a, b in itertools.pairwise(widths[:-1])), Work(case))
        return run + Work("", 0.0, n * sum(units) * (_BITS + 4), 2 * 8.0 * n * words)
    points = _padded(n, _TILE)
    first = _padded(widths[0], _TILE) * width if n_axes is None else 0
    vector = points * width * (len(units) * (_BITS + 4) + 2 * (n_axes or 0))
    return Work(case, 2.0 * points * (first + (len(units) - 1) * width**2), vector, memory)


def jacobians(n: int, widths: tuple[int, ...], *, grams: bool = False) -> Work:
    """At n samples, from the outputs back; or their rows' inner products alone, of narrow chains."""
    n_in, *units, n_out = widths
    width = _width(tuple(units))
    case = f"{'inner products of Jacobians' if grams else 'Jacobians'}, {'-'.join(map(str, widths))}, {n:,} points"
    if width is None:
        forward = sum((_product(n, a, b) for a, b in itertools.pairwise(widths[:-1])), Work(case))
        sweep = sum((_product(n * n_out, b, a) for a, b in itertools.pairwise(widths[:-1])), Work(""))
        slopes = Work("", 0.0, n * sum(units) * (_CORE + n_out), 8.0 * n * sum(units))
        return forward + sweep + slopes
    points, rows, depth = _padded(n, _TILE), _TILE if grams else n_out, len(units)
    forward_products = _padded(n_in, _TILE) * width + (depth - 1) * width**2
    sweep_products = rows * ((depth - 1) * width**2 + width * _padded(n_in, 32) + (_TILE * _padded(n_in, 32) if grams else 0))
    vector = points * depth * width * (_CORE + rows)
    memory = 4.0 * n * (n_in + (n_out**2 if grams else n_out * n_in))
    return Work(case, 2.0 * points * (forward_products + sweep_products), vector, memory)


def local_complexity(n: int, widths: tuple[int, ...], n_directions: int = 25) -> Work:
    """At n samples, of so many pairs of vertices each."""
    n_in, *units, _ = widths
    width, vertices = _width(tuple(units)), 2 * n_directions
    case = f"local complexity, {'-'.join(map(str, widths))}, {n:,} samples of {vertices} vertices"
    if width is None:
        rows = n * _padded(vertices, 32)
        first = replace(_product(n, n_in, units[0]), case=case)
        layers = (
            _product(rows, a, b, writes=number + 2 < len(units)) for number, (a, b) in enumerate(itertools.pairwise(units))
        )
        counted = Work("", 0.0, rows * sum(units) * (_CORE + 4), 4.0 * n * vertices * units[0])
        return sum(layers, first) + counted
    rows = n * _padded(vertices, _TILE)
    matrix = 2.0 * rows * (len(units) - 1) * width**2
    return Work(case, matrix, rows * width * len(units) * (_CORE + 4) + 2.0 * n * n_in * width, 4.0 * n * n_in)


def works() -> Iterator[Work]:
    """The modelled cases."""
    small, wide = (2, 64, 64, 64, 1), (784, 200, 200, 200, 200, 10)
    yield connectivity(768, (100,), 31)
    yield connectivity(768, (100, 100), 31)
    yield connectivity(768, (256, 256, 256), 10)
    yield patterns(2048**2, small, n_axes=2)
    yield patterns(1_000_000, wide)
    yield jacobians(1024**2, small)
    yield jacobians(4096, (64, 256, 256, 10))
    yield jacobians(10_000, (64, 64, 64, 10), grams=True)
    yield local_complexity(10_000, (64, 64, 64, 10))
    yield local_complexity(10_000, wide)
