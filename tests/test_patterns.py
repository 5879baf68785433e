"""Activation patterns and observed regions: against a plain reference, closed forms, and what must not matter."""

import importlib

import numpy as np
import pytest
import torch
from piecewise_models import MODELS, built
from test_regions import mlp
from torch import nn

import lmn
from lmn.kernels.patterns import blocks, unseen

from models import PaperNetwork

patterns_module = importlib.import_module("lmn.activation_patterns")  # lmn's attribute of that name is the function

BENT = [name for name in MODELS if name != "affine"]


def samples(shape: tuple[int, ...], n: int = 60, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(3)
    x = torch.randn(n, *shape, dtype=dtype)
    x[n // 2 :] = x[: n - n // 2]  # each twice
    return x


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_the_reference(name: str, dtype: torch.dtype, backend: str) -> None:
    model, shape = built(name)
    model, x = model.to(dtype), samples(shape, dtype=dtype)
    got, expected = (lmn.activation_patterns(model, x, backend=b, ids=True, progress=False) for b in (backend, "reference"))
    for field in ("words", "counts", "first", "ids"):
        np.testing.assert_array_equal(getattr(got, field), getattr(expected, field), err_msg=field)
    assert (got.words[got.ids[0]] == got.words[got.ids[30]]).all()
    assert got.counts.sum() == 60
    assert got.bits == expected.bits


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardsigmoid, nn.Softshrink])
@pytest.mark.parametrize("width", [1, 63, 64, 65, 130])
def test_widths_that_are_no_multiple_of_a_word(activation: type[nn.Module], width: int) -> None:
    torch.manual_seed(width)
    model = mlp((5, width, 3, 2), activation)
    x = 3 * samples((5,))
    got, expected = (lmn.activation_patterns(model, x, backend=b, ids=True, progress=False) for b in ("cpp", "reference"))
    np.testing.assert_array_equal(got.words, expected.words)
    assert got.first_words[0] == 0
    assert got.first_words[1] == -(-got.bits[0] // 64)


def test_a_unit_is_active_where_its_argument_is_above_zero() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    model[0].weight.data.fill_(1.0)
    found = lmn.activation_patterns(model, torch.tensor([[-1.0], [0.0], [1e-30], [1.0]]), ids=True, progress=False)
    assert found.ids.tolist() == [0, 0, 1, 1]
    assert found.words.ravel().tolist() == [0, 1]


def test_the_first_of_equal_members_is_the_largest() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Unflatten(1, (1, 3)), nn.MaxPool1d(3))
    x = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 1.0, 1.0], [1.0, 2.0, 2.0]])
    found = lmn.activation_patterns(model, x, ids=True, progress=False)
    assert found.layers == ("0", "2")
    assert [int(word) for word in found.words[found.ids, 1]] == [0, 0, 1]


def test_batches_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = built("dense")
    x = samples(shape, 500)
    one = lmn.activation_patterns(model, x, threads=1, ids=True, progress=False)
    monkeypatch.setattr(patterns_module, "_LARGEST_BATCH", 7)
    other = lmn.activation_patterns(model, x, threads=3, ids=True, verify=True, progress=False)
    for field in ("words", "counts", "first", "ids"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert (one.collisions, other.collisions) == (None, 0)


def test_samples_are_not_overwritten() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(inplace=True))
    x = samples((4,), dtype=torch.float32)
    before = x.clone()
    lmn.regions(model, x, progress=False)
    assert torch.equal(x, before)


def test_from_a_tap_on() -> None:
    torch.manual_seed(0)
    model = PaperNetwork()
    model.activation = nn.ReLU()
    tokens = torch.randint(31, (80, 2))
    found = lmn.regions(model, tokens, tap="linear1", progress=False)
    h = model.linear1(model.embedding(tokens).flatten(1)).detach()
    bits = torch.cat([h > 0, model.linear2(torch.relu(h)) > 0], dim=1)
    assert found.count == len(torch.unique(bits, dim=0))
    assert found.points.shape == (found.count, 100)
    with pytest.raises(lmn.LmnError, match="tap='embedding'"):
        lmn.regions(model, tokens)


