"""Chains on the GPU, by Triton: which kernel, what it is given, and what float32 can't do redone by the tail in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from lmn.kernels import triton_product_ops as products
from lmn.kernels.connectivity.problem import CONSTANT, TOLERANCE, Chain, Layer, Problem, Progress
from lmn.kernels.connectivity.torch_eager import ByTheTail
from lmn.kernels.connectivity.triton_ops import PAIRS, Fused, deviations, fused_for, narrow_pairs, r_squared
from lmn.kernels.triton_host import on, rows_of

_SCRATCH_BYTES = 1 << 27  # of a layer of the wide kernels: a launch takes longer on the GPU than on the CPU
_TILES_A_CALL = 1 << 22


def connectivity(problem: Problem, out: Tensor, progress: Progress) -> int:
    """Fill ``out``, shape (n_points, n_points), float32 or float64. Returns the number of pairs done again in float64."""
    assert problem.chain is not None
    out.fill_diagonal_(1)
    if not problem.chain.layers:  # affine
        out.fill_(1)
        return 0
    units = [len(layer.z) for layer in problem.chain.layers]
    sizes = fused_for(units, len(problem.chain.y))
    single = out if out.dtype == torch.float32 else torch.full_like(out, torch.nan, dtype=torch.float32)
    if sizes is not None:
        _fill_fused(problem, sizes, single, progress)
    else:
        _fill_wide(problem, single, progress)
    if single is not out:
        out.copy_(single).fill_diagonal_(1)
    return _redo(problem, out)


def _redo(problem: Problem, out: Tensor) -> int:
    """The pairs that float32 left open, by the tail in float64."""
    pairs = problem.pairs
    block = out[: len(pairs.rows), pairs.first_column :]
    i, j = torch.nonzero(torch.isnan(block), as_tuple=True)
    j = j + pairs.first_column
    i, j = i[j > i], j[j > i]
    if len(i) and problem.double:
        ByTheTail(problem, out).redo(i, j)
    return len(i)


def _in_two(values: np.ndarray, device: torch.device, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Values, (n, n_points), float64, as rows in two floats, (n_points, width): the second is what the first lacks."""
    rows = torch.from_numpy(np.ascontiguousarray(values.T)).to(device)
    high = rows.float()
    low = (rows - high.double()).float()
    pad = (0, 0 if width is None else width - rows.shape[1])
    return torch.nn.functional.pad(high, pad).contiguous(), torch.nn.functional.pad(low, pad).contiguous()


def _moments(problem: Problem) -> tuple[float, float, float]:
    """The sum of squares of t - 1/2 over a segment, the size of what is constant, the error that is let pass."""
    m = problem.m
    return m * (m + 1) / (12 * (m - 1)), CONSTANT, TOLERANCE if problem.double else float("inf")


# ---- narrow chains ---------------------------------------------------------------------------------------------------


def fused_arguments(chain: Chain, sizes: Fused, device: torch.device) -> dict[str, Tensor]:
    """The arrays of a chain as the fused kernel takes them, zero where a layer is narrower."""
    depth, width, outputs = sizes.depth, sizes.width, sizes.outputs
    z, z_rest, weights = [], [], torch.zeros(depth, width, width, dtype=torch.float32, device="cpu")
    scales, straights = (torch.zeros(depth, width, dtype=torch.float32, device="cpu") for _ in range(2))
    for number, layer in enumerate(chain.layers):
        act, n = layer.activation, len(layer.z)
        high, low = _in_two(layer.z, device, width)
        z.append(high)
        z_rest.append(low)
        scale, straight = act.by_unit(n)
        scales[number, :n], straights[number, :n] = torch.tensor(scale, device="cpu"), torch.tensor(straight, device="cpu")
        weight = np.eye(n) if layer.weight is None else layer.weight
        weights[number, :n, : len(weight)] = torch.from_numpy(weight.T)
    y, y_rest = _in_two(chain.y, device, outputs)
    noise = torch.zeros(outputs, dtype=torch.float32, device="cpu")
    noise[: len(chain.y)] = torch.from_numpy(chain.rounding_noise(np.float32))
    own = {"weights": weights, "scales": scales, "straights": straights, "noise": noise}
    placed = {name: value.to(device) for name, value in own.items()}
    placed["parameters"] = on(device, [[layer.activation.p0, layer.activation.p1] for layer in chain.layers])
    return {"z_high": torch.cat(z, 1), "z_low": torch.cat(z_rest, 1), "y_high": y, "y_low": y_rest} | placed


def _fill_fused(problem: Problem, sizes: Fused, out: Tensor, progress: Progress) -> None:
    assert problem.chain is not None
    chain, pairs = problem.chain, problem.pairs
    arrays = fused_arguments(chain, sizes, out.device)
    cores = [layer.activation.core_index for layer in chain.layers]
    sxx, constant, tolerance = _moments(problem)
    tiles = triton.cdiv(problem.n_points - pairs.first_column // PAIRS * PAIRS, PAIRS)
    rows = max(1, _TILES_A_CALL // tiles)
    for first in range(0, len(pairs.rows), rows):
        n_rows = min(rows, len(pairs.rows) - first)
        narrow_pairs(
            **arrays, cores=cores, first_row=first, n_rows=n_rows, first_column=pairs.first_column, n_out=len(chain.y),
            m=problem.m, sxx=sxx, constant=constant, tolerance=tolerance, out=out,
        )  # fmt: skip
        progress(sum(pairs.in_row(i) for i in range(first, first + n_rows)))


# ---- wide chains -----------------------------------------------------------------------------------------------------


def _fill_wide(problem: Problem, out: Tensor, progress: Progress) -> None:
    assert problem.chain is not None
    chain, pairs, device = problem.chain, problem.pairs, out.device
    widest = max([len(chain.y), *(len(layer.z) for layer in chain.layers)])
    chunk = rows_of(_SCRATCH_BYTES, (problem.m - 2) * widest)
    y, y_rest = _in_two(chain.y, device)
    noise = torch.from_numpy(chain.rounding_noise(np.float32)).float().to(device)
    layers = [_WideLayer.of(layer, device) for layer in chain.layers]
    sxx, constant, tolerance = _moments(problem)
    rows = pairs.n_rows or 0
    for first in range(0, len(pairs), chunk):
        n = min(chunk, len(pairs) - first)
        u = torch.empty(problem.m - 2, n, len(chain.layers[0].z), dtype=torch.float32, device=device)
        for number, layer in enumerate(layers):
            deviations(**layer.arguments, first_pair=first, n_rows=rows, shifted=number > 0, u=u)
            if layer.weight is not None:
                made = torch.empty(*u.shape[:2], layer.weight.shape[1], dtype=torch.float32, device=device)
                products.plain(u, layer.weight, made)
                u = made
        r_squared(u, y, y_rest, noise, first, rows, sxx, constant, tolerance, out)
        progress(n)


@dataclass(frozen=True, eq=False)
class _WideLayer:
    """An activation as ``deviations`` takes it, and the weights after it, (n_units, next units), if there are such."""

    arguments: dict[str, Any]
    weight: Tensor | None

    @classmethod
    def of(cls, layer: Layer, device: torch.device) -> _WideLayer:
        act = layer.activation
        z_high, z_low = _in_two(layer.z, device)
        scales, straights = (on(device, each) for each in act.by_unit(len(layer.z)))
        arrays = {"z_high": z_high, "z_low": z_low, "scales": scales, "straights": straights}
        numbers = {"core": act.core_index, "p0": float(act.p0), "p1": float(act.p1)}
        return cls(arrays | numbers, None if layer.weight is None else on(device, layer.weight.T))
