"""Every Triton operator in Triton's interpreter against float64: activations, depths, sizes and precisions crossed.

Activation, depth, the number of samples, of inputs and of outputs, the input precision of products (TF32 is emulated, see
test_triton_precision.py), and whether a chain goes through one kernel or a layer at a time: for each two of them, each value of
one meets each of the other. Where tiles are larger than the data, or no multiple of it, shows in each.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
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
from lmn.kernels.activations import ACTIVATIONS, STRAIGHT_CORES
from lmn.kernels.connectivity import triton_gpu
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.local_complexity import triton_gpu as local_complexity_gpu
from lmn.kernels.patterns import triton_gpu as patterns_gpu
from lmn.kernels.triton_host import NarrowChain

pytestmark = pytest.mark.usefixtures("poisoned")

ODD, SMALL = (1, 2, 17, 33, 100), (17, 33, 2, 1)
PRECISIONS = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 2e-2}  # and what the results may be off, relative to the largest
PIECEWISE_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU, "relu6": nn.ReLU6, "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.2), "softshrink": lambda: nn.Softshrink(0.3),
}  # fmt: skip
WITH_A_CENTRE = {
    name: kind for name, kind in MODULES.items() if name not in ("tanh", "sigmoid")
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
    def values(self) -> dict[str, Any]:
        """What is crossed."""
        n_in, *units, n_out = self.widths
        return {"act": self.act, "n": self.n, "n_in": n_in, "depth": len(units), "n_out": n_out, "precision": self.precision,
                "fused": self.fused}  # fmt: skip

    @property
    def tolerance(self) -> float:
        return PRECISIONS[self.precision]


def crossed(activations: Iterable[str]) -> Iterator[Crossed]:
    """Each activation with each number of samples; the rest goes through its values at other paces."""
    names = list(activations)
    for a in range(max(len(names), 13)):  # fewer would not meet all else: twice the few
        for k, n in enumerate(ODD):
            depth, fused = 1 + (k + a) % 4, (k // 2 + a) % 2 == 0
            sizes = [SMALL[(a + k + depth * layer) % 4] for layer in range(depth)]
            sizes[(a // 2) % depth] = (64, 128)[(a + k) % 2] - a if fused else 150
            n_in, n_out = ODD[(3 * k + 2 * a + a // 5) % 5], (17, 33, 2, 1)[(k + a // 2) % 4]
            precision = tuple(PRECISIONS)[(k + 2 * a) % 3]
            yield Crossed(names[a % len(names)], (n_in, *sizes, n_out), n, precision, fused)


@pytest.fixture
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Crossed:
    found: Crossed = request.param
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr("lmn.kernels.triton_tuned.precision_on", lambda _backend: found.precision)
    return found


def every(activations: Any) -> Any:
    return pytest.mark.parametrize("case", list(crossed(activations)), ids=str, indirect=True)


@pytest.mark.parametrize("activations", [MODULES, ACTIVATIONS, PIECEWISE_LINEAR, WITH_A_CENTRE], ids=len)
def test_each_value_meets_each_of_another(activations: Iterable[str]) -> None:
    cases = [case.values for case in crossed(activations)]
    for names in itertools.combinations(cases[0], 2):
        one, other = ({case[name] for case in cases} for name in names)
        assert {tuple(case[name] for name in names) for case in cases} == set(itertools.product(one, other)), names
    at_depths = {(case["depth"], case["precision"], case["fused"]) for case in cases}
    assert at_depths == set(itertools.product((1, 2, 3, 4), PRECISIONS, (True, False)))


@every(MODULES)
def test_connectivity(case: Crossed, monkeypatch: pytest.MonkeyPatch) -> None:
    if not case.fused:
        monkeypatch.setattr(triton_gpu, "fused_for", lambda *_: None)
    n_rows = None if case.n < 17 else 2  # of many samples, two with all others
    problem = problem_of(case.widths, case.act, case.n, m=4, n_rows=n_rows)
    assert problem.chain is not None
    assert (triton_gpu.fused_for([len(layer.z) for layer in problem.chain.layers], case.widths[-1]) is not None) == case.fused
    assert error_of(problem) < case.tolerance


@every(ACTIVATIONS)
def test_jacobians(case: Crossed) -> None:
    chain, function = chain_of(case.act, case.widths)
    maps, x = TritonMaps(chain, torch.device("cpu")), samples(case)
    assert (NarrowChain.of(chain, torch.device("cpu")) is not None) == case.fused
    expected = torch.func.vmap(torch.func.jacrev(function))(x.double())
    off = ~(largest(maps.jacobians(x).double() - expected) <= case.tolerance * float(expected.abs().max()))
    # By TF32 a unit near a kink may be on either side.
    has_kinks = chain.layers[0].activation.core in (*STRAIGHT_CORES, "elu", "hardswish")
    assert off.sum() <= (case.n // 20 if case.precision == "tf32" and has_kinks else 0)


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
    how: dict[str, Any] = {"r": 10.0, "n_directions": min(3, case.widths[0]), "progress": False}
    got, expected = (lmn.local_complexity(model, x, backend=backend, **how).counts for backend in ("triton", "reference"))
    assert np.abs(got - expected).sum() <= (case.tolerance * expected.sum() if case.precision == "tf32" else 0)


@pytest.mark.parametrize(
    ("module", "kernel", "width"),
    [(patterns_gpu, "narrow_patterns", 9), (patterns_gpu, "layer_patterns", 150), (patterns_gpu, "hash_words", 150),
     (local_complexity_gpu, "narrow_counts", 9), (local_complexity_gpu, "layer_counts", 150)],
)  # fmt: skip
def test_a_kernel_that_writes_nothing_is_seen(module: Any, kernel: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp((3, width, 6, 2), nn.ReLU).float(), torch.randn(20, 3)
    monkeypatch.setattr(module, kernel, lambda *_, **__: None)
    if module is patterns_gpu:
        got, expected = (
            bits(lmn.activation_patterns(model, x, backend=each, ids=True, progress=False)) for each in ("triton", "reference")
        )
    else:
        how: dict[str, Any] = {"r": 10.0, "n_directions": 3, "progress": False}
        got, expected = (lmn.local_complexity(model, x, backend=each, **how).counts for each in ("triton", "reference"))
    assert got.shape != expected.shape or (got != expected).any()


def samples(case: Crossed) -> Tensor:
    return torch.randn(case.n, case.widths[0], generator=torch.Generator().manual_seed(5))


def largest(x: Tensor) -> Tensor:
    """Of each sample."""
    return x.abs().flatten(1).amax(1)
