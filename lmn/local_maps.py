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

_CHECKED = 8  # samples at which derivatives are compared
_DIRECTIONS = 2  # random combinations of outputs by which they are
_AGREEMENT = 1e-3


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
    """The local maps of a network, checked at the example's first samples.

    What a model was read as may give its outputs and not its derivatives: it may detach a result, or have a function with a
    backward pass of its own. The model's own reverse mode is what counts: a chain, or a graph, that has others is not used.

    Raises
    ------
    LmnError
        The output has no derivative; or the named backend can't do it.
    """
    check_name("jacobians", backend)
    chain = slope_chain(network, example)
    some = example[:_CHECKED] if network.single_inside else example[:_CHECKED].double()
    problem = Problem(
        chain=None if isinstance(chain, NotAChain) else chain,
        why_no_chain=chain.why if isinstance(chain, NotAChain) else "",
        tail=network.tail,
        n_in=some[0].numel(),
        n_out=_n_outputs(network, some),
        batch=network.batch,
        double=not network.single_inside,
        forward=True,
        threads=threads,
    )
    candidates = dict(_candidates(network, problem))
    if backend == "auto" and network.derivative in candidates:  # what is remembered is what "auto" came to
        candidates, own = {network.derivative: candidates[network.derivative]}, None
    else:
        own = _own_gradients(network, some)
    for name, candidate in candidates.items():
        chosen = choose("jacobians", backend, candidate)
        maps: LocalMaps = chosen.load("jacobians")(candidate)
        if own is None or name == _OWN or _agrees(maps, some, own):
            network.derivative = name if backend == "auto" else network.derivative
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


def _n_outputs(network: Network, samples: Tensor) -> int:
    y = network.tail(samples.clone())
    if not bool(torch.isfinite(y).all()):
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    return y.shape[1]


def _own_gradients(network: Network, samples: Tensor) -> Tensor:
    """The model's own derivatives of combinations of its outputs, (n_combinations, n, n_in)."""
    with torch.enable_grad():
        x = samples.detach().clone().requires_grad_()
        try:
            y = network.untraced(x.clone())
        except RuntimeError as error:
            raise LmnError(f"the model can't be run with gradients ({in_short(error)}), so it has no Jacobians.") from error
        if not y.requires_grad:
            raise LmnError(
                "the output has no derivative (it is detached, an argmax, a comparison, or made under no_grad), so there are "
                "no Jacobians; pick a differentiable output with select=."
            )
        combinations = _combinations(y.shape[1]).to(y)
        try:
            gradients = [
                torch.autograd.grad((y @ weights).sum(), x, retain_graph=True, materialize_grads=True)[0].flatten(1)
                for weights in combinations
            ]
        except RuntimeError as error:
            raise LmnError(f"the model can't be differentiated: {in_short(error)}.") from error
    return torch.stack(gradients)


def _combinations(n_out: int) -> Tensor:
    return torch.randn(_DIRECTIONS, n_out, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _agrees(maps: LocalMaps, samples: Tensor, own: Tensor) -> bool:
    try:
        a = maps.jacobians(samples.clone()).to(own)
    except RuntimeError:  # a graph that can't be differentiated, say
        return False
    got = torch.einsum("ck,nki->cni", _combinations(a.shape[1]).to(own), a)
    size = float(own.abs().max())
    same = torch.isclose(got, own, rtol=_AGREEMENT, atol=_AGREEMENT * size).all() | ~torch.isfinite(own).all()
    return bool(same)
