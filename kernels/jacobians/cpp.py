"""Chains on the CPU, by the C++ kernel (csrc/jacobians_isa.cpp)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.jacobians.problem import Chain, Problem
from lmn.kernels.pieces import pieces


def jacobians(problem: Problem) -> ChainMaps:
    assert problem.chain is not None
    return ChainMaps(problem.chain, problem.threads)


class ChainMaps:
    """The local maps of a chain."""

    def __init__(self, chain: Chain, threads: int, isa: str = "") -> None:
        self._chain, self._threads, self._isa = chain, threads, isa
        self._slopes: dict[torch.dtype, Any] = {}
        self._reverse = _from_outputs(chain)
        weight = chain.first[0] if chain.first is not None else None
        shared = weight is not None and bool(chain.layers) and self._reverse and len(weight) < chain.n_in
        self.first = torch.from_numpy(weight) if weight is not None and shared else None

    def jacobians(self, samples: Tensor, *, to_first: bool = False) -> Tensor:
        chain, x = self._chain, samples.detach().flatten(1).contiguous()
        if not chain.layers:
            weight = torch.eye(chain.n_in) if chain.first is None else torch.from_numpy(chain.first[0])
            return weight.to(x.dtype).expand(len(x), -1, -1).clone()
        width = len(self.first) if to_first and self.first is not None else chain.n_in
        out = torch.empty(len(x), chain.n_out, width, dtype=x.dtype)
        if len(x):
            self._of(x.dtype).jacobians(x.numpy(), to_first, out.numpy(), self._threads)
        return out

    def _of(self, dtype: torch.dtype) -> Any:
        if dtype not in self._slopes:
            self._slopes[dtype] = slopes_of(self._chain, dtype, reverse=self._reverse, isa=self._isa)
        return self._slopes[dtype]


def slopes_of(chain: Chain, dtype: torch.dtype, *, reverse: bool = True, isa: str = "") -> Any:
    """The C++ core's data for a chain that has an activation: constants of activations become part of the biases after them."""
    layers: list[_core.SlopeLayer] = []
    units = chain.n_in if chain.first is None else len(chain.first[0])
    for layer in chain.layers:
        act = layer.activation
        scale, slope = act.by_unit(units)
        bias = layer.bias
        if layer.weight is not None:
            bias = bias + act.constant * layer.weight.sum(axis=1)
        layers.append((act.core_index, act.p0, act.p1, act.kink, scale, slope, _breakpoints(act, units), layer.weight, bias))
        units = len(bias)
    kind = _core.SlopesF64 if dtype == torch.float64 else _core.SlopesF32
    return kind(chain.first, layers, reverse, isa)


def _breakpoints(activation: Any, n_units: int) -> np.ndarray:
    """Where linear pieces meet; of a smooth activation, zero."""
    if activation.piecewise_linear and activation.name != "identity":
        return pieces(activation, n_units).breakpoints
    return np.zeros(0 if activation.name == "identity" else 1)


def _from_outputs(chain: Chain) -> bool:
    """Whether a sweep from the outputs takes no more products than one from the inputs."""
    between = sum(layer.weight.size for layer in chain.layers[:-1] if layer.weight is not None)
    first = chain.first[0].size if chain.first is not None else 0
    last = chain.layers[-1].weight.size if chain.layers and chain.layers[-1].weight is not None else 0
    return chain.n_out * (between + first) <= chain.n_in * (between + last)
