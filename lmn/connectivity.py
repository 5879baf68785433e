"""Linear connectivity: validate, plan, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lmn.backends import check_name, choose
from lmn.errors import LmnError, whole_number
from lmn.grid import RegularGrid, Samples, as_grid
from lmn.kernels.activations import Activation, activation
from lmn.kernels.connectivity.pairs import Pairs
from lmn.kernels.connectivity.problem import Chain, Layer, Problem
from lmn.lowering import Affine, ChainStep, NotAChain
from lmn.network import Network, Select, batch_size, unwrapped

_PANEL_BYTES = 1 << 24  # of what is kept of samples besides the matrix
_SMALLEST_PANEL, _LARGEST_PANEL = 16, 512  # samples
_CHAIN_BATCH = 256  # samples that are run through a chain at a time
_WIDEST_DIAGONAL = 2048  # values: a scaling between two activations is given to the kernels as a matrix


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


class Subject:
    """A network on a grid, open for measuring: a context in which the model is in evaluation mode, and left as it was."""

    def __init__(
        self, model: nn.Module, grid: Samples | RegularGrid, tap: str | None = None, select: Select | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LmnError(f"the model is {type(model).__name__}; give a torch.nn.Module.")
        self.grid = grid
        like = _like(unwrapped(model))
        spread = torch.linspace(0, grid.n_points - 1, min(8, grid.n_points), dtype=torch.float64).long()
        example = grid.at(spread, like)
        if tap is None and not example.is_floating_point():
            raise LmnError(
                f"the samples are of dtype {example.dtype} and have no points between them; name the submodule whose output is "
                "to be interpolated, e.g. tap='embedding'."
            )
        if tap is None and like is not None and example.dtype != like.dtype:
            raise LmnError(
                f"the samples are {example.dtype} and the model is {like.dtype}; "
                f"pass samples.to({like.dtype}), or a model of the samples' dtype."
            )
        if like is not None and example.device != like.device:
            raise LmnError(f"the samples are on {example.device} and the model is on {like.device}; move one of them.")
        self._like = like
        self.network = Network(model, example, tap, select)

    def __enter__(self) -> Subject:
        self._reading = self.network.reading()
        self._reading.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._reading.__exit__(*exception)

    def samples(self, indices: Tensor) -> Tensor:
        """The activations at the tap of the points of the given indices, float32 or float64."""
        h = torch.cat([self.network.samples(self.grid.at(part, self._like)) for part in indices.split(1024)])
        if not h.is_floating_point():
            raise LmnError(f"the tap's output is of dtype {h.dtype}; tap a submodule with a real-valued output.")
        if not bool(torch.isfinite(h).all()):
            raise LmnError("the activations at the tap are not finite (NaN or infinity); is the training diverged?")
        return h if h.dtype == torch.float64 else h.float()


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
    m = whole_number(m, "m, the number of points a segment,", 3)
    threads = torch.get_num_threads() if threads is None else whole_number(threads, "threads", 1)
    indices = torch.arange(subject.grid.n_points) if indices is None else indices
    n, first_problem = len(indices), None
    pieces = indices.split(_panel(subject, indices, m))
    redone = 0
    with tqdm(
        total=len(Pairs(n)), desc="connectivity", unit="pair", unit_scale=True, delay=1, leave=False, disable=not progress
    ) as bar:
        for a, rows in enumerate(pieces):
            for b, columns in enumerate(pieces[a:], a):
                h = subject.samples(rows if a == b else torch.cat([rows, columns]))
                problem, found_notes = plan(subject.network, h, m, threads, None if a == b else len(rows))
                if first_problem is None:
                    first_problem, notes = problem, found_notes
                    out, chosen = _empty(n, dtype or h.dtype, h.device), choose("connectivity", backend, problem)
                    run: Callable[..., int] = chosen.load("connectivity")
                part = out if len(pieces) == 1 else out.new_empty(len(h), len(h))
                redone += run(problem, part, bar.update)
                if len(pieces) > 1:
                    _place(part, out, a * len(pieces[0]), b * len(pieces[0]), len(rows))
    assert first_problem is not None
    if not bool(torch.isfinite(out.sum())):
        raise LmnError(
            "the model's output is not finite (NaN or infinity) on a segment between two samples, though it is at the samples."
        )
    path = "chain" if chosen.takes_chains else subject.network.path
    computed_in = torch.float64 if chosen.name == "reference" else first_problem.samples.dtype
    return Computed(out, chosen.name, path, str(computed_in).removeprefix("torch."), redone, notes)


def _panel(subject: Subject, indices: Tensor, m: int) -> int:
    """How many samples to hold what they need of at a time: all of them, or parts of which every pair is done in turn."""
    if len(indices) <= _SMALLEST_PANEL:
        return len(indices)
    problem, _ = plan(subject.network, subject.samples(indices[:2]), m, 1)
    values = problem.samples[0].numel() + problem.y.shape[1]
    values += len(problem.chain.z) + problem.y.shape[1] if problem.chain is not None else values
    bytes_a_sample = 8 * values
    if len(indices) * bytes_a_sample <= _PANEL_BYTES:
        return len(indices)
    return max(_SMALLEST_PANEL, min(_LARGEST_PANEL, _PANEL_BYTES // (2 * bytes_a_sample)))


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


def plan(network: Network, h: Tensor, m: int, threads: int, n_rows: int | None = None) -> tuple[Problem, tuple[str, ...]]:
    """The problem for the kernels, and what to tell the reader."""
    notes: list[str] = []
    chain, why = None, ""
    steps = network.chain() if h.device.type == "cpu" else NotAChain(f"the samples are on {h.device.type}")
    assembled = steps if isinstance(steps, NotAChain) else _assembled(steps, h.flatten(1))
    if isinstance(assembled, Chain) and not _agrees(assembled, network, h):
        assembled = NotAChain("as one it gives other outputs than the model")
    if isinstance(assembled, NotAChain):
        why = assembled.why
    else:
        chain = assembled
    if network.path == "whole model":
        notes.append(f"the model was run whole, with the tap's output substituted: it could not be traced ({network.why})")
    double = not network.single_inside
    if chain is not None:
        y = torch.from_numpy(chain.outputs).T
    else:
        dtype = torch.float64 if double else h.dtype
        y = torch.cat([network.tail(part.to(dtype, copy=True)).double() for part in h.split(batch_size(network.widest))])
        if not double:
            notes.append("the model computes in float32 or less whatever it is given: nearly equal outputs keep that error")
    if not bool(torch.isfinite(y).all()):
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    problem = Problem(h, network.tail, y, m, chain, why, network.widest, double, threads, batch_size(network.widest), n_rows)
    return problem, tuple(notes)


def _assembled(steps: list[ChainStep], h: Tensor) -> Chain | NotAChain:
    """The chain for the kernels: the first affine maps applied to the samples, exactly one between two activations.

    Parameters
    ----------
    h : Tensor of shape (n_points, n_in)
    """
    layers: list[tuple[int, Activation, np.ndarray[Any, Any] | None]] = []  # units, activation, weight after it
    taken: dict[int, int] = {}  # before which step a layer's pre-activations stand → which layer
    start: tuple[int, Activation] | None = None  # the open layer: units, activation
    affine: Affine | None = None  # and the affine map after it, so far
    width = h.shape[1]

    def close() -> None:
        assert start is not None
        layers.append((*start, affine.dense.numpy() if affine is not None else None))

    for index, step in enumerate(steps):
        if isinstance(step, Activation):
            if start is not None:
                affine = affine or Affine(torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
                if affine.diagonal and width > _WIDEST_DIAGONAL:
                    return NotAChain(f"a scaling of {width} values stands between two activations")
                close()
            start, affine = (width, step), None
            taken[index] = len(layers)
            continue
        if start is not None:
            if affine is not None and _composition_costs_more(affine, step):
                close()
                start, affine = (width, activation("identity")), step
                taken[index] = len(layers)
            else:
                affine = step if affine is None else affine.then(step)
        width = len(step.bias)
    if start is not None:
        if affine is None and not start[1].piecewise_linear:
            return NotAChain(f"it ends in {start[1].name}, whose saturated values only torch's own function has to all digits")
        close()
    return _filled(steps, h, layers, taken, width)


def _filled(
    steps: list[ChainStep],
    h: Tensor,
    layers: list[tuple[int, Activation, np.ndarray[Any, Any] | None]],
    taken: dict[int, int],
    n_out: int,
) -> Chain:
    """Run the samples through the steps, some at a time, and keep what the layers take of them."""
    stops = np.cumsum([units for units, _, _ in layers], dtype=np.int64)
    starts = stops - [units for units, _, _ in layers]
    z, y = np.empty((int(stops[-1]) if layers else 0, len(h))), np.empty((n_out, len(h)))
    for first in range(0, len(h), _CHAIN_BATCH):
        batch = slice(first, first + _CHAIN_BATCH)
        x = h[batch].double()
        for index, step in enumerate(steps):
            if index in taken:
                z[starts[taken[index]] : stops[taken[index]], batch] = x.numpy().T
            x = step(x) if isinstance(step, Affine) else step.function(x)
        y[:, batch] = x.numpy().T
    scale = _unit_scale(y)
    y *= scale[:, None]
    if layers:
        units, last, weight = layers[-1]
        if weight is not None:
            layers[-1] = (units, last, weight * scale[:, None])
        else:
            core, slope = last.by_unit(units)
            layers[-1] = (units, replace(last, scale=core * scale, slope=slope * scale), None)
    pieces = zip(starts, stops, layers, strict=True)
    return Chain(tuple(Layer(z[a:b], act, weight) for a, b, (_, act, weight) in pieces), z, y, scale)


def _unit_scale(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Powers of two that bring outputs, shape (n_out, n_points), to sizes about 1, so that float32 holds their squares."""
    size = np.abs(y - y[:, :1]).max(axis=1)
    usable = (size > 0) & np.isfinite(size)
    scale: np.ndarray[Any, Any] = np.exp2(-np.round(np.log2(size, where=usable, out=np.zeros_like(size))))
    return scale


def _agrees(chain: Chain, network: Network, h: Tensor) -> bool:
    """Whether a chain gives the model's outputs at some samples: what it was read from may do more than was read."""
    some = torch.linspace(0, len(h) - 1, min(8, len(h)), dtype=torch.float64).long()
    y, expected = torch.from_numpy(chain.outputs).T[some], network.tail(h[some].clone()).double()
    size = expected.abs().amax()
    return bool(torch.isclose(y, expected, rtol=1e-3, atol=1e-3 * float(size)).all()) or not bool(
        torch.isfinite(expected).all()
    )


def _composition_costs_more(first: Affine, second: Affine) -> bool:
    """Whether the product of two maps has more entries than the two together: a bottleneck."""
    if first.diagonal or second.diagonal:
        return False
    return len(second.weight) * first.weight.shape[1] > first.weight.numel() + second.weight.numel()


def _like(model: nn.Module) -> Tensor | None:
    """A parameter or buffer that shows the model's device and dtype."""
    tensors = (tensor for group in (model.parameters(), model.buffers()) for tensor in group if tensor.is_floating_point())
    return next(tensors, None)
