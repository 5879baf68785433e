"""Eigenvalues of symmetric matrices: the largest of many small ones by csrc/eigenvalues_isa.cpp, others by LAPACK."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.threads import torch_threads

LARGE = 2049  # rows: of a smaller one LAPACK's threads gain little, and wait for each other for seconds on a busy machine
_MOST_ROWS = 32  # for which a matrix a lane is faster


def ascending_eigenvalues(matrices: Tensor) -> Tensor:
    """Of symmetric matrices, (..., rows, rows): (..., rows). On the CPU by one thread, unless they are large."""
    one_thread = matrices.device.type == "cpu" and matrices.shape[-1] < LARGE
    with torch_threads(1) if one_thread else nullcontext():
        found: Tensor = torch.linalg.eigvalsh(matrices)
    return found


def largest_eigenvalues(matrices: Tensor, wanted: int, threads: int) -> Tensor:
    """Of symmetric matrices, (n, rows, rows), float64: (n, wanted), descending, within the rounding of each's largest."""
    if matrices.device.type == "cpu" and matrices.shape[1] <= _MOST_ROWS:
        return torch.from_numpy(_core.largest_eigenvalues(matrices.contiguous().numpy(), wanted, threads))
    return ascending_eigenvalues(matrices).flip(1)[:, :wanted]
