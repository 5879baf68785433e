"""What measuring costs a training: wall time with lmn.Callback over the same training without, in turn.

    pytest bench/bench_callback.py --benchmark-only
    pytest bench/bench_callback.py --benchmark-disable --smoke        # does it still run?

The training is the paper's: addition modulo 31, 768 pairs, its network and optimizer, on one thread. What else the machine does
changes the time of a run by a fifth from one minute to the next, so the two trainings go on in turn, some steps at a time. The
losses are compared bit for bit. A process that measures has loaded what that takes: the first measurement of all, which takes a
second more, is made before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional

import lmn
from bench.conftest import RATIOS
from lmn.kernels.threads import torch_threads
from lmn.paper import TaskName
from lmn.paper.tasks import split, task
from lmn.paper.train import network

TURN = 25  # steps of one training before it is the other's turn

SAMPLES = (768, 192)  # all pairs of the training, and a quarter, which are measured in a sixteenth of the time
HOW: dict[str, dict[str, Any]] = {
    "every=200": {"every": 200},
    "every=200, asynchronous": {"every": 200, "asynchronous": True},
    "overhead=0.05": {"overhead": 0.05},
    "overhead=0.05, asynchronous": {"overhead": 0.05, "asynchronous": True},
}


class Clock:
    """``time.perf_counter`` that stands still while it is the turn of the training that isn't measured."""

    def __init__(self) -> None:
        self.now = time.perf_counter
        self.still = 0.0

    def __call__(self) -> float:
        return self.now() - self.still


class Training:
    """Of the paper's network, with a callback or without."""

    def __init__(self, steps: int, how: dict[str, Any] | None = None, samples: int = 0) -> None:
        modadd = task(TaskName.MODADD)
        torch.manual_seed(0)
        self.model = network(modadd.n_tokens)
        self.data, _ = split(modadd)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.2, fused=True)
        self.callback = None
        if how is not None:
            self.callback = lmn.Callback(self.data.tokens[:samples], tap="linear2", metrics=("lmn",), threads=2, **how)
        self.left = steps
        self.losses = list[float]()
        self.seconds = 0.0
        self.cpu = 0.0  # of this thread, which others on the machine disturb less

    def go_on(self, clock: Clock, turn: int = TURN) -> None:
        """A turn, which goes on while a copy is measured: that is to slow this training, not the other.

        The first begins with the measurement before the first step, and the last ends with that of the last.
        """
        began, cpu_began = clock.now(), time.thread_time()
        if self.callback is not None and not self.losses:
            self.callback.attach(self.model, self.optimizer)
        until = self.left - turn
        while self.left and (self.left > until or self._is_measuring()):
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(self.data.tokens), self.data.classes)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            self.left -= 1
        if self.callback is None:
            clock.still += clock.now() - began
        elif not self.left:
            self.callback.close()
        self.seconds += clock.now() - began
        self.cpu += time.thread_time() - cpu_began

    def _is_measuring(self) -> bool:
        return self.callback is not None and self.callback._in_flight is not None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("steps", [2000, 5000])
@pytest.mark.parametrize("samples", SAMPLES)
def bench_training(
    benchmark: BenchmarkFixture, samples: int, steps: int, how: str, smoke: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps // 500 if smoke else steps
    clock = Clock()
    Training(2, HOW[how], samples).go_on(clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    without, measured = Training(steps), Training(steps, HOW[how], samples)

    def in_turn() -> None:
        with torch_threads(1):
            while without.left or measured.left:
                for training in (without, measured, measured, without):
                    if training.left:
                        training.go_on(clock)

    benchmark.group = f"{steps} steps"
    benchmark.pedantic(in_turn, rounds=1)
    assert measured.losses == without.losses
    if benchmark.stats is not None:
        RATIOS.append(
            f"{samples} samples, {steps} steps, {how}: {measured.seconds / without.seconds:.3f} of the time without, "
            f"{measured.cpu / without.cpu:.3f} of its thread's processor time; {measured.callback}"
        )


@pytest.mark.parametrize("how", ["every", "overhead"])
def bench_hook(benchmark: BenchmarkFixture, how: str, smoke: bool) -> None:
    """A step of an optimizer on which nothing is measured, less the step itself.

    Each after a step of the training, which drives from the caches what a loop over nothing else would keep there.
    """
    model, x = torch.nn.Linear(2, 2), torch.randn(8, 2)
    options: dict[str, Any] = {"every": 10**9} if how == "every" else {"overhead": 1e-6}
    callback = lmn.Callback(x, metrics=("lmn",), **options)
    alone, followed = (torch.optim.SGD(model.parameters(), 0.0) for _ in range(2))
    callback.attach(model, followed)
    rounds = 2 if smoke else 500
    training, clock, more = Training(2 * rounds), Clock(), list[float]()

    def seconds_of(step: Callable[[], object]) -> float:
        training.go_on(clock, 1)
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    def in_turn() -> None:
        with torch_threads(1):
            for _ in range(rounds):
                more.append(seconds_of(followed.step) - seconds_of(alone.step))

    benchmark.pedantic(in_turn, rounds=1)
    assert len(callback.rows) == 1
    if benchmark.stats is not None:
        RATIOS.append(f"a step that is not measured, {how}: {1e6 * statistics.median(more):.1f} µs by the median of {rounds}")
