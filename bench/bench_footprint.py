"""What a measurement takes besides its time: memory beyond the model and the matrix, the import, the first call of a process.

    pytest bench/bench_footprint.py --benchmark-only

Each case is a process of its own, so that nothing is loaded or cached but what is on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import RATIOS

_MIB = 1 << 20

_MODELS = {
    "paper 100-31 SiLU": "nn.Sequential(nn.SiLU(), nn.Linear(100, 31))",
    "512-512-10 GELU": "nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))",
    "256-256-256-10 ReLU": "nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))",
    "2048 wide GELU": "nn.Sequential(nn.Linear(64, 2048), nn.GELU(), nn.Linear(2048, 10))",
    "residual 100 (generic)": "Residual()",
    "convolutions, 3 x 64 x 64 (generic)": "Convolutions()",
}

_PRELUDE = """
import json, time
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(100, 100), nn.Linear(100, 31)

    def forward(self, x):
        return self.b(x + torch.nn.functional.silu(self.a(x)))

class Convolutions(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        super().__init__(nn.Unflatten(1, (3, 64, 64)), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

torch.manual_seed(0)
"""

# The high-water mark is the kernel's, reset after a small measurement has loaded what there is to load.
_MEMORY = """
import lmn
model = {model}
n_in = 3 * 64 * 64 if isinstance(model, Convolutions) else next(p for p in model.parameters() if p.ndim == 2).shape[1]
lmn.measure(model, torch.randn(5, n_in), progress=False)
x = torch.randn({n}, n_in)

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
started = time.perf_counter()
found = lmn.{call}(model, x, {options}progress=False)
seconds = time.perf_counter() - started
matrix = {n} ** 2 * {itemsize}
print(json.dumps(dict(seconds=seconds, beyond=status("VmHWM") - before - matrix)))
"""

_FIRST = """
started = time.perf_counter()
import lmn
imported = time.perf_counter() - started
model, x = {model}, torch.randn(768, 100)
started = time.perf_counter()
lmn.measure(model, x, backend={backend!r}, progress=False)
first = time.perf_counter() - started
started = time.perf_counter()
lmn.measure(model, x, backend={backend!r}, progress=False)
print(json.dumps(dict(imported=imported, first=first, second=time.perf_counter() - started)))
"""


def child(script: str) -> dict[str, Any]:
    """What a fresh process prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", _PRELUDE + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


_SIZES = {
    "paper 100-31 SiLU": (768, 8192),
    "512-512-10 GELU": (768, 4096),
    "256-256-256-10 ReLU": (768, 2048),
    "2048 wide GELU": (768, 2048),
    "residual 100 (generic)": (192, 1024),
    "convolutions, 3 x 64 x 64 (generic)": (16, 48),
}


@pytest.mark.parametrize(("model", "n"), [(model, n) for model, sizes in _SIZES.items() for n in sizes])
def bench_memory_of_connectivity(benchmark: BenchmarkFixture, model: str, n: int, smoke: bool) -> None:
    """Memory beyond the model and the float32 matrix."""
    n = max(8, n // 32) if smoke else n
    script = _MEMORY.format(model=_MODELS[model], n=n, call="connectivity", options="", itemsize=4)
    found = benchmark.pedantic(child, (script,), rounds=1)
    assert found["beyond"] < 64 * _MIB
    RATIOS.append(
        f"{model}, N = {n}, connectivity: {found['beyond'] / _MIB:.1f} MiB beyond the matrix; {found['seconds']:.2f} s"
    )


@pytest.mark.parametrize(("m", "threads"), [(21, 8), (3, 8)])
def bench_memory_of_many_threads(benchmark: BenchmarkFixture, m: int, threads: int, smoke: bool) -> None:
    """Memory of the generic path, whose chunks grow with the threads up to a limit."""
    n = 64 if smoke else 512
    options = f"m={m}, threads={threads}, "
    script = _MEMORY.format(model="Residual()", n=n, call="connectivity", options=options, itemsize=4)
    found = benchmark.pedantic(child, (script,), rounds=1)
    assert found["beyond"] < 64 * _MIB
    RATIOS.append(f"residual 100 (generic), m = {m}, {threads} threads: {found['beyond'] / _MIB:.1f} MiB beyond the matrix")


def bench_the_largest(benchmark: BenchmarkFixture, smoke: bool) -> None:
    """All of 8192 points, with the spectrum: memory beyond the model and the float64 matrix."""
    n = 128 if smoke else 8192
    script = _MEMORY.format(
        model=_MODELS["paper 100-31 SiLU"], n=n, call="measure", options="max_points=None, ", itemsize=8
    )  # fmt: skip
    found = benchmark.pedantic(child, (script,), rounds=1)
    RATIOS.append(f"paper 100-31 SiLU, N = {n}, measure: {found['beyond'] / _MIB:.1f} MiB beyond; {found['seconds']:.1f} s")


@pytest.mark.parametrize("backend", ["cpp", "numba", "torch"])
def bench_first_call(benchmark: BenchmarkFixture, backend: str) -> None:
    """The import beyond torch's own, and the first call at N = 768 with what is cached on disk."""
    script = _FIRST.format(model=_MODELS["paper 100-31 SiLU"], backend=backend)
    child(script)  # Numba's cache is filled here
    found = benchmark.pedantic(child, (script,), rounds=1)
    RATIOS.append(
        f"fresh process, {backend}: import {found['imported']:.2f} s beyond torch's, first call {found['first']:.2f} s, "
        f"second {found['second']:.2f} s"
    )
