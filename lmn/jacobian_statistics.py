"""What the local Jacobians of a network are like over a grid, in a few numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmn.errors import LmnError
from lmn.jacobians import linear_maps
from lmn.map_source import map_source, piecewise_linear_program
from lmn.memory import limit_for_maps
from lmn.partition import Regions
from lmn.progress import progress_bar
from lmn.reductions import effective_linear_maps, of_maps
from lmn.subject import Subject


@dataclass(frozen=True)
class JacobianStatistics:
    """What the local Jacobians of a network are like over a grid: means over its points, or over a box whose regions are known.

    Attributes
    ----------
    frobenius_norm, spectral_norm, effective_rank : float
        Means; see :func:`lmn.jacobians`.
    largest_spectral_norm : float
        The greatest of those seen: a lower bound of the network's Lipschitz constant where it was looked at.
    linear_maps : int or None
        None where the model is not piecewise linear, or its regions are too many.
    effective_linear_maps : float or None
        None where its matrix would not fit the memory.
    backend, path : str
        What computed them, and how the model was taken; "exact regions": by the maps of a box's regions.
    elapsed : float
        Seconds.
    """

    frobenius_norm: float
    spectral_norm: float
    largest_spectral_norm: float
    effective_rank: float
    linear_maps: int | None
    effective_linear_maps: float | None
    backend: str
    path: str
    elapsed: float

    def to_dict(self) -> dict[str, float]:
        """The numbers as flat floats, for loggers and data frames."""
        jacobian = ("frobenius_norm", "spectral_norm", "largest_spectral_norm", "effective_rank")
        values = {f"jacobian_{name}": getattr(self, name) for name in jacobian}
        values |= {"linear_maps": self.linear_maps, "effective_linear_maps": self.effective_linear_maps}
        return {name: float(value) for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        maps = [f"{self.linear_maps} distinct linear maps"] if self.linear_maps is not None else []
        maps += [f"{self.effective_linear_maps:.4g} effective ones"] if self.effective_linear_maps is not None else []
        norms = f"Jacobians of spectral norm {self.spectral_norm:.4g}, {self.largest_spectral_norm:.4g} at most"
        return "; ".join([", ".join(maps)] * bool(maps) + [f"{norms}, effective rank {self.effective_rank:.4g}"])


def statistics(
    subject: Subject, known: Regions | None, threads: int, progress: bool
) -> tuple[JacobianStatistics, tuple[str, ...]]:
    """The statistics of an open subject, and what there is to say of them."""
    started, notes = time.perf_counter(), list[str]()
    source = map_source(subject, backend="auto", threads=threads, progress=progress, of_domain=True, known=known)
    limit = limit_for_maps(source, None)
    with progress_bar(2 * source.n_maps, "Jacobians", "map", progress) as bar:
        values = of_maps(source, ("frobenius_norm", "spectral_norm", "effective_rank"), limit, bar.update)
        means = {name: float(source.weights.to(each.device) @ each.double()) for name, each in values.items()}
        numbers: dict[str, Any] = {}
        counts: dict[str, Callable[[], float]] = {
            "effective_linear_maps": lambda: effective_linear_maps(source, limit, bar.update),
            "linear_maps": lambda: linear_maps(subject, known, "auto", None, threads, progress),
        }
        if piecewise_linear_program(subject) is None:  # nearly every point has a map of its own: nothing to count
            del counts["linear_maps"]
        for name, count in counts.items():
            try:
                numbers[name] = count()
            except LmnError as error:
                numbers[name] = None
                notes.append(f"no {name.replace('_', ' ')}: {error.short}")
    found = JacobianStatistics(
        frobenius_norm=means["frobenius_norm"],
        spectral_norm=means["spectral_norm"],
        largest_spectral_norm=float(values["spectral_norm"].max()),
        effective_rank=means["effective_rank"],
        linear_maps=numbers.get("linear_maps"),
        effective_linear_maps=numbers["effective_linear_maps"],
        backend=source.backend,
        path=source.path,
        elapsed=time.perf_counter() - started,
    )
    return found, tuple(notes)
