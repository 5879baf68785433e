"""Regions through a training, as an animation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmn.errors import LmnError
from lmn.exact_regions import ExactRegions
from lmn.partition import Regions
from lmn.plots import draw, matplotlib_pyplot, quantity

_DPI = 100
_DECADES = 30.0  # how far apart norms are that are coloured by their logarithm


def animate(
    found: Sequence[Regions], path: str | Path, *, titles: Sequence[str] | None = None, fill: str = "norm",
    seconds: float = 6.0, decorate: Callable[[Any], object] = lambda _ax: None, **options: Any,
) -> None:  # fmt: skip
    """Write exact regions of a plane or a box, one after the other, as a GIF; colours mean the same in all of its pictures.

    Norms that span decades are coloured by their logarithm.

    Parameters
    ----------
    found : sequence of ExactRegions
        As :func:`lmn.regions` finds them on one grid, at moments of a training.
    path : str or Path
        Ends in .gif.
    titles : sequence of str, optional
        Of each. Default: how many regions.
    fill, **options
        As for ``regions.plot``.
    seconds : float
        How long it takes; the last picture stays for two more.
    decorate : callable, optional
        Is given the matplotlib Axes of each picture, to draw samples, say.

    Raises
    ------
    LmnError
        No regions, regions that are not exact, not as many titles; matplotlib or pillow is not installed; a path that can't be
        written.
    """
    plt = matplotlib_pyplot()
    path = Path(path)
    if not found or not all(isinstance(each, ExactRegions) for each in found):
        raise LmnError("an animation takes exact regions of a plane or a box, at least of one moment.")
    if titles is not None and len(titles) != len(found):
        raise LmnError(f"there are {len(found)} pictures and {len(titles)} titles; give each its title.")
    if path.suffix.lower() != ".gif":
        raise LmnError(f"an animation is a GIF; got {path}, which should end in .gif.")
    try:
        from PIL import Image
    except ImportError as error:
        raise LmnError("animations need pillow; pip install pillow.") from error
    values = np.concatenate([quantity(each, fill, options.get("output")) for each in found if isinstance(each, ExactRegions)])
    limits = tuple(options.pop("limits", np.quantile(values, (0.005, 0.995))))
    if fill == "norm" and limits[0] > 0 and limits[1] / limits[0] > _DECADES:
        options = {"log": True} | options
    pictures = []
    for number, each in enumerate(found):
        ax = draw(each, fill, limits=limits, **options)  # type: ignore[arg-type]
        if titles is not None:
            ax.set_title(titles[number])
        decorate(ax)
        ax.figure.set_dpi(_DPI)
        ax.figure.canvas.draw()
        pictures.append(Image.fromarray(np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].copy()))
        plt.close(ax.figure)
    each_ms = max(20, int(1000 * seconds / len(pictures)))
    durations = [each_ms] * (len(pictures) - 1) + [each_ms + 2000]
    try:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    except OSError as error:
        raise LmnError(f"can't write {path}: {error}.") from error
