"""Local Jacobians against torch.func.jacrev in float64 and closed forms; what is made of them; what can't be had."""

import copy
import functools
import itertools
from collections.abc import Callable
from itertools import product

import numpy as np
import piecewise_models
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lmn
from lmn import _core
from lmn.kernels.activations import ACTIVATIONS, activation
from lmn.kernels.jacobians.cpp import ChainMaps
from lmn.kernels.jacobians.problem import Chain, SlopeLayer

from models import CASES, built


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), act()]
    return nn.Sequential(*layers[:-1])


@functools.cache
def by_jacrev(name: str) -> Tensor:
    """Of the model itself in float64, its tap's output replaced: nothing of lmn's takes part. (n, n_out, n_in)."""
    case = CASES[name]
    model, inputs = built(case)
    model = copy.deepcopy(model).double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    tap = None if case.tap is None else model.get_submodule(case.tap)
    seen: list[Tensor] = []
    if tap is not None:
        with tap.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone())), torch.no_grad():
            model(inputs.clone())
    h = seen[0] if seen else inputs

    def tail(sample: Tensor) -> Tensor:
        if tap is None:
            out = model(sample[None].clone())
        else:
            with tap.register_forward_hook(lambda *_: sample[None].clone()):
                out = model(inputs[:1].clone())
        out = case.select(out) if case.select else getattr(out, "logits", out)
        return out.flatten()

    return torch.stack([torch.func.jacrev(tail)(sample).flatten(1) for sample in h])


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Tanh, nn.Sigmoid, nn.ELU])
@pytest.mark.parametrize("backend", ["cpp", "triton", "torch"])
def test_units_that_overflow_where_the_outputs_do_not(backend: str, act: type[nn.Module]) -> None:
    model = mlp(2, 5, 3, 2, act=act)
    with torch.no_grad():
        model[0].weight[:2] = -3e38  # times samples of 1 to 2: minus infinity
        if act not in (nn.ReLU, nn.ELU):  # which let the other through
            model[0].weight[1] = 3e38
    x = torch.rand(5, 2) + 1
    assert model[0](x).isinf().any()
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    assert expected.any()
    torch.testing.assert_close(lmn.jacobians(model, x, backend=backend, progress=False), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_every_model_has_the_jacobians_that_jacrev_gives(name: str, backend: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    got = lmn.jacobians(model, inputs, tap=case.tap, select=case.select, backend=backend, progress=False)
    expected = by_jacrev(name)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


CHAINS = [name for name, case in CASES.items() if case.path == "chain"]


@pytest.mark.parametrize(("name", "backend"), [*product(CASES, ["auto"]), *product(CHAINS, ["triton"])])
def test_float32_is_close_to_float64(name: str, backend: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    got = lmn.jacobians(model, inputs, tap=case.tap, select=case.select, backend=backend, progress=False)
    expected = by_jacrev(name)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", piecewise_models.MODELS)
def test_piecewise_linear_models_share_the_map_of_a_pattern(name: str) -> None:
    model, shape = piecewise_models.built(name)
    torch.manual_seed(1)
    x = torch.randn(120, *shape, dtype=torch.float64).repeat(2, *[1] * len(shape))  # each pattern twice at least
    a, c = lmn.jacobians(model, x, offsets=True, progress=False)
    expected = torch.stack([torch.func.jacrev(lambda s: model(s[None]).flatten())(sample).flatten(1) for sample in x[:120]])
    torch.testing.assert_close(a, expected.repeat(2, 1, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.einsum("nki,ni->nk", a, x.flatten(1)) + c, model(x).flatten(1).detach(), rtol=0, atol=1e-12
    )


# ---- the chain's kernel -----------------------------------------------------------------------------------------------------

PARAMETERS = {
    "prelu": {"weight": torch.linspace(-0.5, 0.5, 7)},
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {"alpha": 0.7},
    "clamp": {"min": -0.7, "max": 1.2},
}


def chain_of(act: str, widths: tuple[int, ...], seed: int = 0) -> tuple[Chain, Callable[[Tensor], Tensor]]:
    """A random chain, and the same by torch in float64."""
    generator = np.random.default_rng(seed)
    maps = [
        (generator.standard_normal((b, a)) / np.sqrt(a), generator.standard_normal(b) / 3)
        for a, b in itertools.pairwise(widths)
    ]
    acts = [activation(act, **PARAMETERS.get(act, {})) if act != "prelu" else _prelu(width) for width in widths[1:-1]]
    layers = tuple(SlopeLayer(a, weight, bias) for a, (weight, bias) in zip(acts, maps[1:], strict=True))
    tensors = [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in maps]

    def function(x: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(tensors):
            x = x @ weight.T + bias
            x = acts[number].function(x) if number < len(acts) else x
        return x

    return Chain(widths[0], widths[-1], maps[0], layers), function


def _prelu(width: int) -> object:
    return activation("prelu", weight=torch.linspace(-0.5, 0.5, width))


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(3, 7, 5), (5, 7, 9, 2), (2, 17, 33, 7, 40), (70, 8, 1), (80, 33, 70, 53)], ids=str)
def test_the_kernel_for_every_activation_depth_and_side(widths: tuple[int, ...], name: str, isa: str) -> None:
    chain, function = chain_of(name, widths)
    x = torch.randn(67, widths[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    expected = torch.func.vmap(torch.func.jacrev(function))(x)
    exact = 1e-12 if name != "hardsigmoid" else 1e-7  # whose 1/6 is a float32 in torch's backward
    for dtype, tolerance in ((torch.float64, exact), (torch.float32, 1e-5)):
        got = ChainMaps(chain, threads=1, isa=isa).jacobians(x.to(dtype)).double()
        at_kink = (got - expected).abs().flatten(1).amax(1) > tolerance * float(expected.abs().max())
        assert at_kink.sum() <= (dtype == torch.float32)  # a unit within rounding of a kink may be on either side


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dead", [0.0, 0.5, 1.0])
def test_units_of_no_slope_in_isometric_coordinates(dead: float, isa: str) -> None:
    chain, function = chain_of("relu", (90, 41, 30, 6))
    for layer in chain.layers[:1]:
        layer.bias[: int(dead * len(layer.bias))] = -100  # the units after it are silent
    x = torch.randn(67, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.func.vmap(torch.func.jacrev(function))(x)
    maps = ChainMaps(chain, threads=1, isa=isa)
    assert maps.n_columns == 41
    got = maps.isometric(x)
    torch.testing.assert_close(got @ got.mT, a @ a.mT, rtol=0, atol=1e-12)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        assert maps.has_grams(dtype)
        torch.testing.assert_close(maps.grams(x.to(dtype)), a @ a.mT, rtol=0, atol=tolerance)
    torch.testing.assert_close(maps.jacobians(x), a, rtol=0, atol=1e-12)


def test_a_chain_that_starts_and_ends_in_an_activation() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(30, 20), nn.Hardtanh(-0.3, 0.2), nn.Linear(20, 7), nn.ReLU())
    x = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, x, backend="cpp", progress=False), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_are_torchs_also_where_pieces_meet(name: str, dtype: torch.dtype) -> None:
    act = activation(name, **({"weight": torch.tensor([0.25])} if name == "prelu" else PARAMETERS.get(name, {})))
    z = torch.cat([torch.tensor([0.0, -0.5, 0.5, -1.0, 1.0, 3.0, -3.0, 6.0]), torch.linspace(-30, 30, 4001)]).to(dtype)
    x = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(act.function(x).sum(), x)
    slopes = _core.core_slopes_f64 if dtype == torch.float64 else _core.core_slopes_f32
    scale, slope = (float(value[0]) for value in act.by_unit(1))
    got = scale * slopes(act.core_index, act.p0, act.p1, act.kink, z.numpy()) + slope
    tolerance = 1e-14 if dtype == torch.float64 and name != "hardsigmoid" else 2e-6  # whose 1/6 torch has in float32
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("act", [nn.SiLU, nn.GELU, nn.ELU, nn.Softplus, nn.Mish, nn.Sigmoid, nn.SELU])
def test_small_slopes_keep_their_digits_in_float32(act: type[nn.Module]) -> None:
    model = mlp(4, 16, 3, act=act)
    with torch.no_grad():
        model[0].bias.fill_(-6)
    x = torch.randn(50, 4)
    expected = torch.func.vmap(torch.func.jacrev(copy.deepcopy(model).double()))(x.double()).detach()
    got = lmn.jacobians(model, x, backend="cpp", progress=False).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", ["cpp", "triton", "torch"])
def test_a_leaky_units_slope_keeps_its_digits_however_small(backend: str) -> None:
    model = mlp(6, 24, 24, 3, act=functools.partial(nn.LeakyReLU, 1e-5))
    with torch.no_grad():
        model[0].bias -= 3  # nearly all units are below zero, and their slopes are the map
        model[2].bias -= 3
    x = 4 * torch.randn(100, 6)
    expected = torch.func.vmap(torch.func.jacrev(copy.deepcopy(model).double()))(x.double()).detach()
    got = lmn.jacobians(model, x, backend=backend, progress=False).double()
    norms = expected.flatten(1).norm(dim=1)
    assert bool((norms < 1e-3 * norms.max()).any())  # maps that a lost digit would show in
    assert bool(((got - expected).flatten(1).norm(dim=1) <= 1e-6 * norms).all())


def test_a_nan_is_not_hidden_by_a_slope() -> None:
    for name in ACTIVATIONS:
        act = activation(name, **({"weight": torch.tensor([0.25])} if name == "prelu" else PARAMETERS.get(name, {})))
        if name != "identity":
            assert np.isnan(_core.core_slopes_f32(act.core_index, act.p0, act.p1, act.kink, np.float32([np.nan]))[0])


def test_the_bits_do_not_depend_on_threads_or_neighbours() -> None:
    model, x = mlp(5, 40, 40, 3, act=nn.SiLU), torch.randn(1000, 5)
    one = lmn.jacobians(model, x, threads=1, progress=False)
    two = lmn.jacobians(model, x, threads=2, progress=False)
    assert torch.equal(one, two)
    assert torch.equal(one[37:41], lmn.jacobians(model, x[37:41], threads=1, progress=False))


def test_dead_units_and_exact_zeros_have_torchs_slope() -> None:
    model = mlp(3, 6, 2)
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0, 0
    x = torch.randn(8, 3)
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected)


# ---- where maps are known without a forward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_in", [1, 2, 3])
def test_a_box_has_the_maps_of_its_exact_regions(n_in: int) -> None:
    model = mlp(n_in, 12, 9, 2).double()
    grid = lmn.box([-1.0] * n_in, [1.0] * n_in, {1: 5001, 2: 71, 3: 17}[n_in])
    a, c = lmn.jacobians(model, grid, offsets=True, progress=False)
    x = grid.at(torch.arange(grid.n_points)).double()
    torch.testing.assert_close(a, torch.func.vmap(torch.func.jacrev(model))(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.einsum("nki,ni->nk", a, x) + c, model(x).detach(), rtol=0, atol=1e-6)


def test_more_regions_than_points_are_given_up() -> None:
    model = mlp(2, 100, 100, 1).double()
    grid = lmn.box([-5, -5], [5, 5], 65)
    assert lmn.regions(model, grid, progress=False).count > grid.n_points
    x = grid.at(torch.arange(grid.n_points)).double()
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, grid, progress=False), expected, rtol=0, atol=1e-12)


# ---- reductions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(6, 20, 4), (40, 9, 3), (40, 3, 9), (2, 30, 12), (5, 8, 5)], ids=str)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_reductions_are_those_of_the_stored_maps(widths: tuple[int, ...], act: type[nn.Module]) -> None:
    model, x = mlp(*widths, act=act).double(), torch.randn(150, widths[0], dtype=torch.float64)
    names = ("frobenius_norm", "spectral_norm", "singular_values", "effective_rank", "participation_ratio")
    found = lmn.jacobians(model, x, reduce=names, progress=False)
    values = torch.linalg.svdvals(torch.func.vmap(torch.func.jacrev(model))(x).detach())
    total = values.square().sum(1, keepdim=True)
    p = values.square() / total.clamp(min=1e-300)
    alive = total[:, 0] > 0
    expected = {
        "frobenius_norm": values.norm(dim=1),
        "spectral_norm": values[:, 0],
        "singular_values": values,
        "effective_rank": torch.exp2(-torch.xlogy(p, p).sum(1) / np.log(2)) * alive,
        "participation_ratio": alive / p.square().sum(1).clamp(min=1e-300),
    }
    assert list(found) == list(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-10)


def test_known_singular_values() -> None:
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 0.5])))
    x = torch.randn(4, 3, dtype=torch.float64)
    names = ("singular_values", "spectral_norm", "frobenius_norm", "log_determinant", "participation_ratio", "linear_maps")
    found = lmn.jacobians(model, x, reduce=(*names, "effective_linear_maps"), progress=False)
    assert found["singular_values"][2].tolist() == [3, 2, 0.5]
    assert found["spectral_norm"][0] == pytest.approx(3)
    assert found["frobenius_norm"][0] == pytest.approx(np.sqrt(13.25))
    assert found["log_determinant"][0] == pytest.approx(np.log(3))
    assert found["participation_ratio"][0] == pytest.approx(13.25**2 / (81 + 16 + 1 / 16))
    assert (found["linear_maps"], found["effective_linear_maps"]) == (1, pytest.approx(1))


