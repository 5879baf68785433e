"""A training's history as curves: complexity, losses and accuracies over the steps, phases shaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmn.domain import Array
from lmn.errors import LmnError
from lmn.journal import Row
from lmn.plots import matplotlib_pyplot

if TYPE_CHECKING:
    from lmn.history import History

COLOURS = ("#e8432f", "#1313d6", "#0b7a75", "#ff8c0a", "#b800b8", "#6a9a6a", "#666666")
# Backgrounds of a training's phases, by training and test accuracy.
_PHASES = (("memorising", "#f2f2f2"), ("generalising", "#fff1dc"), ("finalising", "#f7e6f7"))
_MEMORISED = ("memorised", "#fafafa")  # where the test accuracy never is full
_DECADES = 1.5  # that values must span for a logarithmic axis
_HEIGHT, _WIDTH = 1.9, 8.0  # inches of a panel
_ACCURACY = {"acc", "accuracy"}
_TRAINING, _TESTING = {"train", "training"}, {"test", "testing", "val", "valid", "validation", "eval"}
_FULL = 0.99  # an accuracy that is full: of mini-batches it may never be 1
_FAR = 0.9  # and one that is not, of what is memorised
_OWN = {"step", "wall_time", "elapsed", "error", "n_points", "n_sampled", "m", "n_redone", "epoch"}


@dataclass(frozen=True)
class Panel:
    """Columns that are drawn together.

    Attributes
    ----------
    label : str
    columns : tuple of str
    """

    label: str
    columns: tuple[str, ...]


_GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("LMN", lambda name: name == "lmn"),
    ("nonlinear complexity (bits)", lambda name: name == "nonlinear_complexity"),
    ("activation regions", lambda name: name in ("exact_regions", "observed_regions", "observed_regions_lower_bound")),
    ("linear maps", lambda name: name == "linear_maps"),
    ("effective linear maps", lambda name: name == "effective_linear_maps"),
    ("norm of the Jacobians", lambda name: name.startswith("jacobian_") and name.endswith("norm")),
    ("effective rank", lambda name: name == "jacobian_effective_rank"),
    ("local complexity", lambda name: name == "local_complexity"),
    ("loss", lambda name: bool(_words(name) & {"loss", "losses", "entropy"})),
    ("accuracy", lambda name: bool(_words(name) & _ACCURACY)),
)
_LABELS = {label for label, _ in _GROUPS}
_QUIET = ("_after_layer_", "_coverage", "_limited_by_points", "local_complexity_layer_")  # detail, and what is in no unit


def _words(name: str) -> set[str]:
    """Those of a column's name."""
    return set(re.split(r"[^a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def panels_of(columns: Sequence[str]) -> list[Panel]:
    """The numbers of a history in groups of one unit; what is in none of them, each by itself."""
    left = [name for name in columns if name not in _OWN and not any(part in name for part in _QUIET)]
    if "lmn" in left and "nonlinear_complexity" in left:
        left.remove("nonlinear_complexity")  # its logarithm
    panels = []
    for label, belongs in _GROUPS:
        members = tuple(name for name in left if belongs(name))
        left = [name for name in left if name not in members]
        panels += [Panel(label, members)] if members else []
    return panels + [Panel(name.replace("_", " "), (name,)) for name in left]


def numbers_of(table: dict[str, Array]) -> list[str]:
    """The columns that are drawn, in the order of their panels."""
    return [name for panel in panels_of(list(table)) for name in panel.columns]


def times_of(rows: Sequence[Row]) -> tuple[float, float]:
    """Seconds of the training up to the end of the last measurement, and of all measurements."""
    last = rows[-1]
    return (last.get("wall_time") or 0.0) + (last.get("elapsed") or 0.0), sum(row.get("elapsed") or 0.0 for row in rows)


def curves(
    history: History | Sequence[Row], *, columns: str | Sequence[str] | None = None, log_steps: bool = False, title: str = ""
) -> Any:
    """Draw a history over the steps: a panel for each kind of number, the axes of what spans decades logarithmic.

    Where there are training and test accuracies, and the test accuracy is below 90 % when the training accuracy is first full,
    at least 99 %, the phases are shaded: memorising until then, generalising until the test accuracy is full, and finalising
    after. Where the test accuracy never is, what comes after memorising is called memorised. A dotted line marks a measurement
    that failed.

    Parameters
    ----------
    history : History or sequence of dict
    columns : str or sequence of str, optional
        Which to draw. Default: all that are measured, losses and accuracies, and others that change.
    log_steps : bool
        A logarithmic axis of steps; step 0 is left of it.
    title : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    LmnError
        matplotlib is not installed; nothing to draw; a column that is not there.
    """
    rows = list(history) if not hasattr(history, "to_dict") else history.to_dict("records")
    plt = matplotlib_pyplot()
    table, columns = table_of(rows), [columns] if isinstance(columns, str) else columns
    if columns is not None and not len(columns):
        raise LmnError("there is nothing to draw: no columns are named; leave columns= out for all that are measured.")
    absent = [name for name in columns or () if name not in table]
    if absent:
        raise LmnError(f"the history has no column {', '.join(absent)} of numbers; it has {', '.join(table)}.")
    panels = panels_of([name for name in table if columns is None or name in columns])
    if columns is None:
        panels = [panel for panel in panels if panel.label in _LABELS or _changes(table[panel.columns[0]])]
    if not panels:
        raise LmnError("there is nothing to draw: the history has no measurement that succeeded.")
    steps, failed = table["step"], np.array(["error" in row and isinstance(row["error"], str) for row in rows])
    figure, axes = plt.subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(_WIDTH, 0.7 + _HEIGHT * len(panels)), layout="constrained"
    )
    for number, (panel, ax) in enumerate(zip(panels, axes[:, 0], strict=True)):
        _draw(ax, panel, steps, table, failed)
        _shade(ax, table, labelled=number == 0)
        for step in steps[failed]:
            ax.axvline(step, color="#999999", linewidth=0.8, linestyle=":")
    last = axes[-1, 0]
    last.set_xlabel("training step" + (" (dotted: a measurement failed)" if failed.any() else ""))
    if log_steps:
        last.set_xscale("symlog", linthresh=max(1, min((s for s in steps if s > 0), default=1)))
    if steps.max() > steps.min():
        last.set_xlim(steps.min(), steps.max())
    figure.align_ylabels()
    figure.suptitle(title)
    return figure


def table_of(rows: Sequence[Row]) -> dict[str, Array]:
    """The columns that have numbers, (n_rows,), float64, NaN where there is none."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = {}
    for name in names:
        values = [row.get(name) for row in rows]
        numbers = [float(v) if isinstance(v, int | float) and not isinstance(v, bool) else np.nan for v in values]
        if np.isfinite(numbers).any():
            table[name] = np.array(numbers)
    return table


def _draw(ax: Any, panel: Panel, steps: Array, table: dict[str, Array], failed: Array) -> None:
    for name, colour in zip(panel.columns, COLOURS * len(panel.columns), strict=False):
        values = table[name]
        there = np.isfinite(values)
        marker = "o" if there.sum() < 40 else ""
        there |= failed  # where a measured number is missing, which parts its curve
        style = "--" if "train" in name and len(panel.columns) > 1 else "-"
        ax.plot(steps[there], values[there], style, marker=marker, markersize=2.5, color=colour, label=name.replace("_", " "))
    ax.set_ylabel(panel.label)
    if len(panel.columns) > 1:
        ax.legend(loc="best", fontsize="small", frameon=False)
    values = np.concatenate([table[name] for name in panel.columns])
    values = values[np.isfinite(values)]
    if panel.label == "accuracy":
        ax.set_ylim(0, 1.05 if values.max() <= 1 else 1.05 * values.max())
    elif values.min() > 0 and np.log10(values.max() / values.min()) > _DECADES:
        ax.set_yscale("log")
    elif values.min() >= 0:
        ax.set_ylim(0, 1.08 * values.max() if values.max() > 0 else 1)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _changes(values: Array) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) < 2 or bool((finite != finite[0]).any())


def _shade(ax: Any, table: dict[str, Array], *, labelled: bool) -> None:
    """The phases, where accuracies tell them."""
    train, test = (_accuracy(table, kinds) for kinds in (_TRAINING, _TESTING))
    if train is None or test is None:
        return
    steps = table["step"]
    memorised, generalised = _first_full(train), _first_full(test)
    if memorised is None or not test[memorised] < _FAR * _most(test):  # a training that generalises as it goes
        return
    ends = [steps[0], steps[memorised], steps[-1] if generalised is None else steps[generalised], steps[-1]]
    phases = _PHASES if generalised is not None else (_PHASES[0], _MEMORISED)
    for (name, colour), begin, end in zip(phases, ends, ends[1:], strict=False):
        if end > begin:
            ax.axvspan(begin, end, color=colour, zorder=0, linewidth=0)
            wide = (end - begin) / max(steps[-1] - steps[0], 1) > 0.12
            if labelled and wide:
                ax.annotate(
                    name, ((begin + end) / 2, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize="small",
                    color="#555555",
                )  # fmt: skip


def _accuracy(table: dict[str, Array], kinds: set[str]) -> Array | None:
    names = [name for name in table if _words(name) & _ACCURACY and _words(name) & kinds]
    return table[names[0]] if names else None


def _most(accuracy: Array) -> float:
    """1, or 100 of percentages."""
    return 100.0 if np.nanmax(accuracy) > 1 else 1.0


def _first_full(accuracy: Array) -> int | None:
    at = np.flatnonzero(accuracy >= _FULL * _most(accuracy))
    return int(at[0]) if len(at) else None
