"""Linear connectivity: lmn against PyTorch as people write it, in one run.

    pytest bench/bench_connectivity.py --benchmark-only
    pytest bench/bench_connectivity.py --benchmark-disable --smoke        # does it still run?

Every case first checks its matrix on a part of the samples against the float64 reference; then it is run once to warm up, and
timed over rounds ("naive" is warmed up by its check, and timed once); its whole matrix is compared with another
implementation's. The arithmetic limit of a case is the time of its products at the rate that torch's own product reaches at
the tile's shape, plus that of its activations at torch's vector rate, over all points of all segments. The hard limit leaves
the library out: the products at the machine's multiply-add rate, then the activations at the rate that lmn's own reach in the
first cache.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import baselines, limits
from bench.conftest import RATIOS
from lmn.kernels.activations import activation

CHUNKS = (32, 128, 512, 2048)
M = 21

MODULES: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class Case:
    """A tail: widths with the activation between; the first product is applied to the samples by lmn, by nobody else."""

    widths: tuple[int, ...]
    activation: str
    first_affine: bool

    def tail(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(self.widths):
            layers += [nn.Linear(n_in, n_out), MODULES[self.activation]()]
        if not self.first_affine:
            layers.insert(0, MODULES[self.activation]())
        return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)

    def limit(self, n: int, threads: int) -> tuple[float, float]:
        """Seconds: by the library's rates, and by those of the machine."""
        points = n * (n - 1) // 2 * (M - 2)
        widths = self.widths[1:] if self.first_affine else self.widths  # whose activations are on the path
        shapes = list(itertools.pairwise(widths))
        flop = [2.0 * points * a * b for a, b in shapes]
        act, values = activation(self.activation), points * sum(widths[:-1])
        by_library = sum(f / limits.product_rate(*shape) for f, shape in zip(flop, shapes, strict=True))
        by_library += values / limits.activation_rate(act.function)
        return by_library, sum(flop) / limits.multiply_add_rate(threads) + values / limits.core_rate(act, threads)


CASES = {
    "paper 100-31 SiLU": Case((100, 31), "silu", first_affine=False),
    "paper 64-100-100-31 SiLU": Case((64, 100, 100, 31), "silu", first_affine=True),
    "256-256-256-10 ReLU": Case((256, 256, 256, 10), "relu", first_affine=True),
    "512-512-10 GELU": Case((512, 512, 10), "gelu", first_affine=True),
}

MEASURED: dict[tuple[str, int, str], float] = {}  # seconds by case, threads and implementation


Matrix = Callable[[nn.Module, Tensor], Tensor]


def samples(case: Case, n: int) -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(n, case.widths[0])


def by_lmn(tail: nn.Module, h: Tensor) -> Tensor:
    return lmn.connectivity(tail, h, progress=False)


def by_generic(tail: nn.Module, h: Tensor) -> Tensor:
    return lmn.connectivity(tail, h, backend="torch", progress=False)


def by_numba(tail: nn.Module, h: Tensor) -> Tensor:
    return lmn.connectivity(tail, h, backend="numba", progress=False)


LMN: dict[str, Matrix] = {"lmn": by_lmn, "lmn numba": by_numba, "lmn generic": by_generic}


def check(tail: nn.Module, h: Tensor, function: Matrix, name: str) -> None:
    part = h[:40]
    expected = lmn.connectivity(tail.double(), part.double(), backend="reference", progress=False)
    tail.float()
    torch.testing.assert_close(function(tail, part).double(), expected, rtol=0, atol=tolerance_of(name))


def tolerance_of(name: str) -> float:
    return 1e-5 if name in LMN else 1e-3  # the baselines lose digits where an output hardly moves


def implementation(name: str, tail: nn.Module, h: Tensor, smoke: bool) -> Matrix:
    if name in LMN:
        return LMN[name]
    if name == "naive":
        return baselines.naive
    make: Callable[[], baselines.OfPairs] = lambda: baselines.of_pairs  # noqa: E731
    if name == "compiled":
        make = functools.partial(baselines.compiled, baselines.of_pairs, smoke=smoke)
    chunk = baselines.best_chunk(make, tail, h, CHUNKS[:1] if smoke else CHUNKS)
    return functools.partial(baselines.chunked, chunk=chunk, function=make())


