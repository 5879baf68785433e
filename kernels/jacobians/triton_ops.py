"""The Triton kernels of Jacobians as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES, STRAIGHT_CORES
from lmn.kernels.jacobians.triton_fused import GRAM, STORED, fused_jacobians
from lmn.kernels.jacobians.triton_wide import gram_products
from lmn.kernels.triton_cases import Case, empty, forward
from lmn.kernels.triton_checks import Arrays, require, single, sizes_of
from lmn.kernels.triton_host import (
    AT_ONCE,
    LEAST,
    MOST_DEPTH,
    MOST_WIDTH,
    at_once,
    check_entries,
    check_layers,
    first_arrays,
    forward_arrays,
    names,
    numbered,
)
from lmn.kernels.triton_product_ops import is_even
from lmn.kernels.triton_targets import Target, multiprocessors
from lmn.kernels.triton_tuned import Choice, Tuned

INS, COLUMNS = 16, 32
POINTS = 16  # of a tile: the rows of one instruction of the matrix unit
MOST_ROWS = 64  # of a point, whose inner products are made in one kernel with the last product; 128 spill, in 8 warps and in 16
MOST_NARROW_ROWS = 32  # and in one kernel for all of a narrow chain
_SHARED_BY = 2  # programs a multiprocessor
_KEY = ("REVERSE", "ENDS", "MODE", "DEPTH", "WIDTH", "ROWS", *names("CORE"), "n_in", "n_columns")


def _has_registers(arguments: dict[str, Any], target: Target) -> bool:
    """Cores with a slope of their own take what is left, and so do a sweep that ends in a layer, a fourth layer, and more
    rows."""
    if arguments["ROWS"] > POINTS:
        return False
    cores = (arguments[f"CORE{layer}"] for layer in range(arguments["DEPTH"]))
    has_room = arguments["ENDS"] and all(CORES[core] in STRAIGHT_CORES for core in cores)
    if arguments["WIDTH"] == AT_ONCE:
        return target.backend == "hip" or arguments["DEPTH"] < 3 or (arguments["DEPTH"] == 3 and has_room)
    return bool(arguments["WIDTH"] == LEAST)


def _fits_at_once(given: dict[str, Any], target: Target) -> bool:
    return at_once(given, target) and bool(given["ROWS"] == POINTS)


def _fits_in_parts(given: dict[str, Any], target: Target) -> bool:
    return not _fits_at_once(given, target)


def _arrays(given: dict[str, Any]) -> Arrays:
    n_points, n_rows, n_columns, width = (given[name] for name in ("n_points", "n_rows", "n_columns", "WIDTH"))
    if given["MODE"] == GRAM.value:
        require(n_rows <= MOST_NARROW_ROWS, f"inner products of up to {MOST_NARROW_ROWS} rows a point; got {n_rows}.")
        out: tuple[int, ...] = (n_points, n_rows, n_rows)
    else:
        check_entries(n_rows, n_columns)
        out = (n_points, n_rows, n_columns) if given["REVERSE"] else (n_points, n_columns, n_rows)
    check_entries(n_rows, width)
    arrays = forward_arrays(given) | first_arrays(given)
    arrays |= single(start=(n_rows, width), matrices=arrays["weights"][1], out=out)
    if given["ENDS"]:
        check_entries(width, n_columns)
        return arrays | single(end=(width, n_columns))
    require(n_columns <= width, f"{n_columns} columns of a last layer of {width} units.")
    return arrays


_TUNED = Tuned(fused_jacobians, _KEY, (
    Choice({"SOME": AT_ONCE}, 4, roomy=True, fits=_has_registers),
    Choice({"SOME": AT_ONCE}, 8, roomy=True, fits=_fits_at_once),
    Choice({"SOME": 32}, 8, roomy=True, fits=_fits_in_parts),
), _arrays)  # fmt: skip


@torch.library.custom_op("lmn::jacobians", mutates_args={"out"})
def narrow_maps(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor,
    weights: Tensor,
    biases: Tensor,
    scales: Tensor,
    straights: Tensor,
    parameters: Tensor,
    start: Tensor,
    matrices: Tensor,
    end: Optional[Tensor],  # noqa: UP045 - what PyTorch 2.6 reads
    cores: list[int],
    reverse: bool,
    grams: bool,
    out: Tensor,
    precision: str = "",
) -> None:
    """Jacobians at x, (n, n_in), or the inner products of their rows, to out: the arrays are those of ``fused_jacobians``."""
    (n_points, n_in), (n_rows, _) = sizes_of("x", x, 2), sizes_of("start", start, 2)
    out_shape = sizes_of("out", out, 3)
    of_layer = scales.shape[-1] if grams else out_shape[2 if reverse else 1]  # of inner products it does not matter
    n_columns = of_layer if end is None else sizes_of("end", end, 2)[1]
    depth, width = check_layers(scales, cores)
    tiles = triton.cdiv(n_points, POINTS)
    _TUNED.launch(
        (tiles, shares(tiles, POINTS if grams else n_rows, multiprocessors(x.device))),
        x=x,
        first=first,
        first_bias=first_bias,
        weights=weights,
        biases=biases,
        scales=scales,
        straights=straights,
        parameters=parameters,
        start=start,
        matrices=matrices,
        end=start if end is None else end,
        out=out,
        n_points=n_points,
        n_in=n_in,
        n_rows=n_rows,
        n_columns=n_columns,
        nothing=0,
        REVERSE=reverse,
        ENDS=end is not None,
        MODE=GRAM.value if grams else STORED.value,
        DEPTH=depth,
        WIDTH=width,
        POINTS=POINTS,
        ROWS=max(POINTS, triton.next_power_of_2(n_rows)) if grams else POINTS,
        INS=INS,
        COLUMNS=COLUMNS,
        **numbered("CORE", cores),
        precision=precision,
    )


def shares(tiles: int, rounds: int, processors: int) -> int:
    """Among how many programs a tile's rounds are shared out: each goes through the chain anew, which costs nothing while there
    are multiprocessors without a program."""
    return max(1, min(rounds, _SHARED_BY * processors // max(1, tiles)))


def _wide_arrays(given: dict[str, Any]) -> Arrays:
    n_rows, a_point, n_in, n_out = (given[name] for name in ("n_rows", "rows_a_point", "n_in", "n_out"))
    arrays = single(a=(n_rows, n_in), weights=(n_in, n_out), out=(n_rows, a_point))
    return arrays | (single(slopes=(n_rows // a_point, n_out)) if given["SLOPED"] else {})


def _fits_32_rows(given: dict[str, Any], _target: Target) -> bool:
    return bool(given["rows_a_point"] <= 32)


_WIDE = Tuned(gram_products, ("SLOPED", "n_in", "n_out", "rows_a_point"), (
    Choice({"ROWS": MOST_ROWS, "INS": 32, "OUTS": 32}, 4, 2, roomy=True, fits=is_even),
    Choice({"ROWS": 32, "INS": 32, "OUTS": 32}, 4, 2, roomy=True, fits=_fits_32_rows),
    Choice({"ROWS": MOST_ROWS, "INS": 16, "OUTS": 32}, 8, 2, roomy=True),
), _wide_arrays)  # fmt: skip


@torch.library.custom_op("lmn::jacobian_grams", mutates_args={"out"})
def wide_grams(
    rows: Tensor,
    weights: Tensor,
    slopes: Optional[Tensor],  # noqa: UP045 - what PyTorch 2.6 reads
    out: Tensor,
    precision: str = "",
) -> None:
    """Inner products, (n, k, k), of rows, (n, k, n_in), times weights, (n_in, n_out), and slopes, (n, n_out)."""
    (n, a_point, n_in), (_, n_out) = sizes_of("rows", rows, 3), sizes_of("weights", weights, 2)
    require(0 < a_point <= MOST_ROWS, f"inner products of 1 to {MOST_ROWS} rows a point; got {a_point}.")
    sizes_of("out", out, 3)
    _WIDE.launch(
        lambda tile: (triton.cdiv(n, tile["ROWS"] // a_point),),
        a=rows,
        weights=weights,
        slopes=weights if slopes is None else slopes,
        out=out,
        n_rows=n * a_point,
        n_in=n_in,
        n_out=n_out,
        rows_a_point=a_point,
        SLOPED=slopes is not None,
        precision=precision,
    )


# ---- for the report ----------------------------------------------------------------------------------------------------


def cases(thorough: bool) -> Iterator[Case]:
    """Forward and reverse, with a last map and without, from the deepest chains, and from the deepest in fewer warps; of few
    inputs, of few units and of inner products of more rows too."""
    for depth, core in itertools.product(range(1, MOST_DEPTH + 1), CORES):
        for width, n_in in ((MOST_WIDTH, 64), (AT_ONCE, 64), (AT_ONCE, 2), (LEAST, 64)):
            most = MOST_DEPTH if width <= AT_ONCE or core in STRAIGHT_CORES else MOST_DEPTH - 1
            if depth > most:
                continue
            for grams, ends, reverse in itertools.product((False, True), repeat=3):
                deepest = core in ("relu", "mish") and depth == most and reverse
                of_fewer_warps = core == "mish" and depth == 2 and reverse and ends and width == AT_ONCE
                of_the_largest = n_in == 64 and width >= AT_ONCE
                forward_too = core == "mish" and depth == most and ends and of_the_largest
                in_default = of_fewer_warps or forward_too or (deepest and (of_the_largest or (core == "mish" and ends)))
                if in_default or (thorough and (of_the_largest or (core == "mish" and ends))):
                    label = f"{depth} x {width} {core} of {n_in}, {'inner products' if grams else 'stored'}"
                    label += f", {'reverse' if reverse else 'forward'}{'' if ends else ', narrowed'}"
                    case = partial(_case, depth, width, CORES.index(core), n_in, grams, ends, reverse)
                    yield Case("jacobians", label, case)
                    if grams and reverse and of_the_largest:
                        yield Case("jacobians", f"{label}, of 20 rows", partial(case, n_out=20))
    for n_in, n_out in ((200, 256), (256, 256), (1, 256), (256, 1)):
        for sloped in (False, True):
            label = f"inner products of {n_in} to {n_out}{', sloped' if sloped else ''}"
            arrays = empty(4096, 10, n_in), empty(n_in, n_out), empty(4096, n_out) if sloped else None, empty(4096, 10, 10)
            yield Case("jacobians", label, partial(wide_grams, *arrays))


def _case(depth: int, width: int, core: int, n_in: int, grams: bool, ends: bool, reverse: bool, n_out: int = 10) -> None:
    n, n_out = 4096, n_out if n_in == 64 else 1
    n_rows, n_columns, arrays = *((n_out, n_in) if reverse else (n_in, n_out)), forward(depth, width)
    if not ends:
        n_columns = min(n_columns, width)
    if grams:
        n_rows = n_rows if reverse else min(n_rows, POINTS)
    out = (n_rows, n_rows) if grams else (n_rows, n_columns) if reverse else (n_columns, n_rows)
    narrow_maps(
        empty(n, n_in), empty(n_in, width), empty(width), **arrays, start=empty(n_rows, width), matrices=arrays["weights"],
        end=empty(width, n_columns) if ends else None, cores=[core] * depth, reverse=reverse, grams=grams, out=empty(n, *out),
    )  # fmt: skip
