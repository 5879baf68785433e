"""Every kind of model that issue and README promise, against the float64 reference, and by the path that it should take."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lmn

from models import CASES, Case, built


def by_hand(case: Case, m: int = 21) -> np.ndarray:
    """The connectivity from the model itself, run in float64 with its tap's output replaced: nothing of lmn's takes part."""
    model, inputs = built(case)
    model = copy.deepcopy(model).double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    tap = model if case.tap is None else model.get_submodule(case.tap)
    seen: list[Tensor] = []

    def run(given: Tensor, replacement: Tensor | None) -> Tensor:
        def hook(_module: object, _inputs: object, output: Tensor) -> Tensor | None:
            seen.append(output.clone())
            return replacement

        handle = tap.register_forward_hook(hook) if case.tap is not None else None
        with torch.no_grad():
            out = model(given.clone())
        if handle is not None:
            handle.remove()
        out = case.select(out) if case.select else getattr(out, "logits", out)
        return out.reshape(len(out), -1)

    run(inputs, None)
    h = seen[0] if case.tap is not None else inputs
    n, t = len(h), np.linspace(0, 1, m)
    matrix = np.eye(n)
    for i in range(n):
        for j in range(i):
            path = torch.stack([(1 - s) * h[i] + s * h[j] for s in t])
            y = run(inputs[:1].expand(m, *inputs.shape[1:]), path) if case.tap is not None else run(path, None)
            r = [1.0 if np.ptp(k) < 1e-13 * np.abs(k).max() else np.corrcoef(t, k)[0, 1] for k in y.numpy().T]
            matrix[i, j] = matrix[j, i] = np.mean(np.square(r))
    return matrix


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_what_the_model_itself_gives(name: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    got = lmn.connectivity(model, inputs, tap=case.tap, select=case.select, backend="reference", progress=False)
    np.testing.assert_allclose(got.numpy(), by_hand(case), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_model_takes_its_path_and_agrees_with_the_reference(name: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    measured = lmn.measure(model, inputs, tap=case.tap, select=case.select, connectivity=True, progress=False)
    expected = lmn.connectivity(model, inputs, tap=case.tap, select=case.select, backend="reference", progress=False)
    assert measured.path == case.path
    assert measured.connectivity is not None
    torch.testing.assert_close(measured.connectivity, expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.path == "chain"])
def test_the_generic_path_equals_the_chain_path(name: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    chain, generic = (
        lmn.measure(model, inputs, tap=case.tap, select=case.select, backend=backend, connectivity=True, progress=False)
        for backend in ("cpp", "torch")
    )
    assert (chain.path, generic.path) == ("chain", "traced")
    torch.testing.assert_close(chain.connectivity, generic.connectivity, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_float64_models_agree_to_1e_10(name: str) -> None:
    case = CASES[name]
    model, inputs = built(case)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    got, expected = (
        lmn.connectivity(model, inputs, tap=case.tap, select=case.select, backend=backend, progress=False)
        for backend in ("auto", "reference")
    )
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_a_model_that_is_run_whole_says_so() -> None:
    model, inputs = built(CASES["values, tapped"])
    (note,) = lmn.measure(model, inputs, tap="first", metrics=("lmn",), progress=False).notes
    assert "run whole" in note
    assert "could not be traced" in note


class Mixed(torch.nn.Module):
    """float32, with a head in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.trunk(x)).double())


class Asserting(torch.nn.Module):
    """Checks the shape that it is given, which a tracer by symbols can't follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.width = torch.nn.Linear(width, 7), torch.nn.Linear(7, 2), width

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        assert columns == self.width
        return self.b(torch.relu(self.a(x)).reshape(rows, -1))


@pytest.mark.parametrize("model", [Mixed(), *(Asserting(width) for width in (2, 3, 4, 5))], ids=str)
def test_models_that_are_traced_by_running_them(model: torch.nn.Module) -> None:
    x = torch.randn(7, 3 if isinstance(model, Mixed) else model.width)
    found = lmn.measure(model, x, progress=False)
    assert found.path != "whole model"
    assert found.lmn == pytest.approx(lmn.measure(model, x, backend="reference", progress=False).lmn, rel=1e-3)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_a_bfloat16_model_is_measured_in_float32(backend: str) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)), torch.randn(20, 3)
    model, x = model.bfloat16(), x.bfloat16()
    found = lmn.measure(model, x, backend=backend, progress=False)
    same = lmn.measure(copy.deepcopy(model).float(), x.float(), progress=False)
    assert found.dtype == "float32"
    assert found.lmn == pytest.approx(same.lmn, rel=1e-3)
    assert found.regions.count == same.regions.count


def test_outputs_without_a_dimension_of_their_own() -> None:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    model, x = torch.nn.Sequential(body, torch.nn.Flatten(0)), torch.randn(9, 3)
    assert lmn.measure(model, x, progress=False).lmn == pytest.approx(lmn.measure(body, x, progress=False).lmn)
    squeezed = Squeezed(body)
    assert lmn.measure(squeezed, x, progress=False).lmn == pytest.approx(lmn.measure(body, x, progress=False).lmn)


class Squeezed(torch.nn.Module):
    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze()  # of one sample, a number


class Branches(nn.Module):
    """The symbolic tracer takes the wrong branch of it; an attention mask makes its results large."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            x = torch.sin(3 * x)
        scores = (x[:, :, None] * x[:, None, :]).masked_fill(torch.ones(4, 4).triu(1).bool(), self.fill)
        return (scores.softmax(-1) @ x[:, :, None])[..., 0]


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_large_values_on_the_way_hide_no_wrong_trace(fill: float) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    expected = lmn.connectivity(Branches(-float("inf")), x, backend="reference", progress=False)
    got = lmn.connectivity(Branches(fill), x, progress=False)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=1e-5)


def test_dtypes_that_torch_can_hardly_compute_in() -> None:
    class Quantized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.to(torch.float8_e4m3fn).to(x.dtype)).sum(1, keepdim=True)

    assert lmn.connectivity(Quantized(), torch.randn(5, 3), progress=False).shape == (5, 5)
