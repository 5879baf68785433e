"""Linear connectivity as people write it in PyTorch: what lmn is compared with, each in its best form."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lmn.kernels.connectivity.pairs import Pairs

Tail = Callable[[Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Tensor])
OfPairs = Callable[[Tail, Tensor, Tensor, Tensor], Tensor]  # tail, ends a, ends b, λ -> r², shape (n_pairs,)


def wait_for(device: torch.device) -> None:
    """Until all that was asked of it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def squared_correlation(y: Tensor, lam: Tensor) -> Tensor:
    """Mean r² over outputs: y of shape (n_pairs, m, n_out) to (n_pairs,)."""
    y = y - y.mean(1, keepdim=True)
    lam = lam - lam.mean()
    covariance = torch.einsum("m,pmk->pk", lam, y)
    return (covariance**2 / (lam.square().sum() * y.square().sum(1)).clamp(min=1e-30)).mean(1)


def of_pairs(tail: Tail, a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """r² of the pairs (a_p, b_p): two tensors of shape (n_pairs, ...)."""
    path = a[:, None] + lam.reshape(1, -1, *[1] * (a.ndim - 1)) * (b - a)[:, None]
    return squared_correlation(tail(path.flatten(0, 1)).unflatten(0, path.shape[:2]), lam)


def naive(tail: Tail, h: Tensor, m: int = 21) -> Tensor:
    """One sample against all others by broadcasting, both halves of the matrix: the first thing one writes."""
    lam = torch.linspace(0, 1, m, device=h.device)
    return torch.stack([of_pairs(tail, h[i].expand_as(h), h, lam) for i in range(len(h))]).fill_diagonal_(1)


def chunked(tail: Tail, h: Tensor, chunk: int, m: int = 21, function: OfPairs = of_pairs) -> Tensor:
    """The pairs i < j, so many at a time."""
    lam = torch.linspace(0, 1, m, device=h.device)
    out = torch.eye(len(h), device=h.device)
    pairs = Pairs(len(h))
    for first in range(0, len(pairs), chunk):
        i, j = (torch.from_numpy(x).to(h.device) for x in pairs.numbered(first, first + chunk))
        out[i, j] = out[j, i] = function(tail, h[i], h[j], lam)
    return out


def compiled(function: F, *, smoke: bool) -> F:
    """A function by torch.compile, static shapes, knowing nothing of what was compiled before."""
    torch._dynamo.reset()
    made: F = torch.compile(function, dynamic=False, backend="eager" if smoke else "inductor")
    return made


def best_chunk(make: Callable[[], OfPairs], tail: Tail, h: Tensor, chunks: Sequence[int], m: int = 21) -> int:
    """The chunk in which a pair takes the least time.

    Each is given a function of its own, run once on a whole chunk (what is compiled is compiled then), and timed on whole
    chunks only, 8192 pairs or more, twice.
    """
    lam = torch.linspace(0, 1, m, device=h.device)
    times = {}
    for chunk in chunks:
        function = make()
        i, j = torch.randint(len(h), (2, chunk), generator=torch.Generator().manual_seed(0)).to(h.device)
        function(tail, h[i], h[j], lam)
        repeats = max(1, 8192 // chunk)
        best = math.inf
        for _ in range(2):
            wait_for(h.device)
            started = time.perf_counter()
            for _ in range(repeats):
                function(tail, h[i], h[j], lam)
            wait_for(h.device)
            best = min(best, time.perf_counter() - started)
        times[chunk] = best / (repeats * chunk)
    return min(times, key=lambda chunk: times[chunk])
