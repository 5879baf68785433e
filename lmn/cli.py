"""The command `lmn`."""

from __future__ import annotations

import csv
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lmn import __version__, available_backends
from lmn._core import instruction_sets
from lmn.domain import MOST_AXES
from lmn.errors import LmnError
from lmn.grid import box as lmn_box
from lmn.paper import TaskName
from lmn.regions import regions as find_regions

_MOST_POINTS = 1_000_000  # of a grid that nobody gave a size

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

    Writes history.csv (the measurements), figure.png (as the paper's Figure 2), connectivity.png (as its Figure 4) and
    linear_maps.png (LMN beside the effective number of local linear maps).
    """
    with _errors_in_one_line():
        from lmn.paper import analysis, figures, tasks, train  # a second's import, not for `lmn --help`

        figures.check_installed()
        folder = _writable(out or Path("paper") / name)
        with ExitStack() as stack:
            rows: list[Any] = []  # a writer, once there is something to write: until then an earlier run's file is left alone

            def measured(row: train.Row) -> None:
                if not rows:  # line by line: an hour's run may be killed
                    file = stack.enter_context((folder / "history.csv").open("w", newline="", buffering=1))
                    rows.append(csv.writer(file))
                    rows[0].writerow(train.COLUMNS)
                rows[0].writerow([getattr(row, column) for column in train.COLUMNS])

            run = train.train(tasks.task(name), seed=seed, steps=steps, every=every, measured=measured)
        print(f"{analysis.table(run)}\n\n{analysis.summary(run)}")
        figures.curves(run, folder / "figure.png")
        figures.connectivities(run, folder / "connectivity.png")
        figures.maps(run, folder / "linear_maps.png")
        print(
            f"Training took {run.training:.0f} s, and {len(run.rows)} measurements took {run.measuring:.0f} s. "
            f"Written to {folder}: history.csv, figure.png, connectivity.png, linear_maps.png."
        )
        if run.interrupted:
            raise typer.Exit(130)


@app.command()
def regions(
    model: Annotated[Path, typer.Argument(help="An archive that torch.export.save wrote.", metavar="MODEL.pt2")],
    box: Annotated[tuple[float, float], typer.Option(help="The least and the greatest value of each input.")] = (-1.0, 1.0),
    n: Annotated[
        int | None,
        typer.Option(
            "--n", help="Points an axis, where regions are observed: above three inputs.", show_default="a million in all"
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw the regions into this file (.png, .pdf, .svg).")
    ] = None,
    fill: Annotated[str, typer.Option(help="What a region's colour tells: norm, output, layer or volume.")] = "norm",
    max_regions: Annotated[int, typer.Option(help="Where to give up.")] = 10_000_000,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="all")] = None,
) -> None:
    """Count the linear regions of a piecewise-linear network in a box of its inputs: all of them, up to three inputs.

    The model is a program that was exported in evaluation mode with a batch that may vary, from an example x of two or more
    samples: torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)),
    "model.pt2").
    """
    with _errors_in_one_line():
        from lmn.exported import load_exported
        from lmn.plots import check_fill, check_picture, saved

        check_fill(fill)  # before there is anything to lose
        if plot is not None:
            check_picture(plot)
        network, shape = load_exported(model)
        if len(shape) != 1:
            raise LmnError(
                f"a box is of vectors, and the model's inputs are of shape {shape}; export one that takes vectors, such as "
                f"torch.nn.Sequential(torch.nn.Unflatten(1, {shape}), model)."
            )
        if plot is not None and shape[0] > MOST_AXES:
            raise LmnError(f"the model has {shape[0]} inputs, and pictures are of up to {MOST_AXES}; leave out --plot.")
        low, high = box
        n = max(2, int(_MOST_POINTS ** (1 / shape[0]))) if n is None else n
        found = find_regions(network, lmn_box([low] * shape[0], [high] * shape[0], n), max_regions=max_regions, threads=threads)
        print(found)
        print(f"{found.n_linear_maps} distinct linear maps", end="")
        print(f", {found.n_linear_regions} linear regions" if found.exact else "")
        if plot is not None:
            saved(found.plot(fill), plot)
            print(f"Drawn into {plot}.")


_HISTORY = typer.Argument(help="A file that lmn.Callback(path=...) writes.", metavar="HISTORY.jsonl")


@app.command()
def watch(
    history: Annotated[Path, _HISTORY],
    once: Annotated[bool, typer.Option("--once", help="Show what is there, and don't wait for more.")] = False,
) -> None:
    """Show a run's measurements in the terminal as they come, each number with its course; Ctrl-C ends it."""
    from lmn.watch import watch as show

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which gives the terminal its cursor back
    with _errors_in_one_line(), suppress(KeyboardInterrupt):
        show(history, once=once)


@app.command()
def report(
    history: Annotated[Path, _HISTORY],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write a run's measurements as one page of HTML that needs nothing else: figures, a summary, and all the numbers."""
    with _errors_in_one_line():
        from lmn.report import report as write

        write(history, out)
        print(f"Written to {out}.")


@app.command()
def doctor(
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Compile the Triton kernels for A100, H100, B200 and MI300X, which need not be here, and print what the "
            "compiler says, and the times that the arithmetic makes one expect of all but the B200; some minutes.",
        ),
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="With --kernels: of each activation and depth; an hour or two."),
    ] = False,
) -> None:
    """Print versions, what the processor can do, and which backends run here, or why one can't.

    With --kernels the exit status is 1 where a kernel spills registers or needs more shared memory than there is.
    """
    if kernels:
        with _errors_in_one_line():
            _compile_kernels(thorough)
        return
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("lmn", "torch", "triton", "numpy", "numba", "matplotlib", "scikit-learn"):
        print(f"{package:<12} {_version(package)}")
    print(f"{'C++ core':<12} runs its {instruction_sets()[0]} kernels; {torch.get_num_threads()} threads")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    print(f"{'GPU':<12} {gpu}")
    for operation, backends in available_backends().items():
        print(f"\n{operation}, best first:")
        for backend, state in backends.items():
            print(f"  {backend:<10} {state}")


def _compile_kernels(thorough: bool) -> None:
    if find_spec("triton") is None:
        raise LmnError("the kernels need triton; pip install -c constraints.txt -e '.[gpu]', or triton by itself.")
    os.environ["TRITON_INTERPRET"] = "0"  # which is asked when they are imported
    from lmn.kernels.triton_report import table

    if not table(print, thorough=thorough):
        raise LmnError("some kernels do not fit their registers or shared memory, see above.")


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
    except PackageNotFoundError:  # or of another name: with PyTorch for ROCm comes a Triton of its own
        others = packages_distributions().get(package)
        return f"{version(others[0])} ({others[0]})" if others else "not installed"
