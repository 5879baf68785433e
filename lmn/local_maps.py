"""The local maps of a network: plan, dispatch, and a check against the model's own derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmn.backends import check_name, choose
from lmn.errors import LmnError, in_short
from lmn.kernels.jacobians.problem import LocalMaps, Problem
from lmn.lowering import NotAChain
from lmn.network import Network
from lmn.slopes import slope_chain

CHECKED = 64  # samples at which derivatives are compared, when a model is first seen
_CHECKED_AGAIN = 8  # and later
_DIRECTIONS = 2  # random combinations of outputs by which they are
_AGREEMENT, _ROUNDING = 1e-3, 1e-6


@dataclass(frozen=True, eq=False)
class Differentiated:
    """A network's local maps, and how they are found.

    Attributes
    ----------
    maps : LocalMaps
    backend : str
    path : {"chain", "traced", "whole model"}
    n_out, n_in : int
    """

    maps: LocalMaps
    backend: str
    path: str
    n_out: int
    n_in: int


def differentiated(network: Network, example: Tensor, backend: str, threads: int) -> Differentiated:
    """The local maps of a network, checked at an example's samples.

    What a model was read as may give its outputs and not its derivatives: it may detach a result, or have a function with a
    backward pass of its own. The model's own reverse mode is what counts: a chain, or a graph, that has others is not used.

    Raises
    ------
    LmnError
        The output has no derivative; or the named backend can't do it.
    """
    check_name("jacobians", backend)
    chain = slope_chain(network, example)
    own = own_derivatives(network, example[: _CHECKED_AGAIN if network.derivative else CHECKED])
    problem = Problem(
        chain=None if isinstance(chain, NotAChain) else chain,
        why_no_chain=chain.why if isinstance(chain, NotAChain) else "",
        device=example.device,
        dtype=example.dtype,
        tail=network.tail,
        n_in=example[0].numel(),
        n_out=own.weights.shape[1],
        batch=network.batch,
        double=not network.single_inside,
        forward=True,
        threads=threads,
    )
    candidates = dict(_candidates(network, problem))
    # What had the derivatives before is looked at first.
    for name in sorted(candidates, key=lambda name: name != network.derivative):
        chosen = choose("jacobians", backend, candidates[name])
        maps: LocalMaps = chosen.load("jacobians")(candidates[name])
        if name == _OWN or own.agree_with(maps, may_fail=not chosen.takes_chains):
            network.derivative = name if backend == "auto" and own.finite.any() else network.derivative
            path = "chain" if chosen.takes_chains else network.path if name != _OWN else "whole model"
            return Differentiated(maps, chosen.name, path, problem.n_out, problem.n_in)
    raise AssertionError("the model's own derivatives are its own")


_OWN = "the model's own reverse mode"


def _candidates(network: Network, problem: Problem) -> Iterator[tuple[str, Problem]]:
    """What may have the model's derivatives, the fastest first."""
    if problem.chain is not None:
        yield "chain", problem
        problem = replace(problem, chain=None, why_no_chain="as one it has other derivatives than the model")
    if problem.n_in < problem.n_out:
        yield "forward mode", problem
    yield "reverse mode", replace(problem, forward=False)
    yield _OWN, replace(problem, tail=network.untraced, forward=False)


@dataclass(frozen=True, eq=False)
class OwnDerivatives:
    """The model's own derivatives of some combinations of its outputs, at some samples.

    Attributes
    ----------
    weights : Tensor of shape (n_combinations, n_out)
        Each output's in proportion to its range, so that none is lost beside a larger one.
    gradients : Tensor of shape (n_combinations, n, n_in)
    finite : Tensor of shape (n,), bool
        Where they are: only there can anything be compared.
    """

    samples: Tensor
    weights: Tensor
    gradients: Tensor

    @property
    def finite(self) -> Tensor:
        return torch.isfinite(self.gradients).all(2).all(0)

    def agree_with(self, maps: LocalMaps, *, may_fail: bool) -> bool:
        """Whether maps are these. A graph may be one that can't be differentiated; a kernel has no reason to fail."""
        try:
            a = maps.jacobians(self.samples.float() if maps.single else self.samples.clone())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if not may_fail:
                raise
            return False
        return self.are_of(a, most_off=int(maps.single))  # within float32's rounding of a kink

    def are_of(self, a: Tensor, most_off: int = 0) -> bool:
        """Whether they are those of Jacobians at the samples, (n, n_out, n_in), but for so many samples."""
        a, finite = a.to(self.gradients), self.finite
        got, expected = torch.einsum("ck,nki->cni", self.weights, a)[:, finite], self.gradients[:, finite]
        if not expected.numel():
            return False
        of_input = expected.abs().amax((0, 1))
        most = _AGREEMENT * (expected.abs() + of_input) + _ROUNDING * of_input.max()
        off = ((got - expected).abs() > most).any(2).any(0)
        return int(off.sum()) <= min(most_off, len(off) - 1)


def own_derivatives(network: Network, samples: Tensor) -> OwnDerivatives:
    """The model's, in float64 where the model can be had in it, also under its own checkpoints; else in the samples' dtype."""
    if network.single_inside or samples.dtype == torch.float64:
        return _own_derivatives_in(network, samples)
    try:
        return _own_derivatives_in(network, samples.double())
    except LmnError:
        return _own_derivatives_in(network, samples)


def _own_derivatives_in(network: Network, samples: Tensor) -> OwnDerivatives:
    with torch.enable_grad():
        x = samples.detach().clone().requires_grad_()
        try:
            y = network.untraced(x.clone())
        except Exception as error:
            raise LmnError(f"the model can't be run with gradients ({in_short(error)}), so it has no Jacobians.") from error
        if not bool(torch.isfinite(y).all()):
            raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
        weights = _combinations(y.detach())
        try:
            gradients = [
                torch.autograd.grad((y @ weight).sum(), x, retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
                for weight in weights
            ]
        except Exception as error:
            raise LmnError(f"the model can't be differentiated: {in_short(error)}.") from error
    if any(gradient is None for gradient in gradients):
        raise LmnError(
            "the output has no derivative by the samples (it is detached from them, goes through an argmax or a comparison, or "
            "is made under no_grad), so there are no Jacobians; pick a differentiable output with select=, or a later tap."
        )
    return OwnDerivatives(
        x.detach(), weights, torch.stack([gradient.flatten(1) for gradient in gradients if gradient is not None])
    )


def _combinations(y: Tensor) -> Tensor:
    """Random weights of outputs, (n_combinations, n_out), that take the outputs' ranges at some samples to about 1."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(_DIRECTIONS, y.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(y)
    size = (y - y.mean(0)).abs().amax(0)
    return random / torch.where(size > 0, size, 1)
