"""Regions: lmn against a plain polygon splitter and against dense grids in PyTorch, in one run.

    pytest bench/bench_regions.py --benchmark-only
    pytest bench/bench_regions.py --benchmark-disable --smoke        # does it still run?

Every case first checks its count: against the splitter in two dimensions, against volumes and the network itself elsewhere.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import limits, networks, splitter
from bench.conftest import RATIOS

PLANE = {
    "trained 2-100-100-1": (lambda: networks.trained_network(2, 100, 100, 1), 1.0),
    "random 2-64x3-1, small box": (lambda: networks.random_network(2, 64, 64, 64, 1), 1.0),
    "random 2-64x3-1": (lambda: networks.random_network(2, 64, 64, 64, 1), 10.0),
    "random 2-256x2-1, small box": (lambda: networks.random_network(2, 256, 256, 1), 1.0),
    "random 2-256x2-1": (lambda: networks.random_network(2, 256, 256, 1), 10.0),
}

SPACE = {
    "random 3-16x3-1": (lambda: networks.random_network(3, 16, 16, 16, 1), 5.0),
    "trained 3-16x3-1": (lambda: networks.trained_network(3, 16, 16, 16, 1), 1.0),
    "trained 3-32x4-1": (lambda: networks.trained_network(3, 32, 32, 32, 32, 1), 1.0),
    "trained 3-32x8-1": (lambda: networks.trained_network(3, *[32] * 8, 1), 1.0),
}

MEASURED: dict[tuple[str, int, str], float] = {}  # seconds by case, threads and implementation


def weights_of(model: nn.Sequential) -> splitter.Weights:
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in model if isinstance(layer, nn.Linear)]


def box(model: nn.Sequential, half: float) -> lmn.grid.RegularGrid:
    n_in = model[0].in_features
    return lmn.box([-half] * n_in, [half] * n_in, 2)


@cache
def by_splitter(case: str) -> tuple[int, float]:
    build, half = PLANE[case]
    return splitter.count(weights_of(build()), half)


@pytest.mark.parametrize("name", ["splitter", "lmn"])
@pytest.mark.parametrize("case", PLANE)
def bench_plane(benchmark: BenchmarkFixture, case: str, name: str, threads: int, smoke: bool) -> None:
    """All regions of a square with their maps."""
    if smoke and case != next(iter(PLANE)):
        pytest.skip("one case shows whether it runs")
    build, half = PLANE[case]
    model = build()
    found = lmn.regions(model, box(model, half))
    regions, gradient = by_splitter(case)
    assert found.count == regions
    norms = np.linalg.norm(found.linear_maps.A[:, 0], axis=1)
    assert norms @ found.volumes == pytest.approx(gradient, rel=1e-9)
    benchmark.group = f"{case} in ±{half:g}, {threads} thread(s)"
    if name == "splitter":
        weights = weights_of(model)
        benchmark.pedantic(lambda: splitter.count(weights, half), rounds=3, warmup_rounds=1)
    else:
        benchmark.pedantic(lambda: lmn.regions(model, box(model, half)), rounds=7, warmup_rounds=1)
    if benchmark.stats is not None:
        seconds = MEASURED[case, threads, name] = benchmark.stats.stats.median
        if name == "lmn":
            plain = MEASURED.get((case, threads, "splitter"), float("nan"))
            rate = found.count / seconds
            RATIOS.append(
                f"{case} in ±{half:g}, {threads} thread(s), {found.count:,} regions: lmn {seconds * 1e3:.1f} ms = "
                f"{rate / 1e6:.2f} M regions/s; plain splitter (one thread) {plain * 1e3:.0f} ms = {plain / seconds:.1f}x"
            )


@pytest.mark.parametrize("case", SPACE)
def bench_space(benchmark: BenchmarkFixture, case: str, threads: int, smoke: bool) -> None:
    """All regions of a cube with their maps."""
    if smoke and case != "random 3-16x3-1":
        pytest.skip("one case shows whether it runs")
    build, half = SPACE[case]
    model = build()
    rounds = 1 if "x8" in case else 5
    found = benchmark.pedantic(lambda: lmn.regions(model, box(model, half)), rounds=rounds, warmup_rounds=int(rounds > 1))
    check_regions(found, model, (2 * half) ** 3)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        RATIOS.append(
            f"{case} in ±{half:g}, {threads} thread(s), {found.count:,} regions: {seconds * 1e3:.0f} ms = "
            f"{found.count / seconds / 1e6:.2f} M regions/s"
        )


def check_regions(found: lmn.exact_regions.ExactRegions, model: nn.Module, volume: float) -> None:
    """They tile the domain, each holds its own middle, and its map is the network there."""
    assert found.volumes.sum() == pytest.approx(volume, rel=1e-9)
    some = np.random.default_rng(0).integers(0, found.count, 2000)
    x = found.inputs(found.points[some])
    np.testing.assert_array_equal(found.locate(x), some)
    a, c = found.linear_maps
    mapped = np.einsum("rka,ra->rk", a[some], found.points[some]) + c[some]
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(x)).numpy(), mapped, atol=1e-8)


# ---- dense grids -------------------------------------------------------------------------------------------------------------


def grid_bits(model: nn.Sequential, half: float, n: int, chunk: int = 1 << 14) -> Tensor:
    """The pattern of each point of an n x n grid, (n², n_units), bool: forward passes in chunks."""
    points = lmn.box([-half] * 2, [half] * 2, n)
    bits = []
    for part in torch.arange(n * n).split(chunk):
        x, active = points.at(part), []
        for layer in model[:-1]:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                active.append(x > 0)
        bits.append(torch.cat(active, dim=1))
    return torch.cat(bits)


def unique_packed(model: nn.Sequential, half: float, n: int) -> int:
    words = np.packbits(grid_bits(model, half, n).numpy(), axis=1)
    return len(np.unique(words.view(np.dtype((np.void, words.shape[1])))))


def unique_bools(model: nn.Sequential, half: float, n: int) -> int:
    return len(torch.unique(grid_bits(model, half, n), dim=0))


@pytest.mark.parametrize("name", ["torch.unique", "packbits and unique", "lmn"])
def bench_counting_on_a_grid(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """How many regions a dense grid sees, and how many there are: 2-64x3-1."""
    n, half = (64 if smoke else 2048), 10.0
    model = networks.random_network(2, 64, 64, 64, 1).float()
    grid = lmn.box([-half] * 2, [half] * 2, n)
    exact = lmn.regions(model, grid)
    benchmark.group = f"2-64x3-1 on {n} x {n} points, {threads} thread(s)"
    run: dict[str, Callable[[], int]] = {
        "torch.unique": lambda: unique_bools(model, half, n),
        "packbits and unique": lambda: unique_packed(model, half, n),
        "lmn": lambda: lmn.regions(model, grid).count,
    }
    with torch.no_grad():
        seen = benchmark.pedantic(run[name], rounds=5 if name == "lmn" else 1)
    observed = len(np.unique(exact.labels((n, n), ends=True)))
    assert seen == exact.count if name == "lmn" else abs(seen - observed) <= 0.001 * observed  # float32 points at the edges
    if benchmark.stats is not None:
        seconds = MEASURED["grid", threads, name] = benchmark.stats.stats.median
        if name == "lmn":
            others = ", ".join(
                f"{other} {t:.2f} s = {t / seconds:.0f}x" for (case, k, other), t in MEASURED.items()
                if case == "grid" and k == threads and other != "lmn"
            )  # fmt: skip
            RATIOS.append(f"{benchmark.group}: lmn {seconds * 1e3:.1f} ms for all {exact.count:,}; {others} for {observed:,}")


@pytest.mark.parametrize("name", ["forward", "labels"])
def bench_labels(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """An image of the regions, against the network evaluated at its pixels: the trained 2-100-100-1."""
    n = 256 if smoke else 4096
    model = networks.trained_network(2, 100, 100, 1)
    found, single = (
        lmn.regions(model, lmn.box([-1, -1], [1, 1], 2), threads=threads),
        networks.trained_network(2, 100, 100, 1).float(),
    )
    model.double()
    points = lmn.box([-1, -1], [1, 1], n)

    def forward() -> None:
        single.float()
        for part in torch.arange(n * n).split(1 << 14):
            single(points.at(part))

    benchmark.group = f"{n} x {n} pixels, {threads} thread(s)"
    with torch.no_grad():
        if name == "forward":
            benchmark.pedantic(forward, rounds=1)
            single.double()
        else:
            labels = benchmark.pedantic(lambda: found.labels((n, n)), rounds=5, warmup_rounds=1)
            some = np.random.default_rng(0).integers(0, n, (1000, 2))
            x = -1 + (2 * some + 1) / n
            np.testing.assert_array_equal(found.locate(x), labels[tuple(some.T)])
    if benchmark.stats is not None:
        seconds = MEASURED["labels", threads, name] = benchmark.stats.stats.median
        if name == "labels":
            other = MEASURED.get(("labels", threads, "forward"), float("nan"))
            RATIOS.append(f"{benchmark.group}: labels {seconds * 1e3:.1f} ms; forward {other:.2f} s = {other / seconds:.0f}x")


# ---- any traced network ------------------------------------------------------------------------------------------------------


def bench_resnet_on_a_plane(benchmark: BenchmarkFixture, threads: int, smoke: bool) -> None:
    """Convolutions, batch normalisation, residual connections, max and average pooling: a plane through three images."""
    model, images = networks.trained_resnet()
    a, b, c = images[[0, 1, 2]]
    if smoke:
        b, c = a + 0.1 * (b - a), a + 0.1 * (c - a)
    plane = lmn.plane(a, b, c, 2)
    found = benchmark.pedantic(lambda: lmn.regions(model, plane), rounds=1 if smoke else 3, warmup_rounds=1)
    area = float(torch.linalg.det(plane.axes.flatten(1) @ plane.axes.flatten(1).T).sqrt())
    check_regions(found, model, area)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        RATIOS.append(
            f"ResNet on a plane, {threads} thread(s), {found.count:,} regions: {seconds:.2f} s = "
            f"{found.count / seconds:,.0f} regions/s"
        )


# ---- samples -----------------------------------------------------------------------------------------------------------------

WIDE = (784, 200, 200, 200, 200, 10)

_MEMORY = """
import json, torch, lmn
from bench.networks import random_network
model = random_network{widths}.float()
torch.manual_seed(0)
centres = torch.rand(1000, {n_in})
x = torch.empty({n}, {n_in})
for part in x.split(10000):
    if {all_differ}:
        part.uniform_()
    else:
        part.copy_(centres[torch.randint(1000, (len(part),))])

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

