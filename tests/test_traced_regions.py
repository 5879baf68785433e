"""Exact regions of any traced network: against forward passes on dense grids, and against the path for chains."""

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from piecewise_models import MODELS, built
from test_regions import GRIDS, mlp, outputs
from torch import nn

import lmn
from lmn.kernels.regions import torch_eager


def lines_and_planes(shape: tuple[int, ...], kind: str) -> lmn.grid.RegularGrid:
    anchors = 2 * torch.randn(3, *shape, dtype=torch.float64)
    return lmn.line(anchors[0], anchors[1], 40) if kind == "line" else lmn.plane(*anchors, 40)


def points_of(grid: lmn.grid.RegularGrid) -> torch.Tensor:
    return grid.at(torch.arange(grid.n_points), torch.zeros(0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["line", "plane"])
@pytest.mark.parametrize("name", MODELS)
def test_what_must_hold_of_exact_regions(name: str, kind: str) -> None:
    model, shape = built(name)
    grid = lines_and_planes(shape, kind)
    found = lmn.regions(model, grid, backend="torch")
    axes = grid.axes.flatten(1)
    assert found.exact
    assert found.volumes.sum() == pytest.approx(float(torch.linalg.det(axes @ axes.T).sqrt()), rel=1e-10)
    assert found.volumes.min() > 0
    assert found.count == 1 if name == "affine" else found.count > 3
    assert found.count_after_each_layer[-1:] in ((), (found.count,))
    assert len(np.unique(found.patterns, axis=0)) == found.count
    # Inside each region, in the direction of each vertex: it is this region, and the network is its map.
    inside = np.concatenate([0.5 * (found.points[r] + found.vertices[r]) for r in range(found.count)])
    region = np.repeat(np.arange(found.count), [len(v) for v in found.vertices])
    np.testing.assert_array_equal(found.locate(found.inputs(inside)), region)
    a, c = found.linear_maps
    mapped = np.einsum("pka,pa->pk", a[region], inside) + c[region]
    np.testing.assert_allclose(outputs(model, found.inputs(inside)), mapped, atol=1e-9)
    # Every point of a grid has the pattern of the region that the tree of cuts finds it in.
    seen = lmn.activation_patterns(model, points_of(grid), ids=True, progress=False)
    labels = found.labels(grid.counts, ends=True).ravel()
    assert (seen.words[seen.ids] == found.patterns[labels]).all()
    assert seen.layers == found.layers


@pytest.mark.parametrize("kind", ["line", "plane"])
@pytest.mark.parametrize("name", MODELS)
def test_inner_facets_are_shared_by_two_regions(name: str, kind: str) -> None:
    model, shape = built(name)
    found = lmn.regions(model, lines_and_planes(shape, kind), backend="torch").found
    _, index, counts = np.unique(found.facet_ids, return_index=True, return_counts=True)
    outside = found.facet_lines[index] >= sum(found.lines_a_layer)
    assert set(counts[~outside]) <= {2}
    assert set(counts[outside]) == {1}


@pytest.mark.parametrize("name", MODELS)
def test_the_complex_has_the_euler_characteristic_of_a_disc(name: str) -> None:
    model, shape = built(name)
    found = lmn.regions(model, lines_and_planes(shape, "plane"), backend="torch").found
    assert len(np.unique(found.vertex_ids)) - len(np.unique(found.facet_ids)) + found.n_regions == 1


def test_a_cube_through_maxima_has_the_euler_characteristic_of_a_ball() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), nn.Unflatten(1, (1, 12)), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(4, 6), nn.ReLU())
    found = lmn.regions(nn.Sequential(model, nn.Linear(6, 1)).double(), lmn.box([-2.0] * 3, [2.0] * 3, 2)).found
    counts = [len(np.unique(ids)) for ids in (found.vertex_ids, found.edge_ids, found.facet_ids)]
    assert found.n_regions > 50
    assert counts[0] - counts[1] + counts[2] - found.n_regions == 1
    assert found.volumes.sum() == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "n_in"), [("line", 1), ("line", 6), ("plane", 2), ("plane", 6), ("box", 1), ("box", 2), ("box", 3)]
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6])
def test_both_paths_find_the_same(kind: str, n_in: int, activation: type[nn.Module]) -> None:
    torch.manual_seed(n_in)
    model = mlp((n_in, 9, 8, 3), activation)
    for layer in model[::2]:
        layer.weight.data *= 5
    one, other = (lmn.regions(model, GRIDS[kind](n_in), backend=backend) for backend in ("cpp", "torch"))
    assert one.count_after_each_layer == other.count_after_each_layer
    assert one.layers == other.layers
    order, same = (np.lexsort(found.patterns.T) for found in (one, other))
    np.testing.assert_array_equal(one.patterns[order], other.patterns[same])
    np.testing.assert_allclose(one.volumes[order], other.volumes[same], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(one.linear_maps.A[order], other.linear_maps.A[same], rtol=0, atol=1e-9)
    assert len(one.neighbours) == len(other.neighbours)


def test_the_largest_of_three_has_three_regions() -> None:
    # max(x, y, -x - y): three regions that meet in the middle, and no line beyond it.
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Unflatten(1, (1, 3)), nn.MaxPool1d(3)).double()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]).double()
    found = lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))
    assert found.count == 3
    assert sorted(found.volumes) == pytest.approx([1.25, 1.25, 1.5])
    assert len(found.neighbours) == 3


