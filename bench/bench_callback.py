"""What measuring costs a training: wall time with lmn.Callback over the same training without, in turn.

    pytest bench/bench_callback.py --benchmark-only
    pytest bench/bench_callback.py --benchmark-disable --smoke        # does it still run?

The training is the paper's: addition modulo 31, 768 pairs, its network and optimizer, on one thread. The losses of each run are
compared bit for bit with those of the run without. A process that measures has loaded what that takes: the first measurement
of all, which takes a second more, is made before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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

ROUNDS = 3  # of a training without and one with, in turn

SAMPLES = (768, 192)  # all pairs of the training, and a quarter, which are measured in a sixteenth of the time
HOW: dict[str, dict[str, Any]] = {
    "every=200": {"every": 200},
    "every=200, asynchronous": {"every": 200, "asynchronous": True},
    "overhead=0.05": {"overhead": 0.05},
    "overhead=0.05, asynchronous": {"overhead": 0.05, "asynchronous": True},
}


class Run(NamedTuple):
    seconds: float
    cpu: float  # of the training's thread, which others on the machine disturb less
    losses: list[float]
    said: str  # by the callback


def train(steps: int, how: dict[str, Any] | None, samples: int = 0) -> Run:
    modadd = task(TaskName.MODADD)
    torch.manual_seed(0)
    model = network(modadd.n_tokens)
    training, _ = split(modadd)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.2, fused=True)
    options: dict[str, Any] = {"tap": "linear2", "metrics": ("lmn",), "threads": 2}
    callback = None if how is None else lmn.Callback(training.tokens[:samples], **options, **how)
    losses = []
    with torch_threads(1):
        began, cpu_began = time.perf_counter(), time.thread_time()
        if callback is not None:
            callback.attach(model, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(training.tokens), training.classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if callback is not None:
            callback.close()
        return Run(time.perf_counter() - began, time.thread_time() - cpu_began, losses, str(callback))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("steps", [2000, 5000])
@pytest.mark.parametrize("samples", SAMPLES)
def bench_training(benchmark: BenchmarkFixture, samples: int, steps: int, how: str, smoke: bool) -> None:
    steps = steps // 500 if smoke else steps
    train(2, HOW[how], samples)
    without: list[Run] = []
    measured: list[Run] = []
    benchmark.group = f"{steps} steps"
    benchmark.pedantic(
        lambda: measured.append(train(steps, HOW[how], samples)),
        setup=lambda: without.append(train(steps, None)),
        rounds=1 if smoke else ROUNDS,
    )
    assert all(run.losses == without[0].losses for run in without + measured)
    if benchmark.stats is not None:
        ratios = [f"{a.seconds / b.seconds:.3f}" for a, b in zip(measured, without, strict=True)]
        median = statistics.median(a.seconds for a in measured) / statistics.median(b.seconds for b in without)
        fastest = min(a.seconds for a in measured) / min(b.seconds for b in without)
        of_thread = sum(a.cpu for a in measured) / sum(b.cpu for b in without)
        RATIOS.append(
            f"{samples} samples, {steps} steps, {how}: {median:.3f} of the time without by medians, {fastest:.3f} by minima, "
            f"{', '.join(ratios)} by pairs; {of_thread:.3f} of its thread's processor time; {measured[-1].said}"
        )


@pytest.mark.parametrize("how", ["every", "overhead"])
def bench_hook(benchmark: BenchmarkFixture, how: str) -> None:
    """A step of an optimizer on which nothing is measured, less the step itself."""
    model = torch.nn.Linear(2, 2)
    x = torch.randn(8, 2)
    seconds = []
    for attached in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        options: dict[str, Any] = {"every": 10**9} if how == "every" else {"overhead": 1e-6}
        callback = lmn.Callback(x, metrics=("lmn",), **options)
        if attached:
            callback.attach(model, optimizer)
        step: Callable[[], object] = optimizer.step
        times = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                step()
            times.append((time.perf_counter() - began) / 200)
        seconds.append(min(times))
        assert len(callback.rows) == int(attached)
        callback.detach()
    benchmark.pedantic(lambda: None, rounds=1)
    if benchmark.stats is not None:
        RATIOS.append(f"a step that is not measured, {how}: {1e6 * (seconds[1] - seconds[0]):.1f} µs")
