"""The callback in training loops: when it measures, what it keeps, and that the training does not notice."""

import copy
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import lmn
from lmn import journal

Loop = Callable[[nn.Module, torch.optim.Optimizer, list[float]], Any]
OPTIONS: dict[str, Any] = {"m": 5, "metrics": ("lmn",)}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 4, generator=generator), torch.randint(0, 3, (24,), generator=generator)


def built() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Dropout draws random numbers in training, BatchNorm has statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    )
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, pause: float = 0.0) -> list[float]:
    x, y = data()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        time.sleep(pause)
    return losses


# ---- when ------------------------------------------------------------------------------------------------------------------


def test_attached_it_measures_at_the_start_every_so_many_steps_and_at_the_end() -> None:
    model, optimizer = built()
    x, _ = data()
    with lmn.Callback(x, every=5, **OPTIONS).attach(model, optimizer) as callback:
        train(model, optimizer, 12)
    assert callback.history["step"].tolist() == [0, 5, 10, 12]
    assert callback.history["lmn"].between(1, 24).all()
    assert callback.history["wall_time"].is_monotonic_increasing
    assert callback.last is not None
    assert callback.last.lmn == callback.history["lmn"].iloc[-1]
    train(model, optimizer, 10)  # it lets go of the optimizer
    assert len(callback.rows) == 4


def test_by_hand() -> None:
    model, optimizer = built()
    x, _ = data()
    callback = lmn.Callback(x, every=4, **OPTIONS)
    measured = []
    for step in range(10):
        (loss,) = train(model, optimizer, 1)
        measured.append(callback(model, step, loss=loss))
    callback.close()
    assert [step for step, found in enumerate(measured) if found is not None] == [0, 4, 8]
    history = callback.history
    assert history.columns[:3].tolist() == ["step", "wall_time", "lmn"]
    assert history["loss"].notna().all()
    assert measured[4].lmn == history["lmn"][1]
    assert lmn.measure(built()[0], x, **OPTIONS, progress=False).lmn != history["lmn"][1]


def test_a_share_of_the_time() -> None:
    model, optimizer = built()
    x, _ = data()
    lmn.measure(model, x, **OPTIONS, progress=False)  # what is loaded once
    with lmn.Callback(x, overhead=0.5, **OPTIONS).attach(model, optimizer) as callback:
        train(model, optimizer, 60, pause=0.01)
        spent, elapsed = callback._schedule.spent, callback._schedule.elapsed
    assert len(callback.rows) > 2
    assert spent <= 0.55 * elapsed
    assert f"{len(callback.rows)} measurements, at most 50% of the time: " in str(callback)


def test_no_more_than_a_share_when_measuring_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only measuring and steps move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def measure(*_args: Any, **_kwargs: Any) -> lmn.Measurement:
        now[0] += 3.0
        return lmn.Measurement(n_points=2, path="chain", elapsed=3.0, lmn=1.0)

    monkeypatch.setattr("lmn.callback.measure_subject", measure)
    callback = lmn.Callback(data()[0], overhead=0.05)
    model = nn.Linear(4, 2)
    shares = []
    for step in range(2000):
        callback(model, step)
        now[0] += 0.1
        shares.append(callback._schedule.share_so_far)
    steps = [row["step"] for row in callback.rows]
    assert steps[0] == 0
    assert len(steps) == 3  # 9 s of 209, and a fourth would be 12 of 212
    assert shares[-1] <= 0.05
    assert all(share <= 0.05 + 1e-9 for step, share in enumerate(shares) if step > steps[1])
    callback.close(model, 2000)  # nor the last one
    assert len(callback.rows) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every, steps between measurements, must be at least 1; got 0"),
        ({"every": 3, "overhead": 0.1}, "give every= or overhead=, not both"),
        ({"overhead": 5}, "above 0 and up to 1; got 5"),
        ({"overhead": True}, "above 0 and up to 1; got True"),
        ({"log": 3}, "log is a function of"),
        ({"name": "a b"}, "name is what keys have between 'lmn/' and a number's own name, e.g. 'encoder'; got 'a b'"),
        ({"name": ""}, "e.g. 'encoder'; got ''"),
        ({"colour": "red"}, "there is no option colour"),
        ({"path": "/proc/none/history.jsonl"}, "can't write measurements to"),
    ],
)
def test_what_can_not_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        lmn.Callback(data()[0], **options)


def test_attach_takes_an_optimizer() -> None:
    with pytest.raises(lmn.LmnError, match="attach takes the optimizer whose steps are counted; got list"):
        lmn.Callback(data()[0]).attach(nn.Linear(4, 2), [])  # type: ignore[arg-type]


