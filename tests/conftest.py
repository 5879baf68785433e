"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# At a test's sizes a second thread waits longer than it works, and more so beside other workers of the test run. Where threads
# are what is tested they are asked for. Before torch is imported, which reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton decides when a kernel is defined whether it is compiled or interpreted; here there may be no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # for models.py


def _poisoned() -> Iterator[None]:
    """What a kernel does not write is not a number, or as large as no count and no word of these tests."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        if made.is_floating_point():
            return made.fill_(torch.nan)
        return made.fill_(made.dtype == torch.bool or 0x5A5A5A5A & torch.iinfo(made.dtype).max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", filled)
        yield


poisoned = pytest.fixture(_poisoned, name="poisoned")
poisoned_for_all = pytest.fixture(_poisoned, scope="module", name="poisoned_for_all")
