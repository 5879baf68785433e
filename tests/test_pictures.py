"""What Regions.plot draws: its polygons, colours, boundaries and slices, read back from the Axes."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PatchCollection, PolyCollection
from test_regions import mlp
from torch import nn

import lmn
from lmn.plots import check_picture, saved

mpl.use("agg")


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def regions(n_in: int, n_out: int = 1) -> lmn.exact_regions.ExactRegions:
    torch.manual_seed(n_in)
    return lmn.regions(mlp((n_in, 8, 6, n_out)), lmn.box([-1.0] * n_in, [2.0] * n_in, 2))


def artist(ax: plt.Axes, kind: type) -> object:
    return next(each for each in ax.collections if type(each) is kind)


def test_a_polygon_a_region_coloured_by_the_norm_of_its_map() -> None:
    found = regions(2)
    polygons = artist(found.plot(), PolyCollection)
    assert len(polygons.get_paths()) == found.count
    np.testing.assert_allclose(polygons.get_array(), np.linalg.norm(found.linear_maps.A[:, 0], axis=1))
    for path, vertices in zip(polygons.get_paths(), found.vertices, strict=True):
        np.testing.assert_array_equal(path.vertices[: len(vertices)], vertices)


def test_fills() -> None:
    found = regions(2)
    middles = np.einsum("rka,ra->rk", found.linear_maps.A, found.points) + found.linear_maps.c
    for fill, expected in (("output", middles[:, 0]), ("volume", np.log10(found.volumes)), ("layer", found.last_cuts)):
        np.testing.assert_allclose(artist(found.plot(fill), PolyCollection).get_array(), expected, err_msg=fill)


def test_the_last_cut_is_the_deepest_activation_at_a_side() -> None:
    found, shallow = regions(2), lmn.regions(nn.Linear(2, 1).double(), lmn.box([-1, -1], [2, 2], 2))
    assert shallow.last_cuts.tolist() == [-1]
    assert set(found.last_cuts) == {0, 1}
    # Where only the first activation cuts, the second has nothing inside: there are at most as many as after the first.
    assert (found.last_cuts == 0).sum() <= found.count_after_each_layer[0]
    torch.manual_seed(2)
    model = mlp((2, 8, 6, 1))
    first = lmn.regions(model[:2], lmn.box([-1.0] * 2, [2.0] * 2, 2))
    whole = first.locate(found.points)
    for region in np.flatnonzero(found.last_cuts == 0):
        assert (whole == whole[region]).sum() == 1  # a region of the first activation that is not divided


def test_the_norm_in_a_plane_is_that_in_the_inputs() -> None:
    torch.manual_seed(0)
    model = mlp((3, 8, 1))
    u, v = torch.tensor([2.0, 0, 0], dtype=torch.float64), torch.tensor([1.0, 3, 0], dtype=torch.float64)
    found = lmn.regions(model, lmn.plane(torch.zeros(3, dtype=torch.float64), u, v, 2))
    x = torch.from_numpy(found.inputs(found.points)).requires_grad_()
    gradient = torch.autograd.grad(model(x).sum(), x)[0]
    expected = gradient[:, :2].norm(dim=1)  # along the plane, which is that of the first two inputs
    np.testing.assert_allclose(artist(found.plot(), PolyCollection).get_array(), expected, rtol=1e-9)


@pytest.mark.parametrize("n_out", [1, 4])
def test_the_boundary_is_where_the_output_is_zero_or_two_are_largest(n_out: int) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, n_out)).double()
    if n_out == 1:
        model[2].bias.data -= float(model(torch.zeros(1, 2).double())[0, 0])  # so that it changes its sign
    found = lmn.regions(model, lmn.box([-3.0, -3.0], [3.0, 3.0], 2))
    segments = np.array(artist(found.plot(), LineCollection).get_segments())
    assert len(segments) > 5
    middles = torch.from_numpy(segments.mean(axis=1))
    with torch.no_grad():
        y = model(middles)
        top = y.topk(2).values if n_out > 1 else torch.cat([y, torch.zeros_like(y)], 1)
    np.testing.assert_allclose(top[:, 0], top[:, 1], atol=1e-12)
    # All of it: along lines of an image, the sign or class changes as often as a segment is crossed.
    n = 400
    rows = torch.linspace(-2.9, 2.9, 57).double()
    xs = torch.linspace(-3, 3, n).double()
    with torch.no_grad():
        y = model(torch.cartesian_prod(rows, xs)).reshape(len(rows), n, n_out)
    side = (y[..., 0] > 0).long() if n_out == 1 else y.argmax(-1)
    changes = (side[:, 1:] != side[:, :-1]).sum(1).numpy()
    crossed = np.array([((segments[:, 0, 0] > r) != (segments[:, 1, 0] > r)).sum() for r in rows.numpy()])
    assert (changes <= crossed).all()
    assert changes.sum() >= 0.95 * crossed.sum()


@pytest.mark.parametrize("n_in", [1, 2, 3])
def test_of_several_outputs_the_colour_is_the_largest_everywhere(n_in: int) -> None:
    torch.manual_seed(3)
    model = mlp((n_in, 16, 10))
    model[-1].weight.data[7], model[-1].bias.data[7] = model[-1].weight.data[4], model[-1].bias.data[4]  # of which 4 counts
    found = lmn.regions(model, lmn.box([-3.0] * n_in, [3.0] * n_in, 2))
    ax = found.plot("output")
    if n_in == 3:
        image = np.asarray(ax.images[0].get_array()).T
        cells = -3 + 6 * (np.arange(len(image)) + 0.5) / len(image)
        points = np.stack([*np.meshgrid(cells[::37], cells[::41], indexing="ij"), np.zeros((28, 25))], axis=-1)
        with torch.no_grad():
            largest = model(torch.from_numpy(points)).argmax(-1).numpy()
        assert (image[::37, ::41] == largest).mean() > 0.995  # pixels on a boundary
        return
    drawn = artist(ax, PatchCollection if n_in == 1 else PolyCollection)
    corners = [np.asarray(path.vertices[:-1, :n_in]) for path in drawn.get_paths()]
    if n_in == 1:
        sizes = np.array([np.ptp(c) for c in corners])
    else:
        turned = [np.roll(c, -1, axis=0) for c in corners]
        sizes = np.array([abs((c[:, 0] * t[:, 1] - c[:, 1] * t[:, 0]).sum()) / 2 for c, t in zip(corners, turned, strict=True)])
    assert sizes.sum() == pytest.approx(6.0**n_in, rel=1e-9)
    middles = torch.from_numpy(np.array([(c.min(0) + c.max(0)) / 2 if n_in == 1 else c.mean(0) for c in corners]))
    with torch.no_grad():
        assert (model(middles).argmax(1).numpy() == drawn.get_array()).all()
    assert len(corners) > found.count


def test_a_line_has_its_outputs_and_its_regions() -> None:
    found = regions(1)
    ax = found.plot()
    assert len(artist(ax, PatchCollection).get_paths()) == found.count
    t, y = ax.lines[0].get_data()
    torch.manual_seed(1)
    with torch.no_grad():
        np.testing.assert_allclose(y, mlp((1, 8, 6, 1))(torch.from_numpy(t)[:, None])[:, 0], atol=1e-12)


def test_a_slice_of_three_dimensions() -> None:
    found = regions(3)
    labels = found.slice_labels(1, 0.3, 64)
    cells = -1 + 3 * (np.arange(64) + 0.5) / 64
    points = np.stack(np.meshgrid(cells, [0.3], cells, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(labels.ravel(), found.locate(points))
    ax = found.plot(axis=1, at=0.3)
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image.T, np.linalg.norm(found.linear_maps.A[:, 0], axis=1)[found.slice_labels(1, 0.3, 1024)])
    assert ax.get_title() == f"{len(np.unique(found.slice_labels(1, 0.3, 1024))):,} of {found.count:,} activation regions"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "colour"}, r"fill is one of \['norm', 'output', 'layer', 'volume'\]; got 'colour'"),
        ({"output": 1}, "output is one of the model's 1, counted from 0; got 1"),
        ({"ax": 3}, "ax is one matplotlib Axes; got int"),
    ],
)
def test_what_can_not_be_drawn(options: dict, message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        regions(2).plot(**options)


def test_pictures_are_written(tmp_path: Path) -> None:
    path = tmp_path / "regions.png"
    check_picture(path)
    saved(regions(2).plot(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(lmn.LmnError, match="no extension that says what kind of picture"):
        check_picture(tmp_path / "regions")
    with pytest.raises(lmn.LmnError, match="no folder"):
        check_picture(tmp_path / "nowhere" / "regions.png")
