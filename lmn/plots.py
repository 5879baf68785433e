"""Pictures of regions: polygons filled by a quantity, and the decision boundary of the output."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmn.domain import Array
from lmn.errors import LmnError, whole_number

if TYPE_CHECKING:
    from lmn.exact_regions import ExactRegions

FILLS = {
    "norm": "norm of the region's map, |A|",
    "output": "output at the region's middle",
    "layer": "activation that cut it last",
    "volume": "log10 of the region's size",
}
_SLICE = 1024  # cells an axis in a picture of a slice
_ENOUGH_POLYGONS_FOR_EDGES = 20_000  # above, edges would cover what they enclose
_EDGES, _EDGE_WIDTH = "#7f7f7f99", 17.0  # to be seen on the darkest and the lightest fill; points times the root of the count
_MOST_ELONGATED = 4.0  # that a picture is drawn to scale
_MOST_NAMES = 20  # beside a picture
_SLICED = 3  # dimensions


def draw(
    regions: ExactRegions,
    fill: str = "norm",
    *,
    output: int | None = None,
    boundary: bool = True,
    axis: int = 2,
    at: float | None = None,
    limits: Sequence[float] | None = None,
    log: bool = False,
    ax: Any = None,
) -> Any:
    """Draw the partition of a line, a plane or a box; three dimensions as a slice.

    Parameters
    ----------
    regions : ExactRegions
    fill : {"norm", "output", "layer", "volume"}
        What a region's colour tells: the Frobenius norm of its map; the output in its middle, and in a slice at each point of
        it; the number of the activation that cut it last; the logarithm of its size. Of several outputs "output" is which is
        the largest, and regions are divided where that changes. On a line the outputs are drawn as they are, and the colour is
        that of the line's background.
    output : int, optional
        Of several outputs, the one to look at, instead of which is largest.
    boundary : bool
        Draw where the output is zero, or where the largest output changes.
    axis, at : int and float
        Of a box in three dimensions, the axis that the slice is perpendicular to, and where (default: its middle).
    limits : (low, high), optional
        What the ends of the colours stand for. Default: all but the extremes of the regions.
    log : bool
        Colours by the logarithm, for "norm" and "output".
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    LmnError
        matplotlib is not installed, an unknown fill, output or axis.
    """
    plt = matplotlib_pyplot()
    check_fill(fill)
    n_out = regions.linear_maps.A.shape[1]
    if output is not None and whole_number(output, "output, counted from 0,", 0) >= n_out:
        raise LmnError(f"output is one of the model's {n_out}, counted from 0; got {output!r}.")
    if ax is None:
        ax = plt.figure(figsize=(6.4, 5.6), layout="constrained").gca()
    if not hasattr(ax, "add_collection"):
        raise LmnError(f"ax is one matplotlib Axes; got {type(ax).__name__}.")
    classes = fill == "output" and output is None and n_out > 1
    if regions.domain.n_axes == _SLICED:
        shown, values = _draw_slice(ax, regions, fill, output, boundary, axis, at)
    else:
        cells, values = _by_class(regions) if classes else (regions.vertices, quantity(regions, fill, output))
        draw_cells = _draw_line if regions.domain.n_axes == 1 else _draw_polygons
        shown = draw_cells(ax, regions, cells, values, output, boundary)
    label = "largest output" if classes else FILLS[fill]
    if fill == "output" and regions.domain.n_axes == _SLICED and not classes:
        label = "output"
    if classes or fill == "layer":
        numbers = np.arange(values.min(), values.max() + 1)
        shown.set_cmap(plt.get_cmap("viridis", len(numbers)))
        shown.set_clim(numbers[0] - 0.5, numbers[-1] + 0.5)
        few = len(numbers) <= _MOST_NAMES
        bar = ax.figure.colorbar(shown, ax=ax, label=label, ticks=numbers if few else None)
        if fill == "layer" and few:
            bar.set_ticklabels(["none" if number < 0 else regions.layers[int(number)] for number in numbers])
    else:  # a few extremes would take the contrast from all others
        low, high = np.quantile(values, (0.005, 0.995)) if limits is None else limits
        if log:
            shown.set_norm(_logarithmic(low, high))
        shown.set_clim(low, high)
        ax.figure.colorbar(shown, ax=ax, label=label, extend="both")
    if regions.domain.n_axes < _SLICED:
        ax.set_title(f"{regions.count:,} activation regions")
    return ax


def check_fill(fill: str) -> None:
    if not isinstance(fill, str) or fill not in FILLS:
        raise LmnError(f"fill is one of {list(FILLS)}; got {fill!r}.")


def check_picture(path: Path) -> None:
    """Raise for a file that a picture can't be written into, before there is one."""
    plt = matplotlib_pyplot()
    figure = plt.figure()
    kinds = figure.canvas.get_supported_filetypes()
    plt.close(figure)
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise LmnError(f"{path} has no extension that says what kind of picture it is to be; end it in .png, .pdf or .svg.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise LmnError(f"can't write {path}: there is no folder {path.absolute().parent} that can be written to.")


def matplotlib_pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise LmnError("plots need matplotlib; pip install matplotlib.") from error
    return plt


def quantity(regions: ExactRegions, fill: str, output: int | None = None) -> Array:
    """The quantity that a region's colour tells, shape (count,)."""
    a, c = regions.linear_maps
    if fill == "norm":
        a = a if output is None else a[:, [output]]
        if regions.domain.kind != "box":  # a change of the parameters by one is one of the inputs by the axes' lengths
            a = a @ np.linalg.inv(np.linalg.cholesky(regions.domain.metric)).T
        return np.asarray(np.sqrt((a**2).sum(axis=(1, 2))))
    if fill == "output":
        return np.asarray(np.einsum("ra,ra->r", a[:, output or 0], regions.points) + c[:, output or 0])
    if fill == "layer":
        return regions.last_cuts.astype(float)
    return np.asarray(np.log10(regions.volumes))


def _logarithmic(low: float, high: float) -> Any:
    from matplotlib.colors import LogNorm

    if not 0 < low < high:
        raise LmnError(f"log=True draws what is above zero; from {low:.3g} to {high:.3g} it is not: give limits=.")
    return LogNorm(low, high)


def _axis_names(regions: ExactRegions) -> Sequence[str]:
    letter = "x" if regions.domain.kind == "box" else "t"
    return [f"{letter}[{index}]" for index in range(regions.domain.n_axes)]


def _draw_polygons(
    ax: Any, regions: ExactRegions, cells: list[Array], values: Array, output: int | None, boundary: bool
) -> Any:
    from matplotlib.collections import LineCollection, PolyCollection

    edges = regions.count <= _ENOUGH_POLYGONS_FOR_EDGES
    polygons = PolyCollection(
        cells,
        array=values,
        edgecolors=_EDGES if edges else "face",
        linewidths=np.clip(_EDGE_WIDTH / np.sqrt(max(1, regions.count)), 0.2, 0.7) if edges else 0.05,
        closed=True,
    )
    ax.add_collection(polygons, autolim=False)
    if boundary:
        ax.add_collection(LineCollection(list(_boundary(regions, output)), colors="crimson", linewidths=1.4), autolim=False)
    (x_low, y_low), (x_high, y_high) = regions.domain.low, regions.domain.high
    names = _axis_names(regions)
    ax.set(xlim=(x_low, x_high), ylim=(y_low, y_high), xlabel=names[0], ylabel=names[1])
    width, height = x_high - x_low, y_high - y_low
    if regions.domain.kind == "plane":
        lengths = np.sqrt(np.diag(regions.domain.metric))
        ax.set_aspect(float(np.clip(lengths[1] / lengths[0], 1 / _MOST_ELONGATED, _MOST_ELONGATED)))
    elif max(width / height, height / width) <= _MOST_ELONGATED:
        ax.set_aspect("equal")
    return polygons


def _by_class(regions: ExactRegions) -> tuple[list[Array], Array]:
    """The regions divided by which output is the largest: the vertices of each cell, and that output."""
    a, c = regions.linear_maps
    cells, classes = list[Array](), list[int]()
    for corners, ak, ck in zip(regions.vertices, a, c, strict=True):
        y = corners @ ak.T + ck
        largest = y.argmax(axis=1)
        if (largest == largest[0]).all():
            cells.append(corners)
            classes.append(int(largest[0]))
            continue
        possible = np.flatnonzero(_possible(y.max(axis=0), y.min(axis=0)))
        for k in possible:
            cell = corners
            for other in possible[possible != k]:
                ahead = cell @ (ak[k] - ak[other]) + ck[k] - ck[other]
                if k > other or ahead.any():  # of equal outputs the first counts
                    cell = _clipped(cell, ahead)
            if len(cell) > regions.domain.n_axes:
                cells.append(cell)
                classes.append(int(k))
    return cells, np.array(classes, dtype=np.float64)


def _possible(highest: Array, lowest: Array) -> Array:
    """Whether outputs, (..., n_out) at their highest and lowest corners of a cell, may be the largest somewhere in it.

    An output may be so in the middle and at no corner, but not if it is below another's least.
    """
    return np.asarray(highest >= lowest.max(axis=-1, keepdims=True))


def _clipped(corners: Array, z: Array) -> Array:
    """The part of a convex cell in which an affine function, z at its corners, is positive: its corners, in their order."""
    kept = list[Array]()
    for k in range(len(corners)):
        after = (k + 1) % len(corners)
        if z[k] > 0:
            kept.append(corners[k])
        if (z[k] > 0) != (z[after] > 0):
            kept.append(corners[k] + z[k] / (z[k] - z[after]) * (corners[after] - corners[k]))
    return np.array(kept).reshape(-1, corners.shape[1])


def _boundary(regions: ExactRegions, output: int | None) -> Array:
    """Segments, (n, 2, 2), on which an output is zero, or on which two outputs are equal and above the others."""
    a, c = regions.linear_maps
    counts = np.array([len(polygon) for polygon in regions.vertices])
    corners, region = np.concatenate(regions.vertices), np.repeat(np.arange(regions.count), counts)
    y = np.einsum("vka,va->vk", a[region], corners) + c[region]
    starts = np.cumsum(counts) - counts
    after = np.arange(1, len(corners) + 1)
    after[starts + counts - 1] = starts  # around each polygon
    if output is not None or y.shape[1] == 1:
        return _zeros(y[:, output or 0], corners, after, region)[0]
    possible = _possible(np.maximum.reduceat(y, starts), np.minimum.reduceat(y, starts))
    segments = [np.empty((0, 2, 2))]
    for first, second in itertools.combinations(np.flatnonzero(possible.any(axis=0)), 2):
        rivals = possible[:, first] & possible[:, second]
        if not rivals.any():
            continue
        both = np.flatnonzero(rivals[region])
        place = np.empty(len(corners), dtype=np.int64)
        place[both] = np.arange(len(both))
        difference = y[both, first] - y[both, second]
        lines, of = _zeros(difference, corners[both], place[after[both]], region[both])
        segments.append(_where_largest(lines, a[of], c[of], int(first), int(second)))
    return np.concatenate(segments)


def _zeros(z: Array, corners: Array, after: Array, region: Array) -> tuple[Array, Array]:
    """Where functions, affine in each polygon and z at its corners, are zero: segments, (n, 2, 2), and their regions, (n,)."""
    crossed = np.flatnonzero((z > 0) != (z[after] > 0))  # none or two of the sides of a convex polygon
    t = (z[crossed] / (z[crossed] - z[after[crossed]]))[:, None]
    ends = corners[crossed] + t * (corners[after[crossed]] - corners[crossed])
    return ends.reshape(-1, 2, 2), region[crossed[::2]]


def _where_largest(segments: Array, a: Array, c: Array, first: int, second: int) -> Array:
    """The parts of segments on which output ``first``, and ``second`` which equals it, is above the others."""
    y = np.einsum("ska,sea->ske", a, segments) + c[:, :, None]
    below = np.delete(y, [first, second], axis=1) - y[:, [first]]  # (n, n_out - 2, 2), to be negative
    start, stop = below[..., 0], below[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = start / (start - stop)
    low = np.where(start > 0, np.where(stop > 0, 1.0, zero), 0.0).max(axis=1, initial=0.0)
    high = np.where(stop > 0, np.where(start > 0, 0.0, zero), 1.0).min(axis=1, initial=1.0)
    along = np.stack([low, high], axis=1)[:, :, None] * (segments[:, [1]] - segments[:, [0]])
    return np.asarray((segments[:, [0]] + along)[low < high])


def _draw_line(ax: Any, regions: ExactRegions, cells: list[Array], values: Array, output: int | None, boundary: bool) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    a, c = regions.linear_maps
    ends = np.stack([np.sort(vertices[:, 0]) for vertices in regions.vertices])  # (count, 2)
    order = np.argsort(ends[:, 0])
    t = ends[order].ravel()
    y = (ends[order][:, :, None] * a[order][:, None, :, 0] + c[order][:, None, :]).reshape(len(t), -1)
    y = y if output is None else y[:, [output]]
    low, high = float(y.min()), float(y.max())
    margin = 0.05 * (high - low or 1.0)
    spans = [(float(cell.min()), float(cell.max())) for cell in cells]
    strips = [Rectangle((left, low - margin), right - left, high - low + 2 * margin) for left, right in spans]
    background = PatchCollection(strips, array=values, alpha=0.35, linewidths=0)
    ax.add_collection(background, autolim=False)
    several = y.shape[1] > 1
    for k, values_of_k in enumerate(y.T):
        ax.plot(t, values_of_k, color=f"C{k % 10}" if several else "black", linewidth=1, label=f"output {k}")
    if several and y.shape[1] <= _MOST_NAMES:
        ax.legend(fontsize="small")
    if len(order) <= _ENOUGH_POLYGONS_FOR_EDGES:
        ax.vlines(ends[order][1:, 0], low - margin, low, color="black", linewidth=0.4)  # where regions meet
    if boundary and not several:
        crossed = np.flatnonzero((y[:-1, 0] > 0) != (y[1:, 0] > 0))
        at = t[crossed] - y[crossed, 0] * (t[crossed + 1] - t[crossed]) / (y[crossed + 1, 0] - y[crossed, 0])
        ax.plot(at, np.zeros(len(at)), ".", color="crimson")
    ax.set(xlim=(t[0], t[-1]), ylim=(low - margin, high + margin), xlabel=_axis_names(regions)[0], ylabel="output")
    return background


def _draw_slice(
    ax: Any, regions: ExactRegions, fill: str, output: int | None, boundary: bool, axis: int, at: float | None
) -> tuple[Any, Array]:
    domain = regions.domain
    axis = whole_number(axis, "axis", 0)
    at = float(domain.low[axis] + domain.high[axis]) / 2 if at is None and axis < _SLICED else at
    labels = regions.slice_labels(axis, at, _SLICE)  # type: ignore[arg-type]
    assert at is not None
    y = _outputs_of_slice(regions, labels, axis, at)
    if fill == "output":
        several = output is None and y.shape[2] > 1
        image = y.argmax(axis=2).astype(float) if several else y[..., output or 0]
    else:
        image = quantity(regions, fill, output)[labels]
    p, q = (other for other in range(3) if other != axis)
    extent = (domain.low[p], domain.high[p], domain.low[q], domain.high[q])
    shown = ax.imshow(image.T, origin="lower", extent=extent, interpolation="nearest")
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    ink = np.zeros((*labels.T.shape, 4))
    ink[..., 3] = 0.35 * edges.T
    ax.imshow(ink, origin="lower", extent=extent, interpolation="nearest")
    if boundary:
        _draw_boundary_of_slice(ax, y, extent, output)
    names = _axis_names(regions)
    ax.set(xlabel=names[p], ylabel=names[q])
    ax.set_title(f"{len(np.unique(labels)):,} of {regions.count:,} activation regions")
    ax.text(0.02, 0.02, f"{names[axis]} = {at:.4g}", transform=ax.transAxes, backgroundcolor="#ffffffaa")
    return shown, image


def _outputs_of_slice(regions: ExactRegions, labels: Array, axis: int, at: float) -> Array:
    """The outputs in a slice's cells: (n, n, n_out)."""
    domain, (p, q), n = regions.domain, [other for other in range(3) if other != axis], len(labels)
    x = np.empty((n, n, 3))
    u, v = (_cells_between(domain.low[i], domain.high[i], n) for i in (p, q))
    x[..., axis], x[..., p], x[..., q] = at, u[:, None], v[None, :]
    a, c = regions.linear_maps
    return np.asarray(np.einsum("ijka,ija->ijk", a[labels], x) + c[labels])


def _cells_between(low: float, high: float, n: int) -> Array:
    return np.asarray(low + (np.arange(n) + 0.5) / n * (high - low))


def _draw_boundary_of_slice(ax: Any, y: Array, extent: Sequence[float], output: int | None) -> None:
    u, v = _cells_between(extent[0], extent[1], len(y)), _cells_between(extent[2], extent[3], len(y))
    if output is None and y.shape[2] > 1:
        second, first = np.moveaxis(np.partition(y, -2, axis=2)[..., -2:], 2, 0)
        largest = y.argmax(axis=2)
        for k in np.unique(largest):  # above the best of the others, or below it
            z = np.where(largest == k, first - second, y[..., k] - first)
            ax.contour(u, v, z.T, levels=[0.0], colors="crimson", linewidths=1.4)
        return
    z = y[..., output or 0]
    if z.min() < 0 < z.max():
        ax.contour(u, v, z.T, levels=[0.0], colors="crimson", linewidths=1.4)


def saved(ax: Any, path: Path) -> None:
    """Write the figure of some axes into a file."""
    import matplotlib.pyplot as plt

    try:
        ax.figure.savefig(path, dpi=200)
    except (OSError, ValueError) as error:
        raise LmnError(f"can't write {path}: {error}.") from error
    finally:
        plt.close(ax.figure)
