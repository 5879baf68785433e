"""The Triton kernels on a GPU: lmn against PyTorch on the same GPU, and against what it can do, in one run.

    pytest bench -m gpu --benchmark-only
    pytest bench -m gpu --benchmark-disable --smoke        # does it still run? without a GPU in Triton's interpreter

Every case is first checked on a part of it against float64, and warmed up (what is compiled and tuned is, then); each round is
timed by CUDA events. The limit of a case is the time of its operations and bytes, padding to tiles included
(lmn/kernels/triton_work.py), at rates that are measured first: of copies in memory, and of torch's products with and without
TF32. Of the latter the rates of instructions and of the first caches are made; see ``rates``.
"""

from __future__ import annotations

import copy
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import lmn
from bench import baselines, torch_jacobians
from bench.bench_connectivity import CASES, samples
from bench.bench_jacobians import RELU, SILU, WIDE, exact, network
from bench.conftest import RATIOS
from lmn.local_complexity import directions as orthonormal_directions

triton_work = pytest.importorskip("lmn.kernels.triton_work", reason="the kernels need triton, which is not installed")
Work = triton_work.Work

pytestmark = pytest.mark.gpu

_CHUNKS = (128, 512, 2048, 8192, 32768)
_OPTIONS = {"backend": "triton", "progress": False}
MEASURED: dict[tuple[str, str], float] = {}  # seconds by case and implementation


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if request.config.getoption("--smoke") and os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("there is no GPU that torch can use, and nothing else is to be timed here")


@pytest.fixture(scope="module")
def rates(device: torch.device, request: pytest.FixtureRequest) -> triton_work.Rates:
    """What this GPU does, measured.

    A product without TF32 is an instruction of a lane for each two operations; the first caches give a byte or more a lane and
    clock. Tiles of 16 rows are taken at half the rate of large products.
    """
    smoke = request.config.getoption("--smoke")
    n, size = (64, 1 << 10) if smoke else (8192, 1 << 30)
    a, b, out = (torch.randn(n, n, device=device) for _ in range(3))
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    memory = 2 * size / seconds_of(lambda: target.copy_(source), device)
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    rate = {}
    for precision in ("highest", "high"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            rate[precision] = 2 * n**3 / seconds_of(lambda: torch.mm(a, b, out=out), device)
        finally:
            torch.set_float32_matmul_precision(before)
    if device.type == "cuda":
        RATIOS.append(
            f"{torch.cuda.get_device_name(device)}: copies {memory / 1e9:.0f} GB/s, "
            f"products {rate['highest'] / 1e12:.1f} TFLOP/s, with TF32 {rate['high'] / 1e12:.1f} TFLOP/s"
        )
    lanes, matrix = rate["highest"] / 2, rate["high" if is_nvidia else "highest"]
    return triton_work.Rates("measured", matrix, matrix / 2, 3 if is_nvidia else 1, lanes, memory, lanes)


def seconds_of(function: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The median, after a round to warm up."""
    timed(function, device)
    return statistics.median(timed(function, device) for _ in range(rounds if device.type == "cuda" else 1))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run: between two CUDA events, launches and waits included."""
    if device.type != "cuda":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(stop)) / 1e3


def measured(
    benchmark: BenchmarkFixture,
    case: str,
    name: str,
    function: Callable[[], object],
    device: torch.device,
    rates: triton_work.Rates,
    work: Work,
) -> None:
    """Time one implementation, and once lmn is, leave a line of ratios."""
    found: list[float] = []
    benchmark.group = case
    benchmark.pedantic(lambda: found.append(timed(function, device)), rounds=5, warmup_rounds=1)
    seconds = MEASURED[case, name] = statistics.median(found[1:] or found)
    benchmark.extra_info["seconds by events"] = seconds
    if name != "lmn" or device.type != "cuda":  # the interpreter's times mean nothing
        return
    of_parts = work.seconds(rates)
    limit, bound = sum(of_parts.values()), max(of_parts, key=lambda part: of_parts[part])
    others = {other: value for (of, other), value in MEASURED.items() if of == case and other != "lmn"}
    ratios = "; ".join(f"{other} {value * 1e3:.2f} ms = {value / seconds:.1f}x" for other, value in others.items())
    RATIOS.append(
        f"{case}: lmn {seconds * 1e3:.2f} ms; {ratios}; "
        f"its limit {limit * 1e3:.2f} ms = {limit / seconds:.0%}, most of it {bound}"
    )


# ---- connectivity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["naive", "eager", "compiled", "lmn"])
@pytest.mark.parametrize("case", CASES)
def bench_connectivity(
    benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: triton_work.Rates, smoke: bool
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
        widths = CASES[case].widths
        units = widths[1:-1] if CASES[case].first_affine else widths[:-1]
        work = triton_work.connectivity(n, units, widths[-1])
        measured(benchmark, f"connectivity, {case}, N = {n}", name, lambda: run(h), device, rates, work)


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
@pytest.mark.parametrize("case", ["grid", "samples"])
def bench_patterns(
    benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: triton_work.Rates, smoke: bool
) -> None:
    """2-64x3-1 ReLU at the points of a grid, and 784-200x4-10 at a million samples."""
    side, n_samples = (8, 40) if smoke else (2048, 1_000_000)
    if case == "grid":
        model, n = network(RELU), side**2
        grid: Any = lmn.box([-10, -10], [10, 10], side)
        points = grid.points.to(device)
        work = triton_work.patterns(n, RELU, n_axes=2)
    else:
        model, n = network(WIDE), n_samples
        points = torch.rand(n, WIDE[0], device=device, generator=torch.Generator(device).manual_seed(0))
        grid, work = points, triton_work.patterns(n, WIDE)
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
        measured(benchmark, f"patterns, {case}, {n:,} points", name, run[name], device, rates, work)


# ---- Jacobians ---------------------------------------------------------------------------------------------------------------

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
def bench_jacobians(
    benchmark: BenchmarkFixture, case: str, name: str, device: torch.device, rates: triton_work.Rates, smoke: bool
) -> None:
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
    measured(benchmark, label, name, run, device, rates, triton_work.jacobians(len(x), widths))


@pytest.mark.parametrize("name", ["vmap(jacrev)", "by hand", "by hand, compiled", "lmn"])
def bench_spectral_norms(
    benchmark: BenchmarkFixture, name: str, device: torch.device, rates: triton_work.Rates, smoke: bool
) -> None:
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
    work = triton_work.jacobians(n, WIDE)
    measured(benchmark, f"spectral norms, 784-200x4-10, {n:,} samples", name, run, device, rates, work)


# ---- local complexity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain PyTorch", "the same, compiled", "lmn"])
@pytest.mark.parametrize("widths", [(64, 64, 64, 10), WIDE], ids=["narrow", "wide"])
def bench_local_complexity(
    benchmark: BenchmarkFixture,
    widths: tuple[int, ...],
    name: str,
    device: torch.device,
    rates: triton_work.Rates,
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
    measured(benchmark, case, name, run, device, rates, triton_work.local_complexity(n, widths, n_directions))
