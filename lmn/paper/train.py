"""Training the paper's network, and measuring it on the way."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lmn.errors import LmnError, whole_number
from lmn.jacobians import jacobians
from lmn.kernels.threads import torch_threads
from lmn.measure import measure
from lmn.paper.tasks import Pairs, Task, split

TAP = "linear2"
_NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """What was measured at one step; NaN where the network was not finite.

    ``effective_linear_maps`` is of the tail that the LMN is of, over the same samples (:func:`lmn.jacobians`).
    """

    step: int
    lmn: float
    effective_linear_maps: float
    l2_norm: float
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float


COLUMNS = tuple(column.name for column in fields(Row))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The linear connectivity of one moment of a run.

    Attributes
    ----------
    name : str
        What makes the moment worth keeping.
    step : int
    lmn : float
    connectivity : ndarray of shape (n_train, n_train), float32
    eigenvalues : ndarray of shape (n_train,), float64
        Descending.
    """

    name: str
    step: int
    lmn: float
    connectivity: np.ndarray[Any, Any] = field(repr=False)
    eigenvalues: np.ndarray[Any, Any] = field(repr=False)


@dataclass(eq=False)
class Run:
    """A training run.

    Attributes
    ----------
    rows : list of Row
        One a measurement, in the order of steps.
    snapshots : list of Snapshot
        The start, memorisation and generalisation, or the end of the run in the place of the latter if it was not reached.
    notes : list of str
        What went wrong.
    training, measuring : float
        Seconds.
    interrupted : bool
        By Ctrl-C: the rows are those until then.
    """

    task: Task
    seed: int
    rows: list[Row] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    training: float = 0.0
    measuring: float = 0.0
    interrupted: bool = False

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One column of the rows, shape (n_rows,), float64."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.float64)

    def first(self, column: str) -> int | None:
        """The index of the first row in which an accuracy is 100 %."""
        return next((index for index, row in enumerate(self.rows) if getattr(row, column) == 1), None)


def network(n_tokens: int) -> nn.Sequential:
    """The paper's network: one embedding for both tokens, and three linear maps with SiLU between."""
    return nn.Sequential(
        OrderedDict(
            embedding=nn.Embedding(n_tokens, 32),
            concatenation=nn.Flatten(),
            linear1=nn.Linear(64, 100),
            silu1=nn.SiLU(),
            linear2=nn.Linear(100, 100),
            silu2=nn.SiLU(),
            linear3=nn.Linear(100, n_tokens),
        )
    )


def train(
    task: Task,
    *,
    seed: int = 0,
    steps: int = 20000,
    every: int = 200,
    progress: bool = True,
    measured: Callable[[Row], object] = lambda _: None,
) -> Run:
    """Train the paper's network by its recipe, and measure it at step 0, every ``every`` steps and at the last.

    AdamW, learning rate 1e-3, weight decay 0.2 on all parameters, cross-entropy over the whole training set, float32.

    Parameters
    ----------
    task : Task
    seed : int, 0 to 2**32 - 1
        Of torch's generator, from which the initialisation and then the split are drawn. The same seed gives the same run on
        the same machine.
    steps, every : int, at least 1
    progress : bool
        Show a progress bar.
    measured : callable
        Is given each row as soon as it is measured.

    Returns
    -------
    Run
        It is shorter than asked for if the parameters stopped being finite, and says so.

    Raises
    ------
    LmnError
        A value out of its range.
    """
    _check(seed, steps, every)
    run = Run(task, seed)
    try:
        _train(run, steps, every, progress, measured)
    except KeyboardInterrupt:
        if not run.rows:
            raise
        run.interrupted = True
        run.notes.append(f"The training was interrupted after step {run.rows[-1].step}.")
    return run


