"""Chains on the GPU, by Triton: narrow ones in one kernel, others a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels import triton_product_ops as products
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.local_complexity.problem import Found, Layer, Problem
from lmn.kernels.local_complexity.triton_ops import UNITS, layer_counts, narrow_counts
from lmn.kernels.triton_host import NarrowChain, as_rows, on, rows_of, wide_layers

_SAMPLE_BYTES = 1 << 28  # of the samples of a call
_SCRATCH_BYTES = 1 << 27  # of the vertices' activations between two layers of a wide chain


def local_complexity(problem: Problem) -> Found:
    chain, layers = problem.chain, problem.layers
    assert chain is not None
    if not layers:
        return Found(layers, np.zeros((problem.n_points, 0), dtype=np.int64))
    neighbourhoods = _neighbourhoods(problem, chain)
    parts = [neighbourhoods.counts(as_rows(x)) for _, x in problem.parts(neighbourhoods.most)]
    return Found(layers, torch.cat(parts).cpu().numpy().astype(np.int64))


def _neighbourhoods(problem: Problem, chain: Chain) -> _Narrow | _Wide:
    bends = _bends(chain, problem.layers)
    narrow = NarrowChain.of(chain, problem.device)
    shifts = problem.steps.numpy() @ chain.first_map[0].T
    return _Wide(chain, bends, shifts, problem.device) if narrow is None else _Narrow(narrow, bends, shifts)


def _first_map(samples: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """The pre-activations of the first layer, (n, units), of samples (n, n_in)."""
    z = torch.empty(len(samples), len(bias), dtype=torch.float32, device=samples.device)
    products.plain(samples, weights, z, counted=True)
    return z.add_(bias)


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

    @property
    def most(self) -> int:
        return rows_of(_SAMPLE_BYTES, max(self.narrow.chain.n_in, self.narrow.width))

    @cached_property
    def _tables(self) -> dict[str, Any]:
        narrow = self.narrow
        return {"steps": narrow.padded(self.shifts, len(self.shifts), narrow.width)} | narrow.bends(self.bends)

    def counts(self, samples: Tensor) -> Tensor:
        """(n, n_in) to (n, n_layers)."""
        narrow = self.narrow
        counts = torch.empty(len(samples), narrow.depth, dtype=torch.int32, device=narrow.device)
        at_samples = _first_map(samples, narrow.first, narrow.first_bias)
        narrow_counts(at_samples, **narrow.forward, **self._tables, cores=narrow.cores, counts=counts)
        counted = [number for number, at in enumerate(self.bends) if len(at)]
        return counts if len(counted) == narrow.depth else counts[:, counted]


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
        return rows_of(_SCRATCH_BYTES, a_sample)

    @cached_property
    def _layers(self) -> list[dict[str, Any]]:
        layers = wide_layers(self.chain, self.device)
        for each, at in zip(layers, self.bends, strict=True):
            each["breakpoints"] = on(self.device, at)
        return layers

    @cached_property
    def _steps(self) -> Tensor:
        return on(self.device, self.shifts)

    def counts(self, samples: Tensor) -> Tensor:
        """(n, n_in) to (n, n_layers)."""
        n, counts = len(samples), list[Tensor]()
        at_samples = _first_map(samples, self._layers[0]["weights"], self._layers[0]["bias"])
        u = None
        for number, arrays in enumerate(self._layers):
            n_units = len(arrays["bias"])
            of_blocks = torch.empty(n, triton.cdiv(n_units, UNITS), dtype=torch.int32, device=self.device)
            rows = n * 2 * len(self.shifts) if number + 1 < len(self._layers) else 0
            out = torch.empty(rows, n_units, dtype=torch.float32, device=self.device)
            layer_counts(u, at_samples=at_samples, steps=self._steps, **arrays, out=out, counts=of_blocks)
            if len(self.bends[number]):
                counts.append(torch.where((of_blocks < 0).any(1), -1, of_blocks.sum(1)))
            u = out
        return torch.stack(counts, dim=1)
