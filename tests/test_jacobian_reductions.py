"""Reductions and alignments of local maps where numbers are tiny or huge, memory is short, or threads meet."""

import copy
import itertools
import math
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import lmn
from lmn import alignment
from lmn.kernels.jacobians.problem import Problem
from lmn.kernels.jacobians.torch_eager import TailMaps
from lmn.map_source import MapSource
from lmn.memory import memory_limit_of


def mlp(*widths: int, act: type[nn.Module] = nn.SiLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), act()]
    return nn.Sequential(*layers[:-1])


def affine(weight: Tensor) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


# ---- sizes that a square has no float for -----------------------------------------------------------------------------------

SHAPELESS = ("effective_rank", "participation_ratio")
NORMS = ("frobenius_norm", "spectral_norm")


def test_a_deep_sigmoid_network_has_its_norms_and_its_rank() -> None:
    model, x = mlp(6, *[30] * 24, 5, act=nn.Sigmoid), torch.randn(40, 6)
    names = (*NORMS, *SHAPELESS, "singular_values", "effective_linear_maps")
    expected = lmn.jacobians(copy.deepcopy(model).double(), x.double(), reduce=names, progress=False)
    assert 0 < expected["spectral_norm"].max() < 1e-19  # the square is no float32
    got = lmn.jacobians(model, x, reduce=names, progress=False)
    for name in names[:-1]:
        torch.testing.assert_close(got[name].double(), expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].max()))
    assert got["effective_linear_maps"] == pytest.approx(expected["effective_linear_maps"], rel=1e-3)
    torch.testing.assert_close(lmn.jacobian_alignment(model, x, model, progress=False), torch.ones(40))
    assert lmn.jacobian_alignment(model, x, progress=False).min() > 0.9


@pytest.mark.parametrize(
    ("dtype", "size"),
    [*((torch.float32, size) for size in (1e-42, 1e-37, 1e-23, 1e23, 1e37)), *((torch.float64, s) for s in (1e-300, 1e300))],
)
def test_what_is_made_of_maps_scales_with_them(dtype: torch.dtype, size: float) -> None:
    weight = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.25, 3.0]], dtype=torch.float64) * size
    model, x = affine(weight.to(dtype)), torch.zeros(7, 3, dtype=dtype)
    values = torch.linalg.svdvals(weight.to(dtype).double())
    p = (values / values[0]).square()
    p = p / p.sum()
    found = lmn.jacobians(model, x, reduce=(*NORMS, *SHAPELESS, "effective_linear_maps"), progress=False)
    rel = 1e-9 if dtype == torch.float64 else 1e-5 if size > 1e-38 else 2e-2  # subnormals have few bits
    assert float(found["spectral_norm"][0]) == pytest.approx(float(values[0]), rel=rel)
    assert float(found["frobenius_norm"][0]) == pytest.approx(float((values / values[0]).norm() * values[0]), rel=rel)
    assert float(found["effective_rank"][0]) == pytest.approx(2 ** -float((p * p.log2()).sum()), rel=rel)
    assert float(found["participation_ratio"][0]) == pytest.approx(1 / float(p.square().sum()), rel=rel)
    assert found["effective_linear_maps"] == pytest.approx(1, rel=rel)
    torch.testing.assert_close(
        lmn.jacobian_alignment(model, x, affine(-weight.to(dtype)), progress=False), -torch.ones_like(x[:, 0])
    )


