"""Exact subdivision against expectations from an independent program, and against what a subdivision must be."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lmn.kernels.activations import Activation, activation
from lmn.kernels.pieces import pieces
from lmn.kernels.program import Program
from lmn.kernels.regions import cpp, reference
from lmn.kernels.regions.problem import Chain, PieceLayer, Problem, Subdivision

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "regions.json").read_text())
BOXES = [(case, box) for case in EXPECTED for box in case["boxes"]]

Weights = list[tuple[np.ndarray, np.ndarray]]


def weights_of(name: str) -> Weights:
    data = np.load(DATA / f"regions_{name}.npz")
    return [(data[f"W{i}"].astype(float), data[f"b{i}"].astype(float)) for i in range(len(data.files) // 2)]


def random_weights(widths: tuple[int, ...], seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return [(rng.uniform(-1, 1, (b, a)), rng.uniform(-1, 1, b)) for a, b in itertools.pairwise(widths)]


def chain_of(weights: Weights, half: float, act: Activation | None = None) -> Chain:
    (first, c), rest = weights[0], weights[1:]
    act = act or activation("relu")
    layers = tuple(PieceLayer(pieces(act, w.shape[1]), w, b) for w, b in rest)
    return Chain(half * first, c, np.abs(c) + half * np.abs(first).sum(1), layers)


def problem_of(chain: Chain, threads: int = 1, max_regions: int = 10**6) -> Problem:
    def no_program() -> Program:
        raise AssertionError("not asked for")

    n = chain.n_axes
    return Problem(chain, "", no_program, np.zeros(n), np.eye(n), (n,), max_regions, threads)


def subdivided(weights: Weights, half: float, act: Activation | None = None, threads: int = 1) -> Subdivision:
    return cpp.regions(problem_of(chain_of(weights, half, act), threads), geometry=True)


def forward(weights: Weights, x: np.ndarray, act: Activation) -> np.ndarray:
    h = torch.from_numpy(x)
    for index, (w, b) in enumerate(weights):
        h = (act.function(h) if index else h) @ torch.from_numpy(w).T + torch.from_numpy(b)
    return h.numpy()


@pytest.mark.parametrize(("case", "box"), BOXES, ids=[f"{case['name']} {box}" for case, box in BOXES])
def test_counts_of_an_independent_program(case: dict, box: str) -> None:
    expected, half = case["boxes"][box], float(box.split(",")[1])
    found = subdivided(weights_of(case["name"]), half, threads=2)
    assert found.n_regions == expected["activation_regions"]
    assert list(found.count_after_each_layer) == expected.get("regions_after_each_layer", list(found.count_after_each_layer))
    areas = found.volumes * half**2
    assert areas.sum() == pytest.approx(4 * half**2, rel=1e-12)
    for name, value in (("area_median", np.median(areas)), ("area_min", areas.min())):
        assert value == pytest.approx(expected.get(name, value), rel=1e-9, abs=1e-20)  # of sides of 1e-8
    if "area_weighted_mean_gradient_norm" in expected:
        norms = np.linalg.norm(found.maps[:, 0, :2] / half, axis=1)
        assert areas @ norms / areas.sum() == pytest.approx(expected["area_weighted_mean_gradient_norm"], rel=1e-9)


ACTIVATIONS = [
    activation("relu"),
    activation("leaky_relu", negative_slope=0.3),
    activation("prelu", weight=torch.tensor([-0.7])),
    activation("abs"),
    activation("hardtanh", min_val=-0.5, max_val=0.8),
    activation("relu6"),
]


@pytest.mark.parametrize("n_in", [1, 2, 3])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: act.name)
def test_each_map_is_the_network_in_its_region(n_in: int, act: Activation) -> None:
    weights = random_weights((n_in, 7, 6, 5, 2), seed=n_in)
    found = subdivided(weights, 3.0, act)
    assert found.n_vertices is not None
    assert found.vertices is not None
    np.testing.assert_allclose(found.volumes.sum(), 2.0**n_in, rtol=1e-12)
    region = np.repeat(np.arange(found.n_regions), found.n_vertices)
    x = 0.3 * found.vertices + 0.7 * found.centres[region]  # inside, in all directions
    got = np.einsum("pka,pa->pk", found.maps[region, :, :-1], x) + found.maps[region, :, -1]
    np.testing.assert_allclose(got, forward(weights, 3.0 * x, act), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_in", [1, 2, 3])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: act.name)
def test_the_same_cells_as_by_linear_programs(n_in: int, act: Activation) -> None:
    chain = chain_of(random_weights((n_in, 5, 4, 2), seed=30 + n_in), 2.0, act)
    expected = {cell.pattern: cell for cell in reference.regions(chain)}
    found = cpp.regions(problem_of(chain))
    first = np.cumsum([0, *(-(-n // 64) for n in found.lines_a_layer)])
    bits = [
        tuple(bool(int(words[w]) >> i & 1) for w, n in zip(first, found.lines_a_layer, strict=False) for i in range(n))
        for words in found.patterns
    ]
    assert set(bits) == set(expected)
    for pattern, maps in zip(bits, found.maps, strict=True):
        np.testing.assert_allclose(maps, expected[pattern].map, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n_in", [1, 2, 3])
def test_every_inner_facet_is_shared_by_two_regions(n_in: int) -> None:
    found = subdivided(random_weights((n_in, 9, 8, 1), seed=10 + n_in), 2.0)
    assert found.facet_ids is not None
    assert found.facet_lines is not None
    _, index, counts = np.unique(found.facet_ids, return_index=True, return_counts=True)
    outside = found.facet_lines[index] >= 17  # the lines of the layers come before the cube's sides
    assert set(counts[~outside]) == {2}
    assert set(counts[outside]) == {1}


@pytest.mark.parametrize("n_in", [2, 3])
def test_the_complex_has_the_euler_characteristic_of_a_ball(n_in: int) -> None:
    found = subdivided(random_weights((n_in, 9, 8, 1), seed=20 + n_in), 2.0)
    counts = [
        len(np.unique(ids)) for ids in (found.vertex_ids, found.edge_ids, found.facet_ids) if ids is not None and len(ids)
    ]
    assert sum((-1) ** d * count for d, count in enumerate([*counts, found.n_regions])) == 1


@pytest.mark.parametrize("n_in", [1, 2, 3])
def test_a_hyperplane_arrangement_in_general_position(n_in: int) -> None:
    rng = np.random.default_rng(5)
    normals = rng.standard_normal((8, n_in))
    weights = [(normals, 0.05 * rng.standard_normal(8)), (np.ones((1, 8)), np.zeros(1))]
    expected = {1: 1 + 8, 2: 1 + 8 + 28, 3: 1 + 8 + 28 + 56}[n_in]  # 1 + n + C(n, 2) + C(n, 3)
    assert subdivided(weights, 1e3).n_regions == expected


def test_a_folded_tent_has_two_to_the_k_regions() -> None:
    fold = [(np.array([[2.0], [4.0]]), np.array([0.0, -2.0]))]  # relu(2 x) - relu(4 x - 2) on [0, 1] is a tent
    weights = fold.copy()
    for _ in range(5):
        w, b = np.array([[1.0, -1.0]]), np.zeros(1)
        weights.append((fold[0][0] @ w, fold[0][0] @ b + fold[0][1]))
    weights.append((np.array([[1.0, -1.0]]), np.zeros(1)))
    shifted = [(weights[0][0], weights[0][1] + weights[0][0] @ np.array([0.5])), *weights[1:]]  # [0, 1] is [-1/2, 1/2]
    assert subdivided(shifted, 0.5).n_regions == 2**6


def test_the_same_for_any_number_of_threads() -> None:
    weights = random_weights((2, 32, 32, 1), seed=3)
    one, other = (subdivided(weights, 2.0, threads=threads) for threads in (1, 3))
    assert one.n_regions > 1000
    for name in ("patterns", "volumes", "maps", "vertices", "facet_ids", "cuts", "children"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_tree_of_cuts_finds_the_region_of_a_point() -> None:
    weights = random_weights((2, 12, 10, 1), seed=4)
    found = subdivided(weights, 2.0)
    node = 0
    for region, centre in enumerate(found.centres):
        node = 0
        while node >= 0:
            node = int(found.children[node, int(found.cuts[node] @ [*centre, 1] <= 0)])
        assert ~node == region


def test_too_many_regions_are_given_up() -> None:
    found = cpp.regions(problem_of(chain_of(random_weights((2, 64, 64, 1), seed=6), 9.0), threads=2, max_regions=1000))
    assert not found.complete
    assert found.n_regions >= 1000


@pytest.mark.parametrize(("limit", "complete"), [(101, True), (100, False), (60, False)])
def test_the_limit_on_regions_is_exact(limit: int, complete: bool) -> None:
    chain = chain_of(weights_of("random_16x16"), 1.0)  # 101 regions
    assert cpp.regions(problem_of(chain, threads=2, max_regions=limit)).complete is complete
