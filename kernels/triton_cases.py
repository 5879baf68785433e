"""What the report of the Triton kernels compiles: calls of their operators, which each operator's file lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmn.kernels.triton_tuned import Launch, recorded


@dataclass(frozen=True, eq=False)
class Case:
    """A call of an operator, of which the report tells what its kernel compiles to.

    Attributes
    ----------
    operation, label : str
    call : callable
        Launches one kernel.
    """

    operation: str
    label: str
    call: Callable[[], None]

    @cached_property
    def launch(self) -> Launch:
        with recorded() as launches:
            self.call()
        (found,) = launches
        return found


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a case is called with: of its values nothing is seen."""
    return torch.empty(*shape, dtype=dtype)


def forward(depth: int, width: int) -> dict[str, Tensor]:
    """What a case of a narrow chain is called with for its forward pass: as ``NarrowChain.forward``."""
    between, of_units = max(1, depth - 1), empty(depth, width)
    own = {"scales": of_units, "straights": of_units, "parameters": empty(depth, 3)}
    return {"weights": empty(between, width, width), "biases": empty(between, width)} | own
