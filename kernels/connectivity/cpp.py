"""Chains on the CPU, by the C++ kernel (csrc/connectivity_isa.cpp)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.connectivity.problem import CONSTANT, TOLERANCE, Problem, Progress
from lmn.kernels.connectivity.torch_eager import ByTheTail

# Of a call, between which progress is told and Ctrl-C is heard: a fraction of a second.
_PAIRS_A_CALL = 1 << 17
_PRODUCTS_A_CALL = 1 << 34


def connectivity(problem: Problem, out: Tensor, progress: Progress) -> int:
    """Fill ``out``, shape (n_points, n_points), contiguous, float32 or float64. Returns the pairs done again in float64."""
    return connectivity_on(problem, out, progress, isa="")


def connectivity_on(problem: Problem, out: Tensor, progress: Progress, isa: str) -> int:
    """The same by the kernel for a given instruction set; ``""`` is the best one."""
    assert problem.chain is not None
    if not problem.chain.layers:  # affine
        out.fill_(1)
        return 0
    layers = []
    for layer in problem.chain.layers:
        act = layer.activation
        scale, slope = act.by_unit(len(layer.z))
        layers.append((layer.z, act.core_index, act.p0, act.p1, scale, slope, layer.weight))
    kernel = _core.Connectivity(
        layers=layers,
        y=problem.chain.y,
        noise_f32=problem.chain.rounding_noise(np.float32),
        noise_f64=problem.chain.rounding_noise(np.float64),
        m=problem.m,
        constant=CONSTANT,
        tolerance=TOLERANCE,
        tolerance_f64=problem.tolerance_f64,
        isa=isa,
    )
    pairs, first, redone, by_the_tail = problem.pairs, 0, 0, ByTheTail(problem, out)
    single = problem.samples.dtype == torch.float32
    most = max(1, min(_PAIRS_A_CALL, problem.threads * _PRODUCTS_A_CALL // problem.chain.n_products(problem.m)))
    while first < len(pairs.rows):
        last, count = first, 0
        while last < len(pairs.rows) and (count < most or last - first < problem.threads):
            count += pairs.in_row(last)
            last += 1
        redone += kernel.rows(first, last, pairs.first_column, single, problem.threads, out.numpy())
        if problem.double:
            given_up = _given_up(out[first:last, pairs.first_column :])
            if given_up is not None:
                i, j = given_up[0] + first, given_up[1] + pairs.first_column
                by_the_tail.redo(i[j > i], j[j > i])
        progress(count)
        first = last
    return redone


def _given_up(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The places that are NaN, if any is."""
    if not bool(torch.isnan(rows.sum())):
        return None
    i, j = torch.nonzero(torch.isnan(rows), as_tuple=True)
    return i, j
