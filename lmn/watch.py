"""A run's measurements in the terminal, as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmn.curves import numbers_of, table_of, times_of
from lmn.domain import Array
from lmn.journal import Follower, Row, read
from lmn.wording import counted

_BARS = "▁▂▃▄▅▆▇█"
_LEAST_WIDTH, _MOST_WIDTH = 8, 60  # characters of a sparkline
_COLUMN, _NUMBER = 12, 10  # of a column of numbers, and of one number
_LINES = 4  # of the terminal that are not of the table's rows
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


def view(path: Path, rows: Sequence[Row], width: int, height: int | None = None) -> Any:
    """What ``rich`` shows on so many columns and lines: a table of the numbers, each with its course."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(f"{path}: {'no measurement yet' if path.exists() else 'no such file yet; it is waited for'}", style="dim")
    last = rows[-1]
    failed = [row for row in rows if "error" in row]
    seconds, taken = times_of(rows)
    share = f", measuring {taken / seconds:.1%} of them" if seconds > 0 else ""
    said = f"{counted(len(rows), 'measurement', ',')} in {_duration(seconds)}{share}"
    parts: list[Any] = [Text(f"{path}  step {last['step']:,}  {said}", style="bold")]
    table = table_of(rows)
    names = numbers_of(table)
    widest = min(max(map(len, names), default=0), max(_LEAST_WIDTH, width - 2 - _NUMBER - _LEAST_WIDTH))
    left = width - widest - 2
    columns = ["last", "least", "most"] if left >= 3 * _COLUMN + _LEAST_WIDTH else ["last"]
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("", no_wrap=True, overflow="ellipsis", width=widest)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True, min_width=_NUMBER - 1)
    shown.add_column("course", no_wrap=True)
    most = len(names) if height is None else max(1, height - _LINES - bool(failed) - bool(last.get("notes")))
    for name in names if len(names) <= most else names[: most - 1]:
        values = table[name]
        finite = values[np.isfinite(values)]
        cells = {"last": finite[-1], "least": finite.min(), "most": finite.max()}
        room = left - (_COLUMN if len(columns) > 1 else _NUMBER + 1) * len(columns)
        course = sparkline(values, max(_LEAST_WIDTH, min(room, _MOST_WIDTH)))
        old = not np.isfinite(values[-1])  # the last measurement has none
        shown.add_row(
            Text(name, style="dim" if old else ""), *(f"{cells[column]:.4g}" for column in columns),
            Text(course, style="dim" if old else "red" if name == "lmn" else "cyan"),
        )  # fmt: skip
    parts += [shown] if names else []
    if len(names) > most:
        parts.append(Text(f"and {len(names) - most + 1} more, in a higher window or by lmn report", style="dim"))
    if failed:
        parts.append(
            Text(f"{len(failed)} failed, the last at step {failed[-1]['step']:,}: {failed[-1]['error']}", style="yellow")
        )
    if last.get("notes"):
        parts.append(Text(last["notes"], style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def watch(path: Path, *, once: bool) -> None:
    """Show the measurements of a file until interrupted, or once."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once:
        console.print(view(path, read(path), console.width))
        return
    file = Follower(path)
    file.update()
    if not console.is_terminal:
        _tell(console, file)
    with Live(view(path, file.rows, *console.size), console=console, auto_refresh=False) as live:
        size = console.size
        while True:
            time.sleep(_EVERY)
            if file.update() or console.size != size:
                size = console.size
                live.update(view(path, file.rows, *size), refresh=True)


def _tell(console: Any, file: Follower) -> None:
    """Without end, to where nothing can be written over: each time there is something new."""
    while True:
        console.print(view(file.path, file.rows, console.width))
        while not file.update():
            time.sleep(_EVERY)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
