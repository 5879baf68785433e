"""Activation patterns by the Triton kernels in Triton's interpreter against the definition."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_local_complexity import mlp as double_mlp
from torch import Tensor, nn

import lmn
from lmn import map_source
from lmn.activation_patterns import observe
from lmn.backends import REGISTRY, choose
from lmn.grid import as_grid
from lmn.kernels.jacobians.triton_gpu import TritonMaps
from lmn.kernels.patterns import distinct, triton_gpu
from lmn.kernels.patterns.distinct import DistinctPatterns
from lmn.kernels.patterns.triton_fused import MOST_IN_A_ROW
from lmn.kernels.patterns.triton_ops import TAKES_GRIDS, narrow_patterns
from lmn.subject import Subject

pytestmark = pytest.mark.usefixtures("poisoned")

ACTIVATIONS: dict[str, Any] = {
    "ReLU": nn.ReLU, "LeakyReLU": nn.LeakyReLU, "PReLU": nn.PReLU, "ReLU6": nn.ReLU6, "Hardsigmoid": nn.Hardsigmoid,
    "Hardtanh": lambda: nn.Hardtanh(-0.5, 0.2), "Softshrink": lambda: nn.Softshrink(0.3),
}  # fmt: skip
ODD = (1, 2, 17, 33, 100)
NARROW = (3, 20, 17, 2)
IN_PARTS = (3, 70, 100, 2)
WIDE = (3, 150, 9, 2)
OF_WIDTHS = pytest.mark.parametrize("widths", [NARROW, IN_PARTS, WIDE], ids=["narrow", "in parts", "wide"])


def mlp(widths: tuple[int, ...], act: str = "ReLU") -> nn.Sequential:
    return double_mlp(widths, ACTIVATIONS[act]).float()


def samples(n: int, n_in: int) -> Tensor:
    return 2 * torch.randn(n, n_in, generator=torch.Generator().manual_seed(5))


def check(model: nn.Module, grid: Any, **options: Any) -> lmn.ActivationPatterns:
    got, expected = (
        lmn.activation_patterns(model, grid, backend=backend, ids=True, progress=False, **options)
        for backend in ("triton", "reference")
    )
    assert (got.backend, got.layers, got.bits) == ("triton", expected.layers, expected.bits)
    for name in ("words", "counts", "first", "ids"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    return got


@pytest.mark.parametrize("act", ACTIVATIONS)
@OF_WIDTHS
def test_every_activation(act: str, widths: tuple[int, ...]) -> None:
    assert len(check(mlp(widths, act), samples(40, 3)).counts) > 5


@pytest.mark.parametrize("n", ODD)
@OF_WIDTHS
def test_any_number_of_points(n: int, widths: tuple[int, ...]) -> None:
    check(mlp(widths), samples(n, 3))


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("act", ["ReLU", "Hardtanh"])
def test_any_sizes(size: int, act: str) -> None:
    """Tiles are larger than the data in each dimension, or no multiple of it; words are full, and nearly so."""
    check(mlp((size, 20, 2), act), samples(3, size))
    check(mlp((3, size, 5, 2), act), samples(20, 3))


@pytest.mark.parametrize("size", [31, 32, 63, 64, 65, 128, 192])
def test_words_that_are_full(size: int) -> None:
    check(mlp((3, size, size, 2), "Hardtanh"), samples(9, 3))


@pytest.mark.parametrize(
    "grid",
    [
        lmn.box(-2, 2, [5, 1, 7]),
        lmn.box(-2, 2, [1, 1, 1]),
        lmn.plane([0, 0, 0.0], [1, 2, 3.0], [3, -1, 1], [4, 9]),
        lmn.line([-3, 2, 1], [2, 0.5, -3], 50),
    ],
    ids=lambda grid: f"{grid.kind} {grid.counts}",
)
@pytest.mark.parametrize("widths", [NARROW, IN_PARTS, WIDE, (3, 150, 2)], ids=["narrow", "in parts", "wide", "one layer"])
def test_regular_grids(grid: Any, widths: tuple[int, ...]) -> None:
    check(mlp(widths), grid)


def after(first: int, n: int = 150) -> list[int]:
    return list(range(first, first + n))


@pytest.mark.parametrize(
    ("counts", "points"),
    [
        ([10_000] * 3, [123, 987_654_321_012, 999_999_999_999]),
        ([10_000] * 3, after(999_999_999_940, 60)),
        ([10_000, 2, 3], after(59_940, 60)),
        ([2, 2, MOST_IN_A_ROW - 1], after(3 * (MOST_IN_A_ROW - 1) - 70)),
        ([2, 2, MOST_IN_A_ROW], after(3 * MOST_IN_A_ROW - 70)),
        ([2, 2**33, 2], after(2**34 - 70)),
    ],
    ids=["apart", "in a row", "short axes", "an axis of 32 bits", "an axis of more", "of 34 bits"],
)
@OF_WIDTHS
def test_points_of_a_grid_far_along_it(
    widths: tuple[int, ...], counts: list[int], points: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small, large = mlp(widths), lmn.box(-2, 2, [2, 2, 2]), lmn.box(-2, 2, counts)
    seen, patterns = [], triton_gpu.patterns
    monkeypatch.setattr(triton_gpu, "patterns", lambda problem: (seen.append(problem), patterns(problem))[1])
    lmn.activation_patterns(model, small, backend="triton", progress=False)
    problem = replace(seen[0], lattice=replace(seen[0].lattice, counts=large.counts))
    numbers = np.array(points)
    words, _ = triton_gpu._by_points(problem).of(numbers)
    x = large.at(torch.from_numpy(numbers), like=torch.empty(0, dtype=torch.float64))
    expected = lmn.activation_patterns(copy.deepcopy(model).double(), x, backend="reference", ids=True, progress=False)
    np.testing.assert_array_equal(words.numpy().view(np.uint64), expected.words[expected.ids])


@pytest.mark.skipif(not TAKES_GRIDS, reason="this Triton takes samples alone")
def test_points_of_an_axis_longer_than_float32_counts() -> None:
    """Steps of 1 through zero at 2^26 - 12; one float32 would count by fours there."""
    n, zero, width = 16, 2**26 - 12, 32
    words, hashes = torch.empty(n, 1, dtype=torch.int64), torch.empty(n, 2, dtype=torch.int64)
    none = torch.zeros(1, width)
    narrow_patterns(
        None, None, torch.full((width,), -float(zero)), torch.ones(1, width), torch.tensor([2**27]),
        torch.zeros(1, width, width), none, none, none, torch.zeros(1, 3), torch.zeros(1, 2), [1], [1],
        None, zero - 8, [1], False, words, hashes,
    )  # fmt: skip
    assert words[:, 0].tolist() == [0] * 9 + [1] * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_programs_that_are_no_chain(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)).to(dtype)
    check(model, torch.randn(30, 1, 8, 8).to(dtype))


@pytest.mark.parametrize("widths", [(3, 200, 70, 2), (3, 129, 128, 127, 2), (3, 8, 8, 8, 8, 8, 2)], ids=str)
@pytest.mark.parametrize("act", ["ReLU", "Hardtanh"])
def test_chains_too_wide_or_deep_for_one_kernel(widths: tuple[int, ...], act: str) -> None:
    check(mlp(widths, act), samples(20, 3))


def test_an_affine_model_has_one_pattern() -> None:
    assert check(nn.Linear(3, 2), samples(5, 3)).words.shape == (1, 0)


def test_some_points_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gpu, "_POINTS_A_CALL", 48)
    monkeypatch.setattr(distinct, "_LEAST_TOGETHER", 40)
    check(mlp((2, 6, 5, 2)), samples(300, 2))


# ---- what they are used for ------------------------------------------------------------------------------------------------


def test_observed_regions_are_looked_up_by_the_kernel_that_saw_them() -> None:
    model, x = mlp(NARROW), samples(60, 3)
    found = lmn.regions(model, x, backend="triton", progress=False)
    expected = lmn.regions(model, x, progress=False)
    np.testing.assert_allclose(found.linear_maps.A, expected.linear_maps.A)
    np.testing.assert_array_equal(found.locate(found.points), np.arange(found.count))


def test_jacobians_of_repeated_patterns_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:

    model, x = mlp((5, 8, 6)), samples(2, 5).repeat(150, 1)
    monkeypatch.setattr(map_source, "_PROBED", 16)
    taken = []
    jacobians = TritonMaps.jacobians
    monkeypatch.setattr(TritonMaps, "jacobians", lambda self, x: (taken.append(len(x)), jacobians(self, x))[1])
    got = lmn.jacobians(model, x, backend="triton", progress=False)
    expected = lmn.jacobians(model, x, backend="reference", progress=False)
    torch.testing.assert_close(got, expected, check_dtype=False)
    assert taken[-1] == 2  # after some samples by which the kernel is checked


@pytest.mark.parametrize("backend", ["cpp", "triton", "reference"])
@pytest.mark.parametrize("width", [2, 80])
def test_points_on_an_edge_are_patterns_of_their_own(backend: str, width: int) -> None:

    model = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-1.0)
    x = torch.tensor([[0.0], [1.0], [0.5], [1.0], [2.0]])
    with Subject(model, as_grid(x)) as subject:
        found = observe(subject, backend=backend, ids=True, edges_apart=True, threads=1, progress=False).patterns
    assert found.ids is not None
    assert found.ids.tolist() == [0, 1, 0, 2, 3]
    assert found.counts.tolist() == [2, 1, 1, 1]
    np.testing.assert_array_equal(found.words[0], found.words[1])


@pytest.mark.parametrize("width", [8, 80])
@pytest.mark.parametrize(
    "grid", [lmn.line([-1.0, -0.3, 0.7], [1.0, 0.3, -0.7], 41), lmn.box(-1, 1, [5] * 3)], ids=["line", "box"]
)
def test_of_a_grid_too(grid: Any, width: int) -> None:
    """A point amid it is where every unit is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width, bias=False), nn.ReLU(), nn.Linear(width, 2))
    with Subject(model, grid) as subject:
        found, expected = (
            observe(subject, backend=backend, ids=True, edges_apart=True, threads=1, progress=False).patterns
            for backend in ("triton", "reference")
        )
    for name in ("words", "counts", "first", "ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.ids is not None
    assert found.counts[found.ids[grid.n_points // 2]] == 1


# ---- the distinct ones -----------------------------------------------------------------------------------------------------


def insert(seen: DistinctPatterns, words: list[int], first: int, hashes: list[int]) -> None:
    seen.insert(
        torch.tensor(words)[:, None],
        torch.stack([torch.tensor(hashes), torch.zeros(len(hashes), dtype=torch.int64)], dim=1),
        torch.arange(first, first + len(words)),
    )


def test_rows_of_equal_hashes_stay_apart_when_others_come() -> None:
    seen = DistinctPatterns(1, torch.device("cpu"), verify=True, ids=True)
    insert(seen, [5, 6, 8], 0, [1, 1, 2])
    seen.finish()
    insert(seen, [8], 3, [2])  # whose hash is nobody else's
    seen.finish()
    assert seen.ids is not None
    assert seen.ids.tolist() == [0, 1, 2, 2]
    assert seen.counts.tolist() == [1, 1, 2]


@pytest.mark.parametrize("together", [1, 100])
def test_equal_hashes_of_different_patterns_are_told_apart(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_LEAST_TOGETHER", together)
    for verify in (False, True):
        seen = DistinctPatterns(1, torch.device("cpu"), verify=verify, ids=True)
        insert(seen, [5, 6, 5], 0, [1, 1, 1])
        insert(seen, [7, 6, 8], 3, [1, 1, 2])
        seen.finish()
        assert seen.ids is not None
        rows = [0, 1, 0, 2, 1, 3] if verify else [0, 0, 0, 0, 0, 1]
        assert seen.ids.tolist() == rows
        assert seen.counts.tolist() == np.bincount(rows).tolist()
        assert seen.first.tolist() == ([0, 1, 3, 5] if verify else [0, 5])
        assert (seen.collisions > 0) == verify


def test_what_waits_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of large networks have thousands of words."""
    monkeypatch.setattr(distinct, "_WAITING_BYTES", 8 * 1000 * 4)
    monkeypatch.setattr(distinct, "_COMPARED_BYTES", 8 * 1000 * 2)
    words = torch.randint(0, 1 << 40, (3, 1000), generator=torch.Generator().manual_seed(0))
    hashes, which = words[:, :2], [0, 1, 0, 2, 2, 1, 0, 1, 2, 2]
    seen = DistinctPatterns(1000, torch.device("cpu"), verify=True, ids=True)
    for first, row in enumerate(which):
        seen.insert(words[[row]], hashes[[row]], torch.tensor([first]))
        assert seen._n_waiting < 4
    seen.finish()
    assert torch.equal(seen.words, words)
    assert seen.counts.tolist() == np.bincount(which).tolist()
    assert seen.ids is not None
    assert seen.ids.tolist() == which
    assert seen.collisions == 0


def test_hashes_are_distinct_where_a_bit_is() -> None:
    """Also in the second half alone, and where words change places."""
    words = torch.tensor([[1 << bit, 0] for bit in range(63)] + [[0, 1 << bit] for bit in range(63)] + [[0, 0], [-1, -1]])
    hashes = torch.empty(len(words), 2, dtype=torch.int64)
    triton_gpu.hash_words(words, hashes)
    for half in hashes.unbind(1):
        assert len(half.unique()) == len(words)
    differing = (hashes[:, None] ^ hashes[None]).numpy().view(np.uint8)
    bits = np.unpackbits(differing, axis=2).mean(axis=2)[~np.eye(len(words), dtype=bool)]
    assert 0.45 < bits.mean() < 0.55
    assert bits.min() > 0.2


@pytest.mark.parametrize("act", ["ReLU", "ReLU6", "Hardtanh", "Hardsigmoid"])
@OF_WIDTHS
def test_units_that_overflow_are_what_they_are_in_the_model(widths: tuple[int, ...], act: str) -> None:
    """ReLU takes minus infinity to 0, and not half of it less half of it to NaN; a clamp takes it to its bound."""
    model = mlp(widths, act)
    with torch.no_grad():
        model[0].weight[::2] = -3e38  # half of the units are at minus infinity for many samples
        model[0].bias[::2] = -3e38
    assert len(check(model, samples(40, 3).abs() + 1).counts) > 2


@OF_WIDTHS
def test_units_that_tiles_are_filled_up_with_take_no_infinity(widths: tuple[int, ...]) -> None:
    """Which is let through by |z|, and is NaN times the zeros that weights are filled up with."""

    class Abs(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.abs()

    model = mlp(widths, "Hardtanh")
    model[1] = Abs()
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([2e38, 0, 0])
        model[2].weight.abs_()
    x = samples(40, 3)
    assert model[0](x).isinf().any()
    assert model(x).isfinite().all()
    check(model, x)
    got, expected = (lmn.jacobians(model, x, backend=backend, progress=False) for backend in ("triton", "torch"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


# ---- which backend -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["connectivity", "patterns", "jacobians", "local_complexity"])
def test_a_gpu_takes_triton_by_itself_and_a_cpu_never(operation: str) -> None:
    def chosen(device: str) -> str:
        problem = SimpleNamespace(
            device=torch.device(device), dtype=torch.float32, chain=object(), why_no_chain="", double=True
        )
        return choose(operation, "auto", problem).name

    assert "triton" in [backend.name for backend in REGISTRY[operation]]
    assert (chosen("cuda"), chosen("cpu")) == ("triton", "cpp")


@pytest.mark.parametrize(("name", "why"), [("gfx942:sramecc+:xnack-", ""), ("gfx1100", "made for gfx942.*this is a gfx1100")])
def test_of_amds_gpus_triton_takes_those_it_was_compiled_for(name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(gcnArchName=name))
    problem = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, chain=object(), why_no_chain="", double=True)
    if why:
        with pytest.raises(lmn.LmnError, match=why):
            choose("jacobians", "triton", problem)
    else:
        assert choose("jacobians", "triton", problem).name == "triton"