def test_steps_are_whole_numbers() -> None:
    with pytest.raises(lmn.LmnError, match=r"step is a whole number, of steps so far; got 5\.0"):
        lmn.Callback(data()[0], **OPTIONS)(built()[0], 5.0)  # type: ignore[arg-type]


def test_steps_that_do_not_go_by_ones() -> None:
    callback = lmn.Callback(data()[0], every=200, **OPTIONS)
    for epoch in range(20):
        callback(built()[0], 47 * epoch)
    assert [row["step"] for row in callback.rows] == [0, 235, 423, 611, 846]


def test_steps_of_a_state_that_is_loaded_later() -> None:
    model, optimizer = built()
    train(model, optimizer, 7)
    state = optimizer.state_dict()
    model, optimizer = built()
    with lmn.Callback(data()[0], every=5, **OPTIONS).attach(model, optimizer) as callback:
        optimizer.load_state_dict(state)
        train(model, optimizer, 4)
    assert callback.history["step"].tolist() == [0, 8, 10, 11]


def test_what_is_to_be_known_of_the_numbers_is_kept() -> None:
    callback = lmn.Callback(data()[0], tap="0", m=5)
    callback(built()[0], 0)
    assert callback.history["tap"].tolist() == ["0"]
    assert callback.history["notes"][0].startswith("no regions: ")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_callback_can_be_copied_before_it_measures(copied: Callable[[lmn.Callback], lmn.Callback], tmp_path: Path) -> None:
    model, path = built()[0], tmp_path / "history.jsonl"
    callback = copied(lmn.Callback(data()[0], every=5, path=path, asynchronous=True, **OPTIONS))
    callback(model, 0)
    with pytest.raises(lmn.LmnError, match="that has begun to measure can't be copied or pickled"):
        copied(callback)
    callback.close()
    assert [row["step"] for row in journal.read(path)] == [0]


def test_a_step_that_was_given_stays_when_a_state_has_none() -> None:
    model, _ = built()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with lmn.Callback(data()[0], every=5, **OPTIONS).attach(model, optimizer, step=1000) as callback:
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, 6)
    assert callback.history["step"].tolist() == [1000, 1005, 1006]


def test_an_attach_that_fails_leaves_no_hook(tmp_path: Path) -> None:
    model, optimizer = built()
    with lmn.Callback(data()[0], path=tmp_path / "history.jsonl", **OPTIONS) as one:
        one(model, 0)
        other = lmn.Callback(data()[0], path=tmp_path / "history.jsonl", **OPTIONS)
        with pytest.raises(lmn.LmnError, match="another callback writes to"):
            other.attach(model, optimizer)
        train(model, optimizer, 2)
        other.close()


def test_time_stops_when_it_is_closed() -> None:
    callback = lmn.Callback(data()[0], **OPTIONS)
    callback(built()[0], 0)
    callback.close()
    said = str(callback)
    time.sleep(0.02)
    assert str(callback) == said


def test_a_callback_that_is_closed_says_so() -> None:
    model, optimizer = built()
    with lmn.Callback(data()[0], **OPTIONS).attach(model, optimizer) as callback:
        pass
    for use in (lambda: callback(model, 1), lambda: callback.attach(model, optimizer)):
        with pytest.raises(lmn.LmnError, match="this callback is closed; make another one"):
            use()