# ---- regular grids of more than three dimensions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BENT, "affine"])
def test_blocks_find_what_all_points_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = built(name, seed=1)
    if len(shape) > 1:
        model, shape = nn.Sequential(nn.Linear(4, int(np.prod(shape))), nn.Unflatten(1, shape), model).double(), (4,)
    monkeypatch.setattr(blocks, "_COST", 0.3)  # blocks, whether or not they pay
    grid = lmn.box([-0.3, -0.2, -0.4, 0.0], [0.3, 0.1, 0.2, 0.5], (9, 8, 11, 6))
    found, exhaustive = (
        lmn.activation_patterns(model, grid, exhaustive=exhaustive, progress=False) for exhaustive in (False, True)
    )
    for field in ("words", "counts", "first"):
        np.testing.assert_array_equal(getattr(found, field), getattr(exhaustive, field), err_msg=field)
    assert found.counts.sum() == grid.n_points


def test_blocks_of_coarse_regions_save_most_passes() -> None:
    torch.manual_seed(0)
    model = mlp((4, 6, 5, 1))
    n_passes = []
    original = blocks.count

    def counted(*args: object) -> int:
        n_passes.append(original(*args))
        return n_passes[-1]

    blocks.count = counted
    try:
        found = lmn.regions(model, lmn.box([-1.0] * 4, [1.0] * 4, 32), progress=False)
    finally:
        blocks.count = original
    assert not found.exact
    assert found.counts.sum() == 32**4
    assert n_passes[0] < 32**4 / 4


def test_zeros_on_grid_points_are_counted_alike() -> None:
    # Hyperplanes through the grid's points: a block that touches one has points on it, on its closed side.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)).double()
    model[0].weight.data = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, -1]]).double()
    grid = lmn.box([-1.0] * 4, [1.0] * 4, 9)
    one, other = (lmn.activation_patterns(model, grid, exhaustive=e, progress=False) for e in (False, True))
    np.testing.assert_array_equal(one.words, other.words)
    np.testing.assert_array_equal(one.counts, other.counts)


# ---- observed regions ------------------------------------------------------------------------------------------------------


def n_distinct(maps: np.ndarray) -> int:
    """Each compared with all that were new."""
    new: list[np.ndarray] = []
    for row in maps:
        if not any(np.abs(row - other).max() <= 1e-9 * max(np.abs(row).max(), np.abs(other).max()) for other in new):
            new.append(row)
    return len(new)


@pytest.mark.parametrize("name", MODELS)
def test_each_map_is_the_network_at_its_point(name: str) -> None:
    model, shape = built(name)
    x = samples(shape)
    found = lmn.regions(model, x, progress=False)
    assert not found.exact
    a, c = found.linear_maps
    np.testing.assert_array_equal(found.points, x.numpy()[found.first])
    flat = found.points.reshape(found.count, -1)
    with torch.no_grad():
        y = model(torch.from_numpy(found.points)).numpy()
    np.testing.assert_allclose(np.einsum("rki,ri->rk", a, flat) + c, y, atol=1e-9)
    for region, point in enumerate(torch.from_numpy(found.points)):
        expected = torch.autograd.functional.jacobian(lambda one: model(one[None])[0], point)
        np.testing.assert_allclose(a[region], expected.reshape(a.shape[1:]), atol=1e-9)
    np.testing.assert_array_equal(found.locate(x), lmn.activation_patterns(model, x, ids=True, progress=False).ids)
    assert 1 <= found.n_linear_maps <= found.count
    assert found.n_linear_maps == n_distinct(np.concatenate([a, c[:, :, None]], axis=2).reshape(found.count, -1))


def test_maps_of_a_float32_model_are_its_own_in_float64() -> None:
    torch.manual_seed(0)
    model = mlp((3, 8, 2)).float()
    with torch.no_grad():
        model[2].weight.zero_()  # one map, told apart by float32's rounding alone
    found = lmn.regions(model, torch.randn(50, 3), progress=False)
    assert found.count > 5
    assert found.n_linear_maps == 1


def test_a_model_that_trains_on_keeps_the_maps_of_its_regions() -> None:
    torch.manual_seed(0)
    model = mlp((3, 8, 2))
    x = torch.randn(50, 3, dtype=torch.float64)
    found = lmn.regions(model, x, progress=False)
    expected = model(x[found.first]).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    a, c = found.linear_maps
    np.testing.assert_allclose(np.einsum("rki,ri->rk", a, found.points) + c, expected, atol=1e-9)


def test_layers_are_counted_one_after_another() -> None:
    model, shape = built("dense")
    x = samples(shape, 400)
    found = lmn.regions(model, x, progress=False)
    words = found.found.words
    ends = [*found.found.first_words[1:], words.shape[1]]
    expected = [len(np.unique(words[:, :end], axis=0)) for end in ends]
    assert list(found.count_after_each_layer) == expected


