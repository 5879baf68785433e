"""Local Jacobians and what is made of them: lmn against torch.func and against products by hand, in one run.

    pytest bench/bench_jacobians.py --benchmark-only
    pytest bench/bench_jacobians.py --benchmark-disable --smoke        # does it still run?

Every case is first checked against torch.func in float64. The products' own time is that of the multiplications which a point
needs, forward and from the outputs back, at the rate that torch's product reaches at a layer's shape.
"""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import limits, torch_jacobians
from bench.conftest import RATIOS
from lmn.local_complexity import directions as orthonormal_directions

RELU, SILU, WIDE = (2, 64, 64, 64, 1), (64, 256, 256, 10), (784, 200, 200, 200, 200, 10)

MEASURED: dict[tuple[str, int, str], float] = {}  # seconds by case, threads and implementation


def network(widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def exact(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobians by torch.func in float64."""
    return torch.func.vmap(torch.func.jacrev(network_in_double(model)), chunk_size=1024)(x.double())


def network_in_double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def products_time(widths: tuple[int, ...], n: int, threads: int) -> float:
    """Seconds of a point's products at the library's rate, forward but for the last layer, and back for each output."""
    total = 0.0
    for place, (a, b) in enumerate(itertools.pairwise(widths)):
        last = place == len(widths) - 2
        forward = 0.0 if last else 2.0 * n * a * b / limits.product_rate(a, b, rows=4096)
        back = 0.0 if last else 2.0 * n * widths[-1] * a * b / limits.product_rate(b, a, rows=4096)
        total += forward + back
    assert threads == torch.get_num_threads()
    return total


def compared(
    case: str, threads: int, name: str, benchmark: BenchmarkFixture, own: str = "lmn", limit: float | None = None
) -> None:
    """Keep what was measured, and once lmn itself is, a line of ratios."""
    if benchmark.stats is None:
        return
    seconds = MEASURED[case, threads, name] = benchmark.stats.stats.median
    if name != own:
        return
    others = {key[2]: value for key, value in MEASURED.items() if key[:2] == (case, threads) and key[2] != own}
    ratios = ", ".join(f"{other} {value * 1e3:.0f} ms = {value / seconds:.1f}x" for other, value in others.items())
    share = f"; the products alone {limit * 1e3:.0f} ms = {limit / seconds:.0%}" if limit is not None else ""
    RATIOS.append(f"{case}, {threads} thread(s): lmn {seconds * 1e3:.1f} ms; {ratios}{share}")


BASELINES: dict[str, Callable[[nn.Module, int], torch_jacobians.Jacobians]] = {
    "vmap(jacrev)": torch_jacobians.by_jacrev,
    "vmap(jacfwd)": torch_jacobians.by_jacfwd,
    "by hand": torch_jacobians.by_hand,
}


def run(benchmark: BenchmarkFixture, name: str, model: nn.Module, x: Tensor, ours: Callable[[], object], rounds: int) -> None:
    """One implementation of a case."""
    function = ours
    if name != "lmn":
        make = BASELINES[name]
        jacobians = make(model, torch_jacobians.best_chunk(make, model, x))
        function = lambda: jacobians(x)  # noqa: E731
    benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("name", [*BASELINES, "lmn"])
def bench_box(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """2-64x3-1 ReLU at the points of a 1024 x 1024 box: the regions are known by geometry, and no point is run."""
    n = 64 if smoke else 1024
    model, grid = network(RELU), lmn.box([-1, -1], [1, 1], n)
    x = grid.points
    found = lmn.jacobians(model, grid, progress=False)
    some = torch.randint(len(x), (4096,), generator=torch.Generator().manual_seed(0))
    off = ((found[some].double() - exact(model, x[some])).abs() > 1e-5).flatten(1).any(1)
    assert off.sum() <= 2  # points within float32's rounding of a boundary may be on either side
    benchmark.group = f"box, {threads} thread(s)"
    run(benchmark, name, model, x, lambda: lmn.jacobians(model, grid, progress=False), rounds=9 if name == "lmn" else 2)
    compared(f"2-64x3-1 ReLU on a {n} x {n} box", threads, name, benchmark)


@pytest.mark.parametrize("name", [*BASELINES, "lmn"])
@pytest.mark.parametrize("case", ["ReLU", "SiLU"])
def bench_samples(benchmark: BenchmarkFixture, case: str, name: str, threads: int, smoke: bool) -> None:
    """2-64x3-1 ReLU at 65,536 scattered points, and 64-256-256-10 SiLU at 4096."""
    widths, activation, n = (RELU, nn.ReLU, 65_536) if case == "ReLU" else (SILU, nn.SiLU, 4096)
    n = 512 if smoke else n
    model, x = network(widths, activation), torch.randn(n, widths[0], generator=torch.Generator().manual_seed(1))
    found, expected = lmn.jacobians(model, x[:2048], progress=False), exact(model, x[:2048])
    off = ((found.double() - expected).abs() > 1e-5 * expected.abs().max()).flatten(1).any(1)
    assert off.sum() <= (1 if case == "ReLU" else 0)
    benchmark.group = f"{case}, {threads} thread(s)"
    run(benchmark, name, model, x, lambda: lmn.jacobians(model, x, progress=False), rounds=9 if name == "lmn" else 3)
    shape = "-".join(map(str, widths)) + f" {case} at {n:,} samples"
    compared(shape, threads, name, benchmark, limit=products_time(widths, n, threads) if name == "lmn" else None)


@pytest.mark.parametrize("name", ["vmap(jacrev)", "by hand", "lmn"])
def bench_spectral_norms(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """784-200x4-10 ReLU, 10,000 samples, spectral norms only; forward mode would take 784 sweeps."""
    n = 256 if smoke else 10_000
    model, x = network(WIDE), torch.randn(n, WIDE[0], generator=torch.Generator().manual_seed(1))
    found = lmn.jacobians(model, x[:256], reduce="spectral_norm", progress=False)
    expected = torch.linalg.matrix_norm(exact(model, x[:256]), ord=2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    benchmark.group = f"spectral norms, {threads} thread(s)"
    if name == "lmn":
        function = lambda: lmn.jacobians(model, x, reduce="spectral_norm", progress=False)  # noqa: E731
    else:
        make = BASELINES[name]
        chunk = torch_jacobians.best_chunk(make, model, x, (64, 256, 1024))
        function = lambda: torch_jacobians.spectral_norms(make(model, chunk), x, chunk)  # noqa: E731
    benchmark.pedantic(function, rounds=3, warmup_rounds=1)
    compared(f"784-200x4-10 ReLU, spectral norms of {n:,}", threads, name, benchmark)


_MEMORY = """
import json, resource, torch
from torch import nn
import lmn
torch.manual_seed(0)
widths, n = {widths}, {n}
layers = []
for a, b in zip(widths, widths[1:]):
    layers += [nn.Linear(a, b), nn.ReLU()]
model = nn.Sequential(*layers[:-1])
x = torch.randn(n, widths[0])
lmn.jacobians(model, x[:64], reduce="spectral_norm", progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lmn.jacobians(model, x, reduce="spectral_norm", progress=False)
print(json.dumps({{"beyond": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}}))
"""


def bench_memory_of_spectral_norms(benchmark: BenchmarkFixture, smoke: bool) -> None:
    """Memory beyond the model and the samples, in a process of its own."""
    n = 256 if smoke else 10_000
    script = _MEMORY.format(widths=WIDE, n=n)
    done = benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False), rounds=1
    )
    assert done.returncode == 0, done.stderr
    beyond = json.loads(done.stdout)["beyond"] / 1024
    assert beyond < 500
    jacobians = n * WIDE[0] * WIDE[-1] * 4 / 2**20
    RATIOS.append(
        f"784-200x4-10, spectral norms of {n:,}: {beyond:.0f} MiB beyond the samples (the Jacobians: {jacobians:.0f} MiB)"
    )


@pytest.mark.parametrize("case", ["ReLU", "SiLU"])
def bench_effective_linear_maps(benchmark: BenchmarkFixture, case: str, threads: int, smoke: bool) -> None:
    """Of 10^6 points of a box: by the exact regions, or by a kernel and a Gram matrix."""
    n = 40 if smoke else 1000
    model = network(RELU, nn.ReLU if case == "ReLU" else nn.SiLU)
    small = lmn.box([-1, -1], [1, 1], 64)
    a = exact(model, small.points).flatten(1)
    a = a / a.norm(dim=1, keepdim=True)
    p = torch.linalg.eigvalsh(a.T @ a / len(a))
    expected = float(torch.exp2(-(p * p.log2()).sum()))
    got = lmn.jacobians(model, small, reduce="effective_linear_maps", progress=False)
    assert got == pytest.approx(expected, rel=2e-2 if case == "ReLU" else 1e-5)  # areas of regions, not shares of points
    grid = lmn.box([-1, -1], [1, 1], n)
    benchmark.pedantic(
        lambda: lmn.jacobians(model, grid, reduce="effective_linear_maps", progress=False), rounds=3, warmup_rounds=1
    )
    if benchmark.stats is not None:
        RATIOS.append(
            f"effective linear maps of 2-64x3-1 {case} over {n * n:,} points, {threads} thread(s): "
            f"{benchmark.stats.stats.median * 1e3:.0f} ms"
        )


@pytest.mark.parametrize("name", ["plain PyTorch", "lmn"])
def bench_local_complexity(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """784-200x4-10 ReLU, 256 samples, 50 vertices each."""
    n = 16 if smoke else 256
    model, x = network(WIDE), torch.randn(n, WIDE[0], generator=torch.Generator().manual_seed(1))
    ours = lambda: lmn.local_complexity(model, x, progress=False)  # noqa: E731
    found = ours()
    directions = orthonormal_directions(WIDE[0], 25, 0)
    expected = torch_jacobians.local_complexity(model, x, 0.005, directions.float())
    double = torch_jacobians.local_complexity(network_in_double(model), x.double(), 0.005, directions)
    assert abs(torch.from_numpy(found.total) - double).sum() <= max(2, abs(expected - double).sum())
    benchmark.group = f"local complexity, {threads} thread(s)"
    plain = lambda: torch_jacobians.local_complexity(model, x, 0.005, directions.float())  # noqa: E731
    benchmark.pedantic(ours if name == "lmn" else plain, rounds=9, warmup_rounds=2)
    compared(f"784-200x4-10 ReLU, local complexity of {n} samples", threads, name, benchmark)