# ---- the training does not notice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("metrics", [("lmn",), ("lmn", "regions", "jacobians", "local_complexity")], ids=len)
def test_the_losses_are_bit_for_bit_the_same(metrics: tuple[str, ...], asynchronous: bool) -> None:
    alone = train(*built(), 60)
    model, optimizer = built()
    state = torch.get_rng_state()
    x, _ = data()
    callback = lmn.Callback(x, every=7, asynchronous=asynchronous, m=5, metrics=metrics).attach(model, optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert train(model, optimizer, 60) == alone
    callback.close()
    assert len(callback.rows) > 3
    assert all("error" not in row for row in callback.rows)
    assert model.training


# ---- what fails --------------------------------------------------------------------------------------------------------------


def diverged() -> nn.Module:
    model, _ = built()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    return model


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failing_measurement_is_recorded_and_the_training_goes_on(asynchronous: bool) -> None:
    model, _ = built()
    callback = lmn.Callback(data()[0], every=1, asynchronous=asynchronous, **OPTIONS)
    callback(model, 0)
    with pytest.warns(UserWarning, match="a measurement failed, and is recorded as such"):  # noqa: PT031
        callback(diverged(), 1, train_loss=3.5)
        callback._finish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is warned of once
        callback(diverged(), 2)
        callback._finish()
    callback(model, 3)
    callback.close()
    history = callback.history
    assert history["step"].tolist() == [0, 1, 2, 3]
    assert history["error"].str.contains("LmnError: .*not finite").tolist()[1:3] == [True, True]
    assert history["error"].isna().tolist() == [True, False, False, True]
    assert history["train_loss"][1] == 3.5
    assert "; 2 failed" in str(callback)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_strict_lets_it_fail(asynchronous: bool) -> None:
    model, _ = built()
    callback = lmn.Callback(data()[0], every=1, asynchronous=asynchronous, strict=True, **OPTIONS)
    callback(model, 0)
    with pytest.raises(lmn.LmnError, match="not finite"):  # noqa: PT012 - in flight it is raised when it is waited for
        callback(diverged(), 1)
        callback._finish()


def test_out_of_memory_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_args: Any, **_kwargs: Any) -> lmn.Measurement:
        raise torch.OutOfMemoryError("it is full")

    monkeypatch.setattr("lmn.callback.measure_subject", measure)
    callback = lmn.Callback(data()[0], every=1)
    with pytest.warns(UserWarning, match="it is full"):
        assert callback(built()[0], 0) is None
    assert callback.rows[0]["error"] == "OutOfMemoryError: it is full"


def test_an_exception_of_the_training_is_not_held_up() -> None:
    model, optimizer = built()
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        lmn.Callback(data()[0], every=5, **OPTIONS).attach(model, optimizer) as callback,
    ):
        train(model, optimizer, 7)
        raise KeyboardInterrupt
    assert callback.history["step"].tolist() == [0, 5]


def test_a_logger_that_fails_does_not_stop_the_training() -> None:
    def fails(_values: object, _step: int) -> None:
        raise RuntimeError("the run is finished")

    callback = lmn.Callback(data()[0], every=1, log=fails, **OPTIONS)
    with pytest.warns(UserWarning, match="was not logged, and is kept; .*: RuntimeError: the run is finished"):
        callback(built()[0], 0)
    callback(built()[0], 1)
    assert len(callback.rows) == 2
    with pytest.raises(RuntimeError, match="the run is finished"):
        lmn.Callback(data()[0], log=fails, strict=True, **OPTIONS)(built()[0], 0)


@pytest.mark.parametrize("failing", [lambda: {}["loss"], lambda: None, lambda: 3])
def test_extra_that_fails_costs_no_measurement(failing: Callable[[], Any]) -> None:
    callback = lmn.Callback(data()[0], every=1, extra=failing, **OPTIONS)
    with pytest.warns(UserWarning, match=r"extra= failed, and its numbers are missing; .*(KeyError: 'loss'|TypeError)"):
        assert callback(built()[0], 0, train_loss=2.0) is not None
    callback(built()[0], 1)
    assert [("lmn" in row, row.get("train_loss")) for row in callback.rows] == [(True, 2.0), (True, None)]
    with pytest.raises((KeyError, TypeError)):
        lmn.Callback(data()[0], extra=failing, strict=True, **OPTIONS)(built()[0], 0)


def test_warnings_show_the_users_line() -> None:
    model, optimizer = built()
    callback = lmn.Callback(data()[0], every=1, extra=lambda: None, **OPTIONS)
    with pytest.warns(UserWarning, match="extra= failed") as told:
        callback.attach(model, optimizer)
    assert [each.filename for each in told] == [__file__]


def test_what_can_not_be_measured_at_all_stops_at_once() -> None:
    with pytest.raises(lmn.LmnError, match="no submodule 'nope'"):
        lmn.Callback(data()[0], **(OPTIONS | {"tap": "nope"}))(built()[0], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("nope",)}, "nope"),
        ({"backend": "nope"}, "there is no backend"),
        ({"select": 3}, "select= is a function"),
        ({"m": 2}, "m, the number of points"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"max_points": 0}, "max_points"),
        ({"extra": {"loss": 1.0}}, "extra is a function"),
        ({"path": 3}, "path"),
    ],
)
def test_options_are_looked_at_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lmn.LmnError, match=message):
        lmn.Callback(data()[0], **(OPTIONS | options))


def test_steps_are_counted_from_zero() -> None:
    with pytest.raises(lmn.LmnError, match="from 0 on; got -1"):
        lmn.Callback(data()[0])(built()[0], -1)


