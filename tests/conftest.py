"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# At a test's sizes a second thread waits longer than it works, and more so beside other workers of the test run. Where threads
# are what is tested they are asked for. Before torch is imported, which reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides when a kernel is defined whether it is compiled or interpreted; here there may be no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # for models.py and others

from poison import poisoned_memory


@pytest.fixture
def poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield
