"""The command `lmn`."""

from __future__ import annotations

import csv
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer

from lmn import __version__, available_backends
from lmn._core import instruction_sets
from lmn.errors import LmnError
from lmn.paper import TaskName

app = typer.Typer(
    help="Measure how complex the function inside a PyTorch network is.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lmn {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")] = False,
) -> None:
    pass


@app.command()
def paper(
    name: Annotated[TaskName, typer.Argument(help="The task to train on.")],
    seed: Annotated[int, typer.Option(help="Of the initialisation and the split.")] = 0,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 20000,
    every: Annotated[int, typer.Option(help="Steps between two measurements.")] = 200,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the table and the figures go.", show_default="./paper/TASK")
    ] = None,
) -> None:
    """Train a network of "Grokking as Compression" (arXiv 2310.05918), and watch its linear mapping number fall.

    Writes history.csv (the measurements), figure.png (as the paper's Figure 2) and connectivity.png (as its Figure 4).
    """
    with _errors_in_one_line():
        from lmn.paper import analysis, figures, tasks, train  # a second's import, not for `lmn --help`

        figures.check_installed()
        folder = _writable(out or Path("paper") / name)
        run = train.train(tasks.task(name), seed=seed, steps=steps, every=every)
        with (folder / "history.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(train.COLUMNS)
            writer.writerows([getattr(row, column) for column in train.COLUMNS] for row in run.rows)
        print(f"{analysis.table(run)}\n\n{analysis.summary(run)}")
        figures.curves(run, folder / "figure.png")
        figures.connectivities(run, folder / "connectivity.png")
        print(
            f"Training took {run.training:.0f} s, and {len(run.rows)} measurements took {run.measuring:.0f} s. "
            f"Written to {folder}: history.csv, figure.png, connectivity.png."
        )
        if run.interrupted:
            raise typer.Exit(130)


@app.command()
def doctor() -> None:
    """Print versions, what the processor can do, and which backends run here, or why one can't."""
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("lmn", "torch", "numpy", "numba", "matplotlib", "scikit-learn"):
        print(f"{package:<12} {_version(package)}")
    print(f"{'C++ core':<12} runs its {instruction_sets()[0]} kernels; {torch.get_num_threads()} threads")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    print(f"{'GPU':<12} {gpu}")
    for operation, backends in available_backends().items():
        print(f"\n{operation}, best first:")
        for backend, state in backends.items():
            print(f"  {backend:<10} {state}")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except LmnError as error:
        print(f"lmn: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _writable(folder: Path) -> Path:
    """Make a folder, before there is anything to lose."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".lmn"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LmnError(f"can't write to {folder}: {error.strerror}; choose another with --out.") from error
    return folder


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
