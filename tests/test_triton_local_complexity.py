"""Local complexity by the Triton kernels in Triton's interpreter against the float64 definition."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_local_complexity import mlp as double_mlp
from torch import nn

import lmn

pytestmark = pytest.mark.usefixtures("poisoned")


def mlp(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    return double_mlp(widths, activation).float()


def check(model: nn.Module, n: int, n_in: int, n_directions: int, *, r: float = 0.5) -> lmn.LocalComplexity:
    x = torch.randn(n, n_in, generator=torch.Generator().manual_seed(5))
    options = {"r": r, "n_directions": n_directions, "progress": False}
    got = lmn.local_complexity(model, x, backend="triton", **options)
    expected = lmn.local_complexity(model, x, backend="reference", **options)
    assert got.backend == "triton"
    assert (got.layers, got.units) == (expected.layers, expected.units)
    off = np.abs(got.counts - expected.counts)
    assert off.sum() <= 1  # a unit within rounding of a breakpoint may be on either side
    assert expected.total.sum() > 0
    return got


@pytest.mark.parametrize("widths", [(5, 200, 70, 3), (5, 30, 129, 20, 3), (3, 8, 8, 8, 8, 8, 2), (6, 150, 2)], ids=str)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.GELU])
def test_chains_too_wide_or_deep_for_one_kernel(widths: tuple[int, ...], act: type[nn.Module]) -> None:
    check(mlp(widths, act), 2, widths[0], 3, r=1.0)


@pytest.mark.parametrize("n_directions", [1, 2, 9, 17])
@pytest.mark.parametrize("width", [20, 80, 150])
def test_any_number_of_vertices(n_directions: int, width: int) -> None:
    """Tiles are larger than the data in each dimension, or no multiple of it."""
    check(mlp((17, width, 5, 2), nn.ReLU), 2, 17, n_directions)


@pytest.mark.parametrize("n", [1, 2, 33])
def test_any_number_of_samples(n: int) -> None:
    check(mlp((4, 9, 3), nn.ReLU), n, 4, 2)


@pytest.mark.parametrize("size", [1, 2, 17, 33, 100])
def test_any_sizes(size: int) -> None:
    check(mlp((size, 20, 2), nn.ReLU), 3, size, 1, r=3.0)
    check(mlp((3, size, 5, 2), nn.ReLU), 3, 3, 2, r=3.0)
    check(mlp((3, 70, size, 2), nn.ReLU), 2, 3, 2, r=3.0)


def test_identities_between_affine_maps_are_no_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, 2), nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 2))
    assert check(model, 4, 5, 5).counts.shape == (4, 2)


@pytest.mark.parametrize("value", [3e38, -3e38])
@pytest.mark.parametrize("width", [20, 80, 150])
def test_what_is_not_finite_is_told(width: int, value: float) -> None:
    """The outputs are, as the infinite unit is clamped; what it takes is not."""
    model = mlp((3, width, 4, 2), nn.Hardtanh)
    with torch.no_grad():
        model[0].weight[1] = value
    x = torch.ones(2, 3)
    for backend in ("triton", "torch"):
        with pytest.raises(lmn.LmnError, match="is not finite"):
            lmn.local_complexity(model, x, n_directions=2, backend=backend, progress=False)


def test_wide_chains_some_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmn.kernels.local_complexity import triton_gpu

    monkeypatch.setattr(triton_gpu, "_SCRATCH_BYTES", 4 * 4 * 150 * 2)  # two samples
    check(mlp((4, 150, 3), nn.ReLU), 5, 4, 2)


def test_float64_is_declined() -> None:
    model, x = mlp((3, 4, 2), nn.ReLU).double(), torch.randn(5, 3).double()
    with pytest.raises(lmn.LmnError, match="it computes in float32, and the samples are float64"):
        lmn.local_complexity(model, x, n_directions=2, backend="triton", progress=False)
