"""The Triton kernels on a GPU: lmn against PyTorch on the same GPU, and against what it can do, in one run.

    pytest bench -m gpu --benchmark-only
    pytest bench -m gpu --benchmark-disable --smoke        # does it still run? without a GPU in Triton's interpreter

Every case is first checked on a part of it against float64, and warmed up (what is compiled and tuned is, then); each round is
timed by CUDA events. The limit of a case is the time of its operations and bytes, padding to tiles included
(lmn/kernels/triton_work.py), at rates that are measured first: of copies in memory, and of torch's products with and without
TF32. Of the latter the rates of instructions and of the first caches are made; see ``gpu.rates_of``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import baselines, torch_jacobians
from bench.bench_connectivity import CASES, GENERIC, Case, samples
from bench.bench_jacobians import RELU, WIDE, network
from lmn.local_complexity import directions as orthonormal_directions

gpu = pytest.importorskip("bench.gpu", reason="the kernels need triton, which is not installed")
triton_work = pytest.importorskip("lmn.kernels.triton_work")
Rates, Work = triton_work.Rates, triton_work.Work

pytestmark = pytest.mark.gpu

_OPTIONS = {"backend": "triton", "progress": False}
_CHUNKS = (128, 512, 2048, 8192, 32768)


# ---- connectivity ------------------------------------------------------------------------------------------------------------


def work_of(case: Case, n: int) -> Work:
    return triton_work.connectivity(n, case.widths[1:-1] if case.first_affine else case.widths[:-1], case.widths[-1])


@pytest.mark.parametrize("name", ["naive", "eager", "compiled", "lmn"])
@pytest.mark.parametrize("case", CASES)
def bench_connectivity(
    benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: Rates, smoke: bool
) -> None:
    """One snapshot of 768 samples."""
    n = 6 if smoke else 768
    tail, h = CASES[case].tail(), samples(CASES[case], n)
    some = h[:40]
    expected = lmn.connectivity(tail.double(), some.double(), backend="reference", progress=False)
    tail, h = tail.float().to(device), h.to(device)
    with torch.no_grad():
        if name == "lmn":
            run: Callable[[Tensor], Tensor] = lambda x: lmn.connectivity(tail, x, **_OPTIONS)  # noqa: E731
        elif name == "naive":
            run = functools.partial(baselines.naive, tail)
        else:
            make: Callable[[], baselines.OfPairs] = lambda: baselines.of_pairs  # noqa: E731
            if name == "compiled":
                make = functools.partial(baselines.compiled, baselines.of_pairs, smoke=smoke)
            chunk = baselines.best_chunk(make, tail, h, _CHUNKS[:1] if smoke else _CHUNKS)
            run = functools.partial(baselines.chunked, tail, chunk=chunk, function=make())
        got = run(h[:40]).double().cpu()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if name == "lmn" else 1e-3)
        work = work_of(CASES[case], n)
        gpu.measured(benchmark, f"connectivity, {case}, N = {n}", name, lambda: run(h), device, rates, work)


@pytest.mark.parametrize("n", [256, 2048])
@pytest.mark.parametrize("case", CASES)
def bench_connectivity_of_sizes(
    benchmark: BenchmarkFixture, case: str, n: int, device: torch.device, rates: Rates, smoke: bool
) -> None:
    """How lmn's time grows with the samples."""
    n = 6 if smoke else n
    tail, h = CASES[case].tail().to(device), samples(CASES[case], n).to(device)
    work = work_of(CASES[case], n)
    run: Callable[[], object] = lambda: lmn.connectivity(tail, h, **_OPTIONS)  # noqa: E731
    gpu.measured(benchmark, f"connectivity, {case}, N = {n}", "lmn", run, device, rates, work)


@pytest.mark.parametrize("name", ["eager", "lmn"])
@pytest.mark.parametrize("model", GENERIC)
def bench_generic(benchmark: BenchmarkFixture, model: str, name: str, device: torch.device, rates: Rates, smoke: bool) -> None:
    """Models that are no chain: the generic path against eager PyTorch in its best chunk."""
    torch.manual_seed(0)
    build, shape, n = GENERIC[model]
    tail, h = build().eval().requires_grad_(False), torch.randn(6 if smoke else n, *shape)
    expected = lmn.connectivity(copy.deepcopy(tail).double(), h[:6].double(), backend="reference", progress=False)
    tail, h = tail.to(device), h.to(device)
    with torch.no_grad():
        run: Callable[[Tensor], Tensor] = functools.partial(lmn.connectivity, tail, progress=False)
        if name == "eager":
            chunk = 128 if smoke else baselines.best_chunk(lambda: baselines.of_pairs, tail, h, (*_CHUNKS, 131_072))
            run = functools.partial(baselines.chunked, tail, chunk=chunk)
        torch.testing.assert_close(run(h[:6]).double().cpu(), expected, rtol=0, atol=1e-5 if name == "lmn" else 1e-3)
        gpu.measured(benchmark, f"connectivity, {model}, N = {len(h)}", name, lambda: run(h), device, rates, None)


# ---- patterns ----------------------------------------------------------------------------------------------------------------


def packed(model: nn.Sequential, x: Tensor) -> Tensor:
    """Signs of the units packed into bytes, (n_points, n_bytes)."""
    active = []
    for layer in model[:-1]:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            active.append(x > 0)
    bits = torch.cat(active, dim=1)
    bits = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8)).byte()
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(2, dtype=torch.uint8)


def unique_packed(model: nn.Sequential, points: Tensor, function: Any = packed, chunk: int = 1 << 18) -> int:
    """How many patterns: forward passes in chunks, and torch.unique."""
    return len(torch.unique(torch.cat([function(model, part) for part in points.split(chunk)]), dim=0))


@pytest.mark.parametrize("name", ["packed, torch.unique", "the same, compiled", "lmn"])
@pytest.mark.parametrize("case", ["grid", "grid of four axes", "samples"])
def bench_patterns(benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: Rates, smoke: bool) -> None:
    """2-64x3-1 ReLU at the points of a grid, 4-32-32-1 at those of one of 48^4, and 784-200x4-10 at a million samples."""
    n_samples = 40 if smoke else 1_000_000
    if case != "samples":
        widths, side, half = (RELU, 8 if smoke else 2048, 10.0) if case == "grid" else ((4, 32, 32, 1), 3 if smoke else 48, 1.0)
        model, n_axes = network(widths), widths[0]
        grid: Any = lmn.box([-half] * n_axes, [half] * n_axes, side)
        n, points = side**n_axes, grid.points.to(device)
        work = triton_work.patterns(n, widths, rates.target, n_axes=n_axes)
    else:
        model, n = network(WIDE), n_samples
        points = torch.rand(n, WIDE[0], device=device, generator=torch.Generator(device).manual_seed(0))
        grid, work = points, triton_work.patterns(n, WIDE, rates.target)
    model = model.to(device)
    with torch.no_grad():
        few = points[:: max(1, n // 500)]
        seen = lmn.activation_patterns(model, few, ids=True, **_OPTIONS)
        exact_words = lmn.activation_patterns(copy.deepcopy(model).cpu().double(), few.double().cpu(), ids=True, progress=False)
        assert seen.ids is not None
        assert exact_words.ids is not None
        differ = (seen.words[seen.ids] != exact_words.words[exact_words.ids]).any(1)
        assert differ.mean() < 0.01  # a unit within rounding of zero may be on either side
        run: dict[str, Callable[[], object]] = {
            "packed, torch.unique": lambda: unique_packed(model, points),
            "the same, compiled": functools.partial(unique_packed, model, points, baselines.compiled(packed, smoke=smoke)),
            "lmn": lambda: lmn.activation_patterns(model, grid, exhaustive=True, **_OPTIONS),
        }
        gpu.measured(benchmark, f"patterns, {case}, {n:,} points", name, run[name], device, rates, work)


# ---- local complexity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain PyTorch", "the same, compiled", "lmn"])
@pytest.mark.parametrize("widths", [(64, 64, 64, 10), WIDE], ids=["narrow", "wide"])
def bench_local_complexity(
    benchmark: BenchmarkFixture,
    widths: tuple[int, ...],
    name: str,
    device: torch.device,
    rates: Rates,
    smoke: bool,
) -> None:
    """10,000 samples, 50 vertices each."""
    n, n_directions = (4, 2) if smoke else (10_000, 25)
    model, x = network(widths), torch.randn(n, widths[0], generator=torch.Generator().manual_seed(1))
    some, directions = x[:64], orthonormal_directions(widths[0], n_directions, 0)
    expected = torch_jacobians.local_complexity(copy.deepcopy(model).double(), some.double(), 0.005, directions)
    model, x, directions = model.to(device), x.to(device), directions.float().to(device)
    found = lmn.local_complexity(model, x[:64], n_directions=n_directions, **_OPTIONS)
    plain = torch_jacobians.local_complexity(model, x[:64], 0.005, directions).cpu()
    assert abs(torch.from_numpy(found.total) - expected).sum() <= max(2, abs(expected - plain).sum())
    run: Callable[[], object] = lambda: lmn.local_complexity(model, x, n_directions=n_directions, **_OPTIONS)  # noqa: E731
    if name != "lmn":
        function = torch_jacobians.changes
        function = function if name == "plain PyTorch" else baselines.compiled(function, smoke=smoke)
        run = lambda: torch_jacobians.local_complexity(model, x, 0.005, directions, function)  # noqa: E731
    case = f"local complexity, {'-'.join(map(str, widths))}, {n:,} samples"
    work = triton_work.local_complexity(n, widths, rates.target, n_directions)
    gpu.measured(benchmark, case, name, run, device, rates, work)
