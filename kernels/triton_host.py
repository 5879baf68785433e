"""What chains are as the Triton kernels take them, and how the kernels that operations share are launched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels.activations import CORES
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.triton_products import PLAIN, SLOPED, WITH_SLOPES, products
from lmn.kernels.triton_report import Configuration
from lmn.kernels.triton_targets import precision_of

POINTS = 16  # of a tile: the rows of one instruction of the matrix unit
MOST_DEPTH = 4
MOST_WIDTH = 64  # units of a layer up to which a tile's slopes and a matrix fit the registers
LEAST = 32  # more columns than rows, so that warps share out columns


@dataclass(frozen=True, eq=False)
class NarrowChain:
    """A chain whose layers fit a tile, its arrays zero where a layer is narrower.

    Attributes
    ----------
    depth, width : int
    """

    chain: Chain
    device: torch.device
    depth: int
    width: int

    @classmethod
    def of(cls, chain: Chain, device: torch.device) -> NarrowChain | None:
        """None where the chain is too wide or too deep, or has no layer."""
        depth, units = len(chain.layers), chain.units
        width = max(LEAST, triton.next_power_of_2(max(units, default=1)))
        if not 0 < depth <= MOST_DEPTH or width > MOST_WIDTH:
            return None
        return cls(chain, device, depth, width)

    @property
    def warps(self) -> int:
        return warps_for(layer.activation.core for layer in self.chain.layers)

    @property
    def cores(self) -> dict[str, int]:
        """The constexprs."""
        of = [layer.activation.core_index for layer in self.chain.layers] + [0] * MOST_DEPTH
        return {f"CORE{number}": of[number] for number in range(MOST_DEPTH)}

    @property
    def inner_cores(self) -> dict[str, int]:
        """Those that are followed by another layer."""
        return {name: core for name, core in self.cores.items() if name != f"CORE{MOST_DEPTH - 1}"}

    @cached_property
    def first(self) -> Tensor:
        """(n_in, width)."""
        return self.padded(self.chain.first_map[0].T, self.chain.n_in, self.width)

    @cached_property
    def first_bias(self) -> Tensor:
        return self.padded(self.chain.first_map[1], self.width)

    @cached_property
    def weights(self) -> Tensor:
        """(depth - 1, width, width), from units to units of the next layer."""
        between = [layer.weight.T for layer in self.chain.layers[:-1] if layer.weight is not None]
        return self.stacked(between)

    @cached_property
    def forward(self) -> dict[str, Tensor]:
        """What a forward pass takes past the first map."""
        layers, units = self.chain.layers, self.chain.units
        biases = torch.zeros(max(1, self.depth - 1), self.width)
        scales, straights, parameters = torch.zeros(self.depth, self.width), torch.zeros(self.depth, self.width), []
        for number, (layer, n) in enumerate(zip(layers, units, strict=True)):
            act = layer.activation
            scale, straight = act.by_unit(n)
            scales[number, :n], straights[number, :n] = torch.tensor(scale), torch.tensor(straight)
            parameters.append([act.p0, act.p1, act.kink])
            if number + 1 < self.depth and layer.weight is not None:
                biases[number, : len(layer.bias)] = torch.tensor(layer.bias_of_core)
        own = {"biases": biases, "scales": scales, "straights": straights, "parameters": torch.tensor(parameters)}
        return {"weights": self.weights} | {name: value.float().to(self.device) for name, value in own.items()}

    def padded(self, values: np.ndarray, *shape: int) -> Tensor:
        """Values in a corner of zeros."""
        whole = torch.zeros(*shape)
        whole[tuple(slice(0, n) for n in values.shape)] = torch.tensor(values, dtype=torch.float32)
        return whole.to(self.device)

    def stacked(self, matrices: list[np.ndarray]) -> Tensor:
        """(n, width, width), one of zeros where there are none."""
        return torch.stack([self.padded(matrix, self.width, self.width) for matrix in matrices or [np.zeros((1, 1))]])


def warps_for(cores: Iterable[str]) -> int:
    """Of 32 threads: what a core and its slope take besides a tile's slopes and a matrix has to fit the registers."""
    return 4 if set(cores) <= {"identity", "abs", "clamp"} else 8


# ---- products of wide layers ----------------------------------------------------------------------------------------------

STAGES = 2


def _tile(epilogue: int) -> dict[str, int]:
    """A core and its slope take registers."""
    return {"ROWS": 32 if epilogue == WITH_SLOPES.value else 64, "INS": 32, "OUTS": 64}


def _warps(epilogue: int) -> int:
    return 8 if epilogue == WITH_SLOPES.value else 4


def product(
    a: Tensor, weights: Tensor, out: Tensor, *, epilogue: int = PLAIN.value, core: int = 0, rows_a_point: int = 1, **rest: Any
) -> Tensor:
    """``products`` of a, (..., n_in), and weights, (n_in, n_out), into out, (..., n_out)."""
    n_in, n_out = weights.shape
    n_rows = a.numel() // n_in
    given = dict.fromkeys(("bias", "scales", "straights", "slopes"), weights) | dict.fromkeys(("p0", "p1", "kink"), 0.0) | rest
    tile = _tile(epilogue)
    if n_rows:
        grid = triton.cdiv(n_rows, tile["ROWS"]), triton.cdiv(n_out, tile["OUTS"])
        products[grid](
            a=a,
            weights=weights,
            out=out,
            **given,
            n_rows=n_rows,
            n_in=n_in,
            n_out=n_out,
            rows_a_point=rows_a_point,
            EPILOGUE=epilogue,
            CORE=core,
            **tile,
            PRECISION=precision_of(a.device),
            num_warps=_warps(epilogue),
            num_stages=STAGES,
        )
    return out


def on(device: torch.device, values: Any) -> Tensor:
    """An array as float32 on a device, its rows one after the other."""
    return torch.tensor(values, dtype=torch.float32).contiguous().to(device)


def configurations() -> Iterator[Configuration]:
    integers, floats = ("n_rows", "n_in", "n_out", "rows_a_point"), ("p0", "p1", "kink")
    types = dict.fromkeys(integers, "i32") | dict.fromkeys(floats, "fp32")
    for label, epilogue, core in (
        ("plain", PLAIN, "identity"),
        ("with slopes", WITH_SLOPES, "mish"),
        ("sloped", SLOPED, "identity"),
    ):
        constants = {"EPILOGUE": epilogue.value, "CORE": CORES.index(core), **_tile(epilogue.value), "PRECISION": ""}
        yield Configuration("products", label, products, constants, types, _warps(epilogue.value), STAGES)
