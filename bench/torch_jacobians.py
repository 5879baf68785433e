"""Local Jacobians, and what is made of them, as people write it in PyTorch, each in its best form."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.baselines import compiled, wait_for

CHUNKS = (256, 1024, 4096, 16384)

Jacobians = Callable[[Tensor], Tensor]
Changes = Callable[[nn.Sequential, Tensor, Tensor], Tensor]


def by_jacrev(model: nn.Module, chunk: int) -> Jacobians:
    return torch.func.vmap(torch.func.jacrev(model), chunk_size=chunk)


def by_jacfwd(model: nn.Module, chunk: int) -> Jacobians:
    return torch.func.vmap(torch.func.jacfwd(model), chunk_size=chunk)


def by_hand(model: nn.Sequential, chunk: int) -> Jacobians:
    """The chain rule as batched products from the outputs on; slopes from the activations' own derivatives."""
    return lambda x: torch.cat([_by_hand(model, part) for part in x.split(chunk)])


def by_hand_compiled(model: nn.Sequential, chunk: int, *, smoke: bool) -> Jacobians:
    """The same by torch.compile."""
    function = compiled(_by_hand, smoke=smoke)
    return lambda x: torch.cat([function(model, part) for part in x.split(chunk)])


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
def changes(model: nn.Sequential, x: Tensor, shifts: Tensor) -> Tensor:
    """The number of ReLU units that change sign over the vertices x + shift: every vertex is run. (n_points,)."""
    h = (x[:, None] + shifts).flatten(0, 1)
    total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for layer in model:
        if isinstance(layer, nn.ReLU):
            above = (h > 0).unflatten(0, (-1, len(shifts)))
            total = total + (above.any(1) & ~above.all(1)).sum(1)
        h = layer(h)
    return total


def local_complexity(model: nn.Sequential, x: Tensor, r: float, directions: Tensor, function: Changes = changes) -> Tensor:
    """:func:`changes` at the vertices x ± r v, some samples at a time."""
    shifts = r * torch.cat([directions, -directions])
    return torch.cat([function(model, part, shifts) for part in x.split(64)])
