"""The Triton kernels of patterns as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.patterns.triton_bits import hashed, pack
from lmn.kernels.patterns.triton_fused import fused_patterns
from lmn.kernels.patterns.triton_wide import layer_of_patterns
from lmn.kernels.triton_cases import Case, empty, forward
from lmn.kernels.triton_checks import Arrays, check_cores, of_type, require, single, sizes_of
from lmn.kernels.triton_host import (
    AT_ONCE,
    LEAST,
    MOST_BREAKPOINTS,
    MOST_DEPTH,
    MOST_WIDTH,
    check_bends,
    check_breakpoints,
    check_layers,
    first_arrays,
    forward_arrays,
    numbered,
)
from lmn.kernels.triton_targets import IS_TRITON_3_2, Target
from lmn.kernels.triton_tuned import Choice, Tuned

INS, UNITS = 16, 64
_PACKED = 64  # points of a tile
TAKES_GRIDS = not IS_TRITON_3_2  # whose compiler fails there: "transfer from register to shared"


def _narrow_arrays(given: dict[str, Any]) -> Arrays:
    n_points, depth, width = given["n_points"], given["DEPTH"], given["WIDTH"]
    arrays = forward_arrays(given) | single(breakpoints=(depth, MOST_BREAKPOINTS))
    if given["GRID"]:
        arrays |= single(first_bias=(width,), steps=(given["n_axes"], width)) | of_type(torch.int64, counts=(given["n_axes"],))
    else:
        arrays |= first_arrays(given)
    if given["INDEXED"]:
        arrays |= of_type(torch.int64, indices=(n_points,))
    bits = (given[f"units{layer}"] * given[f"BREAKPOINTS{layer}"] for layer in range(depth))
    n_words = sum(triton.cdiv(n, 64) for n in bits) + given["EDGES"]
    return arrays | of_type(torch.int64, words=(n_points, n_words), hashes=(n_points, 2))


def _layer_arrays(given: dict[str, Any]) -> Arrays:
    n_points, n_in, n_units, n_breakpoints = (given[name] for name in ("n_points", "n_in", "n_units", "BREAKPOINTS"))
    _check_words(given, n_breakpoints)
    arrays = single(
        u=(n_points, n_in), weights=(n_in, n_units), bias=(n_units,), scales=(n_units,), straights=(n_units,),
        breakpoints=(n_breakpoints,),
    )  # fmt: skip
    if not given["LAST"]:
        arrays |= single(out=(n_points, n_units))
    if given["EDGES"]:
        arrays |= of_type(torch.int32, edges=(n_points, triton.cdiv(n_units, UNITS)))
    return arrays | of_type(torch.int64, words=(n_points, given["n_words"]))


def _pack_arrays(given: dict[str, Any]) -> Arrays:
    n_points, n_breakpoints = given["n_points"], given["n_breakpoints"]
    _check_words(given, n_breakpoints)
    z = of_type(given["z"].dtype, z=(n_points, given["n_units"]), breakpoints=(n_breakpoints,))
    return z | of_type(torch.int64, words=(n_points, given["n_words"]))


def _check_words(given: dict[str, Any], n_breakpoints: int) -> None:
    first, n_units, n_words = given["first_word"], given["n_units"], given["n_words"]
    last = first + triton.cdiv(n_units * n_breakpoints, 64)
    require(first >= 0 and last <= n_words, f"{n_units} units go from word {first} up to word {last} of {n_words}.")


def _hash_arrays(given: dict[str, Any]) -> Arrays:
    return of_type(torch.int64, words=(given["n_points"], given["n_words"]), hashes=(given["n_points"], 2))


def _fits_64_rows(given: dict[str, Any], target: Target) -> bool:
    return given["WIDTH"] == LEAST or (given["WIDTH"] == AT_ONCE and target.takes_64_rows and not given["EDGES"])


def _fits_32_rows(given: dict[str, Any], target: Target) -> bool:
    return given["WIDTH"] == AT_ONCE and target.backend == "cuda" and not given["EDGES"]


# Weights are loaded once a tile: the more of its rows, the fewer instructions.
NARROW = Tuned(fused_patterns, None, (
    Choice({"POINTS": 64}, 4, roomy=True, fits=_fits_64_rows),
    Choice({"POINTS": 32}, 4, roomy=True, fits=_fits_32_rows),
    Choice({"POINTS": 16}, 8, roomy=True),
), _narrow_arrays)  # fmt: skip


def _fits_128_rows(given: dict[str, Any], target: Target) -> bool:
    """Loads of rows that begin anywhere take registers, and so do edges."""
    return target.backend == "hip" or not given["EDGES"] or (given["n_in"] % 16 == 0 and given["n_units"] % 16 == 0)


_LAYER = Tuned(layer_of_patterns, None, (
    Choice({"ROWS": 128}, 8, 2, roomy=True, fits=_fits_128_rows), Choice({"ROWS": 32}, 8, 2, roomy=True)
), _layer_arrays)  # fmt: skip
_PACK = Tuned(pack, None, (Choice({}, 4),), _pack_arrays)
_HASH = Tuned(hashed, None, (Choice({}, 2),), _hash_arrays)


@torch.library.custom_op("lmn::patterns", mutates_args={"words", "hashes"})
def narrow_patterns(
    x: Optional[Tensor],  # noqa: UP045 - what PyTorch 2.6 reads
    first: Optional[Tensor],  # noqa: UP045
    first_bias: Tensor,
    steps: Optional[Tensor],  # noqa: UP045
    counts: Optional[Tensor],  # noqa: UP045
    weights: Tensor,
    biases: Tensor,
    scales: Tensor,
    straights: Tensor,
    parameters: Tensor,
    breakpoints: Tensor,
    n_units: list[int],
    n_breakpoints: list[int],
    indices: Optional[Tensor],  # noqa: UP045
    begin: int,
    cores: list[int],
    edges: bool,
    words: Tensor,
    hashes: Tensor,
    precision: str = "",
) -> None:
    """The patterns of points, of x or of a grid, and their hashes, int64: the arrays are those of ``fused_patterns``."""
    n, n_words = sizes_of("words", words, 2)
    depth, width = check_layers(scales, cores)
    check_bends(n_units, n_breakpoints, depth, width)
    NARROW.launch(
        lambda tile: (triton.cdiv(n, tile["POINTS"]),),
        x=first_bias if x is None else x,
        first=first_bias if first is None else first,
        first_bias=first_bias,
        steps=first_bias if steps is None else steps,
        counts=words if counts is None else counts,
        indices=words if indices is None else indices,
        weights=weights,
        biases=biases,
        scales=scales,
        straights=straights,
        parameters=parameters,
        breakpoints=breakpoints,
        words=words,
        hashes=hashes,
        begin=begin,
        n_points=n,
        n_in=0 if x is None else x.shape[1],
        n_axes=0 if steps is None else len(steps),
        n_words=n_words,
        nothing=0,
        GRID=x is None,
        INDEXED=indices is not None,
        EDGES=edges,
        DEPTH=depth,
        WIDTH=width,
        INS=INS,
        **numbered("CORE", cores, MOST_DEPTH - 1),
        **numbered("units", n_units),
        **numbered("BREAKPOINTS", n_breakpoints),
        precision=precision,
    )


@torch.library.custom_op("lmn::patterns_layer", mutates_args={"out", "words", "edges"})
def layer_patterns(
    u: Tensor,
    weights: Tensor,
    bias: Tensor,
    scales: Tensor,
    straights: Tensor,
    breakpoints: Tensor,
    core: int,
    p0: float,
    p1: float,
    first_word: int,
    out: Tensor,
    words: Tensor,
    edges: Tensor,
    precision: str = "",
) -> None:
    """The words of a wide layer at u, (n, n_in); activations to out, edges to edges, unless they are empty.

    The arrays are those of ``layer_of_patterns``.
    """
    (n, _), (n_units,) = sizes_of("u", u, 2), sizes_of("bias", bias, 1)
    check_cores(core)
    check_breakpoints(breakpoints)
    _LAYER.launch(
        lambda tile: (triton.cdiv(n, tile["ROWS"]) * triton.cdiv(n_units, UNITS),),
        u=u,
        weights=weights,
        bias=bias,
        scales=scales,
        straights=straights,
        breakpoints=breakpoints,
        out=out,
        words=words,
        edges=edges,
        p0=p0,
        p1=p1,
        n_points=n,
        n_in=u.shape[1],
        n_units=n_units,
        first_word=first_word,
        n_words=words.shape[1],
        BREAKPOINTS=len(breakpoints),
        LAST=len(out) == 0,
        EDGES=len(edges) > 0,
        CORE=core,
        INS=32,
        UNITS=UNITS,
        precision=precision,
    )


@torch.library.custom_op("lmn::pack_patterns", mutates_args={"words"})
def pack_bits(z: Tensor, breakpoints: Tensor, first_word: int, words: Tensor) -> None:
    """The bits of z, (n, n_units), above breakpoints of its type, to words, (n, n_words), int64, from first_word on."""
    n, n_units = sizes_of("z", z, 2)
    grid = (triton.cdiv(n_units * len(breakpoints), 64) * triton.cdiv(n, _PACKED),)
    _PACK.launch(
        grid,
        z=z,
        breakpoints=breakpoints,
        words=words,
        n_points=n,
        n_units=n_units,
        n_breakpoints=len(breakpoints),
        n_words=sizes_of("words", words, 2)[1],
        first_word=first_word,
        POINTS=_PACKED,
    )


@torch.library.custom_op("lmn::hash_patterns", mutates_args={"hashes"})
def hash_words(words: Tensor, hashes: Tensor) -> None:
    """The hashes, (n, 2), of words, (n, n_words); both int64."""
    n, n_words = sizes_of("words", words, 2)
    _HASH.launch((triton.cdiv(n, _PACKED),), words=words, hashes=hashes, n_points=n, n_words=n_words, POINTS=_PACKED)


# ---- for the report ----------------------------------------------------------------------------------------------------


def cases(thorough: bool) -> Iterator[Case]:
    """Of points of a grid and of samples, of these with points on edges told apart and not, of the deepest chains."""
    for depth in range(1, MOST_DEPTH + 1) if thorough else (MOST_DEPTH,):
        for core in ("relu", "clamp"):  # those of piecewise-linear activations
            where = ("grid", "some of a grid", "samples") if TAKES_GRIDS else ("samples",)
            for points in where:  # of a grid, those on edges are not told apart by its arithmetic
                for edges, width, n_in in itertools.product((False, True), (MOST_WIDTH, AT_ONCE, LEAST), (64, 2, 1)):
                    of_grid = points != "samples" and not edges and n_in == 64
                    if of_grid or (points == "samples" and (thorough or n_in == 64 or (edges and width == AT_ONCE))):
                        of = f"{points} of {n_in}" if points == "samples" else points
                        label = f"{depth} x {width} {core}, {of}{', edges' if edges else ''}"
                        yield Case("patterns", label, partial(_narrow_case, depth, width, core, n_in, points, edges))
    for core, n_units, edges, last in itertools.product(("relu", "clamp"), (256, 250, 1), (False, True), (False, True)):
        label = f"layer of {n_units}, {core}{', last' if last else ''}{', edges' if edges else ''}"
        if thorough or edges:
            yield Case("patterns", label, partial(_layer_case, core, n_units, edges, last))
    yield Case("patterns", "pack", lambda: pack_bits(empty(4096, 256), empty(1), 0, empty(4096, 4, dtype=torch.int64)))
    yield Case(
        "patterns", "hash", lambda: hash_words(empty(4096, 4, dtype=torch.int64), empty(4096, 2, dtype=torch.int64))
    )  # fmt: skip


def _narrow_case(depth: int, width: int, core: str, n_in: int, points: str, edges: bool) -> None:
    n, most = 4096, 2 if core == "clamp" else 1
    grid, n_words = points != "samples", depth * triton.cdiv(width * most, 64) + edges
    narrow_patterns(
        None if grid else empty(n, n_in), None if grid else empty(n_in, width), empty(width),
        empty(2, width) if grid else None, empty(2, dtype=torch.int64) if grid else None, **forward(depth, width),
        breakpoints=empty(depth, MOST_BREAKPOINTS), n_units=[width] * depth, n_breakpoints=[most] * depth,
        indices=empty(n, dtype=torch.int64) if points == "some of a grid" else None, begin=0,
        cores=[CORES.index(core)] * depth, edges=edges, words=empty(n, n_words, dtype=torch.int64),
        hashes=empty(n, 2, dtype=torch.int64),
    )  # fmt: skip


def _layer_case(core: str, n_units: int, edges: bool, last: bool) -> None:
    n, most = 4096, 2 if core == "clamp" else 1
    layer_patterns(
        empty(n, n_units), empty(n_units, n_units), empty(n_units), empty(n_units), empty(n_units), empty(most),
        CORES.index(core), 0.0, 0.0, 0, empty(0 if last else n, n_units), empty(n, 4 * most, dtype=torch.int64),
        empty(n if edges else 0, triton.cdiv(n_units, UNITS), dtype=torch.int32),
    )  # fmt: skip
