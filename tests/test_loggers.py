"""Where a callback's numbers go: to loggers, and into files of frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_callback import OPTIONS, built, data, train

import lmn


def logged(log: Any) -> lmn.Callback:
    model, optimizer = built()
    with lmn.Callback(data()[0], every=5, log=log, extra=lambda: {"loss": 1.0}, **OPTIONS).attach(model, optimizer) as callback:
        train(model, optimizer, 10)
    return callback


def test_a_function_is_called_once_a_measurement() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    callback = logged([lambda values, step: told.append((step, values)), None])
    assert [step for step, _ in told] == [0, 5, 10]
    assert set(told[0][1]) == {"lmn/lmn", "lmn/nonlinear_complexity", "lmn/n_redone", "lmn/elapsed"}
    assert [values["lmn/lmn"] for _, values in told] == callback.history["lmn"].tolist()


def test_all_numbers_that_change_are_logged() -> None:
    """By their names, which those of ``extra`` do not have."""
    told: list[dict[str, float]] = []
    x, _ = data()
    metrics = ("lmn", "regions", "jacobians", "local_complexity")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    for grid in (x, lmn.plane(*x[:3], 4)):
        callback = lmn.Callback(
            grid, metrics=metrics, log=lambda values, _step: told.append(values), extra=lambda: {"loss": 1.0}
        )
        callback(model, 0)
        assert callback.last is not None
        settings = {"lmn/n_points", "lmn/n_sampled", "lmn/m"}
        assert set(told[-1]) == {f"lmn/{name}" for name in callback.last.to_dict()} - settings


def test_several_callbacks_have_names() -> None:
    told: dict[str, float] = {}
    model, _ = built()
    for name in ("all", "encoder/last"):
        callback = lmn.Callback(data()[0], name=name, log=lambda values, _step: told.update(values), **OPTIONS)
        callback(model, 0)
    assert {key for key in told if key.endswith("/lmn")} == {"lmn/all/lmn", "lmn/encoder/last/lmn"}


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        callback = logged(writer)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("lmn/lmn")
    assert [event.step for event in scalars] == [0, 5, 10]
    np.testing.assert_allclose([event.value for event in scalars], callback.history["lmn"], rtol=1e-6)


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="lmn") as run:
        model, optimizer = built()
        callback = lmn.Callback(data()[0], every=5, log=run, **OPTIONS).attach(model, optimizer)
        for step in range(1, 11):
            run.log({"loss": train(model, optimizer, 1)[0]}, step=step)
        callback.close()
        run.log({"loss": 0.0})
        assert run.summary["lmn/lmn"] == callback.history["lmn"].iloc[-1]
        assert run.summary["lmn/step"] == 10
        assert run.step >= 10


def test_weights_and_biases_keeps_each_measurement() -> None:
    """Also where nobody logs in between: what is logged without a commit takes the place of what was."""

    class Run:
        def __init__(self) -> None:
            self.step, self.rows, self.row = 0, list[dict[str, float]](), dict[str, float]()

        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, values: dict[str, float], commit: bool = True) -> None:
            self.row |= values
            if commit:
                self.rows.append(self.row)
                self.row, self.step = {}, self.step + 1

    run = Run()
    callback = lmn.Callback(data()[0], every=5, log=run, **OPTIONS)
    for step in range(21):
        callback(built()[0], step)
        if step in (12, 13):
            run.log({"loss": 1.0})
    run.log({})
    assert [row.get("lmn/step") for row in run.rows] == [0, 5, 10, None, 15, 20]


def test_frames_are_written(tmp_path: Path) -> None:
    import pandas as pd

    history = logged(None).history
    history.to_csv(tmp_path / "history.csv", index=False)
    history.to_parquet(tmp_path / "history.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), pd.DataFrame(history))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "history.parquet"), pd.DataFrame(history))
    assert type(history[history["step"] > 0]) is type(history)
