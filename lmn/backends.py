"""Which implementation of an operation runs: the registry, and the choice."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmn.errors import LmnError

Supports = Callable[[Any], str]


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation.

    Attributes
    ----------
    name : str
    module : str
        Where the function named after the operation is; imported when the backend is first used.
    declines : callable
        Given the operation's problem, why this backend can't do it, or "".
    requires : tuple of str
        Packages that must be installed.
    automatic : bool
        Whether ``backend="auto"`` may pick it.
    takes_chains : bool
        Whether it computes from a chain's arrays, and not by running the tail.
    """

    name: str
    module: str
    declines: Supports
    requires: tuple[str, ...] = ()
    automatic: bool = True
    takes_chains: bool = False

    def missing(self) -> str:
        """Why this machine can't run it, or ""."""
        absent = [package for package in self.requires if importlib.util.find_spec(package) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""

    def load(self, operation: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), operation)
        return function


def _any(_: Any) -> str:
    return ""


def _chain_only(problem: Any) -> str:
    return "" if problem.chain is not None else f"it takes chains of affine maps and activations: {problem.why_no_chain}"


def _float64(problem: Any) -> str:
    return "" if problem.double else "the model can't be computed in float64"


_CONNECTIVITY = "lmn.kernels.connectivity."

# Best first: "auto" takes the first that this machine has and that does not decline.
REGISTRY: dict[str, tuple[Backend, ...]] = {
    "connectivity": (
        Backend("cpp", _CONNECTIVITY + "cpp", _chain_only, takes_chains=True),
        Backend("numba", _CONNECTIVITY + "numba_cpu", _chain_only, requires=("numba",), takes_chains=True),
        Backend("torch", _CONNECTIVITY + "torch_eager", _any),
        Backend("reference", _CONNECTIVITY + "reference", _float64, automatic=False),
    ),
}


def available_backends() -> dict[str, dict[str, str]]:
    """What can run on this machine: operation → backend → "available", or why it is not.

    A backend that is available may still decline a model (a chain kernel takes only chains); naming it in ``backend=`` then
    raises with the reason, and ``"auto"`` takes the next.
    """
    return {
        operation: {backend.name: backend.missing() or "available" for backend in backends}
        for operation, backends in REGISTRY.items()
    }


def check_name(operation: str, name: str) -> None:
    """Raise for a backend that the operation does not have, before any work is done."""
    names = [backend.name for backend in REGISTRY[operation]]
    if name != "auto" and name not in names:
        raise LmnError(f"there is no backend {name!r} for {operation}; choose 'auto' or one of {names}.")


def choose(operation: str, name: str, problem: Any) -> Backend:
    """The backend to run; one that was named never falls back to another."""
    check_name(operation, name)
    reasons = []
    for backend in REGISTRY[operation]:
        if name not in ("auto", backend.name) or (name == "auto" and not backend.automatic):
            continue
        reason = backend.missing() or backend.declines(problem)
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise LmnError(f"backend {name!r} can't run this {operation} ({'; '.join(reasons)}); use backend='auto'.")
