"""The Triton kernels of connectivity as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.connectivity.pairs import Pairs
from lmn.kernels.connectivity.triton_fused import fused_connectivity
from lmn.kernels.connectivity.triton_wide import activations, sums
from lmn.kernels.triton_cases import Case, empty
from lmn.kernels.triton_checks import Arrays, check_cores, require, single, sizes_of
from lmn.kernels.triton_host import AT_ONCE, LEAST, MOST_DEPTH, MOST_WIDTH, check_layers, names, numbered
from lmn.kernels.triton_targets import IS_TRITON_3_2, Target
from lmn.kernels.triton_tuned import Choice, Tuned

PAIRS = 16  # of a fused tile: the rows of one instruction of the matrix unit
_NARROW_KEY = ("DEPTH", "WIDTH", "OUTPUTS", *names("CORE"))


def _is_small(given: dict[str, Any], _target: Target) -> bool:
    return bool(given["DEPTH"] * given["WIDTH"] <= MOST_WIDTH and given["OUTPUTS"] <= AT_ONCE)


def _fits_whole(given: dict[str, Any], _target: Target) -> bool:
    """Older Tritons use more registers."""
    return given["WIDTH"] <= AT_ONCE or (given["DEPTH"] == 1 and (given["OUTPUTS"] <= AT_ONCE or not IS_TRITON_3_2))


def _fits_in_parts(given: dict[str, Any], _target: Target) -> bool:
    return bool(given["WIDTH"] > AT_ONCE and given["DEPTH"] <= 2)


def _fits_in_parts_with_reloads(given: dict[str, Any], _target: Target) -> bool:
    return bool(given["WIDTH"] > AT_ONCE and given["DEPTH"] > 2)


def _narrow_arrays(given: dict[str, Any]) -> Arrays:
    n_points, depth, width, outputs = (given[name] for name in ("n_points", "DEPTH", "WIDTH", "OUTPUTS"))
    z, y, of_units = (n_points, depth * width), (n_points, outputs), (depth, width)
    return single(
        z_high=z, z_low=z, y_high=y, y_low=y, weights=(depth, width, width), scales=of_units, straights=of_units,
        parameters=(depth, 2), noise=(outputs,), out=(n_points, n_points),
    )  # fmt: skip


def _deviations_arrays(given: dict[str, Any]) -> Arrays:
    n_units, n_pairs = given["n_units"], given["n_pairs"]
    _check_pairs(given)
    z = (given["n_points"], n_units)
    return single(z_high=z, z_low=z, scales=(n_units,), straights=(n_units,), u=(given["m"] - 2, n_pairs, n_units))


def _sums_arrays(given: dict[str, Any]) -> Arrays:
    n_points, n_out = given["n_points"], given["n_out"]
    _check_pairs(given)
    y, u = (n_points, n_out), (given["m"] - 2, given["n_pairs"], n_out)
    return single(u=u, y_high=y, y_low=y, noise=(n_out,), out=(n_points, n_points))


def _check_segments(m: int, sxx: float) -> None:
    require(m > 2 and sxx > 0, f"a segment has three points or more, which differ; got m = {m}, sxx = {sxx}.")


def _check_pairs(given: dict[str, Any]) -> None:
    n, first, last = given["n_points"], given["first_pair"], given["first_pair"] + given["n_pairs"]
    require(0 <= given["n_rows"] <= n, f"pairs of the first {given['n_rows']} of {n} samples: there are no such pairs.")
    n_pairs = len(Pairs(n, given["n_rows"] or None))
    require(first >= 0 and last <= n_pairs, f"{n} samples have {n_pairs} pairs; got those from {first} to {last}.")


_TUNED = Tuned(fused_connectivity, _NARROW_KEY, (
    Choice({"RELOADS": False, "SOME": MOST_WIDTH}, 4, roomy=True, fits=_is_small),
    Choice({"RELOADS": False, "SOME": MOST_WIDTH}, 8, roomy=True, fits=_fits_whole),
    Choice({"RELOADS": False, "SOME": AT_ONCE}, 8, roomy=True, fits=_fits_in_parts),
    Choice({"RELOADS": True, "SOME": AT_ONCE}, 8, roomy=True, fits=_fits_in_parts_with_reloads),
), _narrow_arrays)  # fmt: skip
# In place: not to be run again.
_DEVIATIONS = Tuned(activations, None, (Choice({"PAIRS": 32, "UNITS": 64}, 4, 2),), _deviations_arrays)
_SUMS = Tuned(sums, None, (Choice({"PAIRS": 32, "OUTS": 32}, 4, 2, roomy=True),), _sums_arrays)


@torch.library.custom_op("lmn::connectivity", mutates_args={"out"})
def narrow_pairs(
    z_high: Tensor,
    z_low: Tensor,
    y_high: Tensor,
    y_low: Tensor,
    weights: Tensor,
    scales: Tensor,
    straights: Tensor,
    parameters: Tensor,
    noise: Tensor,
    cores: list[int],
    first_row: int,
    n_rows: int,
    first_column: int,
    n_out: int,
    m: int,
    sxx: float,
    constant: float,
    tolerance: float,
    out: Tensor,
    precision: str = "",
) -> None:
    """r² of rows of pairs to out, (n_points, n_points): see ``fused_connectivity``, of which these are the arrays."""
    (n_points, _), (_, outputs) = sizes_of("out", out, 2), sizes_of("y_high", y_high, 2)
    depth, width = check_layers(scales, cores)
    rows = f"rows {first_row} to {first_row + n_rows} and columns from {first_column} of {n_points} samples"
    require(0 <= first_row <= first_row + n_rows <= n_points and first_column >= 0, f"{rows}: there are no such pairs.")
    require(0 < n_out <= outputs, f"y has room for {outputs} outputs; got n_out = {n_out}.")
    _check_segments(m, sxx)
    tiles = triton.cdiv(n_points - first_column // PAIRS * PAIRS, PAIRS)
    _TUNED.launch(
        (n_rows, tiles),
        z_high=z_high,
        z_low=z_low,
        y_high=y_high,
        y_low=y_low,
        weights=weights,
        scales=scales,
        straights=straights,
        parameters=parameters,
        noise=noise,
        out=out,
        first_row=first_row,
        first_column=first_column,
        n_points=n_points,
        n_out=n_out,
        m=m,
        nothing=0,
        sxx=sxx,
        constant=constant,
        tolerance=tolerance,
        DEPTH=depth,
        WIDTH=width,
        OUTPUTS=outputs,
        PAIRS=PAIRS,
        **numbered("CORE", cores),
        precision=precision,
    )


@torch.library.custom_op("lmn::connectivity_deviations", mutates_args={"u"})
def deviations(
    z_high: Tensor,
    z_low: Tensor,
    scales: Tensor,
    straights: Tensor,
    first_pair: int,
    n_rows: int,
    core: int,
    p0: float,
    p1: float,
    shifted: bool,
    u: Tensor,
) -> None:
    """An activation's deviations from its chords in place of those of its argument, u (m - 2, n_pairs, n_units).

    Of the pairs from first_pair on, of the first n_rows samples with the others, or, where that is 0, of all.
    """
    steps, n_pairs, n_units = sizes_of("u", u, 3)
    check_cores(core)
    _DEVIATIONS.launch(
        lambda tile: (triton.cdiv(n_pairs, tile["PAIRS"]), triton.cdiv(n_units, tile["UNITS"])),
        z_high=z_high,
        z_low=z_low,
        scales=scales,
        straights=straights,
        u=u,
        p0=p0,
        p1=p1,
        first_pair=first_pair,
        n_pairs=n_pairs,
        n_points=len(z_high),
        n_rows=n_rows,
        ALL=n_rows == 0,
        n_units=n_units,
        m=steps + 2,
        SHIFTED=shifted,
        CORE=core,
    )


@torch.library.custom_op("lmn::connectivity_sums", mutates_args={"out"})
def r_squared(
    u: Tensor,
    y_high: Tensor,
    y_low: Tensor,
    noise: Tensor,
    first_pair: int,
    n_rows: int,
    sxx: float,
    constant: float,
    tolerance: float,
    out: Tensor,
) -> None:
    """r² of pairs as ``deviations`` numbers them to out, (n_points, n_points), from their outputs' u (m - 2, pairs, n_out)."""
    steps, n_pairs, n_out = sizes_of("u", u, 3)
    _check_segments(steps + 2, sxx)
    require(n_out > 0, "there are no outputs.")
    _SUMS.launch(
        lambda tile: (triton.cdiv(n_pairs, tile["PAIRS"]),),
        u=u,
        y_high=y_high,
        y_low=y_low,
        noise=noise,
        out=out,
        first_pair=first_pair,
        n_pairs=n_pairs,
        n_points=len(out),
        n_rows=n_rows,
        ALL=n_rows == 0,
        n_out=n_out,
        m=steps + 2,
        sxx=sxx,
        constant=constant,
        tolerance=tolerance,
    )


