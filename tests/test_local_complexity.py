"""Local complexity: against a plain reference, closed forms, and what must not matter."""

import copy
import importlib
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import piecewise_models
import pytest
import torch
from test_preserve import assert_same, busy, state
from torch import Tensor, nn
from torch.nn import functional

import lmn
from lmn import _core
from lmn.bends import Bends
from lmn.kernels.local_complexity import cpp, torch_eager
from lmn.local_complexity import directions
from lmn.subject import Subject

from models import CASES, Case, InPlaceResidual, LooksAtValues, PaperNetwork, Transformer, built

module = importlib.import_module("lmn.local_complexity")  # lmn's attribute of that name is the function

BENDING = ("mlp", "cnn", "residual", "paper", "transformer", "tied", "shapes")
APPLICABLE = [name for name in CASES if name.startswith(BENDING) and name != "residual, in place"]


def found(model: nn.Module, samples: Any, **options: Any) -> lmn.LocalComplexity:
    return lmn.local_complexity(model, samples, progress=False, **options)


def mlp(
    widths: tuple[int, ...] = (6, 16, 16, 2), activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def points(n: int = 20, width: int = 6) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def double_but_for(backend: str) -> torch.dtype:
    """Triton computes in float32."""
    return torch.float32 if backend == "triton" else torch.float64


def one_unit(weight: list[float], bias: float = 0.0, activation: nn.Module | None = None) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(len(weight), 1), activation or nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight[0] = torch.tensor(weight)
        model[0].bias.fill_(bias)
    return model


# ---- against the reference -----------------------------------------------------------------------------------------------


def assert_as_the_reference(model: nn.Module, samples: Tensor, backend: str, **options: Any) -> lmn.LocalComplexity:
    got, expected = (found(model, samples, backend=b, **options) for b in (backend, "reference"))
    np.testing.assert_array_equal(got.counts, expected.counts)
    assert (got.layers, got.units, got.by_sign) == (expected.layers, expected.units, expected.by_sign)
    return got


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", APPLICABLE)
def test_what_people_train(name: str, backend: str) -> None:
    case: Case = CASES[name]
    model, inputs = built(case)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    got = assert_as_the_reference(model, inputs, backend, tap=case.tap, select=case.select, r=0.3, n_directions=4)
    if backend == "auto":
        assert got.backend == ("cpp" if case.path == "chain" else "torch")
    assert got.total.sum() > 0 or name == "paper, linear3"


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", piecewise_models.MODELS)
def test_piecewise_linear_models(name: str, backend: str) -> None:
    model, shape = piecewise_models.built(name)
    samples = points(6, int(np.prod(shape))).reshape(6, *shape)
    got = assert_as_the_reference(model, samples, backend, r=0.3, n_directions=4)
    assert got.total.sum() > 0 or name == "affine"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid)},
    **{kind.__name__: kind for kind in (nn.Softshrink, nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.Softplus, nn.Hardswish, nn.Mish)},
    **{kind.__name__: kind for kind in (nn.CELU, nn.LogSigmoid)},
    "PReLU by unit": lambda: nn.PReLU(16),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, backend: str) -> None:
    got = assert_as_the_reference(mlp(activation=ACTIVATIONS[name]), points() * 3, backend, r=1.0, n_directions=6)
    assert got.units == (16, 16)
    assert got.total.sum() > 0
    assert got.backend == ("torch" if backend == "torch" or name in ("CELU", "LogSigmoid") else "cpp")


