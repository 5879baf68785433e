"""Chains for the kernels: what they are of a model, and what they are over samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.activations import CORES, Activation, activation
from lmn.kernels.connectivity.problem import Chain, Layer
from lmn.lowering import Affine, ChainStep, NotAChain
from lmn.network import Network

_BATCH = 256  # samples that are run through a chain at a time
MOST_DIAGONAL = 2048  # values: a scaling between two activations is given to the kernels as a matrix


@dataclass(frozen=True, eq=False)
class ChainPlan:
    """A tail as layers for the kernels, with the weights it has now and no samples yet.

    Attributes
    ----------
    steps : list of Affine or Activation
    layers : list of (units, activation, weight after it or None)
        Exactly one affine map between two activations; the first affine maps are left to the samples.
    taken : dict of int to int
        Before which step a layer's pre-activations stand: step to layer.
    n_out : int
    """

    steps: list[ChainStep]
    layers: list[tuple[int, Activation, np.ndarray[Any, Any] | None]]
    taken: dict[int, int]
    n_out: int

    @property
    def n_units(self) -> int:
        return sum(units for units, _, _ in self.layers)

    def over(self, h: Tensor) -> Chain:
        """The chain over samples, shape (n_points, n_in): run through the steps, some at a time."""
        stops = np.cumsum([units for units, _, _ in self.layers], dtype=np.int64)
        starts = stops - [units for units, _, _ in self.layers]
        z, y = np.empty((self.n_units, len(h))), np.empty((self.n_out, len(h)))
        for first in range(0, len(h), _BATCH):
            batch = slice(first, first + _BATCH)
            x = h[batch].to("cpu", torch.float64)
            for index, step in enumerate(self.steps):
                if index in self.taken:
                    layer = self.taken[index]
                    z[starts[layer] : stops[layer], batch] = x.numpy().T
                x = step(x) if isinstance(step, Affine) else step.function(x)
            y[:, batch] = x.numpy().T
        scale = _unit_scale(y)
        y *= scale[:, None]
        layers = list(self.layers)
        if layers:
            units, last, weight = layers[-1]
            if weight is not None:
                layers[-1] = (units, last, weight * scale[:, None])
            else:
                core, slope = last.by_unit(units)
                layers[-1] = (units, replace(last, scale=core * scale, slope=slope * scale), None)
        pieces = zip(starts, stops, layers, strict=True)
        return Chain(tuple(Layer(z[a:b], act, weight) for a, b, (_, act, weight) in pieces), z, y, scale)


def chain_plan(network: Network, h: Tensor) -> ChainPlan | NotAChain:
    """The chain that a network's tail is, checked against the tail itself at some samples; or why it is none.

    Parameters
    ----------
    h : Tensor of shape (n_points, ...)
    """

    steps = network.chain()
    planned = steps if isinstance(steps, NotAChain) else _planned(steps, h[0].numel())
    exact = (
        h.clone() if network.single_inside else h.double()
    )  # float32 may have no digit of outputs that are small differences
    if isinstance(planned, ChainPlan):
        got, expected = torch.from_numpy(planned.over(h.flatten(1)).outputs).T, network.tail(exact).to("cpu", torch.float64)
        if not outputs_agree(got, expected):
            return NotAChain("as one it gives other outputs than the model")
    return planned


def _planned(steps: list[ChainStep], n_in: int) -> ChainPlan | NotAChain:
    layers: list[tuple[int, Activation, np.ndarray[Any, Any] | None]] = []  # units, activation, weight after it
    taken: dict[int, int] = {}  # before which step a layer's pre-activations stand → which layer
    start: tuple[int, Activation] | None = None  # the open layer: units, activation
    affine: Affine | None = None  # and the affine map after it, so far
    width = n_in

    def close() -> None:
        assert start is not None
        layers.append((*start, affine.dense.numpy() if affine is not None else None))

    for index, step in enumerate(steps):
        if isinstance(step, Activation):
            if step.core not in CORES:
                return NotAChain(f"'{step.where}' ({step.name}) is an activation that no kernel has")
            if start is not None:
                affine = affine or Affine.identity(width)
                if affine.diagonal and width > MOST_DIAGONAL:
                    return NotAChain(f"a scaling of {width} values stands between two activations")
                close()
            start, affine = (width, step), None
            taken[index] = len(layers)
            continue
        if start is not None:
            if affine is not None and composition_costs_more(affine, step):
                close()
                start, affine = (width, activation("identity")), step
                taken[index] = len(layers)
            else:
                affine = step if affine is None else affine.then(step)
        width = len(step.bias)
    if start is not None:
        if affine is None and not start[1].piecewise_linear:
            return NotAChain(f"it ends in {start[1].name}, whose saturated values only torch's own function has to all digits")
        close()
    return ChainPlan(steps, layers, taken, width)


def outputs_agree(got: Tensor, expected: Tensor) -> bool:
    """Whether a chain gives the model's outputs: what it was read from may do more than was read.

    Of outputs that are not finite nothing is said here.
    """
    atol = 1e-3 * float(expected.abs().max())
    same = got.shape == expected.shape and bool(torch.isclose(got, expected, rtol=1e-3, atol=atol).all())
    return same or not bool(torch.isfinite(expected).all())


def _unit_scale(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Powers of two that bring outputs, shape (n_out, n_points), to sizes about 1, so that float32 holds their squares."""
    size = np.abs(y - y[:, :1]).max(axis=1)
    usable = (size > 0) & np.isfinite(size)
    scale: np.ndarray[Any, Any] = np.exp2(-np.round(np.log2(size, where=usable, out=np.zeros_like(size))))
    return scale


def composition_costs_more(first: Affine, second: Affine) -> bool:
    """Whether the product of two maps has more entries than the two together: a bottleneck."""
    if first.diagonal or second.diagonal:
        return False
    return len(second.weight) * first.weight.shape[1] > first.weight.numel() + second.weight.numel()
