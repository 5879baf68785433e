"""The reproduction of "Grokking as Compression": tasks, training, what is read off its curves, and the command."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lmn
from lmn import matrices
from lmn.cli import app
from lmn.paper import TaskName, analysis, figures
from lmn.paper.analysis import Phase
from lmn.paper.tasks import split, task
from lmn.paper.train import COLUMNS, Row, Run, network, train

PNG = b"\x89PNG\r\n\x1a\n"


def run_of(**columns: list[float]) -> Run:
    """A run with the given columns, zero elsewhere but for a training loss that float32 resolves."""
    n = len(next(iter(columns.values())))
    values = {"step": list(range(0, 100 * n, 100)), "train_loss": [0.1] * n, **columns}
    rows = [Row(**{name: values[name][index] if name in values else 0.0 for name in COLUMNS}) for index in range(n)]
    return Run(task(TaskName.XOR), seed=0, rows=rows)


def test_addition_is_modulo_31() -> None:
    assert task(TaskName.MODADD).table[30, 5] == 4


def test_xor_is_bitwise() -> None:
    assert task(TaskName.XOR).table[0b10110, 0b01110] == 0b11000


def test_s4_is_the_group_of_24_permutations() -> None:
    table = task(TaskName.S4).table
    a, b, c = torch.meshgrid(*[torch.arange(24)] * 3, indexing="ij")
    assert torch.equal(table[table[a, b], c], table[a, table[b, c]])
    assert torch.equal(table[0], torch.arange(24))
    assert not torch.equal(table, table.T)
    orders = torch.tensor([sum(int(table[x, x] == 0) for x in range(24)), int((table == 0).sum())])
    assert orders.tolist() == [10, 24]  # S4 has 1 + 9 elements that are their own inverse, and every element has one


def test_the_effective_maps_correlation_leaves_out_what_float32_does_not_resolve() -> None:
    run = run_of(lmn=[1, 2, 3, 9], effective_linear_maps=[2, 4, 6, 0], train_loss=[1, 0.1, 0.01, 1e-9])
    assert analysis.maps_correlation(run) == pytest.approx(1)
    assert "Effective linear maps: 2.0 at the start, 6.0 at their highest (step 200), 0.0 at the end" in analysis.summary(run)


def test_the_split_is_four_fifths_of_all_pairs() -> None:
    torch.manual_seed(3)
    training, test = split(task(TaskName.MODADD))
    assert (len(training), len(test)) == (768, 193)
    pairs = torch.cat([training.tokens, test.tokens])
    assert len(torch.unique(pairs, dim=0)) == 961
    assert torch.equal(training.classes, training.tokens.sum(1) % 31)
    assert not torch.equal(training.tokens, split(task(TaskName.MODADD))[0].tokens)


def test_the_network_is_the_papers() -> None:
    assert sum(p.numel() for p in network(31).parameters()) == 31 * 32 + (64 + 1) * 100 + (100 + 1) * 100 + (100 + 1) * 31


def test_the_tap_gives_the_lmn_at_the_first_hidden_activation() -> None:
    torch.manual_seed(0)
    model, (training, _) = network(31), split(task(TaskName.MODADD))
    at = {tap: lmn.measure(model, training.tokens[:100], tap=tap).lmn for tap in ("silu1", "linear2")}
    assert at["silu1"] == pytest.approx(at["linear2"], rel=1e-5)


def test_a_seed_gives_one_run_and_leaves_the_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = (train(task(TaskName.S4), seed=seed, steps=5, every=3, progress=False) for seed in (1, 1, 2))
    assert first.rows == again.rows
    assert first.rows != other.rows
    assert [row.step for row in first.rows] == [0, 3, 5]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_starts_at_chance_with_the_papers_norm() -> None:
    start = train(task(TaskName.MODADD), seed=0, steps=1, progress=False).rows[0]
    assert start.train_loss == pytest.approx(np.log(31), rel=0.02)
    assert start.l2_norm == pytest.approx(34, abs=1)
    assert start.lmn == pytest.approx(23, abs=3)  # an independent run: 23.1


def test_memorisation_is_kept_with_its_matrix() -> None:
    run = train(task(TaskName.XOR), seed=0, steps=240, every=80, progress=False)
    names = [snapshot.name for snapshot in run.snapshots]
    assert names == ["start", "memorisation", "end, not generalised"]
    memorised = run.snapshots[1]
    assert memorised.step == run.rows[run.first("train_accuracy") or 0].step
    assert memorised.connectivity.shape == (819, 819)
    assert memorised.lmn > 1.2 * run.rows[0].lmn


def test_a_diverged_run_stops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    adam = torch.optim.AdamW

    def exploding(parameters: object, **options: object) -> torch.optim.Optimizer:
        return adam(parameters, **{**options, "lr": 1e30, "weight_decay": 1e10})  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "AdamW", exploding)
    run = train(task(TaskName.S4), steps=40, every=10, progress=False)
    assert len(run.rows) < 5
    assert any("were not finite, and it stopped" in note for note in run.notes)
    assert any("LMN at step 10 is missing" in note for note in run.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"every": 0}, "every, .* must be at least 1; got 0"),
        ({"seed": -1}, "seed is .* got -1"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        train(task(TaskName.S4), progress=False, **options)


def test_phases_change_once() -> None:
    training, test = np.array([0.1, 1, 0.9, 1, 1, 1]), np.array([0.3, 0.2, 0.5, 1, 0.9, 1])
    expected = [Phase.MEMORISING, Phase.GENERALISING, Phase.GENERALISING, *[Phase.FINALISING] * 3]
    assert analysis.phases(training, test).tolist() == expected


def test_turning_points_of_a_noisy_curve() -> None:
    x = np.linspace(0, 1, 101)
    curve = 40 * np.exp(-6 * x) + 8 * np.exp(-(((x - 0.7) / 0.15) ** 2)) + 0.1 * np.random.default_rng(0).standard_normal(101)
    turns = analysis.turning_points(curve)
    assert [turn.kind for turn in turns] == ["minimum", "maximum"]
    assert x[turns[0].index] == pytest.approx(0.47, abs=0.04)
    assert x[turns[1].index] == pytest.approx(0.69, abs=0.04)


def test_a_monotone_curve_does_not_turn() -> None:
    assert analysis.turning_points(np.linspace(5, 1, 20)) == []


def test_r_squared_needs_three_points_that_vary() -> None:
    x = np.array([1.0, 2, 3, np.nan])
    assert analysis.r_squared(x, 5 - 2 * x) == pytest.approx(1)
    assert analysis.r_squared(x, np.array([1.0, -2, 1, 0])) == pytest.approx(0)
    assert analysis.r_squared(x[:2], x[:2]) is None
    assert analysis.r_squared(x, np.ones(4)) is None


def test_the_correlations_are_of_the_generalising_phase() -> None:
    run = run_of(
        lmn=[9, 5, 4, 3, 7, 7], l2_norm=[1, 1, 2, 1, 0, 5], test_loss=[0, 10, 8, 6, 1, 0],
        train_accuracy=[0, 1, 1, 1, 1, 1], test_accuracy=[0, 0, 0, 0.5, 1, 1],
    )  # fmt: skip
    n, with_lmn, with_l2 = analysis.correlations(run)
    assert (n, with_lmn, with_l2) == (3, pytest.approx(1), pytest.approx(0))
    assert "r² = 1.000 with LMN and 0.000 with the L2 norm: it is closer to a line in LMN" in analysis.summary(run)


def test_what_follows_an_underflow_is_named_and_left_out() -> None:
    run = run_of(
        lmn=[9, 5, 4, 3, 9], l2_norm=[1, 1, 2, 1, 0], test_loss=[0, 10, 8, 6, 1], train_accuracy=[0, 1, 1, 1, 1],
        train_loss=[1, 1e-3, 1e-4, 1e-6, 1e-7],
    )  # fmt: skip
    assert analysis.correlations(run) == (3, pytest.approx(1), pytest.approx(0))
    assert "From step 400 on the training loss is below float32's resolution" in analysis.summary(run)


def test_the_summary_names_the_turns_after_the_peak() -> None:
    run = run_of(lmn=[20, 30, 42, 42, 30, 20, 15, 15, 16, 18, 20, 20, 19, 17])
    summary = analysis.summary(run)
    assert "a minimum of 15.0 at step 600, a maximum of 20.0 at step 1000." in summary
    assert "Generalisation (100 % test accuracy) was not reached in 1300 steps." in summary


def test_clusters_stand_together_larger_first() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), range(3, 13)))
    affinity = 0.5 + 0.5 * (labels[:, None] == labels)
    order = matrices.clustered(affinity)
    assert labels[order].tolist() == np.repeat(np.arange(9, -1, -1), range(12, 2, -1)).tolist()


def test_the_command_writes_its_files(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["paper", "s4", "--steps", "120", "--every", "60", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "new" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "60", "120"]
    assert tuple(rows[0]) == COLUMNS
    assert 10 < float(rows[0]["lmn"]) < 25
    for name in ("figure.png", "connectivity.png", "linear_maps.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(PNG)
    assert "Memorisation (100 % training accuracy) was first measured at step 120" in result.output


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, left = lmn.measure, 2

    def interrupted(*arguments: object, **options: object) -> lmn.Measurement:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return measure(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("lmn.paper.train.measure", interrupted)
    result = CliRunner().invoke(app, ["paper", "s4", "--steps", "40", "--every", "10", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "interrupted after step 10" in result.output
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    assert (tmp_path / "figure.png").exists()


def test_a_long_table_says_what_it_leaves_out() -> None:
    table = analysis.table(run_of(lmn=[float(x) for x in range(80)]))
    assert "(1 in 3 of 80 measurements; all are in history.csv)" in table


def test_the_command_asks_for_what_draws_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None if name == "sklearn" else name)
    result = CliRunner().invoke(app, ["paper", "s4", "--out", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "the figures need scikit-learn; pip install scikit-learn" in result.stderr
    assert not (tmp_path / "new").exists()


def test_the_command_finds_a_folder_that_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["paper", "s4", "--out", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "choose another with --out" in result.stderr


def test_doctor_lists_versions_and_backends() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert f"torch        {torch.__version__}" in result.output
    assert "reference  available" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output == f"lmn {lmn.__version__}\n"
