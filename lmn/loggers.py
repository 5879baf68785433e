"""Where a training loop's numbers go: TensorBoard, Weights & Biases, a Lightning logger, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lmn.errors import LmnError

PREFIX = "lmn/"

Log = Callable[[dict[str, float], int], object]


def named(values: Mapping[str, float]) -> dict[str, float]:
    """The numbers by the keys that loggers know them by."""
    return {PREFIX + name: value for name, value in values.items()}


def log_of(log: Any) -> Log:
    """What takes the numbers of a step, by their keys, once a step.

    Parameters
    ----------
    log : callable, SummaryWriter, wandb run or module, Lightning logger, a sequence of such, or None
    """
    if log is None:
        return lambda _values, _step: None
    if isinstance(log, tuple | list):
        each = [log_of(one) for one in log]
        return lambda values, step: [one(values, step) for one in each]
    if hasattr(log, "add_scalar"):  # TensorBoard

        def to_tensorboard(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                log.add_scalar(key, value, step)

        return to_tensorboard
    if hasattr(log, "log_metrics"):  # Lightning
        return lambda values, step: log.log_metrics(values, step=step)
    if hasattr(log, "define_metric"):  # Weights & Biases
        log.define_metric(PREFIX + "*", step_metric=PREFIX + "step")
        return _to_wandb(log)
    if callable(log):
        return lambda values, step: log(values, step)
    raise LmnError(
        f"log is a function of (values, step), a TensorBoard SummaryWriter, a wandb run or a Lightning logger; "
        f"got {type(log).__name__}."
    )


def _to_wandb(log: Any) -> Log:
    """To the row that the user logs next, whatever its step: an earlier one would be dropped. ``lmn/step`` is what counts."""
    pending: int | None = -1  # the row that the last numbers went to

    def write(values: dict[str, float], step: int) -> None:
        nonlocal pending
        if pending == _row_of(log):  # nobody logged since, so that these would take the place of those
            log.log({}, commit=True)
        pending = _row_of(log)
        log.log(values | {PREFIX + "step": step}, commit=False)

    return write


def _row_of(log: Any) -> int | None:
    """The number of the row that is written next by a wandb run, or by the module's."""
    step: int | None = getattr(getattr(log, "run", None) or log, "step", None)
    return step
