"""Chains on the CPU, by the C++ kernel (csrc/connectivity_isa.cpp)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.connectivity.pairs import n_pairs
from lmn.kernels.connectivity.problem import TOLERANCE, Problem, Progress

_PAIRS_A_CALL = 1 << 17  # between calls, progress is reported and Ctrl-C is heard


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
        tolerance=TOLERANCE,
        isa=isa,
    )
    n, first, redone = problem.n_points, 0, 0
    while first < n:
        last, count = first, 0
        while last < n and count < _PAIRS_A_CALL:
            count += n - 1 - last
            last += 1
        single = problem.samples.dtype == torch.float32
        redone += kernel.rows(first, last, single, problem.threads, out.numpy())
        progress(n_pairs(n - first) - n_pairs(n - last))
        first = last
    return redone
