"""The largest eigenvalues of many small matrices against LAPACK's."""

import numpy as np
import pytest

from lmn import _core


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("rows", [1, 2, 3, 10, 17, 33])
def test_eigenvalues_are_lapacks(rows: int, isa: str) -> None:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((101, rows, 2 * rows))  # no multiple of what is taken together
    factors[:20, :, max(1, rows // 2) :] = 0  # of low rank
    matrices = factors @ factors.transpose(0, 2, 1)
    matrices[50:60] -= 3 * np.eye(rows)  # indefinite
    got = _core.largest_eigenvalues(matrices, rows, 1, isa)
    expected = np.linalg.eigvalsh(matrices)[:, ::-1]
    np.testing.assert_allclose(got / np.abs(expected).max(1)[:, None], expected / np.abs(expected).max(1)[:, None], atol=1e-14)
    np.testing.assert_array_equal(_core.largest_eigenvalues(matrices, 1, 2, isa), got[:, :1])


@pytest.mark.parametrize("isa", _core.instruction_sets())
def test_special_matrices(isa: str) -> None:
    n = 7
    second_differences = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    matrices = np.stack([np.zeros((n, n)), np.eye(n), np.ones((n, n)), np.diag(np.arange(n) - 3.0), second_differences])
    waves = 2 - 2 * np.cos(np.pi * np.arange(n, 0, -1) / (n + 1))
    expected = np.stack([np.zeros(n), np.ones(n), [n, *[0] * (n - 1)], np.arange(n)[::-1] - 3.0, waves])
    for scale in (1.0, 1e-250, 1e250):
        got = _core.largest_eigenvalues(scale * matrices, n, 1, isa)
        np.testing.assert_allclose(got / scale, expected, atol=3e-15)


def test_only_the_lower_triangle_is_read() -> None:
    matrix = np.array([[[2.0, np.nan], [1.0, 2.0]]])
    np.testing.assert_allclose(_core.largest_eigenvalues(matrix, 2, 1), [[3.0, 1.0]])


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("exponent", range(-175, -130, 5))
def test_next_to_nothing_beside_the_diagonal(exponent: int, isa: str) -> None:
    corner = np.eye(3)
    corner[2, 0] = corner[0, 2] = 10.0**exponent
    np.testing.assert_allclose(_core.largest_eigenvalues(corner[None], 3, 1, isa), np.ones((1, 3)), atol=1e-15)


def test_matrices_that_are_subnormal() -> None:
    got = _core.largest_eigenvalues(np.diag([1.0, 0.5, 0.25])[None] * 1e-310, 3, 1)
    np.testing.assert_allclose(got / 1e-310, [[1.0, 0.5, 0.25]], rtol=1e-12)
