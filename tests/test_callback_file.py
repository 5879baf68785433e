"""The file of a callback: what is kept of a run that dies, and of the next one."""

import copy
import itertools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_callback import OPTIONS, built, data, train

import lmn
from lmn import journal


def test_a_line_a_measurement(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "history.jsonl"
    model, optimizer = built()
    losses: list[float] = [float("nan")]
    callback = lmn.Callback(data()[0], every=5, path=path, extra=lambda: {"train_loss": losses[-1]}, **OPTIONS)
    callback.attach(model, optimizer)
    losses += train(model, optimizer, 10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]  # before it is closed
    assert [line["step"] for line in lines] == [0, 5, 10]
    assert lines[0]["train_loss"] is None
    callback.close()
    assert journal.read(path) == callback.rows


def test_a_run_that_is_resumed_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "history.jsonl", tmp_path / "checkpoint.pt"
    model, optimizer = built()
    with lmn.Callback(data()[0], every=5, path=path, **OPTIONS).attach(model, optimizer):
        train(model, optimizer, 8)
        torch.save((model.state_dict(), optimizer.state_dict()), checkpoint)
        train(model, optimizer, 4)
    with path.open("ab") as file:
        file.write(b'{"step": 15, "lm')  # a write that was cut off
    model, optimizer = built()
    for each, state in zip((model, optimizer), torch.load(checkpoint, weights_only=True), strict=True):
        each.load_state_dict(state)
    with (
        pytest.warns(UserWarning, match="has measurements up to step 12, and the training is at step 8"),
        lmn.Callback(data()[0], every=5, path=path, **OPTIONS).attach(model, optimizer) as callback,
    ):
        train(model, optimizer, 10)
    steps = [row["step"] for row in journal.read(path)]
    assert steps == [0, 5, 10, 12, 15, 18]
    assert callback.history["step"].tolist() == steps
    assert callback.history["wall_time"].is_monotonic_increasing


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_that_is_killed_keeps_what_was_measured(asynchronous: bool, tmp_path: Path) -> None:
    """Killed at 25 random moments, and resumed each time, in one file."""
    path = tmp_path / "history.jsonl"
    command = [str(Path(__file__).with_name("killed_training.py")), str(path), "25", "asynchronous" if asynchronous else ""]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True, env=environment)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 25
    assert sum(len(after["kept"]) > len(before["kept"]) for before, after in itertools.pairwise(runs)) > 12  # that measured
    for run in runs:
        assert len(run["kept"]) >= run["told"]
        assert run["kept"] == (sorted(set(run["kept"])) if asynchronous else list(range(len(run["kept"]))))
    for before, after in itertools.pairwise(runs):
        assert after["kept"][: len(before["kept"])] == before["kept"]
    with lmn.Callback(data()[0], every=1, path=path, **OPTIONS) as callback:  # it is whole, and nobody holds it
        assert callback.history["step"].tolist() == runs[-1]["kept"]


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    model, _ = built()
    one, other = (lmn.Callback(data()[0], path=tmp_path / "history.jsonl", **OPTIONS) for _ in range(2))
    one(model, 0)
    with pytest.raises(lmn.LmnError, match="another callback writes to"):
        other(model, 0)
    one.close()
    other(model, 1)
    other.close()


@pytest.mark.parametrize(
    "content", ["epoch,loss\n1,0.5\n", '{"loss": 3}\n', "[1]\n", '{"step": "x"}\n', '{"lr": 1}', "notes", '{"step": "x"}']
)
def test_a_file_of_other_things_is_not_written_to(content: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(content)
    with pytest.raises(lmn.LmnError, match=r"line 1 of .* is no measurement"):
        lmn.Callback(data()[0], path=path)
    assert path.read_text() == content


def test_a_last_row_without_the_end_of_its_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 0, "wall_time": 0.5, "lmn": 2.0}\n{"step": 5, "wall_time": 1.0, "lmn": 3.0}')
    callback = lmn.Callback(data()[0], every=5, path=path, **OPTIONS)
    callback(built()[0], 10)
    callback.close()
    assert [row["step"] for row in journal.read(path)] == [0, 5, 10]