@pytest.mark.parametrize("sizes", [(1, 1), (3, 65), (65, 3), (130, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes_that_are_no_multiple_of_a_block(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    model = mlp((7, *sizes, 2)).to(dtype)
    samples = points(5, 7).to(dtype)
    for n_directions in (1, 7):
        got, expected = (
            found(model, samples, r=0.4, n_directions=n_directions, backend=backend) for backend in ("cpp", "torch")
        )
        np.testing.assert_array_equal(got.counts, expected.counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", _core.instruction_sets())
def test_instruction_sets(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = mlp((6, 37, 21, 2)).to(dtype), points(9).to(dtype)
    expected = found(model, samples, r=0.4, n_directions=6, backend="torch")
    monkeypatch.setattr(cpp, "local_complexity", lambda problem: cpp.local_complexity_on(problem, isa))
    got = found(model, samples, r=0.4, n_directions=6, backend="cpp")
    np.testing.assert_array_equal(got.counts, expected.counts)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_float32_differs_only_where_rounding_decides(backend: str) -> None:
    torch.manual_seed(0)
    model, samples = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), torch.randn(200, 6)
    got = found(model, samples, r=0.1, n_directions=6, backend=backend)
    steps = 0.1 * module.directions(6, 6, 0)
    x = samples.double() + torch.cat([steps, -steps])[:, None]
    first, second = copy.deepcopy(model).double()[:2], copy.deepcopy(model).double()[2]
    with torch.no_grad():
        units = (first[0](x), second(first(x)))
    for layer, z in enumerate(units):
        rounding = 1e-6 * z.abs().max()
        least, most = z.amin(0), z.amax(0)
        surely = ((most > rounding) & (least < -rounding)).sum(1).numpy()
        possibly = ((most > -rounding) & (least < rounding)).sum(1).numpy()
        assert (surely <= got.counts[:, layer]).all()
        assert (got.counts[:, layer] <= possibly).all()
        assert surely.sum() > 0.95 * possibly.sum() > 0  # the test decides


def by_hand(model: nn.Module, samples: Tensor, r: float, n_directions: int) -> np.ndarray:
    """What goes into activation modules at the vertices, by hooks: nothing of lmn's takes part but the directions."""
    kinds = (nn.ReLU, nn.GELU, nn.Hardtanh, nn.MaxPool1d)
    steps = r * module.directions(samples[0].numel(), n_directions, 0)
    seen: list[tuple[nn.Module, Tensor]] = []
    for layer in model.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda layer, args, _: seen.append((layer, args[0].clone())))
    counts = []
    for x in samples:
        seen.clear()
        with torch.no_grad():
            model(torch.stack([x + sign * step.reshape(x.shape) for step in steps for sign in (1, -1)]))
        row = []
        for layer, z in seen:
            if isinstance(layer, nn.MaxPool1d):
                largest = functional.max_pool1d(z, layer.kernel_size, return_indices=True)[1]
                row.append(int((largest != largest[:1]).any(0).sum()))
            else:
                at = (-1.0, 1.0) if isinstance(layer, nn.Hardtanh) else (0.0,)
                row.append(int(sum(((z > b).any(0) & (z <= b).any(0)) for b in at).bool().sum()))
        counts.append(row)
    return np.array(counts)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_what_hooks_see(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 12), nn.Hardtanh(), nn.Linear(12, 12), nn.GELU(), nn.Unflatten(1, (2, 6)), nn.Conv1d(2, 3, 3)),
        *(nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 1)),
    ).double()
    got = found(model, points(), r=0.3, n_directions=6, backend=backend)
    np.testing.assert_array_equal(got.counts, by_hand(copy.deepcopy(model), points(), 0.3, 6))
    assert (got.layers, got.units) == (("1", "3", "6", "7"), (12, 12, 12, 6))
    assert got.counts.sum(0).min() > 0


@pytest.mark.parametrize("name", piecewise_models.MODELS)
def test_layers_are_those_that_patterns_have(name: str) -> None:
    # The same network read another way: a layer's units differ among the vertices where their patterns' bits do.
    model, shape = piecewise_models.built(name)
    x = points(1, int(np.prod(shape))).reshape(1, *shape)
    got = found(model, x, r=0.3, n_directions=4, backend="torch")
    steps = 0.3 * module.directions(x[0].numel(), 4, 0).reshape(4, *shape)
    patterns = lmn.activation_patterns(model, torch.cat([x + steps, x - steps]), ids=True, progress=False)
    assert patterns.layers == got.layers
    n_words = np.diff([*patterns.first_words, patterns.words.shape[1]])
    for layer, (first, n) in enumerate(zip(patterns.first_words, n_words, strict=True)):
        words = patterns.words[:, first : first + n]
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : patterns.bits[layer]]
        by_unit = bits.reshape(len(bits), got.units[layer], -1)
        assert (by_unit != by_unit[:1]).any(axis=(0, 2)).sum() == got.counts[0, layer]


# ---- closed forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "triton", "torch", "reference"])
def test_a_unit_bends_within_its_reach(backend: str) -> None:
    weight = [3.0, -4.0, 12.0]
    steps = module.directions(3, 2, 0) @ torch.tensor(weight, dtype=torch.float64)
    reach = 0.1 * float(steps.abs().max())
    along = torch.tensor(weight, dtype=torch.float64) / 13**2
    heights = torch.tensor([-1.01, -0.99, -0.5, 0, 0.99, 1.01], dtype=torch.float64) * reach
    dtype = double_but_for(backend)
    x = (along * (heights - 0.5)[:, None]).to(dtype)
    got = found(one_unit(weight, 0.5).to(dtype), x, r=0.1, n_directions=2, backend=backend)
    assert got.counts[:, 0].tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("backend", ["cpp", "triton", "torch", "reference"])
