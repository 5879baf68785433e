"""The Triton kernel of Jacobians as PyTorch's operator, which torch.compile and CUDA graphs take as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.jacobians.triton_fused import GRAM, STORED, fused
from lmn.kernels.triton_host import MOST_DEPTH, MOST_WIDTH, POINTS, numbered
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of
from lmn.kernels.triton_tuned import Choice, Tuned

INS, COLUMNS = 16, 32
_KEY = ("REVERSE", "ENDS", "MODE", "DEPTH", "WIDTH", "CORE0", "CORE1", "CORE2", "CORE3", "n_in", "n_columns")
_TUNED = Tuned(fused, _KEY, (Choice({}, 4), Choice({}, 8)))


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
) -> None:
    """Jacobians at x, (n, n_in), or the inner products of their rows, to out: see ``fused``, of which these are the arrays."""
    n_rows = len(start)
    n_columns = out.shape[2 if reverse else 1] if end is None else end.shape[1]
    if not len(x):
        return
    depth, width = scales.shape
    _TUNED.launch(
        (triton.cdiv(len(x), POINTS),),
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
        n_points=len(x),
        n_in=x.shape[1],
        n_rows=n_rows,
        n_columns=n_columns,
        row_stride=n_columns if reverse else 1,
        column_stride=1 if reverse else n_rows,
        nothing=0,
        REVERSE=reverse,
        ENDS=end is not None,
        MODE=GRAM.value if grams else STORED.value,
        DEPTH=depth,
        WIDTH=width,
        POINTS=POINTS,
        INS=INS,
        COLUMNS=COLUMNS,
        **numbered(cores),
        PRECISION=precision_of(x.device),
    )


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("n_points", "n_in", "n_rows", "n_columns", "row_stride", "column_stride", "nothing")


def configurations() -> Iterator[Configuration]:
    types = dict.fromkeys(_INTEGERS, "i32")
    for core in ("abs", "mish"):
        for label, mode in (("stored", STORED), ("inner products", GRAM)):
            constants: dict[str, Any] = {
                "REVERSE": True,
                "ENDS": True,
                "MODE": mode.value,
                "DEPTH": MOST_DEPTH,
                "WIDTH": MOST_WIDTH,
            }
            constants |= {"POINTS": POINTS, "INS": INS, "COLUMNS": COLUMNS, "PRECISION": ""}
            constants |= dict.fromkeys(("CORE0", "CORE1", "CORE2", "CORE3"), CORES.index(core))
            of = f"{MOST_DEPTH} x {MOST_WIDTH} {core}, {label}"
            # What a core and its slope take besides a tile's slopes and a matrix has to fit the registers.
            yield from _TUNED.configurations("jacobians", of, constants, types, [0] if core == "abs" else [1])
