"""Where tensors are made elsewhere by default (``torch.set_default_device``), what is measured is the same.

The device "meta" has no values: whatever is made there by accident can't be used with what the model and the samples have.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from piecewise_models import ResidualConvNet
from torch import nn

import lmn

QUIET: dict[str, Any] = {"progress": False}
Model = Callable[[], nn.Module]


def seeded(build: Model) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 7), nn.PReLU(), nn.Linear(7, 3))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 70), nn.ReLU(), nn.Linear(70, 66), nn.Hardtanh(), nn.Linear(66, 3))


def images() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)), ResidualConvNet())


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


X = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
BOX, LINE = lmn.box(-1, 1, [9, 9]), lmn.line([-1.0, 0.0], [1.0, 1.0], 40)


def patterns(model: nn.Module, grid: Any, backend: str) -> Any:
    found = lmn.activation_patterns(model, grid, ids=True, backend=backend, **QUIET)
    return found.counts, found.ids


MEASURED: dict[str, Callable[[nn.Module, str], Any]] = {
    "connectivity": lambda model, backend: lmn.connectivity(model, X, m=5, backend=backend, **QUIET),
    "patterns": lambda model, backend: patterns(model, X, backend),
    "patterns of a box": lambda model, backend: patterns(model, BOX, backend),
    "patterns of a line": lambda model, backend: patterns(model, LINE, backend),
    "Jacobians": lambda model, backend: lmn.jacobians(model, X, offsets=True, backend=backend, **QUIET),
    "singular values": lambda model, backend: lmn.jacobians(model, BOX, reduce="singular_values", backend=backend, **QUIET),
    "linear maps": lambda model, backend: lmn.jacobians(model, LINE, reduce="effective_linear_maps", backend=backend, **QUIET),
    "local complexity": lambda model, backend: lmn.local_complexity(model, X, n_directions=2, backend=backend, **QUIET).counts,
    "alignment": lambda model, backend: lmn.jacobian_alignment(model, X, backend=backend, **QUIET),
}
OF_PIECEWISE_LINEAR = ("patterns", "patterns of a box", "patterns of a line", "linear maps", "local complexity")
BACKENDS: dict[Model, tuple[str, ...]] = dict.fromkeys((narrow, wide, smooth), ("auto", "torch", "triton", "cpp"))
CASES = [
    (what, build, backend)
    for build, backends in (BACKENDS | {images: ("auto", "torch")}).items()
    for what in MEASURED
    for backend in (*backends, *(("numba",) if what == "connectivity" and build is not images else ()))
    if not (build is smooth and what in OF_PIECEWISE_LINEAR) and not (backend == "torch" and what.startswith("patterns"))
]


def pairs_of(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Of one result each, or of several."""
    return zip(*((each if isinstance(each, tuple) else (each,)) for each in (a, b)), strict=True)


def same(a: Any, b: Any) -> None:
    for one, other in pairs_of(a, b):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("what", "build", "backend"), CASES)
def test_of_samples_and_grids(what: str, build: Model, backend: str) -> None:
    expected, model = MEASURED[what](seeded(build), backend), seeded(build)
    with torch.device("meta"):
        found = MEASURED[what](model, backend)
    same(found, expected)


@pytest.mark.parametrize("build", [narrow, images])
def test_exact_regions(build: Model) -> None:
    expected, model = lmn.regions(seeded(build), BOX, **QUIET), seeded(build)
    with torch.device("meta"):
        grid = lmn.box([-1, -1], [1, 1], [9, 9])
        regions = lmn.regions(model, grid, **QUIET)
        found = regions.count, regions.volumes, regions.linear_maps.A, regions.n_linear_maps
    same(found, (expected.count, expected.volumes, expected.linear_maps.A, expected.n_linear_maps))


def test_all_at_once() -> None:
    model = seeded(narrow)
    expected = lmn.measure(model, lmn.plane(*X[:3], 9), **QUIET).to_dict()
    with torch.device("meta"):
        found = lmn.measure(model, lmn.plane(*X[:3], 9), **QUIET).to_dict()
    assert found | {"elapsed": 0} == expected | {"elapsed": 0}


def test_a_callback() -> None:
    model = seeded(narrow)
    with torch.device("meta"), lmn.Callback(X, every=1, asynchronous=True, strict=True) as callback:
        for step in range(3):
            callback(model, step)
    assert len({row["lmn"] for row in callback.rows}) == 1