def test_either_breakpoint_counts_a_unit_once(backend: str) -> None:
    x, model = torch.tensor([[-1.0], [0.0], [1.0]]), one_unit([1.0], activation=nn.Hardtanh())
    x, model = x.to(double_but_for(backend)), model.to(double_but_for(backend))
    near, wide = (found(model, x, r=r, n_directions=1, backend=backend) for r in (0.1, 3.0))
    assert near.total.tolist() == [1, 0, 1]
    assert wide.total.tolist() == [1, 1, 1]


@pytest.mark.parametrize("backend", ["cpp", "triton", "torch", "reference"])
def test_a_vertex_on_the_breakpoint_is_not_above_it(backend: str) -> None:
    dtype = double_but_for(backend)
    x = torch.tensor([[0.25], [-0.25], [0.0]], dtype=dtype)  # vertices 0 and 0.5, -0.5 and 0
    assert found(one_unit([1.0]).to(dtype), x, r=0.25, n_directions=1, backend=backend).total.tolist() == [1, 0, 1]


@pytest.mark.parametrize("backend", ["cpp", "triton", "torch", "reference"])
def test_a_chain_that_starts_with_an_activation(backend: str) -> None:
    dtype = double_but_for(backend)
    x = torch.tensor([[5.0, -5, 5], [0.1, 5, 5], [0.1, -0.1, 0.1]], dtype=dtype)
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).to(dtype)
    assert found(model, x, r=1.0, n_directions=3, backend=backend).total.tolist() == [0, 1, 3]


@pytest.mark.parametrize("backend", ["auto", "cpp", "triton", "torch", "reference"])
def test_an_affine_model_has_no_layers(backend: str) -> None:
    dtype = double_but_for(backend)
    got = found(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).to(dtype), points().to(dtype), n_directions=6, backend=backend)
    assert (got.layers, got.units, got.counts.shape, got.mean) == ((), (), (20, 0), 0.0)
    assert got.total.tolist() == [0] * 20
    assert got.to_dict() == {"local_complexity": 0.0}
    assert "no activations" in str(got)


def test_nothing_bends_within_a_small_radius_and_all_within_a_large_one() -> None:
    model = mlp()
    assert found(model, points(), r=1e-9, n_directions=6).total.sum() == 0
    assert (found(model, points(), r=1e6, n_directions=6).counts == 16).all()


def test_dead_units_and_duplicates() -> None:
    model = mlp((6, 8, 1))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -1.0  # never above zero
        model[0].weight[3], model[0].bias[3] = 0.0, 0.0
        for unit in range(4, 8):
            model[0].weight[unit], model[0].bias[unit] = model[0].weight[0], model[0].bias[0]
    without = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        without[0].weight.copy_(model[0].weight[:2])
        without[0].bias.copy_(model[0].bias[:2])
    duplicated = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        duplicated[0].weight.copy_(model[0].weight[:1])
        duplicated[0].bias.copy_(model[0].bias[:1])
    all_, two, one = (found(m, points(), r=0.3, n_directions=6).total for m in (model, without, duplicated))
    np.testing.assert_array_equal(all_, two + 4 * one)


def test_a_maximum_counts_windows_whose_largest_member_changes() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten()).double()
    x = torch.tensor([[0.0, 5, 5, 0], [1.0, 1.1, 0, 5], [1.0, 1.1, 1.1, 1]]).double()
    got = found(model, x, r=1.0, n_directions=4)
    assert (got.layers, got.units) == (("1",), (2,))
    assert got.total.tolist() == [0, 1, 2]


def test_smooth_activations_are_counted_by_sign_and_say_so() -> None:
    relu, gelu = mlp((6, 30, 1)), mlp((6, 30, 1), nn.GELU)
    by_bend, by_sign = (found(model, points(), r=0.2, n_directions=6) for model in (relu, gelu))
    np.testing.assert_array_equal(by_bend.counts, by_sign.counts)
    assert (by_bend.by_sign, by_sign.by_sign) == (False, True)
    assert "which is no bend" in str(by_sign)
    assert "sign" not in str(by_bend)


