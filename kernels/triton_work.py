"""What cases take of a GPU by the arithmetic, and how long that takes at given rates: a model, which nobody measured.

Operations are those that the kernels do, padding to their tiles included; instructions as counted in what the compiler makes
for NVIDIA, to about a quarter (AMD's, whose matrix unit takes float32 as it is, need fewer); bytes of memory are those that
come from there or go there at least once, those of the caches what programs load: of a narrow chain its weights, from the first
caches where these hold them; in wide products all, from the second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import triton

from lmn.kernels.triton_host import AT_ONCE, LEAST, MOST_DEPTH, MOST_WIDTH
from lmn.kernels.triton_targets import Target

if TYPE_CHECKING:
    from lmn.kernels.connectivity.triton_ops import Fused

# Instructions of one lane in what Triton 3.7 makes of the narrow kernels, whose few rows all warps share, for sm_90; for sm_80
# they are as many. Of a value through its activation to the matrix unit, in 4 warps; of one that goes there in 8, and of one
# that is loaded again at each step; of a weight that is taken apart; of a value that only goes to the matrix unit; of one of a
# vertex, through its activation, with the least and the greatest; of one through its activation with its sign and that one's
# share of a hash, and of an axis of a grid; of an output that is summed up.
_CORE, _OF_8_WARPS, _RELOADED, _WEIGHT, _OPERAND, _VERTEX = 34.0, 9.0, 11.0, 4.6, 15.0, 30.0
_BITS, _AXIS, _SUM = 26.0, 10.0, 9.0
_IN_PARTS = 1.2  # as many instructions, where a product does not fit the registers at once
_TILE = 16  # rows of a narrow chain's tile, and inputs that go through its first map at a time


@dataclass(frozen=True)
class Tile:
    """Of a wide product.

    Attributes
    ----------
    rows, columns : int
    instructions : float
        Of one lane, for each multiplication and addition.
    """

    rows: int
    columns: int
    instructions: float


@dataclass(frozen=True)
class Rates:
    """What a GPU can do, a second.

    The kernels multiply float32: on NVIDIA as three TF32 products, on AMD in the matrix unit's float32. Of tiles of fewer than
    64 rows Hopper's asynchronous products are not to be had; what it does without is in no data sheet, and taken as half.

    Attributes
    ----------
    target : Target
    matrix, of_tiles : float
        Operations of the matrix unit, in tiles of 64 rows or more, and of fewer.
    products : int
        Of the matrix unit, for one of float32.
    instructions : float
        Of one lane.
    memory, cache, second_cache : float
        Bytes, of memory, of the first caches and of the second.
    first_cache : int
        Bytes of weights that one first cache holds, beside shared memory.
    few, rows, large : Tile
        Of a product in tiles of few rows, of 64, and as large as fits.
    """

    name: str
    target: Target
    matrix: float
    of_tiles: float
    products: int
    instructions: float
    memory: float
    cache: float
    second_cache: float
    first_cache: int
    few: Tile
    rows: Tile
    large: Tile

    def __str__(self) -> str:
        return (
            f"  {self.name}: {self.matrix / 1e12:.0f} TFLOP/s in the matrix unit, {self.of_tiles / 1e12:.0f} in tiles of few "
            f"rows, {self.products} of them one of float32; {self.instructions / 1e12:.1f} T instructions/s; "
            f"{self.memory / 1e12:.2f} TB/s of memory, {self.cache / 1e12:.0f} of first caches, "
            f"{self.second_cache / 1e12:.1f} of the second"
        )


# Few rows, 64, and large: through registers, and from shared memory (Target.takes_64_rows).
_THROUGH_REGISTERS = Tile(32, 64, 0.85), Tile(64, 64, 0.52), Tile(64, 128, 0.46)
_FROM_SHARED = Tile(32, 64, 0.85), Tile(64, 64, 0.28), Tile(128, 128, 0.153)
# By the vendors' data sheets, dense: multiprocessors x lanes, or x bytes a clock, x the boost clock. Of the second cache by
# their white papers: A100 5120 bytes a clock, MI300X 2048 of each of 8 dies; of H100's NVIDIA says nothing, taken as A100's.
RATES = (
    Rates("A100 SXM 80GB", Target("cuda"), 156e12, 156e12, 3, 108 * 64 * 1.41e9, 2.039e12, 108 * 128 * 1.41e9, 7.2e12, 1 << 17,
          *_THROUGH_REGISTERS),
    Rates("H100 SXM", Target("cuda", takes_64_rows=True), 494.7e12, 247e12, 3, 132 * 128 * 1.98e9, 3.35e12, 132 * 128 * 1.98e9,
          7.2e12, 1 << 17, *_FROM_SHARED),
    Rates("MI300X", Target("hip"), 163.4e12, 163.4e12, 1, 304 * 64 * 2.1e9, 5.3e12, 304 * 64 * 2.1e9, 8 * 2048 * 2.1e9, 1 << 15,
          *_FROM_SHARED),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a case takes of a GPU.

    Attributes
    ----------
    case : str
    narrow : float
        Operations of float32 products in narrow chains' kernels, before they are taken apart into those of the matrix unit.
    few, rows, large : float
        And of wide products, by their tiles.
    instructions : float
        Of one lane, for all else.
    memory : float
        Bytes.
    loads : tuple of (float, float)
        Of narrow chains: bytes of weights, and bytes that all programs load of them.
    """

    case: str
    narrow: float = 0.0
    few: float = 0.0
    rows: float = 0.0
    large: float = 0.0
    instructions: float = 0.0
    memory: float = 0.0
    loads: tuple[tuple[float, float], ...] = ()

    def __add__(self, other: Work) -> Work:
        names = [each.name for each in fields(self)[1:]]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def operations(self) -> float:
        return self.narrow + self.few + self.rows + self.large

    def __str__(self) -> str:
        return f"{self.operations / 1e9:.1f} GFLOP of float32 products, {self.memory / 1e9:.2f} GB of memory"

    def on(self, gpu: Rates) -> dict[str, float]:
        """Instructions of lanes, and bytes from the first caches and from the second."""
        products = [(self.few / 2, gpu.few), (self.rows / 2, gpu.rows), (self.large / 2, gpu.large)]
        from_second = sum(4 * n * (1 / tile.rows + 1 / tile.columns) for n, tile in products)
        return {
            "instructions": self.instructions + sum(n * tile.instructions for n, tile in products),
            "first caches": sum(loaded for weights, loaded in self.loads if weights <= gpu.first_cache),
            "second cache": from_second + sum(loaded for weights, loaded in self.loads if weights > gpu.first_cache),
        }

    def seconds(self, gpu: Rates) -> dict[str, float]:
        """Of each part; one after the other they take their sum."""
        here = self.on(gpu)
        matrix = (self.rows + self.large) / gpu.matrix + (self.few + self.narrow) / gpu.of_tiles
        return {
            "matrix unit": gpu.products * matrix,
            "instructions": here["instructions"] / gpu.instructions,
            "memory": self.memory / gpu.memory,
            "first caches": here["first caches"] / gpu.cache,
            "second cache": here["second cache"] / gpu.second_cache,
        }


