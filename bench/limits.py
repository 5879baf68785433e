"""What the machine can do: measured ceilings that the kernels are held against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.activations import Activation


def fastest(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some calls."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def product_rate(n_hidden: int, n_out: int, rows: int = 19 * 128) -> float:
    """FLOP/s of torch's float32 product at a tile's shape: (rows, n_hidden) by (n_hidden, n_out)."""
    a, b, out = torch.randn(rows, n_hidden), torch.randn(n_hidden, n_out), torch.empty(rows, n_out)
    flop = 2 * rows * n_hidden * n_out
    repeats = max(1, int(2e8 / flop))
    return flop * repeats / fastest(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)])


def activation_rate(function: Callable[[Tensor], Tensor]) -> float:
    """Values/s of torch's activation on values that fit the cache."""
    x = torch.randn(1 << 16)
    return x.numel() / fastest(lambda: function(x), 20)


def multiply_add_rate(threads: int) -> float:
    """FLOP/s of fused multiply-adds in registers alone: no float32 kernel on the CPU is faster."""
    return threads * _core.multiply_add_rate()


def core_rate(activation: Activation, threads: int) -> float:
    """Values/s of the kernels' own activation, on values that fit the first cache: the fastest that there is here."""
    return threads * _core.core_rate(activation.core_index, activation.p0, activation.p1)
