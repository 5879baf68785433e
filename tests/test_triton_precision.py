"""Every Triton kernel that multiplies, by input precision, with the matrix unit's TF32 products emulated in the interpreter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from real_gpu import DEVICE
from test_jacobians import chain_of
from test_local_complexity import mlp as double_mlp
from test_triton import error_of, problem_of
from torch import Tensor, nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import lmn
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.triton_product_ops import plain
from lmn.kernels.triton_targets import precision_on, target_of

pytestmark = pytest.mark.usefixtures("poisoned")

# One kernel, whose products are of all units at once or of some at a time, and a layer at a time.
WIDTHS = {"narrow": (20, 60, 60, 7), "in parts": (20, 100, 100, 7), "wide": (20, 150, 70, 7)}
OF_WIDTHS = pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
# The largest error over the largest value: tf32 must be seen to lose digits, or nothing was emulated.
BOUNDS = [("ieee", 0.0, 1e-5), ("tf32x3", 0.0, 1e-5), ("tf32", 2e-5, 2e-2)]
OPTIONS: dict[str, Any] = {"backend": "triton", "progress": False}


def cut(x: np.ndarray) -> np.ndarray:
    """As the matrix unit reads a float32 that nobody rounded for it."""
    return (np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def toward_zero(x: np.ndarray) -> np.ndarray:
    """float64 as float32."""
    nearest = x.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)


def summed(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A total plus the product of TF32 numbers, four terms at a time, cut off after each: no matrix unit is known to lose more.

    Fasi, Higham, Mikaitis, Pranesh 2021, "Numerical behavior of NVIDIA tensor cores": additions are truncated.
    """
    for k in range(0, x.shape[1], 4):
        total = toward_zero(total + x[:, k : k + 4].astype(np.float64) @ y[k : k + 4].astype(np.float64))
    return total


def dot(_self: object, a: Any, b: Any, d: Any, precision: Any, *_: object) -> object:
    """tl.dot as the matrix unit does it: of TF32 numbers."""
    x, y = a.data.astype(np.float32), b.data.astype(np.float32)
    if str(precision).rpartition(".")[2].lower() == "ieee":
        return TensorHandle(x @ y + d.data, d.dtype.scalar)
    return TensorHandle(summed(cut(x), cut(y), d.data), d.dtype.scalar)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture(params=BOUNDS, ids=[name for name, *_ in BOUNDS])
def bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """The least and the largest error with a precision that is a GPU's."""
    name, *bounds = request.param
    monkeypatch.setattr("lmn.kernels.triton_tuned.precision_on", lambda _backend: name)
    return tuple(bounds)


def off(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


def test_by_default_it_is_that_of_float32() -> None:
    assert [precision_on(backend) for backend in ("cuda", "hip", "cpu")] == ["tf32x3", "ieee", "ieee"]


@OF_WIDTHS
def test_connectivity(widths: tuple[int, ...], bounds: tuple[float, float]) -> None:
    least, most = bounds
    assert least <= error_of(problem_of(widths, "silu", 18)) <= most


@OF_WIDTHS
def test_jacobians(widths: tuple[int, ...], bounds: tuple[float, float]) -> None:
    maps, x, expected = maps_of(widths)
    least, most = bounds
    assert least <= off(maps.jacobians(x), expected) <= most


@OF_WIDTHS
def test_inner_products_of_jacobians(widths: tuple[int, ...], bounds: tuple[float, float]) -> None:
    maps, x, expected = maps_of(widths)
    assert maps.has_grams(x.dtype)
    least, most = bounds
    assert least <= off(maps.grams(x), expected @ expected.mT) <= most


def maps_of(widths: tuple[int, ...]) -> tuple[TritonMaps, Tensor, Tensor]:
    """Of a chain, points, and the Jacobians at them."""
    chain, function = chain_of("silu", widths)
    x = torch.randn(9, widths[0])
    return TritonMaps(chain, torch.device("cpu")), x, torch.func.vmap(torch.func.jacrev(function))(x.double())


@OF_WIDTHS
@pytest.mark.parametrize("what", ["patterns", "local complexity"])
def test_units_on_the_wrong_side(what: str, widths: tuple[int, ...], bounds: tuple[float, float]) -> None:
    """The share of the units of the second layer, whose terms cancel, that rounding takes across their breakpoints."""
    model, x = double_mlp(widths, nn.ReLU).float(), 0.1 * torch.randn(40, widths[0])
    with torch.no_grad():
        model[0].bias += 20
        model[2].bias -= 20 * model[2].weight.sum(1)
    measure: dict[str, Callable[..., np.ndarray]] = {
        "patterns": lambda **how: bits(lmn.activation_patterns(model, x, ids=True, **how)),
        "local complexity": lambda **how: lmn.local_complexity(model, x, r=0.1, n_directions=2, **how).total,
    }
    got = measure[what](**OPTIONS)
    expected = measure[what](backend="reference", progress=False)
    share = np.abs(got - expected).sum() / (40 * widths[2])
    least, most = bounds
    assert 5 * least <= share <= 50 * most


def bits(found: lmn.ActivationPatterns) -> np.ndarray:
    assert found.ids is not None
    return np.unpackbits(np.ascontiguousarray(found.words[found.ids]).view(np.uint8), axis=1).astype(int)


def test_operators_take_it_as_a_parameter() -> None:
    a, weights = torch.randn(40, 60), torch.randn(60, 30)
    expected = a.double() @ weights.double()
    errors = dict[str, float]()
    for precision in ("", "ieee", "tf32x3", "tf32"):
        out = torch.empty(40, 30)
        plain(a, weights, out, precision=precision)
        errors[precision] = off(out, expected)
    assert errors[""] == errors[precision_on(target_of(DEVICE).backend)]
    assert max(errors["ieee"], errors["tf32x3"]) < 1e-6 < errors["tf32"] < 1e-2
