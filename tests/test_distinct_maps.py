"""Counting distinct affine maps: by themselves, and of regions whose outputs make it hard."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lmn
from lmn.kernels.distinct_maps import DistinctMaps, Maps

SQUARE = lmn.box([-1, -1], [1, 1], 16)


def maps(a: np.ndarray, c: np.ndarray) -> Maps:
    return Maps(a, c, np.zeros(len(a)), np.full(len(a), 1e-14))


def count(a: np.ndarray, c: np.ndarray, parts: int = 1) -> int:
    distinct = DistinctMaps()
    for some in np.array_split(np.arange(len(a)), parts):
        distinct.add(maps(a[some], c[some]))
    return len(distinct)


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_maps_that_differ_by_rounding_are_one_in_any_order(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    a, c = rng.standard_normal((500, 6)), rng.standard_normal((500, 2))
    chosen = np.concatenate([np.arange(500), rng.integers(0, 500, 4500)])
    noisy = a[chosen] * (1 + 1e-13 * rng.standard_normal((5000, 6)))
    for order in (np.arange(5000), rng.permutation(5000)):
        assert count(noisy[order], c[chosen][order], parts) == 500


@pytest.mark.parametrize("entry", range(6))
def test_maps_that_differ_in_one_entry_are_two(entry: int) -> None:
    a, c = np.random.default_rng(0).standard_normal((2, 6)), np.zeros((2, 2))
    a[1] = a[0]
    a[1, entry] += 1e-7
    assert count(a, c) == 2
    assert not maps(a, c).same(np.array([0]), np.array([1]))[0]


def test_maps_that_differ_in_c_alone_are_two() -> None:
    assert count(np.ones((3, 2)), np.array([[0.0], [1e-6], [0.0]])) == 2


class Shifted(nn.Module):
    """A network's output, and a number added."""

    def __init__(self, network: nn.Module, bias: float) -> None:
        super().__init__()
        self.network, self.bias = network, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.bias


class Cancelling(nn.Module):
    """One output is the difference of equal terms, which rounding leaves something of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return (y * 3.3 + 0.7) / 3.3 - y - 0.7 / 3.3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1)).double()


@pytest.mark.parametrize("bias", [1e3, 1e6])
def test_a_large_bias_hides_no_map(bias: float) -> None:
    plain, shifted = (lmn.regions(model, SQUARE) for model in (network(), Shifted(network(), bias)))
    assert plain.n_linear_maps > 50
    assert (shifted.count, shifted.n_linear_maps) == (plain.count, plain.n_linear_maps)
    assert shifted.n_linear_regions == plain.n_linear_regions


def test_an_output_that_cancels_has_one_map() -> None:
    found = lmn.regions(Cancelling(network()), SQUARE)
    assert found.count > 50
    assert (found.n_linear_maps, found.n_linear_regions) == (1, 1)


def test_observed_maps_are_those_of_the_regions_seen() -> None:
    x = torch.from_numpy(np.array(list(itertools.product(np.linspace(-1, 1, 200), repeat=2))))
    seen, exact = lmn.regions(network(), x), lmn.regions(network(), SQUARE)
    known = np.unique(exact.locate(seen.points))
    assert len(known) == seen.count
    assert seen.n_linear_maps == len({tuple(exact.linear_maps.A[r].ravel().round(9)) for r in known})


@pytest.mark.parametrize("samples", [None, 300])
def test_a_measurement_can_be_pickled(samples: int | None) -> None:
    grid = SQUARE if samples is None else torch.randn(samples, 2, generator=torch.Generator().manual_seed(0)).double()
    measured = lmn.measure(network(), grid, connectivity=True, progress=False)
    assert measured.regions is not None
    maps_before = measured.regions.n_linear_maps
    again = pickle.loads(pickle.dumps(measured))
    assert str(again) == str(measured)
    assert again.to_dict() == measured.to_dict()
    np.testing.assert_array_equal(again.regions.patterns, measured.regions.patterns)
    assert again.regions.n_linear_maps == maps_before
    if samples is None:
        np.testing.assert_array_equal(again.regions.neighbours, measured.regions.neighbours)
    else:
        with pytest.raises(lmn.LmnError, match="a pickle does not have"):
            again.regions.locate(grid)


@pytest.mark.parametrize("samples", [False, True])
def test_an_output_that_cancels_has_one_map_over_samples_too(samples: bool) -> None:
    grid = SQUARE if not samples else torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    assert lmn.regions(Cancelling(network()), grid).n_linear_maps == 1


@pytest.mark.parametrize("change", [1e8, float("nan")])
def test_what_becomes_of_the_model_changes_no_count(change: float) -> None:
    model = network()
    before, after = lmn.regions(model, SQUARE), lmn.regions(model, SQUARE)
    expected = before.n_linear_maps, before.n_linear_regions
    with torch.no_grad():
        model[0].weight.mul_(change)
    assert (after.n_linear_maps, after.n_linear_regions) == expected
