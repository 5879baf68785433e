"""Memory that nobody has written to holds what shows in a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within, what a kernel does not write is not a number, or as large as no count and no word of these tests."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        if made.is_floating_point():
            return made.fill_(torch.nan)
        return made.fill_(made.dtype == torch.bool or 0x5A5A5A5A & torch.iinfo(made.dtype).max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", filled)
        yield
