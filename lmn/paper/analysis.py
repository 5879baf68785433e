"""What a run's curves show: phases, turning points, correlations; and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from lmn.paper.train import Run

Array = np.ndarray[Any, Any]

_HEADS = ("step", "LMN", "maps", "L2 norm", "train loss", "test loss", "train acc", "test acc")
_MOST_ROWS = 35
_MOST_TURNS = 6
UNDERFLOW = 2 * float(np.finfo(np.float32).eps)  # nats


class Phase(IntEnum):
    """The phases of a run, as the paper names them."""

    MEMORISING = 0
    GENERALISING = 1
    FINALISING = 2


@dataclass(frozen=True)
class Turn:
    """A turning point of a curve; ``index`` is into the curve."""

    index: int
    kind: str  # "minimum" or "maximum"


def phases(train_accuracy: Array, test_accuracy: Array) -> Array:
    """The phase of each row: memorising until the training accuracy is first 1, generalising until the test accuracy is.

    Parameters
    ----------
    train_accuracy, test_accuracy : ndarray of shape (n_rows,)

    Returns
    -------
    ndarray of shape (n_rows,), int64, of Phase
    """
    memorised = np.maximum.accumulate(train_accuracy == 1)
    generalised = np.maximum.accumulate(test_accuracy == 1) & memorised
    return memorised.astype(np.int64) + generalised


def r_squared(x: Array, y: Array) -> float | None:
    """Squared Pearson correlation over the pairs that are finite; None for fewer than three, or where one does not vary."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def turning_points(curve: Array, prominence: float = 0.03) -> list[Turn]:
    """Local minima and maxima of a noisy curve, alternating, its ends excepted.

    An extremum counts once the curve has moved away from it by ``prominence`` times the curve's range, on both sides. A running
    median over three values goes before, so that no single value makes one.

    Parameters
    ----------
    curve : ndarray of shape (n,), finite
    """
    if len(curve) < 3:
        return []
    padded = np.concatenate([curve[:1], curve, curve[-1:]])
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
    threshold = prominence * np.ptp(smooth)
    turns: list[Turn] = []
    low = high = 0
    rising: bool | None = None  # not known before the curve has first moved by the threshold
    for index, value in enumerate(smooth):
        high = index if value > smooth[high] else high
        low = index if value < smooth[low] else low
        if rising is not False and value < smooth[high] - threshold:
            turns.append(Turn(high, "maximum"))
            rising, low = False, index
        elif rising is not True and value > smooth[low] + threshold:
            turns.append(Turn(low, "minimum"))
            rising, high = True, index
    return [turn for turn in turns if turn.index > 0]


def underflowed(run: Run) -> int | None:
    """The index of the first row whose training loss float32 can't resolve: a mean of 1 - p with p within a rounding of 1."""
    return next((index for index, row in enumerate(run.rows) if row.train_loss < UNDERFLOW), None)


