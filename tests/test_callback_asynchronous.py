"""The callback that measures copies in another thread: of which steps, of which weights, and when it waits."""

import copy
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_callback import OPTIONS, built, data, train
from test_remembered import TracedByRunning
from torch import Tensor, nn

import lmn


def test_asynchronous_measurements_are_of_the_step_that_they_name() -> None:
    x, _ = data()
    model, optimizer = built()
    with lmn.Callback(x, every=1, asynchronous=True, threads=1, **OPTIONS).attach(model, optimizer) as callback:
        train(model, optimizer, 40, pause=0.005)
    model, optimizer = built()
    with lmn.Callback(x, every=1, threads=1, **OPTIONS).attach(model, optimizer) as each:
        train(model, optimizer, 40)
    expected = dict(zip(each.history["step"], each.history["lmn"], strict=True))
    got = dict(zip(callback.history["step"], callback.history["lmn"], strict=True))
    assert got == {step: expected[step] for step in got}
    assert {0, 40} <= set(got)
    assert len(got) > 3


def test_what_is_due_while_another_is_measured_is_measured_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmn import callback as module

    measure = module.measure_subject
    gate: list[bool] = []

    def slow(*args: Any, **kwargs: Any) -> lmn.Measurement:
        while gate:
            time.sleep(0.001)
        return measure(*args, **kwargs)

    monkeypatch.setattr(module, "measure_subject", slow)
    model, optimizer = built()
    callback = lmn.Callback(data()[0], every=10, asynchronous=True, **OPTIONS).attach(model, optimizer)
    gate.append(True)
    train(model, optimizer, 22)  # 10 is in flight, 20 is due
    assert callback.history["step"].tolist() == [0]
    gate.clear()
    assert callback._in_flight is not None
    callback._in_flight.result()
    train(model, optimizer, 1)
    callback.close()
    assert callback.history["step"].tolist() == [0, 10, 23]


def test_a_model_that_draws_in_evaluation_mode_is_waited_for() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh() + 0 * torch.randn(3)

    def run(callback: lmn.Callback | None) -> list[float]:
        torch.manual_seed(0)
        model = Noisy()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if callback is not None:
            callback.attach(model, optimizer)
        losses = train(model, optimizer, 20)
        return [*losses, float(torch.rand(()))]

    callback = lmn.Callback(data()[0], every=2, asynchronous=True, **OPTIONS)
    assert run(None) == run(callback)
    assert callback._in_flight is None
    assert len(callback.rows) == 11


def test_a_model_that_begins_to_draw_is_waited_for_from_then_on() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.is_noisy = nn.Linear(4, 3), False

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh() + (0.1 * torch.randn(3) if self.is_noisy else 0)

    def run(callback: lmn.Callback | None) -> list[float]:
        model, losses = Noisy(), list[float]()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if callback is not None:
            callback.attach(model, optimizer)
        for noisy in (False, True):
            model.is_noisy = noisy
            losses += train(model, optimizer, 10)
            if callback is not None:
                callback._finish()
        return losses

    callback = lmn.Callback(data()[0], every=1, asynchronous=True, **OPTIONS)
    assert run(None) == run(callback)
    assert callback._in_flight is None


class Hooked(nn.Module):
    """Traced each time: a hook may do anything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer.register_forward_hook(lambda _module, _inputs, output: torch.tanh(output))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def test_nothing_is_traced_beside_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.fx does to all threads would have it compile its steps again, or end."""
    from lmn import network

    threads, measured = list[str](), list[str]()
    for name in ("traced_symbolically", "traced_by_running"):
        trace = getattr(network, name)
        monkeypatch.setattr(
            network, name, lambda *args, trace=trace: (threads.append(threading.current_thread().name), trace(*args))[1]
        )
    measure = lmn.callback.measure_subject
    monkeypatch.setattr(
        lmn.callback, "measure_subject",
        lambda *args, **kwargs: (measured.append(threading.current_thread().name), measure(*args, **kwargs))[1],
    )  # fmt: skip
    for model in (built()[0], Hooked(), TracedByRunning()):
        threads.clear(), measured.clear()
        with lmn.Callback(data()[0], every=1, asynchronous=True, metrics=("lmn", "jacobians")) as callback:
            for step in range(3):
                callback(model, step)
                callback._finish()
        assert set(threads) == {"MainThread"}
        assert measured == ["MainThread", "lmn_0", "lmn_0"]
        assert all("error" not in row for row in callback.rows)


