"""The Triton kernels of patterns as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.patterns.triton_bits import hashed, pack
from lmn.kernels.patterns.triton_fused import fused
from lmn.kernels.patterns.triton_wide import layer
from lmn.kernels.triton_host import MOST_DEPTH, MOST_WIDTH, POINTS, numbered
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of
from lmn.kernels.triton_tuned import Choice, Tuned

INS, UNITS = 16, 64
_PACKED = 64  # points of a tile
_KEY = ("GRID", "INDEXED", "EDGES", "MOST_BREAKPOINTS", "DEPTH", "WIDTH", "CORE0", "CORE1", "CORE2", "n_in")
_NARROW = Tuned(fused, _KEY, (Choice({}, 8), Choice({}, 4)))
_LAYER = Tuned(layer, ("EDGES", "LAST", "CORE", "n_in", "n_units"), (
    Choice({"ROWS": 128}, 8, 2), Choice({"ROWS": 32}, 8, 2)
))  # fmt: skip
_PACK = Tuned(pack, (), (Choice({}, 4),))
_HASH = Tuned(hashed, (), (Choice({}, 2),))


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
    layout: Tensor,
    indices: Optional[Tensor],  # noqa: UP045
    begin: int,
    cores: list[int],
    edges: bool,
    words: Tensor,
    hashes: Tensor,
) -> None:
    """The patterns of points, of x or of a grid, and their hashes, int64: see ``fused``, of which these are the arrays."""
    n, n_words = words.shape
    if not n:
        return
    depth, width = scales.shape
    _NARROW.launch(
        (triton.cdiv(n, POINTS),),
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
        layout=layout,
        words=words,
        hashes=hashes,
        begin=begin,
        n_points=n,
        n_in=0 if x is None else x.shape[1],
        n_axes=0 if steps is None else len(steps),
        n_words=n_words,
        GRID=x is None,
        INDEXED=indices is not None,
        EDGES=edges,
        MOST_BREAKPOINTS=breakpoints.shape[1],
        DEPTH=depth,
        WIDTH=width,
        POINTS=POINTS,
        INS=INS,
        **numbered(cores, MOST_DEPTH - 1),
        PRECISION=precision_of(words.device),
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
) -> None:
    """The words of a wide layer at u, (n, n_in); activations to out, edges to edges, unless they are empty: see ``layer``."""
    n, n_units = len(u), len(bias)
    if not n:
        return
    _LAYER.launch(
        lambda tile: (triton.cdiv(n, tile["ROWS"]), triton.cdiv(n_units, UNITS)),
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
        n_breakpoints=len(breakpoints),
        first_word=first_word,
        n_words=words.shape[1],
        LAST=len(out) == 0,
        EDGES=len(edges) > 0,
        CORE=core,
        INS=32,
        UNITS=UNITS,
        PRECISION=precision_of(u.device),
    )


@torch.library.custom_op("lmn::pack_patterns", mutates_args={"words"})
def pack_bits(z: Tensor, breakpoints: Tensor, first_word: int, words: Tensor) -> None:
    """The bits of z, (n, n_units), above breakpoints of its type, to words, (n, n_words), int64, from first_word on."""
    n, n_units = z.shape
    grid = triton.cdiv(n, _PACKED), triton.cdiv(n_units * len(breakpoints), 64)
    if n and n_units:
        _PACK.launch(
            grid,
            z=z,
            breakpoints=breakpoints,
            words=words,
            n_points=n,
            n_units=n_units,
            n_breakpoints=len(breakpoints),
            n_words=words.shape[1],
            first_word=first_word,
            POINTS=_PACKED,
        )


@torch.library.custom_op("lmn::hash_patterns", mutates_args={"hashes"})
def hash_words(words: Tensor, hashes: Tensor) -> None:
    """The hashes, (n, 2), of words, (n, n_words); both int64."""
    n, n_words = words.shape
    if n:
        grid = (triton.cdiv(n, _PACKED),)
        _HASH.launch(grid, words=words, hashes=hashes, n_points=n, n_words=n_words, POINTS=_PACKED)


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("n_points", "n_in", "n_axes", "n_words", "n_units", "n_breakpoints", "first_word")
_TYPES = dict.fromkeys(_INTEGERS, "i32") | {"begin": "i64", "layout": "*i32"}
_TYPES |= {"edges": "*i32", "p0": "fp32", "p1": "fp32"} | dict.fromkeys(("words", "hashes", "indices", "counts"), "*i64")


def configurations() -> Iterator[Configuration]:
    for label, core, most, grid in (
        ("abs, grid", "abs", 1, True), ("abs, samples", "abs", 1, False), ("clamp, samples", "clamp", 2, False)
    ):  # fmt: skip
        constants: dict[str, Any] = {
            "GRID": grid,
            "INDEXED": False,
            "EDGES": True,
            "MOST_BREAKPOINTS": most,
            "DEPTH": MOST_DEPTH,
        }
        constants |= {"WIDTH": MOST_WIDTH, "POINTS": POINTS, "INS": INS, "PRECISION": ""}
        constants |= dict.fromkeys(("CORE0", "CORE1", "CORE2"), CORES.index(core))
        yield from _NARROW.configurations("patterns", f"{MOST_DEPTH} x {MOST_WIDTH} {label}", constants, _TYPES)
    for core in ("abs", "clamp"):
        constants = {"LAST": False, "EDGES": True, "CORE": CORES.index(core), "INS": 32, "UNITS": UNITS, "PRECISION": ""}
        yield from _LAYER.configurations("patterns", f"layer, {core}", constants, _TYPES)
    yield from _PACK.configurations("patterns", "pack", {"POINTS": _PACKED}, _TYPES)
    yield from _HASH.configurations("patterns", "hash", {"POINTS": _PACKED}, _TYPES)
