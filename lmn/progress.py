"""Progress of what takes over a second, where somebody can see it."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, shown: bool) -> tqdm[Any]:
    """A bar that is gone when it is done; none on what is no terminal."""
    disable = None if shown else True  # None: by whether it is one
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, delay=1, leave=False, disable=disable)
