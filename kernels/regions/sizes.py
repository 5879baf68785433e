"""How large the terms are that units are summed from: what the rounding errors of their zeros are relative to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Program, Step, Value, units_of
from lmn.kernels.regions.problem import Chain, Terms

_PROBES = 8
_POINTS_AN_AXIS = 5


_OUTPUT = -1


def terms_of_chain(chain: Chain) -> Terms:
    """As by :func:`term_sizes`, from the weights; of A without the last bias, which is no term of it."""
    linear, size = chain.size - np.abs(chain.c), chain.size
    for layer in chain.layers:
        bent = np.abs(layer.pieces.slopes).max(1) * size + np.abs(layer.pieces.offsets).max(1)
        linear = np.sqrt(layer.weight**2 @ bent**2)
        size = linear + np.abs(layer.bias)
    return Terms(*(float(np.linalg.norm(each)) for each in (linear, size)))


def output_terms(sizes: dict[int, np.ndarray]) -> Terms:
    """From what :func:`term_sizes` found."""
    size = float(np.linalg.norm(sizes[_OUTPUT]))
    return Terms(size, size)


def cube_points(centre: np.ndarray, half: np.ndarray, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some points of the cube centre + Σ_a u_a half_a, u in [-1, 1]^n_axes, and how large one's terms are: (n, ...), (1, ...).

    Parameters
    ----------
    centre, half : ndarray of shape (n_in,) and (n_axes, n_in), float64
    shape : sequence of int
        Of one input.
    """
    axis = np.linspace(-1, 1, _POINTS_AN_AXIS)
    u = np.array(list(itertools.product(axis, repeat=len(half))))
    size = np.abs(centre) + np.abs(half).sum(0)
    return torch.from_numpy(centre + u @ half).reshape(-1, *shape), torch.from_numpy(size).reshape(1, *shape)


def term_sizes(program: Program, points: Tensor, size: Tensor) -> dict[int, np.ndarray]:
    """For each bend, the size of the terms of each of its units, at inputs whose terms are of a given size.

    A size s of what goes into an affine step makes sqrt(Σ_i w_ui² s_i²) + |b_u| of what comes out of it: the size of a sum of
    terms of any signs, as rounding errors are. It is found without knowing the weights, as the step's root mean square over
    inputs r_i s_i with random signs r; or it is the largest value at some inputs, if that is larger.

    Parameters
    ----------
    points : Tensor of shape (n_points, ...), float64
    size : Tensor of shape (1, ...), float64

    Returns
    -------
    dict of int to ndarray of shape (n_units,), float64
        By the bend's slot; by -1 of the outputs.
    """
    generator = torch.Generator().manual_seed(0)
    values, sizes, found = {0: points}, {0: size}, dict[int, np.ndarray]()
    for step in program.steps:
        sources, source_sizes = [values[slot] for slot in step.sources], [sizes[slot] for slot in step.sources]
        if step.bend is None:
            sizes[step.target] = _after_affine(step, source_sizes, generator)
        else:
            units = units_of(source_sizes, 1)[0].cpu().numpy()
            found[step.target] = np.maximum(units, units_of(sources, len(points)).abs().amax(0).cpu().numpy())
            sizes[step.target] = torch.from_numpy(_after_bend(step, units)).reshape(1, *step.shape).to(points.device)
        values[step.target] = step.run([_copy(value) for value in sources], len(points))
        for slot in step.done:
            del values[slot], sizes[slot]
    found[_OUTPUT] = units_of([sizes[program.output]], 1)[0].cpu().numpy()
    return found


def _after_affine(step: Step, sizes: list[Value], generator: torch.Generator) -> Value:
    def probe(size: Value) -> Value:
        if isinstance(size, tuple | list):
            return [probe(part) for part in size]
        signs = torch.randint(0, 2, (_PROBES + 1, *size.shape[1:]), generator=generator, dtype=size.dtype, device="cpu") * 2 - 1
        signs[0] = 0
        return signs.to(size.device) * size

    def size_of(out: Value) -> Value:
        if isinstance(out, tuple | list):
            return [size_of(part) for part in out]
        return (out[1:] - out[:1]).square().mean(0, keepdim=True).sqrt() + out[:1].abs()

    return size_of(step.run([probe(size) for size in sizes], _PROBES + 1))


def _after_bend(step: Step, units: np.ndarray) -> np.ndarray:
    bend = step.bend
    if isinstance(bend, Pieces):
        return np.asarray(np.abs(bend.slopes).max(1) * units + np.abs(bend.offsets).max(1))
    assert bend is not None
    return np.asarray(np.where(bend.members >= 0, units[bend.members], 0).max(1))


def _copy(value: Value) -> Value:
    """Steps may overwrite what they are given."""
    return value.clone() if isinstance(value, Tensor) else [_copy(part) for part in value]
