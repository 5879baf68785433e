"""Measuring in real, short trainings by Hugging Face's Trainer."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import lmn
from lmn import journal
from lmn.integrations.transformers import LmnCallback

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS: dict[str, Any] = {"tap": "bert.embeddings", "m": 4, "metrics": ("lmn",)}


def tokens() -> torch.Tensor:
    return torch.randint(0, 20, (6, 5), generator=torch.Generator().manual_seed(1))


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(0, 20, (16, 5), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 2} for row in inputs]


def built(tmp_path: Path, *callbacks: Any, steps: int = 8, **options: Any) -> Trainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, attn_implementation="eager",
    )  # fmt: skip
    given = {"report_to": [], "save_strategy": "no", "logging_steps": 2} | options
    arguments = TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
        seed=0, **given,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows()[:8], callbacks=list(callbacks))


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_training_with_it_is_the_training_without(asynchronous: bool, tmp_path: Path) -> None:
    alone = built(tmp_path)
    alone.train()
    measured = built(tmp_path)
    callback = LmnCallback(tokens(), every=3, asynchronous=asynchronous, **OPTIONS).add_to(measured)
    measured.train()
    assert losses(measured) == losses(alone)
    history = callback.history
    assert history["step"].tolist() == [0, 3, 6, 8] or asynchronous
    assert history["lmn"].between(1, 6).all()
    assert history["loss"].iloc[-1] in losses(alone)
    told = {row["lmn/step"]: row["lmn/lmn"] for row in measured.state.log_history if "lmn/lmn" in row}
    assert told == dict(zip(history["step"], history["lmn"], strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_that_trains_in_bfloat16_is_measured_as_it_is_written(asynchronous: bool, tmp_path: Path) -> None:
    """By its own forward pass, in float32, and not by the one under autocast that Accelerate puts in its place."""
    trainer = built(tmp_path, bf16=True)
    callback = LmnCallback(tokens(), every=4, asynchronous=asynchronous, **OPTIONS).add_to(trainer)
    trainer.train()
    wrapped = vars(trainer.model)["forward"]
    plain = BertForSequenceClassification(trainer.model.config)
    plain.load_state_dict(trainer.model.state_dict())
    expected = lmn.measure(plain, tokens(), select=lambda out: out.logits, progress=False, **OPTIONS)
    assert callback.history["lmn"].iloc[-1] == expected.lmn
    assert vars(trainer.model)["forward"] is wrapped


def test_given_to_the_trainer_it_logs_to_the_history_alone(tmp_path: Path) -> None:
    callback = LmnCallback(tokens(), every=4, **OPTIONS)
    trainer = built(tmp_path, callback)
    with pytest.warns(UserWarning, match=r"LmnCallback\(...\).add_to\(trainer\)"):
        trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "lmn/lmn" in row] == [0, 4, 8]


def test_what_the_trainer_reports_to_is_told(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers.integrations import TensorBoardCallback

    folder = tmp_path / "board"
    trainer = built(tmp_path, TensorBoardCallback(SummaryWriter(str(folder))))
    callback = LmnCallback(tokens(), every=4, **OPTIONS).add_to(trainer)
    trainer.train()
    events = EventAccumulator(str(folder))
    events.Reload()
    (name,) = [tag for tag in events.Tags()["scalars"] if tag.endswith("lmn/lmn")]
    assert [event.step for event in events.Scalars(name)] == callback.history["step"].tolist()


def test_early_stopping_goes_by_the_linear_mapping_number(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_lmn/lmn", "greater_is_better": True}
    trainer = built(tmp_path, EarlyStoppingCallback(1, 1e9), steps=40, **options, load_best_model_at_end=False)
    LmnCallback(tokens(), every=2, **OPTIONS).add_to(trainer)
    trainer.train()
    assert trainer.state.global_step < 10
    assert trainer.state.best_metric is not None
    assert trainer.state.best_metric > 1


def test_where_it_is_monitored_its_numbers_are_of_now(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "eval_lmn/lmn"}
    trainer = built(tmp_path, steps=6, **options)
    callback = LmnCallback(tokens(), every=1000, **OPTIONS).add_to(trainer)
    trainer.train()
    assert callback.history["step"].tolist() == [0, 3, 6]
    assert callback.last is not None
    assert repr(callback).startswith("<LmnCallback: 3 measurements, every 1000 steps")


def test_several_in_one_training(tmp_path: Path) -> None:
    trainer = built(tmp_path, steps=2)
    for name in ("a", "b"):
        LmnCallback(tokens(), name=name, every=2, **OPTIONS).add_to(trainer)
    trainer.train()
    for name in ("a", "b"):
        rows = [row for row in trainer.state.log_history if f"lmn/{name}/lmn" in row]
        assert [row[f"lmn/{name}/step"] for row in rows] == [0, 2]


def test_it_is_resumed_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = built(tmp_path, steps=4, save_strategy="steps", save_steps=4)
    LmnCallback(tokens(), every=3, path=path, **OPTIONS).add_to(first)
    first.train()
    second = built(tmp_path, steps=8)
    callback = LmnCallback(tokens(), every=3, path=path, **OPTIONS).add_to(second)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [row["step"] for row in journal.read(path)] == [0, 3, 4, 6, 8]
    assert callback.history["step"].tolist() == [0, 3, 4, 6, 8]


def test_resumed_without_a_file_it_goes_on_with_what_was_logged(tmp_path: Path) -> None:
    first = built(tmp_path, steps=4, save_strategy="steps", save_steps=4)
    before = LmnCallback(tokens(), every=2, **OPTIONS).add_to(first)
    first.train()
    second = built(tmp_path, steps=8)
    callback = LmnCallback(tokens(), every=2, **OPTIONS).add_to(second)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.history["step"].tolist() == [0, 2, 4, 6, 8]
    assert callback.history["lmn"].tolist()[:2] == before.history["lmn"].tolist()[:2]


class Stops(TrainerCallback):
    """As by Ctrl-C, once, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise KeyboardInterrupt


