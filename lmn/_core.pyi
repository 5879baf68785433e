"""The C++ core: arrays in, arrays out. Nothing here is public."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__version__: str

Layer = tuple[
    NDArray[np.float64],  # z, shape (n_points, n_hidden)
    int,  # core, an index into kernels/activations.py: CORES
    float,  # p0
    float,  # p1
    NDArray[np.float64],  # scale, shape (n_hidden,)
    NDArray[np.float64],  # slope, shape (n_hidden,)
    NDArray[np.float64] | None,  # weight, shape (n_next, n_hidden); None where the chain ends in this activation
]

def instruction_sets() -> list[str]:
    """Those that this machine runs and the kernels were compiled for, best first."""

def core_rate(core: int, p0: float, p1: float, isa: str = "") -> float:
    """An activation's core in float32 on values in the first cache, values/s of one thread."""

def multiply_add_rate(isa: str = "") -> float:
    """Fused multiply-adds of float32 in registers, FLOP/s of one thread."""

def core_values_f32(core: int, p0: float, p1: float, z: NDArray[np.float32], isa: str = "") -> NDArray[np.float32]: ...
def core_values_f64(core: int, p0: float, p1: float, z: NDArray[np.float64], isa: str = "") -> NDArray[np.float64]: ...

PieceLayer = tuple[NDArray[Any], ...]  # unit, breakpoint, slope and offset below, slope and offset above; weight, bias

def subdivide(
    a: NDArray[np.float64],
    c: NDArray[np.float64],
    size: NDArray[np.float64],
    layers: list[PieceLayer],
    relative_tolerance: float,
    geometry: bool,
    max_regions: int,
    threads: int,
) -> dict[str, Any]:
    """The cells of the cube [-1, 1]^dimension on which a chain is affine; see csrc/subdivide.hpp for what comes back."""

class Cells:
    """Cells between two bends; see csrc/cells.hpp."""

    def __init__(self, dimension: int, first_line: int) -> None: ...
    def __len__(self) -> int: ...
    def part(self, first: int, last: int) -> Cells: ...
    def described(self) -> dict[str, Any]:
        """Columns of the regions that these cells are, as `subdivide` gives them, without their maps."""

    def cut_by_lines(
        self,
        values: NDArray[np.float64],
        size: NDArray[np.float64],
        unit: NDArray[np.int32],
        at: NDArray[np.float64],
        first_line: int,
        relative_tolerance: float,
        max_cells: int,
        threads: int,
    ) -> Cut:
        """The parts of the cells on either side of lines, unit passing at; values are (n_cells, dimension + 1, n_units)."""

    def cut_by_windows(
        self,
        values: NDArray[np.float64],
        size: NDArray[np.float64],
        members: NDArray[np.int64],
        sign: int,
        bits: int,
        first_line: int,
        relative_tolerance: float,
        max_cells: int,
        threads: int,
    ) -> Cut:
        """The parts of the cells in which each window has one largest member."""

# The parts, their parents, their bits; cuts, their children (a cut, or ~part), and where each parent begins. Or a number: of
# parts that are more than were allowed.
Cut = tuple[Cells, NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]] | int

def bend_units(
    values: NDArray[np.float64],
    parent: NDArray[np.int64],
    pattern: NDArray[np.uint64],
    slope: NDArray[np.float64],
    offset: NDArray[np.float64],
    threads: int,
) -> NDArray[np.float64]:
    """An activation of the parts' values, (n_parts, n_points, n_units), by their parents' and their bits."""

def bend_windows(
    values: NDArray[np.float64],
    parent: NDArray[np.int64],
    pattern: NDArray[np.uint64],
    members: NDArray[np.int64],
    bits: int,
    threads: int,
) -> NDArray[np.float64]:
    """The windows' largest members' values, (n_parts, n_points, n_windows)."""

def locate(
    cuts: NDArray[np.float64], children: NDArray[np.int64], points: NDArray[np.float64], threads: int
) -> NDArray[np.int64]:
    """The regions of points, shape (n_points, dimension), by a subdivision's tree of cuts."""

