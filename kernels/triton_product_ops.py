"""Products of wide layers as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.triton_cases import Case, empty
from lmn.kernels.triton_checks import Arrays, check_cores, require, single, sizes_of
from lmn.kernels.triton_products import PLAIN, SLOPED, WITH_SLOPES, products
from lmn.kernels.triton_targets import IS_TRITON_3_8, Target
from lmn.kernels.triton_tuned import Choice, Tuned

_KEY = ("n_in", "n_out", "EPILOGUE", "CORE")


def _arrays(given: dict[str, Any]) -> Arrays:
    n_rows, n_in, n_out, epilogue = (given[name] for name in ("n_rows", "n_in", "n_out", "EPILOGUE"))
    arrays = single(a=(n_rows, n_in), weights=(n_in, n_out), out=(n_rows, n_out))
    if epilogue == WITH_SLOPES.value:
        arrays |= single(bias=(n_out,), scales=(n_out,), straights=(n_out,), slopes=(n_rows, n_out))
    elif epilogue == SLOPED.value:
        a_point = given["rows_a_point"]
        require(a_point > 0 and n_rows % a_point == 0, f"{n_rows} rows are no multiple of {a_point} a point.")
        arrays |= single(slopes=(n_rows // a_point, n_out))
    return arrays


def is_even(given: dict[str, Any], target: Target) -> bool:
    """Loads of rows that begin anywhere take registers, which there are more of on AMD's GPUs."""
    return target.backend == "hip" or (given["n_in"] % 16 == 0 and given["n_out"] % 16 == 0)


def is_large(n_in: int, n_out: int) -> bool:
    """Whether tiles of 128 columns are no waste, and their loads aligned."""
    return n_in % 16 == 0 and n_out % 16 == 0 and n_out > 64


def _has_registers(target: Target) -> bool:
    """Operands come from shared memory, or there are more registers, on AMD's GPUs."""
    return target.takes_64_rows or target.backend == "hip"


def _fits_128_columns(given: dict[str, Any], target: Target) -> bool:
    return is_large(given["n_in"], given["n_out"]) and _has_registers(target)


def _fits_128_columns_of_64_rows(given: dict[str, Any], target: Target) -> bool:
    """Where both operands go through registers."""
    return is_large(given["n_in"], given["n_out"]) and not _fits_128_columns(given, target)


def _is_column(given: dict[str, Any], target: Target) -> bool:
    """For one input or output, Triton makes other code of the rest."""
    return not is_even(given, target) and min(given["n_in"], given["n_out"]) == 1


def _is_no_column(given: dict[str, Any], target: Target) -> bool:
    return not _is_column(given, target)


def _has_two_stages(target: Target) -> bool:
    """Of operands that go through registers Triton 3.8 takes more of them."""
    return _has_registers(target) or not IS_TRITON_3_8


def _is_even_in_two_stages(given: dict[str, Any], target: Target) -> bool:
    return is_even(given, target) and _has_two_stages(target)


def _is_no_column_in_two_stages(given: dict[str, Any], target: Target) -> bool:
    return _is_no_column(given, target) and _has_two_stages(target)


def _is_no_column_in_one_stage(given: dict[str, Any], target: Target) -> bool:
    return _is_no_column(given, target) and not _has_two_stages(target)


_PLAIN = Tuned(products, _KEY, (
    Choice({"ROWS": 64, "INS": 32, "OUTS": 64}, 4, 2, roomy=True, fits=_is_even_in_two_stages),
    Choice({"ROWS": 64, "INS": 32, "OUTS": 64}, 8, 2, roomy=True, fits=_is_no_column_in_two_stages),
    Choice({"ROWS": 64, "INS": 32, "OUTS": 64}, 8, 1, roomy=True, fits=_is_no_column_in_one_stage),
    Choice({"ROWS": 32, "INS": 32, "OUTS": 64}, 8, 2, roomy=True, fits=_is_column),
    Choice({"ROWS": 128, "INS": 32, "OUTS": 64}, 8, 2, roomy=True, fits=is_even),
    Choice({"ROWS": 128, "INS": 32, "OUTS": 128}, 8, 2, roomy=True, fits=_fits_128_columns),
    Choice({"ROWS": 64, "INS": 32, "OUTS": 128}, 8, 2, roomy=True, fits=_fits_128_columns_of_64_rows),
), _arrays)  # fmt: skip
_OF_WHAT_IS_COUNTED = replace(_PLAIN, key=None)

