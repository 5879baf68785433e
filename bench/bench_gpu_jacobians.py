"""Jacobians on a GPU, and what is made of them: as bench_gpu.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import torch_jacobians
from bench.bench_jacobians import RELU, SILU, WIDE, exact, network
from bench.conftest import RATIOS

gpu = pytest.importorskip("bench.gpu", reason="the kernels need triton, which is not installed")
triton_work = pytest.importorskip("lmn.kernels.triton_work")
Rates, Work = triton_work.Rates, triton_work.Work

pytestmark = pytest.mark.gpu

_OPTIONS = {"backend": "triton", "progress": False}

_NAMES = ("vmap(jacrev)", "vmap(jacfwd)", "by hand", "by hand, compiled")


def jacobians_by(name: str, smoke: bool) -> Callable[[nn.Module, int], torch_jacobians.Jacobians]:
    """A baseline: of a model and a chunk of points to what gives the Jacobians."""
    makes: dict[str, Callable[..., torch_jacobians.Jacobians]] = {
        "vmap(jacrev)": torch_jacobians.by_jacrev,
        "vmap(jacfwd)": torch_jacobians.by_jacfwd,
        "by hand": torch_jacobians.by_hand,
        "by hand, compiled": functools.partial(torch_jacobians.by_hand_compiled, smoke=smoke),
    }
    return makes[name]


@pytest.mark.parametrize("name", [*_NAMES, "lmn"])
@pytest.mark.parametrize("case", ["ReLU", "SiLU", "box"])
def bench_jacobians(benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: Rates, smoke: bool) -> None:
    """2-64x3-1 ReLU at 65,536 samples and at a box of 1024 x 1024 points; 64-256-256-10 SiLU at 4096 samples."""
    widths, activation = (SILU, nn.SiLU) if case == "SiLU" else (RELU, nn.ReLU)
    model = network(widths, activation)
    side, n = (4, 20) if smoke else (1024, 4096 if case == "SiLU" else 65_536)
    grid: Any = lmn.box([-1, -1], [1, 1], side) if case == "box" else None
    x = grid.points if grid is not None else torch.randn(n, widths[0], generator=torch.Generator().manual_seed(1))
    expected, x, model = exact(model, x[:1024]), x.to(device), model.to(device)
    got = lmn.jacobians(model, x[:1024], **_OPTIONS).double().cpu()
    off = ((got - expected).abs() > 1e-5 * expected.abs().max()).flatten(1).any(1)
    assert off.sum() <= (0 if case == "SiLU" else 2)  # a unit within rounding of zero may be on either side
    if name == "lmn":
        run: Callable[[], object] = lambda: lmn.jacobians(model, x if grid is None else grid, **_OPTIONS)  # noqa: E731
    else:
        make = jacobians_by(name, smoke)
        jacobians = make(model, torch_jacobians.best_chunk(make, model, x, torch_jacobians.CHUNKS[: 1 if smoke else None]))
        run = lambda: jacobians(x)  # noqa: E731
    label = f"Jacobians, {'-'.join(map(str, widths))} {case}, {len(x):,} points"
    gpu.measured(benchmark, label, name, run, device, rates, triton_work.jacobians(len(x), widths))


@pytest.mark.parametrize("name", ["vmap(jacrev)", "by hand", "by hand, compiled", "lmn"])
def bench_spectral_norms(benchmark: BenchmarkFixture, name: str, device: torch.device, rates: Rates, smoke: bool) -> None:
    """784-200x4-10 ReLU, 10,000 samples, spectral norms only."""
    n = 6 if smoke else 10_000
    model, x = network(WIDE), torch.randn(n, WIDE[0], generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.matrix_norm(exact(model, x[:256]), ord=2)
    model, x = model.to(device), x.to(device)
    found = lmn.jacobians(model, x[:256], reduce="spectral_norm", **_OPTIONS)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=0)
    run: Callable[[], object] = lambda: lmn.jacobians(model, x, reduce="spectral_norm", **_OPTIONS)  # noqa: E731
    if name != "lmn":
        make = jacobians_by(name, smoke)
        chunk = torch_jacobians.best_chunk(make, model, x, (64, 256, 1024)[: 1 if smoke else None])
        run = lambda: torch_jacobians.spectral_norms(make(model, chunk), x, chunk)  # noqa: E731
    work = triton_work.jacobians(n, WIDE, grams=True)
    gpu.measured(benchmark, f"spectral norms, 784-200x4-10, {n:,} samples", name, run, device, rates, work)


@pytest.mark.parametrize("name", ["by hand", "lmn"])
@pytest.mark.parametrize("case", ["ReLU", "SiLU"])
def bench_effective_linear_maps(
    benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: Rates, smoke: bool
) -> None:
    """2-64x3-1 at 10^6 points of a box: by the eigenvalues of the maps' inner products, here of those of two entries."""
    n = 8 if smoke else 1000
    model = network(RELU, nn.ReLU if case == "ReLU" else nn.SiLU)
    small, grid = (lmn.box([-1, -1], [1, 1], side) for side in (8 if smoke else 64, n))
    expected = float(effective(exact(model, small.points)))
    model, points = model.to(device), grid.points.to(device)
    got = lmn.jacobians(model, small, reduce="effective_linear_maps", **_OPTIONS)
    assert got == pytest.approx(expected, rel=1e-3 if case == "ReLU" else 1e-5)  # a unit within rounding of zero
    run: Callable[[], object] = lambda: lmn.jacobians(model, grid, reduce="effective_linear_maps", **_OPTIONS)  # noqa: E731
    if name != "lmn":
        make = jacobians_by(name, smoke)
        jacobians = make(model, torch_jacobians.best_chunk(make, model, points, torch_jacobians.CHUNKS[: 1 if smoke else None]))
        run = lambda: float(effective(jacobians(points)))  # noqa: E731
    label = f"effective linear maps, 2-64x3-1 {case}, {n * n:,} points"
    gpu.measured(benchmark, label, name, run, device, rates, triton_work.jacobians(n * n, RELU))


def effective(jacobians: Tensor) -> Tensor:
    """The exponential of the entropy of the eigenvalues of the mean outer product of maps of norm 1."""
    a = torch.nn.functional.normalize(jacobians.flatten(1), dim=1)
    p = torch.linalg.eigvalsh(a.T @ a / len(a)).clamp(min=1e-30)
    return torch.exp2(-(p * p.log2()).sum())


def bench_memory_of_spectral_norms(benchmark: BenchmarkFixture, device: torch.device, smoke: bool) -> None:
    """The GPU's memory beyond the model and the samples: 784-200x4-10, 10,000 samples."""
    n = 6 if smoke else 10_000
    model, x = network(WIDE).to(device), torch.randn(n, WIDE[0], generator=torch.Generator().manual_seed(1)).to(device)
    norms = functools.partial(lmn.jacobians, model, reduce="spectral_norm", **_OPTIONS)
    norms(x[:64])  # kernels, and what is kept of a model
    beyond = benchmark.pedantic(lambda: gpu.memory_of(lambda: norms(x), device), rounds=1)
    assert beyond < 500 * 2**20
    if device.type == "cuda":
        whole = n * WIDE[0] * WIDE[-1] * 4
        RATIOS.append(f"spectral norms of {n:,}: {beyond / 2**20:.0f} MiB of the GPU (the Jacobians: {whole / 2**20:.0f} MiB)")
