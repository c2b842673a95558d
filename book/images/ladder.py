"""Draws ladder.svg, the picture of the README and of the landing page: `python
book/images/ladder.py`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fractal_lib.curves.splines import bspline_weights
from fractal_lib.plots import FAINT, LADDER, QUERY, ladder_nodes, query_line, use_style


def draw_ladder(n: int = 65, x: float = 26.4, levels: int = 5) -> Figure:
    """The book's picture: the kernel that the ladder adds up to, above the rows it reads, level by
    level.

    Every level has the same share of the weight. Each band is one level, the finest darkest.
    """
    figure, (top, below) = plt.subplots(
        2, 1, figsize=(7.2, 4.2), sharex=True, height_ratios=[1, 1.15]
    )
    rows = np.linspace(0, n - 1, 4 * n - 3)
    height = np.zeros_like(rows)
    for level in reversed(range(levels)):
        # Of the four weights a point d strides away has the second if d < 1, the first if d < 2.
        d = torch.tensor(np.abs(rows - x) / 2**level)
        four = bspline_weights(d % 1)
        beta = torch.where(d < 1, four[:, 1], torch.where(d < 2, four[:, 0], 0.0)).numpy()
        band = beta / 2**level / levels
        top.fill_between(
            rows, height, height + band, color=LADDER.color, alpha=0.9 * 0.72**level, linewidth=0
        )
        height = height + band
    top.plot(rows, height, **LADDER.line)
    query_line(top, x, "query")
    top.set(ylabel="weight of a row", ylim=(0, None))
    top.grid(axis="x", visible=False)
    top.set_title("Fine nearby, coarse far away: four rows on every level", pad=24)
    ladder_nodes(below, x, n, levels)
    below.axvline(x, **QUERY.line, linewidth=1.4)
    below.set_title("filled: read, as large as its weight", loc="right", fontweight="normal")
    return figure


def save_card(figure: Figure, path: Path, title: str) -> None:
    """Save as SVG on a white card with round corners: readable on light pages and dark ones."""
    width, height = figure.get_size_inches()
    figure.patch.set_visible(False)
    figure.add_artist(
        FancyBboxPatch(
            (0.1 / width, 0.1 / height),
            1 - 0.2 / width,
            1 - 0.2 / height,
            transform=figure.transFigure,
            boxstyle="round,pad=0,rounding_size=0.02",
            mutation_aspect=width / height,
            facecolor="white",
            edgecolor=FAINT,
            linewidth=1,
            zorder=-1,
        )
    )
    figure.get_layout_engine().set(rect=(0.03, 0.035, 0.94, 0.92))
    figure.savefig(path, facecolor="none", metadata={"Title": title, "Date": None, "Creator": None})


if __name__ == "__main__":
    plt.switch_backend("agg")
    use_style()
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    save_card(draw_ladder(), path, "The ladder around a query")
