"""Chains on the CPU, by the C++ kernel (csrc/jacobians_isa.cpp)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.activations import Activation
from lmn.kernels.jacobians.problem import Chain, Problem
from lmn.kernels.pieces import breakpoints_of

_LARGEST_GRAM = 1 << 17  # bytes of a map: a tile of them stays in a cache


def jacobians(problem: Problem) -> ChainMaps:
    assert problem.chain is not None
    return ChainMaps(problem.chain, problem.threads)


class ChainMaps:
    """The local maps of a chain."""

    single = False

    def __init__(self, chain: Chain, threads: int, isa: str = "") -> None:
        self._chain, self._threads, self._isa = chain, threads, isa
        self._slopes: dict[torch.dtype, Any] = {}
        self.n_columns = chain.n_in if chain.narrowed is None else len(chain.narrowed)

    def jacobians(self, samples: Tensor) -> Tensor:
        return self._swept(samples, to_last=False)

    def isometric(self, samples: Tensor) -> Tensor:
        return self._swept(samples, to_last=self._chain.narrowed is not None)

    def has_grams(self, dtype: torch.dtype) -> bool:
        rows, columns = self._swept_shape
        return bool(self._chain.layers) and rows <= columns and rows * columns * dtype.itemsize <= _LARGEST_GRAM

    @property
    def _swept_shape(self) -> tuple[int, int]:
        chain = self._chain
        return (chain.n_out, self.n_columns) if chain.from_outputs else (chain.n_in, chain.n_out)

    def grams(self, samples: Tensor) -> Tensor:
        chain, x = self._chain, samples.detach().flatten(1).contiguous()
        rows, _ = self._swept_shape
        out = torch.empty(len(x), rows, rows, dtype=torch.float64, device="cpu")
        if len(x):
            self._of(x.dtype).grams(x.numpy(), chain.narrowed is not None, out.numpy(), self._threads)
        return out

    def _swept(self, samples: Tensor, to_last: bool) -> Tensor:
        chain, x = self._chain, samples.detach().flatten(1).contiguous()
        if not chain.layers:
            return torch.from_numpy(chain.first_map[0]).to(x.dtype).expand(len(x), -1, -1).clone()
        out = torch.empty(len(x), chain.n_out, self.n_columns if to_last else chain.n_in, dtype=x.dtype, device="cpu")
        if len(x):
            self._of(x.dtype).jacobians(x.numpy(), to_last, out.numpy(), self._threads)
        return out

    def _of(self, dtype: torch.dtype) -> Any:
        chain = self._chain
        if dtype not in self._slopes:
            self._slopes[dtype] = slopes_of(chain, dtype, last=chain.narrowed, reverse=chain.from_outputs, isa=self._isa)
        return self._slopes[dtype]


def slopes_of(chain: Chain, dtype: torch.dtype, *, last: np.ndarray | None = None, reverse: bool = True, isa: str = "") -> Any:
    """The C++ core's data for a chain that has an activation: constants of activations become part of the biases after them."""
    layers: list[_core.SlopeLayer] = []
    for layer, units in zip(chain.layers, chain.units, strict=True):
        act = layer.activation
        scale, slope = act.by_unit(units)
        numbers = act.core_index, act.p0, act.p1, act.kink
        layers.append((*numbers, scale, slope, _breakpoints(act), layer.weight, layer.bias_of_core, act.may_be_flat))
    kind = _core.SlopesF64 if dtype == torch.float64 else _core.SlopesF32
    return kind(chain.first, layers, last, reverse, isa)


def _breakpoints(activation: Activation) -> np.ndarray:
    """Where linear pieces meet; of a smooth activation, zero."""
    if activation.piecewise_linear and activation.name != "identity":
        return breakpoints_of(activation)
    return np.zeros(0 if activation.name == "identity" else 1)