class Folded(nn.Module):
    """|x_k| in every coordinate: 2^n maps diag(±1), of which effective ones are n, each coordinate's sign being independent."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Selecting(nn.Module):
    """In each of c slabs of the first input another coordinate: c orthogonal maps."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1] - 1
        slab = (x[:, :1].detach() * c).floor().clamp(0, c - 1)
        return (x[:, 1:] * (slab == torch.arange(c))).sum(1, keepdim=True)


def test_orthogonal_maps_in_equal_shares_are_as_many_effective_ones() -> None:
    x = torch.rand(400, 6, dtype=torch.float64)
    x[:, 0] = (torch.arange(400) + 0.5) / 400
    found = lmn.jacobians(Selecting().double(), x, reduce="effective_linear_maps", progress=False)
    assert found == pytest.approx(5, rel=1e-9)


def test_folds_count_as_distinct_and_as_effective_maps() -> None:
    found = lmn.jacobians(
        Folded(), lmn.box([-1] * 3, [1] * 3, 8), reduce=("linear_maps", "effective_linear_maps"), progress=False
    )
    assert found["linear_maps"] == 8
    assert found["effective_linear_maps"] == pytest.approx(3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_effective_maps_do_not_depend_on_the_outputs_scale_or_the_points_order(scale: float) -> None:
    model, x = mlp(3, 30, 2, act=nn.SiLU).double(), torch.randn(300, 3, dtype=torch.float64)
    expected = lmn.jacobians(model, x, reduce="effective_linear_maps", progress=False)
    with torch.no_grad():
        model[2].weight *= scale
    got = lmn.jacobians(model, x.flip(0), reduce="effective_linear_maps", progress=False)
    assert got == pytest.approx(expected, rel=1e-9)


def test_both_gram_forms_give_the_same_number() -> None:
    model = mlp(6, 30, 10, act=nn.SiLU).double()
    x = torch.randn(59, 6, dtype=torch.float64)  # fewer points than a map has entries
    a = lmn.jacobians(model, x, progress=False).flatten(1)
    a = a / a.norm(dim=1, keepdim=True)
    p = torch.linalg.eigvalsh(a.T @ a / len(a)).clamp(min=0)
    expected = float(torch.exp2(-torch.xlogy(p, p).sum() / np.log(2)))
    assert lmn.jacobians(model, x, reduce="effective_linear_maps", progress=False) == pytest.approx(expected, rel=1e-9)


def test_a_small_memory_limit_changes_no_number() -> None:
    model, x = mlp(64, 50, 10, act=nn.SiLU).double(), torch.randn(300, 64, dtype=torch.float64)
    names = ("spectral_norm", "linear_maps", "effective_linear_maps")
    whole = lmn.jacobians(model, x, reduce=names, progress=False)
    parts = lmn.jacobians(model, x, reduce=names, memory_limit=1 << 21, progress=False)
    torch.testing.assert_close(parts["spectral_norm"], whole["spectral_norm"])
    assert parts["linear_maps"] == whole["linear_maps"] == 300
    assert parts["effective_linear_maps"] == pytest.approx(whole["effective_linear_maps"])


def test_a_boxs_regions_weigh_by_their_area() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1.0, -0.5, 1.0, 0.0), strict=True):
            parameter.fill_(value)
    # Zero below 1/2, the identity above: the zero map has no direction, and one is left.
    names = ("linear_maps", "effective_linear_maps")
    assert lmn.jacobians(model, lmn.box([0], [1], 3), reduce=names, progress=False) == dict(zip(names, (2, 1), strict=True))