def rasterise(
    cuts: NDArray[np.float64],
    children: NDArray[np.int64],
    values: NDArray[Any],
    shape: Sequence[int],
    first: Sequence[float],
    step: Sequence[float],
    threads: int,
) -> NDArray[Any]:
    """The values, (n_regions, ...), of the regions of a regular grid's points, by a tree of cuts: (*shape, ...)."""

def count_components(n_nodes: int, edges: NDArray[np.int64]) -> int:
    """The connected components of a graph with edges of shape (n_edges, 2)."""

def pack_bits_f32(
    z: NDArray[np.float32], breakpoints: NDArray[np.float64], words: NDArray[np.uint64], first_word: int, threads: int
) -> None: ...
def pack_bits_f64(
    z: NDArray[np.float64], breakpoints: NDArray[np.float64], words: NDArray[np.uint64], first_word: int, threads: int
) -> None:
    """Set the bits z > breakpoint of samples' words; z is (n_samples, n_units), words (n_samples, n_words)."""

class PatternSet:
    """The distinct patterns among those put in; see csrc/patterns.hpp."""

    def __init__(self, n_words: int, verify: bool) -> None: ...
    def __len__(self) -> int: ...
    @property
    def collisions(self) -> int: ...
    def insert(
        self,
        words: NDArray[np.uint64],
        index: NDArray[np.int64],
        count: NDArray[np.int64] | None,
        threads: int,
        keys: NDArray[np.int64] | None,
    ) -> None: ...
    def take(self, keys: NDArray[np.int64] | None = None) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Words, counts and first points, in the order of the latter, and keys as positions in it; the set is empty then."""

class Connectivity:
    """The kernel's data for one problem; see kernels/connectivity/problem.py for the arrays."""

    def __init__(
        self,
        layers: list[Layer],
        y: NDArray[np.float64],
        noise_f32: NDArray[np.float64],
        noise_f64: NDArray[np.float64],
        m: int,
        constant: float,
        tolerance: float,
        tolerance_f64: float,
        isa: str = "",
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def rows(
        self,
        first: int,
        last: int,
        first_column: int,
        single: bool,
        threads: int,
        out: NDArray[np.float32] | NDArray[np.float64],
    ) -> int:
        """Fill rows first to last - 1 of out, and their mirror images; the number of pairs done again in float64."""

# core, p0, p1, kink, scale, slope, breakpoints; weight or None, bias of the affine map after it.
SlopeLayer = tuple[
    int,
    float,
    float,
    float,
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64] | None,
    NDArray[np.float64],
    bool,
]

Number = TypeVar("Number", np.float32, np.float64)

class _Slopes(Generic[Number]):
    """A chain whose derivatives are taken in one precision; see csrc/jacobians_host.hpp."""

    def __init__(
        self,
        first: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
        layers: list[SlopeLayer],
        last: NDArray[np.float64] | None,
        reverse: bool,
        isa: str = "",
    ) -> None: ...
    def jacobians(self, x: NDArray[Number], to_last: bool, out: NDArray[Number], threads: int) -> None:
        """Fill out, (n_points, n_out, n_in), at points x, (n_points, n_in); with to_last (n_points, n_out, n_last)."""

    def grams(self, x: NDArray[Number], to_last: bool, out: NDArray[np.float64], threads: int) -> None:
        """Fill out, (n_points, n_rows, n_rows), with the inner products of the Jacobians' rows, in reverse, or columns."""

    def crossings(self, z: NDArray[Number], shifts: NDArray[Number], threads: int) -> NDArray[np.int64]:
        """(n_points, n_layers): the units with a breakpoint among the vertices z ± shifts; both are first pre-activations."""

class SlopesF32(_Slopes[np.float32]): ...
class SlopesF64(_Slopes[np.float64]): ...

def largest_eigenvalues(matrices: NDArray[np.float64], wanted: int, threads: int, isa: str = "") -> NDArray[np.float64]:
    """Of symmetric matrices, (n, rows, rows), of which the lower triangle is read: (n, wanted), descending."""

def core_slopes_f32(
    core: int, p0: float, p1: float, kink: float, z: NDArray[np.float32], isa: str = ""
) -> NDArray[np.float32]: ...
def core_slopes_f64(
    core: int, p0: float, p1: float, kink: float, z: NDArray[np.float64], isa: str = ""
) -> NDArray[np.float64]: ...
