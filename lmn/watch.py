"""A run's measurements in the terminal, as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmn.curves import numbers_of, table_of, times_of
from lmn.domain import Array
from lmn.journal import Row, read

_BARS = "▁▂▃▄▅▆▇█"
_LEAST_WIDTH, _MOST_WIDTH = 8, 60  # characters of a sparkline
_NUMBERS = 3 * 12 + 2  # of the columns between its name and it
_EVERY = 1.0  # seconds between looks at the file


def sparkline(values: Array, width: int = 24) -> str:
    """Values, (n,), as bars from the least to the greatest: the mean of each of ``width`` parts, a space for none."""
    parts = np.array_split(values, min(width, len(values))) if len(values) else []
    means = [float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else np.nan for part in parts]
    finite = [mean for mean in means if np.isfinite(mean)]
    if not finite:
        return " " * len(means)
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if np.isfinite(mean) else " " for mean in means)


def view(path: Path, rows: Sequence[Row], width: int) -> Any:
    """What ``rich`` shows on so many columns: a table of the numbers, each with its course."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(f"{path}: no measurement yet", style="dim")
    last = rows[-1]
    failed = [row for row in rows if "error" in row]
    seconds, taken = times_of(rows)
    share = f", measuring {taken / seconds:.1%} of them" if seconds > 0 else ""
    head = Text(f"{path}  step {last['step']:,}  {len(rows)} measurements in {_duration(seconds)}{share}", style="bold")
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name, where in (("", "left"), ("last", "right"), ("least", "right"), ("most", "right"), ("course", "left")):
        shown.add_column(name, justify=where, no_wrap=True)  # type: ignore[arg-type]
    table = table_of(rows)
    names = numbers_of(table)
    left = width - max(map(len, names), default=0) - _NUMBERS
    for name in names:
        values = table[name]
        finite = values[np.isfinite(values)]
        cells = (f"{finite[-1]:.4g}", f"{finite.min():.4g}", f"{finite.max():.4g}")
        course = sparkline(values, max(_LEAST_WIDTH, min(left, _MOST_WIDTH)))
        shown.add_row(name, *cells, Text(course, style="red" if name == "lmn" else "cyan"))
    parts: list[Any] = [head, shown]
    if failed:
        parts.append(
            Text(f"{len(failed)} failed, the last at step {failed[-1]['step']:,}: {failed[-1]['error']}", style="yellow")
        )
    return Group(*parts)


def watch(path: Path, *, once: bool) -> None:
    """Show the measurements of a file until interrupted, or once."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once:
        console.print(view(path, read(path), console.width))
        return
    with Live(view(path, read(path), console.width), console=console, auto_refresh=False) as live:
        size = -1
        while True:
            now = path.stat().st_size if path.exists() else 0
            if now != size:
                size = now
                live.update(view(path, read(path), console.width), refresh=True)
            time.sleep(_EVERY)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