def _padded(n: int, tile: int) -> int:
    return int(triton.cdiv(n, tile)) * tile


def _width(units: tuple[int, ...]) -> int | None:
    """Of a narrow chain's tile; None where it is not narrow."""
    width = max(LEAST, triton.next_power_of_2(max(units)))
    return width if len(units) <= MOST_DEPTH and width <= MOST_WIDTH else None


def _parts(width: int) -> float:
    """How many times as many instructions a narrow chain's products take for being taken in parts."""
    return _IN_PARTS if width > AT_ONCE else 1.0


def _loads(weights: float, times: float, name: str = "") -> Work:
    """All of so many weights of a program, so many times."""
    return Work(name, loads=((4.0 * weights, 4.0 * weights * times),))


def _product(n_rows: int, n_in: int, n_out: int, *, tile: str = "rows", writes: bool = True) -> Work:
    """A wide layer's, whose rows come from memory and go there, in tiles that are "few", "rows" or "large"."""
    rows, columns = {"few": (32, 64), "rows": (64, 64), "large": (128, 128)}[tile]
    operations = 2.0 * _padded(n_rows, rows) * _padded(n_in, 32) * _padded(n_out, columns)
    few, of_64, large = (operations * (tile == each) for each in ("few", "rows", "large"))
    return Work("", few=few, rows=of_64, large=large, memory=4.0 * n_rows * (n_in + writes * n_out))