def test_the_norms_of_a_zero_map_are_zero() -> None:
    found = lmn.jacobians(affine(torch.zeros(2, 3)), torch.randn(4, 3), reduce=(*NORMS, *SHAPELESS), progress=False)
    assert not any(values.any() for values in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_map_has_no_log_determinant(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    regular = torch.randn(6, 6, dtype=torch.float64)
    singular = regular[:, :5] @ torch.randn(5, 6, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=dtype)
    for size in (1e-20, 1.0, 1e20):
        assert lmn.jacobians(affine((size * singular).to(dtype)), x, reduce="log_determinant").tolist() == [-math.inf] * 3
        got = lmn.jacobians(affine((size * regular).to(dtype)), x, reduce="log_determinant")
        expected = float(torch.linalg.slogdet(regular).logabsdet) + 6 * math.log(size)
        assert got.tolist() == pytest.approx([expected] * 3, rel=1e-5)
    assert lmn.jacobians(affine(torch.zeros(6, 6, dtype=dtype)), x, reduce="log_determinant").tolist() == [-math.inf] * 3


# ---- memory -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many maps are computed, at each call."""
    numbers: list[int] = []
    isometric = MapSource.isometric

    def counting(source: MapSource, first: int, last: int) -> Tensor:
        numbers.append(last - first)
        return isometric(source, first, last)

    monkeypatch.setattr(MapSource, "isometric", counting)
    return numbers


def test_each_map_is_computed_once_for_their_products(counted: list[int]) -> None:
    model, x = mlp(200, 210, 40), torch.randn(300, 200)  # 300 maps of 8000 entries, in several parts
    whole = lmn.jacobians(model, x, reduce="effective_linear_maps", progress=False)
    assert sum(counted) == 300
    assert len(counted) > 1
    counted.clear()
    parts = lmn.jacobians(model, x, reduce="effective_linear_maps", memory_limit=16 << 20, progress=False)
    assert 300 < sum(counted) < 2.5 * 300  # four panels
    assert parts == pytest.approx(whole, rel=1e-6)


def test_the_products_need_room_for_a_copy() -> None:
    model, x = mlp(64, 70, 40), torch.randn(300, 64)
    for limit in (8 * 300**2, 16 * 300**2 - 1):
        with pytest.raises(lmn.LmnError, match=r"300 x 300 matrix of the maps' products, and a copy of it, take 1\.4 MiB"):
            lmn.jacobians(model, x, reduce="effective_linear_maps", memory_limit=max(limit, 1 << 20), progress=False)
    lmn.jacobians(model, x, reduce="effective_linear_maps", memory_limit=16 * 300**2, progress=False)


@pytest.mark.parametrize("other", [True, False])
def test_one_map_has_to_fit_for_an_alignment(other: bool) -> None:
    model = nn.Linear(3, 200_000)
    with pytest.raises(lmn.LmnError, match="one Jacobian of 200000 x 3, and what is made of it"):
        lmn.jacobian_alignment(model, torch.randn(2, 3), model if other else None, memory_limit=1 << 20, progress=False)


@pytest.mark.parametrize("limit", [math.inf, -math.inf, math.nan, np.float64("inf"), True, "1 GiB", 1 << 10, np.int32(5)])
def test_what_is_no_memory_limit(limit: Any) -> None:
    with pytest.raises(lmn.LmnError, match="memory_limit is a number of bytes"):
        lmn.jacobians(nn.Linear(3, 2), torch.randn(4, 3), memory_limit=limit, progress=False)


@pytest.mark.parametrize(
    "limit", [1 << 21, 2.5e6, np.int64(1 << 21), np.uint32(1 << 21), np.float32(1 << 21), np.float64(2.5e6)]
)
def test_numbers_of_all_kinds_are_memory_limits(limit: Any) -> None:
    assert memory_limit_of(limit, torch.device("cpu")) == int(limit)


# ---- neighbours -------------------------------------------------------------------------------------------------------------


def nearest_by_definition(x: np.ndarray) -> np.ndarray:
    distance = np.square(x[:, None] - x[None]).sum(2)
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(1)


@pytest.mark.parametrize("kind", ["far from zero", "near copies"])
def test_the_nearest_sample_is_the_nearest(kind: str) -> None:
    torch.manual_seed(0)
    model = mlp(3, 20, 4)
    if kind == "far from zero":
        x = 1000 + torch.randn(200, 3) / 10
        with torch.no_grad():
            model[0].weight *= 5
            model[0].bias -= model[0].weight @ torch.full((3,), 1000.0)
    else:
        x = torch.randn(100, 3).repeat_interleave(3, 0) + 1e-4 * torch.randn(300, 3)
        with torch.no_grad():
            model[0].weight *= 30
    maps = lmn.jacobians(model, x, progress=False).flatten(1).double()
    expected = torch.cosine_similarity(maps, maps[torch.from_numpy(nearest_by_definition(x.double().numpy()))])
    got = lmn.jacobian_alignment(model, x, progress=False)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def test_the_nearest_sample_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(50, 20, 4), torch.randn(1500, 50)
    whole = lmn.jacobian_alignment(model, x, progress=False)
    sizes: list[int] = []
    cdist = torch.cdist

    def measured(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        sizes.append(a.nbytes + b.nbytes + 8 * len(a) * len(b))
        return cdist(a, b, **options)

    monkeypatch.setattr(torch, "cdist", measured)
    limit = 4 << 20
    assert torch.equal(lmn.jacobian_alignment(model, x, memory_limit=limit, progress=False), whole)
    assert max(sizes) <= limit


@pytest.mark.parametrize("counts", [(7, 5), (1, 9), (4, 1), (3, 4, 5)], ids=str)
def test_neighbours_along_each_axis(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(len(counts), 30, 3).double()
    grid = lmn.box([-2] * len(counts), [2] * len(counts), counts)
    maps = lmn.jacobians(model, grid, progress=False).reshape(*counts, -1)
    got = lmn.jacobian_alignment(model, grid, progress=False)
    for place in itertools.product(*map(range, counts)):
        near = []
        for axis, step in itertools.product(range(len(counts)), (-1, 1)):
            at = tuple(p + step * (axis == a) for a, p in enumerate(place))
            if 0 <= at[axis] < counts[axis]:
                near.append(torch.cosine_similarity(maps[place], maps[at], dim=0))
        expected = float(torch.stack(near).mean())
        assert float(got.reshape(counts)[place]) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(alignment, "_PAIRS", 3)
    assert torch.equal(lmn.jacobian_alignment(model, grid, progress=False), got)


def test_the_neighbours_on_a_long_line_are_compared_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    cosine = alignment._cosine

    def counting(a: Tensor, b: Tensor) -> Tensor:
        calls.append(len(a))
        return cosine(a, b)

    monkeypatch.setattr(alignment, "_cosine", counting)
    found = lmn.jacobian_alignment(mlp(2, 5, 1), lmn.line([0, 0], [1, 1], 300_001), progress=False)
    assert found.shape == (300_001,)
    assert sum(calls) == 300_000
    assert len(calls) <= 6


# ---- two models -------------------------------------------------------------------------------------------------------------


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)  # while the other thread opens the other model
        return torch.tanh(self.layer(x))


def test_two_threads_align_two_models_both_ways() -> None:
    one, two, x = Slow(), Slow(), torch.randn(5, 3)
    found: list[Tensor] = []
    pairs = ((one, two), (two, one))
    threads = [
        threading.Thread(target=lambda a=a, b=b: found.append(lmn.jacobian_alignment(a, x, b, progress=False)), daemon=True)
        for a, b in pairs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    torch.testing.assert_close(*found)


class Named(nn.Module):
    """Whose own names look like a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.module(x))


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("kind", [lambda: mlp(3, 8, 2), Named])
def test_a_wrappers_state_dict_is_the_models(kind: Any, prefix: str) -> None:
    model, other, x = kind(), kind(), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = lmn.jacobian_alignment(model, x, other, progress=False)
    state = {prefix + name: value for name, value in other.state_dict().items()}
    assert torch.equal(lmn.jacobian_alignment(model, x, state, progress=False), expected)
    if prefix == "_orig_mod.":
        compiled = torch.compile(other)
        assert list(compiled.state_dict()) == list(state)
        assert torch.equal(lmn.jacobian_alignment(torch.compile(model), x, compiled.state_dict(), progress=False), expected)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"no state dict of this model \(.*Missing.*weight"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(2)}, r"Unexpected.*\"scale\""),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"size mismatch for weight"),
        ({"module.weight": torch.zeros(2, 3)}, r"Missing.*\"bias\""),
        ({0: torch.zeros(2, 3)}, r"no state dict of this model \(a key is 0, no name"),
        ({"weight": 1.0, "bias": torch.zeros(2)}, r"no state dict of this model \('weight' is float, no tensor"),
        ({"weight": None, "bias": torch.zeros(2)}, r"'weight' is NoneType, no tensor"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(list(value)),
)
def test_what_is_no_state_dict_of_the_model(state: dict[Any, Any], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message) as raised:
        lmn.jacobian_alignment(nn.Linear(3, 2), torch.randn(5, 3), state, progress=False)
    assert "\n" not in str(raised.value)


def test_a_long_list_of_missing_names_is_cut() -> None:
    with pytest.raises(lmn.LmnError, match="Missing") as raised:
        lmn.jacobian_alignment(mlp(*[3] * 100), torch.randn(5, 3), {}, progress=False)
    assert len(str(raised.value)) < 600


def test_something_else_is_no_model() -> None:
    with pytest.raises(lmn.LmnError, match="the model is list"):
        lmn.jacobian_alignment(nn.Linear(3, 2), torch.randn(5, 3), [1], progress=False)  # type: ignore[arg-type]


# ---- forward mode -----------------------------------------------------------------------------------------------------------


def problem_of(tail: Any) -> Problem:
    return Problem(
        None, "", torch.device("cpu"), torch.float32, tail, n_in=2, n_out=4, batch=8, double=True, forward=True, threads=1
    )


@pytest.mark.parametrize("error", [KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, ValueError])
def test_what_forward_mode_fails_at_is_done_in_reverse(error: type[Exception]) -> None:
    weight = torch.randn(2, 4)

    def tail(x: Tensor) -> Tensor:
        if forward_ad.unpack_dual(x).tangent is not None:
            raise error("no forward mode")
        return x @ weight

    got = TailMaps(problem_of(tail)).jacobians(torch.randn(3, 2))
    torch.testing.assert_close(got, weight.T.expand(3, 4, 2))


def test_an_error_of_the_model_itself_is_not_hidden() -> None:
    def tail(_x: Tensor) -> Tensor:
        raise ValueError("the model's own")

    with pytest.raises(ValueError, match="the model's own"):
        TailMaps(problem_of(tail)).jacobians(torch.randn(3, 2))


def test_forward_mode_warns_of_nothing_and_hides_no_warning_of_the_model() -> None:
    script = """
import warnings
import torch
from lmn.kernels.jacobians.problem import Problem
from lmn.kernels.jacobians.torch_eager import TailMaps

def tail(x):
    warnings.warn("the model's own", DeprecationWarning)
    return torch.tanh(x @ torch.ones(2, 4))

where = torch.device("cpu"), torch.float32
problem = Problem(None, "", *where, tail, n_in=2, n_out=4, batch=8, double=True, forward=True, threads=1)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    maps = TailMaps(problem)
    maps.jacobians(torch.randn(3, 2))
assert maps._forward
assert [str(w.message) for w in seen] == ["the model's own"], [str(w.message) for w in seen]
with warnings.catch_warnings():
    warnings.simplefilter("error")
    TailMaps(Problem(None, "", *where, torch.tanh, 2, 2, 8, True, True, 1)).jacobians(torch.randn(3, 2))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("widths", [(20, 9, 12, 6), (3, 9, 12, 7), (20, 9, 1), (6, 5, 30)], ids=str)
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_reductions_from_gram_matrices_are_those_of_the_maps(widths: tuple[int, ...], act: type[nn.Module]) -> None:
    model, x = mlp(*widths, act=act), torch.randn(300, widths[0])
    names = ("frobenius_norm", "spectral_norm", "effective_rank", "participation_ratio")
    got = lmn.jacobians(model, x, reduce=names, progress=False)
    a = torch.func.vmap(torch.func.jacrev(copy.deepcopy(model).double()))(x.double()).detach()
    values = torch.linalg.svdvals(a)
    p = values**2 / (values**2).sum(1, keepdim=True).clamp(min=1e-300)
    zero = values[:, 0] == 0  # a map without a rank
    expected = {
        "frobenius_norm": torch.linalg.matrix_norm(a),
        "spectral_norm": values[:, 0],
        "effective_rank": torch.exp2(-torch.special.xlogy(p, p).sum(1) / math.log(2)).masked_fill(zero, 0),
        "participation_ratio": (1 / (p**2).sum(1)).masked_fill(zero, 0),
    }
    for name in names:
        torch.testing.assert_close(got[name].double(), expected[name], rtol=2e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e-30, 1e30, 1e100, 1e200])
def test_norms_of_maps_whose_squares_are_no_numbers(scale: float) -> None:
    dtype = torch.float64 if scale > 1e90 or scale < 1e-90 else torch.float32
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5, bias=False)).to(dtype)
    x = torch.randn(50, 9, dtype=dtype)
    names = ("spectral_norm", "effective_rank", "participation_ratio")
    expected = lmn.jacobians(model, x, reduce=names, progress=False)
    with torch.no_grad():
        model[2].weight *= scale
    got = lmn.jacobians(model, x, reduce=names, progress=False)
    got["spectral_norm"] = got["spectral_norm"] / scale
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=0)


