"""The Triton kernels of Jacobians in Triton's interpreter against torch.func.jacrev in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from test_jacobians import PARAMETERS, chain_of
from torch import Tensor, nn

import lmn
from lmn.kernels import triton_product_ops as products
from lmn.kernels.activations import ACTIVATIONS, activation
from lmn.kernels.jacobians import triton_gpu
from lmn.kernels.jacobians.problem import Chain, SlopeLayer
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.pieces import breakpoints_of
from lmn.kernels.triton_host import NarrowChain

CPU = torch.device("cpu")
ODD = (1, 2, 17, 33, 100)

pytestmark = pytest.mark.usefixtures("poisoned")


def check(widths: tuple[int, ...], act: str, n: int, fused: bool) -> None:
    """All that is made of a chain's maps."""
    chain, function = chain_of(act, widths)
    maps = TritonMaps(chain, CPU)
    assert (NarrowChain.of(chain, CPU) is not None) == fused
    x = torch.randn(n, widths[0], generator=torch.Generator().manual_seed(0))
    a = torch.func.vmap(torch.func.jacrev(function))(x.double())
    size = float(a.abs().max())

    def off(got: Tensor, expected: Tensor) -> Tensor:  # also what was not written, which is NaN
        return (~((got.double() - expected).abs() <= 1e-5 * float(expected.abs().max()))).flatten(1).any(1)

    assert size > 0
    wrong = off(maps.jacobians(x), a)
    if chain.narrowed is not None:
        isometric = maps.isometric(x).double()
        wrong |= off(isometric @ isometric.mT, a @ a.mT)
    if maps.has_grams(x.dtype):
        wrong |= off(maps.grams(x), a @ a.mT if chain.from_outputs else a.mT @ a)
    assert not wrong.any()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_jacobians_for_every_activation(act: str) -> None:
    check((20, 7, 9, 3), act, 5, fused=True)


@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        (triton_gpu, "narrow_maps"),
        (triton_gpu, "wide_grams"),
        (products, "plain"),
        (products, "sloped"),
        (products, "with_slopes"),
    ],
    ids=["narrow_maps", "wide_grams", "plain", "sloped", "with_slopes"],
)
def test_a_kernel_that_writes_nothing_is_seen(module: Any, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, kernel, lambda *_, **__: None)
    fused = kernel == "narrow_maps"
    with pytest.raises(AssertionError):
        check((5, 9, 8, 3) if fused else (5, 150, 66, 3), "silu", 3, fused=fused)


@pytest.mark.parametrize("width", [9, 70, 150])
@pytest.mark.parametrize(
    "act", ["relu", "leaky_relu", "abs", "hardtanh", "relu6", "clamp", "clamp_min", "clamp_max", "hardsigmoid", "softshrink"]
)
def test_units_exactly_where_pieces_meet_have_torchs_slope(act: str, width: int) -> None:
    """As many points as meet pieces at each unit in turn; between, and where no float32 is, it is rounding that decides."""
    found = activation(act, **PARAMETERS.get(act, {}))
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((width + 1, width)), np.zeros(width + 1)
    chain = Chain(width, width + 1, (np.eye(width), np.zeros(width)), (SlopeLayer(found, weight, bias),))
    ends = np.float32(breakpoints_of(found)) if found.core != "identity" else np.zeros(1, np.float32)
    x = torch.from_numpy(np.resize(ends, (len(ends) + 1, width)))
    expected = torch.func.vmap(torch.func.jacrev(lambda at: found.function(at) @ torch.from_numpy(weight).float().T))(x)
    torch.testing.assert_close(TritonMaps(chain, CPU).jacobians(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", ODD)
def test_jacobians_of_any_number_of_points(n: int) -> None:
    check((5, 9, 3), "silu", n, fused=True)


@pytest.mark.parametrize("size", ODD)
def test_jacobians_of_any_sizes(size: int) -> None:
    """Tiles are larger than the data in each dimension, or no multiple of it."""
    check((size, 20, 2), "silu", 3, fused=True)
    check((3, 20, size), "silu", 3, fused=True)
    check((3, size, 2), "silu", 3, fused=True)


@pytest.mark.parametrize("widths", [(5, 200, 70, 3), (5, 30, 129, 20, 3), (4, 17, 150, 40), (3, 8, 8, 8, 8, 8, 2)], ids=str)
@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_jacobians_of_chains_too_wide_or_deep_for_one_kernel(widths: tuple[int, ...], act: str) -> None:
    check(widths, act, 3, fused=False)


@pytest.mark.parametrize("widths", [(60, 150, 33), (150, 150, 64), (64, 150, 150, 17), (2, 150, 150, 9)], ids=str)
def test_inner_products_of_several_points_a_tile_and_of_one(widths: tuple[int, ...]) -> None:
    assert TritonMaps(chain_of("silu", widths)[0], CPU).has_grams(torch.float32)
    check(widths, "silu", 5, fused=False)


@pytest.mark.parametrize("widths", [(20, 40, 17), (33, 100, 32), (20, 40, 40, 90), (60, 40, 33), (80, 70, 60, 50)], ids=str)
def test_inner_products_of_narrow_chains_of_more_rows_than_points_in_a_tile(widths: tuple[int, ...]) -> None:
    """Of which more than 32 are multiplied a layer at a time."""
    assert TritonMaps(chain_of("silu", widths)[0], CPU).has_grams(torch.float32)
    check(widths, "silu", 5, fused=True)


def test_more_rows_than_a_tile_has_are_multiplied_as_they_are() -> None:
    assert not TritonMaps(chain_of("silu", (80, 150, 65))[0], CPU).has_grams(torch.float32)
    check((80, 150, 65), "silu", 5, fused=False)


@pytest.mark.parametrize("width", [20, 80, 150])
def test_a_chain_that_starts_and_ends_in_an_activation(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), nn.Linear(width, 20), nn.SiLU(), nn.Linear(20, 7), nn.Tanh())
    x = torch.randn(9, width)
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, x, backend="triton", progress=False), expected, rtol=0, atol=1e-6)


