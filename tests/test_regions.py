"""lmn.regions: exact regions through the public API, against an independent program and against the networks themselves."""

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lmn

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "regions.json").read_text())
BOXES = [(case, box) for case in EXPECTED for box in case["boxes"]]


def published(name: str) -> nn.Sequential:
    data = np.load(DATA / f"regions_{name}.npz")
    weights = [(data[f"W{i}"].astype(float), data[f"b{i}"].astype(float)) for i in range(len(data.files) // 2)]
    model = mlp((weights[0][0].shape[1], *(len(b) for _, b in weights)))
    for layer, (w, b) in zip(model[::2], weights, strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(w), torch.from_numpy(b)
    return model


def mlp(widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def outputs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(("case", "box"), BOXES, ids=[f"{case['name']} {box}" for case, box in BOXES])
def test_what_an_independent_program_found(case: dict, box: str) -> None:
    expected, (low, high) = case["boxes"][box], map(float, box.split(","))
    found = lmn.regions(published(case["name"]), lmn.box([low] * 2, [high] * 2, 16))
    assert found.exact
    assert found.count == expected["activation_regions"]
    assert found.volumes.sum() == pytest.approx((high - low) ** 2, rel=1e-12)
    for name, n in expected.items():
        if name.startswith("observed"):  # distinct patterns on an image of cell centres, or with both ends
            _, size, convention = name.split("_")
            assert len(np.unique(found.labels((int(size), int(size)), ends=convention == "edge"))) == n
    if "area_weighted_mean_gradient_norm" in expected:
        norms = np.linalg.norm(found.linear_maps.A[:, 0], axis=1)
        assert np.average(norms, weights=found.volumes) == pytest.approx(expected["area_weighted_mean_gradient_norm"], rel=1e-9)


@pytest.mark.parametrize("case", [case for case in EXPECTED if "line" in case], ids=lambda case: case["name"])
def test_regions_on_a_line(case: dict) -> None:
    line = case["line"]
    found = lmn.regions(published(case["name"]), lmn.line(line["start"], line["stop"], 2))
    assert found.count == line["activation_regions"]
    assert found.volumes.sum() == pytest.approx(np.linalg.norm(np.subtract(line["stop"], line["start"])), rel=1e-12)


GRIDS = {
    "line": lambda n_in: lmn.line(torch.linspace(-2, 1, n_in), torch.linspace(3, 1, n_in), 5),
    "plane": lambda n_in: lmn.plane(torch.zeros(n_in), torch.eye(n_in)[0] * 3, torch.arange(n_in) + 1.0, 5),
    "box": lambda n_in: lmn.box([-1.0, 0.5, -3.0][:n_in], [2.0, 1.5, -1.0][:n_in], 5),
}


@pytest.mark.parametrize(
    ("kind", "n_in"), [("line", 1), ("line", 6), ("plane", 2), ("plane", 6), ("box", 1), ("box", 2), ("box", 3)]
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardsigmoid, nn.Softshrink])
def test_regions_tile_the_domain_and_each_map_is_the_network_there(kind: str, n_in: int, activation: type[nn.Module]) -> None:
    torch.manual_seed(n_in)
    model = mlp((n_in, 9, 8, 3), activation)
    for layer in model[::2]:
        layer.weight.data *= 5  # past all breakpoints
    grid = GRIDS[kind](n_in)
    found = lmn.regions(model, grid)
    assert found.count > 3
    axes = grid.axes.flatten(1)
    assert found.volumes.sum() == pytest.approx(float(torch.linalg.det(axes @ axes.T).sqrt()), rel=1e-10)
    inside = np.concatenate([0.5 * (found.points[r] + found.vertices[r]) for r in range(found.count)])
    region = np.repeat(np.arange(found.count), [len(v) for v in found.vertices])
    a, c = found.linear_maps
    mapped = np.einsum("pka,pa->pk", a[region], inside) + c[region]
    np.testing.assert_allclose(outputs(model, found.inputs(inside)), mapped, atol=1e-9)
    np.testing.assert_array_equal(found.locate(found.inputs(inside)), region)


@pytest.mark.parametrize("counts", [(301,), (7, 12), (53, 37), (1, 90), (40, 1), (5, 9, 21)], ids=str)
def test_labels_are_the_regions_of_the_grids_points(counts: tuple[int, ...]) -> None:
    n_axes = len(counts)
    model = mlp((n_axes, 12, 12, 2))
    grid = lmn.box([-1.0] * n_axes, [2.0] * n_axes, counts)
    found = lmn.regions(model, grid)
    points = grid.at(torch.arange(grid.n_points), torch.zeros(0, dtype=torch.float64))
    labels = found.labels(counts, ends=True)
    np.testing.assert_array_equal(labels.ravel(), found.locate(points))
    for shape, dtype in (((3, 1), np.float32), ((), np.float64), ((5,), np.int16)):
        values = np.random.default_rng(0).integers(0, 1000, (found.count, *shape)).astype(dtype)
        np.testing.assert_array_equal(found._at_points(values, counts), values[labels])


def test_labels_of_a_plane() -> None:
    torch.manual_seed(0)
    grid = lmn.plane(torch.randn(5), torch.randn(5), torch.randn(5), (7, 12))
    found = lmn.regions(mlp((5, 12, 12, 2)), grid)
    points = grid.at(torch.arange(grid.n_points), torch.zeros(0, dtype=torch.float64))
    np.testing.assert_array_equal(found.labels((7, 12), ends=True).ravel(), found.locate(points))


def test_points_outside_are_in_no_region() -> None:
    found = lmn.regions(mlp((3, 8, 2)), lmn.plane([0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0], 3))
    got = found.locate([[0.5, 0.5, 0.0], [1.5, 0.5, 0.0], [0.5, 0.5, 0.1]])
    assert (got >= 0).tolist() == [True, False, False]


def test_neighbours_share_a_facet() -> None:
    # Two lines cross in the square: four regions, each with two neighbours.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    model[0].weight.data = torch.tensor([[1.0, 0.2], [-0.3, 1.0]], dtype=torch.float64)
    found = lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))
    assert found.count == 4
    assert np.bincount(found.neighbours.ravel()).tolist() == [2, 2, 2, 2]


def test_dead_units_cut_activation_regions_and_no_linear_ones() -> None:
    model = mlp((2, 6, 5, 1))
    model[-1].weight.data.zero_()
    found = lmn.regions(model, lmn.box([-2, -2], [2, 2], 2))
    assert found.count > 10
    assert (found.n_linear_regions, found.n_linear_maps) == (1, 1)


def test_the_same_map_in_places_apart_is_two_linear_regions() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()  # relu(x - 1) + relu(-x - 1): 0 between
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([-1.0, -1.0]).double()
    model[2].weight.data, model[2].bias.data = torch.ones(1, 2).double(), torch.zeros(1).double()
    folded = nn.Sequential(model, nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    folded[1].weight.data.fill_(-1.0), folded[1].bias.data.fill_(0.5)  # relu(1/2 - y): 0 far out on both sides
    found = lmn.regions(folded, lmn.box([-3.0], [3.0], 2))
    assert found.count == 5
    assert found.n_linear_regions == 5
    assert found.n_linear_maps == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_weights_are_taken_as_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = mlp((2, 16, 16, 1)).float()
    grid = lmn.box([-2, -2], [2, 2], 8)
    assert lmn.regions(model.to(dtype), grid).count == lmn.regions(model.double(), grid).count


def test_a_users_own_activation_says_where_its_pieces_meet() -> None:
    class Tent(nn.Module):
        breakpoints = (-1.0, 0.0, 1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (1 - x.abs()).clamp(min=0)

    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(2, 9), Tent(), nn.Linear(9, 7), Tent(), nn.Linear(7, 2)).double()
    found = lmn.regions(model, lmn.box([-2, -2], [2, 2], 2))
    a, c = found.linear_maps
    mapped = np.einsum("rka,ra->rk", a, found.points) + c
    np.testing.assert_allclose(mapped, outputs(model, found.points), atol=1e-10)
    assert found.count > 30


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("message", "model", "options"),
    [
        (r"'1' \(silu\) is not piecewise linear.*lmn.measure", mlp((2, 8, 1), nn.SiLU), {}),
        (r"more than max_regions = 20 .*\d+ were found", mlp((2, 40, 40, 1)), {"max_regions": 20}),
        (r"max_regions must be at least 1", mlp((2, 8, 1)), {"max_regions": 0}),
        (r"there is no backend 'numba' for regions", mlp((2, 8, 1)), {"backend": "numba"}),
    ],
)
def test_what_can_not_be_done_is_said(message: str, model: nn.Module, options: dict) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        lmn.regions(model, lmn.box([-3, -3], [3, 3], 2), **options)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = mlp((2, 8, 1))
    model[2].weight.data[0, 3] = torch.nan
    with pytest.raises(lmn.LmnError, match="not finite"):
        lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))