# ---- directions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "n"), [(1, 1), (25, 25), (784, 25)])
def test_directions_are_orthonormal(n_in: int, n: int) -> None:
    v = module.directions(n_in, n, 3)
    torch.testing.assert_close(v @ v.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.equal(v, module.directions(n_in, n, 3))
    assert n_in == 1 or not torch.equal(v, module.directions(n_in, n, 4))


def test_seeds_of_directions_are_far_from_those_that_models_get() -> None:
    low = [module._far_from(seed) % 2**32 for seed in range(10_000)]  # of which torch's CPU generator makes its stream
    assert len(set(low)) == 10_000
    assert min(low) > 100_000


def gaussian_layer(seed: int) -> nn.Module:
    """Weights by the first numbers of torch's generator, as many train them."""
    torch.manual_seed(seed)
    weight = torch.randn(100, 100) / 10
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[0].bias.zero_()
    return model


def test_the_models_seed_finds_what_other_seeds_find(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, samples = range(6), torch.randn(300, 100, generator=torch.Generator().manual_seed(99))

    def mean(shift: int) -> float:
        return float(np.mean([found(gaussian_layer(s), samples, r=0.05, n_directions=25, seed=s + shift).mean for s in seeds]))

    others = mean(1000)
    assert mean(0) == pytest.approx(others, rel=0.05)

    def from_torchs_generator(n_in: int, n_directions: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.linalg.qr(torch.randn(n_directions, n_in).double().T)[0].T.contiguous()

    monkeypatch.setattr(module, "directions", from_torchs_generator)
    assert mean(1000) == pytest.approx(others, rel=0.05)
    assert mean(0) > 1.5 * others  # the danger: directions that are the first rows of the weights


def test_the_global_generators_are_left_alone() -> None:
    model = mlp()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = found(model, points(), r=0.3, n_directions=6)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    np.testing.assert_array_equal(one.counts, found(model, points(), r=0.3, n_directions=6).counts)


# ---- what must not matter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_chunks_threads_and_the_order_of_samples_do_not_matter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = mlp((6, 40, 40, 2)), points(101)
    one = found(model, samples, r=0.2, n_directions=6, backend=backend, threads=1)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    shuffled = found(model, samples[order], r=0.2, n_directions=6, backend=backend, threads=2)
    np.testing.assert_array_equal(one.counts[order.numpy()], shuffled.counts)
    original = module._plan

    def in_small_parts(subject: Subject, *args: Any) -> Any:
        subject.network.batch = 7  # fewer than the vertices of one sample
        return original(subject, *args)

    monkeypatch.setattr(module, "_plan", in_small_parts)
    monkeypatch.setattr(cpp, "_SAMPLES_A_CALL", 3)
    chunked = found(model, samples, r=0.2, n_directions=6, backend=backend, threads=2)
    np.testing.assert_array_equal(one.counts, chunked.counts)
    assert one.total.sum() > 0


def test_what_is_wide_is_run_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], Bends.visit

    def visit(self: Bends, samples: Tensor, at_layer: Callable[[int, Tensor], None]) -> None:
        seen.append(len(samples))
        original(self, samples, at_layer)

    monkeypatch.setattr(Bends, "visit", visit)
    found(mlp((6, 1 << 15, 1)).float(), points(9).float(), n_directions=6, backend="torch")
    assert sum(seen) == 9 * 12
    assert max(seen) <= 1 << 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of the address space is read from /proc")
def test_the_kernel_reserves_what_the_points_taken_together_need() -> None:
    one_point = 8 * 1500 * 2 * 1500  # bytes, of the units that crossed at the vertices; the directions take half as much
    script = f"""
import re, resource, torch, lmn
from pathlib import Path
torch.set_num_threads(1)
model, x = torch.nn.Sequential(torch.nn.Linear(1500, 8), torch.nn.ReLU()).double(), torch.randn(3, 1500).double()
lmn.local_complexity(model, x, n_directions=1, backend="cpp", progress=False)
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 6 * {one_point}, -1))
lmn.local_complexity(model, x, n_directions=1500, backend="cpp", progress=False)
"""
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_progress_is_told_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    original = module._plan
    monkeypatch.setattr(module, "_plan", lambda *args: original(*args[:-1], told.append))
    monkeypatch.setattr(cpp, "_SAMPLES_A_CALL", 8)
    found(mlp(), points(20), n_directions=6, backend="cpp")
    assert told == [8, 8, 4]


@pytest.mark.parametrize("kernel", [cpp, torch_eager])
def test_after_an_interrupt_the_model_is_as_it_was(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = mlp()
    before = state(model)
    original = module._plan
    monkeypatch.setattr(module, "_plan", lambda *args: original(*args[:-1], interrupted))
    with pytest.raises(KeyboardInterrupt):
        found(model, points(), n_directions=6, backend=kernel.__name__.rpartition(".")[2].removesuffix("_eager"))
    assert_same(before, state(model))


def test_the_model_is_left_as_it_was() -> None:
    model, x = busy()
    model.first.bias.requires_grad_(False)
    before = state(model)
    with pytest.raises(lmn.LmnError, match=r"\(tanh\)"):
        found(model, x, n_directions=4)
    assert_same(before, state(model))
    training = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 2))
    before, samples = state(training), x.clone()
    for backend in ("cpp", "torch", "reference"):
        found(training, x, n_directions=4, backend=backend)
    assert_same(before, state(training))
    assert torch.equal(x, samples)


# ---- models --------------------------------------------------------------------------------------------------------------


def test_around_the_outputs_of_a_tap() -> None:
    torch.manual_seed(0)
    model, tokens = PaperNetwork().double(), torch.randint(31, (12, 2))
    got = found(model, tokens, tap="linear1", r=0.1)
    h = model.linear1(model.embedding(tokens).flatten(1)).detach()
    rest = nn.Sequential(nn.SiLU(), model.linear2, nn.SiLU(), model.linear3)
    np.testing.assert_array_equal(got.counts, found(rest, h, r=0.1).counts)
    assert got.layers == ("activation", "activation")
    with pytest.raises(lmn.LmnError, match="tap='embedding'"):
        found(model, tokens)


def test_a_regular_grid_is_its_points() -> None:
    model, grid = mlp((3, 8, 1)), lmn.box([-1, -1, -1], [1, 1, 1], 4)
    got = found(model, grid, r=0.2, n_directions=3)
    np.testing.assert_array_equal(got.counts, found(model, grid.points.double(), r=0.2, n_directions=3).counts)


class TwoHeads(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 5), nn.Linear(6, 7), nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": self.act(self.a(x)), "b": self.act(self.b(x))}


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_the_output_does_not_need_are_not_counted(inplace: bool) -> None:
    got = found(TwoHeads(inplace), points().float(), n_directions=6, select=lambda out: out["b"], backend="torch")
    assert got.units == (7,)


class WritesIntoAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        functional.relu(h.view(-1, 5, 1), inplace=True)
        return self.b(h)


def test_layers_that_write_into_what_the_output_needs_are_counted() -> None:
    torch.manual_seed(0)
    model = WritesIntoAView().double()
    plain = nn.Sequential(model.a, nn.ReLU(), model.b)
    got, expected = (found(m, points(), r=0.3, n_directions=6) for m in (model, plain))
    np.testing.assert_array_equal(got.counts, expected.counts)
    assert got.total.sum() > 0


class OwnActivation(nn.Module):
    breakpoints = (-1.0, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1.0, 0.5)


def test_an_activation_that_says_where_it_bends() -> None:
    own, known = mlp(activation=OwnActivation), mlp(activation=lambda: nn.Hardtanh(-1.0, 0.5))
    np.testing.assert_array_equal(*(found(m, points(), r=0.5, n_directions=6).counts for m in (own, known)))


def test_a_bfloat16_model_is_computed_in_float32() -> None:
    model, x = mlp().bfloat16(), points().bfloat16()
    got = found(model, x, r=0.3, n_directions=6)
    np.testing.assert_array_equal(got.counts, found(model.float(), x.float(), r=0.3, n_directions=6).counts)


def test_a_transformer_by_positions() -> None:
    torch.manual_seed(0)
    model, tokens = Transformer().double(), torch.randint(12, (5, 3))
    got = found(model, tokens, tap="embedding", r=0.5)
    assert got.units == (3 * 32,)
    assert got.by_sign
    assert got.total.sum() > 0


# ---- bad input -----------------------------------------------------------------------------------------------------------


def with_hook() -> nn.Module:
    model = mlp((4, 8, 2)).float()
    model[1].register_forward_hook(lambda *_: None)
    return model


def diverged() -> nn.Module:
    model = mlp((4, 8, 2)).float()
    nn.init.constant_(model[2].bias, torch.nan)
    return model


def large() -> nn.Module:
    model = mlp((4, 8, 2)).float()
    nn.init.constant_(model[0].weight, 100.0)
    return model


class Clamps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=x.mean(1, keepdim=True))


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


class BatchElsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.T).T


X = torch.ones(3, 4)
EASY = mlp((4, 8, 2)).float()


@pytest.mark.parametrize(
    ("model", "samples", "options", "message"),
    [
        (EASY, X, {"n_directions": 5}, "n_directions=5 orthonormal directions need at least 5 inputs, .* have 4; pass"),
        (EASY, X, {"n_directions": 0}, "n_directions must be at least 1; got 0"),
        (EASY, X, {"n_directions": 2.0}, "n_directions is a whole number"),
        (EASY, X, {"r": 0}, "a number above 0; got 0"),
        (EASY, X, {"r": -1.0}, "a number above 0; got -1.0"),
        (EASY, X, {"r": torch.inf}, "a number above 0; got inf"),
        (EASY, X, {"r": "1"}, "a number above 0; got '1'"),
        (EASY, X, {"r": True}, "a number above 0; got True"),
        (EASY, X, {"r": 1e-9}, r"r=1e-09 is lost in the rounding of samples of dtype float32 as large as 1; pass .* float64"),
        (large(), X, {"r": 1e37}, "not finite at r=1e.37 from samples at which it is; pass a smaller r"),
        (EASY, X, {"seed": -1}, "seed must be at least 0"),
        (EASY, X, {"threads": 0}, "threads must be at least 1"),
        (EASY, X, {"backend": "numba"}, r"no backend 'numba' for local_complexity; choose 'auto' or one of \["),
        (EASY, X[:, :3], {"n_directions": 3}, "can't be run on the grid's samples"),
        (EASY, X.long(), {}, "name the submodule whose output"),
        (EASY, X * torch.nan, {}, "3 of 3 samples have a NaN"),
        (diverged(), X, {}, "output is not finite .* is the training diverged"),
        (mlp((4, 8, 2), nn.Tanh).float(), X, {}, r"'1' \(tanh\) has no kink at zero or anywhere.*mapping number"),
        (nn.Sequential(nn.Linear(4, 2), nn.Sigmoid()), X, {}, r"'1' \(sigmoid\) has no kink .* give the model up to there"),
        (InPlaceResidual(), X, {}, r"'tanh' \(tanh\) has no kink"),
        (nn.Sequential(nn.Linear(4, 2), nn.Softsign()), X, {}, r"'1' \(Softsign\) has no kink"),
        (nn.Sequential(nn.Linear(4, 2), nn.Hardshrink()), X, {}, r"where '1' \(Hardshrink\) bends is not known; write it"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), X[:, None], {}, "TransformerEncoderLayer"),
        (Clamps(), X, {}, r"where 'clamp' \(clamp\) bends is not known, with these arguments"),
        (ByHand(), X, {}, r"where 'gt' \(gt\) bends is not known"),
        (nn.Sequential(nn.Linear(4, 2), nn.GLU()), X, {}, r"'1' \(GLU\) has no kink"),
        (with_hook(), X, {}, r"where '1' \(ReLU\) bends is not known, .* with hooks"),
        (BatchElsewhere(), X, {}, "what 'relu' takes does not have the batch first"),
        (LooksAtValues(), X, {}, "could not be traced, so its activations are not seen.*The tracers said"),
        (Transformer(), X[:, :3].long(), {"tap": "embedding", "backend": "cpp"}, "'cpp' can't run this local_complexity"),
    ],
)  # fmt: skip
def test_an_error_says_what_to_do(model: nn.Module, samples: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        found(model, samples, **{"n_directions": 4} | options)


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.function(self.a(x))))