@pytest.mark.parametrize("seed", range(4))
def test_many_members_that_are_equal_or_nearly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(25):
        w = torch.from_numpy(rng.integers(-1, 2, (12, 2)).astype(float))
        model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Unflatten(1, (1, 12)), nn.MaxPool1d(4), nn.Flatten()).double()
        model[0].weight.data, model[0].bias.data = w, torch.from_numpy(rng.integers(-1, 2, 12) / 2.0)
        found = lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))
        assert found.volumes.sum() == pytest.approx(4, rel=1e-9)
        x = rng.uniform(-1, 1, (50, 2))
        region = found.locate(x)
        a, c = found.linear_maps
        np.testing.assert_allclose(np.einsum("pka,pa->pk", a[region], x) + c[region], outputs(model, x), atol=1e-9)


def test_chunks_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = built("residual convolutions")
    torch.manual_seed(1)
    grid = lines_and_planes(shape, "plane")
    one = lmn.regions(model, grid, threads=1)
    three = lmn.regions(model, grid, threads=3)
    for name in ("patterns", "volumes", "vertices", "facet_ids", "cuts", "children"):
        np.testing.assert_array_equal(getattr(one.found, name), getattr(three.found, name))
    monkeypatch.setattr(torch_eager, "_CHUNK_BYTES", 1 << 15)  # a few cells at a time
    some = lmn.regions(model, grid)
    assert some.count_after_each_layer == one.count_after_each_layer
    np.testing.assert_array_equal(np.unique(some.patterns, axis=0), np.unique(one.patterns, axis=0))
    np.testing.assert_array_equal(some.locate(some.inputs(some.points)), np.arange(some.count))


def test_too_many_regions_are_given_up() -> None:
    model, shape = built("residual convolutions")
    with pytest.raises(lmn.LmnError, match=r"more than max_regions = 50 activation regions here \(\d+ were found"):
        lmn.regions(model, lines_and_planes(shape, "plane"), max_regions=50)


@pytest.mark.parametrize("bend", [nn.ReLU(), nn.Sequential(nn.Unflatten(1, (1, 400)), nn.MaxPool1d(4), nn.Flatten())])
def test_they_are_given_up_within_one_cell(bend: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 400), bend).double()  # all regions are parts of the one cell before the first bend
    with pytest.raises(lmn.LmnError, match=r"max_regions = 50 activation regions here \((\d+) were found") as raised:
        lmn.regions(model, lmn.box([-3, -3], [3, 3], 2), backend="torch", max_regions=50)
    found = int(re.search(r"\((\d+) were found", str(raised.value))[1])  # type: ignore[index]
    assert 50 < found < 1000


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * torch.softmax(x, 1)


