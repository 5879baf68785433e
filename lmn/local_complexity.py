"""Local complexity: how many units bend in the neighbourhood of each sample: validate, plan, dispatch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmn.activation_patterns import check_agreement
from lmn.backends import check_name, choose
from lmn.bends import layer_of
from lmn.chain import outputs_agree
from lmn.errors import LmnError, thread_count, whole_number
from lmn.grid import as_grid
from lmn.kernels.jacobians.problem import Chain
from lmn.kernels.local_complexity.problem import Bends, Found, Layer, Problem
from lmn.kernels.threads import torch_threads
from lmn.lowering import NotAChain
from lmn.network import Network
from lmn.progress import progress_bar
from lmn.selection import Select
from lmn.slopes import slope_chain
from lmn.subject import Subject, spread

DEFAULT_R, DEFAULT_DIRECTIONS = 0.005, 25  # Humayun et al. 2024


_OWN_SEEDS = 0x6C6D6E2D64697273  # "lmn-dirs": what tells the directions' seeds from everybody else's
_CHECKED_DIRECTIONS = 2
_MOST_SHOWN = 12  # layers


@dataclass(frozen=True, eq=False)
class LocalComplexity:
    """How many units change sign in the neighbourhood of each sample (Humayun et al. 2024, arXiv 2402.15555).

    Attributes
    ----------
    counts : ndarray of shape (n_points, n_layers), int64
        Units of each layer that do.
    layers : tuple of str
        Where in the model the layers, activations and maxima, are.
    units : tuple of int
        How many units each has; of a maximum, its windows.
    r : float
        The distance from a sample to each of its vertices, in units of the samples.
    n_directions : int
        Half the number of vertices.
    by_sign : bool
        Some of the activations are smooth (GELU, SiLU, ELU and the like): they bend everywhere, and their units are counted
        where the pre-activation changes sign. Such counts tell where a smooth kink is near. They count no bends, and don't
        compare with those of piecewise-linear activations.
    backend : str
    elapsed : float
        Seconds.
    """

    counts: np.ndarray[Any, Any]
    layers: tuple[str, ...]
    units: tuple[int, ...]
    r: float
    n_directions: int
    by_sign: bool
    backend: str
    elapsed: float

    @property
    def total(self) -> np.ndarray[Any, Any]:
        """Units of all layers, (n_points,), int64."""
        total: np.ndarray[Any, Any] = self.counts.sum(axis=1)
        return total

    @property
    def mean(self) -> float:
        """Of the total, over the samples."""
        return float(self.total.mean())

    @property
    def mean_by_layer(self) -> tuple[float, ...]:
        """Of each layer's units, over the samples."""
        return tuple(self.counts.mean(axis=0).tolist())

    def to_dict(self) -> dict[str, float]:
        """The means as flat floats, for loggers and data frames."""
        layers = {f"local_complexity_layer_{index}": mean for index, mean in enumerate(self.mean_by_layer)}
        return {"local_complexity": self.mean, **layers}

    def __str__(self) -> str:
        do = "change sign" if self.by_sign else "bend"
        shown = list(zip(self.layers, self.mean_by_layer, self.units, strict=True))[:_MOST_SHOWN]
        by_layer = ", ".join(f"{mean:.4g} of {units} in '{where}'" for where, mean, units in shown)
        rest = f", and {len(self.layers) - len(shown)} more layers" if len(self.layers) > len(shown) else ""
        lines = [
            f"local complexity {self.mean:.4g}: of {sum(self.units)} units, those that {do} within r = {self.r:g} of a sample",
            f"by layer {by_layer}{rest}" if shown else "the model has no activations",
            f"{len(self.counts)} samples, {self.n_directions} directions; {self.backend}; {self.elapsed:.2f} s",
        ]
        if self.by_sign:
            lines.append("smooth activations are counted by the sign of what they take, which is no bend")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"LocalComplexity(mean={self.mean:.6g}, {len(self.counts)} points, {len(self.layers)} layers)"


