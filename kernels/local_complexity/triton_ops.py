"""The Triton kernels of local complexity as PyTorch's operators, which torch.compile and CUDA graphs take as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.local_complexity.triton_fused import fused
from lmn.kernels.local_complexity.triton_wide import layer as wide_layer
from lmn.kernels.triton_host import MOST_DEPTH, MOST_WIDTH, numbered
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of
from lmn.kernels.triton_tuned import Choice, Tuned

INS, UNITS = 16, 64
_NARROW = Tuned(fused, ("DEPTH", "WIDTH", "CORE0", "CORE1", "CORE2", "n_in", "n_directions"), (
    Choice({"VERTICES": 16}, 8), Choice({"VERTICES": 32}, 8)
))  # fmt: skip
_LAYER = Tuned(wide_layer, ("FIRST", "LAST", "CORE", "n_in", "n_units", "n_directions"), (
    Choice({"VERTICES": 32}, 8, 2), Choice({"VERTICES": 16}, 8, 2)
))  # fmt: skip


@torch.library.custom_op("lmn::local_complexity", mutates_args={"counts"})
def narrow_counts(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor,
    weights: Tensor,
    biases: Tensor,
    scales: Tensor,
    straights: Tensor,
    parameters: Tensor,
    steps: Tensor,
    breakpoints: Tensor,
    layout: Tensor,
    cores: list[int],
    counts: Tensor,
) -> None:
    """Counts at x, (n, n_in), to counts, (n, n_layers), int32: see ``fused``, of which these are the arrays."""
    if not len(x):
        return
    depth, width = scales.shape
    _NARROW.launch(
        (len(x),),
        x=x,
        first=first,
        first_bias=first_bias,
        weights=weights,
        biases=biases,
        scales=scales,
        straights=straights,
        parameters=parameters,
        steps=steps,
        breakpoints=breakpoints,
        layout=layout,
        counts=counts,
        n_in=x.shape[1],
        n_directions=len(steps),
        n_layers=counts.shape[1],
        nothing=0,
        MOST_BREAKPOINTS=breakpoints.shape[1],
        DEPTH=depth,
        WIDTH=width,
        INS=INS,
        **numbered(cores, MOST_DEPTH - 1),
        PRECISION=precision_of(x.device),
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
) -> None:
    """Of a layer's units, some a block, to counts, (n, n_blocks), int32; activations to out, unless it is empty.

    The layer takes u, or, where there is none, at_samples plus and minus steps: see ``layer``, of which these are the arrays.
    """
    n, blocks = counts.shape
    if not n:
        return
    _LAYER.launch(
        (n, blocks),
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
        n_breakpoints=len(breakpoints),
        FIRST=u is None,
        LAST=len(out) == 0,
        CORE=core,
        INS=32,
        UNITS=UNITS,
        PRECISION=precision_of(weights.device),
    )


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("n_in", "n_directions", "n_layers", "nothing", "n_units", "n_breakpoints")
_TYPES = dict.fromkeys(_INTEGERS, "i32") | dict.fromkeys(("layout", "counts"), "*i32") | dict.fromkeys(("p0", "p1"), "fp32")


def configurations() -> Iterator[Configuration]:
    for core in ("abs", "mish"):
        constants: dict[str, Any] = {
            "MOST_BREAKPOINTS": 2,
            "DEPTH": MOST_DEPTH,
            "WIDTH": MOST_WIDTH,
            "INS": INS,
            "PRECISION": "",
        }
        constants |= dict.fromkeys(("CORE0", "CORE1", "CORE2"), CORES.index(core))
        of = f"{MOST_DEPTH} x {MOST_WIDTH} {core}"
        yield from _NARROW.configurations("local complexity", of, constants, _TYPES)
    for label, first in (("first", True), ("later", False)):
        constants = {"FIRST": first, "LAST": False, "CORE": CORES.index("mish"), "INS": 32, "UNITS": UNITS, "PRECISION": ""}
        yield from _LAYER.configurations("local complexity", f"{label} layer, mish", constants, _TYPES)
