"""A real GPU for the kernels of tests: ``TRITON_INTERPRET=0 pytest`` compiles them and runs them there.

Tests' tensors and the code around launches stay on the CPU: what a launch is given is copied to the GPU, and back after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lmn import backends
from lmn.kernels.triton_checks import check_arrays
from lmn.kernels.triton_tuned import Tuned

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")  # for kernels that are launched without lmn

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="of Triton's interpreter")
compiled = pytest.mark.skipif(IS_INTERPRETED, reason="of a GPU, which TRITON_INTERPRET=0 runs the kernels on")


@contextmanager
def launches_elsewhere(moved: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, kernels are given their arrays moved, each of them once, and what they write comes back."""
    launch = Tuned.launch

    def launch_there(tuned: Tuned, grid: Any, precision: str = "", **arguments: Any) -> None:
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        check_arrays(arguments, tuned.arrays(arguments), device)  # of which copies are contiguous
        here = {id(value): value for value in arguments.values() if isinstance(value, Tensor)}
        there = {key: moved(value) for key, value in here.items()}
        launch(tuned, grid, precision, **{name: there.get(id(value), value) for name, value in arguments.items()})
        for key, value in here.items():
            if there[key] is not value:
                value.copy_(there[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuned, "launch", launch_there)
        patch.setattr(backends, "_is_interpreted", lambda: True)  # which takes what is on the CPU
        yield
