"""Chains on the GPU, by Triton: narrow ones in one kernel, others a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn.kernels import triton_product_ops as products
from lmn.kernels.activations import STRAIGHT_CORES
from lmn.kernels.jacobians.problem import Chain, Problem
from lmn.kernels.jacobians.torch_eager import TailMaps
from lmn.kernels.jacobians.triton_ops import MOST_NARROW_ROWS, MOST_ROWS, narrow_maps, wide_grams
from lmn.kernels.triton_host import AT_ONCE, MOST_DEPTH, NarrowChain, as_rows, on, rows_of, wide_layers

_SCRATCH_BYTES = 1 << 27  # of the rows between two products of a wide chain


def jacobians(problem: Problem) -> TritonMaps:
    assert problem.chain is not None
    return TritonMaps(problem.chain, problem.device, TailMaps(problem))


class TritonMaps:
    """The local maps of a chain; of float64 samples those of the tail."""

    single = True

    def __init__(self, chain: Chain, device: torch.device, tail: TailMaps | None = None) -> None:
        self._chain, self._device, self._tail = chain, device, tail
        self._narrow = _narrow(chain, device)
        self.n_columns = chain.n_in if chain.narrowed is None else len(chain.narrowed)

    def jacobians(self, samples: Tensor) -> Tensor:
        if samples.dtype == torch.float64 and self._tail is not None:
            return self._tail.jacobians(samples)
        if not self._chain.layers:
            return on(self._device, self._chain.first_map[0]).expand(len(samples), -1, -1).clone()
        return self._swept(samples, self._to_inputs)

    def isometric(self, samples: Tensor) -> Tensor:
        if samples.dtype == torch.float64 or self._chain.narrowed is None:
            return self.jacobians(samples)
        return self._swept(samples, self._isometric)

    def has_grams(self, dtype: torch.dtype) -> bool:
        if dtype == torch.float64 or not self._chain.layers:
            return False
        sweep = self._isometric
        is_wide = sweep.n_rows <= sweep.n_columns and sweep.n_rows <= MOST_ROWS
        in_one_kernel = self._narrow is not None and sweep.n_rows <= MOST_NARROW_ROWS
        return is_wide and (in_one_kernel or len(sweep.placed) > 1)

    def grams(self, samples: Tensor) -> Tensor:
        sweep = self._isometric
        out = torch.empty(len(samples), sweep.n_rows, sweep.n_rows, dtype=torch.float32, device=self._device)
        self._swept_to(out, sweep, samples, grams=True)
        return out.double()

    @cached_property
    def _to_inputs(self) -> Sweep:
        return self._sweep(narrowed=False)

    @cached_property
    def _isometric(self) -> Sweep:
        return self._to_inputs if self._chain.narrowed is None else self._sweep(narrowed=True)

    def _sweep(self, *, narrowed: bool) -> Sweep:
        chain = self._chain
        between = [layer.weight for layer in chain.layers[:-1] if layer.weight is not None]
        first, last = None if chain.first is None else chain.first[0], chain.layers[-1].weight
        if chain.from_outputs:
            start, matrices = np.eye(chain.units[-1]) if last is None else last, between[::-1]
            end = chain.narrowed.T if narrowed and chain.narrowed is not None else first
        else:
            start, matrices = chain.first_map[0].T, [weight.T for weight in between]
            end = None if last is None else last.T
        return Sweep(chain.from_outputs, start, matrices, end, self._device, self._narrow)

    def _swept(self, samples: Tensor, sweep: Sweep) -> Tensor:
        shape = (sweep.n_rows, sweep.n_columns) if sweep.reverse else (sweep.n_columns, sweep.n_rows)
        out = torch.empty(len(samples), *shape, dtype=torch.float32, device=self._device)
        self._swept_to(out, sweep, samples, grams=False)
        return out

    def _swept_to(self, out: Tensor, sweep: Sweep, samples: Tensor, *, grams: bool) -> None:
        """Maps, or their rows' inner products, to out."""
        narrow, x = self._narrow, as_rows(samples)
        if narrow is not None and not (grams and sweep.n_rows > MOST_NARROW_ROWS):
            narrow_maps(
                x, narrow.first, narrow.first_bias, **narrow.forward, **sweep.padded,
                cores=narrow.cores, reverse=sweep.reverse, grams=grams, out=out,
            )  # fmt: skip
            return
        widest = max(0 if grams else sweep.n_columns, *self._chain.units)
        some = rows_of(_SCRATCH_BYTES, widest * sweep.n_rows)
        for part, to in zip(x.split(some), out.split(some), strict=True):
            self._wide(sweep, part, to, grams=grams)

    def _wide(self, sweep: Sweep, x: Tensor, out: Tensor, *, grams: bool) -> None:
        """A product a layer."""
        slopes: list[Tensor | None] = [*self._slopes(x)]
        slopes = slopes[::-1] if sweep.reverse else slopes
        slopes += [None] if sweep.end is not None else []
        start, *matrices = sweep.placed
        assert slopes[0] is not None
        rows = start[None] * slopes[0][:, None]
        for number, (matrix, of_next) in enumerate(zip(matrices, slopes[1:], strict=True)):
            is_last = number + 1 == len(matrices)
            if grams and is_last:
                wide_grams(rows, matrix, of_next, out)
                return
            made = out
            if not (is_last and sweep.reverse):
                made = torch.empty(len(x), sweep.n_rows, matrix.shape[1], dtype=torch.float32, device=self._device)
            if of_next is None:
                products.plain(rows, matrix, made)
            else:
                products.sloped(rows, matrix, of_next, sweep.n_rows, made)
            rows = made
        if rows is not out:
            out.copy_(rows if sweep.reverse else rows.mT)

    def _slopes(self, x: Tensor) -> list[Tensor]:
        """Of all layers at some points, each (n, units), by a product a layer."""
        values, found = x, list[Tensor]()
        for layer in self._forward:
            out, slopes = (torch.empty(len(x), len(layer["bias"]), dtype=torch.float32, device=self._device) for _ in range(2))
            products.with_slopes(values, **layer, out=out, slopes=slopes)
            values = out
            found.append(slopes)
        return found

    @cached_property
    def _forward(self) -> list[dict[str, Any]]:
        return wide_layers(self._chain, self._device, slopes=True)


def _narrow(chain: Chain, device: torch.device) -> NarrowChain | None:
    """The slopes of four layers of more units take the registers that cores with slopes of their own need."""
    narrow = NarrowChain.of(chain, device)
    straight = all(layer.activation.core in STRAIGHT_CORES for layer in chain.layers)
    if narrow is not None and narrow.width > AT_ONCE and narrow.depth == MOST_DEPTH and not straight:
        return None
    return narrow


@dataclass(frozen=True, eq=False)
class Sweep:
    """The product of a chain's matrices, from the side with fewer rows: start, slopes, matrix, slopes, .., slopes, end.

    Attributes
    ----------
    reverse : bool
        Whether its rows are outputs, and not inputs.
    start : ndarray of shape (n_rows, units)
    matrices : list of ndarray
        Between slopes, in the sweep's order, (units, next units).
    end : ndarray of shape (units, n_columns), or None
    device : torch.device
    narrow : NarrowChain or None
        Which the chain is.
    """

    reverse: bool
    start: np.ndarray
    matrices: list[np.ndarray]
    end: np.ndarray | None
    device: torch.device
    narrow: NarrowChain | None

    @property
    def n_rows(self) -> int:
        return len(self.start)

    @property
    def n_columns(self) -> int:
        last = self.end if self.end is not None else self.matrices[-1] if self.matrices else self.start
        return int(last.shape[1])

    @cached_property
    def placed(self) -> list[Tensor]:
        """Its matrices on the device, one after the other."""
        return [on(self.device, each) for each in (self.start, *self.matrices, self.end) if each is not None]

    @cached_property
    def padded(self) -> dict[str, Tensor | None]:
        """Its matrices as the fused kernel takes them."""
        narrow = self.narrow
        assert narrow is not None
        width = narrow.width
        return {
            "start": narrow.padded(self.start, self.n_rows, width),
            "matrices": narrow.stacked(self.matrices),
            "end": None if self.end is None else narrow.padded(self.end, width, self.n_columns),
        }
