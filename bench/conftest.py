"""Options of the benchmarks, and the table of ratios that they end in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

RATIOS: list[str] = []  # lines that benchmarks leave for the summary


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small sizes and no repeats: does each benchmark still run?")


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--smoke"))


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RATIOS:
        terminalreporter.section("ratios, each within one run")
        for line in RATIOS:
            terminalreporter.write_line(line)
