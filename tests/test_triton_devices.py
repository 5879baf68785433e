"""What prepares the Triton kernels' launches, on a device that is not the CPU.

Tensors of the device "meta" have no values: they refuse to be added to what is on the CPU, and what asks for a value, which
would wait for a GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from real_gpu import interpreted, launches_elsewhere
from test_jacobians import chain_of
from test_local_complexity import mlp
from test_triton import problem_of
from torch import Tensor, nn

import lmn
from lmn.kernels.connectivity import triton_gpu as connectivity
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.local_complexity import triton_gpu as local_complexity
from lmn.kernels.patterns import triton_gpu as patterns

GPU = torch.device("meta")
WIDTHS = [(5, 20, 17, 3), (5, 200, 70, 3)]  # one kernel, and a layer at a time


@interpreted
def test_launches_elsewhere_come_to_what_they_come_to_here() -> None:
    """As on a GPU (real_gpu.py): by copies of their arrays, what is written into which is copied back."""
    launched = list[int]()

    def elsewhere(value: Tensor) -> Tensor:
        launched.append(value.data_ptr())
        return value.clone()

    for widths in WIDTHS:
        model, x = mlp(widths).float(), torch.randn(9, widths[0])
        for measure in (lmn.connectivity, lmn.activation_patterns, lmn.jacobians):
            expected = measure(model, x, backend="triton", progress=False)
            del launched[:]
            with launches_elsewhere(elsewhere):
                found = measure(model, x, backend="triton", progress=False)
            assert launched
            if isinstance(found, lmn.ActivationPatterns):
                found, expected = torch.from_numpy(found.words.view(np.int64)), torch.from_numpy(expected.words.view(np.int64))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_waiting_and_mixing_are_noticed() -> None:
    x = torch.ones(3, 3, device=GPU)
    for waits in (lambda: float(x.sum()), lambda: bool((x > 0).all()), x.nonzero, x.cpu, x.numpy):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
            waits()
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)  # not so in products and indices


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_connectivity(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(widths, "gelu", 9)
    monkeypatch.setattr(connectivity, "_redo", lambda _problem, _out: 0)  # which waits, once
    for dtype in (torch.float32, torch.float64):
        connectivity.connectivity(problem, torch.empty(9, 9, device=GPU, dtype=dtype), lambda _: None)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_jacobians(widths: tuple[int, ...]) -> None:
    maps = TritonMaps(chain_of("gelu", widths)[0], GPU)
    x = torch.empty(9, widths[0], device=GPU)
    for made in (maps.jacobians(x), maps.isometric(x), *([maps.grams(x)] if maps.has_grams(x.dtype) else [])):
        assert made.device == GPU
        assert len(made) == 9


class Captured(Exception):  # noqa: N818 - no error
    """A problem, instead of its solution."""


def captured(module: Any, name: str, monkeypatch: pytest.MonkeyPatch, measure: Callable[[], object]) -> Any:
    """The problem that a backend is given."""

    def caught(problem: Any) -> None:
        raise Captured(problem)

    monkeypatch.setattr(module, name, caught)
    with pytest.raises(Captured) as raised:
        measure()
    return raised.value.args[0]


def network(widths: tuple[int, ...]) -> nn.Sequential:
    return mlp(widths).float()


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_local_complexity(widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = captured(local_complexity, "local_complexity", monkeypatch, lambda: lmn.local_complexity(
        network(widths), torch.randn(9, widths[0]), n_directions=3, backend="triton", progress=False
    ))  # fmt: skip
    neighbourhoods = local_complexity._neighbourhoods(replace(problem, device=GPU), problem.chain)
    counts = neighbourhoods.counts(torch.empty(9, widths[0], device=GPU))
    assert (counts.device, counts.shape) == (GPU, (9, 2))


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("on_grid", [False, True])
@pytest.mark.parametrize("kind", [*map(str, WIDTHS), "program"])
def test_patterns(kind: str, on_grid: bool, edges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "program":
        model: nn.Module = nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.MaxPool1d(3), nn.Flatten())
    else:
        model = network(WIDTHS[[str(widths) for widths in WIDTHS].index(kind)])
    grid = lmn.box(-1, 1, [3] * 5) if on_grid else torch.randn(9, 5)
    problem = captured(patterns, "patterns", monkeypatch, lambda: lmn.activation_patterns(
        model, grid, backend="triton", progress=False
    ))  # fmt: skip
    problem = replace(problem, device=GPU, edges_apart=edges, samples=lambda i: torch.empty(len(i), 5, device=GPU))
    words, hashes = patterns._by_points(problem).of(np.arange(2, 9))
    assert (words.device, hashes.device) == (GPU, GPU)
    assert (len(words), hashes.shape) == (7, (7, 2))
