"""Regular grids: points in order, both ends, never stored; and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import lmn
from lmn.grid import RegularGrid, as_grid


def points(grid: RegularGrid) -> torch.Tensor:
    return grid.at(torch.arange(grid.n_points), torch.zeros((), dtype=torch.float64))


def test_a_box_is_the_product_of_its_axes() -> None:
    got = points(lmn.box([0, -1], [1, 1], (3, 2)))
    expected = torch.cartesian_prod(torch.tensor([0, 0.5, 1.0]), torch.tensor([-1.0, 1.0])).double()
    assert torch.equal(got, expected)


def test_a_number_stands_for_all_axes() -> None:
    assert torch.equal(points(lmn.box(-1, 1, (2, 2, 2))), points(lmn.box([-1, -1, -1], 1, 2)))


def test_a_line() -> None:
    got = points(lmn.line([0.0, 4.0], [1.0, 0.0], 5))
    assert torch.equal(got, torch.tensor([[0, 4], [0.25, 3], [0.5, 2], [0.75, 1], [1, 0]]).double())


def test_a_plane_of_images() -> None:
    a, b, c = torch.zeros(2, 3), torch.ones(2, 3), torch.eye(2, 3)
    got = points(lmn.plane(a, b, c, (2, 3)))
    assert got.shape == (6, 2, 3)
    torch.testing.assert_close(got[4], (a + (b - a) + (c - a) / 2).double())


def test_one_point_an_axis_is_the_low_end() -> None:
    assert torch.equal(points(lmn.box([2, 3], [4, 5], 1)), torch.tensor([[2.0, 3.0]]).double())


def test_a_huge_grid_is_not_stored() -> None:
    grid = lmn.box([0] * 6, [1] * 6, 1000)
    assert grid.n_points == 10**18
    last = grid.at(torch.tensor([10**18 - 1]), torch.zeros(()))
    assert torch.equal(last, torch.ones(1, 6))


def test_points_follow_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    grid = lmn.box([-1, -1], [1, 1], 4)
    assert lmn.measure(model, grid, progress=False).dtype == "float32"
    assert lmn.measure(model.double(), grid, progress=False).dtype == "float64"


def test_a_measurement_on_a_grid_is_that_on_its_points() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    grid = lmn.box([-1, -1], [1, 1], 5)
    assert lmn.measure(model, grid, progress=False).lmn == lmn.measure(model, points(grid).float(), progress=False).lmn


def test_more_points_than_max_points_are_sampled_and_said_to_be() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    grid = lmn.box([-1, -1], [1, 1], 100)
    one, same, other = (lmn.measure(model, grid, max_points=30, seed=seed, progress=False) for seed in (0, 0, 1))
    assert (one.n_points, one.n_sampled, one.eigenvalues.shape) == (10_000, 30, (30,))
    assert "random sample of 30 of the grid's 10000 points" in str(one)
    assert one.indices is not None
    assert one.indices.unique().shape == (30,)
    assert one.lmn == same.lmn != other.lmn
    direct = lmn.measure(model, grid.at(one.indices), progress=False)
    assert direct.lmn == one.lmn
    assert direct.n_sampled is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lmn.box(0, 1, 5), "give low, high or n as a sequence"),
        (lambda: lmn.box([0, 0], [1, 1, 1], 5), r"got lengths \[2, 3\]"),
        (lambda: lmn.box([0, 1], [1, 1], 5), "needs low < high on every axis"),
        (lambda: lmn.box([0, float("nan")], [1, 1], 5), "low has a NaN"),
        (lambda: lmn.box([0, 0], ["a", 1], 5), "high must be numbers"),
        (lambda: lmn.box([0, 0], [1, 1], 0), "n must be a positive whole number"),
        (lambda: lmn.box([0, 0], [1, 1], 2.5), "n must be a positive whole number"),
        (lambda: lmn.line([0, 0], [0, 0], 5), "two ends of a line are equal"),
        (lambda: lmn.line([0, 0], [0, 0, 1], 5), "inputs of one shape"),
        (lambda: lmn.plane([0, 0], [1, 1], [2, 2], 5), "lie on one line"),
        (lambda: lmn.plane(0, 1, 2, 5), "inputs of one shape"),
    ],
)
def test_what_is_no_grid(make: object, message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        make()  # type: ignore[operator]


def test_samples_are_not_copied() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    assert as_grid(x).values.data_ptr() == x.__array_interface__["data"][0]
