"""Where a training loop's numbers go: TensorBoard, Weights & Biases, a Lightning logger, or a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lmn.errors import LmnError

PREFIX = "lmn/"

Log = Callable[[dict[str, float], int], object]


def prefix_of(name: str | None) -> str:
    """What the keys begin with of a callback that has a name, or none.

    Raises
    ------
    LmnError
        A name that is no word or several, of letters, digits, dots, dashes, underscores and slashes.
    """
    if name is None:
        return PREFIX
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name):
        raise LmnError(f"name is what keys have between 'lmn/' and a number's own name, e.g. 'encoder'; got {name!r}.")
    return f"{PREFIX}{name}/"


def named(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The numbers by the keys that loggers know them by."""
    return {prefix + name: value for name, value in values.items()}


def log_of(log: Any, prefix: str) -> Log:
    """What takes the numbers of a step, by their keys, once a step.

    Parameters
    ----------
    log : callable, SummaryWriter, wandb run or module, Lightning logger, a sequence of such, or None
    prefix : str
        Of the keys.
    """
    if log is None:
        return _nowhere
    if isinstance(log, tuple | list):
        each = [log_of(one, prefix) for one in log]
        return lambda values, step: [one(values, step) for one in each]
    if hasattr(log, "add_scalar"):  # TensorBoard

        def to_tensorboard(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                log.add_scalar(key, value, step)

        return to_tensorboard
    if hasattr(log, "log_metrics"):  # Lightning
        return lambda values, step: log.log_metrics(values, step=step)
    if hasattr(log, "define_metric"):  # Weights & Biases
        log.define_metric(prefix + "*", step_metric=prefix + "step")
        return _to_wandb(log, prefix)
    if callable(log):
        made: Log = log
        return made
    raise LmnError(
        f"log is a function of (values, step), a TensorBoard SummaryWriter, a wandb run or a Lightning logger; "
        f"got {type(log).__name__}."
    )


def _nowhere(_values: dict[str, float], _step: int) -> None:
    pass


def _to_wandb(log: Any, prefix: str) -> Log:
    """To the row that the user logs next, whatever its step: an earlier one would be dropped. ``lmn/step`` is what counts."""
    pending: int | None = -1  # the row that the last numbers went to

    def write(values: dict[str, float], step: int) -> None:
        nonlocal pending
        if pending == _row_of(log):  # nobody logged since, so that these would take the place of those
            log.log({}, commit=True)
        pending = _row_of(log)
        log.log(values | {prefix + "step": step}, commit=False)

    return write


def _row_of(log: Any) -> int | None:
    """The number of the row that is written next by a wandb run, or by the module's."""
    step: int | None = getattr(getattr(log, "run", None) or log, "step", None)
    return step
