"""Measuring in real, short Lightning trainings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_callback import OPTIONS, data
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import lmn
import lmn.network
from lmn import journal
from lmn.integrations.lightning import LmnCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 3))
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def trainer(tmp_path: Path, *callbacks: Any, epochs: int = 3, **options: Any) -> pl.Trainer:
    given = {"logger": False, "enable_checkpointing": False} | options
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, **given,
    )  # fmt: skip


def fit(made: pl.Trainer, module: Module, **options: Any) -> None:
    """Six steps an epoch."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*data()), batch_size=4)
    made.fit(module, loader, loader, **options)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_training_with_it_is_the_training_without(asynchronous: bool, tmp_path: Path) -> None:
    alone, measured = Module(), Module()
    fit(trainer(tmp_path), alone)
    callback = LmnCallback(data()[0], every=4, asynchronous=asynchronous, **OPTIONS)
    fit(trainer(tmp_path, callback), measured)
    assert measured.losses == alone.losses
    steps = callback.history["step"].tolist()
    assert steps == [0, 4, 8, 12, 16, 18] or asynchronous
    assert (steps[0], steps[-1]) == (0, 18)


def test_it_logs_to_all_loggers_and_keeps_what_the_module_logs(tmp_path: Path) -> None:
    callback = LmnCallback(data()[0], every=6, **OPTIONS)
    loggers = [CSVLogger(tmp_path, "a"), CSVLogger(tmp_path, "b")]
    made = trainer(tmp_path, callback, logger=loggers, log_every_n_steps=1)
    fit(made, Module())
    for logger in loggers:
        rows = [row for row in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines() if row]
        place = rows[0].split(",").index("lmn/lmn")
        assert len([row for row in rows[1:] if row.split(",")[place]]) == 4
    history = callback.history
    assert float(made.callback_metrics["lmn/lmn"]) == pytest.approx(history["lmn"].iloc[-1])
    assert history["train_loss"].notna().tolist() == [False, True, True, True]
    assert history["val_loss"].notna().iloc[-1]


def test_a_part_of_the_module(tmp_path: Path) -> None:
    told: list[int] = []
    for part in ("net", lambda module: module.net):
        module = Module()
        callback = LmnCallback(data()[0], part=part, tap="0", every=6, log=lambda _values, step: told.append(step), **OPTIONS)
        fit(trainer(tmp_path, callback, epochs=1), module)
        expected = lmn.measure(module.net, data()[0], tap="0", progress=False, **OPTIONS).lmn
        assert callback.history["lmn"].iloc[-1] == pytest.approx(expected)
    assert told == [0, 6, 0, 6]
    with pytest.raises(lmn.LmnError, match="Module has no submodule 'nett' to measure; there are: 'net'"):
        fit(trainer(tmp_path, LmnCallback(data()[0], part="nett")), Module())


def test_early_stopping_and_checkpoints_go_by_the_linear_mapping_number(tmp_path: Path) -> None:
    callback = LmnCallback(data()[0], every=2, **OPTIONS)
    stopping = EarlyStopping("lmn/lmn", mode="max", divergence_threshold=None, stopping_threshold=1.0, patience=100)
    best = ModelCheckpoint(tmp_path, monitor="lmn/lmn", mode="max", filename="best")
    made = trainer(tmp_path, stopping, best, callback, epochs=50, enable_checkpointing=True)
    fit(made, Module())
    assert made.current_epoch < 3
    assert stopping.stopped_epoch == 0
    assert "lmn/lmn = " in (stopping.stopping_reason_message or "lmn/lmn = ")
    assert float(best.best_model_score) == pytest.approx(callback.history["lmn"].iloc[-1])


@pytest.mark.parametrize("how", [{"every": 1000}, {"every": 1000, "asynchronous": True}])
@pytest.mark.parametrize("validated", [False, True])
def test_where_it_is_monitored_its_numbers_are_of_now(how: dict[str, Any], validated: bool, tmp_path: Path) -> None:
    """One that is given again would count as no improvement."""
    callback = LmnCallback(data()[0], **how, **OPTIONS)
    stopping = EarlyStopping("lmn/lmn", patience=1, min_delta=-1e9, check_on_train_epoch_end=not validated)
    made = trainer(tmp_path, stopping, callback, epochs=3, val_check_interval=3 if validated else 1.0)
    fit(made, Module())
    assert callback.history["step"].tolist() == ([0, 3, 6, 9, 12, 15, 18] if validated else [0, 6, 12, 18])
    assert made.current_epoch == 3


class Plain(Module):
    """Without an attribute that changes from step to step."""

    def training_step(self, batch: Any, _index: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])


def test_a_whole_module_is_traced_as_often_as_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, trace = list[int](), lmn.network.traced_symbolically
    monkeypatch.setattr(lmn.network, "traced_symbolically", lambda *args: traces.append(1) or trace(*args))
    callback = LmnCallback(data()[0], every=1, **OPTIONS)
    fit(trainer(tmp_path, callback, epochs=2), Plain())
    assert len(callback.rows) == 13
    assert len(traces) <= 2


