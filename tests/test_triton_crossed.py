"""Every Triton operator in Triton's interpreter against float64: each activation at each depth, other things varied along.

Sizes of samples and of layers, the input precision of products (TF32 is emulated, see test_triton_precision.py), and whether a
chain goes through one kernel or a layer at a time, go through their values at different paces, so that each value of one meets
each of another. Where tiles are larger than the data, or no multiple of it, shows in each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from test_jacobians import chain_of
from test_local_complexity import mlp
from test_triton import MODULES, error_of, problem_of
from test_triton_precision import bits, dot
from torch import Tensor, nn
from triton.runtime.interpreter import InterpreterBuilder

import lmn
from lmn.kernels.activations import ACTIVATIONS
from lmn.kernels.connectivity.triton_ops import fused_for
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.triton_host import NarrowChain

pytestmark = pytest.mark.usefixtures("poisoned")

ODD, SMALL = (1, 2, 17, 33, 100), (17, 33, 2, 1)
PRECISIONS = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 2e-2}  # and what the results may be off, relative to the largest
PIECEWISE_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU, "relu6": nn.ReLU6, "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.2), "softshrink": lambda: nn.Softshrink(0.3),
}  # fmt: skip
WITH_A_CENTRE = {
    name: kind for name, kind in MODULES.items() if name not in ("prelu", "tanh", "sigmoid")
}  # whose units local complexity counts


@dataclass(frozen=True)
class Crossed:
    act: str
    widths: tuple[int, ...]
    n: int
    precision: str
    fused: bool

    def __str__(self) -> str:
        return f"{self.act}, {'-'.join(map(str, self.widths))}, {self.n} samples, {self.precision}"

    @property
    def tolerance(self) -> float:
        return PRECISIONS[self.precision]


def crossed(activations: Any) -> Iterator[Crossed]:
    for a, act in enumerate(activations):
        for depth in (1, 2, 3, 4):
            fused = (a + depth) % 2 == 0
            sizes = [SMALL[(a + depth * layer) % 4] for layer in range(depth)]
            sizes[(a // 2) % depth] = 64 - a if fused else 100
            n_in, n_out = ODD[(a + 2 * depth) % 5], (17, 33, 2)[(a + depth) % 3]
            precision = tuple(PRECISIONS)[(a // 2 + depth) % 3]
            yield Crossed(act, (n_in, *sizes, n_out), ODD[(a + 3 * depth) % 5], precision, fused)


@pytest.fixture
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Crossed:
    found: Crossed = request.param
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr("lmn.kernels.triton_tuned.precision_on", lambda _backend: found.precision)
    return found


def every(activations: Any) -> Any:
    return pytest.mark.parametrize("case", list(crossed(activations)), ids=str, indirect=True)


def test_each_value_meets_each_of_another() -> None:
    cases = list(crossed(MODULES))
    for names in (("act", "precision"), ("act", "fused"), ("n", "precision"), ("n", "fused"), ("precision", "fused")):
        values = [sorted({getattr(case, name) for case in cases}) for name in names]
        met = {tuple(getattr(case, name) for name in names) for case in cases}
        assert met == {(one, other) for one in values[0] for other in values[1]}
    assert {(len(case.widths), case.precision, case.fused) for case in cases} == {
        (depth + 2, precision, fused) for depth in (1, 2, 3, 4) for precision in PRECISIONS for fused in (True, False)
    }


@every(MODULES)
def test_connectivity(case: Crossed) -> None:
    n_rows = None if case.n < 17 else 2  # of many samples, two with all others
    problem = problem_of(case.widths, case.act, case.n, m=4, n_rows=n_rows)
    assert problem.chain is not None
    fused = fused_for([len(layer.z) for layer in problem.chain.layers], case.widths[-1])
    assert fused is not None or not case.fused
    assert error_of(problem) < case.tolerance


@every(ACTIVATIONS)
def test_jacobians(case: Crossed) -> None:
    chain, function = chain_of(case.act, case.widths)
    maps, x = TritonMaps(chain, torch.device("cpu")), samples(case)
    assert (NarrowChain.of(chain, torch.device("cpu")) is not None) == case.fused
    expected = torch.func.vmap(torch.func.jacrev(function))(x.double())
    off = largest(maps.jacobians(x).double() - expected) > case.tolerance * float(expected.abs().max())
    assert off.sum() <= (case.n > 2)  # a unit within rounding of a kink may be on either side


@every(PIECEWISE_LINEAR)
def test_patterns(case: Crossed) -> None:
    model, x = mlp(case.widths, PIECEWISE_LINEAR[case.act]).float(), samples(case)
    got, expected = (
        bits(lmn.activation_patterns(model, x, backend=backend, ids=True, progress=False))
        for backend in ("triton", "reference")
    )
    wrong = (got != expected).sum()
    assert wrong <= (case.tolerance * expected.size if case.precision == "tf32" else 0)


@every(WITH_A_CENTRE)
def test_local_complexity(case: Crossed) -> None:
    model, x = mlp(case.widths, MODULES[case.act]).float(), samples(case)
    how: dict[str, Any] = {"r": 1.0, "n_directions": min(3, case.widths[0]), "progress": False}
    got, expected = (lmn.local_complexity(model, x, backend=backend, **how).counts for backend in ("triton", "reference"))
    assert np.abs(got - expected).sum() <= (case.tolerance * len(x) * sum(case.widths[1:-1]) if case.precision == "tf32" else 1)


def samples(case: Crossed) -> Tensor:
    return torch.randn(case.n, case.widths[0], generator=torch.Generator().manual_seed(5))


def largest(x: Tensor) -> Tensor:
    """Of each sample."""
    return x.abs().flatten(1).amax(1)