def _largest_tile(n_in: int, n_out: int) -> str:
    """Of a product with nothing after it but slopes."""
    from lmn.kernels.triton_product_ops import is_large

    return "large" if is_large(n_in, n_out) else "rows"


def connectivity(n: int, units: tuple[int, ...], n_out: int, m: int = 21) -> Work:
    """All pairs of n samples through a tail of layers of so many units."""
    from lmn.kernels.connectivity.triton_ops import fused_for

    sizes = fused_for(list(units), n_out)
    work = connectivity_by_layer(n, units, n_out, m) if sizes is None else connectivity_in_one_kernel(n, sizes, m)
    return replace(work, case=f"connectivity, {'-'.join(map(str, (*units, n_out)))}, N = {n:,}")


def connectivity_by_layer(n: int, units: tuple[int, ...], n_out: int, m: int = 21) -> Work:
    """Deviations go to memory and come from there: by each product, and by each activation but the first, which reads none; the
    outputs' are read once more."""
    points = int(n * (n - 1) / 2 * (m - 2))
    run = sum((_product(points, a, b, tile=_largest_tile(a, b)) for a, b in itertools.pairwise((*units, n_out))), Work(""))
    activated = units[0] + 2 * sum(units[1:]) + n_out
    of_activations = points * (sum(units) * _CORE + _SUM * n_out)
    return run + Work("", instructions=of_activations, memory=4.0 * n * n + 4.0 * points * activated)


def connectivity_in_one_kernel(n: int, sizes: Fused, m: int = 21) -> Work:
    """Each tile of pairs takes all weights at each step."""
    from lmn.kernels.connectivity.triton_ops import PAIRS

    points = n * (n + PAIRS) // 2 * (m - 2)  # of all segments, whole tiles
    weights = sizes.width**2 * (sizes.depth - 1) + sizes.width * sizes.outputs
    in_parts = all(each.tile["SOME"] < sizes.width for each in sizes.choices)
    reloads, of_8_warps = (all(each.tile["RELOADS"] for each in sizes.choices), all(each.warps == 8 for each in sizes.choices))
    of_value = _CORE + of_8_warps * _OF_8_WARPS + reloads * _RELOADED
    instructions = points * (sizes.depth * sizes.width * of_value + weights / PAIRS * _WEIGHT + _SUM * sizes.outputs)
    return _loads(weights, points / PAIRS) + Work(
        "",
        narrow=2 * points * weights,
        instructions=instructions * (_IN_PARTS if in_parts else 1),
        memory=4.0 * n * n + 8.0 * n * (sizes.depth * sizes.width + sizes.outputs),
    )


def patterns(n: int, widths: tuple[int, ...], target: Target, n_axes: int | None = None) -> Work:
    """Of n samples, or points of a grid of so many axes, without the sorting that finds the distinct ones."""
    from lmn.kernels.patterns.triton_ops import NARROW

    units = widths[1:-1]
    width, words = _width(units), sum(triton.cdiv(each, 64) for each in units)
    case = f"patterns, {'-'.join(map(str, widths))}, {n:,} {'samples' if n_axes is None else 'points of a grid'}"
    memory = n * (8.0 * words + 16) + (4.0 * n * widths[0] if n_axes is None else 0)
    if width is None:
        run = sum((_product(n, a, b) for a, b in itertools.pairwise(widths[:-1])), Work(case))
        return run + Work("", instructions=n * sum(units) * (_BITS + 4), memory=2 * 8.0 * n * words)
    tile = NARROW.fitting({"WIDTH": width, "EDGES": False}, target)[0].tile["POINTS"]
    points = _padded(n, tile)
    weights = (_padded(widths[0], _TILE) * width if n_axes is None else 0) + (len(units) - 1) * width**2
    instructions = width * (len(units) * _BITS + _AXIS * (n_axes or 0)) + weights / tile * _WEIGHT
    return _loads(weights, points / tile, case) + Work(
        "",
        narrow=2.0 * points * weights,
        instructions=points * instructions * _parts(width),
        memory=memory,
    )


