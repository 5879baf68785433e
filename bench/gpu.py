"""Times on a GPU, of any implementation, and how far from its limit lmn is: what the benchmarks there share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import RATIOS
from lmn.kernels.triton_targets import target_of
from lmn.kernels.triton_work import RATES, Rates, Work

MEASURED: dict[tuple[str, str], float] = {}  # seconds by case and implementation


def rates_of(device: torch.device, *, smoke: bool) -> Rates:
    """What a GPU does, measured.

    Of products without TF32 a lane does two operations a clock, on AMD, where they are the matrix unit's, four. The first
    caches give a lane one byte a clock, and two where NVIDIA has 64 lanes beside one of them, on an A100. Tiles of few rows
    have half the rate of large ones where these are products of another kind (``Target.takes_64_rows``). The second cache is
    read by a sum over rows that are all the same 8 MB; on AMD, where each die has 4 MB of it, the same 2 MB.
    """
    n, size, repeats = (64, 1 << 10, 2) if smoke else (8192, 1 << 30, 256)
    a, b, out = (torch.randn(n, n, device=device) for _ in range(3))
    source = torch.empty(size, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    memory = 2 * size / seconds_of(lambda: copy.copy_(source), device)
    target = target_of(device)
    is_nvidia = target.backend == "cuda"
    rows = torch.zeros(size // (512 if is_nvidia else 2048), dtype=torch.float32, device=device).expand(repeats, -1)
    second_cache = 4 * rows.numel() / seconds_of(lambda: torch.sum(rows, 1), device)
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
            f"{torch.cuda.get_device_name(device)}: "
            f"copies {memory / 1e9:.0f} GB/s, from the second cache {second_cache / 1e9:.0f} GB/s, "
            f"products {rate['highest'] / 1e12:.1f} TFLOP/s, with TF32 {rate['high'] / 1e12:.1f} TFLOP/s"
        )
    lanes, matrix = rate["highest"] / (2 if is_nvidia else 4), rate["high" if is_nvidia else "highest"]
    of_tiles = matrix / 2 if target.takes_64_rows else matrix
    of_64_lanes = is_nvidia and torch.cuda.get_device_capability(device) == (8, 0)
    like = next((each for each in RATES if each.target == target), RATES[-1])
    return replace(
        like, name="measured", target=target, matrix=matrix, of_tiles=of_tiles, instructions=lanes, memory=memory,
        cache=(1 + of_64_lanes) * lanes, second_cache=second_cache,
    )  # fmt: skip


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
    rates: Rates,
    work: Work | None,
) -> None:
    """Time one implementation, and once lmn is, leave a line of ratios, and of its limit where its work is known."""
    found: list[float] = []
    benchmark.group = case
    benchmark.pedantic(lambda: found.append(timed(function, device)), rounds=5, warmup_rounds=1)
    seconds = MEASURED[case, name] = statistics.median(found[1:] or found)
    benchmark.extra_info["seconds by events"] = seconds
    if name != "lmn" or device.type != "cuda":  # the interpreter's times mean nothing
        return
    others = {other: value for (of, other), value in MEASURED.items() if of == case and other != "lmn"}
    parts = [f"{case}: lmn {seconds * 1e3:.2f} ms"]
    parts += [f"{other} {value * 1e3:.2f} ms = {value / seconds:.1f}x" for other, value in others.items()]
    if work is not None:
        of_parts = work.seconds(rates)
        limit, bound = sum(of_parts.values()), max(of_parts, key=lambda part: of_parts[part])
        parts.append(f"its limit {limit * 1e3:.2f} ms = {limit / seconds:.0%}, most of it {bound}")
    RATIOS.append("; ".join(parts))


def memory_of(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of the GPU's memory that torch holds at most meanwhile, beyond what it holds before; 0 where there is no GPU."""
    if device.type != "cuda":
        function()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
