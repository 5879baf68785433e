"""How much memory an operation may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lmn.errors import LmnError

_SHARE = 0.5  # of what is free
_LEAST = 1 << 20


def memory_limit_of(limit: Any, device: torch.device) -> int:
    """Bytes that a caller allows, or half of what is free."""
    if limit is None:
        return max(_LEAST, int(_SHARE * _free(device)))
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= _LEAST:
        raise LmnError(f"memory_limit is a number of bytes, at least {_LEAST} (a MiB); got {limit!r}.")
    return int(limit)


def in_bytes(n: float) -> str:
    """A number of bytes for a person."""
    return f"{n / 2**30:.1f} GiB" if n >= 1 << 30 else f"{n / 2**20:.1f} MiB"


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
