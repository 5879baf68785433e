"""The Triton kernels of connectivity as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.connectivity.triton_fused import fused
from lmn.kernels.connectivity.triton_wide import activations, sums
from lmn.kernels.triton_host import LEAST, MOST_DEPTH, numbered
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of
from lmn.kernels.triton_tuned import Choice, Tuned

PAIRS = 16  # of a fused tile: the rows of one instruction of the matrix unit
_NARROW, _WIDE = 64, 128  # units of a layer up to which a tail of any depth, or of two layers, fits the registers
_NARROW_KEY = ("DEPTH", "WIDTH", "OUTPUTS", "CORE0", "CORE1", "CORE2", "CORE3")
_TUNED = Tuned(fused, _NARROW_KEY, (Choice({}, 4), Choice({}, 8)))
_DEVIATIONS = Tuned(activations, (), (Choice({"PAIRS": 32, "UNITS": 64}, 4, 2),))  # in place: not to be run again
_SUMS = Tuned(sums, (), (Choice({"PAIRS": 32, "OUTS": 32}, 4, 2),))


@torch.library.custom_op("lmn::connectivity", mutates_args={"out"})
def narrow_pairs(
    z_high: Tensor,
    z_low: Tensor,
    y_high: Tensor,
    y_low: Tensor,
    weights: Tensor,
    scales: Tensor,
    slopes: Tensor,
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
) -> None:
    """r² of rows of pairs to out, (n_points, n_points): see ``fused``, of which these are the arrays."""
    n_points, (depth, width) = len(out), scales.shape
    tiles = triton.cdiv(n_points - first_column // PAIRS * PAIRS, PAIRS)
    if not n_rows or not tiles:
        return
    _TUNED.launch(
        (n_rows, tiles),
        z_high=z_high,
        z_low=z_low,
        y_high=y_high,
        y_low=y_low,
        weights=weights,
        scales=scales,
        slopes=slopes,
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
        OUTPUTS=y_high.shape[1],
        PAIRS=PAIRS,
        **numbered(cores),
        PRECISION=precision_of(out.device),
    )


@torch.library.custom_op("lmn::connectivity_deviations", mutates_args={"u"})
def deviations(
    z_high: Tensor,
    z_low: Tensor,
    scales: Tensor,
    slopes: Tensor,
    i: Tensor,
    j: Tensor,
    core: int,
    p0: float,
    p1: float,
    shifted: bool,
    u: Tensor,
) -> None:
    """An activation's deviations from its chords in place of those of its argument, u (m - 2, n_pairs, n_units)."""
    steps, n_pairs, n_units = u.shape
    if not n_pairs:
        return
    _DEVIATIONS.launch(
        lambda tile: (triton.cdiv(n_pairs, tile["PAIRS"]), triton.cdiv(n_units, tile["UNITS"])),
        z_high=z_high,
        z_low=z_low,
        scales=scales,
        slopes=slopes,
        i_of=i,
        j_of=j,
        u=u,
        p0=p0,
        p1=p1,
        n_pairs=n_pairs,
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
    i: Tensor,
    j: Tensor,
    sxx: float,
    constant: float,
    tolerance: float,
    out: Tensor,
) -> None:
    """r² of pairs to out, (n_points, n_points), from the deviations of their outputs, u (m - 2, n_pairs, n_out)."""
    steps, n_pairs, n_out = u.shape
    if not n_pairs:
        return
    _SUMS.launch(
        lambda tile: (triton.cdiv(n_pairs, tile["PAIRS"]),),
        u=u,
        y_high=y_high,
        y_low=y_low,
        noise=noise,
        i_of=i,
        j_of=j,
        out=out,
        n_points=len(out),
        n_pairs=n_pairs,
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


def fused_for(units: list[int], n_out: int) -> Fused | None:
    width, outputs = (max(LEAST, triton.next_power_of_2(n)) for n in (max(units), n_out))
    if len(units) > MOST_DEPTH or outputs > _NARROW or width > (_WIDE if len(units) <= 2 else _NARROW):
        return None
    return Fused(len(units), max(width, outputs), outputs)


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("first_row", "first_column", "n_points", "n_out", "m", "nothing", "n_pairs", "n_units", "n_rows", "n_in")
_FLOATS = ("sxx", "constant", "tolerance", "p0", "p1")
_TYPES = dict.fromkeys(_INTEGERS, "i32") | dict.fromkeys(_FLOATS, "fp32") | dict.fromkeys(("i_of", "j_of"), "*i32")


def configurations() -> Iterator[Configuration]:
    """The widest and the deepest of each kind of fused kernel, and the wide chains' kernels."""
    for units, n_out in (((100,), 31), ((100, 100), 31), ((64,) * 4, 64), ((32,), 10)):
        sizes = fused_for(list(units), n_out)
        assert sizes is not None
        for core in ("ztanh", "zerf") if len(units) == 2 else ("ztanh",):
            constants: dict[str, Any] = {"DEPTH": sizes.depth, "WIDTH": sizes.width, "OUTPUTS": sizes.outputs, "PAIRS": PAIRS}
            constants |= numbered([CORES.index(core)] * MOST_DEPTH) | {"PRECISION": ""}
            label = f"{sizes.depth} x {sizes.width} to {sizes.outputs}, {core}"
            default = 1 if sizes.width > _NARROW or sizes.depth > 2 else 0
            yield from _TUNED.configurations("connectivity", label, constants, _TYPES, [default])
    for core in CORES[1:]:
        constants = {"SHIFTED": True, "CORE": CORES.index(core)}
        yield from _DEVIATIONS.configurations("connectivity", f"wide, {core}", constants, _TYPES)
    yield from _SUMS.configurations("connectivity", "wide, sums", {}, _TYPES)
