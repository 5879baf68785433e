"""A chain as what kernels take derivatives of."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lmn.chain import MOST_DIAGONAL, composition_costs_more
from lmn.kernels.activations import CORES, Activation, activation
from lmn.kernels.jacobians.problem import Chain, SlopeLayer
from lmn.lowering import Affine, ChainStep, NotAChain
from lmn.network import Network


def slope_chain(network: Network, h: Tensor) -> Chain | NotAChain:
    """The chain that a network's tail is, with the weights of now, or why it is none.

    Parameters
    ----------
    h : Tensor of shape (n_points, ...)
        Some samples, whose values don't matter.
    """
    steps = network.chain()
    return steps if isinstance(steps, NotAChain) else _alternated(steps, h[0].numel())


def _alternated(steps: list[ChainStep], n_in: int) -> Chain | NotAChain:
    first: Affine | None = None
    layers: list[tuple[Activation, Affine | None]] = []
    width = n_in
    for step in steps:
        before = layers[-1][1] if layers else first
        if isinstance(step, Affine):
            if before is not None and composition_costs_more(before, step):
                layers.append((activation("identity"), step))
            else:
                after = step if before is None else before.then(step)
                if layers:
                    layers[-1] = layers[-1][0], after
                else:
                    first = after
            width = len(step.bias)
        elif step.core not in CORES:
            return NotAChain(f"'{step.where}' ({step.name}) is an activation that no kernel has")
        elif step.name != "identity":
            if layers and before is None:
                layers[-1] = layers[-1][0], Affine.identity(width)
            layers.append((step, None))
    maps = [affine for affine in (first, *(after for _, after in layers)) if affine is not None]
    if any(affine.diagonal and len(affine.bias) > MOST_DIAGONAL for affine in maps):
        return NotAChain(f"a scaling of more than {MOST_DIAGONAL} values is one of its steps")
    return Chain(
        n_in,
        width,
        None if first is None else _arrays(first),
        tuple(SlopeLayer(act, *_after(after, width)) for act, after in layers),
    )


def _arrays(affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(affine.dense.numpy()), np.ascontiguousarray(affine.bias.numpy())


def _after(affine: Affine | None, width: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Weight and bias; of an activation that the chain ends in, none and zeros."""
    return (None, np.zeros(width)) if affine is None else _arrays(affine)
