"""Every backend against the float64 reference, and the reference against closed forms."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import lmn
from lmn import _core
from lmn.chain import chain_plan
from lmn.connectivity import plan
from lmn.grid import as_grid
from lmn.kernels.activations import ACTIVATIONS, activation
from lmn.kernels.connectivity import cpp, numba_cpu, torch_eager
from lmn.subject import Subject

from models import DATA, trained_paper_network

connectivity_module = importlib.import_module("lmn.connectivity")  # the package has a function of that name
FAST = ("cpp", "numba", "torch")
SINGLE = (*FAST, "triton")  # of float32, Triton in its interpreter
SIZES = ((1, 1, 1), (2, 3, 2), (17, 17, 31), (33, 100, 5))  # points, units, outputs: no multiples of any block


class Pointwise(nn.Module):
    """An activation of the table as a module."""

    def __init__(self, name: str, units: int) -> None:
        super().__init__()
        self.slopes = torch.linspace(-0.5, 1.5, units)  # PReLU: of both signs, 1 (no kink) among them
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.name == "prelu":
            return nn.functional.prelu(x, self.slopes.to(x))
        return activation(self.name).function(x)


def network(name: str, units: int, n_out: int, depth: int = 1) -> nn.Module:
    torch.manual_seed(units + n_out)
    layers: list[nn.Module] = [nn.Linear(4, units)]
    for _ in range(depth):
        layers += [getattr(nn, MODULES[name])() if name in MODULES else Pointwise(name, units), nn.Linear(units, units)]
    layers[-1] = nn.Linear(units, n_out)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
    return nn.Sequential(*layers)


MODULES = {
    "relu": "ReLU", "leaky_relu": "LeakyReLU", "hardtanh": "Hardtanh", "relu6": "ReLU6", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "silu": "SiLU", "gelu": "GELU", "elu": "ELU", "selu": "SELU", "softplus": "Softplus", "hardswish": "Hardswish",
    "mish": "Mish",
}  # fmt: skip


def agree(model: nn.Module, x: torch.Tensor, backend: str, m: int = 21) -> None:
    m = min(m, 5) if backend == "triton" else m  # the interpreter takes a tenth of a second a step
    got, expected = (lmn.connectivity(model, x, backend=name, m=m, progress=False).double() for name in (backend, "reference"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if x.dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize(("backend", "dtype"), [*product(SINGLE, [torch.float32]), *product(FAST, [torch.float64])])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(backend: str, dtype: torch.dtype, name: str) -> None:
    torch.manual_seed(1)
    agree(network(name, 17, 3, depth=2).to(dtype), torch.randn(9, 4, dtype=dtype), backend)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("backend", "n_points", "units", "n_out"),
    [(backend, *sizes) for backend in FAST for sizes in SIZES] + [("triton", 2, 3, 2)],
)
def test_sizes_that_fill_no_block(backend: str, depth: int, n_points: int, units: int, n_out: int) -> None:
    torch.manual_seed(2)
    agree(network("silu", units, n_out, depth), torch.randn(n_points, 4), backend)


@pytest.mark.parametrize(("backend", "m"), [*product(FAST, [3, 4, 5, 8, 21, 22]), ("triton", 3), ("triton", 4)])
def test_points_a_segment(backend: str, m: int) -> None:
    torch.manual_seed(3)
    agree(network("relu", 17, 3), torch.randn(9, 4), backend, m)


@pytest.mark.parametrize("backend", SINGLE)
def test_a_chain_that_ends_in_an_activation(backend: str) -> None:
    torch.manual_seed(4)
    agree(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU()), torch.randn(9, 4), backend)


@pytest.mark.parametrize("backend", SINGLE)
@pytest.mark.parametrize(
    "between",
    [
        *(nn.LeakyReLU(0.3), nn.PReLU(17, 0.4), nn.ELU(0.6), nn.Softplus(2.0, 5.0), nn.Hardtanh(-0.4, 0.9), nn.GELU("tanh")),
        *(nn.GELU(), nn.SELU(), nn.ReLU6(), nn.Mish(), nn.Hardswish()),
    ],
    ids=str,
)
def test_an_activation_with_parameters(backend: str, between: nn.Module) -> None:
    torch.manual_seed(20)
    if isinstance(between, nn.PReLU):
        between.weight.data.uniform_(-0.5, 1.5)
    agree(nn.Sequential(nn.Linear(4, 17), between, nn.Linear(17, 3)), 3 * torch.randn(9, 4), backend)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_output_is_measured_by_its_own_size(backend: str, dtype: torch.dtype) -> None:
    # Far below zero the sigmoid is exp: over 5, r^2 of exp(5 t) with t at 21 points is 0.7226, whatever the other samples.
    t = np.linspace(0, 1, 21)
    expected = np.corrcoef(t, np.exp(5 * t))[0, 1] ** 2
    x = torch.tensor([[-40.0], [-35.0], [-60.0], [-55.0], [0.0]], dtype=dtype)
    got = lmn.connectivity(nn.Sequential(nn.Identity(), nn.Sigmoid()), x, backend=backend, progress=False)
    assert float(got[0, 1]) == pytest.approx(expected, abs=1e-5)
    assert float(got[2, 3]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_an_outlier_does_not_hide_the_others(backend: str) -> None:
    torch.manual_seed(21)
    model, x = network("silu", 17, 3).double(), torch.randn(9, 4).double()
    alone = lmn.connectivity(model, x, backend=backend, progress=False)
    with_outlier = lmn.connectivity(model, torch.cat([x, 1e14 * x[:1]]), backend=backend, progress=False)
    torch.testing.assert_close(with_outlier[:9, :9], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", FAST)
def test_units_that_few_samples_switch_on_may_cancel(backend: str) -> None:
    # Six equal units whose weights add up to zero: the output is constant, to the rounding of what cancels.
    torch.manual_seed(22)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 1)).double()
    row = torch.randn(4, dtype=torch.float64)
    model[0].weight.data[:], model[0].bias.data[:] = row / row.norm(), -1.7
    model[2].weight.data[:] = torch.tensor([[0.3, -0.7, 0.11, 0.29, 0.37, -0.37]])
    model[2].weight.data[0, 5] -= model[2].weight.data.sum()
    x = torch.randn(100, 4, dtype=torch.float64)
    assert 0 < int((model[0](x)[:, 0] > 0).sum()) < 10
    torch.testing.assert_close(lmn.connectivity(model, x, backend=backend, progress=False), torch.ones(100, 100).double())


@pytest.mark.parametrize("chain", [True, False])
def test_a_model_may_cast_its_output(chain: bool) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 9), nn.Linear(9, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.a(x))
            return (self.b(h) if chain else self.b(h) + h).double()

    torch.manual_seed(26)
    model, x = Cast(), torch.randn(11, 4)
    expected = lmn.connectivity(model, x, backend="reference", progress=False)
    torch.testing.assert_close(lmn.connectivity(model, x, progress=False), expected, rtol=0, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(
        lmn.connectivity(model, x, backend="torch", progress=False), expected, rtol=0, atol=1e-5, check_dtype=False
    )


def test_progress_is_told_of_a_wide_model_with_few_outputs() -> None:
    model, told = nn.Sequential(nn.Linear(4, 50_000), nn.SiLU(), nn.Linear(50_000, 1)), list[int]()
    with Subject(model, as_grid(torch.randn(9, 4))) as subject:
        h = subject.samples(torch.arange(9))
        problem, _ = plan(subject.network, chain_plan(subject.network, h), h, 21, 2)
        torch_eager.connectivity(problem, torch.empty(9, 9), told.append)
    assert sum(told) == 36
    assert len(told) > 1


@pytest.mark.parametrize("backend", SINGLE)
def test_activations_in_a_row_and_bottlenecks(backend: str) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        *(nn.SiLU(), nn.Tanh(), nn.Linear(4, 40), nn.GELU(), nn.Linear(40, 2), nn.Linear(2, 40), nn.ReLU()),
        *(nn.BatchNorm1d(40), nn.Mish(), nn.Linear(40, 3)),
    )
    agree(model, torch.randn(9, 4), backend)


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    model, x = network("gelu", 33, 7, depth=2).to(dtype), torch.randn(21, 4, dtype=dtype)
    with Subject(model, as_grid(x)) as subject:
        h = subject.samples(torch.arange(21))
        problem, _ = plan(subject.network, chain_plan(subject.network, h), h, 21, 2)
        got = torch.full((21, 21), torch.nan, dtype=dtype)
        cpp.connectivity_on(problem, got, lambda _: None, isa)
    expected = lmn.connectivity(model, x, backend="reference", progress=False)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("backend", FAST)
def test_the_bits_do_not_depend_on_threads(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    monkeypatch.setattr(numba_cpu, "_PAIRS_A_TASK", 256)
    model, x = network("silu", 33, 7), torch.randn(65, 4)
    one, two, three = (lmn.connectivity(model, x, backend=backend, threads=threads, progress=False) for threads in (1, 2, 3))
    if backend == "torch":  # threads set the chunk; a library's product may round by its size
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    else:
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("backend", FAST)
def test_permuting_samples_permutes_the_matrix(backend: str) -> None:
    torch.manual_seed(8)
    model, x, order = network("silu", 17, 3), torch.randn(19, 4), torch.randperm(19)
    one = lmn.connectivity(model, x, backend=backend, progress=False)
    other = lmn.connectivity(model, x[order], backend=backend, progress=False)
    torch.testing.assert_close(one[order][:, order], other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", SINGLE)
def test_scaling_and_shifting_outputs_changes_nothing(backend: str) -> None:
    torch.manual_seed(9)
    model, x = network("silu", 17, 3), torch.randn(5 if backend == "triton" else 19, 4)
    one = lmn.connectivity(model, x, backend=backend, progress=False)
    other = lmn.connectivity(
        model, x, backend=backend, select=lambda y: y * torch.tensor([1e-6, -3.0, 1e6]) + 7, progress=False
    )
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5 if backend == "torch" else 2e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-19, 1e19, 1e30])
def test_outputs_of_any_size(backend: str, scale: float) -> None:
    torch.manual_seed(22)
    model, x = network("silu", 17, 3), torch.randn(19, 4)
    one = lmn.connectivity(model, x, backend=backend, progress=False)
    other = lmn.connectivity(model, x, backend=backend, select=lambda y: y * torch.tensor([1, scale, 1]), progress=False)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5 if backend == "torch" else 2e-6)


@pytest.mark.parametrize("backend", SINGLE)
def test_dead_outputs_are_not_done_twice(backend: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    model[2].weight.data[1] = 0
    assert lmn.measure(model, torch.randn(9, 4), backend=backend, progress=False).n_redone == 0


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("n", [33, 48, 50])
def test_panels_make_the_same_matrix(backend: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(24)
    model, x = network("gelu", 17, 3, depth=2), torch.randn(n, 4)
    whole = lmn.connectivity(model, x, backend=backend, m=5, progress=False)
    monkeypatch.setattr(connectivity_module, "_PANEL_BYTES", 0)  # panels of 16
    panels = lmn.connectivity(model, x, backend=backend, m=5, progress=False)
    torch.testing.assert_close(whole, panels, rtol=0, atol=1e-5 if backend == "torch" else 2e-6)


@pytest.mark.parametrize("n_out", [1, 3])
@pytest.mark.parametrize("backend", ["cpp", "numba", "torch"])
def test_the_result_does_not_depend_on_the_chunk(backend: str, n_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(23)
    model, x = network("gelu", 17, n_out, depth=2), torch.randn(41, 4)  # 820 pairs
    one = lmn.connectivity(model, x, backend=backend, progress=False)
    monkeypatch.setattr(cpp, "_PAIRS_A_CALL", 100)
    monkeypatch.setattr(numba_cpu, "_PAIRS_A_TASK", 64)
    monkeypatch.setattr(numba_cpu, "_PAIRS_A_BATCH", 192)
    monkeypatch.setattr(torch_eager, "_CACHE_BYTES", 1 << 12)
    other = lmn.connectivity(model, x, backend=backend, progress=False)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6 if backend == "torch" else 0)


@pytest.mark.parametrize("backend", FAST)
def test_an_affine_map_in_front_changes_nothing(backend: str) -> None:
    torch.manual_seed(10)
    model, x = nn.Sequential(nn.Linear(6, 4), network("silu", 17, 3)).double(), torch.randn(19, 6).double()
    one, other = (lmn.connectivity(model, x, backend=backend, tap=tap, progress=False) for tap in (None, "0"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# ---- closed forms ----------------------------------------------------------------------------------------------------------

ALL = (*FAST, "reference")


@pytest.mark.parametrize("backend", [*ALL, "triton"])
def test_an_affine_model_is_one_map(backend: str) -> None:
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    measured = lmn.measure(model, torch.randn(12, 4), backend=backend, connectivity=True, progress=False)
    assert measured.lmn == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(measured.connectivity, torch.ones(12, 12, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "reference"])  # no chain: z^2 is not an activation of the table
def test_a_parabola(backend: str) -> None:
    # On [-1, 1], z^2 is uncorrelated with z; on [0, 1] with 3 points, (0, 1/4, 1) against (0, 1/2, 1) has r^2 = 12/13.
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    got = lmn.connectivity(Square(), torch.tensor([[-1.0], [0.0], [1.0]]), m=3, backend=backend, progress=False)
    expected = torch.tensor([[1, 12 / 13, 0], [12 / 13, 1, 12 / 13], [0, 12 / 13, 1]])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ALL)
def test_a_kink_in_the_middle(backend: str) -> None:
    # |z| from -1 to 1 is even: uncorrelated. ReLU of it at 5 points is (0, 0, 0, 1/2, 1): r^2 = 0.25 * 30 / ... = 25/32.
    x = torch.tensor([[-1.0], [1.0]])
    relu = lmn.connectivity(nn.ReLU(), x, m=5, backend=backend, progress=False)
    assert float(relu[0, 1]) == pytest.approx(25 / 32, abs=1e-6)


@pytest.mark.parametrize("backend", ALL)
def test_a_constant_model_is_affine(backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    nn.init.constant_(model[0].bias, -100)  # all units dead
    got = lmn.connectivity(model, torch.rand(6, 3), backend=backend, progress=False)
    assert torch.equal(got, torch.ones(6, 6))


@pytest.mark.parametrize("backend", ALL)
def test_equal_samples_are_connected(backend: str) -> None:
    torch.manual_seed(12)
    x = torch.randn(3, 4)
    got = lmn.connectivity(network("silu", 17, 3), torch.cat([x, x, x + 1e-7]), backend=backend, progress=False)
    for i, j in itertools.combinations(range(9), 2):
        if (i - j) % 3 == 0:
            assert float(got[i, j]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_one_sample_is_one_map(backend: str) -> None:
    measured = lmn.measure(network("silu", 5, 2), torch.zeros(1, 4), backend=backend, progress=False)
    assert (measured.lmn, measured.nonlinear_complexity) == (1, 0)


# ---- the trained networks of the independent program ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4000, 18000])
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-3), (True, 1e-9)])
def test_the_lmn_of_trained_networks(step: int, double: bool, tolerance: float) -> None:
    expected = json.loads((DATA / f"lmn_modadd_{step}.json").read_text())
    model, pairs = trained_paper_network(step)
    tail = nn.Sequential(nn.SiLU(), model.linear3)
    with torch.no_grad():
        h1 = model.linear1(model.embedding(pairs).flatten(1))
        h2 = model.linear2(model.activation(h1))
    full = nn.Sequential(nn.SiLU(), model.linear2, tail)
    if double:  # float32 samples, taken to float64
        h1, h2, full, tail = h1.double(), h2.double(), full.double(), tail.double()
    for name, function, samples in (
        ("lmn_l2", tail, h2),
        ("lmn_l2_first200", tail, h2[:200]),
        ("lmn_l1_first200", full, h1[:200]),
    ):
        got = lmn.measure(function, samples, progress=False).lmn
        assert got == pytest.approx(expected[name], rel=tolerance), name


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("step", [4000, 18000])
def test_the_matrices_of_trained_networks(backend: str, step: int) -> None:
    model, pairs = trained_paper_network(step)
    with np.load(DATA / f"lmn_modadd_{step}.npz") as data:
        for tap, expected in (("linear1", data["L_l1_first200"]), ("linear2", data["L_l2_first200"])):
            got = lmn.connectivity(model, pairs[:200], tap=tap, backend=backend, progress=False)
            np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)


def test_the_tap_at_the_activation_is_the_tap_after_the_next_linear() -> None:
    model, pairs = trained_paper_network(4000)
    one, other = (lmn.measure(model.double(), pairs[:100], tap=tap, progress=False).lmn for tap in ("embedding", "linear1"))
    assert one == pytest.approx(other, rel=1e-9)


POISONED = """
import hashlib, numpy as np, torch, lmn
assert not np.isin(np.empty(1 << 20, np.uint8), (0, 1)).any(), "memory is not poisoned"
torch.manual_seed(0)
x = torch.randn(37, 5)
for hidden, last in ((1, 1), (17, 3), (100, 31)):
    layers = (torch.nn.Linear(5, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(hidden, last))
    class Residual(torch.nn.Module):
        def forward(self, h, model=model):
            return model(h) + h[:, :1]
    for name, tail, backend in [("chain", model, b) for b in ("cpp", "numba", "torch")] + [("residual", Residual(), "torch")]:
        for dtype in (torch.float32, torch.float64):
            model.to(dtype)
            matrix = lmn.connectivity(tail, x.to(dtype), backend=backend, progress=False)
            print(hidden, name, backend, dtype, hashlib.sha256(matrix.numpy().tobytes()).hexdigest())
"""


def test_no_result_depends_on_memory_that_was_not_written() -> None:
    # The C library fills what it hands out with a byte: 0x7f is a large number, 0xfe a large negative one.
    outputs = []
    for perturb in ("128", "1"):
        environment = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.perturb={perturb}"}
        done = subprocess.run([sys.executable, "-c", POISONED], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] != ""


class Cancelling(nn.Module):
    """Constant, but for rounding that float32 has inside segments and not at the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return h + (0.25 - h)


@pytest.mark.parametrize("seed", range(6))
def test_outputs_that_are_constant_by_cancellation(seed: int) -> None:
    torch.manual_seed(seed)
    found = lmn.measure(Cancelling(), torch.randn(8, 2), metrics=("lmn",), progress=False)
    assert found.lmn == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", FAST)
def test_a_movement_that_the_outputs_do_not_show_is_none(backend: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.Mish(), nn.Linear(8, 2)).to(dtype)
    model[0].weight.data *= 40
    model[0].bias.data[:] = -120
    x = torch.linspace(-1, 1, 10, dtype=dtype)[:, None]
    assert lmn.measure(model, x, backend=backend, progress=False).lmn == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["SiLU", "Sigmoid", "Softplus", "GELU", "ELU"])
def test_saturated_units_before_a_map_without_a_bias(name: str, backend: str, dtype: torch.dtype) -> None:
    """What is left of them is small: a kernel that has it to a few digits leaves these pairs to the model's own functions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), getattr(nn, name)(), nn.Linear(32, 5, bias=False)).to(dtype)
    model[0].bias.data -= {"GELU": 6, "ELU": 26}.get(name, 30)  # of -1 + exp(-30) float64 itself has but three digits
    x = torch.randn(20, 4, dtype=dtype)
    expected = lmn.measure(model, x, backend="reference", progress=False).lmn
    assert lmn.measure(model, x, backend=backend, progress=False).lmn == pytest.approx(expected, rel=1e-3)