def test_maps_without_gram_matrices_are_taken_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, taken = nn.Sequential(nn.Linear(300, 400), nn.SiLU(), nn.Linear(400, 300)), list[int]()
    isometric = MapSource.isometric

    def counting(source: MapSource, first: int, last: int) -> Tensor:
        taken.append(last - first)
        return isometric(source, first, last)

    monkeypatch.setattr(MapSource, "isometric", counting)
    lmn.jacobians(model, torch.randn(40, 300), reduce="spectral_norm", progress=False)
    assert taken == [40]


def test_zero_maps_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias -= 1
    x = torch.randn(200, 3, dtype=torch.float64)
    got = lmn.jacobians(model, x, reduce="spectral_norm", progress=False)
    expected = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(model))(x), ord=2).detach()
    assert (expected == 0).any()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


class Checkpointed(nn.Module):
    """Runs under its own checkpoint in float32 only: nothing of lmn's casts what is kept inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(2, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, torch.relu(self.first(x)), use_reentrant=False))


@pytest.mark.parametrize("reduce", ["frobenius_norm", "effective_linear_maps"])
def test_a_checkpointed_model_on_a_box(reduce: str) -> None:
    torch.manual_seed(0)
    model = Checkpointed()
    grid = lmn.box([-1.0, -1.0], [1.0, 1.0], 70)
    plain = nn.Sequential(model.first, nn.ReLU(), *model.inner, model.last)
    got, expected = (lmn.jacobians(each, grid, reduce=reduce, progress=False) for each in (model, plain))
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), rtol=1e-3, atol=1e-3)