class Gate(nn.Module):
    """Two factors that both depend on the sample: looks affine to nobody."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.relu(x)


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1).values


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Softmax(), r"'softmax' \(softmax\) is not piecewise linear.*lmn.measure"),
        (Gate(), r"'mul' \(mul\) is not piecewise linear"),
        (Unknown(), r"'sort' \(sort\) is not known to be affine or piecewise linear"),
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.LayerNorm(4)), r"'2' \(LayerNorm\) is not piecewise linear"),
    ],
)
def test_a_layer_that_is_not_piecewise_linear_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        lmn.regions(model, lmn.box([-1, -1], [1, 1], 2))


def test_a_model_that_can_not_be_traced_says_so() -> None:
    class LooksAtValues(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) if float(x.detach().sum()) > 1e9 else x

    with pytest.raises(lmn.LmnError, match=r"could not be traced"):
        lmn.regions(LooksAtValues(), lmn.box([-1, -1], [1, 1], 2))


def test_weights_that_are_not_finite() -> None:
    model, shape = built("dense")
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(lmn.LmnError, match="not finite"):
        lmn.regions(model, lines_and_planes(shape, "plane"))


def test_the_model_is_left_as_it_was() -> None:
    model, shape = built("residual convolutions")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lmn.regions(model, lines_and_planes(shape, "line"))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_pair_of_neighbours_has_maps_that_agree_on_what_they_share() -> None:
    model, shape = built("maxima")
    found = lmn.regions(model, lines_and_planes(shape, "plane"))
    a, c = found.linear_maps
    for i, j in found.neighbours:
        shared = [p for p, q in itertools.product(found.vertices[i], found.vertices[j]) if np.allclose(p, q, atol=1e-9)]
        assert len(shared) >= 2
        for p in shared:
            np.testing.assert_allclose(a[i] @ p + c[i], a[j] @ p + c[j], atol=1e-9)


class Given(nn.Module):
    """Two affine maps, and what is done between them."""

    def __init__(self, between: Callable[[nn.Module, torch.Tensor], torch.Tensor], width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.between = nn.Linear(2, width), nn.Linear(width, 2), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.between(self, x)


def through_a_view(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = model.a(x)
    h[:, :3].relu_()
    return model.b(h)


def through_another_shape(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = model.a(x)
    h.view(-1, 2, 3).relu_()
    return model.b(torch.relu(h - 0.1))


@pytest.mark.parametrize("between", [through_a_view, through_another_shape])
@pytest.mark.parametrize("grid", [lmn.box([-1, -1], [1, 1], 8), torch.linspace(-1, 1, 40).reshape(20, 2)])
def test_writing_in_place_through_a_view_is_refused(between: Callable, grid: object) -> None:
    with pytest.raises(lmn.LmnError, match=r"writes in place into what 'a' is a view of.*without the operation in place"):
        lmn.regions(Given(between), grid, progress=False)


CASTS = [
    lambda m, x: m.b(torch.relu(m.a(x.float()))),
    lambda m, x: m.b(torch.relu(m.a(x)).to(torch.float32)),
    lambda m, x: m.b(torch.relu(m.a(x.type(torch.float32)))),
    lambda m, x: m.b(torch.relu(m.a(x)) @ torch.eye(6)),
    lambda m, x: m.b(torch.relu_(m.a(x))),
]


@pytest.mark.parametrize("between", CASTS)
def test_casts_and_constants_made_on_the_way(between: Callable) -> None:
    plain, grid = Given(lambda m, x: m.b(torch.relu(m.a(x)))), lmn.box([-1, -1], [1, 1], 8)
    expected, found = lmn.regions(plain, grid), lmn.regions(Given(between), grid)
    assert found.count == expected.count
    np.testing.assert_allclose(np.sort(found.volumes), np.sort(expected.volumes), atol=1e-12)
    assert lmn.regions(Given(between), torch.rand(50, 2)).linear_maps.A.shape[1:] == (2, 2)


def unused_indices(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    largest, _ = model.a(x).reshape(-1, 3, 2).max(2)
    return model.b(torch.cat([largest, largest], dim=1))


def test_indices_of_a_maximum_that_nothing_uses() -> None:
    values = Given(lambda m, x: m.b(m.a(x).reshape(-1, 3, 2).amax(2).repeat(1, 2)))
    grid = lmn.box([-1, -1], [1, 1], 8)
    assert lmn.regions(Given(unused_indices), grid).count == lmn.regions(values, grid).count


def looks_at_what_it_is_given(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(x, torch.Tensor):  # which what a tracer passes is not
        x = x.clamp(max=0.5)
    return model.b(torch.relu(model.a(x)))


def test_a_graph_that_leaves_something_out_is_not_taken() -> None:
    model, grid = Given(looks_at_what_it_is_given), lmn.box([-1, -1], [1, 1], 8)
    found, x = lmn.regions(model, grid), torch.rand(200, 2, dtype=torch.float64) * 2 - 1
    a, c = found.linear_maps
    region = found.locate(x)
    y = np.einsum("pka,pa->pk", a[region], x.numpy()) + c[region]
    np.testing.assert_allclose(y, model(x.float()).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("where", [0, 1])
def test_hooks_that_may_change_what_a_module_does(where: int) -> None:
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    model[where].register_forward_hook(lambda _module, _inputs, out: out.clamp(max=1.2))
    with pytest.raises(lmn.LmnError, match=f"'{where}' .* has hooks, or a forward of its own.*remove them"):
        lmn.regions(model, lmn.box([-1, -1], [1, 1], 8))


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: m.b(torch.max(m.a(x), torch.zeros(6))),
        lambda m, x: m.b(torch.max(m.a(x), torch.tensor(1))),
        lambda m, x: m.b(m.a(x).clamp(2.0, -1.0)),
    ],
)
def test_what_is_not_known_is_refused_and_still_has_an_lmn(between: Callable) -> None:
    measured = lmn.measure(Given(between), lmn.box([-1, -1], [1, 1], 4), progress=False)
    assert measured.lmn is not None
    assert measured.regions is None
    assert "not known to be affine or piecewise linear" in measured.notes[0]


def test_torchs_own_reparametrisations_are_no_obstacle() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 8))
    plain = nn.Linear(2, 8)
    plain.weight.data, plain.bias.data = layer.weight.detach().clone(), layer.bias.detach().clone()
    head, grid = nn.Linear(8, 2), lmn.box([-1, -1], [1, 1], 8)
    found, expected = (lmn.regions(nn.Sequential(first, nn.ReLU(), head), grid).count for first in (layer, plain))
    assert found == expected


class Heads(nn.Module):
    """Outputs beside the one that is measured: smooth, of the whole batch, and bent."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"logits": y, "probabilities": y.softmax(-1), "loss": y.sum(), "gate": torch.relu(y), "mean": torch.tanh(y)}