lmn.regions(model, x[:9], progress=False)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
found = lmn.regions(model, x, progress=False)
print(json.dumps(dict(beyond=status("VmHWM") - before, count=found.count)))
"""


def bench_patterns(benchmark: BenchmarkFixture, threads: int, smoke: bool) -> None:
    """A million samples through 784-200x4-10, against the products alone."""
    n = 2000 if smoke else 1_000_000
    model = networks.random_network(*WIDE).float()
    torch.manual_seed(0)
    x = torch.rand(n, WIDE[0])
    some = lmn.activation_patterns(model, x[:200], progress=False)
    bits, h = [], x[:200]
    for layer in model[:-1]:
        h = layer(h)
        bits += [h > 0] if isinstance(layer, nn.ReLU) else []
    assert len(some.counts) == len(torch.unique(torch.cat(bits, 1), dim=0))
    assert some.counts.sum() == 200
    found = benchmark.pedantic(lambda: lmn.activation_patterns(model, x, progress=False), rounds=3, warmup_rounds=1)
    if benchmark.stats is None:
        return
    seconds = benchmark.stats.stats.median
    flop = [(2.0 * n * a * b, a, b) for a, b in itertools.pairwise(WIDE[:-1])]
    products = sum(work / limits.product_rate(a, b, rows=4096) for work, a, b in flop)
    rate = sum(work for work, _, _ in flop) / seconds / 1e9
    RATIOS.append(
        f"patterns of 784-200x4-10, {threads} thread(s): {seconds:.2f} s for {n:,} samples ({len(found.counts):,} patterns); "
        f"products alone {products:.2f} s = {products / seconds:.0%}; {rate:.0f} GFLOP/s"
    )


@pytest.mark.parametrize("all_differ", [False, True], ids=["1000 distinct", "all distinct"])
def bench_memory_of_patterns(benchmark: BenchmarkFixture, all_differ: bool, smoke: bool) -> None:
    """Memory beyond the samples: a million of them with a thousand patterns, or with one each."""
    n = 20_000 if smoke else 1_000_000
    script = _MEMORY.format(widths=WIDE, n_in=WIDE[0], n=n, all_differ=all_differ)
    done = benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False), rounds=1
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["count"] == (n if all_differ else 1000)
    RATIOS.append(f"patterns of {n:,} samples, {found['count']:,} distinct: {found['beyond'] / 2**20:.0f} MiB beyond them")


@pytest.mark.parametrize("name", ["exhaustive", "by blocks"])
def bench_box_of_four_dimensions(benchmark: BenchmarkFixture, name: str, threads: int, smoke: bool) -> None:
    """A dense grid of four dimensions: 4-32-32-1."""
    n = 9 if smoke else 48
    model = networks.random_network(4, 32, 32, 1)
    grid = lmn.box([-1] * 4, [1] * 4, n)
    found = benchmark.pedantic(
        lambda: lmn.regions(model, grid, exhaustive=name == "exhaustive", progress=False), rounds=1 if smoke else 2
    )
    assert found.counts.sum() == n**4
    if benchmark.stats is not None:
        seconds = MEASURED["four", threads, name] = benchmark.stats.stats.median
        if name == "by blocks":
            other = MEASURED.get(("four", threads, "exhaustive"), float("nan"))
            RATIOS.append(
                f"4-32-32-1 on {n}^4 points, {threads} thread(s), {found.count:,} regions observed: by blocks {seconds:.2f} s, "
                f"exhaustive {other:.2f} s = {other / seconds:.1f}x; {n**4 / seconds / 1e6:.1f} M points/s"
            )
