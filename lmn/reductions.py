"""What is made of local maps as they are computed: norms, singular values, ranks; and numbers of distinct maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmn.errors import LmnError
from lmn.map_source import MapSource
from lmn.memory import in_bytes

# Of each point, (n,), from the squared singular values in descending order, (n, k), float64.
_OF_SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral_norm": lambda squares: squares[:, 0].sqrt(),
    "effective_rank": lambda squares: _effective_number(squares),
}
OF_POINTS = (
    *("frobenius_norm", "spectral_norm", "singular_values", "effective_rank", "participation_ratio", "log_determinant"),
)
OF_DOMAIN = ("linear_maps", "effective_linear_maps")
REDUCTIONS = (*OF_POINTS, *OF_DOMAIN)


def of_maps(
    source: MapSource, names: tuple[str, ...], memory_limit: int, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """Reductions of each map, of a few at a time; only the determinant needs the maps in the inputs' coordinates."""
    out: dict[str, list[Tensor]] = {name: [] for name in names}
    isometric = [name for name in names if name != "log_determinant"]
    columns = source.n_in if "log_determinant" in names else source.n_columns
    for first, last in source.parts(2 * columns, memory_limit):
        if isometric:
            for name, values in _of_part(source.isometric(first, last), isometric, min(source.n_out, source.n_in)).items():
                out[name].append(values.to(source.dtype))
        if "log_determinant" in names:
            out["log_determinant"].append(torch.linalg.slogdet(source.maps(first, last).double()).logabsdet.to(source.dtype))
        progress(last - first)
    return {name: torch.cat(parts) for name, parts in out.items()}


def _of_part(maps: Tensor, names: list[str], rank: int) -> dict[str, Tensor]:
    """Reductions of maps, (n, n_out, n_columns), that have so many singular values."""
    found: dict[str, Tensor] = {}
    if "singular_values" in names:
        values = torch.linalg.svdvals(maps.double())
        found["singular_values"] = torch.nn.functional.pad(values, (0, rank - values.shape[1]))
    if "frobenius_norm" in names:
        found["frobenius_norm"] = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    wanted = [name for name in names if name in _OF_SQUARES]
    if "participation_ratio" not in names and not wanted:
        return found
    gram = _gram(maps)
    total = gram.diagonal(dim1=1, dim2=2).sum(1)
    if "participation_ratio" in names:
        fourth = gram.square().sum((1, 2))
        found["participation_ratio"] = torch.where(total > 0, total.square() / fourth.clamp(min=1e-300), 0.0)
    if wanted:
        eigenvalues = total[:, None] if gram.shape[1] == 1 else torch.linalg.eigvalsh(gram).flip(1).clamp(min=0)
        found |= {name: _OF_SQUARES[name](eigenvalues) for name in wanted}
    return found


def _gram(maps: Tensor) -> Tensor:
    """The smaller of A A' and A' A, float64."""
    a = maps if maps.shape[1] <= maps.shape[2] else maps.mT
    return (a @ a.mT).double()


def _effective_number(weights: Tensor) -> Tensor:
    """2 to the entropy, in bits, of non-negative weights that are normalised; 0 where all are zero."""
    total = weights.sum(-1, keepdim=True)
    p = weights / torch.where(total > 0, total, 1)
    entropy = -torch.special.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0, dtype=p.dtype))
    return torch.where(total[..., 0] > 0, torch.exp2(entropy), 0.0)


def effective_linear_maps(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> float:
    """2^S of the spectrum of Σ_i w_i a_i a_i', a_i the vectorised map of unit Frobenius norm; in the smaller Gram form.

    Maps that are zero have no direction and are left out; where all are, the number is 1.
    """
    size = source.n_out * source.n_columns
    spectrum = (
        _by_entries(source, memory_limit, progress) if size <= source.n_maps else _by_maps(source, memory_limit, progress)
    )
    eigenvalues = torch.linalg.eigvalsh(spectrum).clamp(min=0)
    return max(1.0, float(_effective_number(eigenvalues)))


def _units(source: MapSource, first: int, last: int) -> Tensor:
    """sqrt(w_i) a_i of some maps, (n, n_out * n_columns)."""
    a = source.isometric(first, last).flatten(1)
    norms = torch.linalg.vector_norm(a, dim=1, dtype=torch.float64)
    scale = torch.where(norms > 0, source.weights[first:last].to(a.device).sqrt() / norms.clamp(min=1e-300), 0.0)
    return a * scale.to(a.dtype)[:, None]


def _by_entries(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> Tensor:
    """Σ_i w_i a_i a_i', as large as a map has entries, squared."""
    size = source.n_out * source.n_columns
    _check_fits(8 * size * size, memory_limit, f"the {size} x {size} matrix of the maps' entries")
    total = torch.zeros(size, size, dtype=torch.float64, device=source.device)
    for first, last in source.parts(source.n_columns, memory_limit):
        rows = _units(source, first, last)
        total += rows.mT @ rows
        progress(last - first)
    return total


def _by_maps(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> Tensor:
    """sqrt(w_i w_j) a_i · a_j, as large as there are maps, squared: panels of maps against each other."""
    n = source.n_maps
    _check_fits(8 * n * n, memory_limit, f"the {n} x {n} matrix of the maps' products")
    gram = torch.zeros(n, n, dtype=torch.float64, device=source.device)
    panels = list(source.parts(source.n_columns, memory_limit))
    for number, (top, bottom) in enumerate(panels):
        rows = _units(source, top, bottom)
        for left, right in panels[number:]:
            columns = rows if left == top else _units(source, left, right)
            products = (rows @ columns.mT).double()
            gram[top:bottom, left:right], gram[left:right, top:bottom] = products, products.mT
        progress(bottom - top)
    return gram


def _check_fits(size: int, memory_limit: int, what: str) -> None:
    if size > memory_limit:
        raise LmnError(
            f"{what} takes {in_bytes(size)}, and the memory limit is {in_bytes(memory_limit)}; take fewer points, fewer "
            "outputs (select=), or raise memory_limit."
        )