NOT_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "_threshold": lambda h: functional.threshold(h, 0.0, 0.0),
    "fmod": lambda h: torch.fmod(h, 1.0),
    "remainder": lambda h: torch.remainder(h, 1.0),
    **{
        name: getattr(torch, name) for name in ("frac", "sgn", "sign", "floor", "square", "exp", "sinh", "cosh", "tan", "asinh")
    },
    **{name: getattr(torch, name) for name in ("log", "sqrt", "rsqrt", "reciprocal", "acosh", "atanh", "erfc", "nan_to_num")},
    "copysign": lambda h: torch.copysign(torch.ones_like(h), h),
    "cummax": lambda h: torch.cummax(h, 1).values,
    "cummin": lambda h: torch.cummin(h, 1).values,
    "pow": lambda h: h**2,
    "mul": lambda h: h * h,
    "logaddexp": lambda h: torch.logaddexp(h, 2 * h),
    "logsumexp": lambda h: h + torch.logsumexp(h, 1, keepdim=True),
    "bucketize": lambda h: h + torch.bucketize(h, torch.tensor([0.0, 1.0])),
    "truediv": lambda h: 1 / h,
    "div": lambda h: torch.div(h, 0.1, rounding_mode="floor"),
    "to": lambda h: h.to(torch.int64) + 0.5 * h,
    "abs": lambda h: torch.fft.fft(h).abs(),
    "argmax": lambda h: h + h.argmax(1, keepdim=True),
    "prod": lambda h: h + h.prod(1, keepdim=True),
    "norm": lambda h: h / h.norm(dim=1, keepdim=True),
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_is_not_known_is_never_passed_through(name: str) -> None:
    torch.manual_seed(0)
    model = Between(NOT_KNOWN[name])
    with torch.no_grad():  # the function is finite there
        model.a.weight.mul_(0.01)
        model.a.bias.fill_(1.5 if name == "acosh" else 0.5)
    with pytest.raises(lmn.LmnError, match=rf"where '\w+' \({name}\) bends is not known"):
        found(model, points().float(), n_directions=6)


@pytest.mark.parametrize("layer", [nn.Threshold(0.0, 0.0), nn.RReLU(), nn.LPPool1d(2, 2)])
def test_modules_that_are_not_known(layer: nn.Module) -> None:
    with pytest.raises(lmn.LmnError, match=rf"where '1' \({type(layer).__name__}\) bends is not known"):
        found(nn.Sequential(nn.Linear(6, 8), layer), points().float(), n_directions=6)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        h = h.view(-1, 2, 4)
        return (h + self.attention(h, h, h, need_weights=False)[0]).flatten(1)