def test_a_new_training_begins_its_history_anew(tmp_path: Path) -> None:
    callback = LmnCallback(data()[0], every=6, **OPTIONS)
    for _ in range(2):
        fit(trainer(tmp_path, callback, epochs=1), Module())
        assert callback.history["step"].tolist() == [0, 6]
    assert callback.last is not None
    assert repr(callback).startswith("<LmnCallback: 2 measurements, every 6 steps")


def test_it_is_resumed_with_its_history(tmp_path: Path) -> None:
    callback, path = LmnCallback(data()[0], every=4, **OPTIONS), tmp_path / "history.jsonl"
    made = trainer(tmp_path, callback, epochs=1)
    fit(made, Module())
    made.save_checkpoint(tmp_path / "last.ckpt")
    assert callback.history["step"].tolist() == [0, 4, 6]
    resumed = LmnCallback(data()[0], every=4, **OPTIONS)
    fit(trainer(tmp_path, resumed, epochs=2), Module(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.history["step"].tolist() == [0, 4, 6, 8, 12]
    for epochs in (1, 2):
        again = LmnCallback(data()[0], every=4, path=path, **OPTIONS)
        checkpoint = None if epochs == 1 else tmp_path / "last.ckpt"
        fit(trainer(tmp_path, again, epochs=epochs), Module(), ckpt_path=checkpoint)
    assert [row["step"] for row in journal.read(path)] == [0, 4, 6, 8, 12]


def test_several_in_one_training(tmp_path: Path) -> None:
    def two() -> list[LmnCallback]:
        return [LmnCallback(data()[0], name=tap, tap=f"net.{tap}", every=3, **OPTIONS) for tap in "03"]

    first = two()
    made = trainer(tmp_path, *first, epochs=1)
    fit(made, Module())
    for callback in first:
        told = float(made.callback_metrics[f"lmn/{callback._measuring.name}/lmn"])
        assert told == pytest.approx(callback.history["lmn"].iloc[-1])
    made.save_checkpoint(tmp_path / "last.ckpt")
    resumed = two()
    fit(trainer(tmp_path, *resumed, epochs=2), Module(), ckpt_path=tmp_path / "last.ckpt")
    for before, after in zip(first, resumed, strict=True):
        assert after.history["lmn"].tolist()[:3] == before.history["lmn"].tolist()
        assert after.history["step"].tolist() == [0, 3, 6, 9, 12]


def test_a_resumed_training_stops_early_by_what_was_measured_before(tmp_path: Path) -> None:
    """Also where nothing is measured in the epoch that it is resumed in."""
    for epochs in (1, 2):
        callback = LmnCallback(data()[0], every=100, path=tmp_path / "history.jsonl", **OPTIONS)
        made = trainer(tmp_path, callback, EarlyStopping("lmn/lmn", patience=9), epochs=epochs)
        fit(made, Module(), ckpt_path=None if epochs == 1 else tmp_path / "last.ckpt")
        made.save_checkpoint(tmp_path / "last.ckpt")
    assert callback.history["step"].tolist() == [0, 6, 12]


def test_a_trainer_that_goes_on_keeps_its_history(tmp_path: Path) -> None:
    callback, module = LmnCallback(data()[0], every=4, **OPTIONS), Module()
    made = trainer(tmp_path, callback, epochs=1)
    fit(made, module)
    made.fit_loop.max_epochs = 2
    fit(made, module)
    assert callback.history["step"].tolist() == [0, 4, 6, 8, 12]


def test_all_processes_stop_early_together() -> None:
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), "lightning"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("stopped after 3 steps") == 2  # an epoch of a half of the samples


def test_a_diverged_training_goes_on(tmp_path: Path) -> None:
    class Diverges(Module):
        def on_train_batch_start(self, _batch: Any, index: int) -> None:
            if index == 3:
                with torch.no_grad():
                    self.net[0].weight.fill_(float("nan"))

    callback = LmnCallback(data()[0], every=2, **OPTIONS)
    fit(trainer(tmp_path, callback, epochs=1), Diverges())
    assert callback.history["error"].notna().tolist() == [False, False, True, True]


_OTHER_NAME = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import {imported} as pl
from lmn.integrations.lightning import LmnCallback
print(json.dumps([issubclass(LmnCallback, pl.Callback), LmnCallback.__mro__[1].__module__]))
"""


@pytest.mark.parametrize("imported", ["pytorch_lightning", "lightning.pytorch"])
def test_it_is_built_on_the_library_that_was_imported(imported: str) -> None:
    script = _OTHER_NAME.format(imported=imported)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    is_one, module = json.loads(done.stdout.splitlines()[-1])
    assert is_one
    assert module.startswith(imported)
