"""Local Jacobians, and what is made of them, as people write it in PyTorch, each in its best form."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.baselines import wait_for

CHUNKS = (256, 1024, 4096, 16384)

Jacobians = Callable[[Tensor], Tensor]


def by_jacrev(model: nn.Module, chunk: int) -> Jacobians:
    return torch.func.vmap(torch.func.jacrev(model), chunk_size=chunk)


def by_jacfwd(model: nn.Module, chunk: int) -> Jacobians:
    return torch.func.vmap(torch.func.jacfwd(model), chunk_size=chunk)


def by_hand(model: nn.Sequential, chunk: int) -> Jacobians:
    """The chain rule as batched products from the outputs on; slopes from the activations' own derivatives."""

    def jacobians(x: Tensor) -> Tensor:
        return torch.cat([_by_hand(model, part) for part in x.split(chunk)])

    return jacobians


@torch.no_grad()
def _by_hand(model: nn.Sequential, x: Tensor) -> Tensor:
    slopes = []
    for layer in model:
        if isinstance(layer, nn.ReLU):
            slopes.append((x > 0).to(x.dtype))
        elif isinstance(layer, nn.SiLU):
            s = torch.sigmoid(x)
            slopes.append(s * (1 + x * (1 - s)))
        x = layer(x)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    a = weights[-1].expand(len(x), -1, -1)
    for slope, weight in zip(reversed(slopes), reversed(weights[:-1]), strict=True):
        a = (a * slope[:, None]) @ weight
    return a


def best_chunk(make: Callable[[nn.Module, int], Jacobians], model: nn.Module, x: Tensor, chunks: Sequence[int] = CHUNKS) -> int:
    """The chunk in which a point takes the least time, on one chunk of each after a run to warm up."""
    times = {}
    for chunk in chunks:
        if chunk > len(x) and times:
            continue
        function, part = make(model, chunk), x[:chunk]
        function(part)
        wait_for(x.device)
        started = time.perf_counter()
        function(part)
        wait_for(x.device)
        times[chunk] = (time.perf_counter() - started) / len(part)
    return min(times, key=lambda chunk: times[chunk])


def spectral_norms(jacobians: Jacobians, x: Tensor, chunk: int) -> Tensor:
    """Of the smaller of A A' and A' A, as who is in a hurry does it; Jacobians are held of one chunk at a time."""
    norms = []
    for part in x.split(chunk):
        a = jacobians(part)
        a = a if a.shape[1] <= a.shape[2] else a.mT
        norms.append(torch.linalg.eigvalsh(a @ a.mT)[:, -1].clamp(min=0).sqrt())
    return torch.cat(norms)


@torch.no_grad()
def local_complexity(model: nn.Sequential, x: Tensor, r: float, directions: Tensor) -> Tensor:
    """The number of ReLU units that change sign over the vertices x ± r v: every vertex is run. (n_points,)."""
    shifts = r * torch.cat([directions, -directions])
    total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for first in range(0, len(x), 64):
        h = (x[first : first + 64, None] + shifts).flatten(0, 1)
        for layer in model:
            if isinstance(layer, nn.ReLU):
                above = (h > 0).unflatten(0, (-1, len(shifts)))
                total[first : first + 64] += (above.any(1) & ~above.all(1)).sum(1)
            h = layer(h)
    return total