@pytest.mark.parametrize("name", ["naive", "eager", "compiled", "lmn generic", "lmn numba", "lmn"])
@pytest.mark.parametrize("case", CASES)
def bench_768(benchmark: BenchmarkFixture, case: str, name: str, threads: int, smoke: bool) -> None:
    """One snapshot of 768 samples."""
    n = 24 if smoke else 768
    tail, h = CASES[case].tail(), samples(CASES[case], n)
    with torch.no_grad():
        run = implementation(name, tail, h, smoke)
        check(tail, h, run, name)
        benchmark.group = f"{case}, N = {n}, {threads} thread(s)"
        got = benchmark.pedantic(run, (tail, h), rounds=1 if name == "naive" else 3, warmup_rounds=int(name != "naive"))
        another = by_numba if name == "lmn" else by_lmn
        torch.testing.assert_close(got, another(tail, h), rtol=0, atol=tolerance_of(name))
    if benchmark.stats is not None:
        MEASURED[case, threads, name] = benchmark.stats.stats.min
    if name == "lmn" and benchmark.stats is not None:
        seconds = benchmark.stats.stats.min
        others = {other: t for (c, k, other), t in MEASURED.items() if (c, k) == (case, threads) and other != "lmn"}
        by_library, hard = CASES[case].limit(n, threads)
        RATIOS.append(
            f"{case}, {threads} thread(s): lmn {seconds:.3f} s"
            + "".join(f"; {other} {t:.2f} s = {t / seconds:.1f}x" for other, t in others.items())
            + f"; library's arithmetic limit {by_library:.3f} s = {by_library / seconds:.0%}"
            + f"; hard limit {hard:.3f} s = {hard / seconds:.0%}"
        )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 128), nn.Linear(128, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 128)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation=nn.functional.gelu)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 32, 10))


# What is no chain: models, the shape of a sample, how many samples.
GENERIC = {
    "residual MLP": (Residual, (64,), 256),
    "convolutions": (convolutions, (1, 14, 14), 96),
    "transformer": (transformer, (8, 32), 96),
}


@pytest.mark.parametrize("name", ["eager", "lmn"])
@pytest.mark.parametrize("model", GENERIC)
def bench_generic(benchmark: BenchmarkFixture, model: str, name: str, threads: int, smoke: bool) -> None:
    """Models that are no chain: the generic path against eager PyTorch in its best chunk."""
    torch.manual_seed(0)
    build, shape, n = GENERIC[model]
    tail = build().eval().requires_grad_(False)
    h = torch.randn(12 if smoke else n, *shape)
    benchmark.group = f"{model}, {threads} thread(s)"
    with torch.no_grad():
        run: Matrix = by_lmn
        if name == "eager":
            chunk = 128 if smoke else baselines.best_chunk(lambda: baselines.of_pairs, tail, h, (2, 8, 32, 128, 512))
            run = functools.partial(baselines.chunked, chunk=chunk)
        expected = lmn.connectivity(tail.double(), h[:12].double(), backend="reference", progress=False)
        tail.float()
        torch.testing.assert_close(run(tail, h[:12]).double(), expected, rtol=0, atol=1e-5 if name == "lmn" else 1e-3)
        benchmark.pedantic(run, (tail, h), rounds=3, warmup_rounds=1)
    if benchmark.stats is not None:
        MEASURED[model, threads, name] = benchmark.stats.stats.min
        if name == "lmn":
            eager = MEASURED.get((model, threads, "eager"), float("nan"))
            RATIOS.append(f"{model}, {threads} thread(s): lmn {benchmark.stats.stats.min:.2f} s; eager {eager:.2f} s")


@pytest.mark.parametrize("n", [256, 768, 2048])
@pytest.mark.parametrize("case", CASES)
def bench_sizes(benchmark: BenchmarkFixture, case: str, n: int, threads: int, smoke: bool) -> None:
    """How lmn's time grows with the samples."""
    n = n // 32 if smoke else n
    tail, h = CASES[case].tail(), samples(CASES[case], n)
    benchmark.group = f"{case}, {threads} thread(s)"
    with torch.no_grad():
        check(tail, h, by_lmn, "lmn")
        benchmark.pedantic(by_lmn, (tail, h), rounds=1 if n > 1000 else 3, warmup_rounds=1)
