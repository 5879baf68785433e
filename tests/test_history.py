"""What is made of a history: curves, the terminal's view, the page, pictures of a matrix and of regions through a training."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import lmn
from lmn.animation import animate
from lmn.cli import app
from lmn.curves import curves, panels_of
from lmn.journal import Follower
from lmn.watch import sparkline, view

mpl.use("Agg")

ROWS: list[dict[str, Any]] = [
    {"step": 0, "wall_time": 0.0, "lmn": 10.0, "nonlinear_complexity": 3.3, "elapsed": 0.1, "n_points": 9.0, "m": 21.0,
     "exact_regions": 10.0, "exact_regions_after_layer_0": 10.0, "train_loss": 2.0, "train_accuracy": 0.1,
     "test_accuracy": 0.1, "notes": "no regions"},
    {"step": 50, "wall_time": 1.0, "lmn": 30.0, "nonlinear_complexity": 4.9, "elapsed": 0.1, "n_points": 9.0, "m": 21.0,
     "exact_regions": 700.0, "exact_regions_after_layer_0": 20.0, "train_loss": 0.01, "train_accuracy": 1.0,
     "test_accuracy": 0.2, "label": "note"},
    {"step": 75, "wall_time": 1.5, "train_loss": None, "error": "LmnError: <not finite>"},
    {"step": 100, "wall_time": 2.0, "lmn": 20.0, "nonlinear_complexity": 4.3, "elapsed": 0.2, "n_points": 9.0, "m": 21.0,
     "exact_regions": 400.0, "exact_regions_after_layer_0": 30.0, "train_loss": 0.001, "train_accuracy": 1.0,
     "test_accuracy": 1.0, "notes": "no regions"},
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    to = tmp_path / "history.jsonl"
    to.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return to


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    return done.exit_code, done.output


# ---- curves ----------------------------------------------------------------------------------------------------------------


def test_numbers_of_one_unit_are_drawn_together() -> None:
    names = ["step", "lmn", "nonlinear_complexity", "elapsed", "exact_regions", "exact_regions_after_layer_0", "l2_norm",
             "train_loss", "val_loss", "test_acc", "jacobian_spectral_norm", "jacobian_effective_rank"]  # fmt: skip
    assert [(panel.label, panel.columns) for panel in panels_of(names)] == [
        ("LMN", ("lmn",)),
        ("activation regions", ("exact_regions",)),
        ("norm of the Jacobians", ("jacobian_spectral_norm",)),
        ("effective rank", ("jacobian_effective_rank",)),
        ("loss", ("train_loss", "val_loss")),
        ("accuracy", ("test_acc",)),
        ("l2 norm", ("l2_norm",)),
    ]


def test_curves() -> None:
    figure = curves(ROWS, title="A run")
    axes = figure.axes
    assert [ax.get_ylabel() for ax in axes] == ["LMN", "activation regions", "loss", "accuracy"]
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[0, 10], [50, 30], [75, np.nan], [100, 20]])
    assert axes[-1].get_xlabel() == "training step (dotted: a measurement failed)"
    assert [ax.get_yscale() for ax in axes] == ["linear", "log", "log", "linear"]
    assert [text.get_text() for text in axes[0].texts] == ["memorising", "generalising"]
    assert [patch.get_x() for patch in axes[0].patches] == [0, 50]
    assert [patch.get_x() + patch.get_width() for patch in axes[0].patches] == [50, 100]
    assert [line.get_xdata()[0] for ax in axes for line in ax.lines if line.get_linestyle() == ":"] == [75] * 4
    assert figure.get_suptitle() == "A run"


def test_phases_are_those_that_the_accuracies_tell() -> None:
    """An accuracy of mini-batches is never quite 1, and one that stays low generalises never."""
    for test, phases in ((0.995, ["memorising", "generalising", "finalising"]), (0.6, ["memorising", "memorised"])):
        rows = [
            {"step": step, "lmn": 2.0, "trainAccuracy": 0.1 if step < 30 else 0.992, "val/acc": 0.1 if step < 60 else test}
            for step in range(0, 101, 10)
        ]
        axes = curves(rows).axes
        assert [text.get_text() for text in axes[0].texts] == phases
        assert axes[0].patches[1].get_x() == 30
        assert [ax.get_ylabel() for ax in axes] == ["LMN", "accuracy"]


def test_numbers_that_stay_are_not_drawn_unless_they_are_known() -> None:
    rows = [{"step": step, "lmn": 2.0, "lr": 0.1, "glossary": step} for step in range(3)]
    assert [ax.get_ylabel() for ax in curves(rows).axes] == ["LMN", "glossary"]
    assert [ax.get_ylabel() for ax in curves(rows, columns=["lr"]).axes] == ["lr"]


def test_some_columns_and_logarithmic_steps() -> None:
    figure = curves(ROWS, columns=["lmn", "train_loss"], log_steps=True)
    assert [ax.get_ylabel() for ax in figure.axes] == ["LMN", "loss"]
    assert figure.axes[0].get_xscale() == "symlog"
    with pytest.raises(lmn.LmnError, match="the history has no column of_mine of numbers; it has step, wall_time, lmn"):
        curves(ROWS, columns=["of_mine"])


def test_there_has_to_be_something_to_draw() -> None:
    with pytest.raises(lmn.LmnError, match="no measurement that succeeded"):
        curves([{"step": 0, "wall_time": 0.0, "error": "LmnError: no"}])
    with pytest.raises(lmn.LmnError, match="no columns are named"):
        curves(ROWS, columns=[])


@pytest.mark.parametrize("test", [[0.1, 0.5, 0.93, 0.99], [0.2, 0.4, 0.4, 0.4]], ids=["as it learns", "not full"])
def test_a_training_without_phases_is_not_shaded(test: list[float]) -> None:
    train = [0.1, 0.5, 0.99, 1.0] if test[-1] > 0.9 else [0.2, 0.6, 0.8, 0.97]
    rows = [{"step": at, "lmn": 2.0, "train_acc": a, "val_acc": b} for at, (a, b) in enumerate(zip(train, test, strict=True))]
    axes = curves(rows).axes
    assert [len(axes[0].texts), len(axes[0].patches)] == [0, 0]


def test_a_history_draws_itself() -> None:
    from lmn.history import History

    figure = History.of(ROWS).plot(columns="lmn")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [10, 30, np.nan, 20])
    axes = History.of(ROWS)[["step", "lmn"]].plot(x="step", y="lmn")  # by pandas
    np.testing.assert_array_equal(axes.lines[0].get_xydata()[:2], [[0, 10], [50, 30]])


def test_one_measurement_is_a_point() -> None:
    assert len(curves(ROWS[:1]).axes) == 4


# ---- the terminal ------------------------------------------------------------------------------------------------------------


def test_sparklines() -> None:
    assert sparkline(np.array([0.0, 3.5, 7.0])) == "▁▅█"
    assert sparkline(np.array([2.0, np.nan, 2.0])) == "▁ ▁"
    assert sparkline(np.arange(100.0), 4) == "▁▃▆█"
    assert sparkline(np.array([np.nan])) == " "
    assert sparkline(np.array([])) == ""


def test_watch_shows_each_number_with_its_course(path: Path) -> None:
    code, out = run("watch", path, "--once")
    assert code == 0
    lines = out.splitlines()
    assert "step 100 4 measurements in 2.2 s, measuring 18.2% of them" in " ".join(out.split())
    (line,) = [line for line in lines if line.startswith("lmn ")]
    assert line.split() == ["lmn", "20", "10", "30", "▁█", "▅"]  # a measurement failed in between
    assert "1 failed, the last at step 75: LmnError: <not finite>" in out


def test_watch_goes_on_until_it_is_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmn import watch

    seen: list[int] = []
    view = watch.view

    def seen_view(*arguments: Any) -> Any:
        seen.append(len(arguments[1]))
        return view(*arguments)

    def sleep(_seconds: float) -> None:
        if len(seen) == 3:
            raise KeyboardInterrupt
        with path.open("a") as file:
            file.write(json.dumps(ROWS[-1] | {"step": 100 + len(seen)}) + "\n")

    monkeypatch.setattr(watch, "view", seen_view)
    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert run("watch", path)[0] == 0
    assert seen == [4, 5, 6]


@pytest.mark.parametrize("width", [30, 40, 80])
def test_watch_cuts_names_before_numbers(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(view(Path("h.jsonl"), [{"step": 0, "lmn": 123.4, "jacobian_frobenius_norm": 0.001234}], width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert [any(number in line.split() for line in lines) for number in ("123.4", "0.001234")] == [True, True]


def test_watch_of_nothing_yet(tmp_path: Path) -> None:
    empty = tmp_path / "history.jsonl"
    empty.touch()
    assert "no measurement yet" in " ".join(run("watch", empty, "--once")[1].split())
    code, out = run("watch", tmp_path / "none.jsonl", "--once")
    assert code == 1
    assert "can't read" in out


def test_watch_waits_for_the_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmn import watch

    later, naps = tmp_path / "later.jsonl", [0]

    def sleep(_seconds: float) -> None:
        naps[0] += 1
        if naps[0] == 2:
            raise KeyboardInterrupt
        later.write_text(path.read_text())

    monkeypatch.setattr(watch.time, "sleep", sleep)
    code, out = run("watch", later)
    assert code == 0
    assert "4 measurements" in " ".join(out.split())


def test_rows_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    file = Follower(path)
    assert not file.update()
    parts = (('{"step": 0}\n{"st', 1), ('ep": 1}\n', 2), ('{"step": 2}', 3), ("\n", 3), ('{"step": 3}\n', 4))
    before = 0
    for add, n in parts:
        with path.open("a") as writing:
            writing.write(add)
        assert file.update() == (n > before)
        assert [row["step"] for row in file.rows] == list(range(n))
        before = n
    other = tmp_path / "other.jsonl"
    other.write_text("".join(f'{{"step": {step}}}\n' for step in range(7, 17)))
    other.replace(path)  # another run
    assert file.update()
    assert [row["step"] for row in file.rows] == list(range(7, 17))


def shown(width: int, height: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(view(Path("history.jsonl"), ROWS, width, height))
    return console.export_text().splitlines()


def test_watch_fits_its_window() -> None:
    for width in (40, 60, 100):
        (line,) = [line for line in shown(width, 30) if line.startswith("lmn ")]
        assert line.split() == ["lmn", "20", *["10", "30"] * (width > 50), "▁█", "▅"]
        assert all(len(line) <= width for line in shown(width, 30))
    low = shown(100, 9)
    assert len(low) < 9
    assert "and 3 more, in a higher window or by lmn report" in low


# ---- the page ----------------------------------------------------------------------------------------------------------------


def test_a_report_needs_nothing_else(path: Path, tmp_path: Path) -> None:
    to = tmp_path / "report.html"
    assert run("report", path, "-o", to) == (0, f"Written to {to}.\n")
    page = to.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 1
    assert "<td>lmn</td><td>10<br>" in page
    assert "<li>LmnError: &lt;not finite&gt; <span class=quiet>(step 75)</span></li>" in page
    assert "<li>no regions <span class=quiet>(2 times, steps 0 to 100)</span></li>" in page
    assert "4 measurements up to step 100, over 2.2 s, of which measuring took 0.4 s (18.2%)." in page
    assert page.count("<tr>") == 5 + 1 + 4 + 1


def test_a_report_where_nothing_was_measured(tmp_path: Path) -> None:
    path, to = tmp_path / "history.jsonl", tmp_path / "report.html"
    for rows, said in (("", "No measurement yet."), ('{"step": 3, "error": "E: bad"}\n', "1 measurement up to step 3")):
        path.write_text(rows)
        assert run("report", path, "-o", to)[0] == 0
        assert said in to.read_text()
        assert "<img" not in to.read_text()
    assert "<li>E: bad <span class=quiet>(step 3)</span></li>" in to.read_text()


def test_a_report_of_what_can_not_be_read_or_written(path: Path, tmp_path: Path) -> None:
    assert "can't read" in run("report", tmp_path / "none.jsonl")[1]
    assert "can't write" in run("report", path, "-o", tmp_path / "none" / "report.html")[1]
    rows = path.read_text()
    assert "is the measurements themselves" in run("report", path, "-o", path)[1].replace("\n", " ")
    assert path.read_text() == rows
    path.write_text("step,lmn\n")
    assert "is no measurement" in run("report", path)[1].replace("\n", " ")


# ---- pictures ----------------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_connectivity_beside_its_spectrum() -> None:
    found = lmn.measure(network(), torch.randn(30, 2), connectivity=True, metrics=("lmn",), progress=False)
    left, right, *_ = found.plot().axes
    assert found.connectivity is not None
    shown = left.images[0].get_array()
    np.testing.assert_allclose(np.sort(shown.ravel()), np.sort(found.connectivity.numpy().ravel()))
    np.testing.assert_array_equal(right.lines[0].get_ydata(), found.eigenvalues)
    with pytest.raises(lmn.LmnError, match="measure with connectivity=True"):
        lmn.measure(network(), torch.randn(5, 2), metrics=("lmn",), progress=False).plot()


def test_norms_that_span_decades_are_coloured_by_their_logarithm(tmp_path: Path) -> None:
    model, grid, axes = network(), lmn.box([-1, -1], [1, 1], 8), list[Any]()
    found = [lmn.regions(model, grid, progress=False)]
    with torch.no_grad():
        model[2].weight.mul_(1000)
    for late in (lmn.regions(model, grid, progress=False), found[0]):
        animate([found[0], late], tmp_path / "regions.gif", decorate=axes.append)
    scales = [type(ax.collections[0].norm).__name__ for ax in axes]
    assert scales == ["LogNorm"] * 2 + ["Normalize"] * 2
    with pytest.raises(lmn.LmnError, match="log=True draws what is above zero; from -1 to 2 it is not"):
        found[0].plot(log=True, limits=(-1, 2))


def test_regions_through_a_training(tmp_path: Path) -> None:
    from PIL import Image

    model, grid, found = network(), lmn.box([-1, -1], [1, 1], 8), []
    for _ in range(3):
        found.append(lmn.regions(model, grid, progress=False))
        with torch.no_grad():
            model[0].bias.add_(0.2)
    to = tmp_path / "regions.gif"
    animate(found, to, titles=["a", "b", "c"], seconds=3)
    with Image.open(to) as picture:
        assert picture.n_frames == 3
        durations, frames = [], []
        for number in range(3):
            picture.seek(number)
            durations.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("RGB")))
    assert durations == [1000, 1000, 3000]
    assert not np.array_equal(frames[0], frames[1])
    for wrong, message in (
        ({"found": []}, "at least of one moment"),
        ({"titles": ["a"]}, "3 pictures and 1 titles"),
        ({"path": tmp_path / "regions.mp4"}, "should end in .gif"),
        ({"path": tmp_path / "none" / "regions.gif"}, "can't write"),
        ({"found": [lmn.regions(model, torch.randn(4, 2), progress=False)]}, "exact regions"),
    ):
        with pytest.raises(lmn.LmnError, match=message):
            animate(**({"found": found, "path": to} | wrong))
