"""Chains on the CPU, by the C++ kernel (csrc/crossings_isa.cpp): the directions go through the first affine map once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lmn.kernels.jacobians.cpp import slopes_of
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.local_complexity.problem import Found, Problem
from lmn.kernels.threads import torch_threads

# Of a call, between which progress is told and Ctrl-C is heard: a fraction of a second.
_PRODUCTS_A_CALL = 1 << 32
_BYTES_A_CALL = 1 << 24  # of samples and first pre-activations
_SAMPLES_A_CALL = 1 << 14


def local_complexity(problem: Problem) -> Found:
    return local_complexity_on(problem, isa="")


def local_complexity_on(problem: Problem, isa: str) -> Found:
    """The same by the kernel for a given instruction set; ``""`` is the best one."""
    chain, layers = problem.chain, problem.layers
    assert chain is not None
    counts = np.zeros((problem.n_points, len(layers)), dtype=np.int64)
    if not layers:
        return Found(layers, counts)
    bending = [index for index, layer in enumerate(chain.layers) if layer.activation.name != "identity"]
    # The kernel starts at the first pre-activations, to which all vertices of a sample are the same steps.
    n_first = chain.units[0]
    slopes = slopes_of(replace(chain, n_in=n_first, first=None), problem.dtype, isa=isa)
    with torch_threads(problem.threads):
        shifts = _to_first(chain, problem.steps, bias=False).to(problem.dtype).numpy()
        for part, samples in problem.parts(_samples_a_call(problem, n_first)):
            z = _to_first(chain, samples.flatten(1), bias=True).to(problem.dtype).numpy()
            counts[part] = slopes.crossings(z, shifts, problem.threads)[:, bending]
    return Found(layers, counts)


def _to_first(chain: Chain, x: Tensor, *, bias: bool) -> Tensor:
    """The first affine map of rows, in float64: (n, n_in) to (n, n_first)."""
    if chain.first is None:
        return x.contiguous()
    weight, constant = map(torch.from_numpy, chain.first)
    z = x.double() @ weight.T
    return z.add_(constant) if bias else z


def _samples_a_call(problem: Problem, n_first: int) -> int:
    assert problem.chain is not None
    products = 2 * len(problem.steps) * sum(layer.weight.size for layer in problem.chain.layers if layer.weight is not None)
    by_time = problem.threads * _PRODUCTS_A_CALL // max(1, products)
    by_memory = _BYTES_A_CALL // (8 * (problem.chain.n_in + n_first))
    return max(problem.threads, min(by_time, by_memory, _SAMPLES_A_CALL))