@pytest.mark.parametrize("again", ["the same trainer", "another one"])
def test_a_training_that_was_stopped_lets_go_of_its_file(again: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = built(tmp_path, Stops(3))
    callback = LmnCallback(tokens(), every=2, path=path, **OPTIONS).add_to(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    if again == "another one":
        trainer = built(tmp_path)
        callback = LmnCallback(tokens(), every=2, path=path, **OPTIONS).add_to(trainer)
    trainer.train()
    assert callback.history["step"].tolist() == [0, 2, 4, 6, 8]
    assert [row["step"] for row in journal.read(path)] == [0, 2, 4, 6, 8]


class Evaluated(TrainerCallback):
    """The last evaluation's metrics."""

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        self.metrics = dict(metrics)


def test_a_resumed_training_knows_what_was_measured_before(tmp_path: Path) -> None:
    path, how = tmp_path / "history.jsonl", {"save_strategy": "steps", "save_steps": 4}
    how |= {"eval_strategy": "steps", "eval_steps": 2}
    for steps in (4, 6):
        evaluated = Evaluated()
        trainer = built(tmp_path, evaluated, steps=steps, **how)
        LmnCallback(tokens(), every=100, path=path, **OPTIONS).add_to(trainer)
        trainer.train(resume_from_checkpoint=steps > 4)
    assert {name for name in evaluated.metrics if name.startswith("eval_lmn/")} == {
        f"eval_lmn/{name}" for name in ("lmn", "nonlinear_complexity", "n_redone", "elapsed")
    }
    assert [row["step"] for row in journal.read(path)] == [0, 4, 6]


def test_all_processes_stop_early_together() -> None:
    script = str(Path(__file__).with_name("two_processes.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, "transformers"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("stopped after 4 steps") == 2


def test_a_part_of_the_model(tmp_path: Path) -> None:
    trainer = built(tmp_path, steps=2)
    callback = LmnCallback(torch.randn(9, 8), part="classifier", every=2, m=4).add_to(trainer)
    trainer.train()
    assert callback.history["lmn"].tolist() == pytest.approx([1.0, 1.0])  # it is affine


def test_there_is_no_history_before_the_training() -> None:
    with pytest.raises(lmn.LmnError, match="there is no history before the training begins"):
        _ = LmnCallback(tokens(), **OPTIONS).history
