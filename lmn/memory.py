"""How much memory an operation may take."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmn.errors import LmnError

if TYPE_CHECKING:
    from lmn.map_source import MapSource

_ON_GPU = 1 << 26
_SHARE = 0.5  # of what is free
_LEAST = 1 << 20


def memory_limit_of(limit: Any, device: torch.device) -> int:
    """Bytes that a caller allows, or half of what is free."""
    if limit is None:
        return max(_LEAST, int(_SHARE * _free(device)))
    number = isinstance(limit, int | float | np.integer | np.floating) and not isinstance(limit, bool)
    if not number or not _LEAST <= limit < math.inf:
        raise LmnError(f"memory_limit is a number of bytes, at least {_LEAST} (a MiB) and finite; got {limit!r}.")
    return int(limit)


def working_bytes(device: torch.device, on_cpu: int) -> int:
    """Bytes of what is run together: what a CPU's cache holds, or what keeps a GPU busy for longer than a launch takes."""
    return on_cpu if device.type == "cpu" else max(on_cpu, _ON_GPU)


def limit_for_maps(source: MapSource, limit: Any) -> int:
    """The same, where one map of a source, and what is made of it, has to fit."""
    allowed = memory_limit_of(limit, source.device)
    each = 4 * source.n_out * source.n_in * source.dtype.itemsize
    if each > allowed:
        raise LmnError(
            f"one Jacobian of {source.n_out} x {source.n_in}, and what is made of it, takes {in_bytes(each)}, and the memory "
            f"limit is {in_bytes(allowed)}; pick fewer outputs with select=, tap a narrower submodule, or raise memory_limit."
        )
    return allowed


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