@pytest.mark.parametrize("what", ["volumes", "vertices", "neighbours", "n_linear_regions"])
def test_observed_regions_have_no_geometry(what: str) -> None:
    found = lmn.regions(mlp((5, 4, 1)), torch.randn(20, 5, dtype=torch.float64), progress=False)
    with pytest.raises(lmn.LmnError, match="known of exact regions only"):
        getattr(found, what)
    for method in (lambda: found.labels(8), found.plot):
        with pytest.raises(lmn.LmnError, match="known of exact regions only"):
            method()


def test_good_turing_and_chao1() -> None:
    counts = np.array([5, 1, 1, 2, 1])  # f1 = 3, f2 = 1, n = 10
    assert unseen.coverage(counts) == pytest.approx(0.7)
    assert unseen.chao1(counts) == pytest.approx(5 + 3 * 2 / (2 * 2))
    assert unseen.coverage(np.array([4, 7])) == 1
    assert unseen.chao1(np.array([4, 7])) == 2


def test_chao1_of_equally_likely_regions() -> None:
    # |x_i| for six inputs: 64 equally likely patterns of signs, of which 100 samples miss some.
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(40):
        x = torch.from_numpy(rng.standard_normal((100, 6)))
        found = lmn.regions(nn.ReLU(), x, progress=False)
        assert found.count < 64
        bounds.append(found.lower_bound)
        assert found.coverage == pytest.approx(1 - (found.counts == 1).sum() / 100)
    assert np.mean(bounds) == pytest.approx(64, rel=0.05)


def test_a_count_that_measures_the_sample_says_so() -> None:
    torch.manual_seed(0)
    wide, narrow = mlp((20, 200, 1)), mlp((20, 2, 1))
    x = torch.randn(100, 20, dtype=torch.float64)
    found = lmn.regions(wide, x, progress=False)
    assert found.limited_by_points
    assert "measures how many points" in str(found)
    assert not lmn.regions(narrow, x, progress=False).limited_by_points


# ---- measure ---------------------------------------------------------------------------------------------------------------


def test_measure_counts_regions_of_any_grid() -> None:
    torch.manual_seed(0)
    model = mlp((2, 8, 8, 1))
    box = lmn.box([-1, -1], [1, 1], 10)
    exact = lmn.measure(model, box, progress=False)
    assert exact.regions.count == lmn.regions(model, box).count
    assert exact.to_dict()["exact_regions"] == exact.regions.count
    assert exact.lmn is not None
    observed = lmn.measure(model, torch.randn(30, 2, dtype=torch.float64), metrics=("regions",), progress=False)
    assert observed.lmn is None
    assert observed.to_dict()["observed_regions"] == observed.regions.count
    assert {"observed_regions_coverage", "observed_regions_lower_bound"} <= set(observed.to_dict())
    assert "exact_regions" not in observed.to_dict()
    assert all(isinstance(value, float) for value in {**exact.to_dict(), **observed.to_dict()}.values())


def test_measure_says_why_there_are_no_regions() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1))
    measured = lmn.measure(model, torch.randn(9, 2), progress=False)
    assert measured.regions is None
    assert measured.notes == ("no regions: '1' (silu) is not piecewise linear",)
    many = lmn.measure(mlp((2, 30, 30, 1)), lmn.box([-2, -2], [2, 2], 3), max_regions=10, progress=False)
    assert many.regions is None
    assert "more than max_regions = 10" in many.notes[-1]


def test_regions_of_grids_too_large_are_asked_for() -> None:
    model, grid = mlp((5, 3, 1)), lmn.box([-1.0] * 5, [1.0] * 5, 30)
    measured = lmn.measure(model, grid, max_points=10, progress=False)
    assert measured.regions is None
    assert any("metrics=('lmn', 'regions')" in note for note in measured.notes)


@pytest.mark.parametrize(("metrics", "names"), [(("lmn",), {"lmn"}), (("regions",), {"regions"}), (None, {"lmn", "regions"})])
def test_metrics_pick(metrics: tuple[str, ...] | None, names: set[str]) -> None:
    measured = lmn.measure(mlp((2, 5, 1)), lmn.box([-1, -1], [1, 1], 4), metrics=metrics, progress=False)
    assert {name for name in ("lmn", "regions") if getattr(measured, name) is not None} == names
    assert str(measured)