def test_zero_maps_have_no_rank() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[2].weight.zero_()
    names = ("spectral_norm", "effective_rank", "participation_ratio", "effective_linear_maps")
    found = lmn.jacobians(model, torch.randn(5, 2, dtype=torch.float64), reduce=names, progress=False)
    assert all(not found[name].any() for name in names[:3])
    assert found["effective_linear_maps"] == 1


def test_the_weights_of_a_boxs_regions_are_their_areas() -> None:
    """(relu(x - 0.9), relu(0.9 - x)) has two orthogonal maps, in shares of 0.1 and 0.9 of [0, 1], on any grid of it."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([-0.9, 0.9], dtype=torch.float64))
    share = np.array([0.1, 0.9])
    expected = np.exp2(-(share * np.log2(share)).sum())
    for n in (3, 50):
        found = lmn.jacobians(model, lmn.box([0], [1], n), reduce="effective_linear_maps", progress=False)
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_network_that_is_no_chain_weighs_its_regions_too() -> None:
    chain = mlp(2, 12, 2).double()

    class NoChain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain

        def forward(self, x: Tensor) -> Tensor:
            return self.chain(x) + 0 * x

    grid = lmn.box([-1, -1], [1, 1], 4)
    numbers = [
        lmn.jacobians(model, grid, reduce="effective_linear_maps", progress=False) for model in (chain, NoChain().double())
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)


def test_linear_maps_of_a_model_that_can_not_be_traced_are_told_from_rounding() -> None:
    class Untraced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + 1e9 if float(x.sum()) < 1e30 else x

    torch.manual_seed(0)
    model, x = Untraced().double(), torch.randn(200, 3, dtype=torch.float64)
    assert lmn.jacobians(model, x, reduce="linear_maps", progress=False) == 1


# ---- points exactly where pieces meet ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Not a chain, so that patterns are looked at first."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.bend = nn.Linear(4, 3), bend

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bend(x)) + 0.5 * self.linear(x)


def largest_of_pairs(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 2)).amax(2).repeat(1, 2)


@pytest.mark.parametrize("bend", [torch.abs, lambda x: x.clamp(0, 1), functional.softshrink, largest_of_pairs])
@pytest.mark.parametrize("flip", [False, True])
def test_a_point_on_an_edge_does_not_lend_its_slope_to_others(bend: Callable[[Tensor], Tensor], flip: bool) -> None:
    torch.manual_seed(0)
    model, x = Residual(bend).double(), torch.randint(-2, 3, (300, 4)).double() / 2
    x[0] = 0
    x[100:200] += torch.rand(100, 4, dtype=torch.float64) / 3
    x = x.flip(0) if flip else x
    expected = torch.stack([torch.autograd.functional.jacobian(lambda s: model(s[None])[0], sample) for sample in x])
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected, rtol=0, atol=1e-12)


def test_a_point_on_an_edge_in_a_chain_with_few_patterns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Hardtanh(0, 1), nn.Linear(4, 4)).double()
    x = torch.randint(-1, 2, (9000, 4)).double() * 0.9
    x[0] = 0
    expected = torch.func.vmap(torch.func.jacrev(model))(x)
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected, rtol=0, atol=1e-12)


# ---- alignment --------------------------------------------------------------------------------------------------------------


def test_alignment_with_a_scaled_copy_is_one_and_with_a_negated_one_minus_one() -> None:
    model, x = mlp(4, 20, 3, act=nn.SiLU).double(), torch.randn(30, 4, dtype=torch.float64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight *= -2.5
    torch.testing.assert_close(lmn.jacobian_alignment(model, x, model, progress=False), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(lmn.jacobian_alignment(model, x, other, progress=False), -torch.ones(30, dtype=torch.float64))
    state = other.state_dict()
    torch.testing.assert_close(lmn.jacobian_alignment(model, x, state, progress=False), -torch.ones(30, dtype=torch.float64))


def test_alignment_of_two_models_is_the_cosine_of_their_maps() -> None:
    one, two = mlp(4, 20, 3, act=nn.SiLU).double(), mlp(4, 9, 3, act=nn.Tanh, seed=1).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    a, b = (torch.func.vmap(torch.func.jacrev(model))(x).flatten(1) for model in (one, two))
    expected = functional.cosine_similarity(a, b)
    torch.testing.assert_close(lmn.jacobian_alignment(one, x, two, progress=False), expected.detach())


def test_neighbours_on_a_grid_and_nearest_samples() -> None:
    model = mlp(2, 30, 3, act=nn.Tanh).double()
    grid = lmn.box([-1, -2], [1, 2], (5, 4))
    maps = lmn.jacobians(model, grid, progress=False).reshape(5, 4, -1)
    got = lmn.jacobian_alignment(model, grid, progress=False).reshape(5, 4)
    for i, j in itertools.product(range(5), range(4)):
        near = [(i + a, j + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= i + a < 5 and 0 <= j + b < 4]
        expected = torch.stack([functional.cosine_similarity(maps[i, j], maps[n], dim=0) for n in near]).mean()
        assert float(got[i, j]) == pytest.approx(float(expected), abs=1e-12)
    x = torch.randn(40, 2, dtype=torch.float64)
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    maps = lmn.jacobians(model, x, progress=False).flatten(1)
    expected = functional.cosine_similarity(maps, maps[distance.argmin(1)])
    torch.testing.assert_close(lmn.jacobian_alignment(model, x, progress=False), expected)


def test_neighbours_in_the_regions_of_a_box() -> None:
    model = mlp(2, 8, 1).double()
    grid = lmn.box([-1, -1], [1, 1], 65)
    regions, points = (lmn.jacobian_alignment(model, grid, backend=backend, progress=False) for backend in ("auto", "cpp"))
    torch.testing.assert_close(regions, points)


# ---- derivatives that are not what the outputs say --------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    """Rounds, and passes gradients straight through."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Straight.apply(4 * self.first(x)))


