"""Options of the benchmarks, and the table of ratios that they end in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from lmn.kernels.triton_work import Rates

# Whether the benchmarks of the GPU still run is seen in Triton's interpreter, which is chosen before kernels are imported.
if "--smoke" in sys.argv and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

RATIOS: list[str] = []  # lines that benchmarks leave for the summary


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small sizes and no repeats: does each benchmark still run?")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """To see whether it still runs, one number of threads is enough, and for what takes long one case."""
    if not config.getoption("--smoke"):
        return
    dropped, compiled, processes = list[pytest.Item](), False, set[str]()
    for item in items:
        if item.path.stem == "bench_footprint":  # each case is a process of its own
            name = item.originalname if isinstance(item, pytest.Function) else item.name
            if name in processes:
                dropped.append(item)
                continue
            processes.add(name)
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        again = params.get("name") == "compiled" and compiled
        compiled |= params.get("name") == "compiled"
        if params.get("threads") == 1 or again:
            dropped.append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--smoke"))


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """A GPU; where it is only asked whether a benchmark still runs, the CPU, for Triton's interpreter."""
    pytest.importorskip("triton", reason="the kernels need triton, which is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if request.config.getoption("--smoke") and os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("there is no GPU that torch can use, and nothing else is to be timed here")


@pytest.fixture(scope="session")
def rates(device: torch.device, request: pytest.FixtureRequest) -> Rates:
    """What it does, measured."""
    from bench import gpu

    return gpu.rates_of(device, smoke=request.config.getoption("--smoke"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RATIOS:
        terminalreporter.section("ratios, each within one run")
        for line in RATIOS:
            terminalreporter.write_line(line)