def test_processes_that_are_forked_do_not_keep_the_file(tmp_path: Path) -> None:
    """As workers of a data loader, which may outlive a run that is killed."""
    path = tmp_path / "history.jsonl"
    writer = journal.Journal(path)
    fork = multiprocessing.get_context("fork")
    runs = fork.Event()
    worker = fork.Process(target=lambda: (runs.set(), time.sleep(30)))
    worker.start()
    assert runs.wait(20)
    try:
        writer.close()
        journal.Journal(path).close()
    finally:
        worker.kill()
        worker.join()


def test_what_a_row_has_itself_is_not_overridden(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    own = {"step": 0.5, "lmn": 7.0, "error": 0.25, "notes": 2.0, "linear_maps": 3.0, "jacobian_penalty": 4.0, "loss": 1.0}
    callback = lmn.Callback(data()[0], path=path, extra=lambda: own, **OPTIONS)
    callback(built()[0], np.int64(200))  # type: ignore[arg-type]
    callback.close()
    (row,) = journal.read(path)
    assert row["step"] == 200
    assert row["lmn"] != 7
    names = ("step_", "lmn_", "error_", "notes_", "linear_maps_", "jacobian_penalty", "loss")
    assert [row[name] for name in names] == list(own.values())


def steps_of(path: Path) -> list[int]:
    return [row["step"] for row in journal.read(path)]


def trained(path: Path, steps: Iterable[int]) -> list[str]:
    """What is warned of, where a training of these steps is measured every 5."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with lmn.Callback(data()[0], every=5, path=path, **OPTIONS) as callback:
            for step in steps:
                callback(built()[0], step)
    assert all(each.filename == __file__ for each in told)
    return [str(each.message) for each in told]


def test_a_training_that_begins_anew_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert trained(path, range(8)) == []
    for number in (1, 2):
        (told,) = trained(path, range(11))
        assert (
            f"up to step {5 * number}, and the training is at step 0: they are now {tmp_path / f'history.{number}.jsonl'}"
            in told
        )
        assert steps_of(tmp_path / f"history.{number}.jsonl") == ([0, 5] if number == 1 else [0, 5, 10])
        assert steps_of(path) == [0, 5, 10]


def test_a_training_that_goes_on_earlier_keeps_what_was_measured(tmp_path: Path) -> None:
    """From a checkpoint; and from where it was, nothing is to be told."""
    path = tmp_path / "history.jsonl"
    trained(path, range(11))
    (told,) = trained(path, range(7, 16))
    assert "has measurements up to step 10, and the training is at step 7: they are kept" in told
    assert trained(path, range(15, 21)) == []
    assert steps_of(path) == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("loads", [True, False])
def test_attached_before_its_state_is_loaded(loads: bool, tmp_path: Path) -> None:
    """Whether it goes on or begins anew shows at its first step."""
    path, extra = tmp_path / "history.jsonl", lambda: {"mean": float(model[0].weight.detach().mean())}
    model, optimizer = built()
    with lmn.Callback(data()[0], every=5, path=path, extra=extra, **OPTIONS).attach(model, optimizer):
        train(model, optimizer, 7)
    state, before = copy.deepcopy(optimizer.state_dict()), journal.read(path)
    model, optimizer = built()
    callback = lmn.Callback(data()[0], every=5, path=path, extra=extra, **OPTIONS).attach(model, optimizer)
    if loads:
        optimizer.load_state_dict(state)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(model, optimizer, 6)
        callback.close()
    assert len(told) == (not loads)
    assert steps_of(path) == ([0, 5, 7, 10, 13] if loads else [0, 5, 6])
    assert (tmp_path / "history.1.jsonl").exists() == (not loads)
    first, again = before[0], journal.read(path)[0]
    assert (again["lmn"], again["mean"]) == (first["lmn"], first["mean"])


def test_another_training_with_the_same_callback_is_told_of() -> None:
    callback = lmn.Callback(data()[0], every=5, **OPTIONS)
    for step in range(11):
        callback(built()[0], step)
    with pytest.warns(UserWarning, match="has measurements up to step 10, and the training is at step 0"):
        callback.attach(*built())
    callback.close()
    callback.close(built()[0], 50)
    assert [row["step"] for row in callback.rows] == [0, 5, 10]


def test_a_file_that_is_deleted_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with lmn.Callback(data()[0], every=1, path=path, **OPTIONS) as callback:
        callback(built()[0], 0)
        path.unlink()
        with pytest.warns(UserWarning, match="was deleted; it is written again"):
            callback(built()[0], 1)
    assert steps_of(path) == [0, 1]


def test_what_a_power_failure_leaves_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trained(path, [0])
    with path.open("ab") as file:
        file.write(bytes(100))
    assert steps_of(path) == [0]
    assert trained(path, [5]) == []
    assert steps_of(path) == [0, 5]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"m": 7}, "m was 5 and is 7"),
        ({"tap": "1"}, "tap was None and is 1"),
        ({"max_points": 9}, "n_sampled was None and is 9"),
        ({"grid": data()[0].flip(0)}, "samples was [0-9a-f]{8} and is [0-9a-f]{8}"),
    ],
)
def test_measurements_that_do_not_compare_with_those_before_are_told_of(
    changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    for step, options in enumerate((OPTIONS | {}, OPTIONS | {}, OPTIONS | changed)):
        grid = options.pop("grid", data()[0])
        with lmn.Callback(grid, path=tmp_path / "history.jsonl", every=1, **options) as callback:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                callback(built()[0], 2 * step)
                callback(built()[0], 2 * step + 1)
            assert [bool(re.search(said, str(each.message))) for each in told] == [True] * (step == 2)
    noted = [row.get("notes", "") for row in callback.rows]
    assert [bool(re.search(f"not to be compared with those before: {said}", note)) for note in noted] == [False] * 4 + [
        True,
        False,
    ]


def test_rows_that_were_recalled_are_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with lmn.Callback(data()[0], every=2, **OPTIONS) as before:
        before(built()[0], 0)
        before(built()[0], 2)
    callback = lmn.Callback(data()[0], every=2, path=path, **OPTIONS)
    callback.recall(before.history.to_dict("records"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in (2, 4):
            callback(built()[0], step)
    callback.close()
    assert [row["step"] for row in journal.read(path)] == [row["step"] for row in callback.rows] == [0, 2, 4]


def test_rows_that_were_recalled_go_on_after_the_files(tmp_path: Path) -> None:
    """A checkpoint may have one that the file has not, as where the disk was full."""
    path = tmp_path / "history.jsonl"
    trained(path, range(6))
    with lmn.Callback(data()[0], every=5, path=path, **OPTIONS) as callback:
        callback.recall([{"step": 5, "lmn": 99.0}, {"step": 8, "lmn": 3.0}])
        callback(built()[0], 10)
    assert [(row["step"], row["lmn"] in (99.0, 3.0)) for row in journal.read(path)] == [
        (0, False), (5, False), (8, True), (10, False)
    ]  # fmt: skip


def test_a_relative_path_is_of_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callback = lmn.Callback(data()[0], path="history.jsonl", **OPTIONS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    callback(built()[0], 0)
    callback.close()
    assert [row["step"] for row in journal.read(tmp_path / "history.jsonl")] == [0]


def test_a_full_disk_loses_nothing_that_fits_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = built()
    path = tmp_path / "history.jsonl"
    callback = lmn.Callback(data()[0], every=1, path=path, **OPTIONS)
    callback(model, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _file, line: len(line) // 2)
        with pytest.warns(UserWarning, match="was not written to"):
            callback(model, 1)
    assert [row["step"] for row in journal.read(path)] == [0]
    callback(model, 2)
    callback.close()
    assert [row["step"] for row in journal.read(path)] == [0, 1, 2]


def test_infinities_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    given = {"loss": math.inf, "gain": -math.inf, "none": math.nan, "many": torch.tensor([1.0, math.inf]), 3: 2}
    with lmn.Callback(data()[0], path=path, extra=lambda: given, **OPTIONS) as callback:
        callback(built()[0], 0)
    kept = {"loss": math.inf, "gain": -math.inf, "none": None, "many": [1.0, math.inf], "3": 2}
    (row,) = journal.read(path)
    assert {name: row[name] for name in kept} == {name: callback.rows[0][name] for name in kept} == kept
