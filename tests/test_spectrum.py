"""From a matrix to its number."""

import numpy as np
import pytest
import torch

import lmn
from lmn import spectrum


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_equal_blocks_count_themselves(blocks: int) -> None:
    matrix = torch.block_diag(*[torch.ones(5, 5)] * blocks)
    assert lmn.linear_mapping_number(matrix) == pytest.approx(blocks)


def test_unconnected_samples() -> None:
    assert lmn.linear_mapping_number(np.eye(9)) == pytest.approx(9)


def test_eigenvalues_count_by_their_size_whatever_their_sign() -> None:
    # A path of three, of which the ends are not connected: eigenvalues 1 + sqrt(2), 1 and 1 - sqrt(2), which is negative.
    p = np.array([np.sqrt(2) + 1, 1, np.sqrt(2) - 1]) / (2 * np.sqrt(2) + 1)
    expected = 2 ** -(p * np.log2(p)).sum()
    assert lmn.linear_mapping_number(np.array([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])) == pytest.approx(expected)


def test_the_matrix_is_left_as_it_is() -> None:
    matrix = torch.rand(6, 6, dtype=torch.float64)
    matrix = ((matrix + matrix.T) / 2).fill_diagonal_(1)
    before = matrix.clone()
    lmn.linear_mapping_number(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_lapack_in_place_gives_numpys_eigenvalues(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "_IN_PLACE_FROM", 0)
    matrix = np.random.default_rng(0).normal(size=(n, n))
    matrix += matrix.T
    expected = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues_in_place(matrix.copy(), 2), expected, rtol=0, atol=1e-12)


def test_threads_are_bounded_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lapack = spectrum._lapack()
    if lapack is None or not lapack.of_threads:
        pytest.skip("NumPy's LAPACK is not one whose threads can be set")
    get, put = lapack.of_threads
    before, seen, solve = get(), list[int](), spectrum._eigenvalues_by_lapack
    monkeypatch.setattr(spectrum, "_IN_PLACE_FROM", 0)
    monkeypatch.setattr(spectrum, "_eigenvalues_by_lapack", lambda *args: (seen.append(get()), solve(*args))[1])
    put(2)
    try:
        spectrum.eigenvalues_in_place(np.eye(3), 1)
        assert (seen, get()) == ([1], 2)
    finally:
        put(before)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"is square; got shape \(2, 3\)"),
        (np.ones((0, 0)), "is square"),
        (np.array([[1, np.nan], [np.nan, 1]]), "a NaN or an infinity"),
        (np.array([[1, 0.5], [0.4, 1]]), "is symmetric"),
    ],
)
def test_what_is_no_connectivity_matrix(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        lmn.linear_mapping_number(matrix)
