"""The definition, in float64: slow, obvious, sharing nothing with the fast paths.

L_ij is the mean over outputs k of the squared Pearson correlation of y_k(λ) = f_k(h_i + λ (h_j - h_i)) with λ at m uniform
values in [0, 1] (Liu, Zhong, Tegmark 2023, arXiv 2310.05918, eq. 1-2). An output that is constant along the segment, to the
last few bits of float64, is affine: r² = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmn.kernels.connectivity.problem import CONSTANT, Problem, Progress


def connectivity(problem: Problem, out: Tensor, progress: Progress) -> int:
    """Fill ``out``, shape (n_points, n_points)."""
    h = problem.samples.double()
    n, pairs = len(h), problem.pairs
    lam = torch.linspace(0, 1, problem.m, dtype=torch.float64, device=h.device)
    out.fill_diagonal_(1)
    for i in pairs.rows:
        for j in range(max(i + 1, pairs.first_column), n):
            path = h[i] + lam.reshape(-1, *[1] * (h.ndim - 1)) * (h[j] - h[i])  # (m, ...)
            out[i, j] = out[j, i] = squared_correlation(problem.tail(path), lam).mean()
        progress(pairs.in_row(i))
    return 0


def squared_correlation(y: Tensor, lam: Tensor) -> Tensor:
    """r² of each output with λ: y of shape (m, n_out) and lam of shape (m,) to (n_out,)."""
    y0 = y - y.mean(0)
    lam0 = lam - lam.mean()
    variance = (y0**2).sum(0)
    r2 = (lam0 @ y0) ** 2 / ((lam0**2).sum() * variance)
    constant = (variance / len(lam)).sqrt() <= CONSTANT * y.abs().amax(0)
    return torch.where(constant, torch.ones_like(r2), r2.clamp(max=1))
