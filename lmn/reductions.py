"""What is made of local maps as they are computed: norms, singular values, ranks; and numbers of distinct maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmn.errors import LmnError
from lmn.kernels.eigenvalues import ascending_eigenvalues, largest_eigenvalues
from lmn.kernels.jacobians.problem import smaller_gram
from lmn.map_source import MapSource
from lmn.memory import in_bytes

OF_DOMAIN = ("linear_maps", "effective_linear_maps")
REDUCTIONS = (
    *("frobenius_norm", "spectral_norm", "singular_values", "effective_rank", "participation_ratio", "log_determinant"),
    *OF_DOMAIN,
)


def of_maps(
    source: MapSource, names: tuple[str, ...], memory_limit: int, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """Reductions of each map, of a few at a time; only the determinant needs the maps in the inputs' coordinates."""
    out: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(values: dict[str, Tensor], n: int) -> None:
        for name, each in values.items():
            out[name].append(each.to(source.dtype))
        progress(n)

    by_grams = source.has_grams and _are_of_grams(names, written=source.backend == "triton")
    for first, last in source.gram_parts(memory_limit) if by_grams else [(0, source.n_maps)]:
        grams = source.grams(first, last) if by_grams else None
        if grams is not None:
            keep(_of_grams(grams, names, source.threads), last - first)
        else:
            _of_range(source, first, last, names, memory_limit, keep)
    return {name: torch.cat(parts) for name, parts in out.items()}


_OF_SPECTRUM = {"spectral_norm", "effective_rank"}
_OF_GRAMS = {*_OF_SPECTRUM, "participation_ratio"}


def _are_of_grams(names: tuple[str, ...], *, written: bool) -> bool:
    """Whether all follow from A A', and some take it anyway; or it is all that is written to memory."""
    some = bool(_OF_GRAMS.intersection(names)) or written
    return some and {*_OF_GRAMS, "frobenius_norm"}.issuperset(names)


def _of_range(
    source: MapSource,
    first: int,
    last: int,
    names: tuple[str, ...],
    memory_limit: int,
    keep: Callable[[dict[str, Tensor], int], None],
) -> None:
    isometric = tuple(name for name in names if name != "log_determinant")
    columns = source.n_in if "log_determinant" in names else source.n_columns
    for begin, end in source.parts(2 * columns, memory_limit, within=(first, last)):
        values: dict[str, Tensor] = {}
        if isometric:
            values |= _of_part(source.isometric(begin, end), isometric, source)
        if "log_determinant" in names:
            values["log_determinant"] = _log_determinant(source, begin, end)
        keep(values, end - begin)


def _of_part(maps: Tensor, names: tuple[str, ...], source: MapSource) -> dict[str, Tensor]:
    """Reductions of some of a source's maps, (n, n_out, n_columns)."""
    found: dict[str, Tensor] = {}
    if "singular_values" in names:
        values = torch.linalg.svdvals(maps.double())
        found["singular_values"] = torch.nn.functional.pad(values, (0, min(source.n_out, source.n_in) - values.shape[1]))
    if names == ("singular_values",):
        return found
    scaled, factor = of_a_size(maps)
    if _OF_GRAMS.intersection(names):
        found |= _of_grams(smaller_gram(scaled), names, source.threads, factor)
    if "frobenius_norm" in names:
        found["frobenius_norm"] = torch.linalg.vector_norm(scaled.flatten(1), dim=1).double() / factor
    return found


def _of_grams(gram: Tensor, names: tuple[str, ...], threads: int, factor: Tensor | float = 1.0) -> dict[str, Tensor]:
    """Reductions of maps that, times factors, have such Gram matrices, (n, k, k), float64."""
    found: dict[str, Tensor] = {}
    total = gram.diagonal(dim1=1, dim2=2).sum(1)
    if "frobenius_norm" in names:
        found["frobenius_norm"] = total.sqrt() / factor
    if "participation_ratio" in names:
        shares = gram / torch.where(total > 0, total, 1)[:, None, None]  # whose squares are numbers
        found["participation_ratio"] = torch.where(total > 0, 1 / shares.square().sum((1, 2)), 0.0)
    if _OF_SPECTRUM.intersection(names):
        wanted = gram.shape[1] if "effective_rank" in names else 1
        eigenvalues = largest_eigenvalues(gram, wanted, threads).clamp(min=0)
        if "spectral_norm" in names:
            found["spectral_norm"] = eigenvalues[:, 0].sqrt() / factor
        if "effective_rank" in names:
            found["effective_rank"] = _effective_number(eigenvalues)
    return found


