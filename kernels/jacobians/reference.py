"""The definition: each sample by itself, each output's gradient by itself, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from lmn.kernels.jacobians.problem import Problem, smaller_gram


def jacobians(problem: Problem) -> ReferenceMaps:
    return ReferenceMaps(problem)


class ReferenceMaps:
    single = False

    def __init__(self, problem: Problem) -> None:
        self._problem, self.n_columns = problem, problem.n_in

    def jacobians(self, samples: Tensor) -> Tensor:
        out = torch.empty(len(samples), self._problem.n_out, self._problem.n_in, dtype=torch.float64, device=samples.device)
        for i, sample in enumerate(samples.double()):
            for k in range(self._problem.n_out):
                with torch.enable_grad():
                    x = sample[None].clone().requires_grad_()
                    y = self._problem.tail(x.clone())[0, k]
                    (gradient,) = (
                        torch.autograd.grad(y, x, materialize_grads=True) if y.requires_grad else (torch.zeros_like(x),)
                    )
                out[i, k] = gradient.flatten()
        return out

    isometric = jacobians

    def has_grams(self, _dtype: torch.dtype) -> bool:
        return False

    def grams(self, samples: Tensor) -> Tensor:
        return smaller_gram(self.jacobians(samples))
