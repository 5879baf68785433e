"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# At a test's sizes a second thread waits longer than it works, and more so beside other workers of the test run. Where threads
# are what is tested they are asked for. Before torch is imported, which reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides when a kernel is defined whether it is compiled or interpreted; where there is a GPU, 0 has it compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # for models.py and others

from poison import poisoned_memory


def pytest_configure() -> None:
    if os.environ["TRITON_INTERPRET"] != "1":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError("TRITON_INTERPRET=0 runs the kernels on a GPU, and there is none that torch can use.")


@pytest.fixture(scope="session", autouse=True)
def _kernels_run_on_a_gpu() -> Iterator[None]:
    """Where they are compiled, and not interpreted."""
    if os.environ["TRITON_INTERPRET"] == "1":
        yield
    else:
        from real_gpu import launches_elsewhere

        with launches_elsewhere(lambda value: value.cuda()):
            yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield
