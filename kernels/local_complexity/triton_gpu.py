"""Chains on the GPU, by Triton: narrow ones in one kernel, others a layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.local_complexity.problem import Found, Layer, Problem
from lmn.kernels.local_complexity.triton_fused import fused
from lmn.kernels.local_complexity.triton_wide import layer as wide_layer
from lmn.kernels.triton_host import MOST_DEPTH, MOST_WIDTH, NarrowChain, on, product
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of

INS, VERTICES, WARPS, STAGES = 16, 16, 8, 2
_WIDE = {"VERTICES": 32, "INS": 32, "UNITS": 64}
_SAMPLE_BYTES = 1 << 26  # of the samples of a call
_SCRATCH_BYTES = 1 << 26  # of the vertices' activations between two layers of a wide chain


def local_complexity(problem: Problem) -> Found:
    chain, layers = problem.chain, problem.layers
    assert chain is not None
    counts = np.zeros((problem.n_points, len(layers)), dtype=np.int64)
    if layers:
        neighbourhoods = _neighbourhoods(problem, chain)
        for part, samples in problem.parts(neighbourhoods.most):
            counts[part] = neighbourhoods.counts(samples.flatten(1).contiguous()).cpu().numpy()
    return Found(layers, counts)


def _neighbourhoods(problem: Problem, chain: Chain) -> _Narrow | _Wide:
    bends = _bends(chain, problem.layers)
    narrow = NarrowChain.of(chain, problem.device)
    shifts = problem.steps.numpy() @ chain.first_map[0].T
    return (
        _Wide(chain, bends, shifts, problem.device) if narrow is None else _Narrow(narrow, bends, shifts, len(problem.layers))
    )


def _bends(chain: Chain, layers: tuple[Layer, ...]) -> list[np.ndarray]:
    """The breakpoints of each layer of a chain, none of an identity."""
    of_layers = iter(layers)
    bends = []
    for each in chain.layers:
        bend = np.zeros(0) if each.activation.core == "identity" else next(of_layers).bend
        assert isinstance(bend, np.ndarray)
        bends.append(bend)
    return bends


@dataclass(frozen=True, eq=False)
class _Narrow:
    """A chain whose layers fit a tile, in one kernel."""

    narrow: NarrowChain
    bends: list[np.ndarray]
    shifts: np.ndarray
    n_layers: int

    @property
    def most(self) -> int:
        return max(1, _SAMPLE_BYTES // (4 * self.narrow.chain.n_in))

    @cached_property
    def _tables(self) -> dict[str, Any]:
        narrow, device = self.narrow, self.narrow.device
        most = max(1, *map(len, self.bends))
        breakpoints, layout, place = torch.zeros(narrow.depth, most), [], 0
        for number, (n_units, at) in enumerate(zip(narrow.chain.units, self.bends, strict=True)):
            breakpoints[number, : len(at)] = torch.from_numpy(at)
            layout.append([n_units, len(at), place])
            place += len(at) > 0
        return {
            "steps": narrow.padded(self.shifts, len(self.shifts), narrow.width),
            "breakpoints": breakpoints.to(device),
            "layout": torch.tensor(layout, dtype=torch.int32, device=device),
            "MOST_BREAKPOINTS": most,
        }

    def counts(self, samples: Tensor) -> Tensor:
        """(n, n_in) to (n, n_layers)."""
        narrow = self.narrow
        counts = torch.empty(len(samples), self.n_layers, dtype=torch.int32, device=narrow.device)
        fused[(len(samples),)](
            x=samples,
            first=narrow.first,
            first_bias=narrow.first_bias,
            **narrow.forward,
            **self._tables,
            counts=counts,
            n_in=narrow.chain.n_in,
            n_directions=len(self.shifts),
            n_layers=self.n_layers,
            nothing=0,
            DEPTH=narrow.depth,
            WIDTH=narrow.width,
            VERTICES=VERTICES,
            INS=INS,
            **narrow.inner_cores,
            PRECISION=precision_of(narrow.device),
            num_warps=WARPS,
            num_stages=1,
        )
        return counts


@dataclass(frozen=True, eq=False)
class _Wide:
    """A layer at a time."""

    chain: Chain
    bends: list[np.ndarray]
    shifts: np.ndarray
    device: torch.device

    @property
    def most(self) -> int:
        a_sample = max(self.chain.n_in, 2 * len(self.shifts) * max(self.chain.units))
        return max(1, _SCRATCH_BYTES // (4 * a_sample))

    @cached_property
    def _layers(self) -> list[dict[str, Any]]:
        """Of each, the affine map before it, its activation and its breakpoints."""
        weight, bias = self.chain.first_map
        found = []
        for each, at in zip(self.chain.layers, self.bends, strict=True):
            act = each.activation
            scales, straights = act.by_unit(len(bias))
            arrays = {"weights": weight.T, "bias": bias, "scales": scales, "straights": straights, "breakpoints": at}
            numbers = {"CORE": act.core_index, "p0": float(act.p0), "p1": float(act.p1), "n_breakpoints": len(at)}
            found.append({name: on(self.device, value) for name, value in arrays.items()} | numbers)
            if each.weight is not None:
                weight, bias = each.weight, each.bias_of_core
        return found

    @cached_property
    def _steps(self) -> Tensor:
        return on(self.device, self.shifts)

    def counts(self, samples: Tensor) -> Tensor:
        """(n, n_in) to (n, n_layers)."""
        n, counts = len(samples), list[Tensor]()
        first = self._layers[0]
        at_samples = product(samples, first["weights"], torch.empty(n, len(first["bias"]), device=self.device)) + first["bias"]
        u = at_samples
        for number, arrays in enumerate(self._layers):
            is_first, is_last, n_units = number == 0, number + 1 == len(self._layers), len(arrays["bias"])
            blocks = triton.cdiv(n_units, _WIDE["UNITS"])
            of_blocks = torch.empty(n, blocks, dtype=torch.int32, device=self.device)
            rows = 0 if is_last else n * 2 * len(self.shifts)
            out = torch.empty(rows, n_units, device=self.device)
            wide_layer[(n, blocks)](
                u=u,
                at_samples=at_samples,
                steps=self._steps,
                **arrays,
                out=out,
                counts=of_blocks,
                n_in=len(arrays["weights"]),
                n_units=n_units,
                n_directions=len(self.shifts),
                FIRST=is_first,
                LAST=is_last,
                **_WIDE,
                PRECISION=precision_of(self.device),
                num_warps=WARPS,
                num_stages=STAGES,
            )
            if arrays["n_breakpoints"]:
                counts.append(torch.where((of_blocks < 0).any(1), -1, of_blocks.sum(1)))
            u = out
        return torch.stack(counts, dim=1)


# ---- for the report ----------------------------------------------------------------------------------------------------

_INTEGERS = ("n_in", "n_directions", "n_layers", "nothing", "n_units", "n_breakpoints")
_TYPES = dict.fromkeys(_INTEGERS, "i32") | dict.fromkeys(("layout", "counts"), "*i32") | dict.fromkeys(("p0", "p1"), "fp32")


def configurations() -> Iterator[Configuration]:
    for core in ("abs", "mish"):
        constants: dict[str, Any] = {"MOST_BREAKPOINTS": 2, "DEPTH": MOST_DEPTH, "WIDTH": MOST_WIDTH, "VERTICES": VERTICES}
        constants |= {"INS": INS, "PRECISION": ""} | dict.fromkeys(("CORE0", "CORE1", "CORE2"), CORES.index(core))
        yield Configuration("local complexity", f"{MOST_DEPTH} x {MOST_WIDTH} {core}", fused, constants, _TYPES, WARPS, 1)
    for label, first in (("first layer", True), ("later layer", False)):
        constants = {"FIRST": first, "LAST": False, "CORE": CORES.index("mish"), **_WIDE, "PRECISION": ""}
        yield Configuration("local complexity", f"wide, {label}, mish", wide_layer, constants, _TYPES, WARPS, STAGES)
