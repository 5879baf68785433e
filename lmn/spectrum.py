"""From a linear connectivity matrix to the linear mapping number."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmn.errors import LmnError
from lmn.kernels.eigenvalues import LARGE, ascending_eigenvalues
from lmn.kernels.threads import torch_threads

_ROUNDING = 1e-5
_IN_PLACE_FROM = LARGE  # a smaller matrix's copy is under 34 MB


def linear_mapping_number(connectivity: Tensor | np.ndarray[Any, Any]) -> float:
    """The linear mapping number of a linear connectivity matrix.

    p_i = |e_i| / Σ|e| over the eigenvalues e of L; the nonlinear complexity is S = -Σ p_i log2 p_i bits, and LMN = 2^S
    (Liu, Zhong, Tegmark 2023, arXiv 2310.05918, eq. 3). It is 1 where all samples share one linear map, and c for c equal
    blocks of mutually connected samples.

    Parameters
    ----------
    connectivity : Tensor or ndarray of shape (n_points, n_points), symmetric
        As ``lmn.connectivity`` gives it. Left as it is.

    Returns
    -------
    float
        Between 1 and n_points.

    Raises
    ------
    LmnError
        The matrix is not square, not symmetric, empty or not finite.
    """
    try:
        matrix = connectivity if isinstance(connectivity, Tensor) else torch.as_tensor(np.asarray(connectivity), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise LmnError(f"a connectivity matrix is an array of numbers; got {type(connectivity).__name__}.") from error
    if matrix.is_complex() or matrix.layout != torch.strided or matrix.is_meta:
        raise LmnError(
            f"a connectivity matrix is real, dense and has values; got {matrix.dtype}, {matrix.layout}, {matrix.device}."
        )
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise LmnError(f"a connectivity matrix is square; got shape {tuple(matrix.shape)}.")
    matrix = matrix.detach().to("cpu", torch.float64, copy=True)
    if not bool(torch.isfinite(matrix).all()):
        raise LmnError("the connectivity matrix has a NaN or an infinity.")
    if float(matrix.min()) < -_ROUNDING or float(matrix.max()) > 1 + _ROUNDING:
        got = f"{float(matrix.min()):.4g} to {float(matrix.max()):.4g}"
        raise LmnError(f"the entries of a connectivity matrix are within [0, 1]; got {got}.")
    if not bool(((matrix.diagonal() - 1).abs() <= _ROUNDING).all()):
        raise LmnError("a connectivity matrix has ones on its diagonal.")
    if not torch.allclose(matrix, matrix.T, rtol=0, atol=_ROUNDING):
        raise LmnError("a connectivity matrix is symmetric; this one differs from its transpose by more than 1e-5.")
    return float(2 ** nonlinear_complexity(eigenvalues_in_place(matrix.numpy(), torch.get_num_threads())))


def nonlinear_complexity(eigenvalues: np.ndarray[Any, Any]) -> float:
    """S = -Σ p_i log2 p_i in bits, p_i = |e_i| / Σ|e|."""
    p = np.abs(eigenvalues) / np.abs(eigenvalues).sum()
    p = p[p > 0]
    return float(max(0.0, -(p * np.log2(p)).sum()))  # a single map gives -0.0


def eigenvalues_in_place(matrix: np.ndarray[Any, Any], threads: int) -> np.ndarray[Any, Any]:
    """The eigenvalues of a symmetric matrix, shape (n,), descending, float64. The matrix may be destroyed.

    Parameters
    ----------
    matrix : ndarray of shape (n, n), float64, contiguous
    threads : int
        At most.
    """
    lapack = _lapack() if len(matrix) >= _IN_PLACE_FROM else None
    if lapack is not None:
        with lapack.threads(threads):
            return _eigenvalues_by_lapack(lapack, matrix)[::-1].copy()
    with torch_threads(threads):
        ascending: np.ndarray[Any, Any] = ascending_eigenvalues(torch.from_numpy(matrix)).numpy()
    return ascending[::-1].copy()


# NumPy and torch solve a copy of the matrix, which doubles the memory of a large one. LAPACK itself works in place, and both
# libraries bring it: it is called through the symbol that this installation has, or else the copy is made.


@dataclass(frozen=True)
class _Lapack:
    """A LAPACK that NumPy brings or was built on.

    Attributes
    ----------
    dsyevd : function
    integer : type
        Of its arguments.
    of_threads : tuple of function
        How many there are, and to set it; none where it is not known how.
    """

    dsyevd: Any
    integer: type
    of_threads: tuple[Any, ...]

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """As torch's, NumPy's threads are bounded."""
        if not self.of_threads:
            yield
            return
        get, put = self.of_threads
        before = get()
        put(min(count, before))
        try:
            yield
        finally:
            put(before)


@cache
def _lapack() -> _Lapack | None:
    import numpy.linalg._umath_linalg as numpy_linalg

    for dsyevd, integer, ending, prefix in (
        ("scipy_dsyevd_64_", ctypes.c_int64, "64_", "scipy_"),  # NumPy's wheels: OpenBLAS with 64-bit integers
        ("dsyevd_", ctypes.c_int32, "", ""),  # NumPy built on a system's LAPACK
    ):
        try:
            library = ctypes.CDLL(numpy_linalg.__file__)
            found = getattr(library, dsyevd)
        except (OSError, AttributeError):
            continue
        names = [f"{prefix}openblas_{what}_num_threads{ending}" for what in ("get", "set")]
        known = all(hasattr(library, name) for name in names)
        return _Lapack(found, integer, tuple(getattr(library, name) for name in names) if known else ())
    return None


def _eigenvalues_by_lapack(lapack: _Lapack, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    integer = lapack.integer
    n = len(matrix)
    values = np.empty(n)
    info = integer(0)

    def call(work: np.ndarray[Any, Any], lwork: int, iwork: Any, liwork: int) -> None:
        pointers = (ctypes.c_char(b"N"), ctypes.c_char(b"L"), integer(n), matrix, integer(n), values, work, integer(lwork))
        lapack.dsyevd(
            *(p.ctypes.data_as(ctypes.c_void_p) if isinstance(p, np.ndarray) else ctypes.byref(p) for p in pointers),
            ctypes.byref(iwork),
            ctypes.byref(integer(liwork)),
            ctypes.byref(info),
            ctypes.c_size_t(1),  # Fortran's hidden lengths of the two characters
            ctypes.c_size_t(1),
        )

    query, iwork = np.empty(1), integer(0)
    call(query, -1, iwork, -1)
    lwork = max(int(query[0]), 2 * n + 1)
    call(np.empty(lwork), lwork, iwork, 1)
    if info.value != 0:
        raise np.linalg.LinAlgError(f"dsyevd gave {info.value}: the eigenvalues did not converge")
    return values
