"""Draws regions.png of the README: the regions of a network fitted to a signed distance.

python docs/regions.py        # from the repository's root
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import lmn  # noqa: E402
from bench.networks import trained_network  # noqa: E402

if __name__ == "__main__":
    found = lmn.regions(trained_network(2, 100, 100, 1), lmn.box([-1, -1], [1, 1], 2))
    print(found)
    figure, panels = plt.subplots(1, 2, figsize=(12.8, 5.6), layout="constrained")
    for ax, fill in zip(panels, ("norm", "volume"), strict=True):
        found.plot(fill, ax=ax)
    figure.savefig(HERE / "regions.png", dpi=100)