def test_random_numbers_that_a_training_draws_meanwhile_are_not_drawn_again() -> None:
    """In another thread, NumPy's and Python's generators are left alone, whatever the training does with them."""
    from lmn.preserve import beside_training, observed, preserved

    model = nn.Linear(3, 2)
    with beside_training(), preserved(model) as learn:
        with observed(model) as habits:
            first = np.random.rand()  # noqa: NPY002 - as by another thread
            model(torch.zeros(1, 3))
        learn(habits[0])
        torch.rand(3)
    assert not habits[0].draws
    assert np.random.rand() != first  # noqa: NPY002


def copies(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Grows with each copy of a model."""
    made: list[nn.Module] = []
    deepcopy = copy.deepcopy
    of_snapshots = SimpleNamespace(deepcopy=lambda model: made.append(deepcopy(model)) or made[-1])
    monkeypatch.setattr("lmn.snapshot.copy", of_snapshots)
    return made


def test_a_model_is_copied_once_and_its_weights_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = copies(monkeypatch)
    model, optimizer = built()
    callback = lmn.Callback(data()[0], every=1, asynchronous=True, threads=1, **OPTIONS).attach(model, optimizer)
    for step in range(1, 4):
        train(model, optimizer, 1)
        callback._finish()
        assert callback.rows[step]["lmn"] == lmn.measure(model, data()[0], threads=1, progress=False, **OPTIONS).lmn
    assert len(made) == 1
    assert made[0] is not model
    model[2] = nn.Tanh()
    train(model, optimizer, 1)
    callback._finish()
    assert callback.rows[4]["lmn"] == lmn.measure(model, data()[0], threads=1, progress=False, **OPTIONS).lmn
    assert len(made) == 2


class Tempered(nn.Module):
    """Has a plain tensor, and one that shares a parameter's memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.temperature, self.shared = torch.tensor(1.0), self.first.bias.data

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) / self.temperature + self.shared))


def retie(model: nn.Module) -> None:
    model.second.weight = nn.Parameter(model.second.weight.detach() * 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "temperature", torch.tensor(float(model.temperature) + 0.5)),
        lambda model: model.shared.add_(0.3),
        lambda model: model.register_buffer("size", torch.ones(1).expand(4)),
        retie,
    ],
    ids=["another tensor", "shared memory", "elements that share memory", "another parameter"],
)
def test_copies_are_of_the_model_as_it_is(change: Callable[[nn.Module], object]) -> None:
    model, x = Tempered(), data()[0]
    callback = lmn.Callback(x, every=1, asynchronous=True, threads=1, **OPTIONS)
    for step in range(5):
        callback(model, step)
        callback._finish()
        assert callback.rows[step]["lmn"] == lmn.measure(model, x, threads=1, progress=False, **OPTIONS).lmn
        change(model) if step == 0 or not hasattr(model, "size") else None
    assert callback._beside
    callback.close()
    assert callback._snapshot._copy is None


def test_the_streams_of_a_measurement_wait_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a training may run in a stream of its own, which a measurement's knows nothing of."""
    told: list[tuple[str, int, str]] = []

    def stream(device: int) -> SimpleNamespace:
        thread = threading.current_thread().name
        return SimpleNamespace(
            record_event=lambda: told.append(("copied", device, thread)) or thread,
            wait_event=lambda event: told.append((f"waits for {event}", device, thread)),
        )

    monkeypatch.setattr("lmn.snapshot.cuda_devices", lambda _: [0, 1])
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    with lmn.Callback(data()[0], every=1, asynchronous=True, **OPTIONS) as callback:
        callback(built()[0], 0)
        callback(built()[0], 1)
    copied = [("copied", device, "MainThread") for device in (0, 1)]
    assert told == [*copied, *[("waits for MainThread", device, "lmn_0") for device in (0, 1)]]


def test_in_inference_mode() -> None:
    callback, model = lmn.Callback(data()[0], every=1, asynchronous=True, **OPTIONS), built()[0]
    with torch.inference_mode():
        for step in range(3):
            callback(model, step)
            callback._finish()
    assert all("error" not in row for row in callback.rows)


def test_models_that_can_not_be_copied_are_waited_for() -> None:
    model, optimizer = built()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with (
        pytest.warns(UserWarning, match="the model can't be copied .*: measurements are waited for"),
        lmn.Callback(data()[0], every=5, asynchronous=True, **OPTIONS).attach(model, optimizer) as callback,
    ):
        train(model, optimizer, 10)
    assert "in another thread" not in str(callback)
    assert callback.history["step"].tolist() == [0, 5, 10]
    assert callback.history["lmn"].notna().all()
