"""Measuring while a model trains: the callback for any loop."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmn.as_written import not_compiled
from lmn.errors import LmnError
from lmn.grid import as_grid
from lmn.journal import Row, plain
from lmn.kept import SETTINGS, Kept
from lmn.loggers import log_of, named, prefix_of
from lmn.measure import Options, measure_subject
from lmn.measurement import Measurement, is_measured
from lmn.preserve import beside_training
from lmn.schedule import Schedule
from lmn.selection import Select, check_select
from lmn.snapshot import Snapshot
from lmn.subject import Subject
from lmn.submodules import unwrapped
from lmn.wording import counted, warn

if TYPE_CHECKING:
    from lmn.history import History

_RESERVED = {"step", "wall_time", "error", "notes", *SETTINGS}
_OPTIONS = [option.name for option in fields(Options) if option.name not in ("metrics", "progress")]


class Callback:
    """Measure a model while it trains, at a bounded cost, and without an effect on the training.

    Two lines in any loop::

        callback = lmn.Callback(samples, tap="embedding", path="history.jsonl")
        callback.attach(model, optimizer)  # measures now, and after the optimizer's steps

    or, by hand, ``callback(model, step, train_loss=loss)`` where a step ends.

    Parameters
    ----------
    grid, tap, metrics, select
        As for :func:`lmn.measure`.
    every : int, optional
        Steps between measurements. Default 200.
    overhead : float, above 0 and up to 1, optional
        Instead: as often as measuring takes at most this share of the time from the first measurement on. That one is taken at
        once, and waited for; the last step is measured if that share allows.
    extra : callable, optional
        () to other numbers of the moment, e.g. ``lambda: {"test_loss": ...}``; asked for at each measurement, and kept in the
        history beside it. One of a name that the callback uses itself gets an underscore: ``step_``.
    log : callable, SummaryWriter, wandb run or Lightning logger, optional
        Is given the numbers of each measurement, with keys ``lmn/<name>``: a function as (values, step).
    path : str or Path, optional
        A file that each measurement is appended to as a line of JSON. If it has measurements, the callback goes on after them:
        steps up to the last of them are not measured again. Of a training that begins at step 0, those of the training before
        are renamed, ``history.1.jsonl``.
    name : str, optional
        Of one of several callbacks in a training: its keys are ``lmn/<callback>/<name>``.
    asynchronous : bool
        Measure a copy of the model, which takes its memory again, in another thread while the training goes on: at most one at
        a time; what is due meanwhile is measured as soon as that one is done, at the step of then. The first is not; copies are
        made, checked and, if need be, traced before the training goes on. A model that draws random numbers in evaluation
        mode, or can't be copied, is always waited for.
    strict : bool
        Let a measurement's errors stop the training. By default they are recorded (column ``error``), and warned of once; but
        for an LmnError of the first measurement of all, which is about what was asked for.
    **options
        Of :func:`lmn.measure`: backend, m, max_points, seed, max_regions, threads, connectivity. Asynchronous measurements use
        half of torch's threads by default.

    Attributes
    ----------
    history : History
        A DataFrame of all measurements: step, wall_time (seconds of training, over all runs of one path), the numbers, notes
        (what to know of them), error.
    last : Measurement or None
        The latest.

    Raises
    ------
    LmnError
        Values out of range; a path that can't be written to or has something else in it; at the first step, one that another
        process writes to.

    Examples
    --------
    >>> with lmn.Callback(samples, overhead=0.05).attach(model, optimizer) as callback:
    ...     train(model, optimizer)
    >>> callback.history.plot()
    """

    def __init__(
        self,
        grid: Any,
        *,
        tap: str | None = None,
        metrics: Any = None,
        select: Select | None = None,
        every: int | None = None,
        overhead: float | None = None,
        extra: Callable[[], Mapping[str, Any]] | None = None,
        log: Any = None,
        path: str | os.PathLike[str] | None = None,
        name: str | None = None,
        asynchronous: bool = False,
        strict: bool = False,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise LmnError(f"there is no option {', '.join(unknown)}; what measure takes here is {', '.join(_OPTIONS)}.")
        self._grid = as_grid(grid)
        self._tap, self._select = tap, select
        check_select(select)
        self._options = Options(metrics=metrics, progress=False, **options)
        self._schedule = Schedule.of(every, overhead)
        self._prefix = prefix_of(name)
        if extra is not None and not callable(extra):
            raise LmnError(f"extra is a function of nothing to other numbers, e.g. lambda: {{'loss': loss}}; got {extra!r}.")
        self._extra, self._log, self._strict = extra or dict, log_of(log, self._prefix), strict
        self._asynchronous = asynchronous
        self._process: int | None = None  # which measures
        self._kept = Kept(path if _is_main_process() else None, strict)
        self._closed = False
        self._warned: set[str] = set()  # of what
        self._pool: ThreadPoolExecutor | None = None
        self._in_flight: Future[Row] | None = None
        self._beside: bool | None = None  # whether this model may be measured in another thread
        self._snapshot = Snapshot()
        self._attached: tuple[Any, ...] | None = None  # a model, and what to undo
        self._untrained: tuple[nn.Module, Row] | None = None  # a copy, and other numbers, to be measured when it is trained
        self._step = 0
        self.last: Measurement | None = None

    # -- in a loop -----------------------------------------------------------------------------------------------------------

    @not_compiled
    def __call__(self, model: nn.Module, step: int, **extra: Any) -> Measurement | None:
        """Tell that a step ended: measures if it is time to.

        Parameters
        ----------
        model : nn.Module
        step : int
            How many steps the model has been trained; 0 before the first.
        **extra
            Other numbers of the moment, kept with the measurement.

        Returns
        -------
        Measurement or None
            What was measured now; None where it was not, where it failed, or where it goes on in another thread.
        """
        return self._hear(model, step, extra)

    def _hear(self, model: nn.Module, step: int, extra: Mapping[str, Any]) -> Measurement | None:
        """As a call. On most steps nothing is due, in no process, and the first lines are all that they cost."""
        schedule = self._schedule
        if type(step) is int and self._in_flight is None and step > schedule.reached and not schedule.is_due(step):
            return None
        if not self._is_mine():
            return None
        self._check_open()
        step = _whole(step)
        self._begin(step)
        self._collect()
        if step <= schedule.reached:
            self._warn_of_done(step)
            return None
        return self._take(model, step, extra) if schedule.is_due(step) else None

    @not_compiled
    def freshen(self, model: nn.Module, step: int) -> None:
        """Measure a step though it is not due, and wait for it, where something goes by the numbers at it.

        With ``overhead``, only if the share allows.
        """
        if self._is_mine() and not self._closed:
            self._take_at_once(model, step, {})

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int | None = None) -> Callback:
        """Measure the model now and after the optimizer's steps.

        Parameters
        ----------
        step : int, optional
            How many steps the model has been trained. Default: as many as the optimizer remembers (Adam and its kin do, also
            after ``load_state_dict``, before or after this), else 0: plain SGD counts none, so tell where a training goes on.
        """
        self.detach()
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise LmnError(f"attach takes the optimizer whose steps are counted; got {type(optimizer).__name__}.")
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):  # of Accelerate
            optimizer = optimizer.optimizer  # type: ignore[attr-defined]
        self._check_open()
        self._step = _steps_of(optimizer, 0) if step is None else _whole(step)
        self._attached = (
            model,
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_post_hook(self._after_loading),
        )
        try:
            if self._step == 0 and step is None and self._process is None and self._is_mine() and self._kept.reached > 0:
                self._put_off(model)
            else:
                self(model, self._step)
        except BaseException:
            self.detach()
            raise
        return self

    def _put_off(self, model: nn.Module) -> None:
        """Its first measurement until the first step, as the state of an earlier training may still be to be loaded."""
        try:
            self._untrained = Snapshot().of(unwrapped(model)), self._others()
        except Exception:  # a model that can't be copied is measured from its first steps on
            self._untrained = None

    def detach(self) -> None:
        """Stop following the optimizer's steps."""
        if self._attached is not None:
            for handle in self._attached[1:]:
                handle.remove()
            self._attached = self._untrained = None

    @not_compiled
    def _after_step(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self._step += 1
        untrained, self._untrained = self._untrained, None
        if untrained is not None:  # nothing was loaded: it is a new training
            self._hear(untrained[0], 0, untrained[1])
        if self._attached is not None:
            self._hear(self._attached[0], self._step, {})

    def _after_loading(self, optimizer: torch.optim.Optimizer) -> None:
        self._step, self._untrained = _steps_of(optimizer, self._step), None

    @not_compiled
    def close(self, model: nn.Module | None = None, step: int | None = None, **extra: Any) -> None:
        """Wait for what is in flight, measure the last step, if it was not, and let go of the file and the optimizer.

        With ``overhead``, the last step is measured only if the share allows.

        Parameters
        ----------
        model : nn.Module, optional
        step : int, optional
            The last step. Default: of the model that this is attached to, if it is.
        **extra
            As for a call.
        """
        if model is None and self._attached is not None:
            model, step = self._attached[0], self._step
        self.detach()
        if not self._is_mine() or self._closed:
            return
        try:
            if model is not None and step is not None:
                self._take_at_once(model, step, extra)
            self._finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self._closed = True
            self._snapshot.forget()
            self._schedule.stop()
            self._kept.close()

    def _take_at_once(self, model: nn.Module, step: int, extra: Mapping[str, Any]) -> None:
        """Measure a step, and wait for it, if it was not and the share allows."""
        step = _whole(step)
        self._begin(step)
        self._finish()
        if step > self._schedule.reached and self._schedule.is_due(step, at_end=True):
            self._take(model, step, extra, wait=True)

    def _begin(self, step: int) -> None:
        """Once, in the process that measures, which need not be the one that this was made in."""
        if self._process is not None:
            return
        self._kept.open(step)
        self._schedule.begin(self._kept.reached)
        self._process = os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise LmnError("this callback is closed; make another one: with the same path= it goes on in the same file.")

    def _warn_of_done(self, step: int) -> None:
        """Once, of steps that an earlier training, or run of this one, has measured."""
        earlier = self._schedule.reached
        if step < earlier and "done" not in self._warned:
            self._warned.add("done")
            warn(
                f"{self._kept.name} has measurements up to step {earlier}, and the training is at step {step}: they are kept, "
                f"and measuring goes on after step {earlier}. If this is another training, give it another path=; if its steps "
                "are counted anew, tell where it is, e.g. attach(..., step=...)."
            )

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:  # the training failed: there is no last step to measure
            self.detach()
        self.close()

    # -- what was measured ---------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """The history as dicts."""
        return self._kept.rows

    def recall(self, rows: Sequence[Row]) -> None:
        """Go on after the measurements of an earlier run, unless its file has them."""
        self._kept.recall(rows)

    @property
    def history(self) -> History:
        from lmn.history import History

        return History.of(self.rows)

    def __str__(self) -> str:
        if not _is_main_process():
            return "the first process measures"
        schedule, rows = self._schedule, self.rows
        failed = sum("error" in row for row in rows)
        how = (
            f"every {counted(schedule.every, 'step')}"
            if schedule.every is not None
            else f"at most {schedule.share:.0%} of the time"
        )
        how += ", in another thread" if self._asynchronous and self._beside is not False else ""
        return (
            f"{counted(len(rows), 'measurement')}, {how}: "
            f"{schedule.spent:.2f} s of {schedule.elapsed:.2f} s ({schedule.share_so_far:.1%}"
            + (
                ", as the first is not put off)"
                if schedule.share is not None and schedule.share_so_far > schedule.share
                else ")"
            )
            + (f"; {failed} failed" if failed else "")
        )

    def __repr__(self) -> str:
        return f"<lmn.Callback: {self}>"

    # -- one measurement -----------------------------------------------------------------------------------------------------

    def _is_mine(self) -> bool:
        """Neither a worker process of a data loader, which has a copy of this, nor another rank than the first."""
        if self._process is None:
            return torch.utils.data.get_worker_info() is None and _is_main_process()
        return self._process == os.getpid() and _rank() in (None, 0)

    def _take(self, model: nn.Module, step: int, extra: Mapping[str, Any], *, wait: bool = False) -> Measurement | None:
        if self._in_flight is not None:  # due again at the next step, until that one is done
            return None
        self._schedule.reach(step)
        row = {"step": step, "wall_time": self._kept.seconds + self._schedule.elapsed}
        beside = self._asynchronous and not wait and bool(self._beside)
        inner, began = unwrapped(model), time.perf_counter()
        others = self._others() | {name: plain(value) for name, value in extra.items()}
        measured = self._copied(inner) if beside else inner
        subject = self._looked_at(measured) if measured is not inner else None
        if subject is not None:
            self._pool = self._pool or ThreadPoolExecutor(1, "lmn")
            self._in_flight = self._pool.submit(self._run, lambda: subject, row, others, began, beside=True)
            return None
        row = self._run(lambda: self._subject(measured), row, others, began, beside=False)
        self._logged(row)
        if self._beside is None and "error" not in row:
            self._beside = True
        return self.last if "error" not in row else None

    def _subject(self, model: nn.Module) -> Subject:
        return Subject(model, self._grid, tap=self._tap, select=self._select)

    def _looked_at(self, model: nn.Module) -> Subject | None:
        """A copy, traced and checked in the thread that trains; None where it has to be measured there.

        A trace replaces parts of torch and of Python for all threads, and what is compiled then, by a training, is not what is
        compiled otherwise.
        """
        try:
            with self._subject(model) as subject:
                self._beside = not subject.network.draws
        except Exception:  # the measurement will tell
            return None
        return subject if self._beside else None

    def _others(self) -> Row:
        """What ``extra`` gives; nothing where it fails, which costs no measurement."""
        try:
            return {str(name): plain(value) for name, value in dict(self._extra()).items()}
        except Exception as error:
            self._tolerate(error, "extra= failed, and its numbers are missing; measuring and the training go on")
            return {}

    def _copied(self, model: nn.Module) -> nn.Module:
        """A copy; the model itself, which is then waited for, where it can't be copied."""
        try:
            return self._snapshot.of(model)
        except Exception as error:
            self._beside = False
            warn(f"the model can't be copied ({error}): measurements are waited for.")
            return model

    def _run(self, subject: Callable[[], Subject], row: Row, others: Row, began: float, *, beside: bool) -> Row:
        """Measure and note; in another thread if beside."""
        options, failure = self._options, None
        try:
            if beside:
                options = replace(options, threads=options.threads or max(1, torch.get_num_threads() // 2))
                self._snapshot.wait()
            with beside_training() if beside else nullcontext():
                found = measure_subject(subject(), options, began)
        except Exception as error:
            if isinstance(error, LmnError) and not self.rows:
                raise
            row, failure = _with_others(row | {"error": _told(error)}, others), error
        else:
            self.last = found
            numbers = {name: plain(value) for name, value in found.to_dict().items()}
            row = _with_others(row | numbers | self._said_of(found), others)
        self._schedule.took(time.perf_counter() - began)
        self._kept.add(row)
        if failure is not None:
            self._failed(failure)
        return row

    def _failed(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        self._tolerate(error, "a measurement failed, and is recorded as such; the training goes on")

    def _tolerate(self, error: Exception, said: str) -> None:
        """Warn once, unless strict."""
        if self._strict:
            raise error
        if said not in self._warned:
            self._warned.add(said)
            warn(f"{said}: {_told(error)}")

    def _said_of(self, found: Measurement) -> Row:
        """What is no number of a measurement: its tap, and what a reader of the numbers should know."""
        said = {"tap": self._tap, "samples": self._grid.fingerprint, "notes": "; ".join(found.notes)}
        return {name: value for name, value in said.items() if value}

    def _logged(self, row: Row) -> None:
        """Tell the loggers."""
        if "error" in row:
            return
        try:
            self._log(named({name: value for name, value in row.items() if is_measured(name)}, self._prefix), row["step"])
        except Exception as error:
            self._tolerate(error, "a measurement was not logged, and is kept; the training goes on")

    def _collect(self) -> None:
        """What another thread has finished is told of here, in the thread that trains."""
        if self._in_flight is not None and self._in_flight.done():
            self._finish()

    def _finish(self) -> None:
        """Wait for what is in flight."""
        if self._in_flight is not None:
            future, self._in_flight = self._in_flight, None
            self._logged(future.result())


def _with_others(row: Row, others: Row) -> Row:
    """A row with other numbers: those of a name that a measurement has itself get an underscore."""
    return row | {f"{name}_" if name in _RESERVED or is_measured(name) else name: value for name, value in others.items()}


def _whole(step: Any) -> int:
    """A step of any library's whole numbers."""
    try:
        whole = operator.index(step)
    except TypeError as error:
        raise LmnError(f"step is a whole number, of steps so far; got {step!r}.") from error
    if whole < 0:
        raise LmnError(f"step is a whole number, of steps so far, from 0 on; got {step!r}.")
    return whole


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _is_main_process() -> bool:
    rank = _rank()
    if rank is None:  # of what torchrun started, before the processes know each other
        return os.environ.get("RANK", "0") == "0"
    return rank == 0


def _rank() -> int | None:
    """Among the processes that know each other, if any do."""
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if known else None


def _steps_of(optimizer: torch.optim.Optimizer, otherwise: int) -> int:
    """How many steps an optimizer has taken, by its state, if that has them."""
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(steps, default=otherwise)
