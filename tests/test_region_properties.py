"""Thousands of small networks, degenerate ones among them: what must hold of exact regions whatever the network."""

import itertools

import exact_splitter
import numpy as np
import pytest
import torch
from test_subdivision import Weights, chain_of, problem_of

from lmn.kernels.activations import Activation, activation
from lmn.kernels.pieces import pieces
from lmn.kernels.regions import cpp, tree
from lmn.kernels.regions.problem import Subdivision

ACTIVATIONS = [
    activation("relu"),
    activation("relu"),
    activation("leaky_relu", negative_slope=0.2),
    activation("abs"),
    activation("hardtanh", min_val=-0.5, max_val=0.5),
    activation("relu6"),
]


def network(rng: np.random.Generator, n_in: int, scales: tuple[float, ...] = (-1.0, 1.0, 2.0, -0.3)) -> Weights:
    """Of one to three layers of up to seven units: random, or of small whole numbers, with units that repeat or are zero."""
    widths = (n_in, *rng.integers(1, 8, rng.integers(1, 4)), 2)
    whole = rng.random() < 0.5
    weights = []
    for a, b in itertools.pairwise(widths):
        w = rng.integers(-2, 3, (b, a)).astype(float) if whole else rng.standard_normal((b, a))
        c = rng.integers(-2, 3, b) / 2.0 if whole else rng.standard_normal(b)
        if rng.random() < 0.3:
            c[:] = 0
        if rng.random() < 0.3:  # the same line, from either side and at any scale
            i, j = rng.integers(0, b, 2)
            scale = rng.choice(scales)
            w[i], c[i] = scale * w[j], scale * c[j]
        if rng.random() < 0.2:  # parallel to another
            i, j = rng.integers(0, b, 2)
            w[i] = w[j]
        if rng.random() < 0.2:
            i = rng.integers(b)
            w[i], c[i] = 0, rng.choice([0.0, 1.0, -1.0])
        weights.append((w, c))
    return weights


def bits(found: Subdivision) -> np.ndarray:
    """The patterns as (n_regions, n_lines), bool."""
    unpacked = np.unpackbits(found.patterns.view(np.uint8), axis=1, bitorder="little").astype(bool)
    first = np.cumsum([0, *(64 * -(-n // 64) for n in found.lines_a_layer)])
    return np.concatenate([unpacked[:, a : a + n] for a, n in zip(first, found.lines_a_layer, strict=False)], axis=1)


def forward(weights: Weights, x: np.ndarray, act: Activation) -> tuple[np.ndarray, np.ndarray]:
    """The outputs, and how far each line is passed: (n, n_out) and (n, n_lines)."""
    margins = []
    at = pieces(act, 1).breakpoints
    for index, (w, b) in enumerate(weights):
        if index:
            margins.append((x[:, :, None] - at).reshape(len(x), -1))
            x = act.function(torch.from_numpy(x)).numpy()
        x = x @ w.T + b
    return x, np.concatenate(margins, axis=1)


@pytest.mark.parametrize("n_in", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_network(n_in: int, seed: int) -> None:
    rng = np.random.default_rng(1000 * n_in + seed)
    for number in range(250):
        weights, act = network(rng, n_in), ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
        found = cpp.regions(problem_of(chain_of(weights, 1.0, act)), geometry=True)
        told = f"network {number}"
        assert found.volumes.min() > 0, told
        assert found.volumes.sum() == pytest.approx(2**n_in, rel=1e-9), told
        assert len(np.unique(found.patterns, axis=0)) == found.n_regions, told

        x = rng.uniform(-1, 1, (40, n_in))
        region = tree.locate(found.cuts, found.children, x, 1)
        y, margins = forward(weights, x, act)
        clear = np.abs(margins) > 1e-9  # of a point on a line either side is right
        assert np.array_equal(bits(found)[region][clear], (margins > 0)[clear]), told
        mapped = np.einsum("pka,pa->pk", found.maps[region, :, :-1], x) + found.maps[region, :, -1]
        np.testing.assert_allclose(mapped, y, atol=1e-9, err_msg=told)

        assert found.facet_ids is not None
        assert found.facet_lines is not None
        _, index, counts = np.unique(found.facet_ids, return_index=True, return_counts=True)
        outside = found.facet_lines[index] >= sum(found.lines_a_layer)
        assert set(counts[~outside]) <= {2}, told
        assert set(counts[outside]) <= {1}, told


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_by_rational_numbers(seed: int) -> None:
    rng, relu = np.random.default_rng(seed), activation("relu")
    for number in range(150):
        weights = network(rng, 2, scales=(-1.0, 1.0, 2.0, -0.5))  # which round nothing
        found = cpp.regions(problem_of(chain_of(weights, 1.0, relu)), geometry=True)
        expected = exact_splitter.regions(weights, 1.0)
        told = f"network {number}"
        assert found.n_regions == len(expected), told
        areas = sorted(float(exact_splitter.area(region.polygon)) for region in expected)
        np.testing.assert_allclose(np.sort(found.volumes), areas, rtol=1e-9, atol=1e-14, err_msg=told)
        inside = np.array([np.mean([[float(x) for x in point] for point in region.polygon], axis=0) for region in expected])
        number_of = tree.locate(found.cuts, found.children, inside, 1)
        assert sorted(number_of) == list(range(found.n_regions)), told
        maps = np.array([[[float(x) for x in output] for output in region.units] for region in expected])
        np.testing.assert_allclose(found.maps[number_of], maps, atol=1e-9, err_msg=told)