def jacobians(n: int, widths: tuple[int, ...], *, grams: bool = False) -> Work:
    """At n samples, from the outputs back; or their rows' inner products alone, in as many columns as the first layer has."""
    from lmn.kernels.jacobians.triton_ops import MOST_NARROW_ROWS

    n_in, *units, n_out = widths
    width = _width(tuple(units))
    case = f"{'inner products of Jacobians' if grams else 'Jacobians'}, {'-'.join(map(str, widths))}, {n:,} points"
    if width is None or (grams and n_out > MOST_NARROW_ROWS):
        forward = sum((_product(n, a, b) for a, b in itertools.pairwise(widths[:-1])), Work(case))
        back = ((min(n_in, units[0]), units[0]), *itertools.pairwise(units)) if grams else itertools.pairwise(widths[:-1])
        sweep = Work("")
        for number, (a, b) in enumerate(back):
            in_one_kernel = grams and number == 0
            tile = "rows" if in_one_kernel else _largest_tile(b, a)
            sweep += _product(n * n_out, b, a, tile=tile, writes=not in_one_kernel)
        if grams:
            sweep += Work("", rows=2.0 * n * n_out * 64 * _padded(min(n_in, units[0]), 32), memory=4.0 * n * n_out**2)
        return forward + sweep + Work("", instructions=n * sum(units) * (_CORE + n_out), memory=8.0 * n * sum(units))
    points, rows, depth, ins = _padded(n, _TILE), _padded(n_out, _TILE) if grams else n_out, len(units), _padded(n_in, 32)
    forward_weights = _padded(n_in, _TILE) * width + (depth - 1) * width**2
    sweep_weights = (depth - 1) * width**2 + width * ins
    sweeps = points if grams else points / _TILE * rows
    loads = points / _TILE * forward_weights + sweeps * sweep_weights
    loaded = _loads(forward_weights, points / _TILE, case) + _loads(sweep_weights, sweeps)
    return loaded + Work(
        "",
        narrow=2.0 * points * (forward_weights + rows * (sweep_weights + (rows * ins if grams else 0))),
        instructions=(points * depth * width * (_CORE + rows * _OPERAND) + loads * _WEIGHT) * _parts(width),
        memory=4.0 * n * (n_in + (n_out**2 if grams else n_out * n_in)),
    )


def local_complexity(n: int, widths: tuple[int, ...], target: Target, n_directions: int = 25) -> Work:
    """At n samples, of so many pairs of vertices each."""
    from lmn.kernels.local_complexity.triton_ops import NARROW

    n_in, *units, _ = widths
    width, vertices = _width(tuple(units)), 2 * n_directions
    case = f"local complexity, {'-'.join(map(str, widths))}, {n:,} samples of {vertices} vertices"
    first = _product(n, n_in, width or units[0])
    if width is None:
        rows = n * _padded(vertices, 32)
        layers = (
            _product(rows, a, b, tile="few", writes=number + 2 < len(units))
            for number, (a, b) in enumerate(itertools.pairwise(units))
        )
        counted = Work("", instructions=rows * sum(units) * _VERTEX, memory=4.0 * n * vertices * units[0])
        return sum(layers, replace(first, case=case)) + counted
    tile = NARROW.fitting({"WIDTH": width}, target)[0].tile["VERTICES"]
    rows, between = n * _padded(vertices, tile), (len(units) - 1) * width**2
    return (
        _loads(between, rows / tile, case)
        + first
        + Work(
            "",
            narrow=2.0 * rows * between,
            instructions=rows * (width * len(units) * _VERTEX + between / tile * _WEIGHT) * _parts(width),
            memory=4.0 * n * width,
        )
    )


def works(target: Target) -> Iterator[Work]:
    """The modelled cases."""
    small, wide = (2, 64, 64, 64, 1), (784, 200, 200, 200, 200, 10)
    yield connectivity(768, (100,), 31)
    yield connectivity(768, (100, 100), 31)
    yield connectivity(768, (128, 128, 128), 113)
    yield connectivity(768, (256, 256, 256), 10)
    yield patterns(2048**2, small, target, n_axes=2)
    yield patterns(1_000_000, wide, target)
    yield jacobians(1024**2, small)
    yield jacobians(4096, (64, 256, 256, 10))
    yield jacobians(10_000, (64, 64, 64, 10), grams=True)
    yield jacobians(10_000, wide, grams=True)
    yield local_complexity(10_000, (64, 64, 64, 10), target)
    yield local_complexity(10_000, wide, target)
