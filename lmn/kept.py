"""The measurements of a training: in memory, and in a file if there is to be one."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from lmn.errors import LmnError
from lmn.journal import Journal, Row, look
from lmn.wording import warn

SETTINGS = ("n_points", "n_sampled", "m", "tap", "samples")  # only measurements that agree in them compare


class Kept:
    """Rows, of which none is lost: each is written as soon as it is there, and one that can't be, with the next.

    The file is looked at when this is made, and opened at the first step: until then this may be copied, to other processes
    too, of which only one will write.

    Parameters
    ----------
    path : str or Path, optional
    strict : bool
        Raise where a row can't be written.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    reached : int
        The last step of an earlier run, or -1.
    seconds : float
        How long that run was.

    Raises
    ------
    LmnError
        A path that can't be written to, or has something else in it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, strict: bool) -> None:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise LmnError(f"path is a file's name; got {path!r}.")
        self._path, self._strict = None if path is None else os.path.abspath(path), strict
        self._rows: list[Row] = [] if self._path is None else look(self._path)
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._unwritten: list[Row] = []
        self.is_open = False
        self._look_back()

    def _look_back(self) -> None:
        self.seconds: float = max((row.get("wall_time") or 0.0 for row in self._rows), default=0.0)
        self.reached: int = _reached(self._rows)
        self._settings = self._settings_of(self._rows)

    @staticmethod
    def _settings_of(rows: Sequence[Row]) -> dict[str, Any] | None:
        """Of the last measurement that succeeded."""
        last = next((row for row in reversed(rows) if "n_points" in row), None)
        if last is None:
            return None
        values = {name: last.get(name) for name in SETTINGS}
        return {name: int(value) if isinstance(value, float) else value for name, value in values.items()}

    @property
    def name(self) -> str:
        return "this callback" if self._path is None else self._path

    def open(self, step: int) -> None:
        """Begin to write, of a training that is at a step: after the rows of an earlier run, unless it begins anew.

        Raises
        ------
        LmnError
            Another process writes to the file.
        """
        if self._path is not None:
            self._journal = Journal(self._path)
            written = self._journal.rows
            recalled = [row for row in self._rows if row["step"] > _reached(written)]
            self._rows = [*written, *recalled]
            self._look_back()
            if step == 0 < self.reached:
                self._set_aside(self._journal)
            else:
                for row in recalled:
                    self._journal.append(row)
        elif step == 0 < self.reached:
            self._rows = []
            self._look_back()
        self.is_open = True

    def _set_aside(self, journal: Journal) -> None:
        """Keep the rows of another training in a file of their own."""
        try:
            where = journal.set_aside()
        except OSError as error:
            warn(
                f"{self.name} has measurements up to step {self.reached} and can't be renamed ({error.strerror}), and the "
                f"training is at step 0: measuring goes on after step {self.reached}; give another training another path=."
            )
            return
        warn(
            f"{self.name} has measurements up to step {self.reached}, and the training is at step 0: they are now {where}. "
            f"If the training goes on, tell the step, e.g. attach(..., step={self.reached})."
        )
        self._rows = []
        self._look_back()

    def recall(self, rows: Sequence[Row]) -> None:
        """Go on after the rows of an earlier run; those that the file has stay as they are there."""
        # A frame has NaN where a row has nothing.
        plain = [{name: value for name, value in row.items() if value is not None and value == value} for row in rows]  # noqa: PLR0124
        self._rows += [row for row in plain if row["step"] > self.reached]
        self._look_back()

    @property
    def rows(self) -> list[Row]:
        with self._lock:
            return list(self._rows)

    def add(self, row: Row) -> None:
        self._compare(row)
        with self._lock:
            self._rows.append(row)
            if self._journal is None:
                return
            self._unwritten.append(row)
            try:
                if self._journal.is_deleted:
                    warn(f"{self.name} was deleted; it is written again.")
                    self._journal.close()
                    self._journal, self._unwritten = Journal(self._journal.path), list(self._rows)
                while self._unwritten:
                    self._journal.append(self._unwritten[0])
                    self._unwritten.pop(0)
            except OSError as error:
                if self._strict:
                    raise
                warn(f"a measurement was not written to {self.name} ({error}); it is kept.")

    def _compare(self, row: Row) -> None:
        """Tell once, and note, where the numbers of an earlier run, and these, are of different things."""
        before, now = self._settings, self._settings_of([row])
        if now is None:
            return
        self._settings = now
        if before is not None and before != now:
            differ = ", ".join(
                f"{name} was {before[name]} and is {now[name]}" for name in SETTINGS if before[name] != now[name]
            )
            row["notes"] = "; ".join(filter(None, [row.get("notes"), f"not to be compared with those before: {differ}"]))
            warn(
                f"the measurements before in {self.name} do not compare with those from step {row['step']} on: {differ}; "
                "measure as before, or give another path=."
            )

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __getstate__(self) -> dict[str, Any]:
        if self.is_open:
            raise LmnError(
                "a callback that has begun to measure can't be copied or pickled; copy it before, or make another one."
            )
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


def _reached(rows: Sequence[Row]) -> int:
    return max((row["step"] for row in rows), default=-1)