PASSED: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "LayerNorm": lambda: nn.LayerNorm(8),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "Softmax": lambda: nn.Softmax(1),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "MultiheadAttention": Attends,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "softmin": lambda: lambda h: functional.softmin(h, 1),
    "normalize": lambda: functional.normalize,
    "rms_norm": lambda: lambda h: functional.rms_norm(h, (8,)),
    "instance_norm": lambda: lambda h: functional.instance_norm(h[:, None])[:, 0],
    "attention": lambda: lambda h: functional.scaled_dot_product_attention(*[h.view(-1, 2, 4)] * 3).flatten(1),
    "gate": lambda: lambda h: h * h.flip(1),
    "addcmul": lambda: lambda h: torch.addcmul(h, torch.full((8,), 2.0).to(h), h),
    "quotient": lambda: lambda h: h / (3 + h.softmax(1)),
    "einsum": lambda: lambda h: torch.einsum("bi,bj->bij", h, h).mean(1),
    "matmul": lambda: lambda h: (h.view(-1, 2, 4) @ h.view(-1, 4, 2) @ h.view(-1, 2, 4)).flatten(1),
    "spectrum": lambda: lambda h: torch.fft.irfft(torch.fft.rfft(h) * 0.5, n=8),
    "views": lambda: lambda h: torch.cat(h.tensor_split(2, dim=1), 1).T.mT.double(),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_has_no_units_is_passed_through(name: str) -> None:
    torch.manual_seed(0)
    model = Between(PASSED[name]()).double()
    if name in ("Softmax", "softmin"):  # zero about the middle of what they give
        model.b.bias = nn.Parameter(-model.b.weight.sum(1) / 8)
    got = assert_as_the_reference(model, points(12) * 3, "torch", r=1.0, n_directions=6)
    assert got.units == (3,)
    assert got.total.sum() > 0


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (lambda h: torch.clip(h, -0.2, 0.3), lambda h: torch.clamp(h, -0.2, 0.3)),
        (lambda h: h.clip(max=0.3), lambda h: h.clamp(max=0.3)),
        (torch.absolute, torch.abs),
        (lambda h: h.clone().absolute_(), torch.abs),
    ],
)
def test_other_names_of_activations(function: Any, known: Any) -> None:
    torch.manual_seed(0)
    model = Between(function).double()
    named = copy.deepcopy(model)
    named.function = known
    got, expected = (found(m, points(), r=0.3, n_directions=6) for m in (model, named))
    np.testing.assert_array_equal(got.counts, expected.counts)
    assert got.units == (8, 3)
    assert got.counts[:, 0].sum() > 0


# ---- what is not finite --------------------------------------------------------------------------------------------------


class Quotient(nn.Module):
    """Not finite where all inputs are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x / x.sum(1, keepdim=True))))


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_is_not_finite_near_a_sample_is_an_error(backend: str, batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    original = module._plan

    def plan(subject: Subject, *args: Any) -> Any:
        subject.network.batch = batch or subject.network.batch
        return original(subject, *args)

    monkeypatch.setattr(module, "_plan", plan)
    model, r = Quotient().double(), 0.05
    x = 1 + torch.rand(99, 3, dtype=torch.float64)
    assert found(model, x, r=r, n_directions=3, backend=backend).counts.min() >= 0
    x[77] = x[88] = -r * module.directions(3, 3, 0)[2]  # of which a vertex is zero
    with pytest.raises(lmn.LmnError, match=r"'relu' takes is not finite .* within r=0.05 of sample 77, .*; pass a smaller r"):
        found(model, x, r=r, n_directions=3, backend=backend)
    assert found(model, x, r=r / 2, n_directions=3, backend=backend).counts.min() >= 0


class MaskedMaximum(nn.Module):
    def __init__(self, masked: float) -> None:
        super().__init__()
        self.a, self.masked = nn.Linear(6, 8), masked

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).masked_fill(torch.arange(8) % 3 == 0, self.masked)
        return h.view(-1, 2, 4).amax(2).clamp(max=5.0)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_masked_members_of_a_maximum(backend: str) -> None:
    got = found(MaskedMaximum(-torch.inf).double(), points(), r=0.3, n_directions=6, backend=backend)
    assert got.counts[:, 0].sum() > 0
    with pytest.raises(lmn.LmnError, match="'amax' takes is not finite"):
        found(MaskedMaximum(torch.inf).double(), points(), r=0.3, n_directions=6, backend=backend)


@pytest.mark.parametrize("isa", [*_core.instruction_sets(), "torch"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("n_directions", [1, 3, 33, 40])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("at", [1.13, 3.0])
def test_what_overflows_near_a_sample_is_an_error(
    isa: str, activation: type[nn.Module], n_directions: int, first: bool, at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit above float32's largest value, at a sample or within r of it, is cut by a ReLU6: no other value is not finite."""
    torch.manual_seed(0)
    overflows, cut = nn.Linear(40, 37), nn.ReLU6()
    rest = [nn.Linear(37, 40), activation(), nn.Linear(40, 2)]
    before = [] if first else [nn.Linear(40, 40), activation()]
    model = nn.Sequential(*before, overflows, cut, *rest)
    with torch.no_grad():
        if not first:
            before[0].weight.copy_(torch.eye(40))
            before[0].bias.zero_()
        overflows.weight[21] = 0.0
        overflows.weight[21, 0] = 3e38
        overflows.bias[21] = 0.0
    x = torch.randn(23, 40)
    x[:, 0] = 0.1
    options: dict[str, Any] = {"r": 0.5, "n_directions": n_directions, "backend": "torch" if isa == "torch" else "cpp"}
    monkeypatch.setattr(cpp, "local_complexity", lambda problem: cpp.local_complexity_on(problem, isa))
    expected = found(model, x, **options | {"backend": "torch"})
    np.testing.assert_array_equal(found(model, x, **options).counts, expected.counts)
    x[17, 0] = at + (0.12 if activation is nn.GELU and not first else 0.0)  # of which it makes 1.13
    with pytest.raises(lmn.LmnError, match=rf"what '{1 if first else 3}' takes is not finite .* of sample 17,"):
        found(model, x, **options)


