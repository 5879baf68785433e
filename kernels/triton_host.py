"""What chains are as the Triton kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels import triton_chain
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.triton_checks import Arrays, check_cores, require, single, sizes_of
from lmn.kernels.triton_targets import Target

MOST_DEPTH = 4
AT_ONCE: int = triton_chain.AT_ONCE.value
MOST_WIDTH = 128  # units of a layer up to which what a tile keeps of it fits the registers
MOST_ENTRIES = 2**31 - 1  # of a matrix in which narrow kernels count places with 32 bits
LEAST = 32  # more columns than rows, so that warps share out columns
MOST_BREAKPOINTS: int = triton_chain.MOST_BREAKPOINTS.value


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
        if not 0 < depth <= MOST_DEPTH or width > MOST_WIDTH or width * chain.n_in > MOST_ENTRIES:
            return None
        return cls(chain, device, depth, width)

    @property
    def cores(self) -> list[int]:
        return [layer.activation.core_index for layer in self.chain.layers]

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
        biases = torch.zeros(max(1, self.depth - 1), self.width, dtype=torch.float32, device="cpu")
        scales, straights = (torch.zeros(self.depth, self.width, dtype=torch.float32, device="cpu") for _ in range(2))
        parameters = []
        for number, (layer, n) in enumerate(zip(layers, units, strict=True)):
            act = layer.activation
            scale, straight = act.by_unit(n)
            scales[number, :n], straights[number, :n] = torch.tensor(scale, device="cpu"), torch.tensor(straight, device="cpu")
            parameters.append([act.p0, act.p1, act.kink])
            if number + 1 < self.depth and layer.weight is not None:
                biases[number, : len(layer.bias)] = torch.tensor(layer.bias_of_core, device="cpu")
        own = {"biases": biases, "scales": scales, "straights": straights}
        placed = {name: value.to(self.device) for name, value in own.items()}
        return {"weights": self.weights, "parameters": on(self.device, parameters)} | placed

    def bends(self, breakpoints: list[np.ndarray]) -> dict[str, Any]:
        """What kernels take that tell on which side of a layer's breakpoints its units are: of each layer its breakpoints."""
        padded = np.stack([np.resize([*at, np.nan, np.nan], MOST_BREAKPOINTS) for at in breakpoints])
        return {
            "breakpoints": on(self.device, padded),
            "n_units": list(self.chain.units),
            "n_breakpoints": [len(at) for at in breakpoints],
        }

    def padded(self, values: np.ndarray, *shape: int) -> Tensor:
        """Values in a corner of zeros."""
        whole = torch.zeros(*shape, dtype=torch.float32, device="cpu")
        whole[tuple(slice(0, n) for n in values.shape)] = torch.tensor(values, dtype=torch.float32, device="cpu")
        return whole.to(self.device)

    def stacked(self, matrices: list[np.ndarray]) -> Tensor:
        """(n, width, width), one of zeros where there are none."""
        return torch.stack([self.padded(matrix, self.width, self.width) for matrix in matrices or [np.zeros((1, 1))]])


def wide_layers(chain: Chain, device: torch.device, *, slopes: bool = False) -> list[dict[str, Any]]:
    """Of each layer, the affine map before it and its activation, as the operators of wide layers, or of slopes, take them."""
    weight, bias = chain.first_map
    found = []
    for layer in chain.layers:
        act = layer.activation
        scales, straights = act.by_unit(len(bias))
        arrays = {"weights": weight.T, "bias": bias, "scales": scales, "straights": straights}
        numbers = {"core": act.core_index, "p0": float(act.p0), "p1": float(act.p1)}
        numbers |= {"kink": float(act.kink)} if slopes else {}
        found.append({name: on(device, value) for name, value in arrays.items()} | numbers)
        if layer.weight is not None:
            weight, bias = layer.weight, layer.bias_of_core
    return found


def on(device: torch.device, values: Any) -> Tensor:
    """An array as float32 on a device, its rows one after the other."""
    return torch.tensor(values, dtype=torch.float32, device="cpu").contiguous().to(device)


def as_rows(samples: Tensor) -> Tensor:
    """(n, n_in), one after the other from a place on from which kernels load 16 bytes at once, as they are compiled to."""
    rows = samples.detach().flatten(1).contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def rows_of(n_bytes: int, n_values: int) -> int:
    """How many rows of so many float32 values there may be: one or more, and where it can be a number of them that leaves what
    comes after them at a place as above."""
    rows = n_bytes // (4 * n_values)
    return rows // 4 * 4 or max(1, rows)


def check_layers(scales: Tensor, cores: list[int]) -> tuple[int, int]:
    """Depth and width of a narrow chain's arrays, and that there is a core for each layer."""
    depth, width = sizes_of("scales", scales, 2)
    require(len(cores) == depth <= MOST_DEPTH, f"{len(cores)} cores of {depth} layers; narrow chains have up to {MOST_DEPTH}.")
    require(width >= LEAST and width == triton.next_power_of_2(width), f"layers are padded to a power of 2; got {width} units.")
    check_cores(*cores)
    return depth, width


def check_entries(n_rows: int, n_columns: int) -> None:
    """That 32 bits count the places in a matrix."""
    fits = n_rows * n_columns <= MOST_ENTRIES
    require(fits, f"places in a narrow chain's matrix are counted with 32 bits; got one of {n_rows} x {n_columns}.")


def check_breakpoints(of_layer: Tensor) -> None:
    """That a layer has no more than the kernels tell apart."""
    (n,) = sizes_of("breakpoints", of_layer, 1)
    require(n <= MOST_BREAKPOINTS, f"units have up to {MOST_BREAKPOINTS} breakpoints; got {n}.")


def check_bends(n_units: list[int], n_breakpoints: list[int], depth: int, width: int) -> None:
    """That there is a number of units and of breakpoints for each layer."""
    require(
        len(n_units) == depth and all(0 < n <= width for n in n_units),
        f"{depth} layers have 1 to {width} units each; got n_units {n_units}.",
    )
    require(
        len(n_breakpoints) == depth and all(0 <= n <= MOST_BREAKPOINTS for n in n_breakpoints),
        f"{depth} layers have up to {MOST_BREAKPOINTS} breakpoints each; got n_breakpoints {n_breakpoints}.",
    )


def first_arrays(given: dict[str, Any]) -> Arrays:
    """What a narrow chain's kernel takes of samples and the first affine map."""
    n_in, width = given["n_in"], given["WIDTH"]
    check_entries(n_in, width)
    return single(x=(given["n_points"], n_in), first=(n_in, width), first_bias=(width,))


def forward_arrays(given: dict[str, Any]) -> Arrays:
    """And of the rest of a forward pass: as ``NarrowChain.forward``."""
    depth, width = given["DEPTH"], given["WIDTH"]
    between = max(1, depth - 1)
    of_units = single(scales=(depth, width), straights=(depth, width), parameters=(depth, 3))
    return single(weights=(between, width, width), biases=(between, width)) | of_units


def at_once(given: dict[str, Any], _target: Target) -> bool:
    """Whether the products of a narrow chain's kernel take all rows of a matrix at once."""
    return bool(given["WIDTH"] <= AT_ONCE)


def names(name: str, n: int = MOST_DEPTH) -> tuple[str, ...]:
    """Of the arguments of narrow kernels that there is one of for each layer."""
    return tuple(f"{name}{number}" for number in range(n))


def numbered(name: str, of_layers: list[int], n: int = MOST_DEPTH) -> dict[str, int]:
    """And with their values."""
    return dict(zip(names(name, n), [*of_layers, *[0] * n], strict=False))
