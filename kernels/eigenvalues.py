"""The largest eigenvalues of many symmetric matrices (csrc/eigenvalues_isa.cpp; large ones by LAPACK)."""

from __future__ import annotations

import torch
from torch import Tensor

from lmn import _core

_MOST_ROWS = 32  # for which a matrix a lane is faster


def largest_eigenvalues(matrices: Tensor, wanted: int, threads: int) -> Tensor:
    """Of symmetric matrices, (n, rows, rows), float64: (n, wanted), descending, within the rounding of each's largest."""
    if matrices.device.type == "cpu" and matrices.shape[1] <= _MOST_ROWS:
        return torch.from_numpy(_core.largest_eigenvalues(matrices.contiguous().numpy(), wanted, threads))
    ascending: Tensor = torch.linalg.eigvalsh(matrices)
    return ascending.flip(1)[:, :wanted]