def test_the_default_is_never_reduced() -> None:
    with pytest.raises(lmn.LmnError, match=r"n_directions=25 .* need at least 25 inputs, .* have 6; pass n_directions=6"):
        found(mlp(), points())


def test_a_reason_in_short() -> None:
    with pytest.raises(lmn.LmnError) as caught:
        found(mlp(activation=nn.Tanh), points(), n_directions=6)
    assert caught.value.short == "'1' (tanh) has no kink at zero"


def test_the_reference_refuses_what_has_no_float64() -> None:
    class InSingle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.float()).to(x.dtype)

    with pytest.raises(lmn.LmnError, match="can't be computed in float64"):
        found(InSingle(), points(), n_directions=6, backend="reference")
    assert found(InSingle(), points(), n_directions=6).layers == ("relu",)


# ---- the result ----------------------------------------------------------------------------------------------------------


def test_the_result() -> None:
    got = found(mlp(), points(), r=0.3, n_directions=6)
    assert got.counts.dtype == got.total.dtype == np.int64
    assert got.counts.shape == (20, 2)
    assert (got.layers, got.units, got.r, got.n_directions, got.backend) == (("1", "3"), (16, 16), 0.3, 6, "cpp")
    np.testing.assert_array_equal(got.total, got.counts[:, 0] + got.counts[:, 1])
    assert got.mean == pytest.approx(got.total.mean())
    assert got.to_dict() == {
        "local_complexity": got.mean,
        "local_complexity_layer_0": got.counts[:, 0].mean(),
        "local_complexity_layer_1": got.counts[:, 1].mean(),
    }
    assert all(type(value) is float for value in got.to_dict().values())
    assert f"local complexity {got.mean:.4g}" in str(got)
    assert "20 points, 2 layers" in repr(got)


def test_it_can_be_pickled() -> None:
    got = found(mlp(), points(), r=0.3, n_directions=6)
    again = pickle.loads(pickle.dumps(got))
    np.testing.assert_array_equal(got.counts, again.counts)
    assert str(again) == str(got)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.LeakyReLU])
@pytest.mark.parametrize("r", [1e-3, 0.03, 0.3, 3.0])
def test_few_units_that_cross_and_more_of_them_than_directions(r: float, activation: type[nn.Module]) -> None:
    """The kernel takes the vertices as columns until too many units cross; a plain forward pass takes them one by one."""
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Linear(30, 40), activation(), nn.Linear(40, 50), activation(), nn.Linear(50, 40), activation(), nn.Linear(40, 3))
    ).double()
    x = torch.randn(37, 30, dtype=torch.float64)
    breakpoints = (-1.0, 1.0) if activation is nn.Hardtanh else (0.0,)
    found = lmn.local_complexity(model, x, r, 11, seed=5, backend="cpp", progress=False)
    steps = r * directions(30, 11, 5)
    h = (x[:, None] + torch.cat([steps, -steps])).flatten(0, 1)
    for number, layer in enumerate(model[:-1]):
        if isinstance(layer, activation):
            z = h.unflatten(0, (37, 22))
            crossed = torch.stack([(z > at).any(1) & ~(z > at).all(1) for at in breakpoints]).any(0)
            assert found.counts[:, number // 2].tolist() == crossed.sum(1).tolist()
        h = layer(h)
