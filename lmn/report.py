"""A run's measurements as one page that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmn import __version__
from lmn.curves import curves, numbers_of, table_of, times_of
from lmn.domain import Array
from lmn.errors import LmnError
from lmn.journal import Row, read
from lmn.plots import matplotlib_pyplot
from lmn.watch import sparkline
from lmn.wording import counted

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { font-weight: 600; }
th:first-child, td:first-child, .course { text-align: left; }
.rows { overflow-x: auto; }
.course { font-family: monospace; color: #b3261e; }
.error { color: #a15c00; }
.quiet { color: #777; }
"""


def report(path: Path, to: Path) -> None:
    """Write the figures and the numbers of a file of measurements into one page of HTML.

    Raises
    ------
    LmnError
        A file that can't be read or written; matplotlib is not installed.
    """
    if to.exists() and to.samefile(path):
        raise LmnError(f"{to} is the measurements themselves; give the page another name, e.g. -o report.html.")
    rows = read(path)
    page = page_of(path.name, rows)
    try:
        to.write_text(page, encoding="utf-8")
    except OSError as error:
        raise LmnError(f"can't write {to}: {error.strerror}.") from error


def page_of(name: str, rows: Sequence[Row]) -> str:
    parts = [f"<h1>{html.escape(name)}</h1><p>{_summary(rows)}</p>"]
    table = table_of(rows)
    if numbers_of(table):
        picture = _picture(curves(rows))
        parts.append(f'<p><img alt="The numbers over the training steps" src="data:image/png;base64,{picture}"></p>')
        parts.append(f"<h2>The numbers</h2>{_numbers(table)}")
    for said, title in (("error", "Measurements that failed"), ("notes", "What to know of the numbers")):
        steps = _steps_by(rows, said)
        if steps:
            lines = "".join(f"<li>{html.escape(text)} <span class=quiet>({where})</span></li>" for text, where in steps.items())
            parts.append(f'<h2 class="{said}">{title}</h2><ul>{lines}</ul>')
    if rows:
        parts.append(
            f"<h2>All measurements</h2><details><summary>{counted(len(rows), 'row', ',')}</summary>{_all(rows)}</details>"
        )
    parts.append(f'<p class="quiet">lmn {__version__}</p>')
    head = f'<meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _summary(rows: Sequence[Row]) -> str:
    if not rows:
        return "No measurement yet."
    seconds, taken = times_of(rows)
    said = f"{counted(len(rows), 'measurement', ',')} up to step {rows[-1]['step']:,}, over {seconds:,.1f} s"
    return said + (f", of which measuring took {taken:,.1f} s ({taken / seconds:.1%})." if seconds > 0 else ".")


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    matplotlib_pyplot().close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _steps_by(rows: Sequence[Row], column: str) -> dict[str, str]:
    """Each text of a column, and at which steps it is."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        if row.get(column):
            steps.setdefault(str(row[column]), []).append(row["step"])
    return {
        text: f"step {at[0]:,}" if len(at) == 1 else f"{len(at):,} times, steps {at[0]:,} to {at[-1]:,}"
        for text, at in steps.items()
    }


def _numbers(table: dict[str, Array]) -> str:
    """Each number's first, least, greatest and last value, and where they are."""
    steps = table["step"]
    lines = []
    for name in numbers_of(table):
        values = table[name]
        there = np.flatnonzero(np.isfinite(values))
        low, high = there[np.argmin(values[there])], there[np.argmax(values[there])]
        cells = "".join(
            f'<td>{values[at]:.4g}<br><span class="quiet">step {steps[at]:,.0f}</span></td>'
            for at in (there[0], low, high, there[-1])
        )
        lines.append(f'<tr><td>{html.escape(name)}</td>{cells}<td class="course">{sparkline(values)}</td></tr>')
    heads = "".join(f"<th>{head}</th>" for head in ("", "first", "least", "most", "last", "course"))
    return f'<div class="rows"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _all(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>" for row in rows)
    return f'<div class="rows"><table><tr>{heads}</tr>{lines}</table></div>'


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else html.escape(str(value))
