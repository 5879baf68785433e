"""The configurations that kernels are launched in: what each comes to, and which one a GPU is given."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_local_complexity import mlp
from test_triton import error_of, problem_of
from test_triton_precision import bits
from torch import nn

import lmn
from lmn.kernels import triton_product_ops, triton_tuned
from lmn.kernels.connectivity import triton_ops as connectivity
from lmn.kernels.jacobians import triton_ops as jacobians
from lmn.kernels.local_complexity import triton_ops as local_complexity
from lmn.kernels.patterns import triton_ops as patterns
from lmn.kernels.triton_targets import Target
from lmn.kernels.triton_tuned import Choice, Tuned

ALL = [
    tuned
    for module in (connectivity, jacobians, local_complexity, patterns, triton_product_ops)
    for tuned in vars(module).values()
    if isinstance(tuned, Tuned)
]
BOTH = ("triton", "reference")
MOST = max(len(tuned.choices) for tuned in ALL)


# ---- each configuration ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=range(MOST))
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[Tuned]:
    """Kernels that were launched, all in the configuration of one number, or their last."""
    found = set[Tuned]()

    def fitting(tuned: Tuned, arguments: dict[str, Any], target: Target) -> tuple[Choice, ...]:
        found.add(tuned)
        choices = [each for each in tuned.choices if target.backend == "cpu" or each.fits(arguments, target)]
        return (choices[min(request.param, len(choices) - 1)],)

    monkeypatch.setattr(Tuned, "fitting", fitting)
    return found


@pytest.mark.usefixtures("poisoned")
def test_every_configuration_comes_to_the_same(launched: set[Tuned]) -> None:
    for widths, n in (((5, 9, 3), 17), ((5, 100, 100, 31), 20), ((5, 70, 9, 100), 9), ((5, 200, 70), 9)):
        assert error_of(problem_of(widths, "gelu", n)) < 1e-5
    for act in (nn.ReLU, nn.Softplus):
        for widths in ((3, 20, 17, 2), (3, 130, 70, 2)):
            model, x = mlp(widths, act).float(), torch.randn(40, 3)
            if act is nn.ReLU:
                how: dict[str, Any] = {"ids": True, "progress": False}
                assert np.array_equal(*(bits(lmn.activation_patterns(model, x, backend=each, **how)) for each in BOTH))
            how = {"r": 0.5, "n_directions": 3, "progress": False}
            assert np.array_equal(*(lmn.local_complexity(model, x, backend=each, **how).counts for each in BOTH))
            for reduce in (None, "spectral_norm"):
                got, expected = (
                    lmn.jacobians(model, x, reduce=reduce, backend=backend, progress=False) for backend in ("triton", "torch")
                )
                assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    lmn.activation_patterns(
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU()), torch.randn(5, 1, 3, 3), backend="triton", progress=False
    )
    assert launched == set(ALL)


# ---- which one ---------------------------------------------------------------------------------------------------------------


class Kernel:
    """Notes the grids and arguments that it is launched with, by a GPU's code, as there is none."""

    arg_names = ("x", "n", "TILE", "PRECISION")

    def __init__(self) -> None:
        self.launches: list[tuple[Any, dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda **arguments: self.launches.append((grid, arguments))


class Autotuner(Kernel):
    """In place of Triton's, over the kernel given."""

    def __init__(self, configs: list[Any], key: list[str], **_: object) -> None:
        super().__init__()
        self.configs, self.key = configs, key

    def __call__(self, _kernel: Kernel) -> "Autotuner":
        return self

    @property
    def best_config(self) -> Any:
        return self.configs[-1]


@pytest.fixture
def autotuners(monkeypatch: pytest.MonkeyPatch) -> list[Autotuner]:
    """Those that are made, on a pretended GPU of two multiprocessors."""
    made = list[Autotuner]()

    def autotune(**options: Any) -> Autotuner:
        made.append(Autotuner(**options))
        return made[-1]

    monkeypatch.setattr(triton_tuned, "target_of", lambda _device: Target("cuda"))
    monkeypatch.setattr(triton_tuned.triton, "autotune", autotune)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton_tuned, "multiprocessors", lambda _device: 2)
    return made


def tuned_of(kernel: Kernel) -> Tuned:
    return Tuned(kernel, ("n",), (
        Choice({"TILE": 16}, 4, roomy=True), Choice({"TILE": 32}, 8, 3), Choice({"TILE": 64}, 8, fits=lambda a, _: a["n"] > 5)
    ), lambda _: {})  # fmt: skip


def test_a_small_launch_takes_the_first(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    tuned_of(kernel).launch((7,), x=torch.zeros(3), n=3)
    ((grid, arguments),) = kernel.launches
    assert (grid, arguments.pop("x").shape) == ((7,), (3,))
    assert arguments == {"n": 3, "TILE": 16, "PRECISION": "tf32x3", "num_warps": 4, "num_stages": 1, "maxnreg": 255}
    assert not autotuners


def test_a_large_launch_takes_the_fastest_of_those_that_fit(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    tuned = tuned_of(kernel)
    for n, precision in ((3, ""), (4, "ieee"), (6, "")):
        tuned.launch(lambda tile: (2048 // tile["TILE"],), precision, x=torch.zeros(3), n=n)
    assert [[config.kwargs["TILE"] for config in each.configs] for each in autotuners] == [[16, 32], [16, 32], [16, 32, 64]]
    timed = [arguments for each in autotuners for _, arguments in each.launches]
    assert [(each["n"], each["PRECISION"]) for each in timed] == [(3, "tf32x3"), (4, "ieee"), (6, "tf32x3")]
    assert [arguments["TILE"] for _, arguments in kernel.launches] == [32, 32, 64]
    first, second = autotuners[0].configs
    assert (first.num_warps, first.num_stages, first.maxnreg) == (4, 1, 255)
    assert (second.num_warps, second.num_stages, second.maxnreg) == (8, 3, None)


def test_what_was_found_to_be_fastest_is_taken_from_then_on(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    tuned = tuned_of(kernel)
    for grid in ((7,), (8,), (7,), (8,)):
        tuned.launch(grid, x=torch.zeros(3), n=3)
    assert [arguments["TILE"] for _, arguments in kernel.launches] == [16, 32, 32, 32]
    assert len(autotuners) == 1


def test_what_is_counted_is_launched_in_the_first_that_fits_always(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    replace(tuned_of(kernel), key=None).launch((4096,), x=torch.zeros(3), n=3)
    assert [arguments["TILE"] for _, arguments in kernel.launches] == [16]
    assert not autotuners


@pytest.mark.parametrize("module", [patterns, local_complexity], ids=["patterns", "local complexity"])
def test_no_kernel_of_signs_is_timed(module: Any) -> None:
    of_signs = [tuned for tuned in vars(module).values() if isinstance(tuned, Tuned)]
    assert len(of_signs) >= 2
    for target in (Target("cuda"), Target("cuda", takes_64_rows=True), Target("hip")):
        for case in module.cases(False):
            if case.launch.tuned in of_signs:
                assert len(case.launch.tuned.fitting(case.launch.arguments, target)) == 1


@pytest.mark.parametrize("width", [20, 150])
def test_no_kernel_on_the_way_to_signs_is_timed(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the first map among them."""
    launched, launch = set[Tuned](), Tuned.launch
    monkeypatch.setattr(Tuned, "launch", lambda tuned, *args, **how: (launched.add(tuned), launch(tuned, *args, **how)))
    model, x = mlp((3, width, 5, 2), nn.ReLU).float(), torch.randn(5, 3)
    lmn.activation_patterns(model, x, backend="triton", progress=False)
    of_patterns = len(launched)
    lmn.local_complexity(model, x, n_directions=2, backend="triton", progress=False)
    assert 0 < of_patterns < len(launched)
    assert {tuned.key for tuned in launched} == {None}


def test_a_graph_being_captured_takes_the_first(autotuners: list[Autotuner], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernel = Kernel()
    tuned_of(kernel).launch((4096,), x=torch.zeros(3), n=3)
    assert [arguments["TILE"] for _, arguments in kernel.launches] == [16]
    assert not autotuners


def test_two_threads_time_a_kernel_once(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    tuned = tuned_of(kernel)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tuned.launch((4096,), x=torch.zeros(3), n=3), range(64)))
    assert len(autotuners) == 1
    assert {arguments["TILE"] for _, arguments in kernel.launches} == {32}


def test_where_torch_is_to_be_deterministic_a_large_launch_takes_the_first(autotuners: list[Autotuner]) -> None:
    kernel = Kernel()
    torch.use_deterministic_algorithms(True)
    try:
        tuned_of(kernel).launch((4096,), x=torch.zeros(3), n=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [arguments["TILE"] for _, arguments in kernel.launches] == [16]
    assert not autotuners


def test_what_is_fastest_is_found_for_each_precision(autotuners: list[Autotuner]) -> None:
    tuned_of(Kernel()).launch((99,), x=torch.zeros(3), n=3)
    assert autotuners[0].key == ["n", "PRECISION"]
