"""The pictures of a run: its curves (the paper's Figure 2) and its connectivity matrices with their spectra (Figure 4).

Figures are drawn on canvases of their own, in matplotlib's default style: no window is opened, no state of pyplot's is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lmn.errors import LmnError
from lmn.matrices import clustered, draw_matrix, draw_spectrum, lowest_shown
from lmn.paper.analysis import Phase, maps_correlation, phases, underflowed
from lmn.paper.train import Run

Array = np.ndarray[Any, Any]

_LMN_COLOUR, _L2_COLOUR, _ACCURACY_COLOUR, _MAPS_COLOUR = "#e8432f", "#6a9a6a", "#1313d6", "#0b7a75"
_PHASE_COLOURS = {Phase.MEMORISING: "#666666", Phase.GENERALISING: "#ff8c0a", Phase.FINALISING: "#b800b8"}
_DPI = 150


def check_installed() -> None:
    """Raise where what draws is not installed: before hours of training, not after."""
    packages = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}
    absent = [package for module, package in packages.items() if find_spec(module) is None]
    if absent:
        raise LmnError(f"the figures need {' and '.join(absent)}; pip install {' '.join(absent)}.")


def curves(run: Run, path: Path) -> None:
    """Write Figure 2's panels: the curves over the steps; test loss against LMN and against the L2 norm, coloured by phase."""
    with _written(path, (11, 3.4)) as figure:
        over_steps, against_lmn, against_l2 = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
        _draw_curves(over_steps, run)
        _draw_loss(against_lmn, run, "lmn", "LMN", _LMN_COLOUR)
        _draw_loss(against_l2, run, "l2_norm", "L2 norm", _L2_COLOUR)
        figure.suptitle(f"{run.task.title}, seed {run.seed}")
        against_lmn.set_ylabel("test loss (nats)")
        against_lmn.legend(loc="upper left", fontsize="small", handletextpad=0.1)


def maps(run: Run, path: Path) -> None:
    """Write LMN and effective linear maps side by side: both over the steps, and one against the other."""
    with _written(path, (9, 3.4)) as figure:
        over_steps, against = figure.subplots(1, 2, width_ratios=(2.2, 1))
        steps, right = run.column("step"), over_steps.twinx()
        lmn, effective = run.column("lmn"), run.column("effective_linear_maps")
        _mark_underflow(over_steps, run)
        over_steps.plot(steps, lmn, color=_LMN_COLOUR)
        right.plot(steps, effective, color=_MAPS_COLOUR)
        for axes, label, colour, values in (
            (over_steps, "LMN", _LMN_COLOUR, lmn),
            (right, "effective linear maps", _MAPS_COLOUR, effective),
        ):
            axes.set_ylabel(label, color=colour)
            axes.tick_params(axis="y", colors=colour)
            axes.set_ylim(0, 1.08 * max(1.0, float(np.nanmax(values))))
        over_steps.set(xlabel="training step", xlim=(0, steps[-1]))
        _scatter_phases(against, run, lmn, effective)
        against.set_xlabel("LMN", color=_LMN_COLOUR)
        against.set_ylabel("effective linear maps", color=_MAPS_COLOUR)
        against.legend(loc="best", fontsize="small", handletextpad=0.1)
        r2 = maps_correlation(run)
        against.set_title(f"r² = {r2:.2f}" if r2 is not None else "", fontsize="medium")
        figure.suptitle(f"{run.task.title}, seed {run.seed}: two numbers of linear maps")


def connectivities(run: Run, path: Path) -> None:
    """Write Figure 4's panels for each snapshot: the matrix, its rows ordered by spectral clustering, above its spectrum."""
    n = len(run.snapshots)
    with _written(path, (4.2 * n, 7)) as figure:
        orders = [clustered(snapshot.connectivity) for snapshot in run.snapshots]
        low = lowest_shown([snapshot.connectivity for snapshot in run.snapshots])
        panels = figure.subplots(2, n, squeeze=False, sharey="row", height_ratios=(1.3, 1))
        for snapshot, order, above, below in zip(run.snapshots, orders, *panels, strict=True):
            title = f"{snapshot.name}\nstep {snapshot.step}, LMN {snapshot.lmn:.1f}"
            image = draw_matrix(above, snapshot.connectivity, order, low, title)
            draw_spectrum(below, snapshot.eigenvalues)
        figure.colorbar(image, ax=list(panels[0]), extend="min", shrink=0.85)
        panels[0, 0].set_ylabel("training sample, by this panel's clusters")
        panels[1, 0].set_ylabel("eigenvalue")
        figure.suptitle(f"{run.task.title}: linear connectivity")


@contextmanager
def _written(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure to draw on, of a size in inches; written to a PNG file afterwards."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=_DPI)


def _draw_curves(axes: Any, run: Run) -> None:
    steps, right = run.column("step"), axes.twinx()
    _mark_underflow(axes, run)
    axes.plot(steps, run.column("lmn"), color=_LMN_COLOUR, label="LMN")
    axes.plot(steps, run.column("l2_norm"), color=_L2_COLOUR, label="L2 norm")
    right.plot(steps, run.column("test_accuracy"), color=_ACCURACY_COLOUR, label="test accuracy")
    right.plot(steps, run.column("train_accuracy"), color=_ACCURACY_COLOUR, linestyle="--", label="train accuracy")
    axes.set(xlabel="training step", ylabel="LMN / L2 norm", xlim=(0, steps[-1]))
    axes.set_ylim(bottom=0, top=1.08 * np.nanmax([run.column("lmn"), run.column("l2_norm")]))
    right.set_ylim(0, 1.08)
    right.set_ylabel("accuracy", color=_ACCURACY_COLOUR)
    right.tick_params(axis="y", colors=_ACCURACY_COLOUR)
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    right.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize="small")


def _mark_underflow(axes: Any, run: Run) -> None:
    steps, underflow = run.column("step"), underflowed(run)
    if underflow is not None:
        axes.axvspan(steps[underflow], steps[-1], color="#eeeeee", zorder=0)
        place = {"transform": axes.get_xaxis_transform(), "rotation": "vertical", "va": "bottom", "ha": "left"}
        axes.text(steps[underflow], 0.02, "float32 loss underflows", fontsize="x-small", **place)


def _scatter_phases(axes: Any, run: Run, x: Array, y: Array) -> None:
    """A point a row, coloured by its phase, on the path that the run took."""
    phase_of_row = phases(run.column("train_accuracy"), run.column("test_accuracy"))
    axes.plot(x, y, color="#cccccc", linewidth=0.8, zorder=1)
    for phase, phase_colour in _PHASE_COLOURS.items():
        chosen = phase_of_row == phase
        if chosen.any():
            axes.scatter(x[chosen], y[chosen], s=12, color=phase_colour, label=phase.name.lower(), zorder=2)


def _draw_loss(axes: Any, run: Run, column: str, label: str, colour: str) -> None:
    _scatter_phases(axes, run, run.column(column), run.column("test_loss"))
    axes.set_xlabel(label, color=colour)
    axes.ticklabel_format(useOffset=False)
