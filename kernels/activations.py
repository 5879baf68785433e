"""The one table of activations: what torch computes, and what the kernels do.

An activation is an affine function of its argument plus a multiple of a *core*::

    act(z) = scale * core(z; p0, p1) + slope * z + constant

The deviation of an activation from its chord is what linear connectivity needs, and the affine part has none where z is
linear. Several activations share a core (LeakyReLU, PReLU and the absolute value are ReLU; SiLU is z tanh(z/2)), so a kernel
language has one short function a core: csrc/cores.hpp, kernels/cores_numba.py, kernels/cores_triton.py. Smooth cores are even
or odd where the activation is nearly linear, which keeps their rounding error in proportion to the curvature that is measured;
those of linear pieces are level on one, where the affine part is the activation, its slope with all digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# The position is the number by which compiled kernels know a core: append only.
CORES = (
    "identity",  # z
    "relu",  # z above zero, else 0
    "clamp",  # z clamped to [p0, p1]
    "tanh",  # tanh(p0 z)
    "ztanh",  # z tanh(p0 z)
    "zerf",  # z erf(z / sqrt 2)
    "zgelu_tanh",  # z tanh(sqrt(2/pi) (z + 0.044715 z^3))
    "elu",  # z above zero, p0 (exp(z) - 1) below
    "softplus",  # softplus with beta p0 and threshold p1, minus z/2
    "hardswish",  # z clamp(z + 3, 0, 6) / 6
    "mish",  # z tanh(softplus(z))
)
STRAIGHT_CORES = frozenset({"identity", "relu", "clamp"})  # of linear pieces


@dataclass(frozen=True)
class Activation:
    """A pointwise activation with its parameters.

    Attributes
    ----------
    name : str
        torch's name of the function, e.g. ``"leaky_relu"``.
    core, p0, p1
        The core that kernels compute, and its parameters.
    kink : float
        The slope of the core where two of its linear pieces meet, so that the activation's is torch's: 0 of ReLU at zero, 1 of
        clamp at its bounds.
    scale, slope : float or ndarray of shape (n_hidden,), float64
        ``act(z) = scale * core(z) + slope * z + constant``, by unit where the activation has parameters by unit (PReLU).
    function : callable
        The torch function, Tensor to Tensor, of any floating dtype.
    piecewise_linear : bool
        Whether the activation has finitely many linear pieces.
    breakpoints : tuple of float
        Of an activation that is none of the table's: where its pieces meet; its core is then "pieces", which no kernel has.
    where : str
        Where in its model it is, for messages.
    """

    name: str
    core: str
    function: Callable[[Tensor], Tensor] = field(compare=False)
    p0: float = 0.0
    p1: float = 0.0
    kink: float = 0.0
    scale: float | np.ndarray = 1.0
    slope: float | np.ndarray = 0.0
    piecewise_linear: bool = False
    breakpoints: tuple[float, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def core_index(self) -> int:
        return CORES.index(self.core)

    @property
    def constant(self) -> float:
        """Of ``act(z) = scale * core(z) + slope * z + constant``: the same for all units."""
        zero = np.zeros(1)
        core = core_values(self.core, zero, self.p0, self.p1)[0]
        value = self.function(torch.from_numpy(zero).reshape(1, 1)).double().numpy().ravel()[0]
        return float(value - np.ravel(self.scale)[0] * core)

    @property
    def may_be_flat(self) -> bool:
        """Whether its slope is exactly zero on an interval, for some unit."""
        of_core = (0.0, 1.0) if self.core in ("relu", "clamp", "hardswish") else ()
        return any(bool(np.any(self.scale * np.asarray(slope) + self.slope == 0)) for slope in of_core)

    def by_unit(self, n_hidden: int) -> tuple[np.ndarray, np.ndarray]:
        """``scale`` and ``slope``, each of shape (n_hidden,), float64."""
        return tuple(  # type: ignore[return-value]
            np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=np.float64), (n_hidden,)))
            for value in (self.scale, self.slope)
        )


def _identity() -> Activation:
    return Activation("identity", "identity", lambda z: z, scale=0.0, slope=1.0, piecewise_linear=True)


def _relu() -> Activation:
    return Activation("relu", "relu", torch.relu, piecewise_linear=True)


def _leaky_relu(negative_slope: float = 0.01) -> Activation:
    return Activation(
        "leaky_relu",
        "relu",
        lambda z: functional.leaky_relu(z, negative_slope),
        scale=1 - negative_slope,
        slope=negative_slope,
        piecewise_linear=True,
    )


def _prelu(weight: Tensor) -> Activation:
    slopes = weight.detach().double().cpu().numpy().reshape(-1)
    return Activation(
        "prelu",
        "relu",
        lambda z: torch.where(z > 0, z, z * weight.detach().to(z)),
        scale=1 - slopes,
        slope=slopes,
        piecewise_linear=True,
    )


def _absolute() -> Activation:
    return Activation("abs", "relu", torch.abs, kink=0.5, scale=2.0, slope=-1.0, piecewise_linear=True)


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    return Activation(
        "hardtanh",
        "clamp",
        lambda z: functional.hardtanh(z, min_val, max_val),
        p0=min_val,
        p1=max_val,
        piecewise_linear=True,
    )


def _clamp(min: float | None = None, max: float | None = None) -> Activation:  # noqa: A002 - torch's names
    low, high = -math.inf if min is None else float(min), math.inf if max is None else float(max)
    return Activation("clamp", "clamp", lambda z: z.clamp(low, high), p0=low, p1=high, kink=1.0, piecewise_linear=True)


def _clamp_min(min: float = 0.0) -> Activation:  # noqa: A002
    return _clamp(min=min)


def _clamp_max(max: float = 0.0) -> Activation:  # noqa: A002
    return _clamp(max=max)


def _hardsigmoid() -> Activation:
    return Activation("hardsigmoid", "clamp", functional.hardsigmoid, p0=-3.0, p1=3.0, scale=1 / 6, piecewise_linear=True)


def _softshrink(lambd: float = 0.5) -> Activation:
    return Activation(
        "softshrink",
        "clamp",
        lambda z: functional.softshrink(z, lambd),
        p0=-lambd,
        p1=lambd,
        kink=1.0,
        scale=-1.0,
        slope=1.0,
        piecewise_linear=True,
    )


def _relu6() -> Activation:
    return Activation("relu6", "clamp", functional.relu6, p0=0.0, p1=6.0, piecewise_linear=True)


def _tanh() -> Activation:
    return Activation("tanh", "tanh", torch.tanh, p0=1.0)


def _sigmoid() -> Activation:
    return Activation("sigmoid", "tanh", torch.sigmoid, p0=0.5, scale=0.5)


def _silu() -> Activation:
    return Activation("silu", "ztanh", functional.silu, p0=0.5, scale=0.5, slope=0.5)


def _gelu(approximate: str = "none") -> Activation:
    core = {"none": "zerf", "tanh": "zgelu_tanh"}[approximate]
    return Activation("gelu", core, lambda z: functional.gelu(z, approximate=approximate), scale=0.5, slope=0.5)


def _elu(alpha: float = 1.0) -> Activation:
    return Activation("elu", "elu", lambda z: functional.elu(z, alpha), p0=alpha)


def _selu() -> Activation:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # Klambauer et al. 2017
    return Activation("selu", "elu", functional.selu, p0=alpha, scale=scale)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    return Activation(
        "softplus",
        "softplus",
        lambda z: functional.softplus(z, beta, threshold),
        p0=beta,
        p1=threshold,
        slope=0.5,
    )


def _hardswish() -> Activation:
    return Activation("hardswish", "hardswish", functional.hardswish)


def _mish() -> Activation:
    return Activation("mish", "mish", functional.mish)


ACTIVATIONS: dict[str, Callable[..., Activation]] = {
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "abs": _absolute,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "hardsigmoid": _hardsigmoid,
    "softshrink": _softshrink,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "selu": _selu,
    "softplus": _softplus,
    "hardswish": _hardswish,
    "mish": _mish,
}


def activation(name: str, where: str = "", **parameters: Any) -> Activation:
    """The activation that torch calls ``name``, e.g. ``activation("leaky_relu", negative_slope=0.1)``."""
    return replace(ACTIVATIONS[name](**parameters), where=where)


_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def core_values(core: str, z: np.ndarray, p0: float = 0.0, p1: float = 0.0) -> np.ndarray:
    """A core in float64 by NumPy and torch: what the compiled ones are held to, and what estimates their rounding error.

    Parameters
    ----------
    z : ndarray of any shape, float64
    """
    t = torch.from_numpy(np.ascontiguousarray(z, dtype=np.float64))
    values = {
        "identity": lambda: t,
        "relu": lambda: t.relu(),
        "clamp": lambda: t.clamp(p0, p1),
        "tanh": lambda: torch.tanh(p0 * t),
        "ztanh": lambda: t * torch.tanh(p0 * t),
        "zerf": lambda: t * torch.erf(t / math.sqrt(2)),
        "zgelu_tanh": lambda: t * torch.tanh(_SQRT_2_OVER_PI * (t + 0.044715 * t**3)),
        "elu": lambda: functional.elu(t, p0),
        "softplus": lambda: functional.softplus(t, p0, p1) - t / 2,
        "hardswish": lambda: functional.hardswish(t),
        "mish": lambda: functional.mish(t),
    }
    return values[core]().numpy()