def local_complexity(
    model: nn.Module,
    samples: Any,
    r: float = DEFAULT_R,
    n_directions: int = DEFAULT_DIRECTIONS,
    seed: int = 0,
    *,
    tap: str | None = None,
    select: Select | None = None,
    backend: str = "auto",
    threads: int | None = None,
    progress: bool = True,
) -> LocalComplexity:
    """The local complexity of a model at samples: how many of its units bend in the neighbourhood of each.

    The neighbourhood of a sample x is a cross-polytope with the vertices x ± r v_p, p = 1..n_directions, with orthonormal
    directions v_p, the same for all samples. A unit is counted where its pre-activation changes sign over the 2 n_directions
    vertices: it is above zero at some of them and not at others (Humayun, Balestriero, Baraniuk 2024, "Deep Networks Always
    Grok and Here is Why", arXiv 2402.15555).

    Counted are the units of the pointwise activations on the way from the samples to the output, and the windows of maxima:

    - of a piecewise-linear activation, a unit with any of its breakpoints between the vertices (zero, of ReLU; both bounds of
      a clamp); of a maximum (max pooling, maxout), a window whose largest member differs among the vertices;
    - of a smooth activation with a kink about zero (GELU, SiLU, ELU, SELU, CELU, softplus, Mish, Hardswish, log-sigmoid), a
      unit whose pre-activation changes sign. That is no bend, and the result says so by ``by_sign``;
    - tanh, the sigmoid, and other activations that bend nowhere in particular have nothing to count: a model with one,
      wherever it is, is an error. So is one with a GLU, whose gate is a sigmoid.

    Softmax, torch's normalisation and attention, and products and quotients of two results, such as gates, are passed through.
    Of all other operations that are not affine (powers, exp, sqrt, rounding) it is not known where they bend: an error.

    Parameters
    ----------
    model, tap, select
        As for :func:`lmn.measure`. With a tap, the vertices are around its outputs.
    samples : Tensor or ndarray of shape (n_points, ...), or the result of lmn.box, lmn.plane or lmn.line
        The model's inputs.
    r : float, above 0
        In units of the samples (with a tap, of its outputs).
    n_directions : int
        At most as many as a sample has values.
    seed : int
        Of the directions' own random generator, which shares no stream with any that the model was drawn from: directions
        drawn from torch's generator by the model's own seed repeat its first weights, and find units that others don't.
    backend : {"auto", "cpp", "triton", "torch", "reference"}
        What computes it; see :func:`lmn.available_backends`. A backend that is named is used or raises.
    threads : int, optional
        CPU threads; default ``torch.get_num_threads()``.
    progress : bool
        Show a progress bar for what takes over a second.

    Returns
    -------
    LocalComplexity
        ``counts`` by sample and layer, ``total`` by sample, ``mean``.

    Raises
    ------
    LmnError
        An activation without a kink, or an operation that is not known; a model that could not be traced; more directions than
        a sample has values; an r that is not above zero, or lost in the rounding of the samples, or within which something in
        the model is not finite; samples that can't be measured.

    Examples
    --------
    >>> found = lmn.local_complexity(model, samples)
    >>> found.mean, found.total.max(), found.mean_by_layer
    """
    with Subject(model, as_grid(samples), tap=tap, select=select) as subject:
        return find(subject, r=r, n_directions=n_directions, seed=seed, backend=backend, threads=threads, progress=progress)


def find(
    subject: Subject,
    indices: Tensor | None = None,
    *,
    r: float = DEFAULT_R,
    n_directions: int = DEFAULT_DIRECTIONS,
    seed: int = 0,
    backend: str = "auto",
    threads: int | None,
    progress: bool,
) -> LocalComplexity:
    """The local complexity of an open subject at the points of the given indices, or at all of its grid."""
    started = time.perf_counter()
    check_name("local_complexity", backend)
    r, n_directions = _radius(r), whole_number(n_directions, "n_directions", 1)
    seed, threads = whole_number(seed, "seed", 0, 2**63 - 1), thread_count(threads)
    indices = torch.arange(subject.grid.n_points, device="cpu") if indices is None else indices
    example = subject.samples(indices[spread(len(indices))])
    n_in = example[0].numel()
    if n_directions > n_in:
        raise LmnError(
            f"n_directions={n_directions} orthonormal directions need at least {n_directions} inputs, and the samples have "
            f"{n_in}; pass n_directions={n_in}.",
            short=f"{n_directions} directions are more than the {n_in} inputs",
        )
    steps = r * directions(n_in, n_directions, seed)
    _check_vertices(subject.network, example, steps, r)
    finite = list[Tensor]()
    with progress_bar(len(indices), "local complexity", "point", progress) as bar:
        problem = _plan(subject, indices, example, steps, threads, finite, bar.update)
        chosen = choose("local_complexity", backend, problem)
        found: Found = chosen.load("local_complexity")(problem)
    if finite and not bool(torch.stack(finite).all()):
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    _check_finite(found, indices, r)
    return LocalComplexity(
        counts=found.counts,
        layers=tuple(layer.where for layer in found.layers),
        units=tuple(layer.n_units for layer in found.layers),
        r=r,
        n_directions=n_directions,
        by_sign=any(layer.smooth for layer in found.layers),
        backend=chosen.name,
        elapsed=time.perf_counter() - started,
    )


def directions(n_in: int, n_directions: int, seed: int) -> Tensor:
    """Random orthonormal directions, (n_directions, n_in), float64: uniform among all such."""
    generator = torch.Generator("cpu").manual_seed(_far_from(seed))
    normal = torch.randn(n_in, n_directions, generator=generator, dtype=torch.float64, device="cpu")
    with torch_threads(1):  # the bits don't depend on how many there are
        q, _ = torch.linalg.qr(normal)
    v: Tensor = q.T.contiguous()
    return v


