"""What is measured of models and samples on a GPU, by a pretended one, is what is measured on the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import moved, pretended_gpu
from real_gpu import interpreted
from test_default_device import BOX, LINE, MEASURED, QUIET, Model, X, images, narrow, pairs_of, seeded, smooth, wide
from torch import Tensor, nn

import lmn

from models import LooksAtValues

pytestmark = interpreted


def test_devices_can_not_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch):
        x = torch.ones(3, device="cuda")
        assert x.device.type == "cuda"
        for mixed in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(3)]), lambda: x @ torch.ones(3)):
            with pytest.raises(RuntimeError, match="found cuda:0 and cpu"):
                mixed()
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        assert (x + torch.ones(3, device="cuda")).cpu().numpy().tolist() == [2, 2, 2]


def whole() -> nn.Module:
    """Can't be traced."""
    return nn.Sequential(nn.Linear(2, 4), LooksAtValues())


MODELS: dict[Model, tuple[str, ...]] = {
    narrow: tuple(MEASURED), wide: tuple(MEASURED),
    images: tuple(name for name in MEASURED if name != "patterns of a line"),  # where one is within rounding of another
    smooth: ("connectivity", "Jacobians", "singular values", "alignment"),
    whole: ("connectivity", "Jacobians", "singular values", "alignment"),
}  # fmt: skip


def close(found: Any, expected: Any) -> None:
    for one, other in pairs_of(found, expected):
        on_cpu = one.cpu() if isinstance(one, Tensor) else one
        np.testing.assert_allclose(np.asarray(on_cpu), np.asarray(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("what", "build"), [(what, build) for build, names in MODELS.items() for what in names])
def test_of_samples_and_grids(what: str, build: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MEASURED[what](seeded(build), "auto")
    with pretended_gpu(monkeypatch):
        monkeypatch.setattr("test_default_device.X", X.to("cuda"))
        found = MEASURED[what](moved(seeded(build)), "auto")
        close(found, expected)


@pytest.mark.parametrize("grid", [X, BOX, LINE], ids=["samples", "box", "line"])
@pytest.mark.parametrize("build", MODELS)
def test_all_at_once(build: Model, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lmn.measure(seeded(build), grid, max_points=9, **QUIET)
    with pretended_gpu(monkeypatch):
        found = lmn.measure(moved(seeded(build)), grid.to("cuda") if isinstance(grid, Tensor) else grid, max_points=9, **QUIET)
    numbers, expected_numbers = found.to_dict(), expected.to_dict()
    assert numbers.keys() == expected_numbers.keys()
    assert len(found.notes) == len(expected.notes)
    for name in numbers.keys() - {"elapsed", "n_redone"}:
        assert numbers[name] == pytest.approx(expected_numbers[name], rel=1e-3), name
    if build in (narrow, wide, smooth):
        assert (found.backend, expected.backend) == ("triton", "cpp")


@pytest.mark.parametrize("build", [narrow, images])
def test_exact_regions(build: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lmn.regions(seeded(build), BOX, **QUIET)
    with pretended_gpu(monkeypatch):
        found = lmn.regions(moved(seeded(build)), BOX, **QUIET)
        close((found.volumes, found.linear_maps.A), (expected.volumes, expected.linear_maps.A))
        assert (found.count, found.n_linear_maps) == (expected.count, expected.n_linear_maps)
        assert found.locate(expected.points).tolist() == list(range(found.count))
