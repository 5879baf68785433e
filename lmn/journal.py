"""Measurements in a file, a JSON line each, of which none is lost when the run dies."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import weakref
from pathlib import Path
from typing import Any

from lmn.errors import LmnError

Row = dict[str, Any]

_BEGINS = b'{"step": '  # every row


class Journal:
    """A file of rows that is only ever appended to: each row is one write to the operating system, done before it returns.

    A process that is killed leaves whole lines, but for one whose write was cut off, which the next one to open the file
    removes. One process at a time writes; those that it forks, as a data loader does, let go of the file.

    Attributes
    ----------
    path : Path
    rows : list of dict
        What was in the file when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._begin()

    def _begin(self) -> None:
        self._file = _opened(self.path)
        self._release = weakref.finalize(self, os.close, self._file)  # if nobody closes it
        _open.add(self)
        try:
            self._lock()
            self.rows, whole = _rows_of(self.path)
            os.truncate(self._file, whole)
            if whole and os.pread(self._file, 1, whole - 1) != b"\n":
                os.write(self._file, b"\n")
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LmnError(
                f"another callback writes to {self.path}; give each run a path= of its own, or close() the one before."
            ) from error
        except OSError as error:
            raise LmnError(
                f"the file system of {self.path} can't lock files ({error.strerror}); give another path=."
            ) from error

    def append(self, row: Row) -> None:
        """Write a row of ``plain`` values."""
        if not self._release.alive:
            raise OSError("the file is closed")
        line = f"{_json(row)}\n".encode()
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            os.truncate(self._file, before)
            raise

    @property
    def is_deleted(self) -> bool:
        return os.fstat(self._file).st_nlink == 0

    def set_aside(self) -> Path:
        """Rename the file, and begin another one in its place; returns where the one before is."""
        numbers = itertools.count(1)
        to = next(to for number in numbers if not (to := self.path.with_suffix(f".{number}{self.path.suffix}")).exists())
        self.path.rename(to)
        self.close()
        self._begin()
        return to

    def close(self) -> None:
        self._release()  # of the lock, too


_open = weakref.WeakSet[Journal]()


def _let_go() -> None:
    """In a process that was forked: its copy of a file would keep the lock when the one that writes is gone."""
    for journal in list(_open):
        journal.close()


os.register_at_fork(after_in_child=_let_go)


def look(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file that is to be written to, or may be being written to already; it is made where there is none.

    Raises
    ------
    LmnError
        A path that can't be written to, or a file that has other things in it.
    """
    os.close(_opened(Path(path)))
    return read(path)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise LmnError(f"can't write measurements to {path}: {error.strerror}; give another path=.") from error


def read(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file that may be being written to.

    Raises
    ------
    LmnError
        A file that can't be read, or has other things in it.
    """
    return _rows_of(Path(path))[0]


class Follower:
    """The rows of a file that is being written to, as they come; each is read once.

    Attributes
    ----------
    path : Path
        Need not be there yet.
    rows : list of dict
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.rows = Path(path), list[Row]()
        self._read, self._file = 0, (0, 0)  # bytes, of which file

    def update(self) -> bool:
        """Read on, and tell whether there was something.

        Raises
        ------
        LmnError
            As of ``read``.
        """
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        if (now.st_dev, now.st_ino) != self._file or now.st_size < self._read:  # another file
            self.rows, self._read, self._file = [], 0, (now.st_dev, now.st_ino)
        if now.st_size == self._read:
            return False
        new, self._read = _rows_of(self.path, self._read, len(self.rows))
        self.rows += new
        return bool(new)


def _rows_of(path: Path, begin: int = 0, before: int = 0) -> tuple[list[Row], int]:
    """The rows from a byte on, and where they end: before the file does, if it ends in a part of a row."""
    try:
        with path.open("rb") as file:
            file.seek(begin)
            content = file.read()
    except OSError as error:
        raise LmnError(f"can't read {path}: {error.strerror}.") from error
    rows, whole = [], begin
    content = content.rstrip(b"\0")  # what a file system may leave of a write when the power fails
    for number, line in enumerate(content.splitlines(keepends=True), before + 1):
        if not line.strip():  # the end of a line whose row was read without it
            whole += len(line)
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith(b"\n") and (line.startswith(_BEGINS) or _BEGINS.startswith(line)):  # a write that was cut off
                break
            raise LmnError(
                f"line {number} of {path} is no measurement ({error}); delete the line if the file is of measurements, or give "
                "another path."
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise LmnError(f"line {number} of {path} is no measurement (it has no step); give another path.")
        rows.append(row)
        whole += len(line)
    return rows, whole


def plain(value: Any) -> Any:
    """A value as a row has it: of a number of any library the number, of a NaN none, of many a list, of all else its string."""
    if value is None or isinstance(value, str | bool):
        return value
    if getattr(value, "ndim", 0):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    try:
        number = value if isinstance(value, int) else value.item() if hasattr(value, "item") else float(value)
        return number if isinstance(number, int) or not math.isnan(number) else None
    except (TypeError, ValueError, RuntimeError):
        return str(value)


def _json(value: Any) -> str:
    """JSON, in which an infinity is a number that is too large."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(name)}: {_json(each)}' for name, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return json.dumps(value, allow_nan=False)