class Detached(nn.Module):
    """A chain to look at, half of whose derivative is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x).detach() * 1.0)) + self.second(torch.relu(self.first(x)))


class DetachedChain(Detached):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.tanh(h.detach() + (h - h.detach())) * 2)


@pytest.mark.parametrize("kind", [Quantised, Detached, DetachedChain])
def test_the_models_own_derivative_counts(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(70, 3, dtype=torch.float64)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda s: model(s[None])[0], sample) for sample in x])
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected, rtol=0, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 2)).train()
    model(torch.randn(9, 3)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    random = torch.get_rng_state()
    lmn.jacobians(model, torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None)
    assert all(module.training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())


# ---- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 7])
def test_a_jacobian_that_is_not_finite_where_derivatives_are_compared(at: int) -> None:
    x = torch.randn(60, 3)
    x[at] = 0
    for call in (lmn.jacobians, lmn.jacobian_alignment):
        with pytest.raises(lmn.LmnError, match=f"the first at point {at}; is the training diverged"):
            call(Root(), x, progress=False)


class TwoScales(nn.Module):
    """A large smooth output beside a small one that is rounded, with gradients passed through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([1e4 * self.first(x), Straight.apply(3 * self.second(x))], dim=1)


def test_a_small_output_beside_a_large_one_keeps_its_own_derivative() -> None:
    torch.manual_seed(0)
    model, x = TwoScales().double(), torch.randn(20, 3, dtype=torch.float64)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda s: model(s[None])[0], sample) for sample in x])
    torch.testing.assert_close(lmn.jacobians(model, x, progress=False), expected, rtol=1e-9, atol=0)