@pytest.mark.parametrize("grid", [lmn.box([-1, -1], [1, 1], 8), torch.linspace(-1, 1, 40).reshape(20, 2)])
def test_outputs_that_are_not_measured_do_not_matter(grid: object) -> None:
    torch.manual_seed(0)
    model = Heads()
    assert lmn.regions(model, grid).count == lmn.regions(model.body, grid).count


@pytest.mark.parametrize("parametrized", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_parametrized_layers(parametrized: Callable, backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrized(nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 1)).double().eval()
    x = 2 * torch.rand(400, 2).double() - 1
    found, seen = lmn.regions(model, lmn.box([-1, -1], [1, 1], 8), backend=backend), lmn.regions(model, x)
    assert len(np.unique(found.locate(x))) == seen.count


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_batch_that_is_not_first_is_named_whatever_the_sizes(k: int) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(2, 8) for _ in range(k))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([branch(x) for branch in self.branches]).amax(0)

    with pytest.raises(lmn.LmnError, match=r"'stack'.* does not keep the batch first.*stack along dim=1"):
        lmn.regions(Stacked(), lmn.box([-1, -1], [1, 1], 8))


def test_ctrl_c_is_heard_while_the_last_cell_is_cut_by_another_thread() -> None:
    # Seventeen cells before the second bend: all but the last are one task, and no line cuts them.
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lines = nn.Linear(2, 6000)
            with torch.no_grad():
                self.lines.bias.uniform_(-1, 1).mul_(self.lines.weight.norm(dim=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = torch.relu(x[:, :1] - torch.linspace(-0.95, 0.95, 16).to(x))
            inside = torch.cat([steps[:, -1:] * 40 - 1, x[:, 1:]], dim=1)  # -1 in all cells but the last
            return torch.relu(self.lines(inside)).sum(1, keepdim=True)

    torch.manual_seed(0)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        lmn.regions(Last().double(), lmn.box([-1, -1], [1, 1], 2), backend="torch", threads=2, max_regions=2**31 - 1)
    assert time.monotonic() - started < 8