def table(run: Run) -> str:
    """The rows of a run, where they are many every so many; those of which the summary speaks are kept."""
    remarks: dict[int, list[str]] = {0: ["start"]}
    for index, remark in (
        (_highest(run), "highest LMN"),
        (run.first("train_accuracy"), "memorised"),
        (run.first("test_accuracy"), "generalised"),
    ):
        if index is not None:
            remarks.setdefault(index, []).append(remark)
    n, stride = len(run.rows), -(-len(run.rows) // _MOST_ROWS)
    lines = ["  ".join(f"{head:>10}" for head in _HEADS)]
    for index in sorted({*remarks, *range(0, n, stride), n - 1}):
        row = run.rows[index]
        cells = (
            f"{row.step}",
            *(f"{value:.2f}" for value in (row.lmn, row.effective_linear_maps, row.l2_norm)),
            *(f"{value:.3g}" for value in (row.train_loss, row.test_loss)),
            *(f"{value:.1%}" for value in (row.train_accuracy, row.test_accuracy)),
        )
        lines.append("  ".join([*(f"{cell:>10}" for cell in cells), ", ".join(remarks.get(index, []))]).rstrip())
    if stride > 1:
        lines.append(f"(1 in {stride} of {n} measurements; all are in history.csv)")
    return "\n".join(lines)


def summary(run: Run) -> str:
    """What was seen, in sentences."""
    lmn, last = run.column("lmn"), run.rows[-1]
    memorised, generalised, highest = run.first("train_accuracy"), run.first("test_accuracy"), _highest(run)
    assert highest is not None  # the LMN at step 0 is always there
    sentences = [
        _reached("Memorisation (100 % training accuracy)", run, memorised),
        _reached("Generalisation (100 % test accuracy)", run, generalised),
    ]
    moments = [f"{lmn[0]:.1f} at the start", f"{lmn[highest]:.1f} at its highest (step {run.rows[highest].step})"]
    moments += [
        f"{lmn[index]:.1f} at {name}"
        for name, index in (("memorisation", memorised), ("generalisation", generalised))
        if index is not None
    ]
    sentences.append(f"LMN: {', '.join(moments)}, {last.lmn:.1f} at the end (step {last.step}).")
    sentences += [_correlations(run), _turns(run), _maps(run)]
    underflow = underflowed(run)
    if underflow is not None:
        sentences.append(
            f"From step {run.rows[underflow].step} on the training loss is below float32's resolution ({UNDERFLOW:.1e}): its "
            "gradient is rounding error, the training destabilises, and the LMN falls for that reason."
        )
    return "\n".join([*sentences, *run.notes])


def correlations(run: Run) -> tuple[int, float | None, float | None]:
    """Over the generalising phase, as far as float32 resolves the training loss: the number of rows with an LMN, and r² of the
    test loss with LMN and with the L2 norm."""
    lmn = run.column("lmn")
    chosen = phases(run.column("train_accuracy"), run.column("test_accuracy")) == Phase.GENERALISING
    chosen &= np.isfinite(lmn)  # both correlations are over the same rows
    chosen[len(chosen) if (end := underflowed(run)) is None else end :] = False
    loss = run.column("test_loss")[chosen]
    return int(chosen.sum()), r_squared(lmn[chosen], loss), r_squared(run.column("l2_norm")[chosen], loss)


def maps_correlation(run: Run) -> float | None:
    """r² of LMN and effective linear maps over the run, as far as float32 resolves the training loss."""
    end = underflowed(run)
    return r_squared(run.column("lmn")[:end], run.column("effective_linear_maps")[:end])


def _maps(run: Run) -> str:
    maps, r2 = run.column("effective_linear_maps"), maps_correlation(run)
    with_lmn = f"; r² with LMN over the run: {r2:.3f}" if r2 is not None else ""
    highest = int(np.nanargmax(maps))
    return (
        f"Effective linear maps: {maps[0]:.1f} at the start, {maps[highest]:.1f} at their highest (step "
        f"{run.rows[highest].step}), {maps[-1]:.1f} at the end{with_lmn}."
    )


def _correlations(run: Run) -> str:
    n, with_lmn, with_l2 = correlations(run)
    if with_lmn is None or with_l2 is None:
        return f"Test loss against LMN and L2 norm over the generalising phase: not enough points for r² ({n})."
    closer = "LMN" if with_lmn > with_l2 else "the L2 norm"
    return (
        f"Over the generalising phase ({n} points) the test loss has r² = {with_lmn:.3f} with LMN and {with_l2:.3f} with the "
        f"L2 norm: it is closer to a line in {closer}."
    )


def _turns(run: Run) -> str:
    measured = [row for row in run.rows if np.isfinite(row.lmn)]
    turns = turning_points(np.array([row.lmn for row in measured]))
    peak = next((place for place, turn in enumerate(turns) if turn.kind == "maximum"), None)
    if peak is None:
        return "The LMN curve has no peak yet."
    after = turns[peak + 1 :]
    if not after:
        return "After its first peak the LMN does not turn again."
    words = [f"a {t.kind} of {measured[t.index].lmn:.1f} at step {measured[t.index].step}" for t in after[:_MOST_TURNS]]
    more = f", and {len(after) - _MOST_TURNS} more" if len(after) > _MOST_TURNS else ""
    return f"After its first peak the LMN has {', '.join(words)}{more}."


def _reached(what: str, run: Run, index: int | None) -> str:
    if index is None:
        return f"{what} was not reached in {run.rows[-1].step} steps."
    return f"{what} was first measured at step {run.rows[index].step}."


def _highest(run: Run) -> int | None:
    lmn = run.column("lmn")
    return int(np.nanargmax(lmn)) if np.isfinite(lmn).any() else None