class Looked(nn.Module):
    """Looks its largest input up in a table, whose weights have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.argmax(1))


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sum(1, keepdim=True).sqrt()


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True)


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


class Across(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.T, dim=1) @ x


def over_the_batch() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Largest(), {}, "dtype torch.int64; pick a real-valued one"),
        (Step(), {}, "the output has no derivative"),
        (Looked(), {}, "the output has no derivative"),
        (Across(), {}, "changes with the batch it is in"),
        (over_the_batch(), {}, "not on one"),
        (nn.Linear(3, 2), {"reduce": "norm"}, "reduce is a name, or a sequence of names, out of"),
        (nn.Linear(3, 2), {"reduce": ()}, "reduce is a name, or a sequence of names, out of"),
        (nn.Linear(3, 2), {"reduce": "log_determinant"}, "log_determinant is of square maps, and these are 2 x 3"),
        (nn.Linear(3, 2), {"offsets": True, "reduce": "spectral_norm"}, "leave out reduce="),
        (nn.Linear(3, 2), {"memory_limit": 5}, "memory_limit is a number of bytes"),
        (nn.Linear(3, 2), {"backend": "gpu"}, "there is no backend 'gpu' for jacobians"),
        (nn.Linear(3, 200_000), {"memory_limit": 1 << 20}, "one Jacobian of 200000 x 3"),
        (nn.Linear(3, 2000), {"memory_limit": 1 << 20}, "2000 x 3 take 1.4 MiB, and the memory limit is 1.0 MiB; reduce them"),
        (Root(), {}, "1 of 60 Jacobians are not finite .*the first at point 7"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_has_no_jacobians_is_refused(model: nn.Module, options: dict[str, object], message: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    x[7] = 0
    with pytest.raises(lmn.LmnError, match=message):
        lmn.jacobians(model, x, progress=False, **options)
    assert model.training


def test_a_measurement_has_the_statistics_and_says_what_does_not_apply() -> None:
    model, grid = mlp(2, 20, 3), lmn.box([-1, -1], [1, 1], 9)
    names = ("regions", "jacobians", "local_complexity")
    found = lmn.measure(model, grid, metrics=names, progress=False)
    assert found.lmn is None
    assert found.jacobians is not None
    assert found.regions is not None
    assert found.local_complexity is not None
    norms = np.linalg.norm(found.regions.linear_maps.A, ord=2, axis=(1, 2))
    share = found.regions.volumes / found.regions.volumes.sum()
    assert found.jacobians.spectral_norm == pytest.approx(norms @ share, rel=1e-5)
    assert found.jacobians.largest_spectral_norm == pytest.approx(norms.max(), rel=1e-5)
    assert found.jacobians.linear_maps == found.regions.n_linear_maps
    effective = lmn.jacobians(model, grid, reduce="effective_linear_maps", progress=False)
    assert found.jacobians.effective_linear_maps == pytest.approx(effective)
    numbers = found.to_dict()
    assert {"exact_regions", "jacobian_spectral_norm", "effective_linear_maps", "local_complexity"} <= set(numbers)
    assert "local complexity with 2 directions: there are 2 inputs" in found.notes
    smooth = lmn.measure(mlp(2, 20, 3, act=nn.Tanh), grid, metrics=names, progress=False)
    assert (smooth.regions, smooth.local_complexity) == (None, None)
    assert smooth.jacobians is not None
    assert smooth.jacobians.linear_maps is None
    assert [note.partition(":")[0] for note in smooth.notes] == ["no regions", "no local complexity"]


def test_a_sampled_local_complexity_says_so() -> None:
    found = lmn.measure(mlp(3, 8, 2), torch.randn(50, 3), metrics=("local_complexity",), max_points=20, progress=False)
    assert found.n_sampled == 20
    assert found.local_complexity is not None
    assert len(found.local_complexity.counts) == 20
    assert any("the local complexity of a random sample of 20" in note for note in found.notes)


def test_alignment_needs_something_to_compare() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(lmn.LmnError, match="a single point has no neighbour"):
        lmn.jacobian_alignment(model, torch.randn(1, 3))
    with pytest.raises(lmn.LmnError, match="2 x 3 and 4 x 3, and only equal sizes can be aligned"):
        lmn.jacobian_alignment(model, torch.randn(5, 3), nn.Linear(3, 4))
    with pytest.raises(lmn.LmnError, match="other= is no state dict of this model"):
        lmn.jacobian_alignment(model, torch.randn(5, 3), {"weight": torch.zeros(1)})
