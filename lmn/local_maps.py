"""The local maps of a network: plan, dispatch, and a check against the model's own derivatives."""

from __future__ import annotations

from collections.abc import Callable
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
    some = example[:_CHECKED]
    double = not network.single_inside
    some = some.double() if double else some
    chain = slope_chain(network, example)
    own, n_out = _own_gradients(network, some)
    problem = Problem(
        chain=None if isinstance(chain, NotAChain) else chain,
        why_no_chain=chain.why if isinstance(chain, NotAChain) else "",
        tail=network.tail,
        n_in=some[0].numel(),
        n_out=n_out,
        batch=network.batch,
        double=double,
        forward=True,
        threads=threads,
    )
    if problem.chain is not None:
        chosen = choose("jacobians", backend, problem)
        maps: LocalMaps = chosen.load("jacobians")(problem)
        if _agrees(maps, some, own):
            path = "chain" if chosen.takes_chains else network.path
            return Differentiated(maps, chosen.name, path, n_out, problem.n_in)
        problem = replace(problem, chain=None, why_no_chain="as one it has other derivatives than the model")
    chosen = choose("jacobians", backend, problem)
    run: Callable[[Problem], LocalMaps] = chosen.load("jacobians")
    for forward in (True, False) if problem.n_in < n_out else (False,):
        maps = run(replace(problem, forward=forward))
        if _agrees(maps, some, own):
            return Differentiated(maps, chosen.name, network.path, n_out, problem.n_in)
    maps = run(replace(problem, tail=network.untraced, forward=False))
    return Differentiated(maps, chosen.name, "whole model", n_out, problem.n_in)


def _own_gradients(network: Network, samples: Tensor) -> tuple[Tensor, int]:
    """The model's own derivatives of combinations of its outputs, (n_combinations, n, n_in), and how many outputs it has."""
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
        if not bool(torch.isfinite(y).all()):
            raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
        combinations = _combinations(y.shape[1]).to(y)
        try:
            gradients = [
                torch.autograd.grad((y @ weights).sum(), x, retain_graph=True, materialize_grads=True)[0].flatten(1)
                for weights in combinations
            ]
        except RuntimeError as error:
            raise LmnError(f"the model can't be differentiated: {in_short(error)}.") from error
    return torch.stack(gradients), y.shape[1]


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
