"""The definition: each sample by itself, each vertex by itself, unit by unit, in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.local_complexity.problem import Bends, Found, Layer, Problem
from lmn.kernels.windows import Windows


def local_complexity(problem: Problem) -> Found:
    bends = problem.bends(torch.float64)
    counts = np.zeros((problem.n_points, len(bends.layers)), dtype=np.int64)
    for part, samples in problem.parts(1):
        x = samples[0].double()
        steps = problem.steps.to(x.device).reshape(-1, *x.shape)
        at_vertices = [_units(bends, vertex) for step in steps for vertex in (x + step, x - step)]
        for layer, found in enumerate(bends.layers):
            counts[part, layer] = _count(found, [units[layer] for units in at_vertices])
    return Found(bends.layers, counts)


def _units(bends: Bends, vertex: Tensor) -> list[np.ndarray]:
    """What goes into each layer at one vertex."""
    seen = [np.empty(0)] * len(bends.layers)

    def note(layer: int, units: Tensor) -> None:
        seen[layer] = units[0].cpu().numpy().copy()

    bends.visit(vertex[None].clone(), note)
    return seen


def _count(layer: Layer, at_vertices: list[np.ndarray]) -> int:
    if not all(_is_finite(layer, value) for z in at_vertices for value in z):
        return -1
    if isinstance(layer.bend, Windows):
        return sum(len({_largest(z, window, layer.bend.sign) for z in at_vertices}) > 1 for window in layer.bend.members)
    return sum(any(len({bool(z[unit] > at) for z in at_vertices}) > 1 for at in layer.bend) for unit in range(layer.n_units))


def _is_finite(layer: Layer, value: float) -> bool:
    return bool(layer.bend.sign * value < np.inf if isinstance(layer.bend, Windows) else np.isfinite(value))


def _largest(z: np.ndarray, window: np.ndarray, sign: int) -> int:
    """The first of equal ones."""
    return int(np.argmax([sign * z[unit] if unit >= 0 else -np.inf for unit in window]))
