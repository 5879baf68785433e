"""The activations' cores, in C++ for every instruction set, against float64; and the table against torch."""

import ctypes

import numpy as np
import pytest
import torch

from lmn import _core
from lmn.kernels.activations import ACTIVATIONS, CORES, activation, core_values
from lmn.kernels.cores_numba import elementwise

PARAMETERS = {"clamp": (-0.7, 1.2), "tanh": (0.5, 0), "ztanh": (0.5, 0), "elu": (1.3, 0), "softplus": (1.5, 20)}
Z = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-6, 6, 4001), np.geomspace(1e-30, 1, 400), [0.0, -0.0]])


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("core", CORES)
def test_float32_cores_are_good_to_a_few_units_in_the_last_place(core: str, isa: str) -> None:
    z = Z.astype(np.float32)
    p0, p1 = PARAMETERS.get(core, (0, 0))
    expected = core_values(core, z.astype(np.float64), p0, p1)
    got = _core.core_values_f32(CORES.index(core), p0, p1, z, isa).astype(np.float64)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert np.all(np.abs(got - expected) <= 6 * ulp + 2e-36)  # exp stops at -87, where z exp(z) is 1.5e-36


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("core", CORES)
def test_float64_cores(core: str, isa: str) -> None:
    p0, p1 = PARAMETERS.get(core, (0, 0))
    expected = core_values(core, Z, p0, p1)
    np.testing.assert_allclose(_core.core_values_f64(CORES.index(core), p0, p1, Z, isa), expected, rtol=5e-15, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("core", CORES)
def test_numbas_cores_are_the_same_functions(core: str, dtype: type[np.floating]) -> None:
    p0, p1 = PARAMETERS.get(core, (0, 0))
    z = Z.astype(dtype)
    got = z.copy()
    elementwise(core, dtype).ctypes(p0, p1, got.ctypes.data_as(ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype))), len(z))
    expected = core_values(core, z.astype(np.float64), p0, p1)
    ulp = np.spacing(np.abs(expected).astype(dtype)).astype(np.float64)
    assert np.all(np.abs(got.astype(np.float64) - expected) <= 8 * ulp + 2e-36)


@pytest.mark.parametrize("core", CORES)
def test_nan_goes_through_every_core(core: str) -> None:
    p0, p1 = PARAMETERS.get(core, (0, 0))
    for isa in _core.instruction_sets():
        for function in (_core.core_values_f32, _core.core_values_f64):
            assert np.isnan(function(CORES.index(core), p0, p1, np.array([np.nan]), isa)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_table_splits_an_activation_into_its_core_and_an_affine_part(name: str) -> None:
    parameters = {"prelu": {"weight": torch.tensor([0.25])}, "leaky_relu": {"negative_slope": 0.1}, "elu": {"alpha": 0.7}}
    act = activation(name, **parameters.get(name, {}))
    z = torch.linspace(-8, 30, 1000, dtype=torch.float64)
    scale, slope = act.by_unit(1)
    rest = act.function(z).numpy() - slope * z.numpy() - scale * core_values(act.core, z.numpy(), act.p0, act.p1)
    np.testing.assert_allclose(rest, rest[0], rtol=0, atol=1e-12)  # a constant


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="'sse9' is not one that this machine runs"):
        _core.core_values_f32(0, 0, 0, np.zeros(1, dtype=np.float32), "sse9")
