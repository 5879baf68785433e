"""Every kind of model that issue and README promise, against the float64 reference, and by the path that it should take."""

import pytest
import torch

import lmn

from models import CASES, built


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
    (note,) = lmn.measure(model, inputs, tap="first", progress=False).notes
    assert "run whole" in note
    assert "could not be traced" in note