def of_a_size(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps, (n, n_out, n_columns), whose squares are numbers: tiny and huge ones each times a power of two, others as they are.

    Returns
    -------
    maps : Tensor of the maps' shape and dtype
    factor : Tensor of shape (n,), float64
        What each was multiplied by; exactly, down to bits that its largest entry is far from having.
    """
    tiny = torch.finfo(maps.dtype).tiny
    small = tiny**0.125
    norms = torch.linalg.vector_norm(maps.flatten(1), dim=1)  # a fast pass, by which extreme maps are known
    extreme = ~((norms > small) & (norms < 1 / small))
    factor = torch.ones_like(norms)
    if maps[0].numel() and bool(extreme.any()):
        largest = maps[extreme].flatten(1).abs().amax(1).clamp(tiny, 0.25 / tiny)  # where the factor is a normal number
        factor[extreme] = torch.frexp(largest).mantissa / largest
        maps = maps * factor[:, None, None]
    return maps, factor.double()


def _log_determinant(source: MapSource, first: int, last: int) -> Tensor:
    """log |det A| of some square maps, (n,), float64; -inf where A is singular but for the rounding of its entries."""
    values = torch.linalg.svdvals(source.maps(first, last).double())
    dtype = torch.float32 if source.subject.network.single_inside else source.dtype
    rounding = torch.finfo(dtype).eps * source.n_in * values[:, 0]
    return torch.where(values[:, -1] <= rounding, -torch.inf, values.log().sum(1))


def _effective_number(weights: Tensor) -> Tensor:
    """2 to the entropy, in bits, of non-negative weights that are normalised; 0 where all are zero."""
    total = weights.sum(-1, keepdim=True)
    p = weights / torch.where(total > 0, total, 1)
    entropy = -torch.special.xlogy(p, p).sum(-1) / math.log(2)
    return torch.where(total[..., 0] > 0, torch.exp2(entropy), 0.0)


def effective_linear_maps(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> float:
    """2^S of the spectrum of Σ_i w_i a_i a_i', a_i the vectorised map of unit Frobenius norm; in the smaller Gram form.

    Maps that are zero have no direction and are left out; where all are, the number is 1.
    """
    size = source.n_out * source.n_columns
    spectrum = (
        _by_entries(source, memory_limit, progress) if size <= source.n_maps else _by_maps(source, memory_limit, progress)
    )
    eigenvalues = ascending_eigenvalues(spectrum).clamp(min=0)
    return max(1.0, float(_effective_number(eigenvalues)))


def _units(source: MapSource, first: int, last: int) -> Tensor:
    """sqrt(w_i) a_i of some maps, (n, n_out * n_columns)."""
    a = of_a_size(source.isometric(first, last))[0].flatten(1)
    norms = torch.linalg.vector_norm(a, dim=1, dtype=torch.float64)
    scale = torch.where(norms > 0, source.weights[first:last].to(a.device).sqrt() / norms.clamp(min=1e-300), 0.0)
    return a * scale.to(a.dtype)[:, None]


def _by_entries(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> Tensor:
    """Σ_i w_i a_i a_i', as large as a map has entries, squared."""
    size = source.n_out * source.n_columns
    _check_fits(size, memory_limit, "entries")
    total = torch.zeros(size, size, dtype=torch.float64, device=source.device)
    for first, last in source.parts(source.n_columns, memory_limit):
        rows = _units(source, first, last)
        total += rows.mT @ rows
        progress(last - first)
    return total


def _by_maps(source: MapSource, memory_limit: int, progress: Callable[[int], object]) -> Tensor:
    """sqrt(w_i w_j) a_i · a_j, as large as there are maps, squared: on and below the diagonal, which is what eigvalsh reads.

    Panels of maps are held against all later ones, of which a few are computed at a time. A quarter of the memory is for both:
    where all maps fit, which is usual, each is computed once.
    """
    n, size = source.n_maps, source.n_out * source.n_columns
    _check_fits(n, memory_limit, "products")
    gram = torch.zeros(n, n, dtype=torch.float64, device=source.device)
    few = next(last for _, last in source.parts(source.n_columns, memory_limit // 4))
    held = max(1, memory_limit // (4 * size * source.dtype.itemsize) - few)
    held = n if n <= held else max(few, held // few * few)  # the same parts whatever the panels
    for top in range(0, n, held):
        bottom = min(top + held, n)
        panel = torch.empty(bottom - top, size, dtype=source.dtype, device=source.device)
        for first in range(top, n, few):
            last = min(first + few, n)
            rows = _units(source, first, last)
            if first < bottom:
                panel[first - top : last - top] = rows
            gram[first:last, top : min(last, bottom)] = rows @ panel[: last - top].mT
            if first < bottom:
                progress(last - first)
    return gram


def _check_fits(size: int, memory_limit: int, what: str) -> None:
    needed = 2 * 8 * size * size  # the eigenvalues are found in a copy
    if needed > memory_limit:
        raise LmnError(
            f"the {size} x {size} matrix of the maps' {what}, and a copy of it, take {in_bytes(needed)}, and the memory limit "
            f"is {in_bytes(memory_limit)}; take fewer points, fewer outputs (select=), or raise memory_limit."
        )