def test_an_affine_model_has_one_map() -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    got = lmn.jacobians(model, x, backend="triton", progress=False)
    torch.testing.assert_close(got, model.weight.detach().expand(5, -1, -1))


def test_reductions_are_those_of_the_maps() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 4)), torch.randn(20, 6)
    names = ("frobenius_norm", "spectral_norm", "effective_rank", "effective_linear_maps")
    got = lmn.jacobians(model, x, reduce=names, backend="triton", progress=False)
    expected = lmn.jacobians(model.double(), x.double(), reduce=names, backend="torch", progress=False)
    for name in names:
        torch.testing.assert_close(
            torch.as_tensor(got[name]).double(), torch.as_tensor(expected[name]).double(), rtol=1e-5, atol=0
        )


def test_norms_take_no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their inner products are all that is written, but of a few that the model's own derivatives are compared with."""
    swept, written = TritonMaps._swept, list[int]()
    monkeypatch.setattr(
        TritonMaps, "_swept", lambda maps, samples, sweep: (written.append(len(samples)), swept(maps, samples, sweep))[1]
    )
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 4)), torch.randn(200, 6)
    got = lmn.jacobians(model, x, reduce="frobenius_norm", backend="triton", progress=False)
    expected = lmn.jacobians(model.double(), x.double(), reduce="frobenius_norm", backend="torch", progress=False)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    assert max(written) < 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [4, 150])
def test_whatever_torch_takes_for_its_default_dtype(width: int, dtype: torch.dtype) -> None:
    """Numbers of activations are no shorter for it."""
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    clamped, smooth = (
        nn.Sequential(nn.Linear(3, width), first, nn.Linear(width, 4), second, nn.Linear(4, 2))
        for first, second in ((nn.Hardtanh(-0.3, 0.7), nn.ReLU6()), (nn.Softplus(1.7), nn.SELU()))
    )
    options: dict[str, Any] = {"backend": "triton", "progress": False}

    def measured() -> list[np.ndarray]:
        found = [lmn.jacobians(model, x, **options) for model in (clamped, smooth)]
        found += [lmn.connectivity(model, x, m=4, **options) for model in (clamped, smooth)]
        counts = lmn.local_complexity(clamped, x, r=1.0, n_directions=2, **options).counts
        return [*map(np.asarray, found), counts, lmn.activation_patterns(clamped, x, **options).words]

    expected = measured()
    torch.set_default_dtype(dtype)
    try:
        got = measured()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_float64_is_declined() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with pytest.raises(lmn.LmnError, match="it computes in float32, and the samples are float64"):
        lmn.jacobians(model, torch.randn(5, 3).double(), backend="triton", progress=False)


@pytest.mark.parametrize("size", [1e-22, 1e22])
def test_norms_of_maps_whose_squares_float32_does_not_hold(size: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 4)), torch.randn(5, 6)
    with torch.no_grad():
        model[2].weight *= size
    names = ("frobenius_norm", "spectral_norm")
    got = lmn.jacobians(model, x, reduce=names, backend="triton", progress=False)
    expected = lmn.jacobians(model.double(), x.double(), reduce=names, backend="torch", progress=False)
    for name in names:
        torch.testing.assert_close(got[name].double(), expected[name], rtol=1e-5, atol=0)


def test_a_kernel_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for one that has other derivatives than the model."""

    def fails(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr("lmn.kernels.jacobians.triton_gpu.narrow_maps", fails)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(RuntimeError, match="out of resource"):
        lmn.jacobians(model, x, backend="triton", progress=False)