# ---- kinds of training -------------------------------------------------------------------------------------------------------


def test_a_compiled_model() -> None:
    model, optimizer = built()
    compiled = torch.compile(model, backend="eager")
    with lmn.Callback(data()[0], every=5, **OPTIONS).attach(compiled, optimizer) as callback:
        losses = train(compiled, optimizer, 10)
    assert losses == train(*built(), 10)
    assert callback.history["lmn"].notna().all()


def test_a_compiled_step() -> None:
    model, optimizer = built()
    x, y = data()

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    with lmn.Callback(x, every=2, **OPTIONS).attach(model, optimizer) as callback:
        for _ in range(4):
            step()
    assert callback.history["step"].tolist() == [0, 2, 4]


def test_nothing_of_it_is_compiled_with_a_step() -> None:
    model, optimizer = built()
    x, y = data()
    callback = lmn.Callback(x, every=2, **OPTIONS)
    graphs = list[Any]()

    @torch.compile(backend=lambda graph, _inputs: graphs.append(graph) or graph.forward)
    def step(number: int) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        callback(model, number)

    for number in range(5):
        step(number)
    assert [row["step"] for row in callback.rows] == [0, 2, 4]
    assert len(graphs) < 10  # of which measuring would have more than a hundred
    callback.close()


def test_a_moving_average_of_a_model() -> None:
    model, optimizer = built()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    callback = lmn.Callback(data()[0], every=2, **OPTIONS)
    for step in range(5):
        train(model, optimizer, 1)
        average.update_parameters(model)
        callback(average, step)
    callback.close()
    expected = lmn.measure(average.module, data()[0], **OPTIONS, progress=False).lmn
    assert callback.history["lmn"].iloc[-1] == pytest.approx(expected)
    assert int(average.n_averaged) == 5


_DISTRIBUTED = """
import os, sys
sys.path[:0] = {path!r}
import torch
from torch.nn.parallel import DistributedDataParallel
import lmn
from test_callback import OPTIONS, built, data, train
callback = lmn.Callback(data()[0], every=5, path={file!r}, **OPTIONS)  # before the processes know each other
torch.distributed.init_process_group("gloo", init_method={init!r}, rank=int(sys.argv[1]), world_size=2)
model, _ = built()
model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
with callback.attach(model, optimizer):
    train(model, optimizer, 10)
print(len(callback.rows))
torch.distributed.destroy_process_group()
"""


def test_of_several_ranks_the_first_measures(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    script = _DISTRIBUTED.format(path=[str(Path(__file__).parent)], init=f"file://{tmp_path}/rendezvous", file=str(path))
    command = [sys.executable, "-c", script]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    assert [int(rank.communicate(timeout=120)[0]) for rank in ranks] == [3, 0]
    assert [row["step"] for row in journal.read(path)] == [0, 5, 10]


class Asks(torch.utils.data.Dataset[Tensor]):
    """A data set that has a callback, as a LightningModule's might: its workers are copies of the process."""

    def __init__(self, callback: lmn.Callback, model: nn.Module) -> None:
        self.callback, self.model = callback, model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        assert self.callback(self.model, 100 + index) is None
        self.callback.close()
        return torch.zeros(1)


def test_worker_processes_of_data_loaders_do_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    model, _ = built()
    callback = lmn.Callback(data()[0], every=1, path=path, **OPTIONS)
    callback(model, 0)
    list(torch.utils.data.DataLoader(Asks(callback, model), num_workers=2, multiprocessing_context="fork"))
    callback(model, 1)
    callback.close()
    assert [row["step"] for row in journal.read(path)] == [0, 1]


def test_taps_have_the_names_that_the_model_gives_them() -> None:
    """Whatever wraps it, or is compiled in it."""
    model = built()[0].eval()
    expected = lmn.measure(model, data()[0], tap="2", progress=False, **OPTIONS).lmn
    assert lmn.measure(AveragedModel(model), data()[0], tap="2", progress=False, **OPTIONS).lmn == expected
    wrapped = nn.Sequential(torch.compile(nn.Sequential(*model[:3]), backend="eager"), *model[3:])
    assert lmn.measure(wrapped, data()[0], tap="0.2", progress=False, **OPTIONS).lmn == pytest.approx(expected)


def test_optimizers_of_accelerate() -> None:
    model, optimizer = Accelerator(cpu=True).prepare(*built())
    with lmn.Callback(data()[0], every=5, **OPTIONS).attach(model, optimizer) as callback:
        train(model, optimizer, 5)
    assert callback.history["step"].tolist() == [0, 5]
