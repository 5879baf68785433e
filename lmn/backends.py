"""Which implementation of an operation runs: the registry, and the choice."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lmn.errors import LmnError

_LEAST_CAPABILITY = (8, 0)  # of NVIDIA, from which matrix units take TF32
_OF_AMD = "gfx942"

Supports = Callable[[Any], tuple[bool, str]]


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation.

    Attributes
    ----------
    name : str
    module : str
        Where the function named after the operation is; imported when the backend is first used.
    supports : callable
        Given the operation's problem, whether this backend can do it, and why not.
    priority : int
        ``backend="auto"`` takes the one of the highest that this machine has and that supports the problem; one of 0 runs only
        when it is named.
    requires : tuple of str
        Packages that must be installed.
    takes_chains : bool
        Whether it computes from a chain's arrays, and not by running the tail.
    on_gpus : bool
        Whether it is for GPUs: ``"auto"`` takes it for what is on one, and never its interpreter on the CPU.
    """

    name: str
    module: str
    supports: Supports
    priority: int
    requires: tuple[str, ...] = ()
    takes_chains: bool = False
    on_gpus: bool = False

    def missing(self) -> str:
        """Why this machine can't run it, or ""."""
        absent = [package for package in self.requires if importlib.util.find_spec(package) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.on_gpus and not torch.cuda.is_available() and not _is_interpreted():
            return "there is no GPU that torch can use (TRITON_INTERPRET=1 runs it on the CPU, slowly)"
        return ""

    def load(self, operation: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), operation)
        return function


def _is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _anything(_: Any) -> tuple[bool, str]:
    return True, ""


def _chains(problem: Any) -> tuple[bool, str]:
    if problem.chain is None:
        return False, f"it takes chains of affine maps and activations: {problem.why_no_chain}"
    return True, ""


def _chains_on_the_cpu(problem: Any) -> tuple[bool, str]:
    device = problem.device.type
    return (False, f"it runs on the CPU, and the samples are on {device}") if device != "cpu" else _chains(problem)


def _on_a_gpu(problem: Any) -> tuple[bool, str]:
    device = problem.device.type
    if device != "cuda" and not _is_interpreted():
        return False, f"it runs on a GPU, and the samples are on {device} (TRITON_INTERPRET=1 runs it there, slowly)"
    why = _lacks(problem.device) if device == "cuda" and torch.cuda.is_available() else ""
    return not why, why


def _lacks(gpu: torch.device) -> str:
    """Why a GPU is none that the Triton kernels are made for, or ""."""
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(gpu).gcnArchName.partition(":")[0]
        return "" if name == _OF_AMD else f"of AMD's GPUs its kernels are made for {_OF_AMD} (MI300), and this is a {name}"
    capability = torch.cuda.get_device_capability(gpu)
    if capability < _LEAST_CAPABILITY:
        return f"its kernels need compute capability 8.0, and the GPU's is {'.'.join(map(str, capability))}"
    return ""


def _chains_on_a_gpu(problem: Any) -> tuple[bool, str]:
    supported, why = _on_a_gpu(problem)
    if not supported:
        return False, why
    if problem.dtype != torch.float32:
        return False, f"it computes in float32, and the samples are {str(problem.dtype).removeprefix('torch.')}"
    return _chains(problem)


def _triton(package: str, supports: Supports, *, takes_chains: bool = True) -> Backend:
    return Backend("triton", package + "triton_gpu", supports, 40, ("triton",), takes_chains, on_gpus=True)


def _what_has_float64(problem: Any) -> tuple[bool, str]:
    return problem.double, "" if problem.double else "the model can't be computed in float64"


_CONNECTIVITY = "lmn.kernels.connectivity."
_REGIONS = "lmn.kernels.regions."
_PATTERNS = "lmn.kernels.patterns."
_JACOBIANS = "lmn.kernels.jacobians."
_LOCAL_COMPLEXITY = "lmn.kernels.local_complexity."

REGISTRY: dict[str, tuple[Backend, ...]] = {
    "connectivity": (
        Backend("cpp", _CONNECTIVITY + "cpp", _chains_on_the_cpu, 30, takes_chains=True),
        Backend("numba", _CONNECTIVITY + "numba_cpu", _chains_on_the_cpu, 20, requires=("numba",), takes_chains=True),
        _triton(_CONNECTIVITY, _chains_on_a_gpu),
        Backend("torch", _CONNECTIVITY + "torch_eager", _anything, 10),
        Backend("reference", _CONNECTIVITY + "reference", _what_has_float64, 0),
    ),
    "regions": (
        Backend("cpp", _REGIONS + "cpp", _chains, 20, takes_chains=True),
        Backend("torch", _REGIONS + "torch_eager", _anything, 10),
    ),
    "patterns": (
        _triton(_PATTERNS, _on_a_gpu, takes_chains=False),
        Backend("cpp", _PATTERNS + "cpp", _anything, 10),
        Backend("reference", _PATTERNS + "reference", _anything, 0),
    ),
    "jacobians": (
        Backend("cpp", _JACOBIANS + "cpp", _chains_on_the_cpu, 20, takes_chains=True),
        _triton(_JACOBIANS, _chains_on_a_gpu),
        Backend("torch", _JACOBIANS + "torch_eager", _anything, 10),
        Backend("reference", _JACOBIANS + "reference", _what_has_float64, 0),
    ),
    "local_complexity": (
        Backend("cpp", _LOCAL_COMPLEXITY + "cpp", _chains_on_the_cpu, 20, takes_chains=True),
        _triton(_LOCAL_COMPLEXITY, _chains_on_a_gpu),
        Backend("torch", _LOCAL_COMPLEXITY + "torch_eager", _anything, 10),
        Backend("reference", _LOCAL_COMPLEXITY + "reference", _what_has_float64, 0),
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
    for backend in sorted(REGISTRY[operation], key=lambda backend: -backend.priority):
        if name != backend.name and (name != "auto" or backend.priority == 0):
            continue
        if name == "auto" and backend.on_gpus and problem.device.type == "cpu":
            continue
        missing = backend.missing()
        supported, why = (False, missing) if missing else backend.supports(problem)
        if supported:
            return backend
        reasons.append(f"{backend.name}: {why}")
    raise LmnError(f"backend {name!r} can't run this {operation} ({'; '.join(reasons)}); use backend='auto'.")