def _far_from(seed: int) -> int:
    """A seed that nobody gives a model: SplitMix64's output function (Steele, Lea, Flood 2014) of a constant and the seed."""
    z = (_OWN_SEEDS + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def _radius(r: Any) -> float:
    try:
        radius = math.nan if isinstance(r, bool | str) else float(r)
    except (TypeError, ValueError, RuntimeError):
        radius = math.nan
    if not 0 < radius < math.inf:
        raise LmnError(f"r is the distance from a sample to its vertices, a number above 0; got {r!r}.")
    return radius


def _check_vertices(network: Network, example: Tensor, steps: Tensor, r: float) -> None:
    """The vertices are where they should be, in the samples' dtype, and the model is finite there."""
    x = example.flatten(1)
    moves = steps[:_CHECKED_DIRECTIONS].to(x.device)
    moves = torch.cat([moves, -moves])
    vertices = x + moves[:, None].to(x)  # (n_moves, n_example, n_in)
    off = (vertices.double() - x.double() - moves[:, None]).norm(dim=2)
    if not bool((off < r / 2).all()):
        dtype = str(x.dtype).removeprefix("torch.")
        advice = "pass samples and a model of dtype float64, or " if x.dtype != torch.float64 else ""
        raise LmnError(
            f"r={r:g} is lost in the rounding of samples of dtype {dtype} as large as {float(x.abs().max()):g}; {advice}scale "
            "the samples, or pass another r."
        )
    if bool(_finite(network, example)) and not bool(_finite(network, vertices.reshape(-1, *example.shape[1:]))):
        raise LmnError(f"the model's output is not finite at r={r:g} from samples at which it is; pass a smaller r.")


def _check_finite(found: Found, indices: Tensor, r: float) -> None:
    off = found.counts < 0
    if off.any():
        place, layer = divmod(int(off.argmax()), off.shape[1])
        raise LmnError(
            f"what '{found.layers[layer].where}' takes is not finite (NaN or infinity) somewhere within r={r:g} of sample "
            f"{int(indices[place])}, where the model's output is finite; pass a smaller r, or leave out the sample."
        )


def _plan(
    subject: Subject,
    indices: Tensor,
    example: Tensor,
    steps: Tensor,
    threads: int,
    finite: list[Tensor],
    progress: Callable[[int], object],
) -> Problem:
    """To ``finite`` goes, as the samples are asked for, whether the outputs there are: to be looked at once, in the end."""
    network = subject.network
    chain, layers, why_no_chain = _chain(network, example)

    def samples(places: np.ndarray[Any, Any]) -> Tensor:
        h = subject.samples(indices[places])
        finite.append(_finite(network, h))
        return h

    def bends(dtype: torch.dtype) -> Bends:
        found = network.bends(dtype)
        check_agreement(found, network.untraced, example.to(dtype))
        return found

    return Problem(
        n_points=len(indices),
        samples=samples,
        device=example.device,
        dtype=example.dtype,
        steps=steps,
        chain=chain,
        layers=layers,
        why_no_chain=why_no_chain,
        bends=bends,
        batch=network.batch,
        double=not network.single_inside,
        threads=threads,
        progress=progress,
    )


def _chain(network: Network, example: Tensor) -> tuple[Chain | None, tuple[Layer, ...], str]:
    """The chain that the tail is, with its layers but for identities; or why it is none."""
    chain = slope_chain(network, example)
    if isinstance(chain, NotAChain):
        return None, (), chain.why
    layers = [layer_of(layer.activation, n_units) for layer, n_units in zip(chain.layers, chain.units, strict=True)]
    exact = example if network.single_inside else example.double()
    if not outputs_agree(_chain_outputs(chain, exact.flatten(1).cpu()), _outputs(network, exact).double().cpu()):
        return None, (), "as one it gives other outputs than the model"
    return chain, tuple(layer for layer in layers if layer is not None), ""


def _chain_outputs(chain: Chain, x: Tensor) -> Tensor:
    """(n, n_out), float64."""
    y = x.double()
    if chain.first is not None:
        weight, bias = map(torch.from_numpy, chain.first)
        y = y @ weight.T + bias
    for layer in chain.layers:
        y = layer.activation.function(y)
        if layer.weight is not None:
            y = y @ torch.from_numpy(layer.weight).T + torch.from_numpy(layer.bias)
    return y


def _outputs(network: Network, h: Tensor) -> Tensor:
    """The tail's, (n, n_out), some samples at a time."""
    return torch.cat([network.tail(part.clone()) for part in h.split(network.batch)])


def _finite(network: Network, h: Tensor) -> Tensor:
    """Whether the outputs are, a truth value on their device, of which no more than a batch's are kept."""
    return torch.stack([torch.isfinite(network.tail(part.clone())).all() for part in h.split(network.batch)]).all()