def _train(run: Run, steps: int, every: int, progress: bool, measured: Callable[[Row], object]) -> None:
    task, seed = run.task, run.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(task.n_tokens)
        training, test = split(task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.2, fused=True)
        with tqdm(total=steps, desc="training", unit="step", mininterval=0.5, disable=None if progress else True) as bar:
            measured(_measure(run, model, training, test, last=False))
            for start, stop in pairwise([*range(0, steps, every), steps]):
                began = time.perf_counter()
                with _one_thread():
                    for _ in range(start, stop):
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(training.tokens), training.classes).backward()
                        optimizer.step()
                        bar.update()
                run.training += time.perf_counter() - began
                row = _measure(run, model, training, test, step=stop, last=stop == steps)
                measured(row)
                tested = {"test loss": f"{row.test_loss:.3g}", "test acc": f"{row.test_accuracy:.0%}"}
                bar.set_postfix({"LMN": f"{row.lmn:.1f}"} | tested)
                if not np.isfinite(row.l2_norm):
                    run.notes.append(f"The training diverged: at step {stop} the parameters were not finite, and it stopped.")
                    break


def _measure(run: Run, model: nn.Module, training: Pairs, test: Pairs, *, step: int = 0, last: bool) -> Row:
    """Add the measurement of one step to a run."""
    began = time.perf_counter()
    train_loss, train_accuracy = _evaluate(model, training)
    test_loss, test_accuracy = _evaluate(model, test)
    squares = torch.stack([parameter.detach().double().square().sum() for parameter in model.parameters()])
    l2_norm = float(squares.sum().sqrt())
    name = _snapshot_name(run, train_accuracy, test_accuracy, last)
    lmn = maps = _NAN
    try:
        found = measure(
            model,
            training.tokens,
            tap=TAP,
            metrics=("lmn",),
            max_points=None,
            connectivity=name != "",
            progress=False,
        )
        maps = jacobians(model, training.tokens, tap=TAP, reduce="effective_linear_maps", progress=False)
    except LmnError as error:
        if step == 0:
            raise  # an untrained network is finite: it is something else, and would be so at every step
        run.notes.append(f"The LMN at step {step} is missing: {error}")
    else:
        assert found.lmn is not None
        lmn = found.lmn
        if found.connectivity is not None and found.eigenvalues is not None:
            matrix = found.connectivity.float().numpy()
            run.snapshots.append(Snapshot(name, step, lmn, matrix, found.eigenvalues))
    row = Row(step, lmn, maps, l2_norm, train_loss, test_loss, train_accuracy, test_accuracy)
    run.rows.append(row)
    run.measuring += time.perf_counter() - began
    return row


def _snapshot_name(run: Run, train_accuracy: float, test_accuracy: float, last: bool) -> str:
    """Why the connectivity at this step is to be kept, or ""."""
    if not run.rows:
        return "start"
    memorised, generalised = run.first("train_accuracy") is not None, run.first("test_accuracy") is not None
    reached = []
    if train_accuracy == 1 and not memorised:
        reached.append("memorisation")
    if test_accuracy == 1 and not generalised:
        reached.append("generalisation")
    if last and not reached and not generalised:
        reached.append("end, not generalised")
    return " and ".join(reached)


def _evaluate(model: nn.Module, pairs: Pairs) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy."""
    with torch.no_grad(), _one_thread():
        logits: Tensor = model(pairs.tokens)
        loss = nn.functional.cross_entropy(logits, pairs.classes)
        n_right = (logits.argmax(dim=1) == pairs.classes).sum()
    return float(loss), int(n_right) / len(pairs)


def _one_thread() -> AbstractContextManager[None]:
    # A step is 1.5 ms of small products. A second thread saves a third of it on an idle machine, and makes it a hundred times
    # slower on a busy one, where the threads wait for each other.
    return torch_threads(1)


def _check(seed: int, steps: int, every: int) -> None:
    if not 0 <= seed < 2**32:
        raise LmnError(f"the seed is a whole number from 0 to 2**32 - 1; got {seed}.")
    whole_number(steps, "steps", 1)
    whole_number(every, "every, the number of steps between two measurements,", 1)
