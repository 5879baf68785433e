"""A chain on a regular grid's domain, as what exact subdivision takes."""

from __future__ import annotations

import numpy as np

from lmn.domain import Domain
from lmn.errors import LmnError
from lmn.kernels.activations import Activation
from lmn.kernels.pieces import pieces
from lmn.kernels.regions.problem import Chain, PieceLayer
from lmn.lowering import Affine, ChainStep
from lmn.program import not_piecewise_linear


def chain_on(steps: list[ChainStep], domain: Domain) -> Chain:
    """The chain with its first affine map composed with the cube's coordinates.

    Raises
    ------
    LmnError
        A layer that is not piecewise linear; weights that are not finite.
    """
    first, activations = _alternating(steps, len(domain.centre))
    weight, bias = first.dense.numpy(), first.bias.numpy()
    size = np.abs(weight) @ (np.abs(domain.centre) + np.abs(domain.half).sum(0)) + np.abs(bias)
    layers = tuple(
        PieceLayer(pieces(act, after.dense.shape[1]), np.ascontiguousarray(after.dense.numpy()), after.bias.numpy())
        for act, after in activations
    )
    for values in (weight, bias, *(x for layer in layers for x in (layer.weight, layer.bias))):
        if not np.isfinite(values).all():
            raise LmnError("the model has weights that are not finite (NaN or infinity); is the training diverged?")
    return Chain(weight @ domain.half.T, weight @ domain.centre + bias, size, layers)


def _alternating(steps: list[ChainStep], n_in: int) -> tuple[Affine, list[tuple[Activation, Affine]]]:
    """The first affine map, and each activation with the one after it; the identity where the steps have none."""
    first, activations = Affine.identity(n_in), list[tuple[Activation, Affine]]()
    for step in steps:
        if isinstance(step, Affine):
            if activations:
                act, after = activations[-1]
                activations[-1] = act, after.then(step)
            else:
                first = first.then(step)
        elif not step.piecewise_linear:
            raise not_piecewise_linear(step.name, step.where)
        elif step.name != "identity":
            width = len(activations[-1][1].bias) if activations else len(first.bias)
            activations.append((step, Affine.identity(width)))
    return first, activations
