"""The Triton kernels of local complexity as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.local_complexity.triton_fused import fused_local_complexity
from lmn.kernels.local_complexity.triton_wide import layer_of_local_complexity
from lmn.kernels.triton_cases import Case, empty, forward
from lmn.kernels.triton_checks import Arrays, check_cores, of_type, single, sizes_of
from lmn.kernels.triton_host import (
    AT_ONCE,
    LEAST,
    MOST_BREAKPOINTS,
    MOST_DEPTH,
    MOST_WIDTH,
    at_once,
    check_bends,
    check_breakpoints,
    check_layers,
    forward_arrays,
    numbered,
)
from lmn.kernels.triton_targets import Target
from lmn.kernels.triton_tuned import Choice, Tuned

UNITS = 64


def _narrow_arrays(given: dict[str, Any]) -> Arrays:
    n, depth, width = len(given["counts"]), given["DEPTH"], given["WIDTH"]
    arrays = single(at_samples=(n, width), steps=(given["n_directions"], width), breakpoints=(depth, MOST_BREAKPOINTS))
    return forward_arrays(given) | arrays | of_type(torch.int32, counts=(n, depth))


def _layer_arrays(given: dict[str, Any]) -> Arrays:
    n_in, n_units, n_directions = (given[name] for name in ("n_in", "n_units", "n_directions"))
    n = len(given["counts"])
    vertices = 2 * n_directions * n
    arrays = single(scales=(n_units,), straights=(n_units,), breakpoints=(given["BREAKPOINTS"],))
    if given["FIRST"]:
        arrays |= single(at_samples=(n, n_units), steps=(n_directions, n_units))
    else:
        arrays |= single(u=(vertices, n_in), weights=(n_in, n_units), bias=(n_units,))
    if not given["LAST"]:
        arrays |= single(out=(vertices, n_units))
    return arrays | of_type(torch.int32, counts=(n, triton.cdiv(n_units, UNITS)))


def _fits_more_vertices(given: dict[str, Any], target: Target) -> bool:
    """Of fewer columns warps would share rows, and of more there are too few registers."""
    return target.backend == "cuda" and bool(given["WIDTH"] == AT_ONCE)


NARROW = Tuned(fused_local_complexity, None, (
    Choice({"VERTICES": 32}, 8, roomy=True, fits=_fits_more_vertices),
    Choice({"VERTICES": 16}, 4, roomy=True, fits=at_once),
    Choice({"VERTICES": 16}, 8, roomy=True),
), _narrow_arrays)  # fmt: skip


def _is_no_column(given: dict[str, Any], target: Target) -> bool:
    """Products with one input are unrolled, and take registers."""
    return target.backend == "cuda" or given["n_in"] > 1


_LAYER = Tuned(layer_of_local_complexity, None, (
    Choice({"VERTICES": 32}, 8, 2, roomy=True, fits=_is_no_column), Choice({"VERTICES": 16}, 8, 2, roomy=True)
), _layer_arrays)  # fmt: skip


@torch.library.custom_op("lmn::local_complexity", mutates_args={"counts"})
def narrow_counts(
    at_samples: Tensor,
    weights: Tensor,
    biases: Tensor,
    scales: Tensor,
    straights: Tensor,
    parameters: Tensor,
    steps: Tensor,
    breakpoints: Tensor,
    n_units: list[int],
    n_breakpoints: list[int],
    cores: list[int],
    counts: Tensor,
    precision: str = "",
) -> None:
    """Counts at samples to counts, (n, depth), int32: see ``fused_local_complexity``, of which these are the arrays."""
    (n_points, _), (n_directions, _) = sizes_of("counts", counts, 2), sizes_of("steps", steps, 2)
    depth, width = check_layers(scales, cores)
    check_bends(n_units, n_breakpoints, depth, width)
    NARROW.launch(
        (n_points,),
        at_samples=at_samples,
        weights=weights,
        biases=biases,
        scales=scales,
        straights=straights,
        parameters=parameters,
        steps=steps,
        breakpoints=breakpoints,
        counts=counts,
        n_directions=n_directions,
        nothing=0,
        DEPTH=depth,
        WIDTH=width,
        **numbered("CORE", cores, MOST_DEPTH - 1),
        **numbered("units", n_units),
        **numbered("BREAKPOINTS", n_breakpoints),
        precision=precision,
    )


@torch.library.custom_op("lmn::local_complexity_layer", mutates_args={"out", "counts"})
def layer_counts(
    u: Optional[Tensor],  # noqa: UP045 - what PyTorch 2.6 reads
    weights: Tensor,
    bias: Tensor,
    at_samples: Tensor,
    steps: Tensor,
    scales: Tensor,
    straights: Tensor,
    breakpoints: Tensor,
    core: int,
    p0: float,
    p1: float,
    out: Tensor,
    counts: Tensor,
    precision: str = "",
) -> None:
    """Of a layer's units, some a block, to counts, (n, n_blocks), int32; activations to out, unless it is empty.

    The layer takes u, or, where there is none, at_samples plus and minus steps; the arrays are those of
    ``layer_of_local_complexity``.
    """
    n, blocks = sizes_of("counts", counts, 2)
    check_cores(core)
    check_breakpoints(breakpoints)
    _LAYER.launch(
        (n * blocks,),
        u=at_samples if u is None else u,
        weights=weights,
        bias=bias,
        at_samples=at_samples,
        steps=steps,
        scales=scales,
        straights=straights,
        breakpoints=breakpoints,
        out=out,
        counts=counts,
        p0=p0,
        p1=p1,
        n_in=len(weights),
        n_units=len(bias),
        n_directions=len(steps),
        BREAKPOINTS=len(breakpoints),
        FIRST=u is None,
        LAST=len(out) == 0,
        CORE=core,
        INS=32,
        UNITS=UNITS,
        precision=precision,
    )


# ---- for the report ----------------------------------------------------------------------------------------------------


def cases(thorough: bool) -> Iterator[Case]:
    """The deepest narrow chains, and layers of wide ones: the first, those between, the last."""
    for depth in range(1, MOST_DEPTH + 1) if thorough else (MOST_DEPTH,):
        for core in CORES[1:] if thorough else ("relu", "mish"):
            for width in (MOST_WIDTH, AT_ONCE, LEAST):
                yield Case(
                    "local complexity", f"{depth} x {width} {core}", partial(_narrow_case, depth, width, CORES.index(core))
                )  # fmt: skip
    for core, n in itertools.product(CORES[1:] if thorough else ("mish",), (256, 250, 1)):
        for first, last in itertools.product((True, False), repeat=2):
            label = f"{'first' if first else 'later'} layer of {n}{', the last' if last else ''}, {core}"
            yield Case("local complexity", label, partial(_layer_case, CORES.index(core), n, first, last))


def _narrow_case(depth: int, width: int, core: int) -> None:
    n = 4096
    narrow_counts(
        empty(n, width), **forward(depth, width), steps=empty(25, width),
        breakpoints=empty(depth, MOST_BREAKPOINTS), n_units=[width] * depth, n_breakpoints=[1] * depth, cores=[core] * depth,
        counts=empty(n, depth, dtype=torch.int32),
    )  # fmt: skip


def _layer_case(core: int, n_units: int, first: bool, last: bool) -> None:
    n, n_in, of_units, blocks = 64, n_units, empty(n_units), triton.cdiv(n_units, UNITS)
    layer_counts(
        None if first else empty(50 * n, n_in), empty(n_in, n_units), of_units, empty(n, n_units), empty(25, n_units),
        of_units, of_units, empty(1), core, 0.0, 0.0, empty(0 if last else 50 * n, n_units),
        empty(n, blocks, dtype=torch.int32),
    )  # fmt: skip
