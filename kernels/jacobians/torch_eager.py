"""Any differentiable tail on any device, by PyTorch: from the outputs or from the inputs, whichever takes fewer sweeps."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lmn.kernels.jacobians.problem import Problem, smaller_gram
from lmn.kernels.threads import torch_threads


def jacobians(problem: Problem) -> TailMaps:
    return TailMaps(problem)


class TailMaps:
    """The local maps of a tail."""

    single = False

    def __init__(self, problem: Problem) -> None:
        self._problem, self.n_columns = problem, problem.n_in
        self._forward = problem.forward and problem.n_in < problem.n_out

    def jacobians(self, samples: Tensor) -> Tensor:
        problem = self._problem
        out = samples.new_empty(len(samples), problem.n_out, problem.n_in)
        with torch_threads(problem.threads):
            for first in range(0, len(samples), problem.batch):
                part = slice(first, first + problem.batch)
                out[part] = self._of(samples[part])
        return out

    isometric = jacobians

    def has_grams(self, _dtype: torch.dtype) -> bool:
        return False

    def grams(self, samples: Tensor) -> Tensor:
        return smaller_gram(self.jacobians(samples))

    def _of(self, samples: Tensor) -> Tensor:
        if self._forward:
            try:
                return from_inputs(self._problem, samples)
            except Exception:  # no forward mode, or a broken one; what is the model's own error comes again in reverse
                self._forward = False
        return from_outputs(self._problem.tail, samples)[0]


def from_outputs(tail: Callable[[Tensor], Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse mode, one sweep an output: the Jacobians, (n, n_out, n_in), and the outputs, (n, n_out)."""
    with torch.enable_grad():
        x = samples.detach().clone().requires_grad_()
        y = tail(x.clone())
        n_out = y.shape[1]
        if not y.requires_grad:
            return x.new_zeros(len(x), n_out, x[0].numel()), y
        rows = [
            torch.autograd.grad(y[:, k].sum(), x, retain_graph=k + 1 < n_out, materialize_grads=True)[0] for k in range(n_out)
        ]
    return torch.stack([row.flatten(1) for row in rows], dim=1), y.detach()


@functools.cache
def _load_forward_mode() -> None:
    """What torch loads at the first dual number, inside a dual level, without its warning of its own use of TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        forward_ad.make_dual(torch.zeros((), device="cpu"), torch.zeros((), device="cpu"))


def from_inputs(problem: Problem, samples: Tensor) -> Tensor:
    """Forward mode: one sweep an input, as many together as a batch allows."""
    n, columns = len(samples), []
    together = max(1, problem.batch // max(1, n))
    with torch.enable_grad(), forward_ad.dual_level():
        _load_forward_mode()
        for directions in torch.arange(problem.n_in, device="cpu").split(together):
            tangent = torch.zeros(len(directions), n, problem.n_in, dtype=samples.dtype, device=samples.device)
            tangent[torch.arange(len(directions), device="cpu"), :, directions] = 1
            x = samples.detach().repeat(len(directions), *[1] * (samples.ndim - 1))
            y = problem.tail(forward_ad.make_dual(x, tangent.reshape(x.shape)))
            moved = forward_ad.unpack_dual(y).tangent
            moved = torch.zeros_like(y) if moved is None else moved
            columns.append(moved.detach().reshape(len(directions), n, problem.n_out))
    return torch.cat(columns).permute(1, 2, 0)
