"""The measurements of a training, as a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmn.errors import LmnError
from lmn.journal import Row

try:
    import pandas as pd
except ModuleNotFoundError as error:
    raise LmnError("a history is a pandas DataFrame, which is not installed; pip install pandas.") from error


class History(pd.DataFrame):
    """A DataFrame with a row for each measurement: ``step``, ``wall_time`` in seconds, the numbers, ``error`` if any failed."""

    @property
    def _constructor(self) -> type[History]:
        return History

    @classmethod
    def of(cls, rows: Sequence[Row]) -> History:
        columns = dict.fromkeys(name for row in [{"step": 0, "wall_time": 0.0}, *rows] for name in row)
        names = [*(name for name in columns if name != "error"), *(name for name in columns if name == "error")]
        return cls(list(rows), columns=names)

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """The numbers over the steps; see :func:`lmn.curves.curves`. With what only pandas knows, x=, y= or kind=, its plot."""
        if {"x", "y", "kind"} & kwargs.keys():
            return pd.DataFrame(self).plot(*args, **kwargs)
        from lmn.curves import curves

        return curves(self, *args, **kwargs)