@dataclass(frozen=True, eq=False)
class Fused:
    """The sizes that a fused kernel is compiled for; None where the chain is too wide or too deep."""

    depth: int
    width: int
    outputs: int

    @property
    def choices(self) -> tuple[Choice, ...]:
        """On NVIDIA."""
        return _TUNED.fitting({"DEPTH": self.depth, "WIDTH": self.width, "OUTPUTS": self.outputs}, Target("cuda"))


def fused_for(units: list[int], n_out: int) -> Fused | None:
    """What there is a fused kernel for.

    Of three and four layers of 65 units or more it is by the model of triton_work.py a sixth slower on an H100 than a layer at
    a time, and faster on the others: that is less than what the model is good to, and it takes no scratch memory.
    """
    width, outputs = (max(LEAST, triton.next_power_of_2(n)) for n in (max(units), n_out))
    if len(units) > MOST_DEPTH or max(width, outputs) > MOST_WIDTH or (len(units) == MOST_DEPTH and outputs > AT_ONCE):
        return None
    return Fused(len(units), max(width, outputs), outputs)


# ---- for the report ----------------------------------------------------------------------------------------------------


def cases(thorough: bool) -> Iterator[Case]:
    """The paper's tail, the widest and the deepest of fused kernels, and layers of wide chains, of one unit too."""
    sizes = [
        ((100,), 31),
        ((100,), 113),
        ((100, 100), 31),
        ((100, 100), 64),
        ((100, 100), 113),
        ((100,) * 3, 113),
        ((100,) * 4, 64),
        ((64,) * 4, 64),
        ((32,), 10),
    ]
    if thorough:
        sizes += [((64,) * depth, n_out) for depth in (1, 2, 3) for n_out in (1, 64)]
        sizes += [((100,) * depth, n_out) for depth in (3, 4) for n_out in (1, 64)]
    for units, n_out in dict.fromkeys(sizes):
        found = fused_for(list(units), n_out)
        assert found is not None
        for core in CORES if thorough else ("ztanh", "zerf"):
            label = f"{found.depth} x {found.width} to {found.outputs}, {core}"
            yield Case("connectivity", label, partial(_narrow_case, found, n_out, CORES.index(core)))
    for core, n_units in itertools.product(CORES[1:], (256, 250, 1)):
        for shifted in (False, True) if thorough else (True,):
            if thorough or n_units == 256 or core == "mish":
                label = f"wide, {n_units} of {core}{'' if shifted else ', first'}"
                yield Case("connectivity", label, partial(_wide_case, CORES.index(core), n_units, shifted))
    for n_out in (16, 10, 1):
        yield Case("connectivity", f"wide, sums of {n_out}", partial(_sums_case, n_out))


def _narrow_case(sizes: Fused, n_out: int, core: int) -> None:
    n, depth, width, outputs = 768, sizes.depth, sizes.width, sizes.outputs
    z, y, of_units = empty(n, depth * width), empty(n, outputs), empty(depth, width)
    narrow_pairs(
        z, z, y, y, empty(depth, width, width), of_units, of_units, empty(depth, 2), empty(outputs), [core] * depth,
        first_row=0, n_rows=n, first_column=0, n_out=n_out, m=21, sxx=1.0, constant=0.0, tolerance=0.0, out=empty(n, n),
    )  # fmt: skip


def _wide_case(core: int, n_units: int, shifted: bool) -> None:
    z, of_units = empty(768, n_units), empty(n_units)
    deviations(z, z, of_units, of_units, 0, 0, core, 0.0, 0.0, shifted, empty(19, 4096, n_units))


def _sums_case(n_out: int) -> None:
    y = empty(768, n_out)
    r_squared(empty(19, 4096, n_out), y, y, empty(n_out), 0, 0, 1.0, 0.0, 0.0, empty(768, 768))
