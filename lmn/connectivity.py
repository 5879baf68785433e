"""Linear connectivity: validate, plan, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmn.backends import check_name, choose
from lmn.chain import ChainPlan, chain_plan
from lmn.errors import LmnError, thread_count, whole_number
from lmn.grid import as_grid
from lmn.kernels.connectivity.pairs import Pairs
from lmn.kernels.connectivity.problem import Problem
from lmn.lowering import NotAChain
from lmn.memory import working_bytes
from lmn.network import Network
from lmn.progress import progress_bar
from lmn.selection import Select
from lmn.subject import Subject, spread

_MOST_POINTS = 10_001  # a segment: float32 sums over more lose what they add
_PANEL_BYTES = 1 << 24  # of what is kept of samples besides the matrix
_SMALLEST_PANEL, _LARGEST_PANEL = 16, 512  # samples, these for a CPU's caches


def connectivity(
    model: nn.Module,
    grid: Any,
    *,
    tap: str | None = None,
    select: Select | None = None,
    backend: str = "auto",
    m: int = 21,
    threads: int | None = None,
    progress: bool = True,
) -> Tensor:
    """The linear connectivity matrix of a model over the points of a grid.

    With h_i the activation of sample i at the tap and f the tail (tap to output), L_ij is the mean over output dimensions k of
    the squared Pearson correlation r²(y_k(λ), λ) of y(λ) = f(h_i + λ (h_j - h_i)) over m uniform λ in [0, 1]; L_ii = 1
    (Liu, Zhong, Tegmark 2023, arXiv 2310.05918, eq. 1-2). An output that is constant along a segment is an affine function of
    λ, and its r², 0/0 in the formula, is 1.

    Parameters
    ----------
    model, grid, tap, select, backend, m, threads, progress
        As for :func:`lmn.measure`. All points are taken: the cost and the matrix grow with n_points².

    Returns
    -------
    Tensor of shape (n_points, n_points), float32 or float64, on the samples' device
        Symmetric, with entries in [0, 1]; float64 where the samples at the tap are.

    Raises
    ------
    LmnError
        Input that can't be measured; the message says what to do.
    """
    with Subject(model, as_grid(grid), tap=tap, select=select) as subject:
        return compute(subject, None, backend=backend, m=m, threads=threads, progress=progress).matrix


@dataclass(frozen=True, eq=False)
class Computed:
    """A connectivity matrix and how it came about."""

    matrix: Tensor
    backend: str
    path: str
    dtype: str
    n_redone: int
    notes: tuple[str, ...]


def compute(
    subject: Subject,
    indices: Tensor | None,
    *,
    backend: str,
    m: int,
    threads: int | None,
    progress: bool,
    dtype: torch.dtype | None = None,
) -> Computed:
    """Linear connectivity over the points of the given indices, as a matrix of the given dtype (default: the samples')."""
    check_name("connectivity", backend)
    m = check_segments(m)
    threads = thread_count(threads)
    indices = torch.arange(subject.grid.n_points, device="cpu") if indices is None else indices
    n, chosen, out = len(indices), None, None
    example = subject.samples(indices[spread(n)])
    planned = chain_plan(subject.network, example)
    pieces = indices.split(_panel(subject.network, planned, example, n))
    redone = 0
    with progress_bar(len(Pairs(n)), "connectivity", "pair", progress) as bar:
        for a, rows in enumerate(pieces):
            for b, columns in enumerate(pieces[a:], a):
                h = subject.samples(rows if a == b else torch.cat([rows, columns]))
                problem, found_notes = plan(subject.network, planned, h, m, threads, None if a == b else len(rows))
                if chosen is None or out is None:
                    notes, computed_in = found_notes, h.dtype
                    out, chosen = _empty(n, dtype or h.dtype, h.device), choose("connectivity", backend, problem)
                    run: Callable[..., int] = chosen.load("connectivity")
                part = out if len(pieces) == 1 else out.new_empty(len(h), len(h))
                redone += run(problem, part, bar.update)
                if len(pieces) > 1:
                    _place(part, out, a * len(pieces[0]), b * len(pieces[0]), len(rows))
                del problem, h, part  # before the next ones are made
    assert chosen is not None
    assert out is not None
    if not bool(torch.isfinite(out.sum())):
        raise LmnError(
            "the model's output is not finite (NaN or infinity) on a segment between two samples, though it is at the samples."
        )
    path = "chain" if chosen.takes_chains else subject.network.path
    computed_in = torch.float64 if chosen.name == "reference" else computed_in
    return Computed(out, chosen.name, path, str(computed_in).removeprefix("torch."), redone, notes)


def check_segments(m: Any) -> int:
    return whole_number(m, "m, the number of points a segment,", 3, _MOST_POINTS)


def _panel(network: Network, planned: ChainPlan | NotAChain, example: Tensor, n: int) -> int:
    """How many samples to hold what they need of at a time: all of them, or parts of which every pair is done in turn."""
    if isinstance(planned, ChainPlan):
        values = example[0].numel() + planned.n_units + 2 * planned.n_out
    else:
        values = 2 * (example[0].numel() + network.tail(example[:1].clone()).shape[1])
    allowed = working_bytes(example.device, _PANEL_BYTES)
    if n <= _SMALLEST_PANEL or n * 8 * values <= allowed:
        return n
    largest = _LARGEST_PANEL if example.device.type == "cpu" else n
    return max(_SMALLEST_PANEL, min(largest, allowed // (2 * 8 * values)))


def _empty(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.empty(n, n, dtype=dtype, device=device)
    except RuntimeError as error:
        raise LmnError(f"the matrix of {n} x {n} points does not fit into memory; take fewer points.") from error


def _place(part: Tensor, out: Tensor, row: int, column: int, n_rows: int) -> None:
    """Put what was found of a pair of panels where it belongs; of one with itself, all of it."""
    if row == column:
        out[row : row + n_rows, row : row + n_rows] = part
        return
    block = part[:n_rows, n_rows:]
    out[row : row + n_rows, column : column + block.shape[1]] = block
    out[column : column + block.shape[1], row : row + n_rows] = block.T


def plan(
    network: Network, planned: ChainPlan | NotAChain, h: Tensor, m: int, threads: int, n_rows: int | None = None
) -> tuple[Problem, tuple[str, ...]]:
    """The problem for the kernels, and what to tell the reader."""
    notes: list[str] = []
    chain, why = (None, planned.why) if isinstance(planned, NotAChain) else (planned.over(h.flatten(1)), "")
    if network.path == "whole model":
        notes.append(f"the model was run whole, with the tap's output substituted: it could not be traced ({network.why})")
    double = not network.single_inside
    if chain is not None:
        y = torch.from_numpy(chain.outputs).T.to(h.device)
    else:
        dtype = torch.float64 if double else h.dtype
        y = torch.cat([network.tail(part.to(dtype, copy=True)).double() for part in h.split(network.batch)])
        if not double:
            notes.append("the model computes in float32 or less whatever it is given: nearly equal outputs keep that error")
    if not bool(torch.isfinite(y).all()):
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    problem = Problem(h, network.tail, y, m, chain, why, network.widest, double, threads, network.batch, n_rows)
    return problem, tuple(notes)