@pytest.mark.parametrize("what", ["exact", "traced", "patterns"])
def test_ctrl_c_is_heard(what: str) -> None:
    torch.manual_seed(0)
    model = mlp((2, *[256] * 6, 1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    box = lmn.box([-9, -9], [9, 9], 2)
    run = {
        "exact": lambda: lmn.regions(model, box, backend="cpp"),
        "traced": lambda: lmn.regions(model, box, backend="torch"),
        "patterns": lambda: lmn.activation_patterns(model, lmn.box([-9, -9], [9, 9], 1 << 15), progress=False),
    }[what]
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - started < 20  # each takes minutes
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())


def test_ids_of_vertices_are_the_same_each_time() -> None:
    model, grid = mlp((2, 12, 12, 2)), lmn.box([-1.0, -1.0], [1.0, 1.0], 5)
    one, two = (lmn.regions(model, grid)._geometry for _ in range(2))
    np.testing.assert_array_equal(one.vertex_ids, two.vertex_ids)
    np.testing.assert_array_equal(one.facet_ids, two.facet_ids)


def test_values_that_are_no_numbers_are_not_painted() -> None:
    found = lmn.regions(mlp((2, 4, 1)), lmn.box([-1.0, -1.0], [1.0, 1.0], 5))
    with pytest.raises(ValueError, match="values are numbers"):
        found._at_points(np.full(found.count, None, dtype=object), (4, 4))