_WITH_SLOPES = Tuned(products, _KEY, (
    Choice({"ROWS": 32, "INS": 32, "OUTS": 64}, 8, 2, roomy=True),
    Choice({"ROWS": 64, "INS": 32, "OUTS": 64}, 8, 2, roomy=True, fits=is_even),
), _arrays)  # fmt: skip


@torch.library.custom_op("lmn::products", mutates_args={"out"})
def plain(a: Tensor, weights: Tensor, out: Tensor, counted: bool = False, precision: str = "") -> None:
    """out, (..., n_out), from a, (..., n_in), and weights, (n_in, n_out); where signs are counted, of equal rows equal bits."""
    _launch(_OF_WHAT_IS_COUNTED if counted else _PLAIN, a, weights, out, precision, EPILOGUE=PLAIN.value)


@torch.library.custom_op("lmn::products_sloped", mutates_args={"out"})
def sloped(a: Tensor, weights: Tensor, slopes: Tensor, rows_a_point: int, out: Tensor, precision: str = "") -> None:
    """And each row times the slopes, (n_points, n_out), of its point."""
    _launch(_PLAIN, a, weights, out, precision, EPILOGUE=SLOPED.value, slopes=slopes, rows_a_point=rows_a_point)


@torch.library.custom_op("lmn::products_with_slopes", mutates_args={"out", "slopes"})
def with_slopes(
    a: Tensor,
    weights: Tensor,
    bias: Tensor,
    scales: Tensor,
    straights: Tensor,
    core: int,
    p0: float,
    p1: float,
    kink: float,
    out: Tensor,
    slopes: Tensor,
    precision: str = "",
) -> None:
    """And plus a bias, and through the activation after it, whose slopes go to slopes, of the shape of out."""
    rest = {"bias": bias, "scales": scales, "straights": straights, "p0": p0, "p1": p1, "kink": kink, "slopes": slopes}
    _launch(_WITH_SLOPES, a, weights, out, precision, EPILOGUE=WITH_SLOPES.value, CORE=core, **rest)


def _launch(tuned: Tuned, a: Tensor, weights: Tensor, out: Tensor, precision: str, **rest: Any) -> None:
    n_in, n_out = sizes_of("weights", weights, 2)
    require(n_in > 0 and a.shape[-1:] == (n_in,), f"rows of {n_in} values are multiplied; got a of shape {tuple(a.shape)}.")
    check_cores(rest.get("CORE", 0))
    n_rows = a.numel() // n_in
    unused: dict[str, Any] = dict.fromkeys(("bias", "scales", "straights", "slopes"), weights)
    unused |= {"p0": 0.0, "p1": 0.0, "kink": 0.0, "rows_a_point": 1, "CORE": 0}
    tuned.launch(
        lambda tile: (triton.cdiv(n_rows, tile["ROWS"]) * triton.cdiv(n_out, tile["OUTS"]),),
        a=a,
        weights=weights,
        out=out,
        **(unused | rest),
        n_rows=n_rows,
        n_in=n_in,
        n_out=n_out,
        precision=precision,
    )


# ---- for the report ----------------------------------------------------------------------------------------------------


def cases(thorough: bool) -> Iterator[Case]:
    """Layers of 256 units, of a number that is no multiple of 16, and of one: for each Triton compiles anew."""
    for n_in, n_out in itertools.product((256, 250, 1), repeat=2):
        if thorough or n_in == n_out or 1 in (n_in, n_out):
            label, arrays = f"plain, {n_in} to {n_out}", (empty(4096, n_in), empty(n_in, n_out), empty(4096, n_out))
            yield Case("products", label, partial(plain, *arrays))
    for n in (256, 250, 1):
        a, weights, of_units = empty(4096, n), empty(n, n), empty(n)
        label = f"sloped, {n}, 10 rows a point"
        yield Case("products", label, partial(sloped, empty(4096, 10, n), weights, a, 10, empty(4096, 10, n)))
        for core in CORES if thorough else ("relu", "mish") if n == 256 else ("mish",):
            rest = (of_units, of_units, of_units, CORES.index(core), 0.0, 0.0, 0.0, empty(4096, n), empty(4096, n))
            yield Case("products", f"with slopes, {n}, {core}", partial(with_slopes, a, weights, *rest))
